"""ToMe on video tokens: rounds of bipartite matching that merge the most similar pairs (arXiv 2210.09461).

Tokens at even places are A, those at odd places B; n tokens become g, at most half of them merged a round.

1. u = metric / |metric| of every token; each a in A finds its most similar b in B.
2. The r = min(n - g, n // 2) most similar a of all are merged into their b; rows are means weighted by size.
3. The new list is the unmerged a, by falling similarity, then B in order; the next round splits that list.

Follows `facebookresearch/ToMe` (af95e4b) and VideoChat-Flash's loop around its functions (arXiv 2501.00574, 2f8e2f5:
`clip=4, heads=16`). No code fixes how it runs as a video baseline: here each frame, or clip of frames, by itself.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("tome"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count
from jvidprune.ops import compact
from jvidprune.ops.branch import on_cpu
from jvidprune.ops.select import COMPARED, entries_at, first_argmax, first_occurrence, occurrences, rank_descending
from jvidprune.ops.similarity import dot_f32, gram_norms, over_frames, squared_norms, widened
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, sums
from jvidprune.reducers.counts import half_even
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens


class ToMeBudget(NamedTuple):
    """int32 scalars: tokens left of a whole clip, and of each frame of a clip that the video's end cuts short."""

    target: Any
    per_frame: Any


class ToMeShared(NamedTuple):
    """Ratio-independent work on E clips of n tokens; level f is the list that f full halvings leave, L levels.

    All rounds but the last are full halvings, and a level's matching does not depend on how many of its pairs merge: a
    ratio takes one level and a prefix of its pairs.

    Attributes:
      row: (L, E, n) int32 place of each source token in the list.
      rank: (L, E, A) int32 rank of every even token of the list by its best similarity, largest first.
      into: (L, E, A) int32 the odd token that is its best.
      frame_mask: (T,) bool.
    """

    row: Int[Array, "L E n"]
    rank: Int[Array, "L E A"]
    into: Int[Array, "L E A"]
    frame_mask: Bool[Array, "T"]


@dataclasses.dataclass(frozen=True)
class ToMe(PositionedReducer):
    """Merges tokens of each clip in rounds of bipartite matching until k a frame are left.

    k = max(1, round(ratio * N)), halves to even. A row is the mean of its source tokens and is named after the first of
    them. A clip that the end of the video cuts short keeps k for each of its frames. Ties go to the lowest index; a
    zero metric, NaN in the released code, is similar to nothing.

    Attributes:
      clip: frames that are merged together; None takes the whole video as one clip, whose first round compares
        (T * N / 2)^2 pairs.
      heads: tokens are compared by the mean of so many equal parts of their features, which it must divide; 1 compares
        the features themselves, 16 is VideoChat-Flash's.
      order: rows of a clip in the `released` order of the lists, not that of the video, or by the `position` of the
        first token of each.
    """

    clip: Count | None = 1
    heads: Count = 1
    order: Literal["released", "position"] = "released"

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> ToMeShared:
        """The matchings of all levels; a sink rule has no place here."""
        frames, n, dim = video.features.shape
        if dim % self.heads:
            raise JvidpruneError(f"the heads of ToMe must divide the width of the tokens, {dim}, got {self.heads}.")
        clip = self._clip(frames)
        x = video.features.reshape(frames * n, dim)
        if frames % clip:
            x = jnp.pad(x, ((0, -frames % clip * n), (0, 0)))
        lengths = n * _frames_of(video.frame_mask, clip)
        halve = _levels if on_cpu() or clip * n > COMPARED else _gram_levels
        found = over_frames(
            lambda tokens, length: halve(tokens, length, self.heads), x.reshape(-1, clip * n, dim), lengths
        )
        row, rank, into = (jnp.moveaxis(part, 1, 0) for part in found)
        return ToMeShared(row, rank, into, video.frame_mask)

    def decide(self, shared: ToMeShared, budget: ToMeBudget, *, capacity: int) -> Plan:
        """Level and number of pairs of every clip, and from them the row of every token."""
        levels, entries, n = shared.row.shape
        m = shared.frame_mask.shape[0]
        clip = self._clip(m)
        frames = _frames_of(shared.frame_mask, clip)
        length = frames * (n // clip)
        target = jnp.where(frames == clip, budget.target, budget.per_frame * frames)
        level, size = jnp.zeros_like(length), length
        for _ in range(levels - 1):
            halve = (size > target) & (size - (size >> 1) >= target)
            level, size = level + halve, jnp.where(halve, size - (size >> 1), size)
        pairs = jnp.maximum(size - target, 0)

        entry = jnp.arange(entries)
        place, rank, into = (part[level, entry] for part in (shared.row, shared.rank, shared.into))
        row = jnp.where(pairs[:, None] > 0, _merged_place(place, rank, into, size, pairs), place)
        token = jnp.arange(n, dtype=jnp.int32)
        row = jnp.where(token < length[:, None], row, n)
        left = size - pairs

        first = first_occurrence(row, n)
        mass = occurrences(row, row < n, n)
        start = entry.astype(jnp.int32)[:, None] * n
        tokens = m * (n // clip)
        share = 1.0 / jnp.maximum(entries_at(mass, jnp.minimum(row, n - 1)), 1)
        flat = (start + first).reshape(-1)
        target_row = jnp.where(row < n, start + row, entries * n).reshape(1, -1)[:, :tokens]
        diagnostics = {"row": row, "size": mass, "level": level, "pairs": pairs, "rank": rank, "into": into}
        return compact.slotted_plan(
            jnp.minimum(flat, tokens),
            (token < left[:, None]).reshape(-1),
            jnp.zeros(entries * n, bool),
            target_row,
            share.reshape(1, -1)[:, :tokens],
            capacity,
            diagnostics | {"levels_rank": shared.rank, "levels_into": shared.into},
            key=None if self.order == "released" else flat,
        )

    def _clip(self, frames: int) -> int:
        return frames if self.clip is None else min(self.clip, frames)

    def budget(self, layout: Layout, ratio: float) -> ToMeBudget:
        """k for each frame of a clip."""
        kept = half_even(layout.tokens, check_ratio(ratio))
        return ToMeBudget(np.int32(kept * self._clip(layout.slots)), np.int32(kept))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly k rows a frame."""
        return layout.frames * half_even(layout.tokens, check_ratio(ratio))

    @property
    def tokens_per_frame(self) -> Callable[[Layout, float], int] | None:
        """k where each frame is merged by itself, None for clips of several."""
        if self.clip != 1:
            return None
        return lambda layout, ratio: half_even(layout.tokens, check_ratio(ratio))

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Similarities of the pairs of every round, the sums of the rounds, and those of the features."""
        clip = layout.frames if self.clip is None else min(self.clip, layout.frames)
        # Halvings of the list shrink a round's work by four each.
        pairs, size = 0.0, clip * layout.tokens
        while size > 1:
            pairs += (size - size // 2) * (size // 2)
            size -= size // 2
        matching = 2.0 * (layout.frames / clip) * pairs * width / self.heads
        rows = sums(layout, width)
        return {"similarities of pairs": matching, "sums of rounds": 2 * rows, "weighted sums": rows}

    # No code runs it before a language model without training; VideoChat-Flash's clips are trained for.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="tome",
        title="ToMe",
        paper="2210.09461",
        summary="Merges the most similar pairs of tokens of each frame in rounds of bipartite matching.",
        nested=False,
        merges=True,
        exact=True,
        quirks=("unmerged rows come first, by decreasing similarity (order='position' sorts them)",),
    )


def _frames_of(frame_mask: Bool[Array, "T"], clip: int) -> Int[Array, "E"]:
    """Real frames of every clip; real frames come first."""
    entries = -(-frame_mask.shape[0] // clip)
    real = jnp.sum(frame_mask, dtype=jnp.int32)
    return jnp.clip(real - clip * jnp.arange(entries, dtype=jnp.int32), 0, clip)


def _levels(
    tokens: Float[Array, "n D"], length: Int[Array, ""], heads: int
) -> tuple[Int[Array, "L n"], Int[Array, "L A"], Int[Array, "L A"]]:
    """Rows, ranks and targets of all levels of one clip, of which the first `length` tokens are real.

    Sums stand for the means: a cosine does not see the difference.
    """

    def match(sums: Array, size: Array) -> tuple[Array, Array]:
        metric = _metric(sums, heads)
        norm = jnp.sqrt(squared_norms(metric))
        scale = jnp.where(norm > 0, 1.0 / jnp.where(norm > 0, norm, 1.0), 0.0)
        return _match(dot_f32(metric[0::2], metric[1::2]) * scale[0::2, None] * scale[1::2], size)

    def merge(sums: Array, new: Array, left: int) -> Array:
        ones, none = jnp.ones((1, new.size)), jnp.full(left, new.size)
        return jnp.asarray(compact.row_sums(new[None], ones, none, sums.astype(widened(sums.dtype))))

    return _halvings(tokens, tokens.shape[0], length, match, merge)


def _gram_levels(
    tokens: Float[Array, "n D"], length: Int[Array, ""], heads: int
) -> tuple[Int[Array, "L n"], Int[Array, "L A"], Int[Array, "L A"]]:
    """`_levels` for accelerators: inner products of sums are sums of inner products, so tokens are read once.

    Merging is a product with a matrix of zeros and ones from both sides, which is exact but for the order of its sums.
    """
    metric = _metric(tokens, heads)

    def match(gram: Array, size: Array) -> tuple[Array, Array]:
        norm = jnp.sqrt(gram_norms(gram))
        scale = jnp.where(norm > 0, 1.0 / jnp.where(norm > 0, norm, 1.0), 0.0)
        return _match((gram * scale[:, None] * scale)[0::2, 1::2], size)

    def merge(gram: Array, new: Array, left: int) -> Array:
        onto = (new == jnp.arange(left, dtype=jnp.int32)[:, None]).astype(jnp.float32)
        return dot_f32(dot_f32(onto, gram), onto)

    return _halvings(dot_f32(metric, metric), tokens.shape[0], length, match, merge)


_SHORT = 16
"""Entries of a list from which on its rounds are one loop over a list of that length: each costs a compiler as much as
one of a long list."""


def _halvings(
    state: Array,
    n: int,
    length: Int[Array, ""],
    match: Callable[[Array, Array], tuple[Array, Array]],
    merge: Callable[[Array, Array, int], Array],
) -> tuple[Int[Array, "L n"], Int[Array, "L A"], Int[Array, "L A"]]:
    """All levels of a list of n, the first `length` of them real, from a state that tells their similarities.

    `match` ranks the pairs of a state's list of so many real entries, `merge` puts each entry into its new place of a
    list that has room for so many, or nowhere.
    """
    half = -(-n // 2)

    def halve(
        state: Array, place: Array, size: Array, static: int, left: int
    ) -> tuple[tuple[Array, Array, Array], tuple]:
        rank, into = match(state, size)
        index = jnp.arange(static, dtype=jnp.int32)
        new = _merged_place(index[None], rank[None], into[None], size[None], (size >> 1)[None])[0]
        new = jnp.where(index < size, new, left)
        level = place, *(jnp.pad(part, (0, half - part.shape[0])) for part in (rank, into))
        place = jnp.where(place < size, entries_at(new, jnp.minimum(place, static - 1)), n)
        return (merge(state, new, left), place, size - (size >> 1)), level

    static, found = n, []
    carry: tuple[Array, Array, Array] = state, jnp.arange(n, dtype=jnp.int32), length
    while static > _SHORT:
        carry, level = halve(*carry, static, -(-static // 2))
        found.append(level)
        static = -(-static // 2)
    levels = [jax.tree.map(lambda leaf: leaf[None], level) for level in found]
    if static > 1:
        start = carry[0].astype(widened(carry[0].dtype)), carry[1], carry[2]
        rounds = (static - 1).bit_length()
        carry, rest = lax.scan(lambda carry, _: halve(*carry, static, static), start, None, length=rounds)
        levels.append(rest)
    nothing = jnp.zeros((1, half), jnp.int32)
    levels.append((carry[1][None], nothing, nothing))
    rows, ranks, targets = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
    return rows, ranks, targets


def _metric(tokens: Float[Array, "n D"], heads: int) -> Float[Array, "n d"]:
    """What tokens are compared by: the mean of equal parts of their features."""
    if heads == 1:
        return tokens
    return jnp.mean(tokens.astype(jnp.float32).reshape(tokens.shape[0], heads, -1), axis=1)


def _match(similarity: Float[Array, "A B"], size: Int[Array, ""]) -> tuple[Int[Array, "A"], Int[Array, "A"]]:
    """Rank of every even token by its best similarity to an odd one, and that odd token."""
    odd = 2 * jnp.arange(similarity.shape[1]) + 1 < size
    similarity = jnp.where(odd, similarity, -jnp.inf)
    even = 2 * jnp.arange(similarity.shape[0]) < size
    best = jnp.where(even, jnp.max(similarity, axis=1), -jnp.inf)
    return rank_descending(best), first_argmax(similarity)


def _merged_place(
    place: Int[Array, "E n"],
    rank: Int[Array, "E A"],
    into: Int[Array, "E A"],
    size: Int[Array, "E"],
    pairs: Int[Array, "E"],
) -> Int[Array, "E n"]:
    """Place in the list behind a round that merges `pairs`, of what stands at a place of a list of `size` before it.

    Halves are shifts: a traced integer division takes compilers dozens of instructions.
    """
    half = jnp.clip(place >> 1, 0, rank.shape[1] - 1)
    own, other = entries_at(rank, half), entries_at(into, half)
    pairs = pairs[:, None]
    unmerged = ((size[:, None] + 1) >> 1) - pairs
    even = jnp.where(own < pairs, unmerged + other, own - pairs)
    return jnp.where(place & 1 == 0, even, unmerged + half)
