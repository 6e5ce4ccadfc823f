"""Two runs on the same questions: change of accuracy and its interval, exact McNemar test, Holm, questions needed.

The interval resamples clips, as questions of one clip go together; the test counts questions, as the field does. A
difference is called established where both agree.
"""

import csv
import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import numpy as np

from jvidprune.evals.metrics import ALL, Cell, bootstrap_ratio, clip_draws
from jvidprune.files import atomic_output

Run = tuple[str, float]
"""Method and retention ratio."""

LEVEL = 0.05
"""Probability of an error of the first kind, over all comparisons of a family."""

_TOGETHER = 256
"""Comparisons whose resamples are computed at once: their product with clips and draws bounds the memory."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much more often one run is right than another on the same questions.

    Attributes:
      first, second: the runs.
      category: of the questions, or "all".
      questions: asked of both.
      gained, lost: those that the second alone, and that the first alone gets right.
      change: accuracy of the second minus that of the first, with the bounds `low` and `high`.
      adjusted: `p` corrected for the comparisons that were made with it (`holm`); None where it stands alone.
      spread: variance of the change times the questions, with those of one clip taken together: the sum over clips of
        (d_i - change n_i)^2, for d_i more right answers to n_i questions, over all questions; NaN where not known.
    """

    first: Run
    second: Run
    category: str
    questions: int
    gained: int
    lost: int
    change: float
    low: float
    high: float
    adjusted: float | None = None
    spread: float = math.nan

    @property
    def ratio(self) -> float:
        """Retention ratio of the second run."""
        return self.second[1]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def p(self) -> float:
        """Two-sided exact McNemar test: probability of so uneven a split if both runs were equally good."""
        return mcnemar(self.gained, self.lost)

    @property
    def established(self) -> bool:
        """Whether the interval leaves out zero and the test, corrected where it must be, is below `LEVEL`."""
        return self.clear and (self.p if self.adjusted is None else self.adjusted) < LEVEL

    def turned(self) -> "Difference":
        """The same from the second to the first run."""
        return dataclasses.replace(
            self,
            first=self.second,
            second=self.first,
            gained=self.lost,
            lost=self.gained,
            change=0.0 - self.change,
            low=0.0 - self.high,
            high=0.0 - self.low,
        )

    def questions_needed(self, power: float = 0.8) -> int | None:
        """Questions after which a difference of this size would be found; None where there is none.

        Args:
          power: probability of finding it at the level `LEVEL`, two-sided.

        Normal approximation for paired proportions (Connor, Biometrics 1987, 43, 207): with d the share of questions
        that one run alone gets right and c the change, (z(1 - a/2) sqrt(d) + z(power) sqrt(d - c^2))^2 / c^2. That
        takes questions as independent. Where those of one clip go together, more are needed: (z(1 - a/2) + z(power))^2
        `spread` / c^2, with as many questions a clip as here. The larger number counts.
        """
        change = (self.gained - self.lost) / self.questions
        return questions_for(change, self.discordant, self.spread, power) if change else None

    @property
    def discordant(self) -> float:
        """Share of the questions that one run alone gets right."""
        return (self.gained + self.lost) / self.questions


def questions_for(change: float, discordant: float, spread: float = math.nan, power: float = 0.8) -> int:
    """Questions after which the paired test would find a change; see `Difference.questions_needed` for the formula.

    Args:
      change: of accuracy, not 0.
      discordant: share of the questions that one run alone gets right; at least the change itself counts.
      spread: as of `Difference`; NaN takes questions as independent.
      power: probability of finding it at the level `LEVEL`, two-sided.
    """
    normal, share = NormalDist(), max(discordant, abs(change))
    width = normal.inv_cdf(1 - LEVEL / 2) * math.sqrt(share)
    width += normal.inv_cdf(power) * math.sqrt(max(0.0, share - change * change))
    together = (normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(power)) ** 2 * spread
    most = width * width if math.isnan(together) else max(width * width, together)
    return math.ceil(most / (change * change))


@dataclasses.dataclass(frozen=True)
class Resolution:
    """How many clips it takes to tell two methods of a run apart.

    Attributes:
      ratio: of the pairs.
      change: of accuracy that is to be found.
      clips, questions: that takes, with as many questions a clip as in the run.
      here: clips of the run.
      discordant: share of the questions that one of two methods alone gets right, the median pair's.
    """

    ratio: float
    change: float
    clips: int
    questions: int
    here: int
    discordant: float

    def __str__(self) -> str:
        return (
            f"at {100 * self.ratio:g} % about {self.clips:,} clips ({self.questions:,} questions) are needed to detect "
            f"a difference of {100 * self.change:g} points; this run has {self.here:,}. In the median pair of methods, "
            f"only one of the two is right on {100 * self.discordant:.0f} % of the questions (paired test, power 80 %)"
        )


def resolution(pairs: Sequence[Difference], clips: int, change: float = 0.05, power: float = 0.8) -> Resolution | None:
    """Clips after which two methods that differ by `change` would be told apart; None without any pair.

    Any two methods of a run disagree on some questions even where they are equally good, and the more they do the more
    questions it takes. What the median pair shows is taken: its share of discordant questions, and its spread, which
    counts questions of one clip together.

    Args:
      pairs: of one ratio, from `every_pair`.
      clips: that they were asked about.
      change: of accuracy.
      power: probability of finding it, two-sided at `LEVEL`.
    """
    if not pairs or not clips:
        return None
    discordant = median(pair.discordant for pair in pairs)
    known = [pair.spread for pair in pairs if not math.isnan(pair.spread)]
    questions = questions_for(change, discordant, median(known) if known else math.nan, power)
    each = median(pair.questions for pair in pairs) / clips
    return Resolution(pairs[0].ratio, change, math.ceil(questions / each), questions, clips, discordant)


@functools.lru_cache(maxsize=1 << 14)
def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test: twice the lower binomial tail of the smaller count, at most 1.

    Args:
      gained, lost: questions that only one, and that only the other of two runs gets right.
    """
    total, term, tail = gained + lost, 1, 0
    for i in range(min(gained, lost) + 1):
        tail += term
        term = term * (total - i) // (i + 1)
    # Integers: binomial coefficients of thousands of questions exceed every float, their share of 2^n does not.
    return min(1.0, 2 * tail / 2**total) if total else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of a family, in the order given (Scand. J. Statist. 1979, 6, 65)."""
    adjusted, most = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        most = max(most, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = most
    return adjusted


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """Differences that are judged together, each with its adjusted p-value."""
    adjusted = holm([one.p for one in found])
    return [dataclasses.replace(one, adjusted=value) for one, value in zip(found, adjusted, strict=True)]


def compare_runs(
    records: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[Run, Run]],
    *,
    category: str = ALL,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Difference | None]:
    """The change from the first to the second run of each pair, None without common questions.

    Args:
      records: with clip, question, method, ratio, category and correct; their order does not matter.
      pairs: of runs.
      category: of the questions.
      draws, seed, level: as for `metrics.summarise`; clips are resampled, both runs together.
    """
    runs = {run: i for i, run in enumerate(dict.fromkeys(run for pair in pairs for run in pair))}
    known: dict[tuple[str, str], dict[int, bool]] = {}
    for record in records:
        run = runs.get((record["method"], record["ratio"]))
        if run is not None and category in (ALL, record["category"]):
            known.setdefault((record["clip"], record["question"]), {})[run] = record["correct"]
    # (questions, runs): 1 right, 0 wrong, NaN not asked.
    keys = sorted(known)
    right = np.full((len(keys), len(runs)), np.nan, np.float32)
    for row, key in enumerate(keys):
        right[row, list(known[key])] = list(known[key].values())
    change = right[:, [runs[second] for _, second in pairs]] - right[:, [runs[first] for first, _ in pairs]]
    both = ~np.isnan(change)
    shared = np.any(both, axis=1, keepdims=True)[:, 0]
    asked = [clip for (clip, _), some in zip(keys, shared, strict=True) if some]
    clips = {name: i for i, name in enumerate(dict.fromkeys(asked))}
    place = np.array([clips[clip] for clip in asked], np.intp)
    sums = np.zeros((2, len(clips), len(pairs)))
    np.add.at(sums[0], place, np.where(both, change, 0.0)[shared])
    np.add.at(sums[1], place, both[shared])
    counts = clip_draws(len(clips), draws, seed) if clips else np.zeros((draws, 0))
    parts = [slice(start, start + _TOGETHER) for start in range(0, len(pairs), _TOGETHER)]
    bounds = [bootstrap_ratio(counts, sums[0][:, part], sums[1][:, part], level) for part in parts]
    ends = zip(*(np.concatenate(side).tolist() for side in zip(*bounds, strict=True)), strict=True)
    out: list[Difference | None] = []
    for i, ((first, second), (low, high)) in enumerate(zip(pairs, ends, strict=True)):
        questions, gained, lost = (int(some[:, i].sum()) for some in (both, change > 0, change < 0))
        shift = (gained - lost) / questions if questions else math.nan
        residual = sums[0][:, i] - shift * sums[1][:, i]
        spread = float(residual @ residual) / questions if questions else math.nan
        found = Difference(first, second, category, questions, gained, lost, shift, low, high, spread=spread)
        out.append(found if questions else None)
    return out


def paired_difference(
    records: Sequence[Mapping[str, Any]], first: str, second: str, ratio: float, **options: Any
) -> Difference | None:
    """Change of accuracy from one method to another at a ratio; see `compare_runs`, also for the options."""
    return compare_runs(records, [((first, ratio), (second, ratio))], **options)[0]


def every_pair(
    records: Sequence[Mapping[str, Any]], methods: Sequence[str], ratios: Sequence[float], **options: Any
) -> dict[float, list[Difference]]:
    """Any two methods at each ratio, by ratio; the comparisons of one ratio are one family for Holm's correction.

    Args:
      records: as for `compare_runs`.
      methods: in the order of the tables; the change is that from the later to the earlier one.
      ratios: those wanted.
      options: of `compare_runs`.
    """
    pairs = [
        ((second, ratio), (first, ratio))
        for ratio in ratios
        for i, first in enumerate(methods)
        for second in methods[i + 1 :]
    ]
    found = [one for one in compare_runs(records, pairs, **options) if one is not None]
    return {ratio: corrected([one for one in found if one.ratio == ratio]) for ratio in ratios}


def two_best(
    pairs: Sequence[Difference], cells: Mapping[tuple[str, float, str], Cell], without: Collection[Run] = ()
) -> Difference | None:
    """From the second best to the best method of a ratio; None where fewer than two can be compared.

    Args:
      pairs: of the ratio, from `every_pair`.
      cells: accuracies by (method, ratio, category); of equally accurate methods the one with fewer tokens is better.
      without: runs that do not count.
    """
    runs = dict.fromkeys(run for pair in pairs for run in (pair.second, pair.first) if run not in without)
    ranked = sorted(runs, key=lambda run: (-cells[(*run, ALL)].accuracy, cells[(*run, ALL)].kept))[:2]
    for pair in pairs:
        if {pair.first, pair.second} == set(ranked):
            return pair if pair.second == ranked[0] else pair.turned()
    return None


def apart(best: Difference, titles: Mapping[str, str]) -> str:
    """A sentence on the two best methods of a ratio: how far apart, how surely, and how many questions that needs."""
    first, second = (titles.get(run[0], run[0]) for run in (best.second, best.first))
    change = f"{100 * best.change:+.1f} points [{100 * best.low:+.1f}, {100 * best.high:+.1f}]"
    sure = f"p = {best.p:.2g}" + ("" if best.adjusted is None else f", corrected {best.adjusted:.2g}")
    needed = best.questions_needed()
    if best.established:
        end = f"these {best.questions:,} questions tell them apart"
    elif needed is None:
        end = f"these {best.questions:,} questions show no difference to look for"
    else:
        end = f"to tell such a difference takes about {needed:,} questions, here are {best.questions:,}"
    return f"at {100 * best.ratio:g} % the two best are {first} and {second}: {change}, {sure}; {end}"


PAIR_FIELDS = (
    *("ratio", "first", "second", "questions", "gained", "lost", "change", "change_low", "change_high"),
    *("p", "p_holm", "established", "questions_needed"),
)
"""Columns of pairs.csv."""


def pair_row(found: Difference) -> dict[str, Any]:
    """A difference as plain values under `PAIR_FIELDS`; the change is that from the first to the second method."""
    counts = found.questions, found.gained, found.lost, found.change, found.low, found.high
    tests = found.p, found.adjusted, found.established, found.questions_needed()
    return dict(zip(PAIR_FIELDS, (found.ratio, found.first[0], found.second[0], *counts, *tests), strict=True))


def write_pairs(pairs: Mapping[float, Sequence[Difference]], path: Path) -> None:
    """One line for any two methods at each ratio."""
    with atomic_output(path) as part, part.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, PAIR_FIELDS)
        writer.writeheader()
        for found in (one for some in pairs.values() for one in some):
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in pair_row(found).items()})
