"""Facility location: the greedy choice of tokens that cover the others best (OTT-Vid, arXiv 2605.11803)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jvidprune.ops.select import first_argmax
from jvidprune.ops.similarity import over_frames


def coverage_weights(attention: Float[Array, "T N"]) -> Float[Array, "T N"]:
    """Saliency normalised inside each frame."""
    return attention / (jnp.sum(attention, -1, keepdims=True) + 1e-8)


def facility_order(cosine: Float[Array, "T N N"], weight: Float[Array, "T N"], steps: int) -> Int[Array, "T steps"]:
    """Greedy maximisation of sum_i weight_i * max_j cosine_ij over chosen j, per frame; the prefix of any budget.

    Args:
      cosine: symmetric similarities; negative ones never count.
      weight: weight of covering each token.
      steps: tokens to choose, static.

    Returns:
      (T, steps) int32 in the order of choice, equal gains by index.
    """
    tokens = cosine.shape[-1]

    def frame(similar, weight):
        def step(state, _):
            covered, taken = state
            gain = jnp.matmul(jnp.maximum(similar - covered, 0.0), weight, precision=lax.Precision.HIGHEST)
            best = jnp.minimum(first_argmax(jnp.where(taken, -jnp.inf, gain)), tokens - 1)
            return (jnp.maximum(covered, similar[best]), taken | (jnp.arange(tokens) == best)), best

        start = jnp.zeros_like(weight), jnp.zeros(tokens, bool)
        return lax.scan(step, start, None, length=steps)[1]

    return over_frames(frame, cosine, weight)
