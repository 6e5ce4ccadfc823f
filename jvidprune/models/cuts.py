"""Stages inside the language model: data that says where the decoder cuts, by what rule, and to which length.

A reducer carries `InnerStage`s; `Inner.create` turns them, on the host, into integers and static lengths for one
batch of prompts; `Decoder.prefill(inner=...)` runs the layers between the cuts as scans. A cut either compacts the
tokens to its own length or, with `compact=False`, only marks the dropped ones invalid: both give the same numbers.
Rotary positions and source ids travel with the tokens, and every stretch of layers has a KV cache of its own length.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.models.decode_policy import DecodePolicy, Reselection, ReselectMode
from jvidprune.ops.compact import compact as pack
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
      side: what a rule put aside for a later one, any pytree with a leading axis B; it goes round the layers and is
        neither cut nor gathered (states of bypassed tokens, groups; SwiftVLM, arXiv 2602.03134).
      together: (B, S) slots that see each other in either direction, or None.
    """

    hidden: Float[Array, "B S D"]
    positions: Int[Array, "... B S"]
    valid: Bool[Array, "B S"]
    visual: Bool[Array, "B S"]
    source: Int[Array, "B S"]
    asking: Bool[Array, "B S"]
    block: Int[Array, "B S"]
    side: Any = None
    together: Any = None


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
    """A rule's answer for one prompt: hidden states (merged or as they were), survivors, scores, what it puts aside.

    A rule that brings back tokens marks them as survivors; their slots must still be there (no cut compacted them).
    """

    hidden: Float[Array, "S D"]
    survivors: Bool[Array, "S"]
    score: Float[Array, "S"]
    side: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cut:
    """One cut between two layers.

    Attributes:
      table: (Q,) int32 how many of n visual tokens stay (of a block's n with a rule that works in blocks), or (B, Q).
      seed: () int32 of a rule that draws, or (B,).
      layer: first layer after the cut; static.
      rule: key of `RULES`, or a `Rule` of one's own; static.
      capacity: slots after the cut, or None to mark dropped tokens invalid and keep the length; static.
      settings: of the rule; static.
    """

    table: Int[Array, "*B Q"]
    seed: Int[Array, "*B"]
    layer: int = dataclasses.field(metadata=_STATIC)
    rule: Any = dataclasses.field(metadata=_STATIC)
    capacity: int | None = dataclasses.field(metadata=_STATIC)
    settings: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), metadata=_STATIC)

    def get(self, name: str, default: Any = None) -> Any:
        """One of the rule's settings."""
        return dict(self.settings).get(name, default)

    @property
    def probe(self) -> Literal["none", "last", "asking"]:
        """Which rows of the attention in layer `layer` - 1 the rule reads."""
        return rule_of(self.rule).probe

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
        choose, brings_back = rule_of(self.rule).choose, rule_of(self.rule).brings_back
        rows = None if weights is None else weights.astype(jnp.float32)
        zero: Any = 0
        axes = TokenState(*[zero] * len(TokenState._fields))._replace(positions=1 if state.positions.ndim == 3 else 0)
        shown = state._replace(visual=state.visual & state.valid, asking=state.asking & state.valid)

        def one(table: Array, seed: Array, weights: Any, prompt: TokenState) -> Chosen:
            return choose(dataclasses.replace(self, table=table, seed=seed), weights, prompt)

        shape = (state.hidden.shape[0],)
        own = jnp.broadcast_to(self.table, (*shape, self.table.shape[-1])), jnp.broadcast_to(self.seed, shape)
        chosen = jax.vmap(one, in_axes=(0, 0, 0, axes))(*own, rows, shown)
        survivors = chosen.survivors if brings_back else chosen.survivors & state.valid
        record = CutRecord(chosen.score, survivors, state.source)
        visual = state.visual if brings_back or rule_of(self.rule).keeps_roles else state.visual & survivors
        side = state.side if chosen.side is None else chosen.side
        state = state._replace(hidden=chosen.hidden, valid=survivors, visual=visual, side=side)
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
        side=state.side,
        together=None if state.together is None else take(state.together),
    )


class Rule(NamedTuple):
    """How a cut chooses; one's own is passed as `InnerStage.rule` in place of a name.

    Attributes:
      probe: rows of attention wanted of the layer before: none, of the last valid position, or of the asking text.
      choose: (cut, (H, R, S) weights or None, the `TokenState` of one prompt) -> `Chosen`. The state has no batch axis,
        and its `visual` and `asking` are False outside `valid`.
      keeps_roles: dropped tokens stay marked as visual, so that a later rule finds their slots.
      brings_back: survivors may be slots that were dropped before.
    """

    probe: Literal["none", "last", "asking"]
    choose: Callable[..., Chosen]
    keeps_roles: bool = False
    brings_back: bool = False


def rule_of(rule: str | Rule) -> Rule:
    """The rule behind a name, or the rule itself."""
    return RULES[rule] if isinstance(rule, str) else rule


def _kept(cut: Cut, visual: Array) -> Array:
    return jnp.asarray(cut.table)[jnp.sum(visual, dtype=jnp.int32)]


def _by_attention(cut: Cut, weights: Array, state: TokenState) -> Chosen:
    score = weights[:, 0].mean(axis=0)
    return Chosen(state.hidden, keep_top(score, state.visual, _kept(cut, state.visual)), score)


def _by_chance(cut: Cut, weights: None, state: TokenState) -> Chosen:
    score = random_scores(jnp.asarray(cut.seed), state.source)
    return Chosen(state.hidden, keep_top(score, state.visual, _kept(cut, state.visual)), score)


def _by_merging(cut: Cut, weights: Array, state: TokenState) -> Chosen:
    score = weights[:, 0].mean(axis=0)
    merged, survivors = halving_merge(state.hidden, score, state.visual, _kept(cut, state.visual))
    return Chosen(merged, survivors, score)


def _by_text(cut: Cut, weights: Array, state: TokenState) -> Chosen:
    rows, visual = jnp.arange(weights.shape[1]) < jnp.sum(state.asking), state.visual
    score = text_relevance(jnp.where(rows[:, None], weights, 0.0))
    return Chosen(state.hidden, ~visual | top_in_blocks(score, state.block, visual, jnp.asarray(cut.table)), score)


RULES: dict[str, Rule] = {
    "last_query_topk": Rule("last", _by_attention),
    "random": Rule("none", _by_chance),
    "halving_merge": Rule("last", _by_merging),
    "text_in_blocks": Rule("asking", _by_text),
}
"""Rules of `InnerStage` that cut the prompt: FastV and FlashVID, the random control, HoliTom, PruneVid."""


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
    policy: DecodePolicy | Reselection | None = None
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
        compact = compact and not any(rule_of(stage.rule).brings_back for stage in acting if stage.rule != DECODE_RULE)
        count, length, cuts = visual.sum(axis=1), valid.sum(axis=1), []
        policies: list[Any] = [DecodePolicy.create(stage, visual) for stage in acting if stage.rule == DECODE_RULE]
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
            again = settings.pop("reselect", None)
            shift = settings.pop("shift", 0.0)
            if again is not None:
                slots_and_counts: Any = (visual, count)
                policies.append(Reselection(*slots_and_counts, layer=stage.layer, mode=again, shift=shift))
            capacity = width if compact and again is None else None
            cuts.append(Cut(table, seed, stage.layer, stage.rule, capacity, tuple(settings.items())))
        rows = int(asking.sum(axis=1).max())
        rows = rows if bucket is None else bucket(rows)
        roles: dict[str, Any] = {"visual": visual, "asking": asking, "block": block}
        return cls(tuple(cuts), **roles, policy=policies[0] if policies else None, asking_rows=rows)

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


def _check(stages: Sequence[InnerStage]) -> None:
    known = (*RULES, DECODE_RULE)
    for stage in stages:
        if isinstance(stage.rule, str) and stage.rule not in known:
            raise JvidpruneError(
                f"unknown rule {stage.rule!r} of a stage inside the language model; known: {', '.join(known)}."
            )
        reads = stage.rule == DECODE_RULE or rule_of(stage.rule).probe != "none"
        if stage.layer < (1 if reads else 0):
            raise JvidpruneError(
                f"{stage.rule} reads the layer before it, so its layer is at least 1, not {stage.layer}."
            )
    cuts = [stage for stage in stages if stage.rule != DECODE_RULE]
    if len({stage.layer for stage in cuts}) < len(cuts):
        raise JvidpruneError(f"two cuts stand before one layer: {[stage.layer for stage in cuts]}.")
    if len(stages) - len(cuts) > 1 or (cuts and len(stages) > len(cuts)):
        raise JvidpruneError("a decoding stage stands alone: its slots are those of an uncut prompt.")
    again = [dict(stage.settings)["reselect"] for stage in cuts if dict(stage.settings).get("reselect") is not None]
    if again and (len(cuts) > 1 or cuts[0].rule != "last_query_topk"):
        raise JvidpruneError(
            "a cut that is renewed while decoding stands alone and goes by the last query's attention."
        )
    if unknown := [mode for mode in again if mode not in get_args(ReselectMode)]:
        raise JvidpruneError(f"unknown reselect {unknown[0]!r}; known: {', '.join(get_args(ReselectMode))}.")
    if any(dict(stage.settings).get("trim_earlier") for stage in cuts[1:]):
        raise JvidpruneError("only the first cut can also cut the caches of the layers before it.")
