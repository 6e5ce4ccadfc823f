"""AOT inside frames: anchors on the grid before pooling, transport of the other tokens onto them, pooling.

Everything after the cosines is a matter of weights: a pooled token is a fixed combination of its frame's tokens, so no
D-wide array is formed here (arXiv 2603.01400; reference `llava_arch.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.pool import pool_tokens, pooling_matrix
from jvidprune.ops.select import first_argmax, order_descending, rank_descending, rank_of_order
from jvidprune.ops.similarity import cosine_from_gram, dot_f32, over_frames, squared_norms
from jvidprune.ops.transport import Projection, Rows, Scaled, TransportResult, blend, cost_matrix, normalise_plan
from jvidprune.reducers.aot_ratio import Geometry, Limits


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


class Intra(NamedTuple):
    """The stage for one budget.

    Attributes:
      anchors: (T, N) bool.
      sources: (T, N) bool, the other tokens of real frames.
      active: (T, C) bool, candidates that are anchors.
      plan: factors of the (T, N, C) plans; formed frame by frame in `pooled_weights`.
      result: the solver's diagnostics.
    """

    anchors: Bool[Array, "T N"]
    sources: Bool[Array, "T N"]
    active: Bool[Array, "T C"]
    plan: Scaled
    result: TransportResult


def weigh(weights: Float[Array, "n m"], x: Float[Array, "m D"]) -> Float[Array, "n D"]:
    """Weighted sums of rows at full float32 precision."""
    return jnp.matmul(weights, x, precision=lax.Precision.HIGHEST)


def positions(grid: tuple[int, int]) -> np.ndarray:
    """(h * w, 2) float32 (x, y) of a raster, each axis from 0 to 1."""
    y, x = np.meshgrid(np.linspace(0, 1, grid[0]), np.linspace(0, 1, grid[1]), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


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
        reach = limit.spread + geometry.windows[0] * geometry.windows[1] * limit.local
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


def anchor_mask(selection: Selection, local: Array, spread: Array, frame_mask: Bool[Array, "T"]) -> Bool[Array, "T N"]:
    """Local anchors by window, then the `spread` largest of the deep map among all other tokens.

    The reference sets the deep map to 0 at local anchors; skipping them outright is the same for positive attention and
    stays right for maps that a sink rule has made negative.
    """
    chosen = selection.local_rank < local
    free = ~jnp.take_along_axis(chosen, selection.deep_order, axis=1)
    first = free & (jnp.cumsum(free, axis=1) <= spread)
    return (chosen | jnp.take_along_axis(first, selection.deep_rank, axis=1)) & frame_mask[:, None]


class Problems(NamedTuple):
    """One transport problem a frame: costs, or what was read of them, and marginals.

    Attributes:
      priced: (T, N, C).
      mu: (T, N) of the sources.
      nu: (T, C) of the anchors.
      active: (T, C) bool, candidates that are anchors.
    """

    priced: Float[Array, "T N C"]
    mu: Float[Array, "T N"]
    nu: Float[Array, "T C"]
    active: Bool[Array, "T C"]


def problems(
    selection: Selection,
    x: Float[Array, "T N D"],
    saliency: Float[Array, "T N"],
    anchors: Bool[Array, "T N"],
    sources: Bool[Array, "T N"],
    grid: tuple[int, int],
    cost: Any,
    marginals: Any,
    read: Callable[[Array], Array] = lambda priced: priced,
) -> Problems:
    """The problems of all frames, `read` applied to the costs of each.

    Frame by frame on CPU: XLA would keep every term of the costs for all frames at once.
    """
    n = anchors.shape[1]
    c = selection.candidates.shape[1]
    place = jnp.asarray(positions(grid))
    # The same in every frame and for every ratio.
    apart = jnp.asarray(np.linalg.norm(positions(grid)[:, None] - positions(grid)[None], axis=-1))

    def problem(features, near, ids, salient, anchor, source, time):
        inside = jnp.minimum(ids, n - 1)
        distances = apart if c == n else apart[:, inside]
        rows = Rows(features, place, jnp.full(n, time), salient, source, near, distances)
        columns = Rows(features[inside], place[inside], jnp.full(c, time), salient[inside], anchor[inside] & (ids < n))
        mu, nu = marginals(rows, columns)
        return Problems(read(cost_matrix(cost, rows, columns)), mu, nu, columns.mask)

    times = jnp.arange(anchors.shape[0], dtype=jnp.float32)
    arrays = x, selection.cosines, selection.candidates, saliency, anchors, sources, times
    return over_frames(problem, *arrays)


def transport(
    selection: Selection,
    x: Float[Array, "T N D"],
    saliency: Float[Array, "T N"],
    anchors: Bool[Array, "T N"],
    frame_mask: Bool[Array, "T"],
    grid: tuple[int, int],
    *,
    cost: Any,
    marginals: Any,
    solver: Any,
) -> Intra:
    """Transport of every frame's other tokens onto its anchors. Pruned tokens stay what they are."""
    sources = ~anchors & frame_mask[:, None]
    sides = selection, x, saliency, anchors, sources, grid, cost, marginals
    if hasattr(solver, "on_kernel"):
        kernel, mu, nu, active = problems(*sides, solver.kernel)
        return Intra(anchors, sources, active, *solver.on_kernel(kernel, mu, nu))
    priced, mu, nu, active = problems(*sides)
    result = solver(priced, mu, nu)
    return Intra(anchors, sources, active, Scaled(None, result.plan, None), result)


@dataclasses.dataclass(frozen=True)
class Merge:
    """What an anchor becomes: its transport mixed with the merge into the nearest anchor, as weights.

    (1 - nearest) (x_a + s sum P x_r) / (1 + s sum P) + nearest (mean of itself and the tokens whose most similar anchor
    it is), with the plan P under its projection and the scale s. Called frame by frame, so that of the many (N, C)
    arrays only plans and cosines exist for all frames at once.
    """

    projection: Projection
    nearest: float | Array
    scale: float | Array

    def __call__(
        self,
        plan: Scaled,
        cosines: Float[Array, "N C"],
        sources: Bool[Array, "N"],
        active: Bool[Array, "C"],
    ) -> tuple[Float[Array, "C"], Float[Array, "N C"]]:
        """Weights of a frame's anchors in themselves and of each other token in them."""
        own, taken = blend(normalise_plan(plan.plan(), self.projection), self.scale)
        similar = jnp.where(active, cosines, -jnp.inf)
        member = (first_argmax(similar)[:, None] == jnp.arange(active.shape[0])) & sources[:, None] & active
        members = 1.0 + member.sum(0, dtype=jnp.float32)
        own = self.nearest / members + (1.0 - self.nearest) * own
        taken = self.nearest * member / members + (1.0 - self.nearest) * taken
        return own, jnp.where(sources[:, None] & active, taken, 0.0)


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
    total = pooled.shape[1]
    place = jnp.where(pooled, jnp.minimum(jnp.cumsum(pooled, axis=1) - 1, slots), slots)
    blank = jnp.full(slots + 1, total, jnp.int32)
    ids = jnp.arange(total, dtype=jnp.int32)
    return pooled, jax.vmap(lambda p: blank.at[p].set(ids)[:slots])(place)


def pooled_weights(
    intra: Intra,
    selection: Selection,
    merge: Merge,
    chosen: Int[Array, "T n"],
    geometry: Geometry,
    anchors_only: bool,
) -> Float[Array, "T n N"]:
    """Weights of a frame's tokens in its output slots: merged anchors and untouched neighbours, pooled together.

    `anchors_only` pools the anchors alone (their weighted mean) instead of diluting them by pruned neighbours (Q9).
    """
    table = jnp.asarray(slot_pooling(geometry))
    n = geometry.tokens

    def frame(slots: Array, ids: Array, anchors: Array, sources: Array, active: Array, plan: Scaled, near: Array):
        own, taken = merge(plan, near, sources, active)
        weights = table[slots]
        if anchors_only:
            weights = jnp.where(anchors, weights, 0.0)
            weights = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-9)
        inside = jnp.minimum(ids, n - 1)
        onto = jnp.where(active, weights[:, inside], 0.0)
        keep = jnp.ones(n + 1).at[jnp.where(active, ids, n)].set(jnp.where(active, own, 1.0))[:n]
        return weights * keep + dot_f32(onto, taken)

    arrays = chosen, selection.candidates, intra.anchors, intra.sources, intra.active, intra.plan
    return over_frames(frame, *arrays, selection.cosines)


def shares(
    pooled: Float[Array, "T n N"], table: Float[Array, "P N"], used: Bool[Array, "T n"]
) -> Float[Array, "T P n"]:
    """Weight of every pooled token of a frame in its output slots, 0 in slots that hold none.

    Args:
      pooled: from `pooled_weights`.
      table: pooling weights of each pooled token.
      used: slots that hold a token of the frame.
    """
    part = table / jnp.maximum(table.sum(0), 1e-9)
    weights = jnp.einsum("tsj,pj->tps", pooled, part, precision=lax.Precision.HIGHEST)
    return jnp.where(used[:, None], weights, 0.0)


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
        y = weigh(weights[t], x[t].astype(jnp.float32))
        return y if vector is None else jnp.where(newline[t][:, None], vector, y)

    return tokens
