"""Accuracies with bootstrap intervals from per-sample records: by clip, seeded, all cells in one product."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

ALL = "all"
"""The name under which all categories together stand."""

FULL = "none"
"""The method that keeps every token, which the others are compared with."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method at one ratio in one category.

    Attributes:
      method: name as it was asked for.
      ratio: retention ratio asked for, 1.0 for the unpruned model.
      category: of the questions, or "all".
      questions: how many.
      accuracy: share of right answers, with the bounds `low` and `high` of its bootstrap interval.
      relative: accuracy over that of the unpruned model on the same questions, with `relative_low` and
        `relative_high`; NaN where that is 0.
      kept: mean tokens kept of a clip; prompt: mean prompt length in tokens.
    """

    method: str
    ratio: float
    category: str
    questions: int
    accuracy: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float
    kept: float
    prompt: float


def clip_draws(clips: int, draws: int, seed: int) -> Float64[np.ndarray, "draws clips"]:
    """How often each clip occurs in each bootstrap resample of `clips` clips with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(clips, np.full(clips, 1.0 / clips), size=draws).astype(np.float64)


def bootstrap_ratio(
    counts: Float64[np.ndarray, "draws clips"],
    above: Float64[np.ndarray, "clips cells"],
    below: Float64[np.ndarray, "clips cells"],
    level: float = 0.95,
) -> tuple[Float64[np.ndarray, "cells"], Float64[np.ndarray, "cells"]]:
    """Percentile interval of sum(above) / sum(below) over resampled clips; those with nothing below are left out.

    Args:
      counts: from `clip_draws`.
      above, below: sums of each clip, e.g. right answers and questions.
      level: share of resamples between the bounds.

    Returns:
      (lower, upper), NaN where no resample counts.
    """
    down = counts @ below
    values = np.divide(counts @ above, down, out=np.full(down.shape, np.nan), where=down > 0)
    empty = np.isnan(values).all(0)
    values[:, empty] = 0.0
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def summarise(
    records: Sequence[dict[str, Any]],
    runs: Sequence[tuple[str, float]],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Cell]:
    """One `Cell` for every run with records and every category, all categories together first.

    Args:
      records: with clip, question, method, ratio, category, correct, kept, prompt; their order does not matter.
      runs: (method, ratio) in the order wanted.
      draws: bootstrap resamples; clips are drawn, not questions, as questions of one clip go together.
      seed: of the resamples, which all cells share, so that relative accuracies are paired.
      level: of the intervals.
    """
    records = sorted(records, key=lambda r: (str(r["clip"]), str(r["question"])))
    clips = {name: i for i, name in enumerate(dict.fromkeys(r["clip"] for r in records))}
    full = {(r["clip"], r["question"]): r["correct"] for r in records if r["method"] == FULL}
    categories = [ALL, *sorted({r["category"] for r in records})]
    cells = {(run, c): i for i, (run, c) in enumerate((run, c) for run in runs for c in categories)}
    sums = np.zeros((6, len(clips), len(cells)))
    for record in records:
        row = clips[record["clip"]]
        # Relative accuracies run over the questions that the unpruned model was asked, too.
        base = full.get((record["clip"], record["question"]))
        common = 0 if base is None else record["correct"]
        values = record["correct"], 1, base or 0, record["kept"], record["prompt"], common
        for category in (ALL, record["category"]):
            column = cells.get(((record["method"], record["ratio"]), category))
            if column is not None:
                sums[:, row, column] += values
    right, count, base, _, _, common = sums
    if not clips:
        return []
    resampled = clip_draws(len(clips), draws, seed)
    low, high = bootstrap_ratio(resampled, right, count, level)
    # Both sums run over the same questions, so the ratio of right answers is the ratio of accuracies.
    relative_low, relative_high = bootstrap_ratio(resampled, common, base, level)
    totals = sums.sum(1)
    out = []
    for ((method, ratio), category), i in cells.items():
        hits, questions, reference, kept, prompt, both = (float(total) for total in totals[:, i])
        if questions:
            out.append(
                Cell(
                    method=method,
                    ratio=ratio,
                    category=category,
                    questions=int(questions),
                    accuracy=hits / questions,
                    low=float(low[i]),
                    high=float(high[i]),
                    relative=both / reference if reference else float("nan"),
                    relative_low=float(relative_low[i]),
                    relative_high=float(relative_high[i]),
                    kept=kept / questions,
                    prompt=prompt / questions,
                )
            )
    return out
