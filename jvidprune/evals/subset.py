"""The questions of a task that a model can answer at all: where it is at chance, pruning tokens cannot show."""

import csv
import dataclasses
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jvidprune.evals.items import Item, LeftOut, Question, Task, left_out

Pair = tuple[str, str]
"""Category and kind of a question."""


class Subset:
    """The questions of a task that are of certain categories and kinds.

    Clips whose first question, the one they were made for, is not asked are passed over, so that categories that go
    with every clip do not drown the others.
    """

    def __init__(self, task: Task, pairs: Collection[Pair], clips: int | None = None):
        """Looks through the items of a task.

        Args:
          task: whose questions are asked in part.
          pairs: (category, kind) that are kept.
          clips: only the first so many clips.
        """
        self.whole = task
        """Whose questions are asked in part."""
        self.pairs = tuple(sorted(pairs))
        """What is asked."""
        self.name = task.name
        self._items: list[Item] = []
        for i in range(len(task)):
            item = task[i]
            kept = tuple(q for q in item.questions if (q.category, q.kind) in self.pairs)
            if kept and kept[0] == item.questions[0]:
                self._items.append(dataclasses.replace(item, questions=kept))
            if len(self._items) == clips:
                break

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories that are asked about, in the task's order."""
        asked = {category for category, _ in self.pairs}
        return tuple(category for category in self.whole.categories if category in asked)

    def chance(self, question: Question) -> float:
        """As the task has it."""
        return self.whole.chance(question)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        return self._items[index]

    def fingerprint(self) -> dict[str, Any]:
        """That of the task, what is asked, and how many clips."""
        pairs = [" ".join(pair) for pair in self.pairs]
        return {**self.whole.fingerprint(), "asked": pairs, "asked_clips": len(self)}


class TaskPart:
    """Some items of a task.

    Args:
      task: the whole.
      numbers: of the items.
    """

    def __init__(self, task: Task, numbers: Sequence[int]):
        self._task, self._numbers = task, numbers

    @property
    def name(self) -> str:
        """That of the task."""
        return self._task.name

    @property
    def categories(self) -> tuple[str, ...]:
        """Those of the task."""
        return self._task.categories

    def chance(self, question: Question) -> float:
        """As the task has it."""
        return self._task.chance(question)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Item:
        return self._task[self._numbers[index]]

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What cannot be asked of the task."""
        return left_out(self._task)

    def fingerprint(self) -> dict[str, Any]:
        """That of the task; which items there are changes with its files, and a run goes on with those that are."""
        return self._task.fingerprint()


def answerable(accuracies: Path) -> list[Pair]:
    """(category, kind) that a model was measured to answer above chance: by more than two standard errors.

    Args:
      accuracies: accuracy.csv of a checkpoint, with the columns given, category, kind, questions, accuracy and chance;
        rows "all tokens" of one category and one kind count.
    """
    with accuracies.open(newline="", encoding="utf8") as file:
        rows = [row for row in csv.DictReader(file) if row["given"] == "all tokens"]
    pairs = [row for row in rows if "all" not in (row["category"], row["kind"])]
    return [(row["category"], row["kind"]) for row in pairs if _above(row)]


def _above(row: dict[str, str]) -> bool:
    accuracy, chance, questions = (float(row[name]) for name in ("accuracy", "chance", "questions"))
    return accuracy - chance > 2 * math.sqrt(chance * (1 - chance) / questions)
