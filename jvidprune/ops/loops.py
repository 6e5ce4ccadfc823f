"""Loops that data end."""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jax import Array, lax

State = TypeVar("State")


def bounded_while(
    unfinished: Callable[[State], Array], body: Callable[[State], State], start: State, rounds: int
) -> State:
    """`lax.while_loop` that ends after `rounds` rounds at the latest.

    Finite data never take that many. Comparisons with NaN, and integers made of it, may never end a loop; and since the
    check for numbers that are not finite is part of the same program (`reducers.programs`), it would never be read.
    """

    def go_on(state: tuple[Array, State]) -> Array:
        return (state[0] < rounds) & unfinished(state[1])

    return lax.while_loop(go_on, lambda state: (state[0] + 1, body(state[1])), (jnp.int32(0), start))[1]
