"""Derivatives of a fixed number of updates without a stored iteration: only square-root many scalings are kept.

A plan that is cut off after n updates, as those of AOT and OTT-Vid are, is a function of its n updates and not of the
fixed point behind them. Its derivative is that of the updates that were made, backwards. What they need is made again
in stretches, so that beside the one derivative of the kernel memory holds 2 sqrt(n) pairs of vectors.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError

State = tuple[Array, Array]
"""Scalings, or potentials, of both sides: (..., n) and (..., m)."""

Update = Callable[[Any, State], State]
"""(what stays the same, state) -> state; a function that holds no arrays."""


def held_still(tree: Any) -> Any:
    """The same without derivatives; Python's numbers stay what they are."""
    return jax.tree.map(lambda leaf: lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def solved_by(update: Update, most: int, params: Any, start: State, solved: State, steps: Any) -> State:
    """`solved`, with the derivatives in `params` of the updates that led there.

    Args:
      update: one update.
      most: static bound of the number of updates.
      params: what the updates read: kernels, masses.
      start: state in front of the first one, without derivatives.
      solved: state behind the last one, from wherever it comes.
      steps: () or (...) number of updates of each problem.
    """
    return solved


def _forward(update: Update, most: int, params: Any, start: State, solved: State, steps: Any) -> tuple[State, tuple]:
    return solved, (params, start, steps)


def _backward(update: Update, most: int, saved: tuple, wanted: State) -> tuple:
    params, start, steps = saved
    steps = jnp.asarray(steps, jnp.int32)
    length = max(1, math.isqrt(most))
    stretches = lax.div(jnp.max(steps, initial=0) + length - 1, jnp.int32(length))

    def once(params: Any, number: Array, state: State) -> State:
        runs = (number < steps)[..., None]
        return jax.tree.map(lambda new, old: jnp.where(runs, new, old), update(params, state), state)

    def walk(first: Array, count: int, state: State) -> tuple[State, State]:
        """The state `count` updates on, and those on the way."""
        way = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), state)

        def go(i: Array, both: tuple[State, State]) -> tuple[State, State]:
            state, way = both
            way = jax.tree.map(lambda kept, leaf: kept.at[i].set(leaf), way, state)
            return once(params, first + i, state), way

        return lax.fori_loop(0, count, go, (state, way))

    kept = jax.tree.map(lambda leaf: jnp.zeros((-(-most // length), *leaf.shape), leaf.dtype), start)

    def mark(s: Array, both: tuple[State, State]) -> tuple[State, State]:
        state, kept = both
        kept = jax.tree.map(lambda marks, leaf: marks.at[s].set(leaf), kept, state)
        return lax.fori_loop(0, length, lambda i, state: once(params, s * length + i, state), state), kept

    _, kept = lax.fori_loop(0, stretches, mark, (start, kept))

    def stretch_back(k: Array, both: tuple[State, Any]) -> tuple[State, Any]:
        s = stretches - 1 - k
        first = s * length
        _, way = walk(first, length, jax.tree.map(lambda marks: marks[s], kept))

        def back(i: Array, both: tuple[State, Any]) -> tuple[State, Any]:
            wanted, sums = both
            at = length - 1 - i
            state = jax.tree.map(lambda leaf: leaf[at], way)
            _, pull = jax.vjp(lambda params, state: once(params, first + at, state), params, state)
            more, wanted = pull(wanted)
            return wanted, jax.tree.map(jnp.add, sums, more)

        return lax.fori_loop(0, length, back, both)

    zeros = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)), params)
    _, sums = lax.fori_loop(0, stretches, stretch_back, (wanted, zeros))
    nothing = jax.tree.map(jnp.zeros_like, start)
    return sums, nothing, nothing, None


solved_by.defvjp(_forward, _backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def ratio(mass: Float[Array, "..."], received: Float[Array, "..."], floor: float) -> Float[Array, "..."]:
    """mass / max(received, floor) where there is mass, else 0; its derivative is 0 where the floor acts.

    The derivative is divided twice by what was received, never by its square, which float32 does not hold.
    """
    return jnp.where(mass > 0, mass / jnp.where(mass > 0, jnp.maximum(received, floor), 1.0), 0.0)


@ratio.defjvp
def _ratio_jvp(floor: float, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    mass, received = primals
    value = ratio(mass, received, floor)
    sound = (mass > 0) & (received > floor)
    change = tangents[0] - jnp.where(sound, value, 0.0) * tangents[1]
    return value, jnp.where(sound, change / jnp.where(sound, received, 1.0), 0.0)


def without_derivatives(name: str, result: Any, given: Any) -> Any:
    """The same, refusing derivatives of floating-point numbers in `result` with one sentence.

    Args:
      name: of the solver.
      result: was found without derivatives.
      given: arrays and numbers that it depends on.

    Raises:
      JvidpruneError: when a derivative is asked for, while it is traced.
    """
    return _refusing(name, result, tuple(leaf for leaf in jax.tree.leaves(given) if isinstance(leaf, jax.Array)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _refusing(name: str, result: Any, given: tuple) -> Any:
    return result


def _refusing_forward(name: str, result: Any, given: tuple) -> tuple[Any, None]:
    return result, None


def _refusing_backward(name: str, saved: None, wanted: Any) -> tuple:
    raise JvidpruneError(
        f"{name}'s plan has no derivatives: for plan_gradient='through' take Sinkhorn, LogSinkhorn, FixedSinkhorn or "
        "OttSinkhorn, or one inside Dustbin or Partial."
    )


_refusing.defvjp(_refusing_forward, _refusing_backward)
