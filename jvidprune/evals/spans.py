"""Temporal grounding: the span of seconds that an answer names, and how well it meets the right one.

Answers are read and compared as lmms-eval's TimeLens tasks do (0.7.3): the first span of an answer counts, and one
without a span meets nothing.
"""

import csv
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvidprune.evals.metrics import bootstrap_ratio, clip_draws
from jvidprune.evals.store import Record
from jvidprune.files import atomic_output

Span = tuple[float, float]
"""Start and end in seconds."""

THRESHOLDS = (0.3, 0.5, 0.7)
"""Overlaps from which on an answer counts as found."""

RIGHT = 0.5
"""The one of `THRESHOLDS` that accuracies, controls and paired tests go by."""

_CLOCK = re.compile(r"\b(\d{1,2}:\d{2}:\d{2}(?:\.\d+)?|\d{1,2}:\d{2}(?:\.\d+)?)\b")
_BETWEEN = (re.compile(r"(\d+\.?\d*)\s*-\s*(\d+\.?\d*)"), re.compile(r"(\d+\.?\d*)\s+to\s+(\d+\.?\d*)"))
_NUMBER = re.compile(r"\b\d+\.?\d*\b")


def spans_in(text: str) -> list[Span]:
    """The spans that an answer names, in seconds.

    Clock times ("1:02", "0:01:02.5") in pairs; without two of them numbers as in "3 - 5", else as in "3 to 5", else all
    numbers in pairs. An odd last one is left out.
    """
    said = text.lower()
    clocks = [math.fsum(60**i * float(part) for i, part in enumerate(t.split(":")[::-1])) for t in _CLOCK.findall(said)]
    if len(clocks) >= 2:
        return _pairs(clocks)
    for pattern in _BETWEEN:
        found = pattern.findall(said)
        if found:
            return [(float(start), float(end)) for start, end in found]
    return _pairs([float(number) for number in _NUMBER.findall(said)])


def _pairs(values: Sequence[float]) -> list[Span]:
    return list(zip(values[::2], values[1::2], strict=False))


def overlap(one: Span, other: Span) -> float:
    """Seconds that two spans share over the seconds from the first start to the last end, in 0 to 1."""
    whole = max(one[1], other[1]) - min(one[0], other[0])
    return max(min(one[1], other[1]) - max(one[0], other[0]), 0.0) / whole if whole > 0 else 0.0


def write_span(span: Span) -> str:
    """A span as the answer of a question."""
    return f"{span[0]!r} - {span[1]!r}"


def read_span(answer: str) -> Span:
    """The span that `write_span` wrote.

    Raises:
      ValueError: it is none, or ends before it starts.
    """
    start, _, end = answer.partition(" - ")
    span = float(start), float(end)
    if not 0 <= span[0] <= span[1] < math.inf:
        raise ValueError(f"the span {answer!r} is no part of a video")
    return span


def grade_span(text: str, answer: str) -> dict[str, Any]:
    """What a sample's record says of an answer: its overlap under "iou", and whether it is right (`RIGHT`)."""
    said = spans_in(text)
    iou = overlap(said[0], read_span(answer)) if said else 0.0
    return {"correct": iou >= RIGHT, "iou": iou}


@dataclasses.dataclass(frozen=True)
class Grounding:
    """How well a method at a ratio finds spans.

    Attributes:
      method, ratio: of the run.
      questions: how many.
      miou: mean overlap, with the bounds `low` and `high` of its 95 % bootstrap interval over clips.
      recall: share of answers with at least the overlap of each of `THRESHOLDS`.
    """

    method: str
    ratio: float
    questions: int
    miou: float
    low: float
    high: float
    recall: tuple[float, ...]

    def row(self) -> dict[str, Any]:
        """For files and machines: mIoU and R@0.3, R@0.5, R@0.7 as shares."""
        fixed = dataclasses.asdict(self)
        del fixed["recall"]
        return fixed | {f"r{share:g}": value for share, value in zip(THRESHOLDS, self.recall, strict=True)}


def ground(
    samples: Sequence[Record], runs: Sequence[tuple[str, float]], *, draws: int = 2000, seed: int = 0
) -> list[Grounding]:
    """One `Grounding` for every run with answers that name spans.

    Args:
      samples: records of a run; those without "iou" are of other questions.
      runs: (method, ratio) in the order wanted.
      draws, seed: of the bootstrap over clips.
    """
    asked = [record for record in samples if "iou" in record]
    names = sorted({record["clip"] for record in asked})
    found = []
    counts = clip_draws(len(names), draws, seed) if names else np.zeros((0, 0))
    for method, ratio in runs:
        mine = [r for r in asked if (r["method"], r["ratio"]) == (method, ratio)]
        if not mine:
            continue
        sums = np.zeros((2, len(names), 1))
        for record in mine:
            sums[:, names.index(record["clip"]), 0] += record["iou"], 1.0
        low, high = bootstrap_ratio(counts, sums[0], sums[1])
        values = [record["iou"] for record in mine]
        recall = tuple(sum(value >= share for value in values) / len(values) for share in THRESHOLDS)
        mean = math.fsum(values) / len(values)
        found.append(Grounding(method, ratio, len(values), mean, float(low[0]), float(high[0]), recall))
    return found


GROUNDING_HEAD = ("method", "retention", "mIoU", *(f"R@{share:g}" for share in THRESHOLDS))


def grounding_rows(found: Sequence[Grounding], titles: Mapping[str, str]) -> list[list[str]]:
    """Per cent for people, a row a run; the interval stands behind mIoU."""
    return [
        [
            titles.get(one.method, one.method),
            f"{100 * one.ratio:g} %",
            f"{100 * one.miou:.1f} [{100 * one.low:.0f}, {100 * one.high:.0f}]",
            *(f"{100 * value:.1f}" for value in one.recall),
        ]
        for one in found
    ]


def write_grounding(found: Sequence[Grounding], path: Path) -> None:
    """One line a run, shares with six digits; no file without spans."""
    if not found:
        return
    with atomic_output(path) as part, part.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, list(found[0].row()))
        writer.writeheader()
        for one in found:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in one.row().items()})
