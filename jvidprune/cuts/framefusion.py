"""FrameFusion's calls: tokens of one place merge over time until that pays no more, then one pruning by attention.

arXiv 2501.01986; `framefusion/main.py` of `thu-nics/FrameFusion` at fbec1d2.
"""

import dataclasses
import math
from fractions import Fraction
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.protocol import Chosen, CutInputs, CutRule, Probe, TokenState
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Share
from jvidprune.ops.select import keep_top, rank_descending
from jvidprune.ops.similarity import squared_norms
from jvidprune.tokens import Kept

NO_PREDECESSOR = -2.0
"""Similarity of a token that has none of its place in an earlier frame."""


@dataclasses.dataclass(frozen=True)
class CostBudget(Kept):
    """A share of the tokens that all layers together would read without any cut.

    What is left for each further layer, q, falls from call to call: a call that leaves more than q takes more than the
    layer's part. So q is at most its first value, share * n, and no more than that rounded up stay in the end.
    A `number` of tokens that a layer may read stands in the place of share * n.

    Attributes:
      depth: layers that the budget is counted over.
      final: behind this cut no more than the bound above are left; behind the others all may be.
    """

    depth: Count = 28
    final: bool = False

    @property
    def bounded(self) -> bool:
        """At the last cut."""
        return self.final

    @property
    def layer_share(self) -> float | None:
        """The budget's."""
        return self.share if self.number is None else None

    def budget(self, n: int) -> Fraction:
        """Tokens times layers of a prompt of n visual tokens; depth * share is rounded to four places."""
        if self.number is not None:
            return Fraction(self.depth * min(self.number, n))
        return Fraction(round(10**4 * self.depth * self.share), 10**4) * n

    def count(self, n: int, prompt: int | None = None) -> int:
        """The most that are left of n."""
        if not self.final:
            return n
        return min(n, math.ceil(self.budget(n if prompt is None else prompt) / self.depth))

    def table(self, most: int, prompt: int | None = None) -> Int[np.ndarray, "Q"]:
        """(most + 1,) int32 `quarters` of the budget of every number of tokens from 0 to `most`."""
        return np.asarray([quarters(self.budget(n)) for n in range(most + 1)], np.int32)


def quarters(budget: Fraction) -> int:
    """A number that stands to every multiple of 2 as 4 * budget does.

    All that is asked of a budget is whether it is less than, equal to or more than a whole number or a half. So one
    integer says it exactly: 4 * budget at wholes and halves, the odd number between two of them elsewhere.
    """
    halves = math.floor(2 * budget)
    return 2 * halves + (2 * budget != halves)


class Spending(NamedTuple):
    """What one call leaves for the next; of one prompt.

    Attributes:
      quarters: () int32 the budget, see `quarters`.
      spent: () int32 sum of the tokens that were left behind each merging call.
      calls: () int32 of these.
      merged: () bool merging is closed.
      pruned: () bool pruning is closed.
    """

    quarters: Int[Array, ""]
    spent: Int[Array, ""]
    calls: Int[Array, ""]
    merged: Bool[Array, ""]
    pruned: Bool[Array, ""]

    def open(self, state: TokenState, depth: int) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
        """n tokens, and the two parts of q = rest / parts, what each further layer may read.

        A rest below 0, possible at very small budgets, counts as none (the released code fails).
        """
        n = jnp.sum(state.visual, dtype=jnp.int32)
        return n, jnp.maximum(self.quarters - 4 * self.spent, 0), 4 * (depth - self.calls)

    def handed_on(self, chosen: Chosen, record: dict[str, Array]) -> Chosen:
        """The answer that hands this on, with more in its record."""
        closed = {"merging_closed": self.merged, "pruning_closed": self.pruned}
        return chosen._replace(side={"spending": self}, diagnostics={**chosen.diagnostics, **record, **closed})


class TimeSimilarity(NamedTuple):
    """Tokens by place and then by time, S slots.

    Attributes:
      order: (S,) int32 slots in that order, those that are no visual token last.
      cosine: (S,) float32 of each slot to the token of its place in the nearest earlier frame, or `NO_PREDECESSOR`.
    """

    order: Int[Array, "S"]
    cosine: Float[Array, "S"]


def time_similarity(hidden: Float[Array, "S D"], place: Int[Array, "S"], visual: Bool[Array, "S"]) -> TimeSimilarity:
    """Cosine of every visual token to its predecessor.

    A state of zeros has no direction and counts as a token without predecessor (the released code yields NaN).

    Args:
      hidden: states.
      place: place of each token in its frame; frames follow each other in the slots.
      visual: tokens that take part.
    """
    key = jnp.where(visual, place, jnp.iinfo(jnp.int32).max)
    order = jnp.argsort(key, stable=True).astype(jnp.int32)
    before = jnp.roll(order, 1)
    same = (key[order] == key[before]) & visual[order] & (jnp.arange(len(order)) > 0)
    found = jnp.zeros(len(order), bool).at[order].set(same)
    former = jnp.zeros(len(order), jnp.int32).at[order].set(before)
    x = hidden.astype(jnp.float32)
    norm = jnp.sqrt(squared_norms(x))
    lengths = norm * norm[former]
    cosine = jnp.sum(x * x[former], axis=-1) / jnp.where(lengths > 0, lengths, 1.0)
    return TimeSimilarity(order, jnp.where(found & (lengths > 0), cosine, NO_PREDECESSOR))


def merge_runs(
    hidden: Float[Array, "S D"], order: Int[Array, "S"], merge: Bool[Array, "S"]
) -> tuple[Float[Array, "S D"], Int[Array, "S"]]:
    """Runs of merging tokens join the token in front of them, which becomes the plain mean of itself and the run.

    Args:
      hidden: states.
      order: of `TimeSimilarity`.
      merge: tokens that merge; each has a predecessor.

    Returns:
      states in the dtype of `hidden`, and the slot that each goes to, its own where it stays.
    """
    size = len(order)
    first = lax.cummax(jnp.where(merge[order], 0, jnp.arange(size)))
    head = jnp.zeros(size, jnp.int32).at[order].set(order[first])
    total = jnp.zeros(hidden.shape, jnp.float32).at[head].add(hidden.astype(jnp.float32))
    members = jnp.zeros(size, jnp.float32).at[head].add(1.0)[:, None]
    return jnp.where(members > 1, (total / jnp.maximum(members, 1.0)).astype(hidden.dtype), hidden), head


@dataclasses.dataclass(frozen=True)
class FuseEmbeddings(CutRule):
    """The first call, in front of the first layer: it can merge alone. Its stage counts by `CostBudget`.

    Attributes:
      similarity: least cosine of tokens that merge while the budget is not reached.
      ratio: merging ends with the call that merges less than this share of the tokens.
      depth: layers that the budget is counted over.
    """

    similarity: Share = 0.6
    ratio: Share = 0.1
    depth: Count = 28

    by_place: ClassVar[bool] = True

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """See `Fuse`."""
        nothing, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        chosen, then = self.merge(Spending(inputs.kept, nothing, nothing, no, no), state)
        return then.handed_on(chosen, {})

    def merge(self, at: Spending, state: TokenState) -> tuple[Chosen, Spending]:
        """Merges in one prompt while merging is open."""
        visual, dtype, merging = state.visual, jnp.int32, ~at.merged
        n, rest, parts = at.open(state, self.depth)
        found = time_similarity(state.hidden, state.block, visual)
        alike = visual & (found.cosine >= self.similarity)
        m = jnp.sum(alike, dtype=dtype)
        goes_on = rest < parts * (n - m)
        # int(n - q) most similar ones, equal ones by place and time.
        wanted = n - jnp.clip(-(-rest // parts), 0, n)
        rank = jnp.zeros(len(visual), dtype).at[found.order].set(rank_descending(found.cosine[found.order]))
        merge = merging & visual & jnp.where(goes_on, alike, rank < wanted)
        hidden, head = merge_runs(state.hidden, found.order, merge)
        few = m * 10**4 < round(self.ratio * 10**4) * n
        listed = merging & goes_on
        left = jnp.where(listed, n - m, 0)
        then = Spending(
            at.quarters,
            at.spent + left,
            at.calls + listed.astype(dtype),
            at.merged | (merging & (~goes_on | few)),
            at.pruned | (merging & ~goes_on),
        )
        record = {"similarity": found.cosine, "order": found.order, "merged_into": head}
        return Chosen(hidden, state.valid & ~merge, found.cosine, diagnostics=record), then

    def prune(self, at: Spending, attention: Float[Array, "H R S"], state: TokenState) -> Bool[Array, "S"]:
        """The tokens of one prompt that stay by their attention, and all text."""
        n, rest, parts = at.open(state, self.depth)
        whole = rest // parts
        twice = 2 * (rest - whole * parts)
        up = (twice > parts) | ((twice == parts) & (whole % 2 == 1))
        return keep_top(attention.mean(axis=(0, 1)), state.visual, jnp.clip(whole + up, 0, n))


@dataclasses.dataclass(frozen=True)
class Fuse(FuseEmbeddings):
    """A call inside a layer: it merges while merging is open, or prunes once in the first call behind that.

    With n tokens, of which m have a cosine of at least `similarity` to their predecessor, and q tokens for each further
    layer: where m < n - q all m merge, else the int(n - q) most similar ones, and all is done. Pruning keeps the
    round(q) tokens with the largest attention of the last rows, mean over heads and rows. Counts are exact integers.

    Attributes:
      rows: last positions whose attention counts.
      final: nothing merges in this call, and if pruning is still open it is done now.
    """

    rows: Count = 1
    final: bool = False

    probe: ClassVar[Probe] = "last"

    @property
    def last_rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`rows`."""
        return self.rows

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """See the class."""
        if not isinstance(state.side, dict) or "spending" not in state.side:
            raise JvidpruneError("Fuse goes on with what a stage with the rule FuseEmbeddings has spent before it.")
        at: Spending = state.side["spending"]
        keep, mean = self.prune(at, inputs.attention, state), inputs.attention.mean(axis=(0, 1))
        if self.final:
            prunes, then = ~at.pruned, at
            chosen = Chosen(state.hidden, state.valid, mean, diagnostics={})
        else:
            prunes = ~at.pruned & at.merged
            chosen, then = self.merge(at, state)
        score, survivors = jnp.where(prunes, mean, chosen.score), chosen.survivors & (keep | ~prunes)
        then = then._replace(merged=then.merged | self.final, pruned=then.pruned | prunes)
        overdrawn = prunes & (at.quarters < 4 * at.spent)
        record = {"attention": mean, "forced": prunes & ~at.merged, "overdrawn": overdrawn}
        return then.handed_on(chosen._replace(score=score, survivors=survivors), record)
