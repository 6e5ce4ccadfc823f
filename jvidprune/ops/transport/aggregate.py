"""Transport of a frame's pruned tokens onto its anchors, with every part exchangeable."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jvidprune.ops.transport.cost import Rows, TokenCost, cost_matrix, is_geometry
from jvidprune.ops.transport.marginals import Uniform
from jvidprune.ops.transport.projection import Projection, blend, normalise_plan
from jvidprune.ops.transport.solvers import Sinkhorn, TransportResult

_COST, _MARGINALS, _SOLVER = TokenCost(), Uniform(), Sinkhorn()


class Aggregated(NamedTuple):
    """Tokens after transport.

    Attributes:
      features: (N, D) anchors after taking in their sources, all other tokens unchanged; input dtype.
      result: plan (N, N) and diagnostics; rows of anchors and columns of other tokens are zero.
      weights: (N, N) what each anchor took of each source, the plan after its projection.
    """

    features: Float[Array, "N D"]
    result: TransportResult
    weights: Float[Array, "N N"]


def aggregate(
    features: Float[Array, "N D"],
    anchors: Bool[Array, "N"],
    *,
    cost: Any = _COST,
    marginals: Any = _MARGINALS,
    solver: Any = _SOLVER,
    projection: Projection = "mass",
    position: Float[Array, "N 2"] | None = None,
    time: Float[Array, "N"] | None = None,
    saliency: Float[Array, "N"] | None = None,
    mask: Bool[Array, "N"] | None = None,
    scale: float | Array = 1.0,
) -> Aggregated:
    """Moves the tokens that are no anchors onto the anchors: x_a becomes (x_a + s sum_r w_ra x_r) / (1 + s sum_r w_ra).

    The defaults are AOT's transport inside frames (arXiv 2603.01400), without its nearest-anchor share. Pure; vmap it
    over frames, masks, or the float fields of cost, marginals and solver.

    Args:
      features: (N, D) tokens.
      anchors: (N,) bool, at least one True.
      cost: `(x, y) -> (R, A)`, an ott `CostFn`, or a geometry of all N x N pairs.
      marginals: `(x, y) -> (mu, nu)`.
      solver: `(cost, mu, nu) -> TransportResult`.
      projection: see `normalise_plan`.
      position: (N, 2) as (x, y) in [0, 1], 0 by default.
      time: (N,) frame numbers, 0 by default.
      saliency: (N,), 1 by default.
      mask: (N,) bool, False on padding.
      scale: s above.
    """
    n = features.shape[0]
    known = jnp.ones(n, bool) if mask is None else mask
    x = Rows(
        features,
        jnp.zeros((n, 2)) if position is None else position,
        jnp.zeros(n) if time is None else time,
        jnp.ones(n) if saliency is None else saliency,
        known & ~anchors,
    )
    y = x._replace(mask=known & anchors)
    mu, nu = marginals(x, y)
    if is_geometry(cost) and hasattr(solver, "on_geometry"):
        result = solver.on_geometry(cost, mu, nu)
    else:
        result = solver(cost_matrix(cost, x, y), mu, nu)
    weights = normalise_plan(result.plan, projection)
    own, taken = blend(weights, scale)
    x32 = features.astype(jnp.float32)
    moved = own[:, None] * x32 + jnp.einsum("ra,rd->ad", taken, x32, precision=lax.Precision.HIGHEST)
    return Aggregated(jnp.where(y.mask[:, None], moved, x32).astype(features.dtype), result, weights)
