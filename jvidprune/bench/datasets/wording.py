"""How lmms-eval words multiple-choice questions."""

import re
from collections.abc import Sequence

from jvidprune.bench.datasets.task import AskedQuestion
from jvidprune.bench.items import LETTERS

DIRECTLY = "Answer with the option's letter from the given choices directly."


def lettered(options: Sequence[str]) -> list[str]:
    """The options as "A. text" lines; those that carry their letters already stay as they are."""
    return [
        option if re.match(rf"\(?{letter}[.):]", option) else f"{letter}. {option}"
        for letter, option in zip(LETTERS, options, strict=False)
    ]


def bare(options: Sequence[str]) -> tuple[str, ...]:
    """The options without their letters in front."""
    found = zip(LETTERS, options, strict=False)
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
    if isinstance(answer, int):
        return LETTERS[answer]
    plain = answer.strip()
    if plain.isdigit() and plain not in options:
        return LETTERS[int(plain)]
    for text in (plain, re.sub(r"^\(?[A-Z][.):]\s*", "", plain)):
        if text in options:
            return LETTERS[options.index(text)]
    match = re.match(r"\(?([A-Z])\)?[.:]?$", plain)
    if match and LETTERS.index(match.group(1)) < len(options):
        return match.group(1)
    raise ValueError(f"the answer {answer!r} is none of the options {', '.join(options)}")
