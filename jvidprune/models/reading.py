"""How a decoder reads a prompt, cut by cut, and runs one decoding step over what it has read."""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.models.cache import Cache, CacheSegment
from jvidprune.models.cuts import Cut, CutRecord, Inner, TokenState, last_valid
from jvidprune.models.decode_policy import Reselection


class Read(NamedTuple):
    """Result of `Decoder.read`.

    Attributes:
      logits: (B, V) float32 at each row's last valid slot.
      cache: filled.
      cuts: what each cut inside the model did, in order.
      hidden: (B, S, D) output of the last layer before the final norm; S is the length behind the last cut.
    """

    logits: Float[Array, "B V"]
    cache: Cache
    cuts: tuple[CutRecord, ...]
    hidden: Float[Array, "B S D"]


class _Written(NamedTuple):
    """Keys and values (L, B, S, K, d) of one segment of layers, and which of their slots are in use (B, S)."""

    k: Array
    v: Array
    valid: Array


def read_prompt(
    decoder: Any,
    embeds: Array,
    positions: Array,
    valid: Array,
    cache: Cache,
    added: Array | None,
    next_position: Array | None,
    inner: Inner | None,
    *,
    packed: bool = False,
    together: Array | None = None,
) -> Read:
    """See `Decoder.prefill`."""
    decoder.check_length(embeds.shape[1])
    renewed = inner.policy if inner is not None and isinstance(inner.policy, Reselection) else None
    if renewed is not None and added is not None and renewed.mode == "recompute" and added.shape[0] > renewed.layer:
        raise JvidpruneError(
            f"layers from {renewed.layer} on are computed anew while decoding, but levels are added up to layer "
            f"{added.shape[0] - 1}."
        )
    if next_position is None:
        seen = jnp.where(valid, positions, -1)
        next_position = seen.max(axis=(0, 2) if positions.ndim == 3 else 1) + 1
    if inner is None:
        nothing = np.zeros(valid.shape, bool)
        inner = Inner.create((), nothing, nothing, layers=0)
    _check_boundaries(inner, cache)
    state = inner.start(embeds.astype(decoder.dtype), positions, valid)._replace(together=together)
    waiting = list(inner.cuts)
    records: list[CutRecord] = []
    written: list[_Written] = []
    choice: list[Any] = []

    def cut_now(cut: Cut, state: TokenState, weights: Any, added: Any) -> tuple[TokenState, Any]:
        state, record, kept = cut.apply(state, weights)
        records.append(record)
        if isinstance(inner.policy, Reselection):
            choice.append((record.survivors, record.score, state.hidden, state.positions, state.together))
        if cut.trims:
            written[:] = [_trimmed(part, record, kept) for part in written]
        if added is not None and kept is not None:
            added = jnp.take_along_axis(added, kept[0][None, :, :, None], axis=2)
        return state, added

    if waiting and waiting[0].layer == 0:
        packed = packed and waiting[0].capacity is not None
        state, added = cut_now(waiting.pop(0), state, None, added)
    for segment in cache.segments:
        cut = waiting.pop(0) if waiting and waiting[0].layer == segment.stop else None
        rows = None if cut is None else inner.rows(cut, state)
        causal = cut is None or cut.causal
        options: dict[str, Any] = {"causal": causal, "packed": packed}
        hidden, k, v, weights = _run_stretch(decoder, state, segment.start, segment.stop, added, rows, **options)
        written.append(_Written(k, v, state.valid))
        state = state._replace(hidden=hidden)
        if cut is not None:
            state, added = cut_now(cut, state, weights, added)
            # A cut that only marks what it drops leaves holes.
            packed = packed and cut.capacity is not None
    segments = tuple(_append(segment, part) for segment, part in zip(cache.segments, written, strict=True))
    logits = decoder.logits(state.hidden[jnp.arange(valid.shape[0]), last_valid(state.valid)])
    policy, room = inner.policy, cache.segments[0].capacity
    if isinstance(policy, Reselection):
        policy = policy.begin(*choice[0], slots=room)
    elif policy is not None:
        policy = policy.sized(room)
    return Read(logits, Cache(segments, next_position.astype(jnp.int32), policy), tuple(records), state.hidden)


def _run_stretch(
    decoder: Any, state: TokenState, start: int, stop: int, added: Any, rows: Any, *, causal: bool, packed: bool
) -> tuple[Array, Array, Array, Any]:
    """Layers [start, stop): hidden states, keys, values, and the last layer's attention of `rows` if given.

    The last layer runs on its own where it is probed or not causal.
    """
    x, step = state.hidden, decoder.step(state.positions, state.valid, packed=packed, together=state.together)
    taps = 0 if added is None else added.shape[0]
    alone = rows is not None or not causal
    edges = {stop, min(max(taps, start), stop), stop - 1 if alone else stop} - {start}
    at, weights, found = start, None, []
    for edge in sorted(edges):
        extra = added[at:edge] if added is not None and edge <= taps else None
        last = alone and edge == stop
        probed, seen = rows if last else None, causal or not last
        x, outputs = decoder.run(x, step, at, edge, added=extra, rows=probed, causal=seen)
        found.append(outputs)
        weights, at = outputs.attention, edge
    k, v = (jnp.concatenate([part[i] for part in found]) for i in (0, 1))
    return x, k, v, None if weights is None else weights[-1]


def run_cached(
    decoder: Any, x: Array, step: Any, segment: CacheSegment, policy: Any, position: Array
) -> tuple[Array, Array, Array, Any]:
    """The layers of one cache segment in a decoding step: hidden states, fresh keys and values, the policy's new state.

    With a policy the layers from `policy.layer` on read what it lets them, chosen by the layer before.
    """
    if policy is None:
        x, outputs = decoder.run(x, step, segment.start, segment.stop, past=segment)
        return x, outputs.k, outputs.v, None
    if segment.start == policy.layer and isinstance(policy, Reselection):
        return policy.run_deep(decoder, x, step, position, segment)
    found, read = [], None
    for start, stop in itertools.pairwise(sorted({0, policy.layer - 1, policy.layer, segment.stop})):
        rows = jnp.zeros((x.shape[0], 1), jnp.int32) if stop == policy.layer else None
        x, outputs = decoder.run(x, step, start, stop, past=segment, past_valid=read, rows=rows)
        found.append(outputs)
        if rows is not None:
            attention = outputs.attention[-1, :, :, 0, : segment.capacity]
            if isinstance(policy, Reselection):
                policy = policy.step(attention, segment.valid)
            else:
                policy, chosen = policy.step(attention)
                read = segment.valid & chosen
    k, v = (jnp.concatenate([part[i] for part in found]) for i in (0, 1))
    return x, k, v, policy


def _check_boundaries(inner: Inner, cache: Cache) -> None:
    starts = tuple(segment.start for segment in cache.segments)
    if missing := sorted(set(inner.boundaries) - set(starts)):
        raise JvidpruneError(f"the cache has no boundary at layer {missing[0]}, before which the prompt is cut.")
    if isinstance(inner.policy, Reselection):
        if len(starts) != 2:
            raise JvidpruneError("a cut that is renewed while decoding needs a cache of two segments.")
    elif inner.policy is not None and len(starts) > 1:
        raise JvidpruneError("a decoding stage needs a cache of one segment.")


def _append(segment: CacheSegment, part: _Written) -> CacheSegment:
    length = part.valid.shape[1]
    if length > segment.capacity:
        raise JvidpruneError(f"a prompt of {length} tokens does not fit a cache of {segment.capacity} slots.")
    return segment.append(part.k, part.v, part.valid)


def _trimmed(part: _Written, record: CutRecord, kept: Any) -> _Written:
    """Keys and values of layers before a cut, without the tokens that it dropped."""
    if kept is None:
        return part._replace(valid=part.valid & record.survivors)
    index, there = kept
    at = index[None, :, :, None, None]
    return _Written(jnp.take_along_axis(part.k, at, axis=2), jnp.take_along_axis(part.v, at, axis=2), there)
