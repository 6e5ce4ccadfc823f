"""Where kept patches go: one after the other in a flat sequence, or whole frames into rows by first-fit decreasing."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.compact import compact


class Slots(NamedTuple):
    """Packed tokens; unused slots read nothing and are read by nothing.

    Attributes:
      source: (R, S) int32 frame * N + patch in each slot, F * N where it is unused.
      segment: (R, S) int32 frame of each slot, F where it is unused.
    """

    source: Int[Array, "R S"]
    segment: Int[Array, "R S"]


class FrameRows(NamedTuple):
    """First-fit decreasing packing of whole frames, as in the released code.

    Attributes:
      row: (F,) int32 row of each frame, -1 for an empty one.
      begin: (F,) int32 first slot of each frame in its row.
      alone: (F,) bool, frames that have a row to themselves; among them a frame that is the only empty one.
      used: () int32 rows in use.
      overflow: () bool, whether frames were left out because rows ran out.
    """

    row: Int[Array, "F"]
    begin: Int[Array, "F"]
    alone: Bool[Array, "F"]
    used: Int[Array, ""]
    overflow: Bool[Array, ""]


def first_fit(counts: Int[Array, "F"], size: int, rows: int) -> FrameRows:
    """Frames by falling count, equal ones by index, each into the first row with room.

    Args:
      counts: tokens of each frame, at most `size`.
      size: slots of a row, static.
      rows: most rows, static; F is always enough, 2 * tokens / size + 1 is never less than what is used.
    """
    frames = counts.shape[0]
    order = jnp.argsort(-counts, stable=True)

    def put(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        fill, members, row, begin, overflow = state
        frame = order[i]
        count = counts[frame]
        fits = fill + count <= size
        at = jnp.argmax(fits).astype(jnp.int32)
        placed = (count > 0) & fits[at]
        fill = fill.at[at].add(jnp.where(placed, count, 0))
        members = members.at[at].add(placed.astype(jnp.int32))
        row = row.at[frame].set(jnp.where(placed, at, -1))
        begin = begin.at[frame].set(jnp.where(placed, fill[at] - count, 0))
        return fill, members, row, begin, overflow | ((count > 0) & ~fits[at])

    zeros = jnp.zeros(rows, jnp.int32)
    start = (zeros, zeros, jnp.full(frames, -1, jnp.int32), jnp.zeros(frames, jnp.int32), jnp.zeros((), bool))
    _, members, row, begin, overflow = lax.fori_loop(0, frames, put, start)
    # Empty frames share the row number -1: if there is exactly one, it counts as alone.
    empty = counts == 0
    alone = jnp.where(row >= 0, members[jnp.maximum(row, 0)] == 1, empty & (empty.sum() == 1))
    return FrameRows(row, begin, alone, (members > 0).sum(dtype=jnp.int32), overflow)


def refill_alone(keep: Bool[Array, "F N"]) -> tuple[FrameRows, Bool[Array, "F N"]]:
    """The released packing with its refill.

    A frame that is alone in its row takes all slots of it: its pruned patches come back as queries and keys of the
    blocks behind, but not in what is recorded. A frame that is the only empty one comes back whole, in a row more.

    Args:
      keep: (F, N) patches that stay, of ALL frames of a batch: which frames are alone depends on all.

    Returns:
      The rows, revived frame included, and the (F, N) patches that come back.
    """
    frames, size = keep.shape
    packed = first_fit(keep.sum(axis=1, dtype=jnp.int32), size, frames)
    back = packed.alone[:, None] & ~keep
    revived = packed.alone & (packed.row < 0)
    row = jnp.where(revived, packed.used, packed.row)
    return packed._replace(row=row, used=packed.used + revived.sum(dtype=jnp.int32)), back


def row_columns(active: Bool[Array, "F N"], packed: FrameRows) -> tuple[Int[Array, "F N"], Int[Array, "F N"]]:
    """Row and slot of every active patch, -1 elsewhere; a frame is contiguous and in raster order."""
    there = active & (packed.row >= 0)[:, None]
    column = packed.begin[:, None] + jnp.cumsum(active, axis=1, dtype=jnp.int32) - 1
    return jnp.where(there, packed.row[:, None], -1), jnp.where(there, column, -1)


def row_slots(active: Bool[Array, "F N"], packed: FrameRows, rows: int) -> Slots:
    """Slots of frames in rows.

    Args:
      active: (F, N) patches that take part.
      packed: where frames go.
      rows: R, static.
    """
    frames, size = active.shape
    row, column = row_columns(active, packed)
    place = jnp.where(row >= 0, row * size + column, rows * size)
    ids = jnp.arange(frames * size, dtype=jnp.int32)
    empty = jnp.full(rows * size, frames * size, jnp.int32)
    source = empty.at[place.reshape(-1)].set(ids, mode="drop")
    return Slots(source.reshape(rows, size), (source // size).reshape(rows, size))


def flat_slots(active: Bool[Array, "F N"], capacity: int, order: Int[np.ndarray, "N"] | None = None) -> Slots:
    """Slots (1, C) of active patches one after the other, frame by frame: a frame is contiguous and at most N long.

    Args:
      active: (F, N) patches that take part.
      capacity: C, static; at least the number of active patches.
      order: the patches of a frame in the order in which they are laid out; by default ascending.
    """
    frames, size = active.shape
    shuffled = active if order is None else active[:, order]
    found, valid, _ = compact(shuffled.reshape(-1), capacity)
    frame, patch = found // size, found % size
    patch = patch if order is None else jnp.asarray(order, jnp.int32)[patch]
    source = jnp.where(valid, frame * size + patch, frames * size)
    return Slots(source[None], jnp.where(valid, frame, frames)[None].astype(jnp.int32))


def gather_slots(x: Float[Array, "F N D"], slots: Slots) -> Float[Array, "R S D"]:
    """The tokens of the slots, zeros in unused ones."""
    flat = x.reshape(-1, x.shape[-1])
    return flat.at[slots.source].get(mode="fill", fill_value=0)


def scatter_slots(y: Float[Array, "R S D"], slots: Slots, keep: Bool[Array, "F N"]) -> Float[Array, "F N D"]:
    """Slots put back at their places, zeros where nothing is kept: refilled patches are left out."""
    frames, size = keep.shape
    flat = jnp.zeros((frames * size, y.shape[-1]), y.dtype)
    flat = flat.at[slots.source.reshape(-1)].set(y.reshape(-1, y.shape[-1]), mode="drop")
    return jnp.where(keep[:, :, None], flat.reshape(frames, size, -1), 0)
