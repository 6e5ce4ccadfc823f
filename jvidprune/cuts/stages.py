"""Stages inside the language model: data that says where the decoder cuts, by what rule, and to which length.

A reducer carries `InnerStage`s; `Inner.create` turns them, on the host, into integers and static lengths for one
batch of prompts; `models.prefill.read_prompt` runs the layers between the cuts as scans. A cut either compacts the
tokens to its own length or, with `compact=False`, only marks the dropped ones invalid: both give the same numbers.
Rotary positions and source ids travel with the tokens, or the tokens that stay are counted from 0 again; every stretch
of layers has a KV cache of its own length. Any number of cuts may stand in one model.

A rule of one's own is a frozen dataclass that subclasses `CutRule`, as the published ones in `cuts.rules` do.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.decoding import DecodePolicy, Renewal, Reselection
from jvidprune.errors import JvidpruneError
from jvidprune.fields import check_fields
from jvidprune.ops.compact import compact as pack
from jvidprune.tokens import CutPositions, InnerStage, NewlineRole, StageRule

_STATIC: dict[str, Any] = {"static": True}

Probe = Literal["none", "last", "text", "keys", "ahead"]
"""What a rule reads of the model, L being the first layer behind the cut.

* "none": nothing.
* "last": attention of the last valid position in layer L - 1 (FastV).
* "text": attention of the text queries in layer L - 1 (PruneVid).
* "keys": keys of all positions in layer L - 1, after rotary (DART).
* "ahead": attention that the last valid position would pay in layer L if nothing were cut (PyramidDrop); nothing of it
  is cached, and L may be 0.
"""


class TokenState(NamedTuple):
    """The tokens between two layers.

    Attributes:
      hidden: (B, S, D).
      positions: (B, S) or (3, B, S) rotary positions.
      valid: (B, S) slots in use.
      visual: (B, S) tokens that compete at a cut.
      source: (B, S) slot of the prompt that the token came from.
      text_queries: (B, S) text tokens whose attention ranks visual ones (PruneVid).
      block: (B, S) group of each visual token (PruneVid), 0 where there are none.
      side: what a rule put aside for a later one, any pytree with a leading axis B; it goes round the layers and is
        neither cut nor gathered (states of bypassed tokens, groups; SwiftVLM, arXiv 2602.03134).
      bidirectional: (B, S) slots that see each other in either direction, or None.
    """

    hidden: Float[Array, "B S D"]
    positions: Int[Array, "... B S"]
    valid: Bool[Array, "B S"]
    visual: Bool[Array, "B S"]
    source: Int[Array, "B S"]
    text_queries: Bool[Array, "B S"]
    block: Int[Array, "B S"]
    side: Any = None
    bidirectional: Any = None


class CutInputs(NamedTuple):
    """What a rule is given beside the tokens of one prompt.

    Attributes:
      kept: () int32 how many of its visual tokens stay.
      table: (Q,) int32 how many of n tokens stay, for rules that count in blocks.
      seed: () int32 for rules that draw.
      attention: (H, R, S) float32 weights of the probed rows, or None; rows of "text" behind the last text query repeat
        the last valid position.
      keys: (S, K, d) of the probed layer, or None.
    """

    kept: Int[Array, ""]
    table: Int[Array, "Q"]
    seed: Int[Array, ""]
    attention: Any = None
    keys: Any = None


class Chosen(NamedTuple):
    """A rule's answer for one prompt.

    Attributes:
      hidden: (S, D) states, merged or as they were.
      survivors: (S,) tokens that stay; the text is among them. A rule that brings back tokens marks their slots.
      score: (S,) what visual tokens were ranked by, for records.
      side: what is put aside for later rules; None leaves what is there.
      order: (S,) int32 where tokens change their slots (merged ones behind the kept ones): slot s takes over position,
        role and source of slot order[s], and `hidden`, `survivors` and `score` are those of the new slots.
    """

    hidden: Float[Array, "S D"]
    survivors: Bool[Array, "S"]
    score: Float[Array, "S"]
    side: Any = None
    order: Any = None


@dataclasses.dataclass(frozen=True)
class CutRule(StageRule):
    """How a cut chooses; a subclass says what it probes, and implements `choose`.

    Its fields are static under jit: what differs from prompt to prompt stands in `InnerStage` and arrives in
    `CutInputs`.

    Attributes:
      causal: whether the layer in front of the cut is causal; it is not where HoliTom's released code asks it for its
        weights.
      renewal: how the choice is renewed while decoding, or None.

    Raises:
      JvidpruneError: a field with a value that its annotation does not allow.
    """

    causal: bool = dataclasses.field(default=True, kw_only=True)
    renewal: Renewal | None = dataclasses.field(default=None, kw_only=True)

    probe: ClassVar[Probe] = "none"
    """What is read of the model."""
    keeps_roles: ClassVar[bool] = False
    """Whether dropped tokens stay marked as visual, so that a later rule finds their slots."""
    brings_back: ClassVar[bool] = False
    """Whether survivors may be tokens that were dropped before; no cut of the model compacts then."""
    renewable: ClassVar[bool] = False
    """Whether the choice is the largest attention of the last position, which can be renewed while decoding."""

    def __post_init__(self) -> None:
        check_fields(self)

    def restore(self, state: TokenState) -> TokenState:
        """The state that is probed and chosen from: dropped tokens may be written back and marked valid (SwiftVLM).

        Args:
          state: of one prompt, without the batch axis.
        """
        return state

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """Which tokens of one prompt stay: at most `inputs.kept` visual ones, merged ones included.

        Args:
          inputs: counts, and what was probed.
          state: without the batch axis; `visual` and `text_queries` are False outside `valid`.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class DecodeRule(StageRule):
    """What a decoding step lets the deep layers read; the prompt is left alone."""

    newlines: NewlineRole = dataclasses.field(default="never", kw_only=True)

    cuts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def policy(self, stage: InnerStage, visual: Bool[np.ndarray, "B S"]) -> DecodePolicy:
        """The policy before the first decoding step.

        Args:
          stage: whose rule this is; `kept` counts what is read.
          visual: (B, S) prompt slots with a visual token.
        """
        raise NotImplementedError


class CutRecord(NamedTuple):
    """What a cut did, in the slots before it (in those after it where the rule gave an order).

    Attributes:
      score: (B, S) what visual tokens were ranked by.
      survivors: (B, S) tokens that stay, padding excluded.
      source: (B, S) slot of the prompt of each.
      count: (B,) int32 tokens that the rule kept, also where they are more than the cut has slots for.
    """

    score: Float[Array, "B S"]
    survivors: Bool[Array, "B S"]
    source: Int[Array, "B S"]
    count: Int[Array, "B"]


class Moved(NamedTuple):
    """Where the slots behind a cut were before it.

    Attributes:
      index: (B, C) slots before the cut.
      valid: (B, C) slots in use.
    """

    index: Int[Array, "B C"]
    valid: Bool[Array, "B C"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cut:
    """One cut between two layers, for one batch of prompts.

    Attributes:
      table: (Q,) int32 how many of n visual tokens stay (of a block's n with a rule that works in blocks), or (B, Q).
      seed: () int32 of a rule that draws, or (B,).
      layer: first layer after the cut; static.
      rule: static.
      capacity: slots after the cut, or None to mark dropped tokens invalid and keep the length; static.
      positions: kept or counted anew; static.
    """

    table: Int[Array | np.ndarray, "*B Q"]
    seed: Int[Array | np.ndarray, "*B"]
    layer: int = dataclasses.field(metadata=_STATIC)
    rule: CutRule = dataclasses.field(metadata=_STATIC)
    capacity: int | None = dataclasses.field(metadata=_STATIC)
    positions: CutPositions = dataclasses.field(default="keep", metadata=_STATIC)

    def restore(self, state: TokenState) -> TokenState:
        """The state that the cut probes."""
        if not self.rule.brings_back:
            return state
        axes = _axes(state)
        return jax.vmap(self.rule.restore, in_axes=(axes,), out_axes=axes)(state)

    def apply(
        self,
        state: TokenState,
        attention: Float[Array, "B H R S"] | None = None,
        keys: Float[Array, "B S K d"] | None = None,
    ) -> tuple[TokenState, CutRecord, Moved | None]:
        """The state after the cut, a record, and where its slots came from (None where they are those before).

        Raises:
          JvidpruneError: positions on three axes that would be counted anew, or tokens that change their slots where
            earlier caches are cut too.
        """
        rule, batch = self.rule, state.hidden.shape[0]
        shown = state._replace(visual=state.visual & state.valid, text_queries=state.text_queries & state.valid)

        def one(table: Array, seed: Array, attention: Any, keys: Any, prompt: TokenState) -> Chosen:
            kept = table[jnp.sum(prompt.visual, dtype=jnp.int32)]
            return rule.choose(CutInputs(kept, table, seed, attention, keys), prompt)

        table = jnp.broadcast_to(self.table, (batch, self.table.shape[-1]))
        seed = jnp.broadcast_to(self.seed, (batch,))
        rows = None if attention is None else attention.astype(jnp.float32)
        chosen = jax.vmap(one, in_axes=(0, 0, 0, 0, _axes(state)))(table, seed, rows, keys, shown)
        moved = None
        if chosen.order is not None:
            if rule.trims:
                raise JvidpruneError("tokens that change their slots cannot be cut from the caches of earlier layers.")
            moved = Moved(chosen.order, jnp.take_along_axis(state.valid, chosen.order, axis=1))
            state = _gather(state, *moved)
        survivors = chosen.survivors if rule.brings_back else chosen.survivors & state.valid
        record = CutRecord(chosen.score, survivors, state.source, survivors.sum(axis=1, dtype=jnp.int32))
        visual = state.visual if rule.brings_back or rule.keeps_roles else state.visual & survivors
        side = state.side if chosen.side is None else chosen.side
        state = state._replace(hidden=chosen.hidden, valid=survivors, visual=visual, side=side)
        if self.capacity is not None:
            index, valid, _ = jax.vmap(lambda mask: pack(mask, self.capacity or 0))(survivors)
            index = jnp.minimum(index, state.valid.shape[1] - 1)
            state = _gather(state, index, valid)
            moved = Moved(index if moved is None else jnp.take_along_axis(moved.index, index, axis=1), valid)
        elif moved is not None:
            moved = moved._replace(valid=survivors)
        return (_renumbered(state) if self.positions == "renumber" else state), record, moved


def _axes(state: TokenState) -> Any:
    """Batch axis of every field of a state."""
    zero: Any = 0
    return TokenState(*[zero] * len(TokenState._fields))._replace(positions=1 if state.positions.ndim == 3 else 0)


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
        text_queries=take(state.text_queries) & valid,
        block=take(state.block),
        side=state.side,
        bidirectional=None if state.bidirectional is None else take(state.bidirectional),
    )


def _renumbered(state: TokenState) -> TokenState:
    """Positions 0, 1, 2, ... of the valid slots, in their order."""
    if state.positions.ndim == 3:
        raise JvidpruneError(
            "positions of time, height and width cannot be counted anew at a cut; this model's cuts keep them "
            "(positions='keep')."
        )
    count = jnp.cumsum(state.valid, axis=1, dtype=state.positions.dtype)
    return state._replace(positions=jnp.maximum(count - 1, 0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inner:
    """All stages inside the language model for one batch of prompts, ready to be passed to `prefill`.

    Attributes:
      cuts: in the order of their layers.
      visual: (B, S) prompt slots that compete.
      text_queries: (B, S) text slots whose attention ranks visual tokens.
      block: (B, S) int32 group of each visual slot.
      policy: decoding stage, or None.
      query_rows: most text queries of a prompt; static.
    """

    cuts: tuple[Cut, ...]
    visual: Bool[Array | np.ndarray, "B S"]
    text_queries: Bool[Array | np.ndarray, "B S"]
    block: Int[Array | np.ndarray, "B S"]
    policy: DecodePolicy | Reselection | None = None
    query_rows: int = dataclasses.field(default=0, metadata=_STATIC)

    @classmethod
    def create(
        cls,
        stages: Sequence[InnerStage],
        visual: Bool[np.ndarray, "B S"],
        valid: Bool[np.ndarray, "B S"],
        *,
        layers: int,
        compact: bool = True,
        text_queries: Bool[np.ndarray, "B S"] | None = None,
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
          text_queries: (B, S) text that ranks, by default all text behind the last visual slot.
          block: (B, S) group of each visual slot in 0..S-1, for rules that count in blocks.
          bucket: rounds lengths up, so that prompts of different lengths share a compilation.

        Raises:
          JvidpruneError: a rule that neither cuts nor decodes, two cuts at one layer, or stages that cannot stand
            together.
        """
        visual, valid = np.asarray(visual, bool), np.asarray(valid, bool)
        visual, slots = visual & valid, visual.shape[1]
        last = np.where(visual, np.arange(slots), -1).max(axis=1, keepdims=True)
        behind = valid & ~visual & (np.arange(slots) > last)
        text_queries = behind if text_queries is None else np.asarray(text_queries, bool) & valid
        block = np.zeros(visual.shape, np.int32) if block is None else np.asarray(block, np.int32)
        acting = sorted((stage for stage in stages if stage.layer < layers), key=lambda stage: stage.layer)
        _check(acting)
        compact = compact and not any(rule.brings_back for _, rule in _cuts_of(acting))
        count, length = visual.sum(axis=1), valid.sum(axis=1)
        cuts: list[Cut] = []
        policy: DecodePolicy | Reselection | None = None
        for stage in acting:
            if isinstance(stage.rule, DecodeRule):
                policy = stage.rule.policy(stage, visual)
        prompt, width, rows = count, slots, np.arange(len(visual))
        for stage, rule in _cuts_of(acting):
            table = stage.kept.table(slots)
            if stage.kept.of == "prompt":
                table = np.stack([stage.kept.table(slots, int(n)) for n in prompt])
            # floor is superadditive: whatever the blocks, they keep no more than one block of all tokens would.
            left = table[count] if table.ndim == 1 else table[rows, count]
            length, count = length - count + left, left
            if compact:
                most = int(length.max())
                width = min(width, most if bucket is None else bucket(most))
            if rule.renewal is not None:
                renewal = rule.renewal
                policy = Reselection(visual, count, layer=stage.layer, mode=renewal.mode, shift=renewal.shift)
            capacity = width if compact and rule.renewal is None else None
            cuts.append(Cut(table, np.asarray(stage.seed, np.int32), stage.layer, rule, capacity, stage.positions))
        most_rows = int(text_queries.sum(axis=1).max())
        most_rows = most_rows if bucket is None else bucket(most_rows)
        return cls(tuple(cuts), visual, text_queries, block, policy, most_rows)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Layers at which a new segment of the cache starts."""
        return tuple(cut.layer for cut in self.cuts if cut.layer > 0)

    def capacities(self, length: int, room: int) -> tuple[int, ...]:
        """Slots of each cache segment for prompts of `length` slots and `room` decoding steps."""
        sizes = [length]
        for cut in self.cuts:
            sizes.append(sizes[-1] if cut.capacity is None else cut.capacity)
            if cut.rule.trims:
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
        roles = (jnp.asarray(self.visual), source, jnp.asarray(self.text_queries), jnp.asarray(self.block))
        return TokenState(hidden, positions, valid, *roles)

    def rows(self, cut: Cut, state: TokenState) -> Int[Array, "B R"] | None:
        """Slots whose rows of attention in the layer before it a cut reads: the last valid one, the text queries (the
        last repeated), or None.
        """
        if cut.rule.probe == "last":
            return last_valid(state.valid)[:, None]
        if cut.rule.probe != "text":
            return None
        most = max(self.query_rows, 1)
        index, there, _ = jax.vmap(lambda mask: pack(mask, most))(state.text_queries & state.valid)
        return jnp.where(there, index, last_valid(state.valid)[:, None])


def last_valid(valid: Bool[Array, "B S"]) -> Int[Array, "B"]:
    """The last valid slot of each row."""
    return jnp.where(valid, jnp.arange(valid.shape[1]), 0).max(axis=1)


def _cuts_of(stages: Sequence[InnerStage]) -> list[tuple[InnerStage, CutRule]]:
    return [(stage, stage.rule) for stage in stages if isinstance(stage.rule, CutRule)]


def _check(stages: Sequence[InnerStage]) -> None:
    cuts = _cuts_of(stages)
    for stage in stages:
        rule, name = stage.rule, type(stage.rule).__name__
        if not isinstance(rule, CutRule | DecodeRule):
            raise JvidpruneError(f"{name} is neither a cuts.stages.CutRule nor a DecodeRule.")
        ahead = isinstance(rule, CutRule) and rule.probe in ("none", "ahead")
        if stage.layer == 0 and not ahead:
            raise JvidpruneError(f"{name} reads the layer before it, so its layer is at least 1, not 0.")
        if rule.in_blocks and stage.kept.of == "prompt":
            raise JvidpruneError(f"{name} keeps a share of every block, which cannot be counted from the whole prompt.")
    places = [stage.layer for stage, _ in cuts]
    if len(set(places)) < len(places):
        raise JvidpruneError(f"two cuts stand before one layer: {places}.")
    if len(stages) - len(cuts) > 1 or (cuts and len(stages) > len(cuts)):
        raise JvidpruneError("a decoding stage stands alone: its slots are those of an uncut prompt.")
    for stage, rule in cuts:
        if rule.renewal is None:
            continue
        if len(cuts) > 1 or not rule.renewable:
            raise JvidpruneError(
                "a cut that is renewed while decoding stands alone and goes by the last query's attention."
            )
        if stage.positions != "keep":
            raise JvidpruneError("a cut that is renewed while decoding keeps positions: its tokens come and go.")
    if any(rule.trims for _, rule in cuts[1:]):
        raise JvidpruneError("only the first cut can also cut the caches of the layers before it.")
