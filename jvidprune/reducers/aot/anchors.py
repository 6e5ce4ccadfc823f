"""AOT's step 1: local anchors by window of the shallow map, global anchors by the deep map (arXiv 2603.01400)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.branch import on_cpu
from jvidprune.ops.layout import row_major
from jvidprune.ops.select import first_occurrence, order_descending, rank_descending, rank_of_order
from jvidprune.ops.similarity import cosine_from_gram, dot_f32, gram_norms, squared_norms
from jvidprune.reducers.aot.sizes import Geometry, Limits


class Selection(NamedTuple):
    """Orders that no budget changes.

    Attributes:
      local_rank: (T, N) int32 rank of a token inside its window of the shallow map, N outside of all windows.
      deep_order, deep_rank: (T, N) int32 order of the deep map and its inverse.
      candidates: (T, C) int32 tokens that any budget may choose, raster order, N on padding.
      cosines: (T, N, C) float32 of all tokens against the candidates.
    """

    local_rank: Int[Array, "T N"]
    deep_order: Int[Array, "T N"]
    deep_rank: Int[Array, "T N"]
    candidates: Int[Array, "T C"]
    cosines: Float[Array, "T N C"]


def local_ranks(
    shallow: Float[Array, "T N"], grid: tuple[int, int], windows: tuple[int, int], side: int
) -> Int[Array, "T N"]:
    """Rank of each token inside its window, N outside; raster order inside a window makes ties go to the lower id."""
    (frames, n), (rows, columns) = shallow.shape, (windows[0] * side, windows[1] * side)
    if rows * columns == 0:
        return jnp.full(shallow.shape, n, jnp.int32)
    blocks = shallow.reshape(frames, *grid)[:, :rows, :columns].reshape(frames, windows[0], side, windows[1], side)
    ranks = rank_descending(blocks.swapaxes(2, 3).reshape(frames, -1, side * side)).astype(jnp.int32)
    inside = ranks.reshape(frames, *windows, side, side).swapaxes(2, 3).reshape(frames, rows, columns)
    beyond = ((0, 0), (0, grid[0] - rows), (0, grid[1] - columns))
    return jnp.pad(inside, beyond, constant_values=n).reshape(frames, n)


def select(
    x: Float[Array, "T N D"],
    shallow: Float[Array, "T N"],
    deep: Float[Array, "T N"],
    geometry: Geometry,
    window: int,
    limit: Limits,
) -> Selection:
    """The ratio-independent half: orders, candidate anchors and their cosines."""
    t, n = shallow.shape
    local_rank = local_ranks(shallow, geometry.grid, geometry.windows, window)
    order = order_descending(deep)
    rank = rank_of_order(order)
    c = limit.candidates
    if c == n:
        candidates = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (t, n))
    else:
        reach = limit.global_anchors + geometry.windows[0] * geometry.windows[1] * limit.local
        chosen = (local_rank < limit.local) | (rank < reach)
        candidates = first_occurrence(jnp.where(chosen, jnp.cumsum(chosen, axis=1) - 1, c), c)

    def cosines(frame: Array, ids: Array) -> Array:
        if c == n and not on_cpu():
            gram = dot_f32(frame, frame)
            norms = gram_norms(gram)
            return cosine_from_gram(gram, norms, norms, 1e-8)
        norms = squared_norms(frame)
        if c == n:
            return cosine_from_gram(dot_f32(frame, frame), norms, norms, 1e-8)
        inside = jnp.minimum(ids, n - 1)
        return cosine_from_gram(dot_f32(frame, frame[inside]), norms, norms[inside], 1e-8)

    # One after the other on any machine: a frame is large, and lies beside the arithmetic while it is read thrice.
    # In one layout for all stages: a TPU's compiler chose three, and copied all frames' between them through HBM.
    similar = row_major(lax.map(lambda pair: cosines(*pair), (x, candidates)))
    return Selection(local_rank, order, rank, candidates, similar)


def anchor_mask(
    selection: Selection, local: Array, global_anchors: Array, frame_mask: Bool[Array, "T"]
) -> Bool[Array, "T N"]:
    """Local anchors by window, then the `global_anchors` largest of the deep map among all other tokens.

    The reference sets the deep map to 0 at local anchors; skipping them outright is the same for positive attention and
    stays right for maps that a sink rule has made negative.
    """
    chosen = selection.local_rank < local
    if not on_cpu():
        rank = selection.deep_rank
        before = (rank[:, None, :] <= rank[:, :, None]) & ~chosen[:, None, :]
        first = jnp.sum(before, axis=-1, dtype=jnp.int32) <= global_anchors
        return (chosen | first) & frame_mask[:, None]
    free = ~jnp.take_along_axis(chosen, selection.deep_order, axis=1)
    first = free & (jnp.cumsum(free, axis=1) <= global_anchors)
    return (chosen | jnp.take_along_axis(first, selection.deep_rank, axis=1)) & frame_mask[:, None]
