"""Scores as a bias on the keys of the next block: the only way from the language model's loss to the scorer."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvidprune.stts.select import Examples
from jvidprune.stts.windows import Windows

_EPS = 1e-6


def key_bias(
    scores: Float[Array, "F P"],
    windows: Windows,
    examples: Examples,
    *,
    floor: float,
    rescale: Literal["rows", "frame"] = "rows",
) -> Float[Array, "F N"]:
    """log of the scores rescaled to [floor, 1], one value a patch, float32.

    The released code rescales within each row of windows, so that every row has one window with bias 0 and one with
    about log(floor), whatever its scores; its comment speaks of frames ("frame"). First frames of videos, and frames of
    examples of which nothing is removed, have bias 0. Minimum and maximum are differentiated through.

    Args:
      scores: (F, P) in (0, 1).
      windows: of a frame.
      examples: of the flat axis.
      floor: smallest rescaled score.
      rescale: what shares a minimum and a maximum.
    """
    s = scores.astype(jnp.float32).reshape(-1, *windows.grid)
    axes = (2,) if rescale == "rows" else (1, 2)
    low, high = s.min(axis=axes, keepdims=True), s.max(axis=axes, keepdims=True)
    scaled = floor + (s - low) * (1.0 - floor) / (high - low + _EPS)
    spread = windows.spread_largest(scaled.reshape(scores.shape), 1.0)
    biased = examples.prunable & ~examples.first
    return jnp.log(jnp.where(biased[:, None], spread, 1.0))
