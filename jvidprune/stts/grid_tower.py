"""Towers for frames of any size under STTS: rotary by place, windows of their own, frames in merge-block order."""

import dataclasses
from typing import Any

import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jvidprune.models.attention import attend_all
from jvidprune.models.fused import AttentionKind
from jvidprune.models.qwen.tower import AttentionWindows, Grid, GridTables, GridVit
from jvidprune.stts.tower import PackedAttend, Tower


@dataclasses.dataclass(frozen=True, eq=False)
class GridTower(Tower):
    """The blocks of a tower for frames of any size as `tower.run_tower` needs them; a frame is a grid frame.

    Attributes:
      vision: the tower.
      grid: (T, Hp, Wp) in patches, static.
    """

    vision: GridVit
    grid: Grid

    @property
    def groups(self) -> Int[np.ndarray, "N"] | None:
        """Attention window of each patch; None where all blocks see whole frames."""
        if all(self.vision.config.sees_frames):
            return None
        return window_numbers(self.tables.windows)

    @property
    def tables(self) -> GridTables:
        """Rotary tables and windows of a frame."""
        return self.vision.tables(self.grid)

    def embed(self, patches: Float[Array, "F N V"]) -> Float[Array, "F N D"]:
        """Patches with the learned positions, of towers that have such (Qwen3-VL)."""
        x = self.vision.embed(patches)
        return x + self.vision.positions(self.grid).astype(x.dtype)

    @property
    def frames_at_once(self) -> int:
        """See `Tower.frames_at_once`."""
        return self.vision.config.chunk(self.grid)

    def run_chunk(
        self, x: Array, start: int, stop: int, *, active: Array | None = None, bias: Array | None = None
    ) -> Array:
        """See `Tower.run_chunk`."""
        tables = self.tables
        if active is None and bias is None:
            return self.vision.run(x, tables, start, stop)[0]
        kind: AttentionKind = self.vision.config.attention

        def over_frames(q: Array, k: Array, v: Array) -> Array:
            return attend_all(q, k, v, valid=active, bias=bias, kind=kind)[0]

        def over_windows(q: Array, k: Array, v: Array) -> Array:
            cut = tables.windows
            # Filled-up places of border windows are False either way.
            valid = cut.valid(q.shape[0]) if active is None else cut.split(active)
            added = None if bias is None else cut.split(bias)
            return cut.join(attend_all(*map(cut.split, (q, k, v)), valid=valid, bias=added, kind=kind)[0])

        def attend(q: Array, k: Array, v: Array, whole: Any) -> Array:
            if isinstance(whole, bool):
                return (over_frames if whole else over_windows)(q, k, v)
            return lax.cond(whole, over_frames, over_windows, q, k, v)

        return self.vision.run(x, tables, start, stop, attend=attend)[0]

    def run_packed(
        self, y: Float[Array, "R S D"], start: int, stop: int, *, patches: Int[Array, "R S"], attend: PackedAttend
    ) -> Float[Array, "R S D"]:
        """Blocks [start, stop) on any tokens, each rotated by its place in the frame."""
        tables = self.tables
        placed = GridTables(tables.cos[0][patches], tables.sin[0][patches], tables.windows)
        return self.vision.run(y, placed, start, stop, attend=attend)[0]


def window_numbers(cut: AttentionWindows) -> Int[np.ndarray, "N"]:
    """The attention window that each patch of a frame is in, patches in the processor's order."""
    rows, columns = min(cut.side, cut.height), min(cut.side, cut.width)
    row, column = np.divmod(np.arange(cut.height * cut.width), cut.width)
    number = row // rows * -(-cut.width // columns) + column // columns
    return np.repeat(number, cut.unit).astype(np.int32)
