"""How well fewer tokens stand for all: every token rebuilt as the output token nearest to it."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.similarity import dot_f32, squared_norms, widened


def squared_distances(tokens: Float[Array, "M D"], kept: Float[Array, "K D"]) -> Float[Array, "M K"]:
    """|x - y|^2 of every token and every output token, at least 0, in float32; no (M, K, D) array is formed."""
    squared = squared_norms(tokens)[:, None] + squared_norms(kept)[None] - 2.0 * dot_f32(tokens, kept)
    return jnp.maximum(squared, 0.0)


def reconstruction_error(
    tokens: Float[Array, "M D"],
    kept: Float[Array, "K D"],
    valid: Bool[Array, "K"],
    wanted: Bool[Array, "M"],
) -> Float[Array, ""]:
    """Squared error of tokens that are rebuilt as their nearest output token, as a share of their variance.

    0 rebuilds them exactly, 1 is what their own mean does; output tokens that are no numbers give NaN. Differentiable
    in `kept` wherever the nearest one is unique.

    Args:
      tokens: all tokens of a video.
      kept: output tokens.
      valid: which of these are no padding.
      wanted: tokens that are rebuilt, as the dropped ones; with none of them the error is 0.
    """
    tokens = tokens.astype(widened(tokens.dtype))
    kept = kept.astype(tokens.dtype)
    nearest = jnp.min(jnp.where(valid, squared_distances(tokens, kept), jnp.inf), axis=1)
    nearest = jnp.where(wanted & valid.any(), nearest, 0.0)
    share = wanted.astype(tokens.dtype)
    mean = (share[:, None] * tokens).sum(0) / jnp.maximum(share.sum(), 1.0)
    spread = (share * squared_norms(tokens - mean)).sum()
    return nearest.sum() / jnp.maximum(spread, 1e-12)


def dropped_tokens(index: Int[Array, "K"], valid: Bool[Array, "K"], there: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """Tokens that are there and have no output row of their own.

    Args:
      index: token behind each output row, anything on padding.
      valid: which rows are no padding.
      there: tokens of real frames.
    """
    own = jnp.zeros(there.shape[0], bool).at[jnp.where(valid, index, there.shape[0])].set(True, mode="drop")
    return there & ~own
