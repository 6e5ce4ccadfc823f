"""DART's rule: a few pivots by the size of their keys, then the tokens least like each pivot (arXiv 2502.11494)."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.protocol import Chosen, CutInputs, CutRule, Probe, TokenState
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count
from jvidprune.ops.select import order_ascending, order_descending, rank_ascending
from jvidprune.ops.similarity import dot_f32, squared_norms
from jvidprune.tokens import Kept

PivotOrder = Literal["hash", "norm"]
"""How pivots are visited: in the order of CPython's hash table, as in the released loop over a set, or image pivots by
falling norm, then text pivots by falling norm."""

MOST_PIVOTS = 18
"""Values that a set of CPython holds in 32 slots."""

_FAR, _EPS = 1 << 20, 1e-8


class DartPicks(NamedTuple):
    """What one prompt's choice was made of; P pivots, in the order in which they are visited.

    Attributes:
      norm: (S,) float32 L1 norm of each key, heads together.
      image, text: (pi,), (pt,) int32 slots of the pivots by falling norm; places behind those there are mean nothing.
      pivots: (P,) int32 slots as they are visited.
      there: (P,) bool, False for a pivot that a short prompt has no token for.
      cosine: (P, S) float32 to each pivot.
      taken: (P, S) bool what is taken at each pivot.
      kept: (S,) bool visual tokens that stay.
    """

    norm: Float[Array, "S"]
    image: Int[Array, "pi"]
    text: Int[Array, "pt"]
    pivots: Int[Array, "P"]
    there: Bool[Array, "P"]
    cosine: Float[Array, "P S"]
    taken: Bool[Array, "P S"]
    kept: Bool[Array, "S"]


@dataclasses.dataclass(frozen=True)
class PivotCount(Kept):
    """pi + (pi + pt) q tokens stay, q being what each pivot takes.

    Attributes:
      image, text: pi and pt.
      whole: keep round(n * share), or `number`, instead: the pivots take q = ceil((k - pi) / (pi + pt)) until they are
        there.
    """

    image: Count = 4
    text: Count = 4
    whole: bool = False

    def count(self, n: int, prompt: int | None = None) -> int:
        """q is int(n * share / (pi + pt)) or number // (pi + pt), and never more than there are tokens for."""
        if self.whole:
            return min(round(n * self.share) if self.number is None else self.number, n)
        pivots = self.image + self.text
        each = int(n * self.share / pivots) if self.number is None else self.number // pivots
        return min(self.image, n) + pivots * max(min(each, (n - self.image) // pivots), 0)


@dataclasses.dataclass(frozen=True)
class KeyNormPivots(CutRule):
    """Pivots are the tokens with the largest keys; each takes the tokens least like it under the model's last norm.

    1. Image pivots: the `image` visual tokens with the largest L1 norm of their keys in the layer before the cut.
    2. Text pivots: the `text` tokens behind the last visual one, chosen alike.
    3. Every pivot in turn takes the q visual tokens of smallest cosine that no earlier one took.
    4. Image pivots and all that was taken stay.

    Its stage counts by `PivotCount` with the same numbers of pivots. The released code reads the last norm's weights on
    states of the layer before the cut, and so does this. Equal norms and cosines go by position.

    Attributes:
      image, text: numbers of pivots.
      order: see `PivotOrder`.
      whole: pivots stop when as many tokens as the stage counts are there; text pivots come from all text, and states
        are compared as they are (AngelSlim's version).

    Raises:
      JvidpruneError: more pivots than `MOST_PIVOTS` in the order of a hash table.
    """

    image: Count = 4
    text: Count = 4
    order: PivotOrder = "hash"
    whole: bool = False

    probe: ClassVar[Probe] = "keys"
    reads_normed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order == "hash" and self.image + self.text > MOST_PIVOTS:
            raise JvidpruneError(
                f"the order of a hash table is known for up to {MOST_PIVOTS} pivots, got {self.image} and {self.text}; "
                "visit them by order='norm'."
            )

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """See the class."""
        picks = self.picks(inputs, state)
        return Chosen(state.hidden, ~state.visual | picks.kept, picks.norm, diagnostics=picks._asdict())

    def picks(self, inputs: CutInputs, state: TokenState) -> DartPicks:
        """All steps of one prompt's choice."""
        visual, size = state.visual, state.visual.shape[0]
        norm = jnp.abs(inputs.keys.astype(jnp.float32)).sum(axis=(1, 2))
        last = jnp.max(jnp.where(visual, jnp.arange(size), -1))
        asking = state.valid & ~visual & (self.whole | (jnp.arange(size) > last))
        image, text = (_largest(norm, mask, count) for mask, count in ((visual, self.image), (asking, self.text)))
        pivots, there = jnp.concatenate([image, text]), jnp.concatenate([visual[image], asking[text]])
        if self.order == "hash":
            # A token's place in the prompt, whatever padding and earlier cuts did to its slot.
            order = hash_order(jnp.cumsum(state.valid, dtype=jnp.int32)[pivots] - 1, there)
            pivots, there = pivots[order], there[order]
        states = state.hidden if self.whole else inputs.normed
        length = jnp.maximum(jnp.sqrt(squared_norms(states)), _EPS)
        cosine = dot_f32(states[pivots], states) / (length[pivots][:, None] * length)
        first = visual & jnp.zeros(size, bool).at[image].set(True)
        kept, count = inputs.kept, self.image + self.text
        each = jnp.maximum(kept - self.image, 0)
        each = -(-each // count) if self.whole else each // count

        def visit(free: Array, pivot: tuple[Array, Array]) -> tuple[Array, Array]:
            similarity, real = pivot
            room = jnp.minimum(each, kept - jnp.sum(visual & ~free)) if self.whole else each
            rank = rank_ascending(jnp.where(free, similarity, jnp.inf))
            take = free & (rank < room) & real
            return free & ~take, take

        free, taken = lax.scan(visit, visual & ~first, (cosine, there))
        # With fewer to keep than there are image pivots, the largest of these.
        few = jnp.zeros(size, bool).at[image].set(jnp.arange(self.image) < kept)
        chosen = visual & ~free & (few | ~first)
        return DartPicks(norm, image, text, pivots, there, cosine, taken, chosen)


def _largest(norm: Float[Array, "S"], mask: Bool[Array, "S"], count: int) -> Int[Array, "count"]:
    return order_descending(jnp.where(mask, norm, -jnp.inf))[:count]


def hash_order(values: Int[Array, "P"], there: Bool[Array, "P"]) -> Int[Array, "P"]:
    """The order in which CPython iterates over a set that these integers were added to one by one.

    A table of 8 slots, after the fifth value one of 32 into which those in it are entered again, slot by slot. A value
    v goes to slot v mod size, else to the first free one of the next nine if they do not pass the end, else on to
    (5 slot + 1 + (v >> 5 i)) mod size. Values are places in a prompt, which are their own hashes.

    Args:
      values: different and not negative, in the order they were added; at most `MOST_PIVOTS`.
      there: those that were added, False only behind the True ones.

    Returns:
      (P,) int32 indices into `values`, those not there last.
    """
    count = values.shape[0]
    few = min(count, 5)
    small = _fill(values[:few], there[:few], 8)
    if count < 5:
        return order_ascending(small)
    again = order_ascending(small)
    big = jnp.concatenate([again, jnp.arange(few, count, dtype=jnp.int32)])
    place = jnp.zeros(count, jnp.int32).at[big].set(_fill(values[big], there[big], 32))
    early = jnp.concatenate([small, jnp.full(count - few, _FAR, jnp.int32)])
    return order_ascending(jnp.where(there.sum() < 5, early, place))


def _fill(values: Int[Array, "P"], there: Bool[Array, "P"], size: int) -> Int[Array, "P"]:
    """Slot of each value in a table that they are entered in one by one, `_FAR` for those not there."""
    near = jnp.arange(10)

    def enter(used: Array, entry: tuple[Array, Array]) -> tuple[Array, Array]:
        value, real = entry

        def free_from(slot: Array) -> tuple[Array, Array]:
            allowed = (near == 0) | (slot + 9 < size)
            open_slots = allowed & ~used[jnp.minimum(slot + near, size - 1)]
            return open_slots.any(), slot + jnp.argmax(open_slots)

        def on(at: tuple[Array, Array]) -> tuple[Array, Array]:
            slot, rest = at
            rest >>= 5
            return (5 * slot + 1 + rest) % size, rest

        slot, _ = lax.while_loop(lambda at: ~free_from(at[0])[0], on, (value % size, value))
        slot = free_from(slot)[1].astype(jnp.int32)
        return used.at[slot].set(used[slot] | real), jnp.where(real, slot, _FAR)

    start: Any = jnp.zeros(size, bool)
    return lax.scan(enter, start, (values, there))[1]
