"""Stages inside the language model: data that says where the decoder cuts, by what rule, and to which length.

A reducer carries `InnerStage`s; `Inner.create` turns them, on the host, into integers and static lengths for one
batch of prompts; `Decoder.prefill(inner=...)` runs the layers between the cuts as scans. A cut either compacts the
tokens to its own length or, with `compact=False`, only marks the dropped ones invalid: both give the same numbers.
Rotary positions and source ids travel with the tokens, and every stretch of layers has a KV cache of its own length.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.ops.compact import compact as pack
from jvidprune.ops.inner_decode import DecodeMode, choose_reading
from jvidprune.ops.inner_merge import halving_merge, text_relevance, top_in_blocks
from jvidprune.ops.inner_select import keep_top, kept_table, random_scores
from jvidprune.tokens import InnerStage

_STATIC: dict[str, Any] = {"static": True}

DECODE_RULE = "dynamic_decode"
"""The one rule that acts while decoding instead of cutting the prompt (DyCoke)."""


class TokenState(NamedTuple):
    """The tokens between two layers.

    Attributes:
      hidden: (B, S, D).
      positions: (B, S) or (3, B, S) rotary positions; a cut gathers them and never renumbers.
      valid: (B, S) slots in use.
      visual: (B, S) tokens that compete at a cut.
      source: (B, S) slot of the prompt that the token came from.
      asking: (B, S) text tokens whose attention ranks visual ones (PruneVid).
      block: (B, S) group of each visual token (PruneVid), 0 where there are none.
    """

    hidden: Float[Array, "B S D"]
    positions: Int[Array, "... B S"]
    valid: Bool[Array, "B S"]
    visual: Bool[Array, "B S"]
    source: Int[Array, "B S"]
    asking: Bool[Array, "B S"]
    block: Int[Array, "B S"]


class CutRecord(NamedTuple):
    """What a cut did, in the slots before it.

    Attributes:
      score: (B, S) what visual tokens were ranked by.
      survivors: (B, S) tokens that stay, padding excluded.
      source: (B, S) slot of the prompt of each.
    """

    score: Float[Array, "B S"]
    survivors: Bool[Array, "B S"]
    source: Int[Array, "B S"]


class Chosen(NamedTuple):
    """A rule's answer for one prompt: hidden states (merged or as they were), survivors, scores."""

    hidden: Float[Array, "S D"]
    survivors: Bool[Array, "S"]
    score: Float[Array, "S"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cut:
    """One cut between two layers.

    Attributes:
      table: (Q,) int32 how many of n visual tokens stay (of a block's n with a rule that works in blocks), or (B, Q).
      seed: () int32 of a rule that draws, or (B,).
      layer: first layer after the cut; static.
      rule: key of `RULES`; static.
      capacity: slots after the cut, or None to mark dropped tokens invalid and keep the length; static.
      settings: of the rule; static.
    """

    table: Int[Array, "*B Q"]
    seed: Int[Array, "*B"]
    layer: int = dataclasses.field(metadata=_STATIC)
    rule: str = dataclasses.field(metadata=_STATIC)
    capacity: int | None = dataclasses.field(metadata=_STATIC)
    settings: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), metadata=_STATIC)

    def get(self, name: str, default: Any = None) -> Any:
        """One of the rule's settings."""
        return dict(self.settings).get(name, default)

    @property
    def probe(self) -> Literal["none", "last", "asking"]:
        """Which rows of the attention in layer `layer` - 1 the rule reads."""
        return RULES[self.rule].probe

    @property
    def causal(self) -> bool:
        """Whether layer `layer` - 1 is causal; it is not where HoliTom's released code asks it for its weights."""
        return bool(self.get("probe_causal", True))

    @property
    def trims(self) -> bool:
        """Whether the caches of the layers before the cut are cut as well (PruneVid)."""
        return bool(self.get("trim_earlier", False))

    def apply(self, state: TokenState, weights: Float[Array, "B H R S"] | None) -> tuple[TokenState, CutRecord, Any]:
        """The state after the cut, a record, and the (B, capacity) slots kept and their validity, or None."""
        choose = RULES[self.rule].choose
        rows = None if weights is None else weights.astype(jnp.float32)
        per_prompt = (state.hidden, state.visual & state.valid, state.source, state.asking & state.valid, state.block)

        def one(table: Array, seed: Array, weights: Any, *parts: Array) -> Chosen:
            return choose(dataclasses.replace(self, table=table, seed=seed), weights, *parts)

        shape = (state.hidden.shape[0],)
        table = jnp.broadcast_to(self.table, (*shape, self.table.shape[-1]))
        chosen = jax.vmap(one)(table, jnp.broadcast_to(self.seed, shape), rows, *per_prompt)
        survivors = chosen.survivors & state.valid
        record = CutRecord(chosen.score, survivors, state.source)
        state = state._replace(hidden=chosen.hidden, valid=survivors, visual=state.visual & survivors)
        if self.capacity is None:
            return state, record, None
        index, valid, _ = jax.vmap(lambda mask: pack(mask, self.capacity or 0))(survivors)
        index = jnp.minimum(index, state.valid.shape[1] - 1)
        return _gather(state, index, valid), record, (index, valid)


def _gather(state: TokenState, index: Int[Array, "B C"], valid: Bool[Array, "B C"]) -> TokenState:
    def take(x: Array) -> Array:
        return jnp.take_along_axis(x, index, axis=1)

    three = state.positions.ndim == 3
    return TokenState(
        hidden=jnp.take_along_axis(state.hidden, index[..., None], axis=1),
        positions=jax.vmap(take)(state.positions) if three else take(state.positions),
        valid=valid,
        visual=take(state.visual) & valid,
        source=take(state.source),
        asking=take(state.asking) & valid,
        block=take(state.block),
    )


class Rule(NamedTuple):
    """How a cut chooses.

    Attributes:
      probe: rows of attention wanted of the layer before: none, of the last valid position, or of the asking text.
      choose: (cut, (H, R, S) weights or None, hidden, visual, source, asking, block) of one prompt -> `Chosen`.
    """

    probe: Literal["none", "last", "asking"]
    choose: Callable[..., Chosen]


def _kept(cut: Cut, visual: Array) -> Array:
    return jnp.asarray(cut.table)[jnp.sum(visual, dtype=jnp.int32)]


def _by_attention(cut: Cut, weights: Array, hidden: Array, visual: Array, *_: Array) -> Chosen:
    score = weights[:, 0].mean(axis=0)
    return Chosen(hidden, keep_top(score, visual, _kept(cut, visual)), score)


def _by_chance(cut: Cut, weights: None, hidden: Array, visual: Array, source: Array, *_: Array) -> Chosen:
    score = random_scores(jnp.asarray(cut.seed), source)
    return Chosen(hidden, keep_top(score, visual, _kept(cut, visual)), score)


def _by_merging(cut: Cut, weights: Array, hidden: Array, visual: Array, *_: Array) -> Chosen:
    score = weights[:, 0].mean(axis=0)
    merged, survivors = halving_merge(hidden, score, visual, _kept(cut, visual))
    return Chosen(merged, survivors, score)


def _by_text(
    cut: Cut, weights: Array, hidden: Array, visual: Array, source: Array, asking: Array, block: Array
) -> Chosen:
    rows = jnp.arange(weights.shape[1]) < jnp.sum(asking)
    score = text_relevance(jnp.where(rows[:, None], weights, 0.0))
    return Chosen(hidden, ~visual | top_in_blocks(score, block, visual, jnp.asarray(cut.table)), score)


RULES: dict[str, Rule] = {
    "last_query_topk": Rule("last", _by_attention),
    "random": Rule("none", _by_chance),
    "halving_merge": Rule("last", _by_merging),
    "text_in_blocks": Rule("asking", _by_text),
}
"""Rules of `InnerStage` that cut the prompt: FastV and FlashVID, the random control, HoliTom, PruneVid."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodePolicy:
    """DyCoke's decoding stage with its state: layers from `layer` on read a changing part of the cached video.

    Nothing leaves the cache. State is reset for every prompt (the released code carries it to the next video).

    Attributes:
      video: (B, M) slots that may be left out: the visual tokens but the last, which counts as text.
      keep: (B,) int32 how many are read when the set is renewed.
      previous, kept: (B, M) attention and set of the last step.
      started: () False before the first step.
      layer: first layer that reads the set; static.
      threshold: cosine of successive attentions below which the set is renewed; static.
      mode: see `ops.inner_decode.choose_reading`; static.
    """

    video: Bool[Array, "B M"]
    keep: Int[Array, "B"]
    previous: Float[Array, "B M"]
    kept: Bool[Array, "B M"]
    started: Bool[Array, ""]
    layer: int = dataclasses.field(metadata=_STATIC)
    threshold: float = dataclasses.field(default=0.9, metadata=_STATIC)
    mode: DecodeMode = dataclasses.field(default="official", metadata=_STATIC)

    def sized(self, slots: int) -> "DecodePolicy":
        """The policy of a cache with this many slots a row."""
        pad = ((0, 0), (0, slots - self.video.shape[1]))
        arrays = {name: jnp.pad(jnp.asarray(getattr(self, name)), pad) for name in ("video", "previous", "kept")}
        return dataclasses.replace(self, **arrays)

    def step(self, attention: Float[Array, "B H M"]) -> tuple["DecodePolicy", Bool[Array, "B M"]]:
        """The next state, and the slots that the deep layers may read (those not written yet included)."""

        def one(weights: Array, video: Array, previous: Array, kept: Array, keep: Array) -> Any:
            settings: dict[str, Any] = {"threshold": self.threshold, "mode": self.mode}
            return choose_reading(weights, video, previous, kept, self.started, keep, **settings)

        chosen = jax.vmap(one)(attention, self.video, self.previous, self.kept, self.keep)
        changed = {"previous": chosen.attention, "kept": chosen.kept, "started": jnp.ones((), bool)}
        return dataclasses.replace(self, **changed), chosen.read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inner:
    """All stages inside the language model for one batch of prompts, ready to be passed to `prefill`.

    Attributes:
      cuts: in the order of their layers.
      visual: (B, S) prompt slots that compete.
      asking: (B, S) text slots whose attention ranks visual tokens.
      block: (B, S) int32 group of each visual slot.
      policy: decoding stage, or None.
      asking_rows: most asking slots of a prompt; static.
    """

    cuts: tuple[Cut, ...]
    visual: Bool[Array, "B S"]
    asking: Bool[Array, "B S"]
    block: Int[Array, "B S"]
    policy: DecodePolicy | None = None
    asking_rows: int = dataclasses.field(default=0, metadata=_STATIC)

    @classmethod
    def create(
        cls,
        stages: Sequence[InnerStage],
        visual: Bool[np.ndarray, "B S"],
        valid: Bool[np.ndarray, "B S"],
        *,
        layers: int,
        compact: bool = True,
        asking: Bool[np.ndarray, "B S"] | None = None,
        block: Int[np.ndarray, "B S"] | None = None,
        bucket: Callable[[int], int] | None = None,
    ) -> "Inner":
        """Counts and static lengths of the stages a reducer carries, on the host.

        Args:
          stages: in any order; those at or behind `layers` do nothing, as in the references.
          visual: (B, S) prompt slots that compete.
          valid: (B, S) prompt slots in use.
          layers: decoder layers.
          compact: gather the kept tokens at every cut; False only masks the dropped ones, to the same numbers.
          asking: (B, S) text that ranks, by default all text behind the last visual slot.
          block: (B, S) group of each visual slot in 0..S-1, for "text_in_blocks".
          bucket: rounds lengths up, so that prompts of different lengths share a compilation.

        Raises:
          JvidpruneError: an unknown rule, two cuts at one layer, or stages that cannot stand together.
        """
        visual, valid = np.asarray(visual, bool), np.asarray(valid, bool)
        visual, slots = visual & valid, visual.shape[1]
        last = np.where(visual, np.arange(slots), -1).max(axis=1, keepdims=True)
        behind = valid & ~visual & (np.arange(slots) > last)
        asking = behind if asking is None else np.asarray(asking, bool) & valid
        block = np.zeros(visual.shape, np.int32) if block is None else np.asarray(block, np.int32)
        acting = sorted((stage for stage in stages if stage.layer < layers), key=lambda stage: stage.layer)
        _check(acting)
        count, length, cuts = visual.sum(axis=1), valid.sum(axis=1), []
        width = slots
        for stage in acting:
            if stage.rule == DECODE_RULE:
                continue
            settings = dict(stage.settings)
            seed: Any = np.int32(settings.pop("seed", 0))
            table: Any = kept_table(slots, stage.keep, settings.pop("rounding", "ceil"), settings.pop("count", None))
            # floor is superadditive: whatever the blocks, they keep no more than one block of all tokens would.
            length, count = length - count + table[count], table[count]
            if compact:
                most = int(length.max())
                width = min(width, most if bucket is None else bucket(most))
            capacity = width if compact else None
            cuts.append(Cut(table, seed, stage.layer, stage.rule, capacity, tuple(settings.items())))
        policy = [_policy(stage, visual) for stage in acting if stage.rule == DECODE_RULE]
        rows = int(asking.sum(axis=1).max())
        rows = rows if bucket is None else bucket(rows)
        roles: dict[str, Any] = {"visual": visual, "asking": asking, "block": block}
        return cls(tuple(cuts), **roles, policy=policy[0] if policy else None, asking_rows=rows)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Layers at which a new segment of the cache starts."""
        return tuple(cut.layer for cut in self.cuts if cut.layer > 0)

    def capacities(self, length: int, room: int) -> tuple[int, ...]:
        """Slots of each cache segment for prompts of `length` slots and `room` decoding steps."""
        sizes = [length]
        for cut in self.cuts:
            sizes.append(sizes[-1] if cut.capacity is None else cut.capacity)
            if cut.trims:
                sizes = [sizes[-1]] * len(sizes)
        if self.cuts and self.cuts[0].layer == 0:
            sizes = sizes[1:]
        return tuple(size + room for size in sizes)

    def start(self, hidden: Array, positions: Array, valid: Array) -> TokenState:
        """The state of a prompt before its first layer."""
        if hidden.shape[:2] != self.visual.shape:
            raise JvidpruneError(
                f"stages inside the language model were made for prompts {self.visual.shape}, got {hidden.shape[:2]}."
            )
        source = jnp.broadcast_to(jnp.arange(hidden.shape[1], dtype=jnp.int32), hidden.shape[:2])
        roles = (jnp.asarray(self.visual), source, jnp.asarray(self.asking), jnp.asarray(self.block))
        return TokenState(hidden, positions, valid, *roles)

    def rows(self, cut: Cut, state: TokenState) -> Int[Array, "B R"] | None:
        """Slots whose rows of attention a cut reads: the last valid one, or the asking ones (the last repeated)."""
        if cut.probe == "none":
            return None
        if cut.probe == "last":
            return last_valid(state.valid)[:, None]
        most = max(self.asking_rows, 1)
        index, there, _ = jax.vmap(lambda mask: pack(mask, most))(state.asking & state.valid)
        return jnp.where(there, index, last_valid(state.valid)[:, None])


def last_valid(valid: Bool[Array, "B S"]) -> Int[Array, "B"]:
    """The last valid slot of each row."""
    return jnp.where(valid, jnp.arange(valid.shape[1]), 0).max(axis=1)


def _policy(stage: InnerStage, visual: np.ndarray) -> DecodePolicy:
    last = np.where(visual, np.arange(visual.shape[1]), -1).max(axis=1, keepdims=True)
    video = visual & (np.arange(visual.shape[1]) != last)
    counts = video.sum(axis=1)
    table = kept_table(visual.shape[1], stage.keep, "floor")
    settings = {name: value for name, value in stage.settings if name in ("threshold", "mode")}
    nothing: Any = np.zeros(visual.shape, np.float32)
    arrays: tuple[Any, ...] = (video, table[counts], nothing, video, np.zeros((), bool))
    return DecodePolicy(*arrays, layer=stage.layer, **settings)


def _check(stages: Sequence[InnerStage]) -> None:
    known = (*RULES, DECODE_RULE)
    for stage in stages:
        if stage.rule not in known:
            raise JvidpruneError(
                f"unknown rule {stage.rule!r} of a stage inside the language model; known: {', '.join(known)}."
            )
        reads = stage.rule == DECODE_RULE or RULES[stage.rule].probe != "none"
        if stage.layer < (1 if reads else 0):
            raise JvidpruneError(
                f"{stage.rule} reads the layer before it, so its layer is at least 1, not {stage.layer}."
            )
    cuts = [stage for stage in stages if stage.rule != DECODE_RULE]
    if len({stage.layer for stage in cuts}) < len(cuts):
        raise JvidpruneError(f"two cuts stand before one layer: {[stage.layer for stage in cuts]}.")
    if len(stages) - len(cuts) > 1 or (cuts and len(stages) > len(cuts)):
        raise JvidpruneError("a decoding stage stands alone: its slots are those of an uncut prompt.")
    if any(dict(stage.settings).get("trim_earlier") for stage in cuts[1:]):
        raise JvidpruneError("only the first cut can also cut the caches of the layers before it.")
