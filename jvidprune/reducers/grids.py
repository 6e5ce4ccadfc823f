"""Controls on grids: pooling and sampling of a video's frames at an equal number of tokens, blind to content.

1. The ratio r gives a number of frames T' and a grid h' x w' of each, on the host (`target_grid`): of all grids with
   h' w' <= max(1, round(r N)) and a shape within a factor 2 of the frame's, the largest.
2. The frames, the rows and the columns are divided into T', h' and w' cells. Cells of the kind "partition" meet
   nowhere; cells of the kind "adaptive" overlap where a side is no multiple, as in torch's adaptive pooling.
3. `PoolSpace`, `PoolTime` and `PoolSpaceTime` return the mean of every cell under the place of its first token;
   `SampleSpace`, `SampleTime` and `SampleSpaceTime` that first token; `SampleRandomCell` one token of it at random.

No paper proposes them, and several published methods lose to them (VTC-Bench, arXiv 2510.07143), so they belong into
every table.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("pool_space"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.fields import Seed
from jvidprune.ops import compact
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, sums
from jvidprune.reducers.counts import half_even
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens

CellKind = Literal["partition", "adaptive"]


class GridBudget(NamedTuple):
    """int32 scalars: the cells of frames, rows and columns, and the real frames of the video."""

    frames: Int[Array, ""]
    height: Int[Array, ""]
    width: Int[Array, ""]
    real: Int[Array, ""]


class GridShared(NamedTuple):
    """(T,) bool real frames, and (h,), (w,) places of rows and columns."""

    frame_mask: Bool[Array, "T"]
    rows: Int[Array, "h"]
    columns: Int[Array, "w"]


class Cells(NamedTuple):
    """The cells of one axis of n places, A of which a place may lie in.

    Attributes:
      of: (A, n) int32 cell of each place, n for none.
      start: (n,) int32 first place of each cell, undefined behind the last one.
      size: (n,) int32 places of each cell, at least 1.
      exists: (n,) bool, whether there is a cell of this number.
    """

    of: Int[Array, "A n"]
    start: Int[Array, "n"]
    size: Int[Array, "n"]
    exists: Bool[Array, "n"]


class _Gridded(PositionedReducer):
    """Divides a video into cells; subclasses say on which axes, and what a cell becomes."""

    axes: ClassVar[Literal["space", "time", "both"]]

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> GridShared:
        """The axes of the video."""
        height, width = video.grid
        return GridShared(video.frame_mask, jnp.arange(height), jnp.arange(width))

    def budget(self, layout: Layout, ratio: float) -> GridBudget:
        """The cells of one ratio."""
        frames, height, width = self.cells_for(layout, ratio)
        return GridBudget(np.int32(frames), np.int32(height), np.int32(width), np.int32(layout.frames))  # type: ignore[arg-type]

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly one row a cell."""
        return math.prod(self.cells_for(layout, ratio))

    def cells_for(self, layout: Layout, ratio: float) -> tuple[int, int, int]:
        """(T', h', w') at a retention ratio; both axes share it as sqrt(r) of the frames and the rest of each frame."""
        ratio, (height, width) = check_ratio(ratio), layout.grid
        if self.axes == "time":
            return half_even(layout.frames, ratio), height, width
        frames = layout.frames if self.axes == "space" else half_even(layout.frames, math.sqrt(ratio))
        share = ratio if self.axes == "space" else ratio * layout.frames / frames
        return frames, *target_grid(height, width, half_even(layout.tokens, share))

    @property
    def tokens_per_frame(self) -> Callable[[Layout, float], int] | None:
        """h' w' where every frame keeps its own, None where frames are pooled or left out."""
        if self.axes != "space":
            return None
        return lambda layout, ratio: math.prod(self.cells_for(layout, ratio)[1:])

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """In grid layouts each row of the smaller grid ends in a newline."""
        return super().prompt._replace(newline_rows="nonempty")


class _Pooled(_Gridded):
    """Returns the mean of every cell."""

    cells: CellKind

    def decide(self, shared: GridShared, budget: GridBudget, *, capacity: int) -> Plan:
        """One row a cell, by frames, row and column; a cell of one token is a copy of it."""
        # Frames overlap only where they alone are pooled.
        time = self.cells if self.axes == "time" else "partition"
        axes = _axes(shared, budget, self.cells, time)
        sides = tuple(axis.start.size for axis in axes)
        total = math.prod(sides)

        def over(parts: tuple[Array, Array, Array]) -> Array:
            """One value a cell from one an axis."""
            frame, row, column = parts
            return jnp.broadcast_to(frame[:, None, None] * row[:, None] * column, sides).reshape(-1)

        size = over((axes[0].size, axes[1].size, axes[2].size))
        present = over((axes[0].exists, axes[1].exists, axes[2].exists))
        first = (axes[0].start[:, None, None] * sides[1] + axes[1].start[:, None]) * sides[2] + axes[2].start
        targets = []
        for frame in axes[0].of:
            for row in axes[1].of:
                for column in axes[2].of:
                    cell = (frame[:, None, None] * sides[1] + row[:, None]) * sides[2] + column
                    some = (frame < sides[0])[:, None, None] & (row < sides[1])[:, None] & (column < sides[2])
                    targets.append(jnp.where(some, cell, total).reshape(-1))
        target = jnp.stack(targets)
        alone = size == 1
        share = jnp.append(1.0 / size, 0.0)[target]
        target = jnp.where(jnp.append(alone, True)[target], total, target)
        return compact.slotted_plan(first.reshape(-1), present, alone, target, share, capacity)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """The sums over the cells."""
        return {"weighted sums": sums(layout, width)}


class _Sampled(_Gridded):
    """Keeps the first token of every cell."""

    def decide(self, shared: GridShared, budget: GridBudget, *, capacity: int) -> Plan:
        """The first tokens, ascending by id."""
        keep = jnp.ones((1, 1, 1), bool)
        for axis, cells in enumerate(_axes(shared, budget, "partition", "partition")):
            places = cells.start.size
            first = jnp.zeros(places, bool).at[jnp.where(cells.exists, cells.start, places)].set(True, mode="drop")
            keep = keep & jnp.expand_dims(first, [other for other in range(3) if other != axis])
        return compact.selection_plan((keep & shared.frame_mask[:, None, None]).reshape(-1), capacity)


@dataclasses.dataclass(frozen=True)
class PoolSpace(_Pooled):
    """Means over the cells of each frame's grid.

    Attributes:
      cells: "adaptive" as torch's adaptive average pooling, or "partition".
    """

    cells: CellKind = "adaptive"

    axes: ClassVar[Literal["space", "time", "both"]] = "space"

    info: ClassVar[MethodInfo] = MethodInfo(
        "pool_space", "Spatial pooling", "-", "Averages the cells of a smaller grid.", False, True, True
    )


@dataclasses.dataclass(frozen=True)
class PoolTime(_Pooled):
    """Means over neighbouring frames, at every place of the grid.

    Attributes:
      cells: "partition", or "adaptive", whose cells overlap where the frames are no multiple of theirs.
    """

    cells: CellKind = "partition"

    axes: ClassVar[Literal["space", "time", "both"]] = "time"
    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        "pool_time", "Temporal pooling", "-", "Averages neighbouring frames.", False, True, True
    )


@dataclasses.dataclass(frozen=True)
class PoolSpaceTime(_Pooled):
    """Means over cells of neighbouring frames and of a smaller grid.

    Attributes:
      cells: of the grid, as in `PoolSpace`; frames are always divided without overlap.
    """

    cells: CellKind = "adaptive"

    axes: ClassVar[Literal["space", "time", "both"]] = "both"
    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        "pool_spacetime",
        "Spatiotemporal pooling",
        "-",
        "Averages the cells of a smaller grid over neighbouring frames.",
        False,
        True,
        True,
    )


@dataclasses.dataclass(frozen=True)
class SampleSpace(_Sampled):
    """Keeps the top left token of each cell of each frame's grid."""

    axes: ClassVar[Literal["space", "time", "both"]] = "space"

    info: ClassVar[MethodInfo] = MethodInfo(
        "sample_space",
        "Grid sampling",
        "-",
        "Keeps the first token of each cell of a smaller grid.",
        False,
        False,
        True,
    )


@dataclasses.dataclass(frozen=True)
class SampleTime(_Sampled):
    """Keeps the first frame of each cell of neighbouring frames, whole."""

    axes: ClassVar[Literal["space", "time", "both"]] = "time"
    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        "sample_time", "Frame sampling", "-", "Keeps the first of neighbouring frames whole.", False, False, True
    )


@dataclasses.dataclass(frozen=True)
class SampleSpaceTime(_Sampled):
    """Keeps the top left token of each cell of the grid, in the first of neighbouring frames."""

    axes: ClassVar[Literal["space", "time", "both"]] = "both"
    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        "sample_spacetime",
        "Spatiotemporal grid sampling",
        "-",
        "Keeps the first token of each cell of a smaller grid in some frames.",
        False,
        False,
        True,
    )


@dataclasses.dataclass(frozen=True)
class SampleRandomCell(_Gridded):
    """Keeps one token of each cell of each frame's grid, all of its tokens alike likely.

    Frame t draws from its own stream, so padding changes nothing.

    Attributes:
      seed: of the draw.
    """

    seed: Seed = 0

    axes: ClassVar[Literal["space", "time", "both"]] = "space"

    def decide(self, shared: GridShared, budget: GridBudget, *, capacity: int) -> Plan:
        """The drawn token of every cell, ascending by id."""
        frames, height, width = shared.frame_mask.size, shared.rows.size, shared.columns.size
        key = jax.random.key(self.seed)
        draws = jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(key, t), (2, height, width)))
        down, along = jnp.moveaxis(draws(jnp.arange(frames)), 1, 0)
        rows, columns = (
            _cells(height, budget.height, height, "partition"),
            _cells(width, budget.width, width, "partition"),
        )
        row = rows.start[:, None] + _drawn(down, rows.size[:, None])
        column = columns.start + _drawn(along, columns.size)
        exists = rows.exists[:, None] & columns.exists & shared.frame_mask[:, None, None]
        frame = jnp.arange(frames, dtype=jnp.int32)[:, None, None]
        chosen = jnp.where(exists, (frame * height + row) * width + column, frames * height * width)
        keep = jnp.zeros(frames * height * width, bool).at[chosen.reshape(-1)].set(True, mode="drop")
        return compact.selection_plan(keep, capacity)

    info: ClassVar[MethodInfo] = MethodInfo(
        "sample_random_cell",
        "Random cell sampling",
        "-",
        "Keeps a random token of each cell of a smaller grid.",
        False,
        False,
        True,
    )


@functools.lru_cache
def target_grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """The largest grid h' x w' of at most `tokens` tokens whose sides shrink by factors within 2 of each other.

    Of equally large ones the least distorted, then the one with fewer rows; (1, 1) where there is none.
    """
    best, rank = (1, 1), (0, 0.0, 0)
    for h in range(1, height + 1):
        for w in range(1, min(width, tokens // h) + 1):
            high, low = max(h * width, w * height), min(h * width, w * height)
            here = (h * w, -high / low, -h)
            if high <= 2 * low and here > rank:
                best, rank = (h, w), here
    return best


def _cells(places: int, cells: Int[Array, ""], real: Int[Array, ""] | int, kind: CellKind) -> Cells:
    """`cells` cells over the first `real` of `places` places; integers throughout.

    Cell i begins at floor(i n / m). It ends in front of floor((i + 1) n / m) where cells meet nowhere, and in front of
    ceil((i + 1) n / m) where they overlap: place y then lies in the cells floor(y m / n) to ceil((y + 1) m / n) - 1,
    of which there are two at most, since m <= n.
    """
    number = jnp.arange(places, dtype=jnp.int32)
    last = ((number + 1) * cells - 1) // real
    first = number * cells // real
    within = number < real
    start = number * real // cells
    stop = (number + 1) * real // cells if kind == "partition" else -((-(number + 1) * real) // cells)
    of = jnp.where(within, last, places)[None]
    if kind == "adaptive":
        of = jnp.stack([jnp.where(within, first, places), jnp.where(within & (first < last), last, places)])
    return Cells(of, start, jnp.maximum(stop - start, 1), number < cells)


def _drawn(uniform: Float[Array, "..."], size: Int[Array, "..."]) -> Int[Array, "..."]:
    return jnp.minimum((uniform * size).astype(jnp.int32), size - 1)


def _axes(shared: GridShared, budget: GridBudget, space: CellKind, time: CellKind) -> tuple[Cells, Cells, Cells]:
    frames, height, width = shared.frame_mask.size, shared.rows.size, shared.columns.size
    return (
        _cells(frames, budget.frames, budget.real, time),
        _cells(height, budget.height, height, space),
        _cells(width, budget.width, width, space),
    )
