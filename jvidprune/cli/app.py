"""The command line: registers the verbs, each of which lives in a file of its name, and turns errors into sentences."""

import contextlib
import functools
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterator

import tyro

from jvidprune.cli.ask import ask
from jvidprune.cli.bench import bench
from jvidprune.cli.clip import clip
from jvidprune.cli.costs import costs
from jvidprune.cli.export import export
from jvidprune.cli.flops import flops
from jvidprune.cli.judge import judge
from jvidprune.cli.libraries import silent
from jvidprune.cli.methods import methods
from jvidprune.cli.models import models
from jvidprune.cli.parity import parity
from jvidprune.cli.plan import plan
from jvidprune.cli.probe import probe
from jvidprune.cli.reduce import reduce
from jvidprune.cli.serve import serve
from jvidprune.cli.sweep import sweep
from jvidprune.cli.train import train
from jvidprune.cli.video import video
from jvidprune.errors import JvidpruneError
from jvidprune.extras import EXTRAS
from jvidprune.texts import unknown

VERBS: tuple[Callable[..., None], ...] = (
    ask,
    reduce,
    sweep,
    judge,
    probe,
    serve,
    clip,
    video,
    methods,
    models,
    bench,
    costs,
    export,
    flops,
    plan,
    train,
    parity,
)


class _Parsing:
    """Standard error while words are read: tyro's panels are held back, a verb that begins gets the real one."""

    def __init__(self) -> None:
        self._held = io.StringIO()
        self._real = sys.stderr

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Words are read inside.

        Raises:
          JvidpruneError: they are no command, or a value is not of its option's kind.
        """
        sys.stderr = self._held
        try:
            yield
        except SystemExit as stop:
            if self._held.getvalue() and stop.code:
                raise JvidpruneError(sentence(self._held.getvalue())) from None
            raise
        finally:
            self.over()

    def over(self) -> None:
        """Everything was understood."""
        if sys.stderr is self._held:
            sys.stderr = self._real

    def verb(self, run: Callable[..., None]) -> Callable[..., None]:
        """A verb that first ends the parsing."""

        @functools.wraps(run)
        def begun(*args: object, **kwargs: object) -> None:
            self.over()
            self._held.truncate(0)
            run(*args, **kwargs)

        return begun


def sentence(panel: str) -> str:
    """One sentence out of what tyro prints about words that it cannot read."""
    lines = [line.strip(" │╭╮╰╯|+").strip() for line in panel.splitlines()]
    rules = [i for i, line in enumerate(lines) if re.match(r"^─+$|^(Got errors|Argument helptext)", line)]
    first, *others = (
        re.sub(r"\s+", " ", " ".join(line for line in part if line and not re.match(r"^─ .* ─+$|^─*$", line))).strip()
        for part in _split(lines, rules)
    )
    text = re.sub(r" Arguments are applied.*", "", first.replace(" (required)", "")).rstrip(".")
    text += "".join(f"; {part[:1].lower()}{part[1:]}" for part in others if part.startswith("Available"))
    helped = re.search(r"(?:run|see) (.* --help)", " ".join(lines))
    value = re.match(r"Error parsing (--[\w-]+): (.*)$", text)
    if value:
        flag, why = value.groups()
        given = re.search(r"\['(.*)'\]|(?:base 10|to float): '(.*)'", why)
        kind = "a whole number" if re.search(r"\bINT\b|base 10", why) else "a number" if "loat" in why.lower() else ""
        if given and kind:
            return f"{flag} takes {kind}, got {given.group(1) or given.group(2)!r}."
        text = f"{flag}: {why}"
    return f"{text[:1].lower()}{text[1:]}; {helped.group(1) if helped else 'jvidprune --help'} says what there is."


def _split(lines: list[str], places: list[int]) -> Iterator[list[str]]:
    for begin, end in itertools.pairwise([-1, *places, len(lines)]):
        yield lines[begin + 1 : end]


def main() -> None:
    """Entry point: exit code 0 on success, 1 on a parity mismatch, 2 on an error the user can fix.

    75 is EX_TEMPFAIL, for an `errors.TransientError`, where the same command may succeed later; 130 follows Ctrl-C, 141
    output that nobody reads any more.
    """
    debug = "--debug" in sys.argv
    quiet = bool({"--quiet", "--json"} & set(sys.argv))
    app, parsing = tyro.extras.SubcommandApp(), _Parsing()
    for verb in VERBS:
        app.command(parsing.verb(verb))
    names, asked = tuple(verb.__name__ for verb in VERBS), sys.argv[1:2]
    try:
        if asked and not asked[0].startswith("-") and asked[0] not in names:
            raise JvidpruneError(unknown("verb", asked[0], names))
        with contextlib.nullcontext() if debug else silent(quiet=quiet), parsing.reading():
            app.cli(prog="jvidprune", description="Visual-token reduction for video LLMs in JAX.")
    except JvidpruneError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ImportError as error:
        top = (error.name or "").partition(".")[0]
        if debug or top in ("", "jvidprune"):
            raise
        package = f"jvidprune[{EXTRAS[top]}]" if top in EXTRAS else "jvidprune"
        print(f"error: this verb needs {top}, which cannot be imported: pip install '{package}'.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
