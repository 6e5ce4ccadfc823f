"""Work on as much of a static capacity as is filled, to a quarter."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jvidprune.ops.branch import on_cpu

LONG = 64
"""Capacity from which work is sized; below, several compilations cost more than they save."""


def filled_quarter(count: Int[Array, ""], capacity: int, run: Callable[[int], Any]) -> Any:
    """`run(size)` for the smallest size that holds `count`: a quarter, half, three quarters or all of the capacity.

    Every size is compiled and one runs. Where many counts run side by side (ratios and videos on accelerators) all
    branches of a switch would, so there and for short capacities this is `run(capacity)`.

    Args:
      count: entries in use, at most `capacity`.
      capacity: static.
      run: work on the first `size` entries; its results have the same shapes for any size (`widen` helps).
    """
    if not on_cpu() or capacity < LONG:
        return run(capacity)
    sizes = [-(-capacity * quarter // 4) for quarter in (1, 2, 3, 4)]
    which = sum((count > size).astype(jnp.int32) for size in sizes[:-1])
    return lax.switch(which, [lambda size=size: run(size) for size in sizes])


def widen(leaf: Array, capacity: int, axes: tuple[int, ...], fill: float = 0) -> Array:
    """Pads the given axes to the capacity."""
    pads = [(0, capacity - side if axis in axes else 0) for axis, side in enumerate(leaf.shape)]
    return jnp.pad(leaf, pads, constant_values=fill)
