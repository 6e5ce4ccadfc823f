"""How lmms-eval words multiple-choice questions."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from jvidprune.errors import quoted
from jvidprune.evals.datasets.entry import AskedQuestion
from jvidprune.evals.items import LETTERS

DIRECTLY = "Answer with the option's letter from the given choices directly."


def listing(value: Any) -> Iterable[Any]:
    """A list of an annotation, as it is.

    Raises:
      ValueError: it is none: the letters of a text are no options.
    """
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise ValueError(f"{quoted(repr(value))} is no list")
    return value


def lettered(options: Sequence[str]) -> list[str]:
    """The options as "A. text" lines; those that carry their letters already stay as they are."""
    return [
        option if re.match(rf"\(?{letter}[.):]", option) else f"{letter}. {option}"
        for letter, option in zip(LETTERS, listing(options), strict=False)
    ]


def bare(options: Sequence[str]) -> tuple[str, ...]:
    """The options without their letters in front."""
    found = zip(LETTERS, listing(options), strict=False)
    return tuple(re.sub(rf"^\(?{letter}[.):]\s*", "", str(option)).strip() for letter, option in found)


def choice(
    name: str, text: str, category: str, options: Sequence[str], answer: int | str, *, asked: str
) -> AskedQuestion:
    """A multiple-choice question; `answer` is an index, a letter, or the text of the right option.

    Raises:
      ValueError: an answer that is none of these.
    """
    texts = bare(options)
    return AskedQuestion(name, text, category, "choice", texts, _letter(answer, texts), asked=asked)


def _letter(answer: int | str, options: tuple[str, ...]) -> str:
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        raise ValueError(f"the answer {quoted(repr(answer))} is neither a number nor a text")
    plain = answer if isinstance(answer, int) else answer.strip()
    if isinstance(plain, int) or (plain.isdecimal() and plain not in options):
        if 0 <= int(plain) < len(options):
            return LETTERS[int(plain)]
        raise ValueError(f"the answer {quoted(repr(answer))} is none of the {len(options)} options, counted from 0")
    for text in (plain, re.sub(r"^\(?[A-Z][.):]\s*", "", plain)):
        if text in options:
            return LETTERS[options.index(text)]
    match = re.match(r"\(?([A-Z])\)?[.:]?$", plain)
    if match and LETTERS.index(match.group(1)) < len(options):
        return match.group(1)
    raise ValueError(f"the answer {quoted(repr(answer))} is none of the options {quoted(', '.join(options), 200)}")
