"""Where methods differ: by the length of clips, and on the questions that smaller frames at as many tokens get wrong.

Lengths are the benchmark's own groups where its annotations have them (`Question.length`: VideoMME's short, medium and
long, LongVideoBench's four); the clips of all others fall into `LENGTHS` by the seconds that their frames were taken
from.

Of the questions that the unpruned model gets right, group A are those that the control `downscale` misses at the same
ratio, group B those that it gets right too (VTC-Bench, arXiv 2510.07143): on B nothing had to be preserved that smaller
frames do not show as well. What the unpruned model gets wrong is in neither. The control itself, wrong on all of A and
right on all of B, is left out there. It is wrong on some of A by bad luck, which is good luck for all others: what the
question alone gets right of A stands beside the methods. Families whose frames have one size have no `downscale`: there
`pool_space` stands in, if it was run, and is named.
"""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.evals.controls import base_name
from jvidprune.evals.metrics import ALL, FULL, Cell, summarise
from jvidprune.evals.paired import Difference, Run, every_pair, two_best
from jvidprune.evals.plan import BASELINES, BLIND
from jvidprune.evals.store import Record
from jvidprune.files import atomic_output
from jvidprune.models import family as families

LENGTHS: Mapping[str, float] = {
    "up to 15 s": 15.0,
    "15 to 60 s": 60.0,
    "1 to 3 min": 180.0,
    "3 to 10 min": 600.0,
    "10 to 60 min": 3600.0,
    "over 1 h": math.inf,
}
"""Bins of clip lengths with their upper ends in seconds, these included."""

DOWNSCALE, STAND_IN = "downscale", "pool_space"

Question = tuple[str, str]
"""Clip and question of a record."""


def length_bin(seconds: float) -> str:
    """The bin of `LENGTHS` that a clip falls into."""
    return next(name for name, end in LENGTHS.items() if seconds <= end)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Accuracies by length of clips.

    Attributes:
      names: groups with questions, the shortest first.
      own: all of them are the benchmark's own.
      cells: by (method, ratio, group).
    """

    names: tuple[str, ...] = ()
    own: bool = False
    cells: Mapping[tuple[str, float, str], Cell] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Hard:
    """Accuracies at one ratio on the questions that the control misses, and on those that it gets right.

    Attributes:
      ratio: nominal.
      control: that divides the questions.
      hard, easy: how many the unpruned model gets right and the control misses, and gets right too.
      on_hard, on_easy: accuracies by (method, ratio, "all"), the question alone among them.
      pairs: any two methods on the hard ones, Holm-corrected together.
    """

    ratio: float
    control: str
    hard: int
    easy: int
    on_hard: Mapping[tuple[str, float, str], Cell]
    on_easy: Mapping[tuple[str, float, str], Cell]
    pairs: Sequence[Difference] = ()

    @property
    def best_two(self) -> Difference | None:
        """From the second best to the best method on the hard questions; None where fewer than two can be compared."""
        return two_best(self.pairs, self.on_hard)

    def rows(self) -> list[dict[str, Any]]:
        """Plain values under `HARD_FIELDS`, one row a method."""
        out = []
        for key, one in self.on_hard.items():
            easy = self.on_easy.get(key)
            values = key[0], self.ratio, self.control, self.hard, one.accuracy, one.low, one.high, self.easy
            row = dict(zip(HARD_FIELDS, (*values, None if easy is None else easy.accuracy), strict=True))
            out.append(row)
        return out


HARD_FIELDS = ("method", "ratio", "control", "hard", "accuracy", "low", "high", "easy", "on_easy")
LENGTH_FIELDS = ("method", "ratio", "length", "questions", "accuracy", "low", "high", "relative")


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """What a sweep tells of difficulty.

    Attributes:
      lengths: by length of clips.
      hard: by ratio; empty without a control that divides the questions.
      note: which control does, or why none, as a sentence.
    """

    lengths: Lengths = dataclasses.field(default_factory=Lengths)
    hard: Mapping[float, Hard] = dataclasses.field(default_factory=dict)
    note: str = ""

    def length_rows(self) -> list[dict[str, Any]]:
        """Plain values under `LENGTH_FIELDS`."""
        out = []
        for cell in self.lengths.cells.values():
            values = (cell.method, cell.ratio, cell.category, cell.questions, cell.accuracy, cell.low, cell.high)
            out.append(dict(zip(LENGTH_FIELDS, (*values, _known(cell.relative)), strict=True)))
        return out

    def hard_rows(self) -> list[dict[str, Any]]:
        """Plain values under `HARD_FIELDS`, of all ratios."""
        return [row for one in self.hard.values() for row in one.rows()]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def difficulty(
    samples: Sequence[Record],
    batches: Sequence[Record],
    runs: Sequence[Run],
    ratios: Sequence[float],
    own: Mapping[Question, str],
    family: str | None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Difficulty:
    """Accuracies by length and on the hard questions of a run.

    Args:
      samples: answers that are right or wrong.
      batches: records of costs, which tell the seconds of clips; older ones do not.
      runs: (method, ratio) in the order wanted.
      ratios: nominal ones.
      own: groups of lengths of the benchmark by clip and question (`own_lengths`).
      family: of the model, for whether it can be shown smaller frames.
      draws, seed: of the bootstrap.
    """
    options = {"draws": draws, "seed": seed}
    control, note = control_of([name for name, _ in runs], family)
    hard: dict[float, Hard] = {}
    if control is not None:
        parts = {ratio: hard_part(samples, runs, ratio, control, **options) for ratio in ratios}
        hard = {ratio: found for ratio, found in parts.items() if found is not None}
    return Difficulty(by_length(samples, batches, runs, own, **options), hard, note)


def own_lengths(task: Any) -> dict[Question, str]:
    """Groups of lengths that a task's annotations give, by clip and question."""
    found = {}
    for number in range(len(task)):
        item = task[number]
        found |= {(item.id, one.id): one.length for one in item.questions if one.length}
    return found


def by_length(
    samples: Sequence[Record],
    batches: Sequence[Record],
    runs: Sequence[Run],
    own: Mapping[Question, str],
    **options: Any,
) -> Lengths:
    """Accuracies by length of clips: the benchmark's own group of a question, else the bin of its clip.

    Args:
      samples, batches, runs, own: as for `difficulty`.
      options: of `metrics.summarise`.
    """
    seconds = {record["clip"]: record["seconds"] for record in batches if "seconds" in record}
    rows, lasts = [], dict[str, list[float]]()
    for record in samples:
        clip = record["clip"]
        name = own.get((clip, record["question"])) or (length_bin(seconds[clip]) if clip in seconds else "")
        if name:
            rows.append(record | {"category": name})
            lasts.setdefault(name, []).extend([seconds[clip]] if clip in seconds else [])
    bins = list(LENGTHS)

    def order(name: str) -> tuple[float, int]:
        some = lasts[name]
        return math.fsum(some) / len(some) if some else math.inf, bins.index(name) if name in bins else -1

    names = tuple(sorted(lasts, key=order))
    cells = {(c.method, c.ratio, c.category): c for c in summarise(rows, runs, **options) if c.category != ALL}
    return Lengths(names, bool(names) and not set(names) & set(bins), cells)


def control_of(names: Sequence[str], family: str | None) -> tuple[str | None, str]:
    """The control whose misses make the hard questions, and a sentence about it.

    Args:
      names: of the methods that were run, as they were typed.
      family: of the model; None where it is not known.
    """

    def run_of(wanted: str) -> str | None:
        found = [name for name in names if base_name(name) == wanted]
        return wanted if wanted in found else next(iter(found), None)

    found = run_of(DOWNSCALE)
    if found is not None:
        return found, f"Hard are the questions that the unpruned model gets right and {DOWNSCALE} misses."
    if family is None or families.get(family).settings["released"].sized is not None:
        return None, f"{DOWNSCALE} was not run: with it among the controls the questions that it misses stand apart."
    lacks = f"{family} makes as many tokens of frames of any size, so {DOWNSCALE} is not defined there"
    found = run_of(STAND_IN)
    if found is None:
        return None, f"{lacks}, and {STAND_IN}, which could stand in for it, was not run."
    return found, f"{lacks}: hard are the questions that the unpruned model gets right and its stand-in {found} misses."


def hard_part(
    samples: Sequence[Record], runs: Sequence[Run], ratio: float, control: str, **options: Any
) -> Hard | None:
    """Accuracies at a ratio on what the control misses and gets right; None where it was not run at the ratio.

    Args:
      samples, runs: as for `difficulty`.
      ratio: nominal.
      control: its name.
      options: of `metrics.summarise` and `paired.compare_runs`.
    """
    full = {_question(r) for r in samples if r["method"] == FULL and r["correct"]}
    answers = {_question(r): r["correct"] for r in samples if (r["method"], r["ratio"]) == (control, ratio)}
    if not answers:
        return None
    there = [run for run in runs if run == (BLIND, 0.0) or (run[1] == ratio and run[0] not in (*BASELINES, control))]
    parts, cells = [], []
    for right in (False, True):
        asked = {one for one, correct in answers.items() if correct == right and one in full}
        rows = [r for r in samples if (r["method"], r["ratio"]) in there and _question(r) in asked]
        found = {(c.method, c.ratio, c.category): c for c in summarise(rows, there, **options) if c.category == ALL}
        parts.append((asked, rows))
        cells.append(found)
    (hard, rows), (easy, _) = parts
    methods = list(dict.fromkeys(name for name, _ in there if name not in BASELINES))
    pairs = every_pair(rows, methods, [ratio], **options)[ratio]
    return Hard(ratio, control, len(hard), len(easy), cells[0], cells[1], pairs)


def _question(record: Record) -> Question:
    return record["clip"], record["question"]


def told_hard(found: Difficulty, ratio: float, titles: Mapping[str, str]) -> list[str]:
    """A line on the hard questions of a ratio and the best method there, or on why there are none."""
    hard = found.hard.get(ratio)
    if hard is not None and not hard.hard:
        name = titles.get(hard.control, hard.control)
        return [f"at {100 * ratio:g} % {name} misses no question that the unpruned model gets right"]
    methods = [] if hard is None else [one for run, one in hard.on_hard.items() if run[0] not in BASELINES]
    if hard is None or not methods:
        return [found.note] if found.note else []
    best = max(methods, key=lambda one: (one.accuracy, -one.kept))
    blind = hard.on_hard.get((BLIND, 0.0, ALL))
    alone = "" if blind is None else f", the question alone {100 * blind.accuracy:.1f} %"
    first = f"of the {hard.hard:,} questions at {100 * ratio:g} % that {titles.get(hard.control, hard.control)} misses"
    name, right = titles.get(best.method, best.method), f"{100 * best.accuracy:.1f} %"
    bounds = f"[{100 * best.low:.0f}, {100 * best.high:.0f}]"
    return [f"{first} and the unpruned model gets right, {name} gets {right} {bounds}{alone}"]


def write_difficulty(found: Difficulty, folder: Path) -> None:
    """lengths.csv and hard.csv: a line for each method, ratio and length, and for each method and ratio."""
    parts = ("lengths.csv", LENGTH_FIELDS, found.length_rows()), ("hard.csv", HARD_FIELDS, found.hard_rows())
    for name, fields, rows in parts:
        with atomic_output(folder / name) as part, part.open("w", newline="", encoding="utf8") as file:
            writer: csv.DictWriter[str] = csv.DictWriter(file, fields, restval="")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
