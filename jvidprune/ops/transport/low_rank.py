"""Transport through few latent anchors: plans that are products of thin factors, by ott-jax."""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jvidprune.fields import Count, Iterations, NotNegative, check_fields, pytree
from jvidprune.ops.branch import on_cpu
from jvidprune.ops.transport.gradients import held_still, without_derivatives
from jvidprune.ops.transport.ott import each_problem, trace_of_mass
from jvidprune.ops.transport.solvers import TransportResult, transport_result

_STATIC = {"static": True}


@pytree
@dataclasses.dataclass(frozen=True)
class LowRank:
    """`ott.solvers.linear.sinkhorn_lr.LRSinkhorn`: the plan is Q diag(1 / g) R' with `rank` latent anchors of masses g.

    Scetbon et al. (2021, arXiv 2103.04737): the least cost of all plans of that rank, by mirror descent on the three
    factors. The problem is not convex, has no potentials and so no `gap`, and is some hundred times slower than
    `Sinkhorn` on the tokens of a frame; what it gives is the bottleneck: sources that share a latent anchor are spread
    alike. Rows of a frame's plan onto itself are a soft clustering. There are no derivatives: `plan_gradient="through"`
    and `jax.grad` are refused.

    Between the 729 tokens of each of 128 frames and their anchors it works, beside costs and plans, on factors of
    (729 + anchors) `rank` numbers a frame; on CPU frame after frame, so that one set of them exists and none waits for
    the slowest.

    Attributes:
      rank: most that the plan may have; more than there are tokens is no harm, and finds better plans; static.
      epsilon: entropic term on the factors, 0 for none, traced. Steps are scaled by the largest slope, which with an
        entropy is that of padding: they are shorter then.
      threshold: of ott's stop, on how far the factors still move, traced.
      iterations: cap; static.
    """

    rank: Count = dataclasses.field(default=8, metadata=_STATIC)
    epsilon: NotNegative = 0.0
    threshold: NotNegative = 1e-3
    iterations: Iterations = dataclasses.field(default=200, metadata=_STATIC)

    differentiable = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def updates(self) -> int:
        """Products of the costs with a vector for each side: one an iteration with each column of a factor."""
        return self.iterations * self.rank

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """Solves every problem of the leading axes."""
        given = cost, mu, nu
        still, cost, mu, nu = held_still((self, *given))

        def one(cost: Array, mu: Array, nu: Array) -> TransportResult:
            return still._one(cost, mu, nu)

        if cost.ndim == 3 and on_cpu():
            masses = jnp.broadcast_to(mu, cost.shape[:-1]), jnp.broadcast_to(nu, (len(cost), cost.shape[-1]))
            result = lax.map(lambda args: one(*args), (cost, *masses))
        else:
            result = each_problem(one, cost, mu, nu)
        return without_derivatives("LowRank", result, (given, self.epsilon))

    def _one(self, cost: Array, mu: Array, nu: Array) -> TransportResult:
        from ott.geometry import geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn_lr

        rank, inner = self.rank, min(10, self.iterations)
        solver = sinkhorn_lr.LRSinkhorn(
            rank=rank,
            epsilon=self.epsilon,
            threshold=self.threshold,
            max_iterations=self.iterations,
            inner_iterations=inner,
        )
        # ott takes logarithms of the masses, and its steps are scaled by the largest cost: those of padding are none.
        pairs = (mu[:, None] > 0) & (nu[None] > 0)
        geom = geometry.Geometry(cost_matrix=jnp.where(pairs, cost, 0.0))
        a, b = trace_of_mass(mu, nu), trace_of_mass(nu, mu)
        begin = _factor(a, mu > 0, rank, 0), _factor(b, nu > 0, rank, 1), jnp.full(rank, 1.0 / rank, cost.dtype)
        output = solver(linear_problem.LinearProblem(geom, a=a, b=b), init=begin)
        plan = jnp.where(pairs, output.matrix, 0.0)
        steps = jnp.sum(output.errors != -1) * inner
        return transport_result(plan, mu, nu, steps, output.converged | ~pairs.any())


def _factor(mass: Array, there: Array, rank: int, side: int) -> Float[Array, "n r"]:
    """Where a factor begins: every token spread over all latent anchors, each a little differently.

    ott's own start differs from the product of the masses by half of the smallest mass; where padding has next to none
    the factors then begin at that product, a stationary point, and stay there. Shares drawn from the number of the
    latent anchor and that of the token among those with mass are the same wherever padding stands.
    """
    token, anchor = jnp.cumsum(there, dtype=jnp.uint32), jnp.arange(rank, dtype=jnp.uint32)
    mixed = (2 * token[:, None] + side - 1) * jnp.uint32(2654435761) ^ (anchor + 1) * jnp.uint32(2246822519)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(3266489917)
    share = 0.5 + (mixed >> 8).astype(mass.dtype) / 2**24
    return mass[:, None] * share / share.sum(1, keepdims=True)
