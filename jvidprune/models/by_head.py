"""Attention with heads in front of tokens, and in a causal prompt over the keys that its queries can see alone.

On CPUs this is 3 to 6 times as fast as the plain code with its gradient, and equal to it up to the order of sums.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

_MASKED = -1e30
_QUERIES = 256
"""Queries scored at once, of a causal prompt."""
_MOST = 8
"""Most parts that a prompt is scored in: they are unrolled."""


def by_head(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B P K d"],
    v: Float[Array, "B P K d"],
    valid: Bool[Array, "B P"] | None = None,
    past: tuple[Float[Array, "B M K d"], Float[Array, "B M K d"], Bool[Array, "B M"]] | None = None,
    *,
    causal: bool,
) -> Float[Array, "B S H d"]:
    """Softmax attention in float32; query head j reads key head floor(j / (H / K)).

    Args:
      q: queries; the output has their dtype.
      k: fresh keys; v alike.
      valid: which of them may be seen; None where all may.
      past: keys and values of a cache, and which of them may be seen; every query sees these.
      causal: whether query i sees fresh keys 0..i only.
    """
    batch, length, heads, dim = q.shape
    kv = k.shape[2]
    queries = jnp.moveaxis(q.reshape(batch, length, kv, heads // kv, dim), 1, 3) * jnp.asarray(dim**-0.5, q.dtype)
    fresh = tuple(jnp.moveaxis(x, 1, 2) for x in (k, v))
    old = None if past is None else (*(jnp.moveaxis(x.astype(q.dtype), 1, 2) for x in past[:2]), past[2])
    size = max(_QUERIES, -(-length // _MOST)) if causal else length
    outs = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        seen = stop if causal else k.shape[1]
        mask = None if valid is None else valid[:, None, None, None, :seen]
        if causal:
            order = jnp.arange(seen) <= jnp.arange(start, stop)[:, None]
            mask = order if mask is None else mask & order
        parts = [(fresh[0][:, :, :seen], fresh[1][:, :, :seen], mask)]
        if old is not None:
            parts.append((old[0], old[1], old[2][:, None, None, None, :]))
        outs.append(_weighed(queries[:, :, :, start:stop], parts))
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=3)
    return jnp.moveaxis(out, 3, 1).reshape(batch, length, heads, dim)


def _weighed(q: Float[Array, "B K G Q d"], parts: list[tuple[Any, Any, Any]]) -> Float[Array, "B K G Q d"]:
    """Values of all parts weighed by one softmax; each part is keys and values (B, K, P, d) and a mask or None."""
    scores = []
    for k, _, mask in parts:
        found = jnp.einsum("bkgqd,bkpd->bkgqp", q, k, preferred_element_type=jnp.float32)
        scores.append(found if mask is None else jnp.where(mask, found, _MASKED))
    highest = scores[0].max(-1, keepdims=True)
    for other in scores[1:]:
        highest = jnp.maximum(highest, other.max(-1, keepdims=True))
    highest = lax.stop_gradient(highest)
    total, out = jnp.zeros_like(highest), jnp.zeros(q.shape, jnp.float32)
    for found, (_, v, _) in zip(scores, parts, strict=True):
        weights = jnp.exp(found - highest)
        total += weights.sum(-1, keepdims=True)
        out += jnp.einsum("bkgqp,bkpd->bkgqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total).astype(q.dtype)
