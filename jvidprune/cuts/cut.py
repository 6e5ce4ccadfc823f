"""One cut for one batch of prompts: the rule is asked, and the tokens that stay are gathered or the others marked.

A cut either compacts the tokens to its own length or, without a capacity, only marks the dropped ones invalid: both
give the same numbers. Rotary positions and source ids travel with the tokens, or the tokens that stay are counted from
0 again.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.protocol import Chosen, CutInputs, CutRule, TokenState
from jvidprune.errors import JvidpruneError
from jvidprune.ops.compact import compact as pack
from jvidprune.tokens import CutPositions, CutWhere

_STATIC: dict[str, Any] = {"static": True}


class CutRecord(NamedTuple):
    """What a cut did, in the slots before it (in those after it where the rule gave an order).

    Attributes:
      score: (B, S) what visual tokens were ranked by.
      survivors: (B, S) tokens that stay, padding excluded.
      source: (B, S) slot of the prompt of each.
      count: (B,) int32 tokens that the rule kept, also where they are more than the cut has slots for.
      diagnostics: what else the rule can show, arrays by name with a leading axis B, or None.
    """

    score: Float[Array, "B S"]
    survivors: Bool[Array, "B S"]
    source: Int[Array, "B S"]
    count: Int[Array, "B"]
    diagnostics: Any = None


class Moved(NamedTuple):
    """Where the slots behind a cut were before it.

    Attributes:
      index: (B, C) slots before the cut.
      valid: (B, C) slots in use.
    """

    index: Int[Array, "B C"]
    valid: Bool[Array, "B C"]


class Spread(NamedTuple):
    """The slots in front of a cut that moved tokens together, for a later cut that brings some of them back.

    Attributes:
      slots: what stood in each of them, without hidden states.
      index: (B, C) which of them each slot of now was.
    """

    slots: TokenState
    index: Int[Array, "B C"]


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
      where: before the layer or inside it; static.
      weights: arrays that the rule reads, by name.
    """

    table: Int[Array | np.ndarray, "*B Q"]
    seed: Int[Array | np.ndarray, "*B"]
    layer: int = dataclasses.field(metadata=_STATIC)
    rule: CutRule = dataclasses.field(metadata=_STATIC)
    capacity: int | None = dataclasses.field(metadata=_STATIC)
    positions: CutPositions = dataclasses.field(default="keep", metadata=_STATIC)
    where: CutWhere = dataclasses.field(default="before", metadata=_STATIC)
    weights: Any = dataclasses.field(default_factory=dict)

    @property
    def boundary(self) -> int:
        """First layer whose cache holds the tokens that stay."""
        return self.layer + (self.where == "middle")

    def restore(self, state: TokenState) -> TokenState:
        """The state that the cut probes: with a rule that brings tokens back, in the slots that they stood in."""
        if not self.rule.brings_back:
            return state
        state = _spread(state)
        axes = batch_axes(state)
        return jax.vmap(self.rule.restore, in_axes=(axes,), out_axes=axes)(state)

    def apply(
        self,
        state: TokenState,
        attention: Float[Array, "B H R S"] | None = None,
        keys: Float[Array, "B S K d"] | None = None,
        normed: Float[Array, "B S D"] | None = None,
        rotary: tuple[Float[Array, "B S d"], Float[Array, "B S d"]] | None = None,
    ) -> tuple[TokenState, CutRecord, Moved | None]:
        """The state after the cut, a record, and where its slots came from (None where they are those before).

        Args:
          state: in front of the cut, restored.
          attention, keys, normed, rotary: what the rule reads of the model, see `CutInputs`.

        Raises:
          JvidpruneError: positions on three axes that would be counted anew, tokens that change their slots where
            earlier caches are cut too, or a bias beside a choice that is renewed.
        """
        rule, batch, aside = self.rule, state.hidden.shape[0], state.aside
        state = state._replace(aside=None)
        shown = state._replace(visual=state.visual & state.valid, text_queries=state.text_queries & state.valid)

        def one(table: Array, seed: Array, read: tuple[Any, ...], prompt: TokenState) -> Chosen:
            kept = table[jnp.sum(prompt.visual, dtype=jnp.int32)]
            return rule.choose(CutInputs(kept, table, seed, *read, weights=self.weights), prompt)

        table = jnp.broadcast_to(self.table, (batch, self.table.shape[-1]))
        seed = jnp.broadcast_to(self.seed, (batch,))
        rows = None if attention is None else attention.astype(jnp.float32)
        read = (rows, keys, normed, rotary)
        chosen = jax.vmap(one, in_axes=(0, 0, 0, batch_axes(state)))(table, seed, read, shown)
        if chosen.bias is not None and rule.renewal is not None:
            raise JvidpruneError(f"{type(rule).__name__} gives keys a bias, so its choice cannot be renewed.")
        moved = None
        if chosen.order is not None:
            if rule.trims:
                raise JvidpruneError("tokens that change their slots cannot be cut from the caches of earlier layers.")
            moved = Moved(chosen.order, jnp.take_along_axis(state.valid, chosen.order, axis=1))
            state = gathered(state, *moved)
        survivors = chosen.survivors if rule.brings_back else chosen.survivors & state.valid
        count = survivors.sum(axis=1, dtype=jnp.int32)
        record = CutRecord(chosen.score, survivors, state.source, count, chosen.diagnostics)
        visual = state.visual if rule.brings_back or rule.keeps_roles else state.visual & survivors
        side = state.side if chosen.side is None else chosen.side
        bias = state.bias if chosen.bias is None else chosen.bias.astype(jnp.float32)
        state = state._replace(hidden=chosen.hidden, valid=survivors, visual=visual, side=side, bias=bias)
        if self.capacity is not None:
            index, valid, _ = jax.vmap(lambda mask: pack(mask, self.capacity or 0))(survivors)
            index = jnp.minimum(index, state.valid.shape[1] - 1)
            if aside is not None:
                aside = aside._replace(index=jnp.take_along_axis(aside.index, index, axis=1))
            elif rule.keeps_roles:
                nothing: Any = None
                aside = Spread(state._replace(hidden=nothing, side=None), index)
            state = gathered(state, index, valid)
            moved = Moved(index if moved is None else jnp.take_along_axis(moved.index, index, axis=1), valid)
        elif moved is not None:
            moved = moved._replace(valid=survivors)
        state = state._replace(aside=aside)
        return (state if self.positions == "keep" else renumbered(state)), record, moved


def batch_axes(state: TokenState) -> Any:
    """Batch axis of every field of a state."""
    zero: Any = 0
    return TokenState(*[zero] * len(TokenState._fields))._replace(positions=1 if state.positions.ndim == 3 else 0)


def _spread(state: TokenState) -> TokenState:
    """The tokens in the slots that they had before they were moved together; other slots hold zeros and are not valid.

    Where no token was moved this is the state itself.
    """
    if state.aside is None:
        return state
    before, index = state.aside
    size = before.valid.shape[1]
    rows, now = jnp.arange(index.shape[0])[:, None], jnp.arange(index.shape[1], dtype=jnp.int32)
    at = jnp.where(state.valid, index, size)
    place = jnp.full(before.valid.shape, -1, jnp.int32).at[rows, at].set(jnp.broadcast_to(now, at.shape), mode="drop")
    valid = place >= 0
    hidden = jnp.take_along_axis(state.hidden, jnp.maximum(place, 0)[..., None], axis=1)
    hidden = jnp.where(valid[..., None], hidden, jnp.zeros((), hidden.dtype))
    bias = before.bias
    if state.bias is not None:
        held = jnp.zeros(valid.shape) if bias is None else bias
        bias = jnp.where(valid, jnp.take_along_axis(state.bias, jnp.maximum(place, 0), axis=1), held)
    return before._replace(hidden=hidden, valid=valid, side=state.side, bias=bias)


def gathered(state: TokenState, index: Int[Array, "B C"], valid: Bool[Array, "B C"]) -> TokenState:
    """The tokens of some slots; `valid` says which of these are in use."""

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
        bias=None if state.bias is None else take(state.bias),
    )


def renumbered(state: TokenState) -> TokenState:
    """Positions 0, 1, 2, ... of the valid slots, in their order."""
    if state.positions.ndim == 3:
        raise JvidpruneError(
            "positions of time, height and width cannot be counted anew at a cut; this model's cuts keep them "
            "(positions='keep')."
        )
    count = jnp.cumsum(state.valid, axis=1, dtype=state.positions.dtype)
    return state._replace(positions=jnp.maximum(count - 1, 0))
