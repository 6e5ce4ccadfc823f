"""The auxiliary loss: a window's score should be one minus its likeness to itself one frame before."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jvidprune.stts.select import Examples
from jvidprune.stts.windows import Windows

_SMALLEST = 1e-12
"""Norms are not taken below this."""


def neighbour_cosine(x: Float[Array, "F N D"], windows: Windows) -> Float[Array, "F-1 P"]:
    """Cosine of every window with itself one frame before, its patch vectors side by side; float32."""
    wide = x.astype(jnp.float32)

    def window_sum(per_patch: Array) -> Array:
        return windows.gather(per_patch).sum(axis=-1)

    # sqrt has no slope at 0: the floor goes inside.
    norm = jnp.sqrt(jnp.maximum(window_sum((wide * wide).sum(axis=-1)), _SMALLEST**2))
    # One division after the other: the square of a product of two smallest norms would be 0.
    return window_sum((wide[:-1] * wide[1:]).sum(axis=-1)) / norm[:-1] / norm[1:]


def auxiliary_loss(
    scores: Float[Array, "F P"],
    x: Float[Array, "F N D"],
    windows: Windows,
    examples: Examples,
    *,
    coefficient: float,
    detach_target: bool = False,
    within_examples: bool = False,
) -> Float[Array, ""]:
    """coefficient * mean squared difference of score and 1 - `neighbour_cosine`, over windows of prunable frames 1...

    As in the released code gradients reach the tower through the target, and the first frame of a second video in the
    row is compared with the last frame of what precedes it. No prunable frame gives 0.

    Args:
      scores: (F, P) of the scorer.
      x: (F, N, D) what was scored.
      windows: of a frame.
      examples: of the flat axis.
      coefficient: factor.
      detach_target: no gradient through the target.
      within_examples: only pairs of frames of one example.
    """
    target = 1.0 - neighbour_cosine(x, windows)
    target = lax.stop_gradient(target) if detach_target else target
    counted = examples.prunable[1:]
    if within_examples:
        counted &= ~examples.first[1:]
    squares = jnp.where(counted[:, None], (scores.astype(jnp.float32)[1:] - target) ** 2, 0.0)
    return coefficient * squares.sum() / jnp.maximum(1, windows.count * counted.sum())
