"""Routed layers: some tokens pass a layer by, unchanged or scaled, and have no keys and values there.

No token leaves the prompt. The layer runs on the tokens that were chosen, gathered into a length of its own, and the
results go back to their slots (mixture of depths, arXiv 2404.02258). A rule of one's own is a frozen dataclass that
subclasses `RouteRule`, as the published ones in `cuts.routers` do; an `InnerStage` with it says which layer is routed.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import CacheSegment
from jvidprune.cuts.cut import batch_axes, gathered, renumbered
from jvidprune.cuts.protocol import TokenState
from jvidprune.errors import JvidpruneError
from jvidprune.fields import check_fields
from jvidprune.ops.compact import compact as pack
from jvidprune.tokens import CutPositions, InnerStage, StageRule

_STATIC: dict[str, Any] = {"static": True}


class RouteInputs(NamedTuple):
    """What a rule is given beside the tokens of one prompt.

    Attributes:
      kept: () int32 how many of its visual tokens run.
      table: (Q,) int32 how many of n run, for rules that count in frames.
      seed: () int32 for rules that draw.
      weights: arrays of the stage's `weights` by name, {} where it has none.
      normed: (S, D) the states under the layer's own input norm, for a rule that reads them, or None.
    """

    kept: Int[Array, ""]
    table: Int[Array, "Q"]
    seed: Int[Array, ""]
    weights: Any
    normed: Any = None


class Routed(NamedTuple):
    """A rule's answer for one prompt.

    Attributes:
      runs: (S,) tokens that the layer runs on; the text is among them.
      score: (S,) what visual tokens were ranked by, for records.
      gate: (S,) float32 by which the MLP branch of each token that runs is multiplied, and with `scale_skipped` the
        state of each that does not; None for ones.
    """

    runs: Bool[Array, "S"]
    score: Float[Array, "S"]
    gate: Any = None


@dataclasses.dataclass(frozen=True)
class RouteRule(StageRule):
    """Which tokens a layer runs on; a subclass implements `choose`.

    Attributes:
      scale_skipped: whether tokens that pass by are multiplied by their gate (p-MoD) or stay as they are.

    Raises:
      JvidpruneError: a field with a value that its annotation does not allow.
    """

    scale_skipped: bool = dataclasses.field(default=False, kw_only=True)

    cuts: ClassVar[bool] = False
    reads_normed: ClassVar[bool] = False
    """Whether the states are also given under the layer's input norm."""
    routes_answers: ClassVar[bool] = False
    """Whether generated tokens are routed too (`follow`); else the layer runs on all of them, without a gate."""

    def __post_init__(self) -> None:
        check_fields(self)

    def choose(self, inputs: RouteInputs, state: TokenState) -> Routed:
        """Which tokens of one prompt run: at most `inputs.kept` visual ones.

        Args:
          inputs: counts and weights.
          state: without the batch axis; `visual` and `text_queries` are False outside `valid`.
        """
        raise NotImplementedError

    def follow(self, weights: Any, normed: Float[Array, "B L D"]) -> tuple[Bool[Array, "B L"], Float[Array, "B L"]]:
        """Which generated tokens run, and their gates.

        Args:
          weights: of the stage, by name.
          normed: states of the new tokens under the layer's input norm.
        """
        raise NotImplementedError


class RouteRecord(NamedTuple):
    """What a routed layer did.

    Attributes:
      score: (B, S) what visual tokens were ranked by.
      runs: (B, S) tokens that the layer ran on.
      gate: (B, S) float32, or None.
      source: (B, S) slot of the prompt of each.
      count: (B,) int32 tokens that ran, also where they are more than the layer has slots for.
      entering, leaving: (B, S, D) states in front of the layer and behind it.
    """

    score: Float[Array, "B S"]
    runs: Bool[Array, "B S"]
    gate: Any
    source: Int[Array, "B S"]
    count: Int[Array, "B"]
    entering: Float[Array, "B S D"]
    leaving: Float[Array, "B S D"]


class Ran(NamedTuple):
    """What a routed layer leaves: keys and values (1, B, C, K, d), which slots are in use and their bias (B, C).

    A layer without keys and values leaves what it carries, `state`.
    """

    k: Float[Array, "1 B C K d"]
    v: Float[Array, "1 B C K d"]
    valid: Bool[Array, "B C"]
    bias: Any = None
    state: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Route:
    """One routed layer, for one batch of prompts.

    Attributes:
      table: (Q,) int32 how many of n visual tokens run (of a frame's n with a rule that works in frames), or (B, Q).
      seed: () int32 of a rule that draws, or (B,).
      weights: arrays that the rule reads, by name.
      layer: that is routed; static.
      rule: static.
      capacity: slots of the layer, or None to run at full length with the others hidden; static.
      positions: rotary positions of the tokens inside the layer, kept or counted from 0; static.
    """

    table: Int[Array | np.ndarray, "*B Q"]
    seed: Int[Array | np.ndarray, "*B"]
    weights: Any
    layer: int = dataclasses.field(metadata=_STATIC)
    rule: RouteRule = dataclasses.field(metadata=_STATIC)
    capacity: int | None = dataclasses.field(metadata=_STATIC)
    positions: CutPositions = dataclasses.field(default="keep", metadata=_STATIC)

    def choose(self, state: TokenState, normed: Float[Array, "B S D"] | None = None) -> tuple[Array, Array, Any]:
        """(B, S) tokens that run, their score, and their gate or None.

        Args:
          state: in front of the layer.
          normed: for a rule that reads it.
        """
        rule, batch = self.rule, state.hidden.shape[0]
        roles = {"visual": state.visual & state.valid, "text_queries": state.text_queries & state.valid}
        shown = state._replace(**roles, aside=None)

        def one(table: Array, seed: Array, normed: Any, prompt: TokenState) -> Routed:
            kept = table[jnp.sum(prompt.visual, dtype=jnp.int32)]
            return rule.choose(RouteInputs(kept, table, seed, self.weights, normed), prompt)

        table = jnp.broadcast_to(self.table, (batch, self.table.shape[-1]))
        seed = jnp.broadcast_to(self.seed, (batch,))
        found = jax.vmap(one, in_axes=(0, 0, 0, batch_axes(shown)))(table, seed, normed, shown)
        return found.runs & state.valid, found.score, found.gate

    def run(self, decoder: Any, state: TokenState, *, packed: bool) -> tuple[Array, Ran, RouteRecord]:
        """The layer on the tokens that run: states (B, S, D) of all, what its cache holds, and a record.

        Args:
          decoder: of any family.
          state: in front of the layer.
          packed: static; promises that the valid slots of each row are its first ones.

        Raises:
          JvidpruneError: positions on three axes that would be counted anew.
        """
        normed = decoder.entering(state.hidden, self.layer) if self.rule.reads_normed else None
        runs, score, gate = self.choose(state, normed)
        part, gates = state._replace(valid=runs), gate
        if self.capacity is not None:
            index, valid, _ = jax.vmap(lambda mask: pack(mask, self.capacity or 0))(runs)
            index = jnp.minimum(index, runs.shape[1] - 1)
            part = gathered(state, index, valid)
            gates = None if gate is None else jnp.take_along_axis(gate, index, axis=1)
        if self.positions == "renumber":
            part = renumbered(part)
        packed = packed and self.capacity is not None
        told = {"bidirectional": part.bidirectional, "bias": part.bias}
        step = decoder.step(part.positions, part.valid, packed=packed, **told)
        x, outputs = decoder.mix(part.hidden, step, self.layer)
        x = decoder.feed(x, self.layer, gates)
        if self.capacity is not None:
            # Where each slot went: a gather, since scatters of wide rows are slow on accelerators.
            place = jnp.clip(jnp.cumsum(runs, axis=1) - 1, 0, self.capacity - 1)
            x = jnp.take_along_axis(x, place[..., None], axis=1)
        by = state.hidden
        if self.rule.scale_skipped and gate is not None:
            by = (gate[..., None] * by.astype(jnp.float32)).astype(by.dtype)
        leaving = jnp.where(runs[..., None], x, by)
        count = runs.sum(axis=1, dtype=jnp.int32)
        record = RouteRecord(score, runs, gate, state.source, count, state.hidden, leaving)
        return leaving, Ran(outputs.k, outputs.v, part.valid, part.bias, outputs.state), record

    def read_on(
        self, decoder: Any, x: Float[Array, "B L D"], positions: Int[Array, "B L"], segment: CacheSegment
    ) -> tuple[Array, Any, Bool[Array, "B L"]]:
        """The layer on generated tokens, of a rule that routes these too: states, what it leaves, and which ran.

        Args:
          decoder: of any family.
          x: states in front of the layer.
          positions: of the tokens in layers that are not routed.
          segment: the layer's cache.
        """
        ran, gate = self.rule.follow(self.weights, decoder.entering(x, self.layer))
        if self.positions == "renumber":
            held = segment.valid.sum(axis=1, dtype=positions.dtype)[:, None]
            positions = held + jnp.maximum(jnp.cumsum(ran, axis=1, dtype=positions.dtype) - 1, 0)
        out, outputs = decoder.mix(x, decoder.step(positions, ran), self.layer, past=segment)
        out = decoder.feed(out, self.layer, gate)
        return jnp.where(ran[..., None], out, x), outputs, ran


def check_route(stage: InnerStage) -> None:
    """Refuses what a stage with a `RouteRule` cannot have.

    Raises:
      JvidpruneError: a place inside the layer, positions that only a cut can have, or a count of the whole prompt for a
        rule that counts in frames.
    """
    name = type(stage.rule).__name__
    if stage.where != "before":
        raise JvidpruneError(f"{name} routes a whole layer, so its stage cannot stand inside one.")
    if stage.positions == "renumber_prompt":
        raise JvidpruneError(f"{name} keeps the positions of its layer or counts them anew, not {stage.positions!r}.")
    if stage.rule.trims:
        raise JvidpruneError(f"{name} drops no token, so that there is nothing to trim from earlier caches.")
    if stage.rule.by_frame and stage.kept.of == "prompt":
        raise JvidpruneError(f"{name} counts in every frame, which cannot be counted from the whole prompt.")
