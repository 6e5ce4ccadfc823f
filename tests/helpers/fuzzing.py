"""Broken input for the fuzz tests: damaged bytes, JSON with hostile values, and what a reader must do with them."""

import contextlib
import copy
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jvidprune.errors import JvidpruneError

SECONDS = 60
"""After so long an input counts as hanging."""


def bounded(examples: int, more: int = 100) -> Any:
    """Runs a test with so many examples by default, and with `more` times as many behind the marker `long`."""
    return pytest.mark.parametrize("examples", [examples, pytest.param(examples * more, marks=pytest.mark.long)])


def fuzz(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], object], *, long: int = 1000) -> None:
    """Calls `check` with examples of a strategy; bounded runs always draw the same, long ones new examples."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
    options: dict[str, Any] = {"max_examples": examples, "deadline": None, "database": None, "phases": phases}
    options |= {"derandomize": examples < long, "suppress_health_check": list(HealthCheck)}
    settings(**options)(given(strategy)(lambda drawn: check(drawn)))()


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """The block may succeed or be refused in one sentence; anything else fails, a hang included."""

    def hangs(*_: Any) -> None:
        raise AssertionError(f"an input keeps its reader busy for more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        yield
    except JvidpruneError as error:
        text = str(error)
        assert text.strip(), "an error without a sentence"
        assert "\n" not in text, f"more than a line: {text!r}"
        assert len(text) < 6000, f"a sentence of {len(text)} characters: {text[:200]!r}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def damaged(draw: Any, whole: bytes, head: int = 512) -> bytes:
    """Bytes cut off, flipped, overwritten, left out or doubled, at the head of the file as often as in the rest."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        last = len(data) - 1
        place = draw(st.integers(0, min(head, last)) | st.integers(0, last))
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(("flip", "flip", "set", "run", "drop", "double", "cut")))
        if kind == "flip":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[place] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
        elif kind == "run":
            data[place : place + length] = bytes([draw(st.sampled_from((0, 0xFF)))]) * len(data[place : place + length])
        elif kind == "drop":
            del data[place : place + length]
        elif kind == "double":
            data[place:place] = data[place : place + length]
        else:
            del data[place:]
    return bytes(data)


HOSTILE = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "0",
        "-1",
        "../../x",
        "/etc/passwd",
        "a\nb",
        "\0",
        "é" * 300,
        [],
        [None],
        [[]],
        {},
        {"a": {}},
        [1, 2, 3],
    ),
    *([-1], ["x"], {"height": None}, [{}], [0.0, 0.0, 0.0], 10**9, [2**31] * 3),
)
"""Values that a field of a JSON file should not have."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


@st.composite
def hostile_json(draw: Any, value: Any) -> str:
    """A JSON text with a few fields replaced, left out or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            break
        *path, key = draw(st.sampled_from(places))
        holder = value
        for step in path:
            holder = holder[step]
        kind = draw(st.sampled_from(("replace", "replace", "replace", "remove", "wrap")))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        elif kind == "wrap":
            holder[key] = [holder[key]]
        else:
            del holder[key]
    return json.dumps(value)


BROKEN_TEXTS = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"\xff\xfe{}",
    b"\x80",
    b'{"a": ' * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": NaN}',
    b'{"a": "\\ud800"}',
    b'{"\\u0000": 1}',
)
"""Files that are no JSON objects, or barely: empty, cut off, of another type, nested too deep, too many digits."""


def broken_text(value: Any) -> st.SearchStrategy[bytes]:
    """A JSON file of `value` broken in any of the ways above."""
    encoded = json.dumps(value).encode()
    texts = hostile_json(value).map(lambda text: text.encode())
    return texts | texts | damaged(encoded) | st.sampled_from(BROKEN_TEXTS)
