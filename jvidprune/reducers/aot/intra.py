"""AOT's step 2: inside every frame the pruned tokens are transported onto its anchors (arXiv 2603.01400).

Everything after the cosines is a matter of weights: no D-wide array is formed here.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jvidprune.ops.layout import one_by_one
from jvidprune.ops.select import first_argmax
from jvidprune.ops.similarity import over_frames
from jvidprune.ops.transport import Projection, Rows, Scaled, Transport, TransportResult, blend, normalise_plan
from jvidprune.reducers.aot.types import AOTShared


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


def positions(grid: tuple[int, int]) -> np.ndarray:
    """(h * w, 2) float32 (x, y) of a raster, each axis from 0 to 1."""
    y, x = np.meshgrid(np.linspace(0, 1, grid[0]), np.linspace(0, 1, grid[1]), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


class Problems(NamedTuple):
    """One transport problem a frame: costs, or what was read of them, and marginals.

    Attributes:
      priced: (T, N, C).
      mu: (T, N) of the sources.
      nu: (T, C) of the anchors.
      active: (T, C) bool, candidates that are anchors.
      places: (T, N, 2) and (T, C, 2) of both, for a solver that compares places; else empty.
    """

    priced: Float[Array, "T N C"]
    mu: Float[Array, "T N"]
    nu: Float[Array, "T C"]
    active: Bool[Array, "T C"]
    places: tuple


def pricing(
    shared: AOTShared, anchors: Bool[Array, "T N"], sources: Bool[Array, "T N"], parts: Transport
) -> tuple[Callable[..., Problems], tuple]:
    """What makes a frame's problem, and the arrays of all frames that it takes its arguments from."""
    n, grid, selection = anchors.shape[1], shared.geometry.grid, shared.selection
    c = selection.candidates.shape[1]
    place = jnp.asarray(positions(grid))
    # The same in every frame and for every ratio.
    apart = jnp.asarray(np.linalg.norm(positions(grid)[:, None] - positions(grid)[None], axis=-1))

    def problem(features, near, ids, salient, anchor, source, time):
        rows = Rows(features, place, jnp.full(n, time), salient, source, near, apart)
        if c == n:  # Every token is its own candidate.
            columns = rows._replace(mask=anchor, cosines=None, distances=None)
        else:
            inside, times = jnp.minimum(ids, n - 1), jnp.full(c, time)
            rows = rows._replace(distances=apart[:, inside])
            columns = Rows(features[inside], place[inside], times, salient[inside], anchor[inside] & (ids < n))
        priced, mu, nu = parts.problem(rows, columns)
        return Problems(priced, mu, nu, columns.mask, parts.places(rows, columns))

    times = jnp.arange(anchors.shape[0], dtype=jnp.float32)
    arrays = shared.x, selection.cosines, selection.candidates, shared.saliency, anchors, sources, times
    return problem, arrays


def problems(
    shared: AOTShared,
    anchors: Bool[Array, "T N"],
    sources: Bool[Array, "T N"],
    parts: Transport,
    read: Callable[[Array], Array] = lambda priced: priced,
) -> Problems:
    """The problems of all frames, `read` applied to the costs of each.

    Frame by frame on CPU: XLA would keep every term of the costs for all frames at once.
    """
    problem, arrays = pricing(shared, anchors, sources, parts)

    def one(*args: Array) -> Problems:
        found = problem(*args)
        return found._replace(priced=read(found.priced))

    return over_frames(one, *arrays)


def transport_frames(shared: AOTShared, anchors: Bool[Array, "T N"], parts: Transport) -> Intra:
    """Transport of every frame's other tokens onto its anchors. Pruned tokens stay what they are."""
    sources, solver = ~anchors & shared.frame_mask[:, None], parts.solver
    if hasattr(solver, "on_kernel"):
        kernel, mu, nu, active, _ = problems(shared, anchors, sources, parts, solver.kernel)
        return Intra(anchors, sources, active, *solver.on_kernel(kernel, mu, nu))
    priced, mu, nu, active, places = problems(shared, anchors, sources, parts)
    result = solver(priced, mu, nu, *places)
    return Intra(anchors, sources, active, Scaled(None, result.plan, None), result)


def transport_each_frame(
    shared: AOTShared, anchors: Bool[Array, "T N"], parts: Transport
) -> tuple[Intra, Callable[[Array], Scaled]]:
    """`transport_frames` without an array of all plans, and what makes the plan of a frame of a given number.

    For accelerators, where many ratios side by side read the cosines of a frame together. Solvers that need all costs
    at once get them.
    """
    solver = parts.solver
    if not hasattr(solver, "on_kernels"):
        whole = transport_frames(shared, anchors, parts)
        return whole, lambda t: jax.tree.map(lambda leaf: leaf[t], whole.plan)
    sources = ~anchors & shared.frame_mask[:, None]
    problem, arrays = pricing(shared, anchors, sources, parts)

    def kernel(*args: Array) -> Array:
        return solver.kernel(problem(*args).priced)

    def masses(*args: Array) -> tuple:
        return problem(*args)[1:4]

    mu, nu, active = jax.vmap(masses)(*arrays)
    left, right, result = solver.on_kernels(kernel, arrays, mu, nu)
    nothing = Scaled(None, jnp.zeros((anchors.shape[0], 0, 0)), None)

    def of_frame(t: Array) -> Scaled:
        return Scaled(left[t], kernel(*(array[t] for array in arrays)), right[t])

    return Intra(anchors, sources, active, nothing, result), of_frame


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
        nearest = one_by_one(lambda active, near: first_argmax(jnp.where(active, near, -jnp.inf)), active, cosines)
        member = (nearest[:, None] == jnp.arange(active.shape[0])) & sources[:, None] & active
        members = 1.0 + member.sum(0, dtype=jnp.float32)
        own = self.nearest / members + (1.0 - self.nearest) * own
        taken = self.nearest * member / members + (1.0 - self.nearest) * taken
        return own, jnp.where(sources[:, None] & active, taken, 0.0)
