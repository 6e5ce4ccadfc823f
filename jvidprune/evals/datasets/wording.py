"""The parts that wordings of multiple-choice questions are made of."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from jvidprune.errors import quoted
from jvidprune.evals.datasets.entry import AskedQuestion
from jvidprune.evals.items import LETTERS

DIRECTLY = "Answer with the option's letter from the given choices directly."
GIVE_OPTION = "Only give the option."
BEST_ANSWER = "The best answer is:"
"""SToP's two instructions; which benchmark has which was not read: VideoMME and LongVideoBench end in this one here."""


def listing(value: Any) -> Iterable[Any]:
    """A list of an annotation, as it is.

    Raises:
      ValueError: it is none: the letters of a text are no options.
    """
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise ValueError(f"{quoted(repr(value))} is no list")
    return value


def lettered(options: Sequence[str]) -> list[str]:
    """The options as "A. text" lines; they stay as they are if all carry their letters already."""
    return list(listing(options)) if _carry_letters(options) else pointed(options)


def _carry_letters(options: Sequence[str]) -> bool:
    found = zip(LETTERS, listing(options), strict=False)
    return all(re.match(rf"\(?{letter}[.):]", str(option)) for letter, option in found)


def pointed(options: Sequence[str]) -> list[str]:
    """The options as "A. text" lines, whatever their texts begin with."""
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, listing(options), strict=False)]


def bracketed(options: Sequence[str]) -> list[str]:
    """The options as "(A) text" lines, whatever their texts begin with."""
    return [f"({letter}) {option}" for letter, option in zip(LETTERS, listing(options), strict=False)]


def bare(options: Sequence[str]) -> tuple[str, ...]:
    """The options without letters in front, if all carry theirs."""
    if not _carry_letters(options):
        return tuple(str(option).strip() for option in options)
    found = zip(LETTERS, options, strict=False)
    return tuple(re.sub(rf"^\(?{letter}[.):]\s*", "", str(option)).strip() for letter, option in found)


_OPTION = re.compile(r"^\s*(?:\(([A-Z])\)|([A-Z])[.):](?=\s|$))\s*(.*)$")


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """A question that has its options in lines of their own: the question alone, and the options without letters.

    Lines such as "(A) text", "A. text", "A) text" and "A: text", in the order of the alphabet; what stands below an
    option belongs to it. Without at least two of them the text is all question.
    """
    question, options = [], []
    for line in text.splitlines():
        found = _OPTION.match(line)
        if found and len(options) < len(LETTERS) and (found.group(1) or found.group(2)) == LETTERS[len(options)]:
            options.append(found.group(3))
        elif options:
            options[-1] += f"\n{line}"
        else:
            question.append(line)
    if len(options) < 2:
        return text.strip(), ()
    return "\n".join(question).strip(), tuple(option.strip() for option in options)


def choice(
    name: str, text: str, category: str, options: Sequence[str], answer: int | str, *, asked: str, length: str = ""
) -> AskedQuestion:
    """A multiple-choice question; `answer` is an index, a letter, or the text of the right option.

    `length` is the benchmark's own group of clip lengths, if it has any.

    Raises:
      ValueError: an answer that is none of these.
    """
    texts = bare(options)
    return AskedQuestion(name, text, category, "choice", texts, letter_of(answer, texts), asked=asked, length=length)


def letter_of(answer: int | str, options: tuple[str, ...]) -> str:
    """The letter of an answer: an index from 0, the text of an option with or without its letter, or a letter.

    Raises:
      ValueError: it is none of these.
    """
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
