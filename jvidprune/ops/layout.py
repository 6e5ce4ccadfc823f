"""What a TPU's compiler does badly by itself: layouts of wide arrays, rows that end inside of tiles, many products.

A TPU tiles the last two axes of an array, by 8 and 128, and XLA decides by itself which axes these are: a matrix
product of all tokens with each other, read row by row later, was laid out by columns and copied once, 157 MB read and
written. Where a reduction over the pairs of a row's entries ends inside of a tile, it emits up to five times as many
instructions as for whole tiles, and takes as many times as long.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array

from jvidprune.ops.branch import on_cpu, platform

SUBLANES = 8
"""Rows of a tile."""


def row_major(x: Array) -> Array:
    """`x`; programs for TPU lay it out in the order of its axes, the last one side by side."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if platform() == "tpu" else x


def one_by_one(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`; programs for TPU that hold many of it side by side, under `vmap`, run one after the other.

    The compiler unrolls a product over as many problems of a batch as fit beside the arithmetic. What `fn` reads beside
    its arguments must be constant.
    """
    if platform() != "tpu":
        return fn(*args)
    in_turn = sequential_vmap(fn)
    # It has no derivatives by itself.
    call = jax.custom_vjp(in_turn)
    call.defvjp(lambda *args: (in_turn(*args), args), lambda args, wanted: jax.vjp(fn, *args)[1](wanted))
    return call(*args)


def aligned(entries: int) -> int:
    """The next multiple of `SUBLANES`; in programs for CPUs `entries`."""
    return entries if on_cpu() else SUBLANES * math.ceil(entries / SUBLANES)


def lengthen(x: Array, fill: Any, axis: int = -1) -> Array:
    """`x` with that axis filled up to `aligned` entries."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = 0, aligned(x.shape[axis]) - x.shape[axis]
    return jnp.pad(x, pads, constant_values=fill)
