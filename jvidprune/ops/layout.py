"""How wide arrays lie in a TPU's memory, where the compiler's own choice copies them whole.

A TPU tiles the last two axes of an array, by 8 and 128, and XLA decides by itself which axes these are: a matrix
product of all tokens with each other, read row by row later, was laid out by columns and copied once, 157 MB read and
written.
"""

from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array

from jvidprune.ops.branch import platform


def row_major(x: Array) -> Array:
    """`x`; programs for TPU lay it out in the order of its axes, the last one side by side."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if platform() == "tpu" else x
