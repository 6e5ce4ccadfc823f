"""AOT's host arithmetic: anchor counts, clips, row bounds, and which V a retention ratio stands for."""

import functools
import math
from typing import Literal, NamedTuple

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count
from jvidprune.ops.pool import PoolKind

Clips = Literal["fixed", "dyseg"] | Count | tuple[Count, ...]

_V_SHARE = np.array([0, 54, 72, 90, 108, 126, 144, 180, 216, 252, 288, 729]) / 729
_POOLED_SHARE: dict[str, np.ndarray] = {
    "bilinear": np.array([0, 0.062, 0.087, 0.110, 0.134, 0.158, 0.182, 0.232, 0.280, 0.328, 0.373, 1]),
    "average": np.array([0, 0.067, 0.096, 0.124, 0.152, 0.181, 0.210, 0.265, 0.317, 0.372, 0.428, 1]),
}
"""Mean share of pooled tokens that stay anchors against V / N, measured with the reference on 27x27 grids (32 frames,
synthetic attention, 4 seeds)."""


class AnchorCounts(NamedTuple):
    """Anchors of one frame: `local` of each window, `global_anchors` of the whole frame, `total` together."""

    local: int
    global_anchors: int
    total: int


class CountRules(NamedTuple):
    """The settings of `AOT` that decide how many tokens come out; see there."""

    global_ratio: float
    keep_ratio: float
    clips: Clips
    inter: bool
    drop_original: bool


class Geometry(NamedTuple):
    """The static sizes of a frame.

    Attributes:
      grid: before pooling.
      pooled: after pooling.
      kind: the pooling between them.
      windows: (rows, columns) of complete local windows.
      newlines: newline slots that take part, one a row or none.
    """

    grid: tuple[int, int]
    pooled: tuple[int, int]
    kind: PoolKind
    windows: tuple[int, int]
    newlines: int

    @property
    def tokens(self) -> int:
        """Tokens of a frame before pooling."""
        return self.grid[0] * self.grid[1]

    @property
    def cells(self) -> int:
        """Tokens of a frame after pooling."""
        return self.pooled[0] * self.pooled[1]


def anchor_counts(visual_tokens: int, geometry: Geometry, global_ratio: float) -> AnchorCounts:
    """Local and global anchors of V, with the reference's truncations in Python float64.

    V = N is special in the reference: the stage is skipped and every token is an anchor. With fewer local anchors than
    windows the reference fails; here such a V simply has no local anchors (Q6).
    """
    if visual_tokens >= geometry.tokens:
        return AnchorCounts(0, geometry.tokens, geometry.tokens)
    windows = geometry.windows[0] * geometry.windows[1]
    local_total = int(visual_tokens * (1 - global_ratio))
    local = local_total // windows if windows else 0
    global_anchors = visual_tokens - local_total
    return AnchorCounts(local, global_anchors, windows * local + global_anchors)


def pooled_bound(anchors: int, geometry: Geometry) -> int:
    """Most pooled tokens a frame with so many anchors can keep.

    Average pooling, and bilinear pooling of even sides, needs two of the four tokens of disjoint blocks. Bilinear
    pooling of odd sides can keep a cell for the one anchor that dominates it; without that it needs two others.
    """
    halves = geometry.kind == "average" or (
        geometry.kind == "bilinear" and geometry.grid[0] % 2 == 0 and geometry.grid[1] % 2 == 0
    )
    return min(geometry.cells, anchors // 2 if halves else anchors)


def kept_tokens(keep_ratio: float, sources: int) -> int:
    """Largest number of a later frame's tokens that stay distinct: ceil(q (R - 1)).

    The reference interpolates a quantile in float64; the guard keeps products that are integers up to rounding
    integers.
    """
    return math.ceil(keep_ratio * (sources - 1) - 1e-9) if sources > 0 else 0


def clip_lengths(clips: Clips, frames: int) -> tuple[int, ...]:
    """Clip lengths of so many real frames; dynamic clips count as the fixed ones.

    "fixed" is the reference's rule, intervals of T / 8, extended to any T: intervals of ceil(T / 8), the last one
    shorter.

    Raises:
      JvidpruneError: explicit lengths that do not sum to the frames.
    """
    if isinstance(clips, tuple):
        if sum(clips) != frames or min(clips, default=0) < 1:
            raise JvidpruneError(f"AOT's clips {clips} must be positive and sum to the {frames} frames.")
        return clips
    interval = clips if isinstance(clips, int) else max(1, -(-frames // 8))
    whole, rest = divmod(frames, interval)
    return (interval,) * whole + ((rest,) if rest else ())


def rows_of(tokens: float, kept: float, lengths: tuple[int, ...], rules: CountRules) -> float:
    """Output rows if every frame offers `tokens` and every later frame of a clip keeps `kept`."""
    if not rules.inter:
        return tokens * sum(lengths)
    copies = [1 if length == 1 or rules.drop_original else 2 for length in lengths]
    return tokens * sum(copies) + kept * (sum(lengths) - len(lengths))


@functools.lru_cache
def row_bound(tokens: int, rules: CountRules, slots: int) -> int:
    """Most output rows of up to `slots` frames with at most so many tokens a frame, newline slots included."""
    kept = kept_tokens(rules.keep_ratio, tokens)
    if not rules.inter:
        return tokens * slots
    clips = rules.clips
    if clips == "dyseg":
        # Clips of two frames emit most, (2 n + kept) / 2 a frame; without originals single frames do, n each.
        pairs, odd = divmod(slots, 2)
        return tokens * slots if rules.drop_original else pairs * (2 * tokens + kept) + odd * tokens
    counts = [sum(clips)] if isinstance(clips, tuple) else range(1, slots + 1)
    return max(int(rows_of(tokens, kept, clip_lengths(clips, f), rules)) for f in counts)


def expected_rows(visual_tokens: int, geometry: Geometry, rules: CountRules, lengths: tuple[int, ...]) -> float:
    """Rows to expect on average, from the measured share of pooled anchors."""
    share = anchor_counts(visual_tokens, geometry, rules.global_ratio).total / geometry.tokens
    if geometry.kind != "none":
        even = geometry.grid[0] % 2 == 0 and geometry.grid[1] % 2 == 0
        table = "average" if geometry.kind == "average" or even else "bilinear"
        share = float(np.interp(share, _V_SHARE, _POOLED_SHARE[table]))
    tokens = share * geometry.cells
    # The mean of ceil(x) over a spread of x is x + 1/2.
    kept = rules.keep_ratio * (tokens - 1) + (0.5 if 0 < rules.keep_ratio < 1 else 0.0)
    return rows_of(tokens, max(kept, 0.0), lengths, rules)


@functools.lru_cache
def visual_tokens_for(ratio: float, geometry: Geometry, rules: CountRules, lengths: tuple[int, ...]) -> int:
    """The V whose expected ratio is nearest to the one asked for, the lowest of equals."""
    total = sum(lengths) * geometry.cells
    rows = [expected_rows(v, geometry, rules, lengths) for v in range(1, geometry.tokens + 1)]
    return int(np.argmin(np.abs(np.array(rows) / total - ratio))) + 1


class Limits(NamedTuple):
    """Static sizes that a capacity implies.

    Attributes:
      visual_tokens: largest V whose bound fits the capacity.
      local, global_anchors: its anchor counts, the largest of all V up to it.
      candidates: tokens of a frame that can be anchors of any such V.
      slots: pooled tokens of a frame that can be output, newline slots included.
    """

    visual_tokens: int
    local: int
    global_anchors: int
    candidates: int
    slots: int


@functools.lru_cache
def limits(capacity: int, geometry: Geometry, rules: CountRules, frames: int) -> Limits:
    """The largest V that a capacity can hold and the sizes that follow; budgets up to it lose nothing."""
    best = 1
    for v in range(1, geometry.tokens + 1):
        slots = pooled_bound(anchor_counts(v, geometry, rules.global_ratio).total, geometry) + geometry.newlines
        if row_bound(slots, rules, frames) <= capacity:
            best = v
    counts = [anchor_counts(v, geometry, rules.global_ratio) for v in range(1, best + 1)]
    local, global_anchors = max(c.local for c in counts), max(c.global_anchors for c in counts)
    windows = geometry.windows[0] * geometry.windows[1]
    # A global anchor ranks below their number among tokens that are no local anchors, so below this among all.
    candidates = min(geometry.tokens, 2 * windows * local + global_anchors)
    slots = pooled_bound(max(c.total for c in counts), geometry) + geometry.newlines
    return Limits(best, local, global_anchors, candidates, max(slots, 1))
