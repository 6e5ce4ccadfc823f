"""Means of a laboratory's records with intervals over clips, and paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jvidprune.evals.metrics import bootstrap_ratio, clip_draws

Records = Sequence[Mapping[str, Any]]

MEASURES = ("error", "recall", "accuracy", "marginal", "iterations", "kept")
"""What a row of the table has means of."""


class Mean(NamedTuple):
    """A mean with its 95 % bootstrap interval over clips; NaN where nothing was measured."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def _sums(record: Mapping[str, Any], measure: str) -> tuple[float, float]:
    """Sum and count of a record: of answers those of its questions."""
    if measure == "accuracy":
        right = record["right"].values()
        return float(sum(right)), float(len(right))
    value = record[measure]
    return (0.0, 0.0) if value is None else (float(value), 1.0)


def mean(records: Records, measure: str, draws: int = 2000) -> Mean:
    """Mean over clips of the records of one setting and ratio; of answers over their questions."""
    return _bootstrapped([_sums(record, measure) for record in records], draws)


def change(first: Records, second: Records, measure: str, draws: int = 2000) -> Mean:
    """Mean change from the first to the second setting on the clips that both have; clips are resampled together."""
    other = {record["clip"]: record for record in second}
    pairs = []
    for record in first:
        if record["clip"] in other:
            (a, n), (b, m) = _sums(record, measure), _sums(other[record["clip"]], measure)
            pairs.append((b - a, n) if n == m and n > 0 else (0.0, 0.0))
    return _bootstrapped(pairs, draws)


def _bootstrapped(pairs: Sequence[tuple[float, float]], draws: int) -> Mean:
    sums = np.asarray(pairs, np.float64).reshape(-1, 2)
    if not len(sums) or sums[:, 1].sum() == 0:
        return Mean(np.nan, np.nan, np.nan)
    low, high = bootstrap_ratio(clip_draws(len(sums), draws, 0), sums[:, :1], sums[:, 1:])
    return Mean(float(sums[:, 0].sum() / sums[:, 1].sum()), float(low[0]), float(high[0]))


def of(records: Records, setting: str, ratio: float) -> list[Mapping[str, Any]]:
    """The records of one setting and ratio."""
    return [record for record in records if record["setting"] == setting and record["ratio"] == ratio]


def pooled(records: Records, settings: Sequence[str], ratio: float) -> list[dict[str, Any]]:
    """Records of several settings, as of several seeds, as one a clip: means of measures and of answers by question."""
    found = []
    for clip in dict.fromkeys(record["clip"] for record in records):
        own = [r for r in records if r["clip"] == clip and r["setting"] in settings and r["ratio"] == ratio]
        if len(own) != len(settings):
            continue
        whole: dict[str, Any] = {"clip": clip, "setting": settings[0], "ratio": ratio}
        for measure in MEASURES:
            values = [r[measure] for r in own if r.get(measure) is not None]
            if measure != "accuracy":
                whole[measure] = float(np.mean(values)) if values else None
        whole["right"] = {q: float(np.mean([r["right"][q] for r in own])) for q in own[0]["right"]}
        found.append(whole)
    return found


def rows(records: Records, settings: Sequence[str], ratios: Sequence[float]) -> list[dict[str, Any]]:
    """A row for every setting and ratio: means of all measures, with intervals of the first three."""
    found = []
    for setting in settings:
        for ratio in ratios:
            own = of(records, setting, ratio)
            row: dict[str, Any] = {"setting": setting, "ratio": ratio, "clips": len(own)}
            for measure in MEASURES:
                made = mean(own, measure)
                row[measure] = made.value
                if measure in MEASURES[:3]:
                    row |= {f"{measure}_low": made.low, f"{measure}_high": made.high}
            found.append(row)
    return found


def _number(x: float, mark: str, digits: int) -> str:
    """With so many decimals, or with an exponent where these would leave nothing of it."""
    return f"{x:{mark}.{digits}f}" if x == 0 or abs(x) >= 0.5 * 10**-digits else f"{x:{mark}.0e}"


def shown(made: Mean, percent: bool = False, sign: bool = False) -> str:
    """As text, bold where a change leaves out zero; a dash where nothing was measured."""
    if np.isnan(made.value):
        return "–"
    scale, digits = (100.0, 1) if percent else (1.0, 3)
    mark = "+" if sign else ""
    value, low, high = (_number(scale * x, mark, digits) for x in made)
    text = f"{value} [{low}, {high}]"
    return f"**{text}**" if sign and made.clear else text
