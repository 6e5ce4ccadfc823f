"""Reading a prompt: `prefill` is the jitted first stage of an answer, `read_prompt` what it computes, cut by cut."""

import dataclasses
import functools
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.attended import check_attended, check_read
from jvidprune.cuts.cache import Cache, CacheSegment
from jvidprune.cuts.cut import Cut, CutRecord, Moved
from jvidprune.cuts.decoding import DecodePolicy
from jvidprune.cuts.inner import Inner, last_valid
from jvidprune.cuts.protocol import AHEAD, TokenState
from jvidprune.cuts.reselection import Reselection
from jvidprune.cuts.routing import Ran, Route, RouteRecord
from jvidprune.errors import JvidpruneError
from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_layer import LayerOutputs, joined
from jvidprune.parallel import on_every_device, on_mesh_of


class PromptParts(TypedDict, total=False):
    """What a prompt may have beside its embeddings.

    Keys:
      deepstack: (L, B, S, D) added after each of the first L layers (Qwen3-VL; `models.qwen.model.spread_levels`).
      next_position: (B,) position of the first generated token; by default the largest valid position plus one,
        whatever is cut inside the model. A prompt whose last positions were pruned away must pass it.
      inner: stages inside the model.
      bidirectional: (B, S) slots that see each other in either direction (Molmo2's visual tokens and the ids
        `config.tokens.ids`, of all frames and images); such a prompt is read by the plain attention.
    """

    deepstack: Float[Array, "L B S D"] | None
    next_position: Int[Array | np.ndarray, "B"] | None
    inner: Inner | None
    bidirectional: Bool[Array | np.ndarray, "B S"] | None


class Read(NamedTuple):
    """Result of `read_prompt`.

    Attributes:
      logits: (B, V) float32 at each row's last valid slot.
      cache: filled.
      cuts: what each cut inside the model did, in order.
      hidden: (B, S, D) output of the last layer before the final norm; S is the length behind the last cut.
      fits: () whether no rule kept more tokens than its cut has slots for, the last of which would be lost; None where
        no cut moves tokens together.
      states: the tokens behind each cut, in order.
      routes: what each routed layer did, in order.
    """

    logits: Float[Array, "B V"]
    cache: Cache
    cuts: tuple[CutRecord, ...]
    hidden: Float[Array, "B S D"]
    fits: Bool[Array, ""] | None
    states: tuple[TokenState, ...] = ()
    routes: tuple[RouteRecord, ...] = ()


def prefill(
    model: Any,
    embeds: Float[Array | np.ndarray, "B S D"],
    positions: Int[Array | np.ndarray, "... B S"],
    valid: Bool[Array | np.ndarray, "B S"],
    *,
    capacity: int,
    **parts: Unpack[PromptParts],
) -> tuple[Float[Array, "B V"], Cache]:
    """The jitted first stage: logits at the last valid slot of each prompt, and a cache with room for the answer.

    Args:
      model: any model with a decoder `lm`.
      embeds: (B, S, D) prompts, padded to S on either side.
      positions: (B, S) or (3, B, S).
      valid: (B, S) bool; read on the host, to see whether a fused kernel may serve.
      capacity: slots of the cache, at least S plus the decoding steps; shorter where stages inside the model cut.
      **parts: see `PromptParts`.

    Raises:
      JvidpruneError: S beyond the model's positions or the capacity, or a rule inside the model that keeps more tokens
        than its stage counts.
    """
    with on_mesh_of(model) as mesh:
        cache = _empty_cache(model, embeds, capacity, parts.get("inner"), mesh)
        logits, cache, fits = run_prefill(model, embeds, positions, valid, cache, parts, packed=_packed(valid))
    if fits is not None and not fits:
        raise JvidpruneError(
            "a rule inside the language model kept more tokens than its stage counts, so that the end of the "
            "prompt would be lost; keep at most inputs.kept visual tokens, or raise the stage's Kept."
        )
    return logits, cache


def lower_prefill(
    model: Any,
    embeds: Float[Array | np.ndarray, "B S D"],
    positions: Int[Array | np.ndarray, "... B S"],
    valid: Bool[Array | np.ndarray, "B S"],
    *,
    capacity: int,
    **parts: Unpack[PromptParts],
) -> Any:
    """The program that `prefill` runs on these arguments, as JAX lowers it; nothing is run.

    Behind a call of `prefill` its `compile()` costs nothing.
    """
    with on_mesh_of(model) as mesh:
        cache = _empty_cache(model, embeds, capacity, parts.get("inner"), mesh)
        return run_prefill.lower(model, embeds, positions, valid, cache, parts, packed=_packed(valid))


def _empty_cache(model: Any, embeds: Any, capacity: int, inner: Inner | None, mesh: Any) -> Cache:
    """A cache of a segment for each stretch of layers between the cuts of `inner`."""
    length = embeds.shape[1]
    slots: int | tuple[int, ...] = capacity
    boundaries: tuple[int, ...] = ()
    if inner is not None:
        slots, boundaries = inner.capacities(length, capacity - length), inner.boundaries
    return model.lm.empty_cache(embeds.shape[0], slots, boundaries, mesh=mesh)


def _packed(valid: Any) -> bool:
    """Whether prompts are padded behind their ends alone."""
    there = np.asarray(valid)
    return not (there[:, 1:] & ~there[:, :-1]).any()


@functools.partial(jax.jit, static_argnames="packed", donate_argnames="cache")
def run_prefill(
    model: Any, embeds: Array, positions: Array, valid: Array, cache: Cache, parts: PromptParts, *, packed: bool
) -> tuple[Array, Cache, Array | None]:
    """The program of `prefill`, on a cache that is donated."""
    read = read_prompt(model.lm, embeds, positions, valid, cache, packed=packed, **parts)
    # Every process of a mesh looks at it.
    return read.logits, read.cache, None if read.fits is None else on_every_device(read.fits)


def read_prompt(
    decoder: Decoder,
    embeds: Float[Array | np.ndarray, "B S D"],
    positions: Int[Array | np.ndarray, "... B S"],
    valid: Bool[Array | np.ndarray, "B S"],
    cache: Cache,
    *,
    packed: bool = False,
    **parts: Unpack[PromptParts],
) -> Read:
    """Reads a prompt into an empty cache, with what happened on the way; pure.

    Args:
      decoder: of any family.
      embeds: (B, S, D) prompt, padded to S on either side.
      positions: (B, S) or (3, B, S) explicit rotary positions.
      valid: (B, S) which slots are real.
      cache: from `Decoder.empty_cache`; its boundaries are those of `inner`, or any without cuts.
      packed: static; promises that prompts are padded behind their ends alone, so that a fused kernel may serve.
      **parts: see `PromptParts`.

    Raises:
      JvidpruneError: more slots than the cache or the model's positions hold, boundaries that do not fit, or stages
        that this prompt or model cannot have.
    """
    embeds, positions, valid = jnp.asarray(embeds), jnp.asarray(positions), jnp.asarray(valid)
    levels, bidirectional = parts.get("deepstack"), parts.get("bidirectional")
    inner, next_position = parts.get("inner"), parts.get("next_position")
    if inner is None:
        nothing = np.zeros(valid.shape, bool)
        inner = Inner.create((), nothing, nothing, layers=0)
    decoder.check_length(embeds.shape[1])
    _check_stages(decoder, inner, cache, levels=0 if levels is None else levels.shape[0])
    following = _next_positions(valid, positions) if next_position is None else jnp.asarray(next_position)
    following = following.astype(jnp.int32)
    cuts, routes = {cut.boundary: cut for cut in inner.cuts}, {route.layer: route for route in inner.routes}
    state = inner.start(embeds.astype(decoder.dtype), positions, valid)._replace(bidirectional=bidirectional)
    shift: Array | None = None
    records: list[CutRecord] = []
    states: list[TokenState] = []
    routed: list[RouteRecord] = []
    written: list[_Written] = []
    policy: Any = inner.policy
    dense, deepstack = packed, levels
    for layer in (0, *(segment.stop for segment in cache.segments)):
        cut, attention, keys = cuts.get(layer), None, None
        if layer > 0:
            segment = cache.segments[len(written)]
            if (route := routes.get(segment.start)) is not None:
                state, part, found = _run_routed(decoder, route, state, deepstack, packed=packed)
                renumbered = route.positions == "renumber"
                own = following - part.valid.sum(axis=1, dtype=jnp.int32) if renumbered else shift
                follows = route if route.rule.routes_answers else None
                written.append(_Written(part.k, part.v, part.valid, own, follows, part.bias, part.state))
                routed.append(found)
            else:
                rows = None if cut is None or cut.rule.probe in AHEAD else inner.rows(cut, state)
                causal, middle = cut is None or cut.rule.causal, cut is not None and cut.where == "middle"
                room = 0 if cuts or routes else segment.capacity
                how: dict[str, Any] = {"causal": causal, "packed": packed, "middle": middle, "room": room}
                hidden, left, attention = _run_layers(decoder, state, segment.start, layer, deepstack, rows, **how)
                keys = left.k
                written.append(_Written(keys, left.v, state.valid, shift, bias=state.bias, state=left.state))
                state = state._replace(hidden=hidden)
        if cut is None:
            continue
        entering = state
        state, record, moved = _take_cut(decoder, inner, cut, state, layer, attention, keys)
        records.append(record)
        states.append(state)
        if isinstance(policy, Reselection):
            policy = policy.begin(record, entering, moved, cache.segments)
        if cut.rule.trims:
            written = [part.trimmed(record, moved) for part in written]
        if levels is not None and (moved is not None or cut.rule.brings_back):
            # From the slots of the prompt, which tokens may come back to.
            deepstack = jnp.take_along_axis(levels, state.source[None, :, :, None], axis=2)
        if cut.where == "middle":
            states[-1] = state = _finish_layer(decoder, cut.layer, state, deepstack)
        shift = _shift_behind(cut, state, following, shift)
        # A cut that only marks what it drops leaves holes, until a later one moves the tokens together.
        packed = dense and cut.capacity is not None
    if policy is not None and not isinstance(policy, Reselection):
        policy = policy.sized(cache.segments[0].capacity)
    segments = tuple(part.into(segment) for part, segment in zip(written, cache.segments, strict=True))
    logits = decoder.logits(state.hidden[jnp.arange(valid.shape[0]), last_valid(state.valid)])
    cache, fits = Cache(segments, following, policy), _all_fit(inner, records, routed)
    return Read(logits, cache, tuple(records), state.hidden, fits, tuple(states), tuple(routed))


def _shift_behind(cut: Cut, state: TokenState, following: Array, before: Array | None) -> Array | None:
    """(B,) what layers behind a cut subtract from the position of a new token, or None; `before` of those before it."""
    if cut.positions == "renumber_prompt":
        return None
    return following - state.valid.sum(axis=1, dtype=jnp.int32) if cut.positions == "renumber" else before


def _all_fit(inner: Inner, cuts: list[CutRecord], routes: list[RouteRecord]) -> Array | None:
    """Whether no stage ran on more tokens than it has room for; None where none has a bound."""
    counted = (*zip(inner.cuts, cuts, strict=True), *zip(inner.routes, routes, strict=True))
    room = [record.count <= stage.capacity for stage, record in counted if stage.capacity]
    return jnp.stack(room).all() if room else None


def _next_positions(valid: Array, positions: Array) -> Array:
    """(B,) position behind the largest of each prompt, on whichever axis."""
    seen = jnp.where(valid, positions, -1)
    return seen.max(axis=(0, 2) if positions.ndim == 3 else 1) + 1


class _Written(NamedTuple):
    """Keys and values (L, B, S, K, d) of one segment of layers, which of their slots are in use, and their shift.

    Where nothing is cut there are as many slots as the cache has, those behind S empty.

    `route` is what routes generated tokens in these layers, or None; `bias` (B, S) that of their keys, or None;
    `state` what layers without keys and values carry, or None.
    """

    k: Array
    v: Array
    valid: Array
    shift: Array | None
    route: Route | None = None
    bias: Array | None = None
    state: Any = None

    def trimmed(self, record: CutRecord, moved: Moved | None) -> "_Written":
        """Without the tokens that a cut behind these layers dropped."""
        if moved is None:
            return self._replace(valid=self.valid & record.survivors)
        at = moved.index[None, :, :, None, None]
        k, v = (jnp.take_along_axis(part, at, axis=2) for part in (self.k, self.v))
        bias = None if self.bias is None else jnp.take_along_axis(self.bias, moved.index, axis=1)
        return self._replace(k=k, v=v, valid=moved.valid, bias=bias)

    def into(self, segment: CacheSegment) -> CacheSegment:
        """The segment of the cache with these."""
        length = self.valid.shape[1]
        if length > segment.capacity:
            raise JvidpruneError(f"a prompt of {length} tokens does not fit a cache of {segment.capacity} slots.")
        bias = self.bias
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, segment.capacity - length)))
        written = segment.append(self.k, self.v, self.valid, self.state)
        return dataclasses.replace(written, shift=self.shift, route=self.route, bias=bias)


def _take_cut(
    decoder: Decoder,
    inner: Inner,
    cut: Cut,
    state: TokenState,
    layer: int,
    attention: Array | None,
    keys: Array | None,
) -> tuple[TokenState, CutRecord, Moved | None]:
    """What a cut does to the tokens in front of `layer`, with all that its rule reads.

    Args:
      attention: of the rows that the rule probes, from the layer before; a rule that looks ahead gets its own.
      keys: of the layers before.
    """
    state = cut.restore(state)
    if cut.rule.probe in AHEAD and (rows := inner.rows(cut, state)) is not None:
        step = decoder.step(state.positions, state.valid, bidirectional=state.bidirectional, bias=state.bias)
        attention = decoder.attention_ahead(state.hidden, step, layer, rows)
    probed = keys[-1] if keys is not None and cut.rule.probe == "keys" else None
    normed = decoder.norm(state.hidden) if cut.rule.reads_normed else None
    rotary = None
    if cut.rule.reads_rotary:
        rotary = decoder.step_in(decoder.step(state.positions, state.valid), max(layer - 1, 0))[:2]
    return cut.apply(state, attention, probed, normed, rotary)


def _run_routed(
    decoder: Decoder, route: Route, state: TokenState, deepstack: Array | None, *, packed: bool
) -> tuple[TokenState, Ran, RouteRecord]:
    """A routed layer, and what is added behind it to all tokens, those that passed it by too."""
    hidden, part, record = route.run(decoder, state, packed=packed)
    if deepstack is not None and route.layer < deepstack.shape[0]:
        hidden = hidden + deepstack[route.layer].astype(hidden.dtype)
    return state._replace(hidden=hidden), part, record


def _finish_layer(decoder: Decoder, layer: int, state: TokenState, deepstack: Array | None) -> TokenState:
    """The second half of a layer in whose middle a cut stood: its MLP, and what is added behind it."""
    hidden = decoder.feed(state.hidden, layer)
    if deepstack is not None and layer < deepstack.shape[0]:
        hidden = hidden + deepstack[layer].astype(hidden.dtype)
    return state._replace(hidden=hidden)


def _run_layers(
    decoder: Decoder,
    state: TokenState,
    start: int,
    stop: int,
    deepstack: Any,
    rows: Any,
    *,
    causal: bool,
    packed: bool,
    middle: bool,
    room: int,
) -> tuple[Array, LayerOutputs, Array | None]:
    """Layers [start, stop): hidden states, what they leave, and the last layer's attention of `rows` if given.

    The last layer runs on its own where it is probed or not causal. With `middle` its MLP is left out, and what is
    added behind it. `room` as in `Decoder.run`, where no layer runs on its own.
    """
    x, told = state.hidden, {"bidirectional": state.bidirectional, "bias": state.bias}
    step = decoder.step(state.positions, state.valid, packed=packed, **told)
    taps = 0 if deepstack is None else deepstack.shape[0]
    alone = rows is not None or not causal or middle
    edges = {stop, min(max(taps, start), stop), stop - 1 if alone else stop} - {start}
    at, weights, found = start, None, []
    for edge in sorted(edges):
        extra = deepstack[at:edge] if deepstack is not None and edge <= taps else None
        last = alone and edge == stop
        probed, seen = rows if last else None, causal or not last
        if middle and last:
            x, outputs = decoder.mix(x, step, at, probed)
        else:
            x, outputs = decoder.run(x, step, at, edge, deepstack=extra, rows=probed, causal=seen, room=room)
        found.append(outputs)
        weights, at = outputs.attention, edge
    return x, joined(found), None if weights is None else weights[-1]


def _check_stages(decoder: Decoder, inner: Inner, cache: Cache, *, levels: int) -> None:
    attending = decoder.config.attending
    check_attended(inner.cuts, decoder.config.layers, attending)
    starts = tuple(segment.start for segment in cache.segments)
    if missing := sorted(set(inner.boundaries) - set(starts)):
        raise JvidpruneError(f"the cache has no boundary at layer {missing[0]}, before which the prompt is cut.")
    policy = inner.policy
    if isinstance(policy, DecodePolicy):
        check_read("the decoding stage", policy.layer - 1, 1, attending)
    if isinstance(policy, Reselection):
        if len(starts) != 2:
            raise JvidpruneError("a cut that is renewed while decoding needs a cache of two segments.")
        if policy.mode != "bank" and levels > policy.layer:
            raise JvidpruneError(
                f"layers from {policy.layer} on are computed anew while decoding, but levels are added up to layer "
                f"{levels - 1}."
            )
    elif policy is not None and len(starts) > 1:
        raise JvidpruneError("a decoding stage needs a cache of one segment.")
