"""What a record belongs to: the item as it is now, and the settings that change its result.

A record is filed under its clip, question, method and ratio, and under a key made of all else that decides it. Another
video under the same name, a question worded anew, another model or an edited method give another key, so that records
of an earlier state stay in their files, untouched and uncounted, until what they belong to is asked for again.
"""

from collections.abc import Sequence
from typing import Any

from jvidprune.evals.identity import run_hash
from jvidprune.evals.items import Item, LeftOut, Question
from jvidprune.evals.plan import BASELINES, SweepPlan
from jvidprune.evals.store import Record, RecordStore
from jvidprune.reducers.protocol import Reducer

Group = tuple[str, Reducer, tuple[float, ...]]
"""Name, reducer and ratios that are run together."""

SAMPLE_KEY = ("clip", "question", "method", "ratio", "key")
BATCH_KEY = ("clip", "method", "ratio", "key")
FAILURE_KEY = ("clip", "key")

Stores = tuple[RecordStore, RecordStore, RecordStore]
"""Samples, batches and failures."""


def source_of_item(task: Any, item: Item) -> Any:
    """What an item's clip is made from, as JSON holds it; without a source of its own its name in its task."""
    return {"item": item.id, "task": task.fingerprint()} if item.source is None else item.source()


def question_mark(question: Question, rule: str = "letters") -> str:
    """Hash of a question, its wording and how its answer is read."""
    return run_hash({"question": question, "prompt": question.prompt(), "rule": rule})


class RecordKeys:
    """The records that a sweep asks for.

    Args:
      task: whose items are asked.
      plan: methods, ratios and length of answers.
      model: what of the model and its surroundings changes results (`identity.model_identity`).
    """

    def __init__(self, task: Any, plan: SweepPlan, model: Any):
        self.items: list[Item] = [task[number] for number in range(len(task))]
        self.plan = plan
        self._task = task
        self.rule = getattr(task, "extraction", "letters")
        self._run = run_hash({"model": model, "max_new_tokens": plan.max_new_tokens})
        # At equal cost a method is asked for other ratios than those that its records are filed under.
        matched = {} if plan.match is None else {"match": plan.match}
        self._methods = {
            name: run_hash({"method": reducer} | ({} if name in BASELINES else matched))
            for name, reducer, _ in plan.groups()
        }
        self._sources: dict[int, str] = {}
        self._questions: dict[int, list[str]] = {}
        self._samples: dict[tuple[int, str], list[str]] = {}

    def source(self, number: int) -> str:
        """What an item's clip is made from; read once, before the clip."""
        if number not in self._sources:
            self._sources[number] = run_hash({"source": source_of_item(self._task, self.items[number])})
        return self._sources[number]

    def batch(self, number: int, method: str) -> str:
        """Key of the costs of a method on a clip."""
        return run_hash({"run": self._run, "method": self._methods[method], "source": self.source(number)})

    def samples(self, number: int, method: str) -> list[str]:
        """Keys of the answers of a method about a clip, in the order of its questions."""
        if number not in self._questions:
            self._questions[number] = [question_mark(one, self.rule) for one in self.items[number].questions]
        if (number, method) not in self._samples:
            base = self.batch(number, method)
            marks = [run_hash({"base": base, "question": mark}) for mark in self._questions[number]]
            self._samples[number, method] = marks
        return self._samples[number, method]

    def failure(self, number: int) -> str:
        """Key of why a clip is left out."""
        return run_hash({"run": self._run, "source": self.source(number)})

    def batches_of(self, number: int, group: Group, store: RecordStore) -> dict[float, Record | None]:
        """The record of every ratio of a method on a clip, None where there is none."""
        key = self.batch(number, group[0])
        return {ratio: store.get((self.items[number].id, group[0], ratio, key)) for ratio in group[2]}

    def missing(self, number: int, group: Group, stores: Stores) -> tuple[float, ...]:
        """The ratios of a method that are to be run on a clip.

        Those without a record, and those that were run together with them: what a killed process left in part is made
        again as it would have been.
        """
        item, (name, _, ratios) = self.items[number], group
        found, keys = self.batches_of(number, group, stores[1]), self.samples(number, name)
        lacking = set()
        for ratio, batch in found.items():
            ids = [(item.id, q.id, name, ratio, key) for q, key in zip(item.questions, keys, strict=True)]
            if batch is None or (not batch["refused"] and any(one not in stores[0] for one in ids)):
                lacking.add(ratio)
        together = [set(batch.get("together", ())) for batch in found.values() if batch is not None]
        for others in together:
            if others & lacking:
                lacking |= others
        return tuple(ratio for ratio in ratios if ratio in lacking)

    def unfinished(self, number: int, stores: Stores) -> bool:
        """Whether any record of an item is missing."""
        return any(self.missing(number, group, stores) for group in self.plan.groups())

    def left_out(self, number: int, stores: Stores) -> LeftOut | None:
        """Why an item has no answers, where that is known."""
        item = self.items[number]
        if self.unfinished(number, stores):
            record = stores[2].get((item.id, self.failure(number)))
            return None if record is None else LeftOut(item.id, record["file"], record["reason"])
        refusals = [
            batch["refused"] if batch else ""
            for group in self.plan.groups()
            for batch in self.batches_of(number, group, stores[1]).values()
        ]
        return LeftOut(item.id, item.file, refusals[0]) if all(refusals) else None

    def select(self, stores: Stores, without: Sequence[int]) -> tuple[list[Record], list[Record]]:
        """Samples and batches that are there of what is asked for, in the order of an undisturbed run.

        Args:
          stores: of the folder.
          without: numbers of items that are not counted.
        """
        samples, batches = [], []
        for number, item in enumerate(self.items):
            for group in self.plan.groups() if number not in without else ():
                keys = self.samples(number, group[0])
                for ratio, batch in self.batches_of(number, group, stores[1]).items():
                    if batch is not None:
                        batches.append(batch)
                    if batch is not None and not batch["refused"]:
                        ids = [(item.id, q.id, group[0], ratio, k) for q, k in zip(item.questions, keys, strict=True)]
                        samples += [record for one in ids if (record := stores[0].get(one)) is not None]
        return samples, batches
