"""AOT's step 3: merged anchors and untouched neighbours are pooled together; where anchors prevail, a token stays.

A pooled token is a fixed combination of its frame's tokens, so that all of it is weights until `frame_tokens`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.layout import one_by_one
from jvidprune.ops.pool import pool_tokens, pooling_matrix
from jvidprune.ops.select import first_occurrence
from jvidprune.ops.similarity import dot_f32, widened
from jvidprune.ops.transport import Scaled
from jvidprune.reducers.aot.anchors import Selection
from jvidprune.reducers.aot.intra import Intra, Merge
from jvidprune.reducers.aot.sizes import Geometry


def weigh(weights: Float[Array, "n m"], x: Float[Array, "m D"]) -> Float[Array, "n D"]:
    """Weighted sums of rows at full float32 precision."""
    return jnp.matmul(weights, x, precision=lax.Precision.HIGHEST)


def cell_pooling(geometry: Geometry) -> np.ndarray:
    """(P, N) float32 pooling weights of a frame's pooled tokens in raster order."""
    rows, columns = pooling_matrix(geometry.grid[0], geometry.kind), pooling_matrix(geometry.grid[1], geometry.kind)
    return np.kron(rows, columns)


def slot_pooling(geometry: Geometry) -> np.ndarray:
    """(S + 1, N) float32 pooling weights by slot: pooled cells in raster order, a newline slot (zeros) behind each row
    if newlines take part, and a last row of zeros for padding."""
    weights = cell_pooling(geometry).reshape(*geometry.pooled, -1)
    if geometry.newlines:
        weights = np.pad(weights, ((0, 0), (0, 1), (0, 0)))
    weights = weights.reshape(-1, weights.shape[-1])
    return np.pad(weights, ((0, 1), (0, 0))).astype(np.float32)


def slot_cells(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Pooled cell of each slot (a newline has the last of its row) and which slots are newlines; S + 1 entries."""
    width = geometry.pooled[1] + bool(geometry.newlines)
    row, column = np.divmod(np.arange(geometry.pooled[0] * width), width)
    newline = column >= geometry.pooled[1]
    cell = row * geometry.pooled[1] + np.minimum(column, geometry.pooled[1] - 1)
    return np.append(cell, geometry.cells).astype(np.int32), np.append(newline, False)


def kept_slots(
    anchors: Bool[Array, "T N"], frame_mask: Bool[Array, "T"], geometry: Geometry, slots: int
) -> tuple[Bool[Array, "T S"], Int[Array, "T n"]]:
    """Slots whose pooled anchor mask is at least a half, and their indices packed (S on padding)."""
    pooled = pool_tokens(anchors.astype(jnp.float32), geometry.grid, geometry.kind) >= 0.5
    if geometry.newlines:
        grid = pooled.reshape(-1, *geometry.pooled)
        ends = jnp.broadcast_to(frame_mask[:, None, None], (*grid.shape[:2], 1))
        pooled = jnp.concatenate([grid, ends], axis=2).reshape(pooled.shape[0], -1)
    return pooled, first_occurrence(jnp.where(pooled, jnp.cumsum(pooled, axis=1) - 1, slots), slots)


def pooled_weights(
    intra: Intra,
    selection: Selection,
    merge: Merge,
    chosen: Int[Array, "T n"],
    geometry: Geometry,
    anchors_only: bool,
    plan_of: Callable[[Int[Array, ""]], Scaled] | None = None,
) -> Float[Array, "T n N"]:
    """Weights of a frame's tokens in its output slots: merged anchors and untouched neighbours, pooled together.

    `anchors_only` pools the anchors alone (their weighted mean) instead of diluting them by pruned neighbours (Q9).
    `plan_of` makes the plan of a frame where `intra` does not hold it (`transport_each_frame`).
    """
    table = jnp.asarray(slot_pooling(geometry))
    n = geometry.tokens

    def frame(t: Array, slots: Array, ids: Array, anchors: Array, sources: Array, active: Array, near: Array):
        plan = jax.tree.map(lambda leaf: leaf[t], intra.plan) if plan_of is None else plan_of(t)
        own, taken = merge(plan, near, sources, active)
        weights = table[slots]
        if anchors_only:
            weights = jnp.where(anchors, weights, 0.0)
            weights = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-9)
        if ids.shape[0] == n:  # Every token is its own candidate.
            onto, keep = weights, own
        else:
            onto = weights[:, jnp.minimum(ids, n - 1)]
            keep = jnp.ones(n + 1).at[jnp.where(active, ids, n)].set(jnp.where(active, own, 1.0))[:n]
        keep = jnp.where(anchors, keep, 1.0)
        return weights * keep + one_by_one(dot_f32, jnp.where(active, onto, 0.0), taken)

    numbers = jnp.arange(chosen.shape[0], dtype=jnp.int32)
    arrays = numbers, chosen, selection.candidates, intra.anchors, intra.sources, intra.active
    # One after the other on any machine: the many (N, C) arrays of a frame then lie beside the arithmetic.
    return lax.map(lambda args: frame(*args), (*arrays, selection.cosines))


def shares(
    pooled: Float[Array, "T n N"], table: Float[Array, "P N"], used: Bool[Array, "T n"]
) -> Callable[[Int[Array, ""]], Float[Array, "P n"]]:
    """A function of the frame's number to the weights of its pooled tokens in its output slots, 0 in slots without one.

    Args:
      pooled: from `pooled_weights`.
      table: pooling weights of each pooled token.
      used: slots that hold a token of the frame.
    """
    part = table / jnp.maximum(table.sum(0), 1e-9)
    return lambda t: jnp.where(used[t], dot_f32(part, pooled[t]), 0.0)


def frame_tokens(
    weights: Float[Array, "T n N"],
    x: Float[Array, "T N D"],
    newline: Bool[Array, "T n"],
    vector: Float[Array, "D"] | None,
) -> Callable[[Int[Array, ""]], Float[Array, "n D"]]:
    """The D-wide half of the stage: a function of the frame's number to its (n, D) float32 output tokens.

    Args:
      weights: from `pooled_weights`.
      x: tokens before pooling.
      newline: newline slots, which hold `vector`; without a vector there are none.
      vector: the model's newline embedding.
    """

    def tokens(t: Array) -> Array:
        y = one_by_one(lambda weights, x: weigh(weights, x.astype(widened(x.dtype))), weights[t], x[t])
        return y if vector is None else jnp.where(newline[t][:, None], vector, y)

    return tokens
