"""Native Sinkhorn loops: a solver is a frozen configuration whose floats may be traced, results carry diagnostics."""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.ops.sinkhorn_log import sinkhorn_log, sinkhorn_scaling

Exact = Literal["anchors", "sources"]


class TransportResult(NamedTuple):
    """A plan and how well it was solved.

    Attributes:
      plan: (..., R, A) float32 mass from each source to each anchor.
      iterations: (...) int32.
      row_error: (...) sum over sources of |mass sent - marginal|.
      column_error: (...) sum over anchors of |mass received - marginal|.
      converged: (...) bool, the solver's own stop fired before its cap; for fixed counts, both errors are below 1e-3.
      unmatched: (..., R) mass of each source that reached no anchor.
    """

    plan: Float[Array, "... R A"]
    iterations: Int[Array, "..."]
    row_error: Float[Array, "..."]
    column_error: Float[Array, "..."]
    converged: Bool[Array, "..."]
    unmatched: Float[Array, "... R"]


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


class Solver(Protocol):
    """Turns costs and marginals into a plan; leading axes are independent problems."""

    def __call__(self, cost: Array, mu: Array, nu: Array) -> TransportResult:
        """Solves (..., R, A) costs with marginals (..., R) and (..., A), zeros on padding."""
        ...


def transport_result(plan: Array, mu: Array, nu: Array, iterations: Any, converged: Any = None) -> TransportResult:
    """A plan with its marginal errors."""
    sent, received = plan.sum(-1), plan.sum(-2)
    row_error = jnp.abs(sent - mu).sum(-1)
    column_error = jnp.abs(received - nu).sum(-1)
    if converged is None:
        converged = jnp.maximum(row_error, column_error) < 1e-3
    shape = row_error.shape
    steps = jnp.broadcast_to(jnp.asarray(iterations, jnp.int32), shape)
    return TransportResult(
        plan, steps, row_error, column_error, jnp.broadcast_to(converged, shape), jnp.maximum(mu - sent, 0.0)
    )


def numeric_leaves(part: Any) -> Any:
    """The same configuration with float32 scalars in place of its numbers, ready to be traced; None if it has none.

    Anything that is no pytree of numbers (a plain function, an unregistered class) stays static.
    """
    leaves = jax.tree.leaves(part)
    if not leaves or not all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in leaves):
        return None
    return jax.tree.map(np.float32, part)


def _swap(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _power(ratio: Array, tau: Any) -> Array:
    return ratio if tau is None else jnp.where(ratio > 0, jnp.where(ratio > 0, ratio, 1.0) ** tau, 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sinkhorn:
    """Scaling-form Sinkhorn with AOT's stop (arXiv 2603.01400): the defaults are the reference's loop.

    r = mu / (K c), then c = nu / (K' r) with K = exp(-cost / epsilon); stops once the mean absolute change of r over
    all active rows, and over all problems of the batch with `stop="joint"`, is below `threshold`. As r is of the size
    1/R
    this often fires at the second iteration: one side of the plan is exact, the other is not.

    Attributes:
      epsilon: temperature, traced.
      tau_sources, tau_anchors: exponents below 1 relax a marginal with a KL weight epsilon tau / (1 - tau), traced;
        None for balanced.
      threshold: of the stop, traced.
      max_iterations: cap; static.
      stop: "joint" couples the problems of a batch, "each" stops them separately, "never" runs to the cap, which is the
        one form that has reverse-mode gradients; static.
      exact: the side that is updated last; static.
      floor: of denominators. The reference has none; it only acts where that divides by zero. Static.
    """

    epsilon: float = 0.1
    tau_sources: float | None = None
    tau_anchors: float | None = None
    threshold: float = 1e-2
    max_iterations: int = dataclasses.field(default=100, metadata={"static": True})
    stop: Literal["joint", "each", "never"] = dataclasses.field(default="joint", metadata={"static": True})
    exact: Exact = dataclasses.field(default="anchors", metadata={"static": True})
    floor: float = dataclasses.field(default=1e-30, metadata={"static": True})

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """Solves every problem of the leading axes.

        Raises:
          JvidpruneError: unknown stop or side.
        """
        factors, result = self.on_kernel(self.kernel(cost), mu, nu)
        return result._replace(plan=factors.plan())

    def kernel(self, cost: Float[Array, "... R A"]) -> Float[Array, "... R A"]:
        """exp(-cost / epsilon), all that the solver reads of the costs."""
        return jnp.exp(-cost / self.epsilon)

    def on_kernel(
        self, kernel: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> tuple["Scaled", TransportResult]:
        """`__call__` from kernels, for callers that form kernels and plans one by one: costs or plans of all problems
        then need not exist together.

        Raises:
          JvidpruneError: as there.
        """
        if self.stop not in ("joint", "each", "never") or self.exact not in ("anchors", "sources"):
            raise JvidpruneError(
                f"stop must be joint, each or never and exact anchors or sources, got {self.stop!r} and {self.exact!r}."
            )
        mu = jnp.broadcast_to(mu, kernel.shape[:-1])
        nu = jnp.broadcast_to(nu, (*kernel.shape[:-2], kernel.shape[-1]))
        if self.exact == "anchors":
            left, right, steps, error = self._loop(kernel, mu, nu, self.tau_sources, self.tau_anchors)
        else:
            right, left, steps, error = self._loop(_swap(kernel), nu, mu, self.tau_anchors, self.tau_sources)
        factors = Scaled(left, kernel, right)
        converged = None if self.stop == "never" else error < self.threshold
        return factors, transport_result(factors.plan(), mu, nu, steps, converged)

    def _loop(
        self, kernel: Array, first: Array, last: Array, tau_first: Any, tau_last: Any
    ) -> tuple[Array, Array, Array, Array]:
        active = first > 0
        batch = tuple(range(first.ndim)) if self.stop == "joint" else (-1,)
        rows = jnp.maximum(active.sum(batch, keepdims=True), 1)

        def scaled(mass: Array, received: Array, tau: Any) -> Array:
            ratio = jnp.where(mass > 0, mass / jnp.maximum(received, self.floor), 0.0)
            return _power(ratio, tau)

        def update(c: Array) -> tuple[Array, Array]:
            r = scaled(first, jnp.einsum("...ra,...a->...r", kernel, c, precision=lax.Precision.HIGHEST), tau_first)
            return r, scaled(last, jnp.einsum("...ra,...r->...a", kernel, r, precision=lax.Precision.HIGHEST), tau_last)

        # Padding starts at 0: a 1 there would enter the first product.
        start = active.astype(jnp.float32), (last > 0).astype(jnp.float32)
        if self.stop == "never":
            (r, c), _ = lax.scan(lambda rc, _: (update(rc[1]), None), start, length=self.max_iterations)
            return r, c, jnp.int32(self.max_iterations), jnp.float32(0)

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

        error = jnp.full(rows.shape, jnp.inf, jnp.float32)
        _, steps, r, c, error = lax.while_loop(
            unfinished, body, (jnp.int32(0), jnp.zeros(rows.shape, jnp.int32), *start, error)
        )
        shape = first.shape[:-1]
        flat = (lambda v: v.reshape(())) if self.stop == "joint" else (lambda v: v.reshape(shape))
        return r, c, flat(steps), flat(error)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedSinkhorn:
    """A fixed number of balanced updates, as OTT-Vid defines its plan (arXiv 2605.11803): differentiable, any epsilon.

    Attributes:
      epsilon: temperature, traced.
      iterations: static.
      domain: "log" for small epsilon, "scaling" (denominators floored at 1e-12) from 0.05 up; static.
      exact: the side updated last; OTT-Vid's is "sources" (its earlier frame); static.
    """

    epsilon: float = 0.01
    iterations: int = dataclasses.field(default=200, metadata={"static": True})
    domain: Literal["log", "scaling"] = dataclasses.field(default="log", metadata={"static": True})
    exact: Exact = dataclasses.field(default="sources", metadata={"static": True})

    @classmethod
    def ottvid(cls, epsilon: float = 0.01, iterations: int = 200) -> "FixedSinkhorn":
        """OTT-Vid's solver: the log domain below epsilon 0.05, scalings from there on."""
        return cls(epsilon, iterations, "log" if epsilon < 0.05 else "scaling")

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """Solves every problem of the leading axes."""
        mu = jnp.broadcast_to(mu, cost.shape[:-1])
        nu = jnp.broadcast_to(nu, (*cost.shape[:-2], cost.shape[-1]))
        solve: Any = sinkhorn_log if self.domain == "log" else sinkhorn_scaling
        if self.exact == "sources":
            plan = solve(cost, mu, nu, self.epsilon, self.iterations)
        else:
            plan = _swap(solve(_swap(cost), nu, mu, self.epsilon, self.iterations))
        return transport_result(plan, mu, nu, self.iterations)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dustbin:
    """Any solver with one more anchor of constant cost, where sources that match nothing may leave their mass.

    `TransportResult.unmatched` says how much each source left there: a differentiable measure of distinctness.

    Attributes:
      solver: solves the enlarged problem.
      cost: of the dustbin, traced.
      mass: share of all mass that it takes, traced.
    """

    solver: Any = Sinkhorn()
    cost: float = 0.6
    mass: float = 0.3

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """The plan without the dustbin's column; marginal errors are those of the enlarged problem."""
        nu = jnp.broadcast_to(nu, (*cost.shape[:-2], cost.shape[-1]))
        bin_cost = jnp.broadcast_to(jnp.asarray(self.cost, cost.dtype), (*cost.shape[:-1], 1))
        bin_mass = jnp.asarray(self.mass) * nu.sum(-1, keepdims=True)
        result = self.solver(
            jnp.concatenate([cost, bin_cost], -1), mu, jnp.concatenate([(1.0 - self.mass) * nu, bin_mass], -1)
        )
        return result._replace(plan=result.plan[..., :-1], unmatched=result.plan[..., -1])
