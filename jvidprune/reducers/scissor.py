"""LLaVA-Scissor: connected components of a thresholded cosine graph, in frames, then over the video (arXiv 2506.21862).

A = (cos > tau), strictly; a component is what the edges of A connect.

1. Space: the components of each frame's tokens become their means, ordered by their best-connected members.
2. Time: the components of the list of all these means become means again (means of means): centres c_k.
3. Merge: every token goes to its most similar centre; y_k = (c_k + sum of its tokens) / (1 + number of its tokens).

Text-free, no attention. Follows `HumanMLLM/LLaVA-Scissor` (commit b63354c) with exact components, which its random
search finds up to 3233 tokens. The method has no budget: `tau` decides. Here tau is found for the ratio, unless given.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("scissor"), synthetic_tokens(grid=(6, 6)), 0.1).count.item() <= 29
True
"""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.fields import Range
from jvidprune.ops import compact
from jvidprune.ops.branch import on_cpu
from jvidprune.ops.select import first_argmax
from jvidprune.ops.similarity import dot_f32, frame_gram, squared_norms
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, gram, sums
from jvidprune.reducers.counts import half_up
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens

TILE = 256
"""Components that are compared with each other at once, or with tokens."""

LOWEST, HIGHEST = -1.5, 1.0
"""Between these tau is looked for: below -1 all is one component, at 1 every token is its own."""

STEPS = 16
"""Bisections of tau, to 4e-5."""


class ScissorBudget(NamedTuple):
    """int32 scalars: the most tokens that may stay, and the bits of the float32 tau of a fixed threshold."""

    keep: Any
    tau_bits: Any


class ScissorShared(NamedTuple):
    """Ratio-independent work: the tokens themselves, the (T, N, N) cosines inside frames, and (T,) real frames."""

    features: Float[Array, "T N D"]
    cosine: Float[Array, "T N N"]
    frame_mask: Bool[Array, "T"]


class _Components(NamedTuple):
    """Steps 1 and 2; M = T * N, and L is M rounded up to whole tiles.

    Attributes:
      tau: () the threshold.
      first: (M,) the token that represents each token's component in its frame, M on padding.
      listed: (M,) place of that component in the list of all frames' components, L on padding.
      means: (L, D) float32 the list, zeros behind it.
      second: (L,) place in the list of what represents each entry's component over the video; L behind the list.
    """

    tau: Float[Array, ""]
    first: Int[Array, "M"]
    listed: Int[Array, "M"]
    means: Float[Array, "L D"]
    second: Int[Array, "L"]


@dataclasses.dataclass(frozen=True)
class Scissor(PositionedReducer):
    """Averages tokens into the connected components of their cosine graph, over space and then over time.

    Rows are named after the best-connected token of their best-connected frame component and ascend by it. A token
    contributes to the centre of its own component and to the row it is assigned to, mostly the same one.

    Attributes:
      tau: cosines above it connect; 0.9 in the released model. Then the number of tokens follows from the video and
        the ratio decides nothing. None: the largest tau, to 4e-5, found by bisection in the compiled program, that
        leaves at most floor(ratio * T * N + 1/2) tokens, at least one; `tau_for` tells it.
    """

    tau: Annotated[float, Range(LOWEST, 2.0)] | None = None

    wide_decisions = True

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> ScissorShared:
        """Cosines inside frames; a sink rule has no place here."""
        gram = frame_gram(video.features)
        norm = jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2))
        known = (norm[:, :, None] > 0) & (norm[:, None, :] > 0)
        # A zero token, NaN in the released code, has no edges.
        cosine = jnp.where(known, gram / jnp.where(known, norm[:, :, None] * norm[:, None, :], 1.0), -1.0)
        return ScissorShared(video.features, cosine, video.frame_mask)

    def decide(self, shared: ScissorShared, budget: ScissorBudget, *, capacity: int) -> Plan:
        """Threshold, components, centres and the assignment of all tokens."""
        frames, n, _ = shared.features.shape
        m = frames * n
        tau = lax.bitcast_convert_type(jnp.asarray(budget.tau_bits, jnp.int32), jnp.float32)
        solve = jax.custom_batching.sequential_vmap(_search if self.tau is None else _at_tau)
        found = _Components(*solve(*shared, jnp.asarray(budget.keep, jnp.int32), tau))

        length = found.second.shape[0]
        is_centre = found.second == jnp.arange(length)
        row_of = jnp.where(is_centre, jnp.cumsum(is_centre) - 1, capacity)
        own = _at(row_of, found.second, capacity)
        parts = jnp.zeros(length + 1, jnp.int32).at[found.second].add(1)
        share = 1.0 / jnp.maximum(_at(parts, found.second, 0), 1)
        centres = compact.row_sums(own[None], share[None], jnp.full(capacity, length), found.means)
        count = jnp.sum(is_centre, dtype=jnp.int32)
        closest = _closest(shared.features, centres, jnp.minimum(count, capacity))
        real = jnp.repeat(shared.frame_mask, n)
        closest = jnp.where(real, closest, capacity)
        counts = jnp.zeros(capacity + 1, jnp.int32).at[closest].add(1)

        # y_k is linear in the tokens: those assigned to it, and those behind its centre.
        each = 1.0 / (1 + counts)
        size = jnp.zeros(length + 1, jnp.int32).at[found.listed].add(1)
        mine = _at(own, found.listed, capacity)
        behind = _at(each, mine, 0.0) * _at(share, found.listed, 0.0) / jnp.maximum(size[found.listed], 1)
        same = mine == closest
        weight = jnp.stack([each[closest] + jnp.where(same, behind, 0.0), behind])
        # Rows are named after tokens: entry -> the token that represents it, row -> that of its centre.
        token_of = (
            jnp.full(length, m, jnp.int32).at[jnp.where(real, found.listed, length)].min(found.first, mode="drop")
        )
        name_of = jnp.full(capacity, m, jnp.int32).at[jnp.where(is_centre, row_of, capacity)].set(token_of, mode="drop")
        target = jnp.stack([_at(name_of, closest, m), jnp.where(same, m, _at(name_of, mine, m))])
        merged = jnp.zeros(m, bool).at[jnp.where(is_centre, token_of, m)].set(True, mode="drop")

        ahead = jnp.cumsum((found.first == jnp.arange(m)).reshape(frames, n), axis=1).reshape(-1) - 1
        diagnostics = {
            "tau": found.tau,
            "label": jnp.where(real, ahead[jnp.minimum(found.first, m - 1)], -1).reshape(frames, n),
            "temporal_label": jnp.where(found.second < length, own, -1)[:m],
            "closest": jnp.where(real, closest, -1),
            "counts": counts[:capacity],
        }
        return compact.ascending_plan(jnp.zeros(m, bool), merged, target, weight, capacity, diagnostics)

    def budget(self, layout: Layout, ratio: float) -> ScissorBudget:
        """The most tokens that may stay."""
        return self.budget_of(half_up(layout.total, check_ratio(ratio)), self.tau)

    def budget_of(self, keep: int, tau: float | None) -> ScissorBudget:
        """The budget of a count or of a threshold, which a reducer with a fixed tau reads."""
        return ScissorBudget(np.int32(keep), np.float32(0.0 if tau is None else tau).view(np.int32))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """The count that tau is found for; all T * N tokens with a fixed tau, which bounds nothing."""
        return half_up(layout.total, check_ratio(ratio)) if self.tau is None else layout.total

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """No newlines at all."""
        return super().prompt._replace(newline="no_token")

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Similarities in frames and of components, for every threshold that a ratio tries, and the means."""
        tries = 1 if self.tau is not None else STEPS + 1
        # Each pair of tiles once, a tile with itself whole.
        compared = layout.total * (layout.total + _sizes(layout.total)[0])
        return {
            "similarities in frames": layout.frames * gram(layout, width),
            "similarities of components (at most)": 1.0 * tries * compared * width,
            "similarities to centres (at most)": 2.0 * layout.total * self.capacity(layout, ratio) * width,
            "weighted sums": (tries + 2) * sums(layout, width),
        }

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="scissor",
        title="LLaVA-Scissor",
        paper="2506.21862",
        summary="Averages connected components of similar tokens, first in frames, then over the video.",
        nested=False,
        merges=True,
        exact=False,
        quirks=(
            "the released model has a fixed threshold, no budget; here it is searched for the ratio (tau=0.9 fixes it)",
            "centres are means of means, whatever the sizes (no option)",
            "the random search of the released code, inexact above 3233 components, is exact here (no option)",
            "no newline tokens at all (no option)",
        ),
    )


def tau_for(video: VideoTokens, ratio: float) -> float:
    """The threshold that leaves at most a share of one video's tokens; see `Scissor`.

    Raises:
      JvidpruneError: as for `reduce`.
    """
    from jvidprune.reducers.run import reduce

    return float(reduce(Scissor(), video, ratio, diagnostics=True).diagnostics["tau"])


def _search(features: Array, cosine: Array, frame_mask: Array, keep: Array, tau: Array) -> tuple[Array, ...]:
    """Bisection: `low` leaves at most `keep` components at all times; one that leaves as many ends it."""
    video = ScissorShared(features, cosine, frame_mask)

    def halve(state: tuple) -> tuple:
        step, low, high, last, _, *found = state
        ends = (step >= STEPS) | (low >= high) | (last == keep)
        tau = jnp.where(ends, low, 0.5 * (low + high))
        first, listed, number = _in_frames(video, tau)
        # The list is no shorter than what it falls into: a short one fits without the second step.
        counted = ends | (number > keep)
        second = lax.cond(counted, lambda: _over_time(_means(video, listed), tau, number), lambda: found[2])
        last = jnp.where(counted, jnp.sum(second == jnp.arange(second.shape[0]), dtype=jnp.int32), -1)
        fits = last <= keep
        low, high = jnp.where(fits & ~ends, tau, low), jnp.where(fits | ends, high, tau)
        return step + 1, low, high, last, ends, first, listed, second

    everything = jnp.sum(frame_mask, dtype=jnp.int32) * features.shape[1]
    low = jnp.where(keep >= everything, jnp.float32(HIGHEST), jnp.float32(LOWEST))
    m = features.shape[0] * features.shape[1]
    nothing = (jnp.zeros(size, jnp.int32) for size in (m, m, _sizes(m)[1]))
    # The round that finds no more to halve is the one whose components count, so that programs hold both steps once.
    start = jnp.int32(0), low, jnp.float32(HIGHEST), jnp.int32(-1), jnp.bool_(False), *nothing
    _, tau, _, _, _, first, listed, second = lax.while_loop(lambda state: ~state[4], halve, start)
    return tau, first, listed, _means(video, listed), second


def _at_tau(features: Array, cosine: Array, frame_mask: Array, keep: Array, tau: Array) -> tuple[Array, ...]:
    video = ScissorShared(features, cosine, frame_mask)
    first, listed, number = _in_frames(video, tau)
    means = _means(video, listed)
    return tau, first, listed, means, _over_time(means, tau, number)


def _in_frames(video: ScissorShared, tau: Array) -> tuple[Int[Array, "M"], Int[Array, "M"], Int[Array, ""]]:
    """Step 1: the token that represents each token's component, that component's place in the list, its length."""
    frames, n, _ = video.cosine.shape
    m = frames * n
    adjacent = video.cosine > tau
    places = jnp.arange(n, dtype=jnp.int32)

    def spread(label: Array) -> Array:
        low = jnp.min(jnp.where(adjacent, label[:, None, :], n), axis=-1)
        return jnp.minimum(label, low)

    label = _settle(spread, jnp.broadcast_to(places, (frames, n)))
    label = (label + n * jnp.arange(frames, dtype=jnp.int32)[:, None]).reshape(-1)
    degree = jnp.sum(adjacent, axis=-1, dtype=jnp.int32).reshape(-1)
    real = jnp.repeat(video.frame_mask, n)
    first = jnp.where(real, _representatives(label, degree), m)
    stands = first == jnp.arange(m)
    place = jnp.cumsum(stands) - 1
    listed = jnp.where(real, place[jnp.minimum(first, m - 1)], _sizes(m)[1])
    return first, listed.astype(jnp.int32), jnp.sum(stands, dtype=jnp.int32)


def _means(video: ScissorShared, listed: Int[Array, "M"]) -> Float[Array, "L D"]:
    """The list of the means of all frames' components."""
    x = video.features.reshape(-1, video.features.shape[-1])
    m = x.shape[0]
    length = _sizes(m)[1]
    size = jnp.zeros(length + 1, jnp.int32).at[listed].add(1)
    share = 1.0 / jnp.maximum(size[listed], 1)
    return compact.float_sums(listed[None], share[None], jnp.full(length, m), x)


def _over_time(means: Float[Array, "L D"], tau: Array, number: Int[Array, ""]) -> Int[Array, "L"]:
    """Step 2: what represents each entry's component over the list; work and time follow its length."""
    length = means.shape[0]
    side = min(TILE, length)
    tiles = -(-number // side)
    entries = jnp.arange(length, dtype=jnp.int32)
    listed_entry = entries < number

    def part(values: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(values, i * side, side)

    def norms(i: Array, norm: Array) -> Array:
        return lax.dynamic_update_slice(norm, jnp.sqrt(squared_norms(part(means, i))), (i * side,))

    norm = lax.fori_loop(0, tiles, norms, jnp.zeros(length))

    def over_pairs(fn: Any, start: Any, first: Any = lambda i: 0) -> Any:
        return lax.fori_loop(0, tiles, lambda i, s: lax.fori_loop(first(i), tiles, lambda j, s: fn(i, j, s), s), start)

    def connect(i: Array, j: Array, adjacent: Array) -> Array:
        scale = part(norm, i)[:, None] * part(norm, j)
        known = scale > 0
        cosine = jnp.where(known, dot_f32(part(means, i), part(means, j)) / jnp.where(known, scale, 1.0), -1.0)
        edge = (cosine > tau) & part(listed_entry, i)[:, None] & part(listed_entry, j)
        adjacent = lax.dynamic_update_slice(adjacent, edge.T, (j * side, i * side))
        return lax.dynamic_update_slice(adjacent, edge, (i * side, j * side))

    def tile(adjacent: Array, i: Array, j: Array) -> Array:
        return lax.dynamic_slice(adjacent, (i * side, j * side), (side, side))

    # Edges have no direction: each pair of tiles is compared once.
    adjacent = over_pairs(connect, jnp.zeros((length, length), bool), first=lambda i: i)

    def spread(label: Array) -> Array:
        def fold(i: Array, j: Array, new: Array) -> Array:
            low = jnp.min(jnp.where(tile(adjacent, i, j), part(label, j), length), axis=-1)
            return lax.dynamic_update_slice(new, jnp.minimum(part(new, i), low), (i * side,))

        return over_pairs(fold, label)

    def count(i: Array, j: Array, degree: Array) -> Array:
        found = jnp.sum(tile(adjacent, i, j), axis=-1, dtype=jnp.int32)
        return lax.dynamic_update_slice(degree, part(degree, i) + found, (i * side,))

    label = _settle(spread, entries)
    degree = over_pairs(count, jnp.zeros(length, jnp.int32))
    return jnp.where(listed_entry, _representatives(label, degree), length)


def _settle(spread: Any, label: Int[Array, "... N"]) -> Int[Array, "... N"]:
    """Lowest index of each component: every round takes the lowest label around, then that label's own label."""

    def round(state: tuple[Array, Array]) -> tuple[Array, Array]:
        low = spread(state[0])
        new = jnp.take_along_axis(low, low, axis=-1)
        return new, jnp.any(new != state[0])

    return lax.while_loop(lambda state: state[1], round, (label, jnp.bool_(True)))[0]


def _representatives(label: Int[Array, "M"], degree: Int[Array, "M"]) -> Int[Array, "M"]:
    """The best-connected member of each entry's component, the lowest index among equals."""
    index = jnp.arange(label.shape[0], dtype=jnp.int32)
    most = jnp.zeros_like(degree).at[label].max(degree)
    best = jnp.where(degree == most[label], index, label.shape[0])
    return jnp.full_like(index, label.shape[0]).at[label].min(best)[label]


def _closest(x: Float[Array, "T N D"], centres: Float[Array, "K D"], count: Int[Array, ""]) -> Int[Array, "M"]:
    """Step 3: the first of `count` centres that is most similar to each token; as many tiles as they fill."""
    # On accelerators a divisor of the capacity, so that nothing is padded.
    size = min(TILE if on_cpu() else compact.block_rows(centres.shape[0]), centres.shape[0])
    norm = jnp.sqrt(squared_norms(centres))
    scale = jnp.where(norm > 0, 1.0 / jnp.where(norm > 0, norm, 1.0), 0.0)
    more = -centres.shape[0] % size
    centres, scale = jnp.pad(centres, ((0, more), (0, 0))), jnp.pad(scale, (0, more))

    def frame(tokens: Array) -> Array:
        tokens = tokens.astype(jnp.float32)

        def block(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
            value, found = best
            rows, scales = (lax.dynamic_slice_in_dim(a, i * size, size) for a in (centres, scale))
            # The norm of a token cannot change which centre is most similar.
            similarity = jnp.where(i * size + jnp.arange(size) < count, dot_f32(tokens, rows) * scales, -jnp.inf)
            top = jnp.max(similarity, axis=-1)
            better = top > value
            return jnp.where(better, top, value), jnp.where(better, i * size + first_argmax(similarity), found)

        start = jnp.full(tokens.shape[0], -jnp.inf), jnp.zeros(tokens.shape[0], jnp.int32)
        return lax.fori_loop(0, -(-count // size), block, start)[1]

    # One after the other on any machine: all frames in float32 are written down otherwise.
    return lax.map(frame, x).reshape(-1)


def _sizes(tokens: int) -> tuple[int, int]:
    """Entries of a tile, and of a list that is long enough for all tokens in whole tiles."""
    tile = min(TILE, tokens)
    return tile, -(-tokens // tile) * tile


def _at(values: Array, index: Array, fill: Any) -> Array:
    """values[index], `fill` beyond the end."""
    n = values.shape[0]
    return jnp.where(index < n, values[jnp.minimum(index, n - 1)], fill)
