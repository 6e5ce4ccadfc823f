"""DyCoke's choice, at every decoding step, of the cached video tokens that deep layers read (arXiv 2411.15024)."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.select import rank_ascending

DecodeMode = Literal["official", "paper"]


class Reading(NamedTuple):
    """What one decoding step decides.

    Attributes:
      attention: (S,) float32 mean attention of the new token over the video tokens, 0 elsewhere.
      kept: (S,) bool video tokens that deep layers read; False on all other places.
      read: (S,) bool all places but the video tokens that are left out; the caller masks those not written yet.
      similarity: () cosine to the previous step's attention.
    """

    attention: Float[Array, "S"]
    kept: Bool[Array, "S"]
    read: Bool[Array, "S"]
    similarity: Float[Array, ""]


def choose_reading(
    attention: Float[Array, "H S"],
    video: Bool[Array, "S"],
    previous: Float[Array, "S"],
    kept: Bool[Array, "S"],
    started: Bool[Array, ""],
    keep: int | Int[Array, ""],
    *,
    threshold: float,
    mode: DecodeMode = "official",
) -> Reading:
    """Renews the set when the attention has moved.

    Args:
      attention: (H, S) post-softmax attention of the new token in the layer before the first deep one.
      video: (S,) places that may be left out.
      previous: (S,) `attention` of the last step.
      kept: (S,) `kept` of the last step.
      started: () False in the first step, whose similarity is 0.
      keep: video tokens to read, int(V * (1 - P)) from the host; traced or not.
      threshold: cosine below which the set is renewed.
      mode: `official`: an attention that has not moved reads everything, as the released code does; `paper`: it
        keeps the set of the last step.
    """
    now = jnp.where(video, jnp.mean(attention.astype(jnp.float32), axis=0), 0.0)
    norms = jnp.maximum(jnp.linalg.norm(now), 1e-8) * jnp.maximum(jnp.linalg.norm(previous), 1e-8)
    similarity = jnp.where(started, jnp.sum(now * previous) / norms, 0.0)
    chosen = rank_ascending(jnp.where(video, -now, jnp.inf)) < keep
    kept = jnp.where(similarity < threshold, chosen, kept if mode == "paper" else video) & video
    return Reading(now, kept, ~video | kept, similarity)
