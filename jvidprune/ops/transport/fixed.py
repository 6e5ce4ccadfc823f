"""A fixed number of balanced Sinkhorn updates, columns first, as OTT-Vid defines its plan (arXiv 2605.11803).

That plan is not converged: the number of updates and their order belong to the method. Zero marginals mark padding;
they come back as exact zeros and leave the other entries alone.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jvidprune.fields import Iterations, Temperature, check_fields, pytree
from jvidprune.ops.branch import on_cpu
from jvidprune.ops.transport.gradients import ratio, solved_by
from jvidprune.ops.transport.solvers import (
    Exact,
    TransportResult,
    duality_gap,
    transport_result,
    underflowed,
    warn_eagerly,
)

_FIRST, _BLOCK, _LAST = 2, 10, 5
"""Updates in the log domain before the blocks of scalings, updates of a block, and log updates behind the blocks."""


@pytree
@dataclasses.dataclass(frozen=True)
class FixedSinkhorn:
    """A fixed number of balanced updates, as OTT-Vid defines its plan (arXiv 2605.11803): differentiable, any epsilon.

    Attributes:
      epsilon: temperature, traced.
      iterations: static.
      domain: "log" for small epsilon, "scaling" (denominators floored at 1e-12) from 0.05 up; static.
      exact: the side updated last; OTT-Vid's is "sources" (its earlier frame); static.
    """

    epsilon: Temperature = 0.01
    iterations: Iterations = dataclasses.field(default=200, metadata={"static": True})
    domain: Literal["log", "scaling"] = dataclasses.field(default="log", metadata={"static": True})
    exact: Exact = dataclasses.field(default="sources", metadata={"static": True})

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def ottvid(cls, epsilon: float = 0.01, iterations: int = 200) -> "FixedSinkhorn":
        """OTT-Vid's solver: the log domain below epsilon 0.05, scalings from there on."""
        return cls(epsilon, iterations, "log" if epsilon < 0.05 else "scaling")

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """Solves every problem of the leading axes."""
        mu = jnp.broadcast_to(mu, cost.shape[:-1]).astype(cost.dtype)
        nu = jnp.broadcast_to(nu, (*cost.shape[:-2], cost.shape[-1])).astype(cost.dtype)
        log = self.domain == "log"
        solve: Any = _solve_log if log else _solve_scaling
        lost = 0.0 if log else underflowed(jnp.exp(-cost / self.epsilon), mu, nu)
        if self.exact == "sources":
            plan, u, v = solve(cost, mu, nu, self.epsilon, self.iterations)
        else:
            plan, v, u = solve(_swap(cost), nu, mu, self.epsilon, self.iterations)
            plan = _swap(plan)
        gap = duality_gap(plan, mu, nu, self.epsilon * u, self.epsilon * v)
        result = transport_result(plan, mu, nu, self.iterations, underflow=lost, gap=gap)
        return warn_eagerly(result, "FixedSinkhorn", self.epsilon)


def _swap(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _safe_log(x: Array, floor: float) -> Array:
    return jnp.where(x > 0, jnp.log(jnp.maximum(x, floor)), -jnp.inf)


def _lse(values: Array) -> Array:
    """log-sum-exp over axis -2, which vectorises on CPU where a reduction over the last axis does not."""
    top = jnp.max(values, axis=-2, keepdims=True)
    return jnp.log(jnp.sum(jnp.exp(values - top), axis=-2)) + top[..., 0, :]


def sinkhorn_log(
    cost: Float[Array, "*P n m"],
    a: Float[Array, "*P n"],
    b: Float[Array, "*P m"],
    epsilon: float,
    iterations: int,
) -> Float[Array, "*P n m"]:
    """Transport plan after `iterations` updates in the log domain: v from the columns first, then u from the rows.

    Args:
      cost: finite costs.
      a, b: marginals; 0 marks padding, at least one entry of each must be positive.
      epsilon: entropic regularisation.
      iterations: number of (v, u) updates; a traced one gives a plan without derivatives in reverse.

    Returns:
      exp(u + v - cost / epsilon) in float32; its rows sum to `a` up to rounding.
    """
    return _solve_log(cost, a, b, epsilon, iterations)[0]


def _solve_log(cost: Array, a: Array, b: Array, epsilon: Any, iterations: Any) -> tuple[Array, Array, Array]:
    """The plan and both potentials, in units of epsilon."""
    log_kernel = -cost / epsilon
    problem = log_kernel, jnp.swapaxes(log_kernel, -1, -2), a, b
    params, start = (log_kernel, a, b), (jnp.zeros_like(a), jnp.zeros_like(b))
    problem = lax.stop_gradient(problem)
    u, v = jnp.where(a > 0, 0.0, -jnp.inf), jnp.zeros_like(b)
    if not on_cpu() or not isinstance(iterations, int):
        u, v = _log_updates(problem, u, v, iterations)
    else:
        # The first updates move the potentials too far for scalings, the last ones shed the rounding of the blocks.
        first = min(iterations, _FIRST)
        last = min(iterations - first, _LAST)
        blocks, rest = divmod(iterations - first - last, _BLOCK)
        u, v = _log_updates(problem, u, v, first)
        if rest:
            u, v = _block(problem, u, v, rest)
        if blocks:
            (u, v), _ = lax.scan(lambda uv, _: (_block(problem, *uv, _BLOCK), None), (u, v), None, length=blocks)
        u, v = _log_updates(problem, u, v, last)
    if isinstance(iterations, int):
        u, v = solved_by(_masked_update, iterations, params, start, (u, v), iterations)
    pairs = (a > 0)[..., :, None] & (b > 0)[..., None, :]
    return jnp.exp(jnp.where(pairs, u[..., :, None] + v[..., None, :] + log_kernel, -jnp.inf)), u, v


def _masked_update(params: tuple, state: tuple[Array, Array]) -> tuple[Array, Array]:
    """An update whose potentials are 0 on padding instead of minus infinity, so that derivatives are finite."""
    log_kernel, a, b = params
    pairs = (a > 0)[..., :, None] & (b > 0)[..., None, :]
    log_kernel = jnp.where(pairs, log_kernel, -1e30)

    def potential(mass: Array, values: Array, axis: int) -> Array:
        there = mass > 0
        log_mass = jnp.log(jnp.where(there, jnp.maximum(mass, 1e-30), 1.0))
        return jnp.where(there, log_mass - jax.nn.logsumexp(values, axis=axis), 0.0)

    v = potential(b, state[0][..., :, None] + log_kernel, -2)
    return potential(a, v[..., None, :] + log_kernel, -1), v


def _log_updates(problem: tuple, u: Array, v: Array, iterations: int | Array) -> tuple[Array, Array]:
    log_kernel, transposed, a, b = problem
    log_a, log_b = _safe_log(a, 1e-30), _safe_log(b, 1e-30)

    def update(_, uv):
        u, _ = uv
        v = log_b - _lse(u[..., :, None] + log_kernel)
        return log_a - _lse(v[..., :, None] + transposed), v

    return lax.fori_loop(0, iterations, update, (u, v))


def _block(problem: tuple, u: Array, v: Array, iterations: int) -> tuple[Array, Array]:
    """Updates as scalings of exp(u + v - cost / epsilon), an order of magnitude fewer exponentials.

    Entries that underflow in that kernel stay negligible as long as the scalings are moderate; where they are not, the
    block is run in the log domain after all.
    """
    log_kernel, _, a, b = problem
    kernel = jnp.exp(u[..., :, None] + v[..., None, :] + log_kernel)
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)

    def divide(mass: Array, received: Array) -> Array:
        return jnp.where(mass > 0, mass / jnp.where(mass > 0, received, 1.0), 1.0)

    def update(_, pq):
        p, _ = pq
        q = divide(b, product("...n,...nm->...m", p, kernel))
        return divide(a, product("...nm,...m->...n", kernel, q)), q

    p, q = lax.fori_loop(0, iterations, update, (jnp.ones_like(a), jnp.ones_like(b)))
    log_p, log_q = jnp.log(p), jnp.log(q)
    reach = jnp.max(jnp.abs(log_p)) + jnp.max(jnp.abs(log_q))
    return lax.cond(
        reach < 40.0,
        lambda: (u + log_p, v + log_q),
        lambda: _log_updates(problem, u, v, iterations),
    )


def sinkhorn_scaling(
    cost: Float[Array, "*P n m"],
    a: Float[Array, "*P n"],
    b: Float[Array, "*P m"],
    epsilon: float,
    iterations: int,
) -> Float[Array, "*P n m"]:
    """The same updates on exp(-cost / epsilon) with scalings, denominators floored at 1e-12; for epsilon above 0.03."""
    return _solve_scaling(cost, a, b, epsilon, iterations)[0]


def _solve_scaling(cost: Array, a: Array, b: Array, epsilon: Any, iterations: Any) -> tuple[Array, Array, Array]:
    """The plan and the logarithms of both scalings."""
    kernel = jnp.exp(-cost / epsilon)
    transposed = jnp.swapaxes(kernel, -1, -2)

    def update(_, uv):
        return _scaled_update(fixed, uv)

    start = (a > 0).astype(cost.dtype), jnp.zeros_like(b)
    fixed = lax.stop_gradient((kernel, transposed, a, b))
    u, v = lax.fori_loop(0, iterations, update, start)
    if isinstance(iterations, int):
        u, v = solved_by(_scaled_update, iterations, (kernel, transposed, a, b), start, (u, v), iterations)
    log_u, log_v = (jnp.log(jnp.where(side > 0, side, 1.0)) for side in lax.stop_gradient((u, v)))
    return u[..., :, None] * kernel * v[..., None, :], log_u, log_v


def _scaled_update(params: tuple, state: tuple[Array, Array]) -> tuple[Array, Array]:
    kernel, transposed, a, b = params
    v = ratio(b, jnp.sum(state[0][..., :, None] * kernel, axis=-2), 1e-12)
    return ratio(a, jnp.sum(v[..., :, None] * transposed, axis=-2), 1e-12), v
