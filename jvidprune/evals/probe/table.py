"""What a probe found: measures of every method at every ratio with intervals, as rows of files and of tables."""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvidprune.evals.metrics import bootstrap_ratio, clip_draws
from jvidprune.evals.probe.measures import MEASURES, Sums
from jvidprune.files import atomic_output

Run = tuple[str, float]
"""Method and retention ratio."""

ALL_TOKENS = "all tokens"
"""The run that keeps everything, at ratio 1."""

GUESS = "a guess"
"""What read-outs are compared with: nothing was looked at."""

BASELINES = (ALL_TOKENS, GUESS)
"""What stands beside the methods; a guess has read-outs alone."""

FIELDS = ("method", "ratio", "tokens", "measure", "value", "low", "high")
"""Columns of probe.csv."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A measure of a run, with its bootstrap interval over clips; NaN where no clip has anything to measure."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{100 * self.value:.0f}"

    @property
    def bounds(self) -> str:
        """The interval in brackets."""
        return "" if math.isnan(self.low) else f"[{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclasses.dataclass(frozen=True)
class ProbeTable:
    """What a probe found.

    Attributes:
      ratios: in the order they were asked for.
      runs: in the order of the tables.
      titles: method -> name for people.
      values: run -> measure -> value.
      tokens: run -> mean number of rows.
      visual: tokens of a clip.
      refused: method -> why it is not there.
      clips: that were measured.
      fitted: clips that the read-outs were fitted on.
      controls: names of those that stand beside the methods.
    """

    ratios: tuple[float, ...]
    runs: tuple[Run, ...]
    titles: Mapping[str, str]
    values: Mapping[Run, Mapping[str, Value]]
    tokens: Mapping[Run, float]
    visual: int
    refused: Mapping[str, str]
    clips: int
    fitted: int
    controls: tuple[str, ...] = ()

    def at(self, ratio: float) -> list[Run]:
        """The runs of a ratio, behind those that keep everything or nothing."""
        return [run for run in self.runs if run[1] == ratio or run[0] in BASELINES]

    @property
    def first(self) -> float:
        """The ratio nearest to 10 %, which is shown first."""
        return min(self.ratios, key=lambda ratio: (abs(ratio - 0.1), -ratio))

    def rows(self) -> list[dict[str, Any]]:
        """Plain values under `FIELDS`; what no clip has is left out."""
        out = []
        for run in self.runs:
            for name, one in self.values[run].items():
                if not math.isnan(one.value):
                    values = (*run, self.tokens[run], name, one.value, one.low, one.high)
                    out.append(dict(zip(FIELDS, values, strict=True)))
        return out


def summarised(
    sums: Mapping[Run, Sequence[Sums]], *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[Run, dict[str, Value]]:
    """Values with percentile intervals over clips, all runs on the same resamples.

    Args:
      sums: run -> what was counted in every clip, as many clips for all of them; empty where a clip has nothing.
      draws, seed, level: of the bootstrap.
    """
    runs = list(sums)
    clips = len(sums[runs[0]]) if runs else 0
    parts = np.zeros((2, clips, len(runs), len(MEASURES)))
    for i, run in enumerate(runs):
        for clip, some in enumerate(sums[run]):
            for j, name in enumerate(MEASURES):
                parts[:, clip, i, j] = some.get(name, (0.0, 0.0))
    above, below = parts.reshape(2, clips, -1)
    low, high = bootstrap_ratio(clip_draws(clips, draws, seed), above, below, level)
    down = below.sum(0)
    value = np.divide(above.sum(0), down, out=np.full(down.shape, np.nan), where=down > 0)
    cells = [Value(*one) for one in np.stack([value, low, high], 1).tolist()]
    width = len(MEASURES)
    return {run: dict(zip(MEASURES, cells[i * width : (i + 1) * width], strict=True)) for i, run in enumerate(runs)}


def write_probe(table: ProbeTable, path: Path) -> None:
    """probe.csv: a line a method, ratio and measure."""
    with atomic_output(path) as part, part.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for row in table.rows():
            writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in row.values())
