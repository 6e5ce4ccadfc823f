"""Sinkhorn in the log domain until it has converged, balanced or with relaxed sides: any epsilon, no underflow.

Where AOT's and OTT-Vid's own solvers stop by rules of their methods, this one stops when nothing moves any more.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jvidprune.fields import Iterations, NotNegative, Range, Temperature, check_fields, pytree
from jvidprune.ops.transport.gradients import State, held_still, solved_by
from jvidprune.ops.transport.solvers import Exact, TransportResult, duality_gap, hold, transport_result

KLWeight = Annotated[float, Range(1e-4, 1e4)]

_NOTHING = -1e30
"""Stands for the logarithm of no mass: minus infinity has no derivative."""


@pytree
@dataclasses.dataclass(frozen=True)
class LogSinkhorn:
    """Least sum P C + epsilon KL(P | mu nu) + rho_sources KL(P 1 | mu) + rho_anchors KL(P' 1 | nu) over P >= 0.

    A weight of None is infinity: that marginal holds. A finite one lets mass stay away or gather at a price, so that
    tokens that match badly send less (Chizat et al. 2018, arXiv 1607.05816; Sejourne et al. 2019, arXiv 1910.12958).
    It is in units of the cost: moving a unit that costs clearly more than rho_sources + rho_anchors does not pay. As
    the entropy is taken against mu nu, the least cost does not depend on how many tokens share the mass; the exponents
    tau of `Sinkhorn`, whose entropy counts tokens, are rho / (rho + epsilon).

    The potentials are updated in the log domain, with the constant between the two sides set to its best value each
    time where one is relaxed (Sejourne et al. 2022, arXiv 2201.00730), until none changes by more than
    `threshold` epsilon. Derivatives are those of the updates that were made, see `gradients`.

    Attributes:
      epsilon: temperature, traced.
      rho_sources, rho_anchors: KL weight of what a side deviates from its masses by, traced; None: they hold.
      threshold: of the stop, traced.
      max_iterations: cap; static.
      exact: the side that is updated last; static.
    """

    epsilon: Temperature = 0.05
    rho_sources: KLWeight | None = None
    rho_anchors: KLWeight | None = None
    threshold: NotNegative = 1e-4
    max_iterations: Iterations = dataclasses.field(default=1000, metadata={"static": True})
    exact: Exact = dataclasses.field(default="anchors", metadata={"static": True})

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """Solves every problem of the leading axes, each until it has converged."""
        mu = jnp.broadcast_to(mu, cost.shape[:-1]).astype(cost.dtype)
        nu = jnp.broadcast_to(nu, (*cost.shape[:-2], cost.shape[-1])).astype(cost.dtype)
        sources = self.exact == "sources"
        rhos = self.rho_sources, self.rho_anchors
        if sources:
            plan, u, v, steps = self._solve(cost, mu, nu, rhos)
        else:
            plan, v, u, steps = self._solve(_swap(cost), nu, mu, rhos[::-1])
            plan = _swap(plan)
        f, g = self.epsilon * u, self.epsilon * v
        result = transport_result(plan, mu, nu, steps, gap=duality_gap(plan, mu, nu, f, g, rhos))
        if rhos == (None, None):
            return result
        still, plan, mu, nu, f, g = held_still((rhos, plan, mu, nu, f, g))
        rows, columns = (
            jnp.abs(plan.sum(axis) - _wanted(mass, potential, rho)).sum(-1)
            for axis, mass, potential, rho in ((-1, mu, f, still[0]), (-2, nu, g, still[1]))
        )
        return result._replace(converged=hold(rows, columns, mu, nu))

    def _solve(self, cost: Array, last: Array, first: Array, rhos: tuple) -> tuple[Array, Array, Array, Array]:
        """The plan, both potentials in units of epsilon, and the number of updates, where rows are updated last."""
        params = -cost / self.epsilon, last, first, tuple(None if r is None else r / self.epsilon for r in rhos)
        still, threshold = held_still((params, self.threshold))
        start = jnp.zeros_like(last), jnp.zeros_like(first)

        def body(state: tuple) -> tuple:
            i, steps, old, change = state
            runs = change > threshold
            new = _update(still, old)
            moves = [jnp.abs(a - b).max(-1, initial=0.0) for a, b in zip(new, old, strict=True)]
            moved = jnp.maximum(moves[0], moves[1])
            kept = jax.tree.map(lambda a, b: jnp.where(runs[..., None], a, b), new, old)
            return i + 1, steps + runs, kept, jnp.where(runs, moved, change)

        def unfinished(state: tuple) -> Array:
            return (state[0] < self.max_iterations) & jnp.any(state[-1] > threshold)

        shape = cost.shape[:-2]
        begin = jnp.int32(0), jnp.zeros(shape, jnp.int32), start, jnp.full(shape, jnp.inf, cost.dtype)
        _, steps, solved, _ = lax.while_loop(unfinished, body, begin)
        u, v = solved_by(_update, self.max_iterations, params, start, solved, steps)
        pairs = (last > 0)[..., :, None] & (first > 0)[..., None, :]
        exponent = u[..., :, None] + v[..., None, :] + params[0]
        plan = jnp.exp(jnp.where(pairs, exponent, _NOTHING)) * last[..., :, None] * first[..., None, :]
        return plan, u, v, steps


def _swap(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _wanted(mass: Array, potential: Array, rho: Any) -> Array:
    """What a side would move at the solution with this potential."""
    return mass if rho is None else jnp.where(mass > 0, mass * jnp.exp(-potential / rho), 0.0)


def _log(mass: Array) -> Array:
    return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), _NOTHING)


def _lse(values: Array, axis: int) -> Array:
    top = lax.stop_gradient(jnp.max(values, axis=axis, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(values - top), axis=axis)) + jnp.squeeze(top, axis)


def _update(params: tuple, state: State) -> State:
    """Potentials of both sides, in units of epsilon, from those of the side that is updated last (the rows)."""
    log_kernel, last, first, (rho_last, rho_first) = params
    some = jnp.any(last > 0, axis=-1, keepdims=True) & jnp.any(first > 0, axis=-1, keepdims=True)

    def potential(mass: Array, values: Array, axis: int, rho: Any) -> Array:
        there = (mass > 0) & some
        # With nothing on the other side the sum is one of nothing; a value of 0 there keeps the derivative finite.
        values = jnp.where(some[..., None], values, 0.0)
        found = -_lse(values, axis) if rho is None else -(rho / (rho + 1.0)) * _lse(values, axis)
        return jnp.where(there, found, 0.0)

    v = potential(first, (state[0] + _log(last))[..., :, None] + log_kernel, -2, rho_first)
    u = potential(last, (v + _log(first))[..., None, :] + log_kernel, -1, rho_last)
    shift = jnp.where(some, _shift(u, v, last, first, rho_last, rho_first), 0.0)
    there = last > 0, first > 0
    return jnp.where(there[0], u + shift, u), jnp.where(there[1], v - shift, v)


def _shift(u: Array, v: Array, last: Array, first: Array, rho_last: Any, rho_first: Any) -> Array:
    """The constant that, added to u and taken from v, makes the dual value largest; 0 where both marginals hold."""
    if rho_last is None and rho_first is None:
        return jnp.zeros_like(u[..., :1])

    def log_moved(potential: Array, mass: Array, rho: Any) -> Array:
        sent = _log(mass) if rho is None else _log(mass) - potential / rho
        return _lse(jnp.where(mass > 0, sent, _NOTHING), -1)[..., None]

    difference = log_moved(u, last, rho_last) - log_moved(v, first, rho_first)
    if rho_last is None:
        return rho_first * difference
    if rho_first is None:
        return rho_last * difference
    return rho_last * rho_first / (rho_last + rho_first) * difference
