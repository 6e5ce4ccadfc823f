"""Attention of packed tokens: every slot sees the slots of its own segment, whichever code computes it."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jvidprune.models.fused import AttentionKind, implementation
from jvidprune.models.splash import splash_attention

_MASKED = -1e30
_CHUNK = 8
"""Rows whose score arrays exist at once in the plain code."""


def rows_attention(
    q: Float[Array, "R S H d"],
    k: Float[Array, "R S H d"],
    v: Float[Array, "R S H d"],
    segment: Int[Array, "R S"],
    *,
    which: Literal["plain", "xla", "cudnn"],
) -> Float[Array, "R S H d"]:
    """Attention inside rows between slots of equal segment; unused slots form a segment of their own."""
    if which != "plain":
        mask = segment[:, None, :, None] == segment[:, None, None, :]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=which)
    scale = q.shape[-1] ** -0.5

    def block(x: tuple[Array, ...]) -> Array:
        q, k, v, segment = x
        scores = jnp.einsum("qhd,shd->hqs", q, k, preferred_element_type=jnp.float32) * scale
        scores = jnp.where(segment[None, :, None] == segment[None, None, :], scores, _MASKED)
        return jnp.einsum("hqs,shd->qhd", jax.nn.softmax(scores, axis=-1).astype(q.dtype), v)

    if q.shape[0] <= _CHUNK:
        return jax.vmap(lambda *x: block(x))(q, k, v, segment)
    return lax.map(block, (q, k, v, segment), batch_size=_CHUNK)


def flat_attention(
    q: Float[Array, "1 C H d"],
    k: Float[Array, "1 C H d"],
    v: Float[Array, "1 C H d"],
    segment: Int[Array, "1 C"],
    longest: int,
    unused: Int[Array, ""] | int,
    *,
    kind: AttentionKind = "auto",
) -> Float[Array, "1 C H d"]:
    """Attention of a flat sequence whose segments are contiguous and ascending.

    In two dense calls: rows of `longest` slots, then a window of as many slots for every boundary between rows that a
    segment straddles, whose outputs replace those of the first call. A segment is at most `longest` slots long, so it
    lies in one row or straddles one boundary, and the window that begins with it holds all of it. On TPU in one call of
    the splash kernel with a band of `longest` slots to either side.

    Args:
      q: (1, C, H, d); k and v alike.
      segment: (1, C) int32, ascending; `unused` behind the last token.
      longest: static bound of the length of a segment.
      unused: segment of unused slots; their outputs are garbage.
      kind: which code computes it; the plain code is a dense masked softmax, a few rows at a time.
    """
    which = implementation(kind, q, simple=True)
    if which == "splash":
        return splash_attention(q, k, v, sight=longest - 1, segment=segment)
    slots = q.shape[1]
    # cuDNN wants an even number of slots, and any width from `longest` on is right.
    width = longest + longest % 2 if which == "cudnn" else longest
    count = -(-slots // width)
    pad = count * width - slots

    def cut(x: Array) -> Array:
        return jnp.pad(x[0], ((0, pad), (0, 0), (0, 0)))

    q, k, v = (cut(x) for x in (q, k, v))
    seg = jnp.pad(segment[0], (0, pad), constant_values=jnp.iinfo(jnp.int32).max)
    a, b, c = (x.reshape(count, width, *x.shape[1:]) for x in (q, k, v))
    out = rows_attention(a, b, c, seg.reshape(count, width), which=which).reshape(q.shape)
    if count == 1:
        return out[None, :slots]
    boundary = jnp.arange(1, count) * width
    begin = jnp.searchsorted(seg, seg[boundary]).astype(jnp.int32)
    at = begin[:, None] + jnp.arange(width)
    straddles = (begin < boundary) & (seg[boundary] < unused)
    # A segment that straddles begins before its boundary, so that its window ends inside the sequence.
    at = jnp.minimum(at, count * width - 1)
    mended = rows_attention(q[at], k[at], v[at], seg[at], which=which)
    mine = straddles[:, None] & (seg[at] == seg[boundary][:, None])
    place = jnp.where(mine, at, count * width)
    out = out.at[place.reshape(-1)].set(mended.reshape(-1, *mended.shape[2:]), mode="drop")
    return out[None, :slots]
