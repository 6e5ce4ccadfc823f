"""Runs verbs one after the other in one fresh process, as a shell would see each: exit code and both streams.

Reads {"blocked": [modules], "lines": [[words], ...]} as JSON from the file it is given, and writes a list of
{"code", "out", "err"} into the file named second. Streams are caught below Python, so that native code is heard too.
"""

import json
import os
import sys
import tempfile
import traceback


class Without:
    """A finder of modules to which some packages are not installed.

    A finder before the others would not do: who asks whether a package is there wants None, no error.
    """

    def __init__(self, finder, names):
        self._finder, self._names = finder, names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self._names:
            return None
        return self._finder.find_spec(fullname, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def call(words):
    from jvidprune import cli

    sys.argv = ["jvidprune", *words]
    code, saved = 0, (os.dup(1), os.dup(2))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            code = 70
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return {"code": code, "out": texts[0], "err": texts[1]}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    target = sys.argv[2]
    sys.meta_path[:] = [Without(finder, set(asked["blocked"])) for finder in sys.meta_path]
    found = [call(words) for words in asked["lines"]]
    with open(target, "w", encoding="utf-8") as file:
        json.dump(found, file)
