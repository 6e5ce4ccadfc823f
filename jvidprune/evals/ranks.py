"""Rank correlation of two lists of numbers, with an interval."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def ranks(values: Sequence[float]) -> Float[np.ndarray, "n"]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, place, count = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks; NaN where either list has fewer than two values."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / size) if size else float("nan")


def spearman_interval(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Mean of the correlations of several pairs of lists, and its percentile interval over their items.

    Args:
      first, second: lists of one length, an item (a method) at the same place in all; NaN where it has no value.
      draws, seed, level: of the bootstrap; items are drawn, all lists together.

    Returns:
      (correlation, lower, upper).
    """
    a, b = np.asarray(first, float), np.asarray(second, float)

    def mean(items: np.ndarray) -> float:
        found = []
        for x, y in zip(a[:, items], b[:, items], strict=True):
            known = ~(np.isnan(x) | np.isnan(y))
            found.append(spearman(x[known].tolist(), y[known].tolist()) if known.sum() > 2 else np.nan)
        return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")

    everything = np.arange(a.shape[1])
    rng = np.random.default_rng(seed)
    drawn = [mean(rng.choice(everything, len(everything))) for _ in range(draws)]
    if np.isnan(drawn).all():
        return mean(everything), float("nan"), float("nan")
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return mean(everything), float(low), float(high)
