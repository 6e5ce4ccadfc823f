"""Runs verbs one after the other in one fresh process, as a shell would see each: exit code and both streams.

Reads {"blocked": [modules], "lines": [[words], ...]} as JSON from the file it is given, and writes a list of
{"code", "out", "err"} into the file named second. Streams are caught below Python, so that native code is heard too.
"""

import importlib.abc
import json
import os
import sys
import tempfile
import traceback


class Blocked(importlib.abc.MetaPathFinder):
    """Packages that are not installed."""

    def __init__(self, names):
        self.names = set(names)

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


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
    sys.meta_path.insert(0, Blocked(asked["blocked"]))
    found = [call(words) for words in asked["lines"]]
    with open(target, "w", encoding="utf-8") as file:
        json.dump(found, file)
