"""Attention with grouped key/value heads, and the few attention rows or column sums that reducers ask for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.models.by_head import by_head
from jvidprune.models.fused import AttentionKind, fused_attention, implementation

_MASKED = -1e30
"""Score of a masked key: finite, so that a row without any visible key yields garbage instead of NaN."""

QUERY_CHUNK = 256
"""Queries scored at once: bounds the score array of a long prompt to (B, heads, 256, keys) float32."""

FRAME_QUERIES = 2048
"""Largest frame of a vision tower whose square attention map is made at once."""


Attend = Callable[[Array, Array, Array], Array]
"""Attention of a block from outside: queries, keys and values (rows, slots, heads, d) to outputs of that shape."""


class Past(NamedTuple):
    """Keys and values of one layer that were written before: k and v (B, M, K, d), valid (B, M).

    With valid (B, S, M) each of S fresh slots sees others of them. `bias` as in `Keys`, (B, M).
    """

    k: Float[Array, "B M K d"]
    v: Float[Array, "B M K d"]
    valid: Bool[Array, "B *S M"]
    bias: Any = None


class Segments(NamedTuple):
    """Several examples in one row: which of its slots may see each other, besides causality.

    Attributes:
      segment: (B, S) int32; a slot sees its own segment alone.
      branch: (B, S) int32; slots of branch 0 are seen by their whole segment (a video), those of another branch by that
        branch alone (one of several questions about it).
    """

    segment: Int[Array, "B S"]
    branch: Int[Array, "B S"]

    def seen(self, rows: Int[Array, "B Q"]) -> Bool[Array, "B Q S"]:
        """Which slots each of the slots `rows` may see, causality left aside."""
        segment, branch = (jnp.take_along_axis(x, rows, axis=1)[:, :, None] for x in self)
        shared = (self.branch == 0)[:, None, :] | (self.branch[:, None, :] == branch)
        return (self.segment[:, None, :] == segment) & shared


class Keys(NamedTuple):
    """Fresh keys of one layer: k after rotary and v (B, S, K, d), valid (B, S).

    `packed` (static) promises that the valid slots of each row are its first ones; `segments` tell several examples in
    one row apart; `bidirectional` (B, S) marks slots that see each other in either direction whatever causality says
    (Molmo2's visual tokens), or is None. `bias` (B, S) float32 is added to the scaled score of each key, for all
    queries and heads, or is None. Where weights alone are wanted v is None.
    """

    k: Float[Array, "B S K d"]
    v: Any
    valid: Bool[Array, "B S"]
    packed: bool = False
    segments: Segments | None = None
    bidirectional: Any = None
    bias: Any = None


def _weights(
    q: Float[Array, "B Q H d"], rows: Int[Array, "B Q"], keys: Keys, past: Past | None, causal: bool
) -> Float[Array, "B K G Q P"]:
    """Softmax in float32 over past keys followed by fresh keys (P = M + S); rows are the fresh slots of the queries."""
    batch, queries, heads, dim = q.shape
    groups = heads // keys.k.shape[2]
    q = q.reshape(batch, queries, heads // groups, groups, dim)
    scores = jnp.einsum("bqkgd,bskd->bkgqs", q, keys.k, preferred_element_type=jnp.float32)
    seen = jnp.broadcast_to(keys.valid[:, None, :], (batch, queries, keys.k.shape[1]))
    if causal:
        ordered = jnp.arange(keys.k.shape[1]) <= rows[:, :, None]
        if keys.bidirectional is not None:
            looking = jnp.take_along_axis(keys.bidirectional, rows, axis=1)
            ordered |= looking[:, :, None] & keys.bidirectional[:, None, :]
        seen &= ordered
    if keys.segments is not None:
        seen &= keys.segments.seen(rows)
    if past is not None:
        before = jnp.einsum("bqkgd,bskd->bkgqs", q, past.k.astype(q.dtype), preferred_element_type=jnp.float32)
        scores = jnp.concatenate([before, scores], axis=-1)
        each = past.valid[:, None] if past.valid.ndim == 2 else jnp.take_along_axis(past.valid, rows[..., None], axis=1)
        old = jnp.broadcast_to(each, (batch, queries, past.k.shape[1]))
        seen = jnp.concatenate([old, seen], axis=-1)
    scores = scores * dim**-0.5
    if (bias := _bias(keys, past)) is not None:
        scores += bias[:, None, None, None]
    return jax.nn.softmax(jnp.where(seen[:, None, None], scores, _MASKED), axis=-1)


def _bias(keys: Keys, past: Past | None) -> Float[Array, "B P"] | None:
    """What is added to the scores of past and fresh keys; None where nothing is."""
    parts = (keys,) if past is None else (past, keys)
    if all(part.bias is None for part in parts):
        return None
    found = (jnp.zeros(part.k.shape[:2]) if part.bias is None else part.bias for part in parts)
    return jnp.concatenate([x.astype(jnp.float32) for x in found], axis=1)


def attend(
    q: Float[Array, "B S H d"],
    keys: Keys,
    past: Past | None = None,
    *,
    causal: bool = True,
    kind: AttentionKind = "auto",
) -> Array:
    """Attention of S fresh queries over the past and the fresh keys.

    Causality is by slot: fresh query i sees the valid past slots and the valid fresh slots 0..i, and where it is one of
    `keys.bidirectional` all of these. Scores accumulate and are normalised in float32; the output has the dtype of q.
    Rows whose query is padding hold garbage.

    Args:
      q: (B, S, H, d) after rotary; query head j reads key head floor(j / (H / K)).
      keys: fresh keys and values.
      past: what the cache holds, or None.
      causal: False lets every query see all valid fresh keys.
      kind: which code computes it, see `fused.AttentionKind`.

    Returns:
      (B, S, H, d).
    """
    ordered = keys.segments is None and keys.bias is None and (keys.bidirectional is None or not causal)
    if kind == "by_head" and ordered and (past is None or (past.bias is None and past.valid.ndim == 2)):
        return by_head(q, keys.k, keys.v, keys.valid, None if past is None else past[:3], causal=causal)
    which = implementation(kind, q, simple=keys.packed and past is None and ordered)
    if which != "plain":
        lengths = None if causal else keys.valid.sum(axis=1, dtype=jnp.int32)
        return fused_attention(q, keys.k, keys.v, which=which, causal=causal, lengths=lengths)
    batch, length, heads, dim = q.shape

    def block(queries: Array, rows: Array) -> Array:
        weights = _weights(queries, rows, keys, past, causal).astype(q.dtype)
        old = 0 if past is None else past.k.shape[1]
        out = jnp.einsum("bkgqs,bskd->bqkgd", weights[..., old:], keys.v)
        if past is not None:
            out += jnp.einsum("bkgqs,bskd->bqkgd", weights[..., :old], past.v.astype(q.dtype))
        return out.reshape(batch, queries.shape[1], heads, dim)

    rows = jnp.broadcast_to(jnp.arange(length), (batch, length))
    if length <= QUERY_CHUNK:
        return block(q, rows)
    chunks = -(-length // QUERY_CHUNK)
    pad = chunks * QUERY_CHUNK - length
    q = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(batch, chunks, QUERY_CHUNK, heads, dim)
    rows = jnp.pad(rows, ((0, 0), (0, pad))).reshape(batch, chunks, QUERY_CHUNK)
    out = lax.map(lambda x: block(*x), (jnp.moveaxis(q, 1, 0), jnp.moveaxis(rows, 1, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(batch, chunks * QUERY_CHUNK, heads, dim)[:, :length]


def probe(
    q: Float[Array, "B S H d"], rows: Int[Array, "B R"], keys: Keys, past: Past | None = None, *, causal: bool = True
) -> Float[Array, "B H R P"]:
    """Attention weights, float32, of R query rows over past and fresh keys: never the whole map.

    Args:
      q: (B, S, H, d) after rotary.
      rows: (B, R) fresh slots whose rows are wanted.
      keys: fresh keys.
      past: what the cache holds, or None.
      causal: as in `attend`.
    """
    picked = jnp.take_along_axis(q, rows[:, :, None, None], axis=1)
    return row_weights(picked, rows, keys, past, causal=causal)


def row_weights(
    q: Float[Array, "B R H d"], rows: Int[Array, "B R"], keys: Keys, past: Past | None = None, *, causal: bool = True
) -> Float[Array, "B H R P"]:
    """The weights of `probe` for R queries that stand in the fresh slots `rows`; values are not read."""
    weights = _weights(q, rows, keys, past, causal)
    return weights.reshape(q.shape[0], q.shape[2], rows.shape[1], weights.shape[-1])


def attend_all(
    q: Float[Array, "T M H d"],
    k: Float[Array, "T M H d"],
    v: Float[Array, "T M H d"],
    *,
    valid: Bool[Array, "T M"] | None = None,
    bias: Float[Array, "T M"] | None = None,
    received: bool = False,
    kind: AttentionKind = "auto",
) -> tuple[Float[Array, "T M H d"], Any]:
    """Attention of every token of a frame (or window) over the same frame.

    Frames of more than `FRAME_QUERIES` tokens are scored in chunks of queries, so that their square map never exists.

    Args:
      q: (T, M, H, d) queries; k and v alike.
      valid: (T, M) bool, False on tokens that fill a window up; by default all are real.
      bias: (T, M) float32, added to the scaled scores of each key for all queries and heads (STTS).
      received: also return the column means of the weights.
      kind: which code computes it, see `fused.AttentionKind`.

    Returns:
      The output (T, M, H, d), and (T, H, M) float32 attention received by each token, mean over the valid queries, or
      None. Rows of filling tokens hold garbage.
    """
    if kind == "by_head" and bias is None and not received:
        return by_head(q, k, v, valid, causal=False), None
    which = implementation(kind, q, simple=valid is None and bias is None and not received)
    if which != "plain":
        return fused_attention(q, k, v, which=which, causal=False), None
    scale, tokens = q.shape[-1] ** -0.5, q.shape[1]

    def block(queries: Array, counted: Array | None) -> tuple[Array, Any]:
        scores = jnp.einsum("tqhd,tshd->thqs", queries, k, preferred_element_type=jnp.float32) * scale
        if bias is not None:
            scores += bias[:, None, None]
        if valid is not None:
            scores = jnp.where(valid[:, None, None], scores, _MASKED)
        weights = jax.nn.softmax(scores, axis=-1)
        out = jnp.einsum("thqs,tshd->tqhd", weights.astype(q.dtype), v)
        if not received:
            return out, None
        return out, (weights if counted is None else jnp.where(counted[:, None, :, None], weights, 0.0)).sum(axis=2)

    count = tokens if valid is None else jnp.maximum(valid.sum(axis=1), 1)[:, None, None]
    if tokens <= FRAME_QUERIES:
        out, sums = block(q, valid)
        return out, sums / count if received else None
    chunks = -(-tokens // QUERY_CHUNK)
    pad = chunks * QUERY_CHUNK - tokens
    counted = jnp.ones(q.shape[:2], bool) if valid is None else valid
    counted = jnp.pad(counted, ((0, 0), (0, pad))).reshape(q.shape[0], chunks, QUERY_CHUNK)
    parts = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(q.shape[0], chunks, QUERY_CHUNK, *q.shape[2:])

    def step(sums: Any, x: tuple[Array, Array]) -> tuple[Any, Array]:
        out, more = block(*x)
        return (sums + more if received else None), out

    start = jnp.zeros((q.shape[0], q.shape[2], tokens), jnp.float32) if received else None
    sums, out = lax.scan(step, start, (jnp.moveaxis(parts, 1, 0), jnp.moveaxis(counted, 1, 0)))
    out = jnp.moveaxis(out, 0, 1).reshape(q.shape[0], chunks * QUERY_CHUNK, *q.shape[2:])[:, :tokens]
    return out, sums / count if received else None
