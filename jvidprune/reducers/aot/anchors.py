"""AOT's step 1: local anchors by window of the shallow map, global anchors by the deep map (arXiv 2603.01400)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.select import order_descending, rank_descending, rank_of_order
from jvidprune.ops.similarity import cosine_from_gram, dot_f32, over_frames, squared_norms
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


def window_tokens(grid: tuple[int, int], windows: tuple[int, int], side: int) -> np.ndarray:
    """(windows, side * side) token ids, window by window; what lies beyond the last complete window is in none."""
    ids = np.arange(grid[0] * grid[1]).reshape(grid)[: windows[0] * side, : windows[1] * side]
    blocks = ids.reshape(windows[0], side, windows[1], side).swapaxes(1, 2)
    return blocks.reshape(windows[0] * windows[1], side * side)


def local_ranks(
    shallow: Float[Array, "T N"], grid: tuple[int, int], windows: tuple[int, int], side: int
) -> Int[Array, "T N"]:
    """Rank of each token inside its window, N outside; raster order inside a window makes ties go to the lower id."""
    tokens = window_tokens(grid, windows, side)
    out = jnp.full(shallow.shape, shallow.shape[1], jnp.int32)
    if tokens.size == 0:
        return out
    ranks = rank_descending(shallow[:, tokens]).astype(jnp.int32)
    return out.at[:, tokens.reshape(-1)].set(ranks.reshape(shallow.shape[0], -1))


def select(
    x: Float[Array, "T N D"],
    shallow: Float[Array, "T N"],
    deep: Float[Array, "T N"],
    geometry: Geometry,
    window: int,
    limit: Limits,
) -> Selection:
    """The ratio-independent half: orders, candidate anchors and their cosines, one frame at a time on CPU."""
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
        place = jnp.where(chosen, jnp.minimum(jnp.cumsum(chosen, axis=1) - 1, c), c)
        blank = jnp.full(c + 1, n, jnp.int32)
        ids = jnp.arange(n, dtype=jnp.int32)
        candidates = jax.vmap(lambda p: blank.at[p].set(ids)[:c])(place)

    def cosines(frame: Array, ids: Array) -> Array:
        norms = squared_norms(frame)
        inside = jnp.minimum(ids, n - 1)
        columns = frame if c == n else frame[inside]
        return cosine_from_gram(dot_f32(frame, columns), norms, norms[inside], 1e-8)

    return Selection(local_rank, order, rank, candidates, over_frames(cosines, x, candidates))


def anchor_mask(
    selection: Selection, local: Array, global_anchors: Array, frame_mask: Bool[Array, "T"]
) -> Bool[Array, "T N"]:
    """Local anchors by window, then the `global_anchors` largest of the deep map among all other tokens.

    The reference sets the deep map to 0 at local anchors; skipping them outright is the same for positive attention and
    stays right for maps that a sink rule has made negative.
    """
    chosen = selection.local_rank < local
    free = ~jnp.take_along_axis(chosen, selection.deep_order, axis=1)
    first = free & (jnp.cumsum(free, axis=1) <= global_anchors)
    return (chosen | jnp.take_along_axis(first, selection.deep_rank, axis=1)) & frame_mask[:, None]
