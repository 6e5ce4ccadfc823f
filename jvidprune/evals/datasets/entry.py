"""One annotated question of a benchmark, checked: a wrong one says what is wrong with it."""

import dataclasses
from collections.abc import Mapping
from typing import get_args

from jvidprune.errors import quoted
from jvidprune.evals.items import LETTERS, POST_PROMPTS, Kind, Question
from jvidprune.evals.spans import read_span


@dataclasses.dataclass(frozen=True)
class AskedQuestion(Question):
    """A question with the whole text that the model is given, as the benchmark's evaluation words it.

    Attributes:
      asked: prompt, options and instructions included.
    """

    asked: str = ""

    def prompt(self, post: Mapping[str, str] = POST_PROMPTS) -> str:
        """The benchmark's own text; `post` is ignored."""
        return self.asked


@dataclasses.dataclass(frozen=True)
class Entry:
    """One annotated question.

    Attributes:
      videos: names under which its video may lie, the likeliest first.
      question: what is asked.
      start, end: seconds of the part that is looked at.

    Raises:
      ValueError: seconds that are no part of a video, texts that are none, or an answer that is none of the options.
    """

    videos: tuple[str, ...]
    question: AskedQuestion
    start: float | None = None
    end: float | None = None

    def __post_init__(self):
        times = [time for time in (self.start, self.end) if time is not None]
        if not all(0 <= time < 1e9 for time in times) or sorted(times) != times:
            raise ValueError(f"it looks at {self.start} to {self.end} seconds, which is no part of a video")
        if not self.videos or not all(isinstance(name, str) for name in self.videos):
            raise ValueError("its video is no text")
        check_question(self.question)


def _is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON can hold and no file."""
    return not any("\ud800" <= mark <= "\udfff" for mark in text)


def check_question(question: AskedQuestion) -> None:
    """Refuses a question that cannot be asked or whose answer cannot be right.

    Raises:
      ValueError: what is wrong with it.
    """
    texts = {"id": question.id, "question": question.text, "prompt": question.asked, "category": question.category}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"its {name} is {quoted(repr(text))}, no text")
    for text in (*texts.values(), *question.options):
        if isinstance(text, str) and not _is_unicode(text):
            raise ValueError(f"{quoted(repr(text))} is no text that can be written")
    if question.kind not in get_args(Kind):
        raise ValueError(f"it is a question of kind {question.kind!r}, not {', '.join(get_args(Kind))}")
    if not isinstance(question.options, tuple) or not all(isinstance(option, str) for option in question.options):
        raise ValueError("its options are no texts")
    answer, options = question.answer, question.options
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"its answer is {answer!r}, no text")
    if question.kind == "choice":
        letters = LETTERS[: len(options)]
        if not options:
            raise ValueError("it is a choice without options")
        if answer.strip().upper() not in tuple(letters):
            raise ValueError(f"the answer {answer!r} is none of the options {', '.join(letters)}")
    elif question.kind == "yes_no" and answer.strip().lower() not in ("yes", "no"):
        raise ValueError(f"the answer {answer!r} is neither yes nor no")
    elif question.kind in ("open", "span") and options:
        raise ValueError("it asks for an open answer and has options")
    elif question.kind == "span":
        read_span(answer)
    elif question.kind == "short" and options and answer not in options:
        raise ValueError(f"the answer {answer!r} is none of the options {', '.join(options)}")
