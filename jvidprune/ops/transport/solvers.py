"""What a solver returns and how it is judged, and Sinkhorn on scalings: frozen settings whose floats may be traced."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneWarning
from jvidprune.fields import Iterations, NotNegative, Range, Ratio, Temperature, check_fields, pytree
from jvidprune.ops.branch import on_cpu
from jvidprune.ops.transport.gradients import held_still, ratio, solved_by

Exact = Literal["anchors", "sources"]

HELD = 1e-3
"""Largest sum of absolute deviations from a marginal, as a share of the mass, at which it holds."""

_SMALLEST = 2.0**-126
"""Smaller kernel entries are 0 in float32."""


class TransportResult(NamedTuple):
    """A plan and how well it was solved.

    Attributes:
      plan: (..., R, A) float32 mass from each source to each anchor.
      iterations: (...) int32.
      row_error: (...) sum over sources of |mass sent - marginal|.
      column_error: (...) sum over anchors of |mass received - marginal|.
      converged: (...) bool, the marginals hold: both errors are at most `HELD` of the mass. Of a relaxed side that is
        the equation of its own fixed point. That a stop has fired is not enough: AOT's does long before. True where
        there is nothing to move.
      unmatched: (..., R) mass of each source that reached no anchor.
      underflow: (...) share of the pairs with mass on both sides whose exp(-cost / epsilon) is 0 in float32; nothing
        can move between these. 0 in the log domain.
      gap: (...) entropic cost of the plan, sum plan * cost + epsilon plan (log plan - 1) and the penalties of relaxed
        sides, less its dual value. 0 at the solution; as marginals that are to hold may be off it has either sign. NaN
        where the solver has no potentials (`LowRank`).
    """

    plan: Float[Array, "... R A"]
    iterations: Int[Array, "..."]
    row_error: Float[Array, "..."]
    column_error: Float[Array, "..."]
    converged: Bool[Array, "..."]
    unmatched: Float[Array, "... R"]
    underflow: Float[Array, "..."] | float = 0.0
    gap: Float[Array, "..."] | float = float("nan")

    def warning(self, solver: str = "the solver", epsilon: Any = None) -> str | None:
        """`underflow_warning` of this result."""
        return underflow_warning(solver, self.underflow, self.converged, epsilon)


def underflow_warning(solver: str, underflow: Any, converged: Any, epsilon: Any = None) -> str | None:
    """What to do about kernels that underflowed so far that the marginals do not hold; None if none did.

    Args:
      solver: what solved, begins the sentence.
      underflow, converged: as in `TransportResult`, on the host.
      epsilon: its temperature, if it is known.
    """
    failed = ~np.asarray(converged)
    under = np.broadcast_to(np.asarray(underflow), failed.shape)
    hurt = under[failed & (under > 0)]
    if hurt.size == 0:
        return None
    at = "" if epsilon is None else f" at epsilon {float(epsilon):g}"
    of = "" if failed.size == 1 else f" in {hurt.size} of {failed.size} problems"
    return (
        f"{solver} did not meet its marginals{of}: exp(-cost / epsilon) is 0 in float32 for up to {hurt.max():.0%} of "
        f"the pairs{at}, and nothing can move between these; take a larger epsilon, or a solver in the log domain "
        "(LogSinkhorn, FixedSinkhorn with domain='log', OttSinkhorn with lse_mode=True)."
    )


class Scaled(NamedTuple):
    """A plan as left * kernel * right; without the two it is the kernel itself.

    Attributes:
      left: (..., R) float32 or None.
      kernel: (..., R, A) float32.
      right: (..., A) float32 or None.
    """

    left: Float[Array, "... R"] | None
    kernel: Float[Array, "... R A"]
    right: Float[Array, "... A"] | None

    def plan(self) -> Float[Array, "... R A"]:
        """The product."""
        if self.left is None or self.right is None:
            return self.kernel
        return self.left[..., :, None] * self.kernel * self.right[..., None, :]


def iterations_of(solver: Any) -> int:
    """The most updates that a solver, or the one that it wraps, makes; 0 if it does not say.

    One that makes several products with the costs in an iteration says how many there are in all as `updates`.
    """
    said = next((n for name in ("updates", "iterations", "max_iterations") if (n := getattr(solver, name, None))), 0)
    inner = getattr(solver, "solver", None)
    return said if said or inner is None else iterations_of(inner)


def differentiable(solver: Any) -> bool:
    """Whether derivatives go through a solver; those that do not say otherwise are taken to have them."""
    return bool(getattr(solver, "differentiable", True))


def reads_places(solver: Any) -> bool:
    """Whether a solver is called with the places of both sides behind the masses."""
    return bool(getattr(solver, "reads_places", False))


class Solver(Protocol):
    """Turns costs and marginals into a plan; leading axes are independent problems.

    What a class says besides: `differentiable = False` where derivatives do not go through it, `reads_places = True`
    where it is to be called with the places of both sides too.
    """

    def __call__(self, cost: Array, mu: Array, nu: Array) -> TransportResult:
        """Solves (..., R, A) costs with marginals (..., R) and (..., A), zeros on padding."""
        ...


def transport_result(
    plan: Array,
    mu: Array,
    nu: Array,
    iterations: Any,
    converged: Any = True,
    *,
    tolerance: float = HELD,
    underflow: Any = 0.0,
    gap: Any = float("nan"),
) -> TransportResult:
    """A plan with its marginal errors.

    Args:
      plan, mu, nu: (..., R, A), (..., R) and (..., A).
      iterations: of the solver.
      converged: a condition of the solver's own on top of the marginals.
      tolerance: of the marginals, as a share of the mass.
      underflow, gap: see `TransportResult`.
    """
    sent, received = plan.sum(-1), plan.sum(-2)
    unmatched = jnp.maximum(mu - sent, 0.0)
    sent, received, mu, nu = lax.stop_gradient((sent, received, mu, nu))
    row_error = jnp.abs(sent - mu).sum(-1)
    column_error = jnp.abs(received - nu).sum(-1)
    shape = row_error.shape
    steps = jnp.broadcast_to(jnp.asarray(iterations, jnp.int32), shape)
    held = hold(row_error, column_error, mu, nu, tolerance) & converged
    under = jnp.broadcast_to(jnp.asarray(underflow, jnp.float32), shape)
    gap = jnp.broadcast_to(jnp.asarray(gap, row_error.dtype), shape)
    return TransportResult(plan, steps, row_error, column_error, held, unmatched, under, gap)


def duality_gap(
    plan: Array, mu: Array, nu: Array, f: Array, g: Array, relaxed: tuple[Any, Any] = (None, None)
) -> Float[Array, "..."]:
    """How far the entropic cost of a plan is above its dual value, see `TransportResult.gap`.

    The plan is exp((f + g - cost) / epsilon), so that all but what happens at the marginals cancels: of a side that is
    to hold f times what it is off by, of a side with a KL penalty of weight rho the penalty of what moves against
    marginal * exp(-f / rho), where it would be at the solution.

    Args:
      plan, mu, nu: (..., R, A), (..., R) and (..., A).
      f, g: (..., R) and (..., A) potentials, in units of the cost; anything on padding.
      relaxed: KL weight of the sources and of the anchors, None (or infinity) for a marginal that is to hold.
    """
    plan, mu, nu, f, g, relaxed = held_still((plan, mu, nu, f, g, relaxed))

    def side(axis: int, mass: Array, potential: Array, weight: Any) -> Array:
        potential = jnp.where(mass > 0, potential, 0.0)
        moved = plan.sum(axis)
        exact = potential * (moved - mass)
        if weight is None:
            return exact
        bounded = jnp.isfinite(weight)
        weight = jnp.where(bounded, weight, 1.0)
        wanted = jnp.where(mass > 0, mass * jnp.exp(jnp.minimum(-potential / weight, 80.0)), 0.0)
        share = jnp.where(wanted > 0, moved / jnp.where(wanted > 0, wanted, 1.0), 0.0)
        log_share = jnp.log(jnp.where(share > 0, share, 1.0))
        penalty = weight * wanted * (share * log_share - share + 1.0)
        return jnp.where(bounded, penalty, exact)

    sent, received = side(-1, mu, f, relaxed[0]), side(-2, nu, g, relaxed[1])
    return sent.sum(-1) + received.sum(-1)


def kl_weight(epsilon: Any, tau: Any) -> Any:
    """epsilon tau / (1 - tau), the KL weight of an exponent tau; infinite at 1, None of None."""
    if tau is None:
        return None
    tau = jnp.asarray(tau)
    return jnp.where(tau < 1, epsilon * tau / jnp.where(tau < 1, 1.0 - tau, 1.0), jnp.inf)


def hold(row_error: Array, column_error: Array, mu: Array, nu: Array, tolerance: float = HELD) -> Bool[Array, "..."]:
    """Whether errors are at most a share of the mass, or there is no mass on one side and so nothing to move."""
    mass = jnp.minimum(mu.sum(-1), nu.sum(-1))
    return (jnp.maximum(row_error, column_error) <= tolerance * mass) | (mass <= 0)


def underflowed(kernel: Float[Array, "... R A"], mu: Array, nu: Array) -> Float[Array, "..."]:
    """Share of the pairs with mass on both sides whose kernel is 0 in float32."""
    pairs = (mu > 0)[..., :, None] & (nu > 0)[..., None, :]
    lost = (pairs & (kernel < _SMALLEST)).sum((-2, -1), dtype=jnp.float32)
    return lost / jnp.maximum(pairs.sum((-2, -1), dtype=jnp.float32), 1.0)


def warn_eagerly(result: TransportResult, solver: str, epsilon: Any) -> TransportResult:
    """The result; outside of any transformation a kernel that underflowed too far is said to have.

    Warns:
      JvidpruneWarning: `TransportResult.warning`.
    """
    values = (result.converged, result.underflow, epsilon)
    if not any(isinstance(value, Tracer) for value in values):
        text = result.warning(solver, epsilon if np.ndim(epsilon) == 0 else None)
        if text is not None:
            warnings.warn(text, JvidpruneWarning, stacklevel=3)
    return result


def _swap(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _fixed_point_error(moved: Array, scaling: Array, mass: Array, tau: Any) -> Float[Array, "..."]:
    """Sum of |moved - mass ** tau * (moved / scaling) ** (1 - tau)|: the error of the marginal where it is not relaxed.

    At the fixed point scaling = (mass / received) ** tau, and what moves is scaling * received.
    """
    if tau is None:
        return jnp.abs(moved - mass).sum(-1)
    received = jnp.where(scaling > 0, moved / jnp.where(scaling > 0, scaling, 1.0), 0.0)
    return jnp.abs(moved - _power(mass, tau) * _power(received, 1.0 - jnp.asarray(tau))).sum(-1)


def _power(base: Array, tau: Any) -> Array:
    return base if tau is None else jnp.where(base > 0, jnp.where(base > 0, base, 1.0) ** tau, 0.0)


def _start(first: Array, last: Array) -> tuple[Array, Array]:
    """Scalings in front of the first update: padding starts at 0, a 1 there would enter the first product."""
    return (first > 0).astype(first.dtype), (last > 0).astype(last.dtype)


def _one_update(exact: Exact, floor: float, params: tuple, state: tuple[Array, Array]) -> tuple[Array, Array]:
    kernel, first, last, tau_sources, tau_anchors = params
    solver = Sinkhorn(tau_sources=tau_sources, tau_anchors=tau_anchors, exact=exact, floor=floor)
    return solver._update(kernel, first, last, state[1])


@pytree
@dataclasses.dataclass(frozen=True)
class Sinkhorn:
    """Scaling-form Sinkhorn with AOT's stop (arXiv 2603.01400): the defaults are the reference's loop.

    r = mu / (K c), then c = nu / (K' r) with K = exp(-cost / epsilon); stops once the mean absolute change of r over
    all active rows, and over all problems of the batch with `stop="joint"`, is below `threshold`. As r is of the size
    1/R this often fires at the second iteration: one side of the plan is exact, the other is not, which
    `TransportResult.converged` tells. Where cost / epsilon exceeds 87 the kernel is 0, see `TransportResult.underflow`.
    Derivatives are those of the updates that were made, see `gradients`; where the stop fires has none.

    Attributes:
      epsilon: temperature, traced.
      tau_sources, tau_anchors: exponents below 1 relax a marginal with a KL weight epsilon tau / (1 - tau), traced;
        None for balanced.
      threshold: of the stop, traced.
      max_iterations: cap; static.
      stop: "joint" couples the problems of a batch, "each" stops them separately, "never" runs to the cap; static.
      exact: the side that is updated last; static.
      floor: of denominators. The reference has none; it only acts where that divides by zero. Static.
    """

    epsilon: Temperature = 0.1
    tau_sources: Ratio | None = None
    tau_anchors: Ratio | None = None
    threshold: NotNegative = 1e-2
    max_iterations: Iterations = dataclasses.field(default=100, metadata={"static": True})
    stop: Literal["joint", "each", "never"] = dataclasses.field(default="joint", metadata={"static": True})
    exact: Exact = dataclasses.field(default="anchors", metadata={"static": True})
    floor: Annotated[float, Range(0, 1, above=True)] = dataclasses.field(default=1e-30, metadata={"static": True})

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """Solves every problem of the leading axes.

        Warns:
          JvidpruneWarning: outside of jit, a kernel that underflowed so far that the marginals do not hold.
        """
        factors, result = self.on_kernel(self.kernel(cost), mu, nu)
        return warn_eagerly(result._replace(plan=factors.plan()), "Sinkhorn", self.epsilon)

    def kernel(self, cost: Float[Array, "... R A"]) -> Float[Array, "... R A"]:
        """exp(-cost / epsilon), all that the solver reads of the costs."""
        return jnp.exp(-cost / self.epsilon)

    def on_kernel(
        self, kernel: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> tuple["Scaled", TransportResult]:
        """`__call__` from kernels, for callers that form kernels and plans one by one: costs or plans of all problems
        then need not exist together.
        """
        mu = jnp.broadcast_to(mu, kernel.shape[:-1]).astype(kernel.dtype)
        nu = jnp.broadcast_to(nu, (*kernel.shape[:-2], kernel.shape[-1])).astype(kernel.dtype)
        still, fixed, *masses = held_still((self, kernel, mu, nu))
        left, right, steps = still._solve(lambda first, last, c: still._update(fixed, first, last, c), *masses)
        anchors = self.exact == "anchors"
        first, last = (mu, nu) if anchors else (nu, mu)
        update = functools.partial(_one_update, self.exact, self.floor)
        params = kernel, first, last, self.tau_sources, self.tau_anchors
        start = _start(first, last)
        solved: Any = solved_by(
            update, self.max_iterations, params, start, (left, right) if anchors else (right, left), steps
        )
        left, right = solved if anchors else (solved[1], solved[0])
        return Scaled(left, kernel, right), self._result(left, kernel, right, mu, nu, steps)

    def on_kernels(
        self, kernel: Callable[..., Array], arrays: tuple, mu: Float[Array, "P R"], nu: Float[Array, "P A"]
    ) -> tuple[Float[Array, "P R"], Float[Array, "P A"], TransportResult]:
        """`on_kernel` where kernels are formed again, one by one, whenever they are read, so that none is kept.

        Args:
          kernel: (R, A) kernel of a problem, from its part of the arrays.
          arrays: (P, ...), of P problems.
          mu, nu: their masses.

        Returns:
          Both scalings, which with the kernels make the plans, and the result.
        """

        def update(first: Array, last: Array, c: Array) -> tuple[Array, Array]:
            def one(args: tuple) -> tuple[Array, Array]:
                return self._update(kernel(*args[3:]), *args[:3])

            return lax.map(one, (first, last, c, *arrays))

        left, right, steps = self._solve(update, mu, nu)
        every = jnp.broadcast_to(steps, mu.shape[:1])

        def result(args: tuple) -> TransportResult:
            left, right, mu, nu, steps, *parts = args
            return self._result(left, kernel(*parts), right, mu, nu, steps)

        return left, right, lax.map(result, (left, right, mu, nu, every, *arrays))

    def _result(self, left: Array, kernel: Array, right: Array, mu: Array, nu: Array, steps: Array) -> TransportResult:
        plan = Scaled(left, kernel, right).plan()
        f, g = (self.epsilon * jnp.log(jnp.where(side > 0, side, 1.0)) for side in (left, right))
        relaxed = kl_weight(self.epsilon, self.tau_sources), kl_weight(self.epsilon, self.tau_anchors)
        gap = duality_gap(plan, mu, nu, f, g, relaxed)
        result = transport_result(plan, mu, nu, steps, underflow=underflowed(kernel, mu, nu), gap=gap)
        moved, left, right, mu, nu, still = held_still((plan, left, right, mu, nu, self))
        rows = _fixed_point_error(moved.sum(-1), left, mu, still.tau_sources)
        columns = _fixed_point_error(moved.sum(-2), right, nu, still.tau_anchors)
        return result._replace(converged=hold(rows, columns, mu, nu))

    def _update(self, kernel: Array, first: Array, last: Array, c: Array) -> tuple[Array, Array]:
        """Both scalings from that of the side that is updated last; `first` and `last` are the masses of the sides."""
        anchors = self.exact == "anchors"
        taus = (self.tau_sources, self.tau_anchors) if anchors else (self.tau_anchors, self.tau_sources)

        def scaled(mass: Array, received: Array, tau: Any) -> Array:
            return _power(ratio(mass, received, self.floor), tau)

        def product(scaling: Array, *, over_anchors: bool) -> Array:
            if on_cpu():
                form = "...ra,...a->...r" if over_anchors else "...ra,...r->...a"
                return jnp.einsum(form, kernel, scaling, precision=lax.Precision.HIGHEST)
            # A reduction takes what makes the kernel into itself; a product would have it written down.
            wide = scaling[..., None, :] if over_anchors else scaling[..., :, None]
            return jnp.sum(kernel * wide, axis=-1 if over_anchors else -2)

        r = scaled(first, product(c, over_anchors=anchors), taus[0])
        return r, scaled(last, product(r, over_anchors=not anchors), taus[1])

    def _solve(
        self, update: Callable[[Array, Array, Array], tuple[Array, Array]], mu: Array, nu: Array
    ) -> tuple[Array, Array, Array]:
        """Scalings of the sources and of the anchors, and the number of updates."""
        first, last = (mu, nu) if self.exact == "anchors" else (nu, mu)
        r, c, steps = self._loop(functools.partial(update, first, last), first, last)
        return (r, c, steps) if self.exact == "anchors" else (c, r, steps)

    def _loop(
        self, update: Callable[[Array], tuple[Array, Array]], first: Array, last: Array
    ) -> tuple[Array, Array, Array]:
        active = first > 0
        batch = tuple(range(first.ndim)) if self.stop == "joint" else (-1,)
        rows = jnp.maximum(active.sum(batch, keepdims=True), 1)

        start = _start(first, last)
        if self.stop == "never":
            (r, c), _ = lax.scan(lambda rc, _: (update(rc[1]), None), start, length=self.max_iterations)
            return r, c, jnp.int32(self.max_iterations)

        def body(state: tuple) -> tuple:
            i, steps, r, c, error = state
            running = error >= self.threshold
            new_r, new_c = update(c)
            change = jnp.where(active, jnp.abs(new_r - r), 0.0).sum(batch, keepdims=True) / rows
            return (
                i + 1,
                steps + running,
                jnp.where(running, new_r, r),
                jnp.where(running, new_c, c),
                jnp.where(running, change, error),
            )

        def unfinished(state: tuple) -> Array:
            return (state[0] < self.max_iterations) & jnp.any(state[-1] >= self.threshold)

        error = jnp.full(rows.shape, jnp.inf, first.dtype)
        _, steps, r, c, _ = lax.while_loop(
            unfinished, body, (jnp.int32(0), jnp.zeros(rows.shape, jnp.int32), *start, error)
        )
        shape = first.shape[:-1]
        return r, c, steps.reshape(() if self.stop == "joint" else shape)
