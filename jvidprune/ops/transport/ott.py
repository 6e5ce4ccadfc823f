"""ott-jax behind the same interface; ott is imported when a solver is called."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Iterations, NotNegative, Range, Ratio, Temperature, check_fields, pytree
from jvidprune.ops.transport.gradients import held_still
from jvidprune.ops.transport.solvers import (
    HELD,
    Exact,
    TransportResult,
    duality_gap,
    kl_weight,
    transport_result,
    underflowed,
    warn_eagerly,
)


def each_problem(solve: Callable, cost: Array, mu: Array, nu: Array, *more: Array) -> Any:
    """Runs a solver of one problem over all leading axes; `more` arrays of a problem have two axes behind these."""
    batch = cost.shape[:-2]
    mu = jnp.broadcast_to(mu, cost.shape[:-1]).astype(cost.dtype)
    nu = jnp.broadcast_to(nu, (*batch, cost.shape[-1])).astype(cost.dtype)
    more = tuple(jnp.broadcast_to(array, (*batch, *array.shape[-2:])).astype(cost.dtype) for array in more)
    for _ in batch:
        solve = jax.vmap(solve)
    return solve(cost, mu, nu, *more)


def trace_of_mass(mass: Array, other: Array) -> Array:
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
      anneal, decay: epsilon begins at `anneal` times its value and falls by the factor `decay` an update, never below
        it; 1 for none. Small epsilons then need fewer updates; potentials and plan are those of the last epsilon.
        Static.
      momentum: weight of the new potential in an update, 1 for plain updates; between 1 and 2 it goes beyond it, which
        speeds up slow problems and upsets fast ones. Static.
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
    anneal: Annotated[float, Range(1, 1e6)] = dataclasses.field(default=1.0, metadata=_STATIC)
    decay: Ratio = dataclasses.field(default=0.9, metadata=_STATIC)
    momentum: Annotated[float, Range(0, 2, above=True, below=True)] = dataclasses.field(default=1.0, metadata=_STATIC)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.anneal > 1 and self.decay == 1:
            raise JvidpruneError(
                f"OttSinkhorn's decay must be below 1 to anneal epsilon from {self.anneal:g} times it."
            )

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """Solves every problem of the leading axes.

        Warns:
          JvidpruneWarning: outside of jit, a kernel that underflowed so far that the marginals do not hold.
        """
        return warn_eagerly(each_problem(self._one, cost, mu, nu), "OttSinkhorn", self.epsilon)

    def _one(self, cost: Array, mu: Array, nu: Array) -> TransportResult:
        from ott.geometry import epsilon_scheduler, geometry

        epsilon = held_still(self.epsilon)
        # All that depends on the temperature is cost / epsilon: its derivative goes by way of the costs, so that what
        # padding has is taken away before it enters a sum.
        cost, mu, nu = _clean(cost * (epsilon / self.epsilon), mu, nu)
        falling = epsilon_scheduler.Epsilon(epsilon, self.anneal, self.decay) if self.anneal > 1 else epsilon
        masses, (mu, nu) = (mu, nu), (trace_of_mass(mu, nu), trace_of_mass(nu, mu))
        if self.exact == "anchors":
            geom = geometry.Geometry(cost_matrix=cost.T, epsilon=falling)
            output = self._solve(geom, nu, mu, self.tau_anchors, self.tau_sources, self._begin(*masses[::-1]))
            plan = output.matrix.T
        else:
            geom = geometry.Geometry(cost_matrix=cost, epsilon=falling)
            output = self._solve(geom, mu, nu, self.tau_sources, self.tau_anchors, self._begin(*masses))
            plan = output.matrix
        mu, nu = masses
        plan = jnp.where((mu[:, None] > 0) & (nu[None] > 0), plan, 0.0)
        steps = output.n_iters if self.iterations is None else self.iterations
        lost = 0.0 if self.lse_mode else underflowed(jnp.exp(-cost / self.epsilon), mu, nu)
        return self._result(plan, mu, nu, steps, output)._replace(underflow=jnp.asarray(lost, jnp.float32))

    def _result(self, plan: Array, mu: Array, nu: Array, steps: Any, output: Any) -> TransportResult:
        stopped = output.converged if self.iterations is None else True
        f, g = (output.g, output.f) if self.exact == "anchors" else (output.f, output.g)
        if min(self.tau_sources, self.tau_anchors) < 1.0:
            # Relaxed marginals are not to hold; ott then judges by how far its potentials still move.
            taus = (None if tau == 1.0 else tau for tau in (self.tau_sources, self.tau_anchors))
            sources, anchors = (kl_weight(held_still(self.epsilon), tau) for tau in taus)
            gap = duality_gap(plan, mu, nu, f, g, (sources, anchors))
            result = transport_result(plan, mu, nu, steps, gap=gap)
            return result._replace(converged=jnp.isfinite(plan).all((-2, -1)) & stopped)
        # ott measures the same error on scalings: a plan may be off by rounding.
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
        from ott.solvers.linear import acceleration, implicit_differentiation, sinkhorn

        # The scan length is max_iterations // inner_iterations: with inner > max nothing would run at all.
        # Derivatives through the iterations come out wrong in ott with stretches of one.
        inner = self.iterations if self.unrolled else 1
        fixed = {"threshold": -1.0, "inner_iterations": inner, "min_iterations": self.iterations}
        fixed["max_iterations"] = self.iterations
        free = {"threshold": self.threshold, "inner_iterations": self.inner_iterations}
        free["max_iterations"] = self.max_iterations
        gradient = None if self.unrolled else implicit_differentiation.ImplicitDiff()
        options: dict[str, Any] = free if self.iterations is None else fixed
        options["momentum"] = acceleration.Momentum(value=self.momentum)
        solver = sinkhorn.Sinkhorn(lse_mode=self.lse_mode, implicit_diff=gradient, **options)
        return solver(linear_problem.LinearProblem(geom, a=a, b=b, tau_a=tau_a, tau_b=tau_b), init=start)
