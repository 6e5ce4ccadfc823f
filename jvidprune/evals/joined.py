"""Runs of several benchmarks as one: their answers together, a benchmark for a category, so that one report has all.

Every benchmark keeps its own run, whose folder is filled as ever; what is joined here is read from these and written
nowhere. Clips of the joined run are named after their benchmark, so that no two of them are taken for one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.evals.items import Item, LeftOut, Question, left_out
from jvidprune.evals.metrics import FULL
from jvidprune.evals.records import counted, opened
from jvidprune.evals.runner import RunFiles, SweepRecords
from jvidprune.evals.store import Record


@dataclasses.dataclass(frozen=True)
class JoinedPart:
    """One benchmark of a joined run.

    Attributes:
      name: of the benchmark.
      prompts: whose wording it was asked in.
      clips: with answers.
      questions: with answers that are right or wrong.
      open: questions whose answers a judge has to read; they stand in no number.
      correct: answers of the unpruned model that are right.
      left_out: videos and annotations that could not be asked.
      folder: of its own run; None where nothing could be asked.
    """

    name: str
    prompts: str
    clips: int
    questions: int
    open: int
    correct: int
    left_out: int
    folder: Path | None


class JoinedTask:
    """The clips of several benchmarks; a question's category is its benchmark."""

    def __init__(self, tasks: Mapping[str, Any]):
        """Of benchmarks by name."""
        self.name = f"{len(tasks)} benchmarks" if len(tasks) != 1 else next(iter(tasks))
        self.categories = tuple(tasks)
        self._tasks = dict(tasks)
        self._places = [(name, number) for name, task in tasks.items() for number in range(len(task))]
        self.left_out = tuple(
            LeftOut(f"{name}: {one.item}", one.file, one.reason, one.missing)
            for name, task in tasks.items()
            for one in left_out(task)
        )
        """What of them cannot be asked."""

    def chance(self, question: Question) -> float:
        """As its benchmark has it."""
        return self._tasks[question.category].chance(question)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Item:
        name, number = self._places[index]
        item = self._tasks[name][number]
        asked = tuple(dataclasses.replace(question, category=name) for question in item.questions)
        return dataclasses.replace(item, id=f"{name}/{item.id}", questions=asked)

    def fingerprint(self) -> dict[str, Any]:
        """Those of its benchmarks."""
        return {name: task.fingerprint() for name, task in self._tasks.items()}


def join_runs(
    found: Mapping[str, SweepRecords], tasks: Mapping[str, Any], folder: Path, failed: Mapping[str, str] | None = None
) -> tuple[SweepRecords, list[JoinedPart]]:
    """The records of several runs of the same methods as those of one, open answers left out.

    Args:
      found: benchmark -> its records.
      tasks: benchmark -> what was asked, of the same ones.
      folder: where files of the joined run go.
      failed: benchmark -> why nothing of it could be asked.

    Returns:
      The records, and what each benchmark gave; those of which nothing could be asked stand there and among what is
      left out, too.
    """
    failed = failed or {}
    samples: list[Record] = []
    batches: list[Record] = []
    bad: list[LeftOut] = [LeftOut(name, "", why) for name, why in failed.items()]
    parts = []
    for name, run in found.items():
        samples += [record | {"clip": f"{name}/{record['clip']}", "category": name} for record in counted(run.samples)]
        batches += [record | {"clip": f"{name}/{record['clip']}"} for record in run.batches]
        bad += [LeftOut(f"{name}: {one.item}", one.file, one.reason, one.missing) for one in run.left_out]
        parts.append(_part(name, run, getattr(tasks[name], "prompts", "")))
    parts += [JoinedPart(name, "", 0, 0, 0, 0, 1, None) for name in failed]
    first = next(iter(found.values()))
    runs = list(dict.fromkeys(one for run in found.values() for one in run.runs))
    own = {"tasks": {name: run.identity["task"] for name, run in found.items()}}
    longest = {"max_new_tokens": {name: run.identity["max_new_tokens"] for name, run in found.items()}}
    shown = {"name": JoinedTask(tasks).name, "data": None, "settings": {}}
    identity = first.identity | longest | {"task": shown} | own
    resumed = sum(run.resumed for run in found.values())
    joined = SweepRecords(RunFiles(folder), identity, runs, samples, batches, resumed, left_out=tuple(bad))
    return joined, parts


def _part(name: str, run: SweepRecords, prompts: str) -> JoinedPart:
    whole = [record for record in counted(run.samples) if record["method"] == FULL]
    asked = {(record["clip"], record["question"]) for record in opened(run.samples)}
    clips = len({record["clip"] for record in run.samples})
    right = sum(record["correct"] for record in whole)
    return JoinedPart(name, prompts, clips, len(whole), len(asked), right, len(run.left_out), run.files.folder)


PARTS_HEAD = ("benchmark", "wording", "clips", "questions", "unpruned %", "open answers", "left out")


def part_rows(parts: Sequence[JoinedPart]) -> list[list[str]]:
    """Texts under `PARTS_HEAD`, a row a benchmark, and their sums."""
    rows = []
    for one in parts:
        share = f"{100 * one.correct / one.questions:.1f}" if one.questions else "–"
        counts = (f"{one.open:,}" if one.open else "–", f"{one.left_out:,}" if one.left_out else "–")
        rows.append([one.name, one.prompts or "–", f"{one.clips:,}", f"{one.questions:,}", share, *counts])
    sums = {name: sum(getattr(one, name) for one in parts) for name in ("clips", "questions", "open", "left_out")}
    total = [
        "all",
        "",
        f"{sums['clips']:,}",
        f"{sums['questions']:,}",
        "",
        f"{sums['open']:,}",
        f"{sums['left_out']:,}",
    ]
    return [*rows, total]
