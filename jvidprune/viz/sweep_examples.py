"""Example clips of a sweep: where methods answer the same question differently, and what each of them kept."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.evals.metrics import FULL
from jvidprune.evals.plan import BLIND
from jvidprune.evals.store import Record
from jvidprune.video.decode import Clip
from jvidprune.viz.decision import Decision
from jvidprune.viz.drawn import drawn_frames
from jvidprune.viz.overlay import draw_frame, fit

Decide = Callable[[Clip, str, Sequence[str], float], dict[str, Decision]]
"""(Clip, question as the model is asked, methods, ratio) to the decision of each method on it."""


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """One question that methods answer differently at a ratio.

    Attributes:
      clip, question: ids.
      ratio: retention ratio.
      records: method -> its sample record, those that are right first.
    """

    clip: str
    question: str
    ratio: float
    records: dict[str, Record]


@dataclasses.dataclass(frozen=True)
class ClipExample:
    """A disagreement with pictures.

    Attributes:
      clip, question, category, options, answer: what was asked; `options` is empty unless it is a choice.
      ratio: retention ratio.
      strip: (H, W, 3) uint8, the frames side by side.
      rows: (method, prediction, right, tokens kept, strip with tokens drawn).
    """

    clip: str
    question: str
    category: str
    options: tuple[str, ...]
    answer: str
    ratio: float
    strip: np.ndarray
    rows: list[tuple[str, str, bool, int, np.ndarray]]


def disagreements(samples: Sequence[Record], ratio: float, *, count: int = 3, methods: int = 4) -> list[Disagreement]:
    """The questions where methods part most evenly into right and wrong while the unpruned model is right.

    One question a clip, and of different categories as long as there are any.

    Args:
      samples: records of a run.
      ratio: the swept ratio to look at.
      count: most examples.
      methods: most methods of each, right and wrong ones in turn.
    """
    groups: dict[tuple[str, str], dict[str, Record]] = {}
    full = {}
    for record in sorted(samples, key=lambda r: (r["clip"], r["question"])):
        key = record["clip"], record["question"]
        if record["method"] == FULL:
            full[key] = record["correct"]
        elif record["method"] != BLIND and record["ratio"] == ratio:
            groups.setdefault(key, {})[record["method"]] = record
    ranked = []
    for key, records in groups.items():
        right = sum(r["correct"] for r in records.values())
        if 0 < right < len(records):
            ranked.append((not full.get(key, False), abs(2 * right - len(records)) / len(records), key))
    chosen: list[Disagreement] = []
    clips, categories = set(), set()
    for fresh in (True, False):
        for _, _, key in sorted(ranked):
            clip, question = key
            records = groups[key]
            category = next(iter(records.values()))["category"]
            if len(chosen) == count or clip in clips or (fresh and category in categories):
                continue
            clips.add(clip)
            categories.add(category)
            chosen.append(Disagreement(clip, question, ratio, _in_turn(records, methods)))
    return chosen


def _in_turn(records: dict[str, Record], most: int) -> dict[str, Record]:
    """Up to `most` methods, half of them right, in the order of the sweep; right ones first."""
    right = [name for name, record in records.items() if record["correct"]]
    wrong = [name for name, record in records.items() if not record["correct"]]
    of_right = min(len(right), max(most // 2, most - len(wrong)))
    names = right[:of_right] + wrong[: most - of_right]
    return {name: records[name] for name in names}


def draw_examples(
    found: Sequence[Disagreement],
    task: Any,
    decide: Decide,
    *,
    width: int = 132,
    columns: int = 8,
) -> list[ClipExample]:
    """Pictures of each disagreement.

    Args:
      found: what to show.
      task: where the clips come from.
      decide: see `Decide`.
      width: pixels of one frame.
      columns: most frames shown, evenly spaced.
    """
    places = {task[i].id: i for i in range(len(task))} if found else {}
    examples = []
    for one in found:
        item = task[places[one.clip]]
        question = next(q for q in item.questions if q.id == one.question)
        try:
            clip = item.load()
        except JvidpruneError:
            # It was read when it was asked about, and is not any more, or no longer accepted.
            continue
        decisions = decide(clip, question.prompt(), list(one.records), one.ratio)
        steps = next(iter(decisions.values())).frames
        shown = np.unique(np.linspace(0, steps - 1, min(columns, steps)).round().astype(int))
        frames = drawn_frames(clip, steps).frames
        small = [fit(frames[t], width) for t in shown]
        rows = [
            (
                method,
                record["prediction"],
                bool(record["correct"]),
                record["kept"],
                _strip([draw_frame(frame, decisions[method], int(t)) for frame, t in zip(small, shown, strict=True)]),
            )
            for method, record in one.records.items()
        ]
        options = tuple(question.options) if question.kind == "choice" else ()
        texts = question.text, question.category, options, question.answer
        examples.append(ClipExample(one.clip, *texts, one.ratio, _strip(small), rows))
    return examples


def _strip(frames: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Frames side by side on mid grey, which stands back on light and dark pages."""
    parts = []
    for frame in frames:
        parts += [np.full((frame.shape[0], gap, 3), 128, np.uint8), frame]
    return np.concatenate(parts[1:], axis=1)
