"""What a video question-answering task is made of: questions, items with a clip, and the protocol of a task."""

import dataclasses
import string
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.fields import settle
from jvidprune.video.decode import Clip

Kind = Literal["choice", "short", "yes_no", "span", "open"]
"""How an answer is read. An "open" one is read by a judge: it is recorded and stands in no accuracy."""
LETTERS = string.ascii_uppercase
"""Of the options of a choice, in their order."""

POST_PROMPTS: Mapping[str, str] = {
    "choice": "answer with the letter.",
    "short": "answer with one word.",
    "yes_no": "answer yes or no.",
}
"""Short instructions for a model of few words."""
LMMS_POST_PROMPTS: Mapping[str, str] = {
    "choice": "Answer with the option's letter from the given choices directly.",
    "short": "Answer the question using a single word or phrase.",
    "yes_no": "Answer the question using yes or no.",
}
"""Instructions as lmms-eval puts them after a question."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about a clip.

    Attributes:
      id: unique in its task.
      text: the bare question.
      category: what it asks about; accuracies are reported for each.
      kind: "choice" (answered by a letter), "yes_no", "short" (answered by a word or two), "span" (answered by a span
        of seconds, `spans.write_span`), or "open" (answered by sentences).
      options: the choices in the order of their letters; for "yes_no" yes and no; for "short" the closed set of answers
        that the question admits, never shown to the model, empty where there is none.
      answer: the letter, "yes" or "no", the word, or what a judge compares an open answer with.
      rubric: what a judge is asked about an open answer, by its name in `judge.rubrics.RUBRICS`; by default whether it
        agrees with `answer`.
      length: the benchmark's own group of its clip's length, empty where it has none.

    Raises:
      JvidpruneError: a choice of more options than there are letters.
    """

    id: str
    text: str
    category: str
    kind: Kind
    options: tuple[str, ...]
    answer: str
    rubric: str = ""
    length: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if self.kind == "choice" and len(self.options) > len(LETTERS):
            raise JvidpruneError(
                f"question {self.id} has {len(self.options)} options, more than the {len(LETTERS)} that have a letter."
            )

    def prompt(self, post: Mapping[str, str] = POST_PROMPTS) -> str:
        """What the model is asked: the question, options with letters on lines of their own, an instruction.

        Args:
          post: instruction for each kind, e.g. `POST_PROMPTS` or `LMMS_POST_PROMPTS`; an absent kind gets none.
        """
        lines = [self.text]
        if self.kind == "choice":
            lines += [f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False)]
        return "\n".join([*lines, post[self.kind]] if post.get(self.kind) else lines)

    @property
    def content(self) -> str:
        """The answer in words: for "choice" the option that the letter stands for."""
        return self.options[LETTERS.index(self.answer)] if self.kind == "choice" else self.answer


@dataclasses.dataclass(frozen=True)
class Item:
    """A clip and what is asked about it.

    Attributes:
      id: unique in its task.
      questions: one or more.
      load: reads or draws the clip.
      source: what decides the frames that `load` gives, as JSON holds it: content and part of the file, sampling. An
        item whose source changes is asked again. Without one the item stands for itself, with its task's fingerprint.
      file: that `load` reads, if any.
    """

    id: str
    questions: tuple[Question, ...]
    load: Callable[[], Clip]
    source: Callable[[], Any] | None = None
    file: str = ""


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Something of a task that cannot be asked.

    Attributes:
      item: id of the clip or question, or the place of the annotation.
      file: the video or annotation file; empty where there is none.
      reason: what is wrong with it, as a sentence.
      missing: it is a video that is not there.
    """

    item: str
    file: str
    reason: str
    missing: bool = False

    def __post_init__(self) -> None:
        # Names come from anywhere; what is printed and written to JSON must be text.
        settle(self, **{name: quoted(getattr(self, name), 1000) for name in ("item", "file", "reason")})

    def __str__(self) -> str:
        return self.reason if self.item in self.reason else f"{self.item}: {self.reason}"


class Task(Protocol):
    """Items that a model is measured on."""

    @property
    def name(self) -> str:
        """Short name, as in tables."""
        ...

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories of the questions, in the order of tables."""
        ...

    def chance(self, question: Question) -> float:
        """Accuracy of a uniform guess among the admitted answers, 0 where answers are open."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...

    def fingerprint(self) -> dict[str, Any]:
        """Settings that hold for all items and change results, as values that JSON can hold.

        What belongs to one item (its video, its questions) stands in the item: adding, mending or removing one leaves
        the task what it is; how many there are is called "clips". A task may also have `left_out`, a sequence of
        `LeftOut`.
        """
        ...


def left_out(task: Any) -> tuple[LeftOut, ...]:
    """What of a task was found not to be askable before any clip was read."""
    return tuple(getattr(task, "left_out", ()))


def chance(question: Question) -> float:
    """Accuracy of a uniform guess among a question's admitted answers, 0 where answers are open."""
    return 1 / len(question.options) if question.options else 0.0
