"""ott-jax behind the same interface; ott is imported when a solver is called."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvidprune.fields import Count, Iterations, NotNegative, Ratio, Temperature, check_fields, pytree
from jvidprune.ops.transport.gradients import held_still
from jvidprune.ops.transport.solvers import (
    HELD,
    Exact,
    TransportResult,
    duality_gap,
    transport_result,
    underflowed,
    warn_eagerly,
)


def _each(solve: Callable, cost: Array, mu: Array, nu: Array) -> Any:
    """Runs a solver of one problem over all leading axes."""
    batch = cost.shape[:-2]
    mu = jnp.broadcast_to(mu, cost.shape[:-1]).astype(cost.dtype)
    nu = jnp.broadcast_to(nu, (*batch, cost.shape[-1])).astype(cost.dtype)
    for _ in batch:
        solve = jax.vmap(solve)
    return solve(cost, mu, nu)


def _trace(mass: Array, other: Array) -> Array:
    """The same with a trace of mass on padding, below what float32 adds to 1: ott's implicit derivatives divide by it.

    Where one of the sides has none at all, both have the same trace.
    """
    both = (mass.sum() > 0) & (other.sum() > 0)
    return jnp.where(both & (mass > 0), mass, 1e-12 / mass.shape[0])


@jax.custom_vjp
def _clean(cost: Array, mu: Array, nu: Array) -> tuple[Array, Array, Array]:
    """The same, without derivatives on padding."""
    return cost, mu, nu


def _clean_forward(cost: Array, mu: Array, nu: Array) -> tuple[tuple, tuple]:
    return (cost, mu, nu), (mu > 0, nu > 0)


def _clean_backward(there: tuple, wanted: tuple) -> tuple:
    rows, columns = there
    masks = rows[:, None] & columns[None], rows, columns
    return tuple(jnp.where(mask, part, 0.0) for mask, part in zip(masks, wanted, strict=True))


_clean.defvjp(_clean_forward, _clean_backward)

_STATIC = {"static": True}


@pytree
@dataclasses.dataclass(frozen=True)
class OttSinkhorn:
    """`ott.solvers.linear.sinkhorn.Sinkhorn` on a cost matrix.

    ott updates its first axis last; `exact="anchors"` hands it the transposed problem. `OttSinkhorn(0.1, n)` gives
    AOT's plan after n updates (4e-6 relative), `OttSinkhorn(0.01, 200, exact="sources")` OTT-Vid's (2.5e-7 absolute).

    AOT's stop cannot be expressed: ott ends on the error of a marginal and takes no criterion of the caller's, while
    AOT ends on the mean change of the scalings, over all problems of a batch, which vmapped solves do not see. Its plan
    needs the number of updates at which `Sinkhorn` stops.

    Attributes:
      epsilon: temperature, traced.
      iterations: exactly so many updates, or None for ott's own stop; static.
      threshold: of ott's stop, the L1 error of the marginal; static.
      max_iterations, inner_iterations: cap of ott's stop and how often it is tested; static.
      lse_mode: log domain; False underflows where cost / epsilon exceeds 87; static.
      tau_sources, tau_anchors: below 1 relax a marginal; static, since ott compares them in Python. `Sinkhorn` traces
        them.
      unrolled: differentiate through the iterations instead of implicitly; static.
      exact: side updated last; static.
    """

    epsilon: Temperature = 0.1
    iterations: Iterations | None = dataclasses.field(default=None, metadata=_STATIC)
    threshold: NotNegative = dataclasses.field(default=1e-3, metadata=_STATIC)
    max_iterations: Iterations = dataclasses.field(default=2000, metadata=_STATIC)
    inner_iterations: Iterations = dataclasses.field(default=10, metadata=_STATIC)
    lse_mode: bool = dataclasses.field(default=True, metadata=_STATIC)
    tau_sources: Ratio = dataclasses.field(default=1.0, metadata=_STATIC)
    tau_anchors: Ratio = dataclasses.field(default=1.0, metadata=_STATIC)
    unrolled: bool = dataclasses.field(default=False, metadata=_STATIC)
    exact: Exact = dataclasses.field(default="anchors", metadata=_STATIC)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """Solves every problem of the leading axes.

        Warns:
          JvidpruneWarning: outside of jit, a kernel that underflowed so far that the marginals do not hold.
        """
        return warn_eagerly(_each(self._one, cost, mu, nu), "OttSinkhorn", self.epsilon)

    def _one(self, cost: Array, mu: Array, nu: Array) -> TransportResult:
        from ott.geometry import geometry

        epsilon = held_still(self.epsilon)
        # All that depends on the temperature is cost / epsilon: its derivative goes by way of the costs, so that what
        # padding has is taken away before it enters a sum.
        cost, mu, nu = _clean(cost * (epsilon / self.epsilon), mu, nu)
        masses, (mu, nu) = (mu, nu), (_trace(mu, nu), _trace(nu, mu))
        if self.exact == "anchors":
            geom = geometry.Geometry(cost_matrix=cost.T, epsilon=epsilon)
            output = self._solve(geom, nu, mu, self.tau_anchors, self.tau_sources, self._begin(*masses[::-1]))
            plan = output.matrix.T
        else:
            geom = geometry.Geometry(cost_matrix=cost, epsilon=epsilon)
            output = self._solve(geom, mu, nu, self.tau_sources, self.tau_anchors, self._begin(*masses))
            plan = output.matrix
        mu, nu = masses
        plan = jnp.where((mu[:, None] > 0) & (nu[None] > 0), plan, 0.0)
        steps = output.n_iters if self.iterations is None else self.iterations
        lost = 0.0 if self.lse_mode else underflowed(jnp.exp(-cost / self.epsilon), mu, nu)
        return self._result(plan, mu, nu, steps, output)._replace(underflow=jnp.asarray(lost, jnp.float32))

    def _result(self, plan: Array, mu: Array, nu: Array, steps: Any, output: Any) -> TransportResult:
        stopped = output.converged if self.iterations is None else True
        if min(self.tau_sources, self.tau_anchors) < 1.0:
            # Relaxed marginals are not to hold; ott then judges by how far its potentials still move.
            result = transport_result(plan, mu, nu, steps)
            return result._replace(converged=jnp.isfinite(plan).all((-2, -1)) & stopped)
        # ott measures the same error on scalings: a plan may be off by rounding.
        f, g = (output.g, output.f) if self.exact == "anchors" else (output.f, output.g)
        gap, tolerance = duality_gap(plan, mu, nu, f, g), max(HELD, 1.01 * self.threshold)
        return transport_result(plan, mu, nu, steps, stopped, tolerance=tolerance, gap=gap)

    def _begin(self, a: Array, b: Array) -> tuple[Array, Array]:
        """ott's own start, potentials of 0 or scalings of 1, but next to nothing on padding."""

        def side(mass: Array) -> Array:
            potential = jnp.where(mass > 0, 0.0, -60.0)
            return held_still(self.epsilon) * potential if self.lse_mode else jnp.exp(potential)

        return side(a), side(b)

    def _solve(self, geom: Any, a: Array, b: Array, tau_a: float, tau_b: float, start: tuple) -> Any:
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import implicit_differentiation, sinkhorn

        # The scan length is max_iterations // inner_iterations: with inner > max nothing would run at all.
        # Derivatives through the iterations come out wrong in ott with stretches of one.
        inner = self.iterations if self.unrolled else 1
        fixed = {"threshold": -1.0, "inner_iterations": inner, "min_iterations": self.iterations}
        fixed["max_iterations"] = self.iterations
        free = {"threshold": self.threshold, "inner_iterations": self.inner_iterations}
        free["max_iterations"] = self.max_iterations
        gradient = None if self.unrolled else implicit_differentiation.ImplicitDiff()
        options: dict[str, Any] = free if self.iterations is None else fixed
        solver = sinkhorn.Sinkhorn(lse_mode=self.lse_mode, implicit_diff=gradient, **options)
        return solver(linear_problem.LinearProblem(geom, a=a, b=b, tau_a=tau_a, tau_b=tau_b), init=start)


@pytree
@dataclasses.dataclass(frozen=True)
class LowRank:
    """`ott.solvers.linear.sinkhorn_lr.LRSinkhorn`: transport through `rank` latent anchors, some 200 times slower.

    Attributes:
      rank: at most the smaller number of tokens; static.
      epsilon: entropic term on the factors, 0 for none; static.
      iterations: cap; static.
    """

    rank: Count = dataclasses.field(default=8, metadata=_STATIC)
    epsilon: NotNegative = dataclasses.field(default=0.0, metadata=_STATIC)
    iterations: Iterations = dataclasses.field(default=200, metadata=_STATIC)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """Solves every problem of the leading axes; all rows need mass, since the factors take logarithms of it."""
        return _each(self._one, cost, mu, nu)

    def _one(self, cost: Array, mu: Array, nu: Array) -> TransportResult:
        from ott.geometry import geometry
        from ott.initializers.linear import initializers_lr
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn_lr

        solver = sinkhorn_lr.LRSinkhorn(
            rank=self.rank,
            epsilon=self.epsilon,
            max_iterations=self.iterations,
            inner_iterations=10,
            initializer=initializers_lr.Rank2Initializer(self.rank),
        )
        # ott turns marginals into logarithms: a trace of mass keeps padding finite.
        a, b = jnp.maximum(mu, 1e-12), jnp.maximum(nu, 1e-12)
        problem = linear_problem.LinearProblem(geometry.Geometry(cost_matrix=cost), a=a, b=b)
        output = solver(problem)
        plan = jnp.where((mu[:, None] > 0) & (nu[None] > 0), output.matrix, 0.0)
        steps = jnp.sum(output.errors != -1) * 10
        return transport_result(plan, mu, nu, steps, output.converged)
