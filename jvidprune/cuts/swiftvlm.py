"""SwiftVLM's rules, a reconstruction: dropped tokens travel as a few means and come back moved (arXiv 2602.03134)."""

import dataclasses
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.protocol import Chosen, CutInputs, CutRule, Probe, TokenState
from jvidprune.fields import Count, Index, Range
from jvidprune.ops.compact import compact as pack
from jvidprune.ops.select import keep_top
from jvidprune.ops.similarity import dot_f32, normalise
from jvidprune.tokens import Kept

Heads = Literal["mean", "max"]
"""How the attention of several heads is one score."""

Place = Literal["before", "after"]
"""Where tokens come back and leave again: in front of a layer, by the attention that it would pay; or so that the layer
itself runs on all of them and they leave behind it, by the attention that it paid."""

Rounds = Annotated[int, Range(0, 3)]
"""Rounds of k-means behind the first grouping."""

PER_GROUP = 32
"""Visual tokens of the prompt for each group."""

_TINY = 1e-12


def groups_of(visual: int, groups: int | None) -> int:
    """Z of so many visual tokens: round(N / 32) with ties to even, at least 1, or a number of one's own."""
    return max(round(visual / PER_GROUP), 1) if groups is None else groups


@dataclasses.dataclass(frozen=True)
class BypassCount(Kept):
    """k, of the prompt's own N, such that all layers together read a share of N a layer, merged tokens included.

    The layers are `whole`, which read all, `between`, which read k + Z, and `behind`, which read k. Where fewer than Z
    tokens are low each is a group of its own.

    Attributes:
      groups: Z; None has it follow from N.
      whole, between, behind: numbers of layers.
      final: whether this is the last cut, behind which nothing is merged.
    """

    groups: Count | None = None
    whole: Index = 0
    between: Index = 0
    behind: Index = 1
    final: bool = False

    def count(self, n: int, prompt: int | None = None) -> int:
        """k; with `number` that many, where there are."""
        total = n if prompt is None else prompt
        if self.number is not None:
            return min(self.number, total)
        merged, depth = groups_of(total, self.groups), self.whole + self.between + self.behind
        left = (self.share * depth - self.whole) * total
        kept = round((left - merged * self.between) / max(self.between + self.behind, 1))
        if total - kept < merged and self.behind:
            kept = round((left - total * self.between) / self.behind)
        return min(max(kept, 0), total)

    def left(self, n: int, prompt: int | None = None, text: int = 0) -> int:
        """k, and the merged tokens where there are any."""
        total = n if prompt is None else prompt
        kept = self.count(n, prompt)
        return kept if self.final else kept + min(groups_of(total, self.groups), total - kept)


class Grouped(NamedTuple):
    """Low tokens in groups.

    Attributes:
      group: (S,) int32 of each low token, Z elsewhere, as large as there can be.
      seeds: (Z,) int32 slot of the token that each group began with.
      there: (Z,) bool groups that there are.
      mean: (Z, D) float32.
    """

    group: Int[Array, "S"]
    seeds: Int[Array, "Z"]
    there: Bool[Array, "Z"]
    mean: Float[Array, "Z D"]


def group_low(
    hidden: Float[Array, "S D"], low: Bool[Array, "S"], count: Int[Array, ""], *, most: int, rounds: int = 0
) -> Grouped:
    """Groups tokens by their cosines with evenly spaced ones of them.

    Args:
      hidden: states.
      low: the tokens.
      count: groups, at most as many as tokens; traced.
      most: the largest `count`, static.
      rounds: of k-means from there; a seed stays in its group, so that none is empty.
    """
    size, total = low.shape[0], jnp.sum(low, dtype=jnp.uint32)
    number = jnp.arange(most, dtype=jnp.int32)
    there = number < count
    ordinal = (2 * number.astype(jnp.uint32) + 1) * total // jnp.maximum(2 * count, 1).astype(jnp.uint32)
    slots, _, _ = pack(low, size)
    seeds = jnp.minimum(slots[jnp.minimum(ordinal.astype(jnp.int32), size - 1)], size - 1)
    own = jnp.full(size + 1, most, jnp.int32).at[jnp.where(there, seeds, size)].set(number)[:size]
    unit = normalise(hidden, _TINY)
    centres = unit[seeds]
    states = hidden.astype(jnp.float32)
    for again in range(rounds + 1):
        cosine = jnp.where(there, dot_f32(unit, centres), -jnp.inf)
        nearest = jnp.argmax(cosine, axis=1).astype(jnp.int32)
        group = jnp.where(low & (count > 0), jnp.where(own < most, own, nearest), most)
        member = (group == number[:, None]).astype(jnp.float32)
        # A product instead of a scatter of wide rows.
        sums = lax.dot(member, states, precision=lax.Precision.HIGHEST)
        mean = sums / jnp.maximum(member.sum(axis=1), 1.0)[:, None]
        if again < rounds:
            centres = normalise(mean, _TINY)
    return Grouped(group, seeds, there, mean)


def _returned(state: TokenState) -> TokenState:
    """Bypassed tokens behind the layers that they did not run: h_i + (m_g now - m_g then)."""
    if not isinstance(state.side, dict) or "bypassed" not in state.side:
        return state
    side = state.side
    drift = state.hidden[side["seeds"]].astype(jnp.float32) - side["merged"].astype(jnp.float32)
    most = drift.shape[0]
    back = side["group"] < most
    moved = side["bypassed"].astype(jnp.float32) + drift[jnp.minimum(side["group"], most - 1)]
    hidden = jnp.where(back[:, None], moved.astype(state.hidden.dtype), state.hidden)
    return state._replace(hidden=hidden, valid=state.valid | back)


@dataclasses.dataclass(frozen=True)
class Bypass(CutRule):
    """Keeps the visual tokens that the last position attends to most; the others bypass layers as a few means.

    All tokens come back before they are ranked. A merged token stands in the slot of its group's seed, with its
    position, and counts as one key.

    Attributes:
      groups: Z, at most the low tokens; None has it follow from the number of visual tokens.
      heads: mean or largest of the heads' attention.
      rounds: of k-means in the grouping.
      final: the last cut: the others are gone.
      place: see `Place`; with `after` a `Return` stage stands before the layer that ranks.

    Raises:
      JvidpruneError: a value that its annotation does not allow.
    """

    groups: Count | None = None
    heads: Heads = "mean"
    rounds: Rounds = 0
    final: bool = False
    place: Place = "before"

    @property
    def probe(self) -> Probe:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Attention of the layer behind the cut, or of the one before it."""
        return "ahead" if self.place == "before" else "last"

    @property
    def brings_back(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the tokens come back here."""
        return self.place == "before"

    @property
    def keeps_roles(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Before the last cut."""
        return not self.final

    def held(self, slots: int, width: int, itemsize: int) -> int:
        """The states and groups of bypassed tokens, and the merged tokens as they were with their seeds."""
        merged = 0 if self.final else min(groups_of(slots, self.groups), slots)
        return 0 if self.final else slots * (width * itemsize + 4) + merged * (width * itemsize + 4)

    def restore(self, state: TokenState) -> TokenState:
        """See `Bypass`."""
        return _returned(state)

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """The `kept` largest, equal ones by position, and the merged tokens."""
        weights = inputs.attention[:, 0]
        score = weights.mean(axis=0) if self.heads == "mean" else weights.max(axis=0)
        keep = keep_top(score, state.visual, inputs.kept)
        record = {"keep": keep & state.visual}
        if self.final:
            return Chosen(state.hidden, keep & state.valid, score, diagnostics=record)
        low, visual = state.visual & ~keep, jnp.sum(state.visual)
        # Half a token more or less decides, so that the division is exact in float32 for every prompt there can be.
        asked = jnp.maximum(jnp.round(visual / PER_GROUP), 1) if self.groups is None else self.groups
        count = jnp.minimum(jnp.asarray(asked, jnp.int32), jnp.sum(low, dtype=jnp.int32))
        size = low.shape[0]
        found = group_low(state.hidden, low, count, most=min(groups_of(size, self.groups), size), rounds=self.rounds)
        most = found.there.shape[0]
        number = jnp.full(size + 1, most, jnp.int32)
        number = number.at[jnp.where(found.there, found.seeds, size)].set(jnp.arange(most, dtype=jnp.int32))[:size]
        seed = number < most
        merged = found.mean.astype(state.hidden.dtype)
        hidden = jnp.where(seed[:, None], merged[jnp.minimum(number, most - 1)], state.hidden)
        bypassed = jnp.where(low[:, None], state.hidden, jnp.zeros((), state.hidden.dtype))
        side = {"bypassed": bypassed, "group": found.group, "merged": merged, "seeds": found.seeds}
        record |= {"group": found.group, "merged": seed}
        return Chosen(hidden, keep & state.valid | seed, score, side, diagnostics=record)


@dataclasses.dataclass(frozen=True)
class Return(CutRule):
    """Brings all bypassed tokens back and drops none: before a layer that runs on all of them."""

    brings_back: ClassVar[bool] = True

    def restore(self, state: TokenState) -> TokenState:
        """See `Bypass`."""
        return _returned(state)

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """Everything."""
        return Chosen(state.hidden, state.valid, state.valid.astype(jnp.float32))
