"""The open answers of a run, and what of them is put to a judge: one case an answer and aspect."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.evals.judge.replies import read_letter, read_score
from jvidprune.evals.judge.rubrics import RUBRICS, Message, Rubric, letters_reminder
from jvidprune.evals.records import is_sample, opened
from jvidprune.evals.store import Record, json_line
from jvidprune.files import atomic_output, parse_json

OPEN = "open_answers.jsonl"
"""File of a run with the samples that a judge has to read, in order, those of earlier states left out."""


@dataclasses.dataclass(frozen=True)
class Case:
    """An answer, or two that belong together, in front of a judge.

    Attributes:
      clip, question, method, ratio: of the answer; two questions are joined with " + ".
      rubric: what is judged.
      material: what the judge is shown, texts by name.
      request: hash of aspect and messages. Equal answers to one question make equal requests, whatever method gave
        them, and share a verdict.
      sent: (role, text) of messages in other words than the rubric's (`published`); empty for its own.
      letters: that a reply in those words is one of, the first of them for a right answer; empty for a score.
    """

    clip: str
    question: str
    method: str
    ratio: float
    rubric: Rubric
    material: tuple[tuple[str, str], ...]
    request: str
    sent: tuple[tuple[str, str], ...] = ()
    letters: str = ""

    @property
    def messages(self) -> list[Message]:
        """What the judge is sent."""
        if self.sent:
            return [{"role": role, "content": text} for role, text in self.sent]
        return self.rubric.messages(dict(self.material))

    @property
    def reminder(self) -> Message:
        """What the judge is told where its reply held no score."""
        return letters_reminder(self.letters) if self.letters else self.rubric.reminder()

    def read(self, reply: str) -> float:
        """The score in a reply; in lmms-eval's words it is a whole number, cut off.

        Raises:
          ValueError: none that can be read.
        """
        if self.letters:
            return 1.0 - min(1, self.letters.index(read_letter(reply, self.letters)))
        score = read_score(reply, self.rubric.top)
        return float(int(score)) if self.sent else score

    @property
    def run(self) -> tuple[str, float]:
        """Method and ratio."""
        return self.method, self.ratio


@dataclasses.dataclass(frozen=True)
class NotJudged:
    """An answer, or a line of a file, without a verdict.

    Attributes:
      clip, question, method, ratio: of the answer; empty and 0 for a line of a file.
      aspect: what was to be judged.
      reason: why there is none, as a sentence.
    """

    clip: str
    question: str
    method: str
    ratio: float
    aspect: str
    reason: str

    def __str__(self) -> str:
        if not self.clip:
            return self.reason
        where = self.clip, self.question, f"{self.method} at {100 * self.ratio:g} %", self.aspect
        return f"{' · '.join(filter(None, where))}: {self.reason}"

    @classmethod
    def of(cls, case: Case, why: str) -> "NotJudged":
        """A case that has no verdict."""
        return cls(case.clip, case.question, case.method, case.ratio, case.rubric.aspect, why)


def write_open(folder: Path, samples: Iterable[Record]) -> None:
    """Writes the open ones of a run's samples into its folder; without any there is no file."""
    records, path = opened(samples), folder / OPEN
    if not records:
        path.unlink(missing_ok=True)
        return
    with atomic_output(path) as part, part.open("wb") as file:
        file.writelines(json_line(record) for record in records)


def open_answers(folder: Path) -> tuple[list[Record], list[NotJudged]]:
    """The open answers of a finished sweep, and the lines of their file that are none.

    Raises:
      JvidpruneError: the folder has none.
    """
    path = folder / OPEN
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise JvidpruneError(
            f"{folder} has no open answers ({OPEN}): a sweep writes them when it ends, if its task asks open questions."
        ) from None
    except OSError as error:
        raise JvidpruneError(f"{path} cannot be read: {reason(error)}.") from error
    found, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and is_sample(record) and record["correct"] is None:
            found.append(record)
        else:
            bad.append(
                NotJudged("", "", "", 0.0, "", f"line {number} of {OPEN} is no open answer; run the sweep again.")
            )
    return found, bad


def cases_of(answers: Sequence[Record]) -> tuple[list[Case], list[NotJudged]]:
    """What is put to a judge, in the order of the answers, and what cannot be.

    Args:
      answers: records of open answers.
    """
    cases: list[Case] = []
    bad: list[NotJudged] = []
    pairs: dict[tuple[Any, ...], list[Record]] = {}
    for record in answers:
        rubrics = RUBRICS.get(record.get("rubric", ""))
        if not isinstance(record.get("asked"), str) or rubrics is None:
            why = "the record does not say what was asked."
            if rubrics is None:
                why = f"there is no rubric {quoted(repr(record['rubric']))}; known: {', '.join(filter(None, RUBRICS))}."
            bad.append(NotJudged(*_place(record), "", why))
            continue
        for rubric in rubrics:
            if rubric.pair:
                key = record["clip"], record["method"], record["ratio"], rubric
                pairs.setdefault(key, []).append(record)
            else:
                material = {"question": record["asked"], "reference": record["answer"], "answer": record["prediction"]}
                cases.append(_case(record, record["question"], rubric, material))
    for (_, _, _, rubric), records in pairs.items():
        two, alone = _pairs(records)
        for one, other in two:
            material = {"question_1": one["asked"], "question_2": other["asked"], "reference": one["answer"]}
            material |= {"answer_1": one["prediction"], "answer_2": other["prediction"]}
            cases.append(_case(one, f"{one['question']} + {other['question']}", rubric, material))
        why = "the other question of its pair has no answer."
        bad += [NotJudged(*_place(record), rubric.aspect, why) for record in alone]
    return cases, bad


def _place(record: Record) -> tuple[str, str, str, float]:
    return record["clip"], record["question"], record["method"], float(record["ratio"])


def _case(record: Record, question: str, rubric: Rubric, material: dict[str, str]) -> Case:
    # Half of a surrogate pair can stand in JSON, and cannot be sent.
    plain = {name: text.encode("utf-8", "replace").decode() for name, text in material.items()}
    text = json.dumps([rubric.aspect, rubric.top, rubric.messages(plain)], ensure_ascii=False)
    request = hashlib.sha256(text.encode()).hexdigest()[:16]
    clip, _, method, ratio = _place(record)
    return Case(clip, question, method, ratio, rubric, tuple(plain.items()), request)


def _pairs(records: Sequence[Record]) -> tuple[list[tuple[Record, Record]], list[Record]]:
    """Questions "...-1" and "...-2" of one clip and run that belong together, and those left alone.

    Their rows may lie anywhere in the annotations: where a clip has several pairs, those of one reference belong
    together.
    """
    firsts = [record for record in records if record["question"].endswith("-1")]
    seconds = [record for record in records if record not in firsts]
    if len(firsts) == len(seconds) == 1:
        return [(firsts[0], seconds[0])], []
    two, alone = [], []
    for one in firsts:
        other = next((record for record in seconds if record["answer"] == one["answer"]), None)
        if other is None:
            alone.append(one)
        else:
            seconds.remove(other)
            two.append((one, other))
    return two, [*alone, *seconds]
