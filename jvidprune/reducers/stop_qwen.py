"""The reducer that SToP's repository calls VisionZip on Qwen2.5-VL (arXiv 2604.20937): windows, norms, averaging.

1. Windows and static tokens are HoliTom's; the static tokens of a window become their mean over its frames, one set.
   The other tokens of each frame are a set each.
2. u = |x| * (1 + cos(x, mean of the set)), and s its sink score (see `stop`).
3. A set of n tokens keeps the max(1, round(n * share)) of largest u - mu_s * s, with
   share = ratio / max(tokens left / total, 0.1), at most 1.
4. Every other token goes to the most similar kept one of its set, which becomes the mean of itself and of the mean of
   its members.

It is not VisionZip. The released wrapper cannot run (it slices merged tokens by the unmerged grid); this is its pruning
function on the merged grid.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("visionzip_qwen"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
73
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.fields import Count, Exponent
from jvidprune.ops import segment, similarity
from jvidprune.ops.branch import on_cpu
from jvidprune.ops.compact import slotted_plan
from jvidprune.ops.exact import fraction_words, round_product
from jvidprune.ops.select import first_argmax, rank_descending
from jvidprune.ops.sink import SinkRule, sink_scores
from jvidprune.ops.windows import best_windows, window_cuts, window_gains
from jvidprune.reducers.counting import Terms, gram, neighbours, sums
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens

_SETS = 2
"""Sets of tokens in a frame: the static means of the window that starts there, and the frame's own dynamic tokens."""


class VisionZipQwenBudget(NamedTuple):
    """`share[k]` is the effective ratio once k tokens are merged over time, as `fraction_words` of a double."""

    share: Any


class VisionZipQwenShared(NamedTuple):
    """Ratio-independent work.

    Attributes:
      cosine: (T, N, N) cosine inside each frame, static means standing at the first frame of their window.
      set_of: (T, N) 0 for static means, 1 for dynamic tokens, -1 for places without a token of their own.
      rank: (T, N) place among the set by importance minus sink score, 0 = first.
      size: (T, 2) tokens of each set.
      home: (T, N) frame where the token of this place stands: the window's first frame for static tokens.
      length: (T, N) source tokens that are averaged into the token a source goes to.
      reduced: () tokens that averaging over windows removes.
      importance: (T, N) of whole frames.
      sink: (T, N) their score, one for the video.
      segments: (T,) window of each frame.
      frame_mask: (T,).
    """

    cosine: Float[Array, "T N N"]
    set_of: Int[Array, "T N"]
    rank: Int[Array, "T N"]
    size: Int[Array, "T 2"]
    home: Int[Array, "T N"]
    length: Int[Array, "T N"]
    reduced: Int[Array, ""]
    importance: Float[Array, "T N"]
    sink: Float[Array, "T N"]
    segments: Int[Array, "T"]
    frame_mask: Bool[Array, "T"]


@dataclasses.dataclass(frozen=True)
class VisionZipQwen(PositionedReducer):
    """Averages static tokens over windows, then keeps in every set the tokens of largest norm and centrality.

    Needs features alone. In each window the tokens that stay the same become one mean each (a set); what is left of
    each frame is a set of its own. A set of n tokens keeps max(1, round(n * share)) tokens by u - mu_s * s with
    u = |x| * (1 + cos(x, mean of the set)) and s the sink score of u; a kept token with members becomes the mean of
    itself and its members' mean. The share is ratio / max(remaining / total, 0.1), at most 1.

    The score s depends on u of the same set alone, so mu_s matters only where it outweighs the range of u.

    Attributes:
      mu_s: weight of the sink score in the ranking, in the units of the features' norms.
      mu_t: weight of the video's sink score in the static test, never in the choice of windows.
      gamma: exponent of the sink score.
      threshold: cosine of neighbouring frames above which a token is the same, for windows and static test.
      max_window: longest window in frames.
    """

    mu_s: float = 3.7
    mu_t: float = 0.0
    gamma: Exponent = 1.1
    threshold: float = 0.8
    max_window: Count = 1024

    needs = frozenset()
    wide_decisions = True

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> VisionZipQwenShared:
        """Windows, static tokens, importance and ranks of every set; a sink rule replaces mu_s, mu_t and gamma."""
        x = video.features.astype(jnp.float32) if on_cpu() else video.features
        frames, n, _ = x.shape
        real = video.frame_mask
        rule = SinkRule(self.mu_s, self.mu_t, self.gamma) if sink is None else sink
        importance = _frame_importance(x)
        score = sink_scores(importance, jnp.zeros(frames, jnp.int32), real, rule.gamma)

        pairs = (real[1:] & real[:-1])[:, None]
        same = similarity.same_position_cosine(x, eps=1e-8)
        _, starts = best_windows(window_gains((same > self.threshold) & pairs), self.max_window)
        cuts = window_cuts(starts)
        ids = segment.segment_ids(cuts)
        moved = (same + rule.mu_t * score[:-1] <= self.threshold) & ~cuts[:, None]
        changes = jnp.concatenate([jnp.zeros((1, n), jnp.int32), moved.astype(jnp.int32)])
        lengths = segment.segment_lengths(ids)
        static = (segment.segment_total(changes, ids) == 0) & (lengths > 1)[:, None]

        first = segment.segment_starts(ids)
        averaged = static & first[:, None]
        set_of = jnp.where(static, jnp.where(first[:, None], 0, -1), 1)
        gram = _standing_gram(x, averaged, ids, lengths)
        cosine, rank, size = _rank_sets(gram, set_of, rule)
        frame = jnp.arange(frames, dtype=jnp.int32)
        home = jnp.where(static, (frame - segment.position_in_segment(ids))[:, None], frame[:, None])
        return VisionZipQwenShared(
            cosine,
            set_of.astype(jnp.int32),
            rank,
            size,
            home.astype(jnp.int32),
            jnp.where(static, lengths[:, None], 1),
            jnp.sum(static & ~first[:, None] & real[:, None], dtype=jnp.int32),
            importance,
            score,
            ids,
            real,
        )

    def decide(self, shared: VisionZipQwenShared, budget: VisionZipQwenBudget, *, capacity: int) -> Plan:
        """Kept tokens of every set, the pruned ones' targets, and weights from source tokens to rows."""
        frames, n = shared.set_of.shape
        share = jnp.asarray(budget.share)[shared.reduced]
        keep = jnp.where(shared.size > 0, jnp.maximum(round_product(share, shared.size), 1), 0)
        of = jnp.maximum(shared.set_of, 0)
        there = (shared.set_of >= 0) & shared.frame_mask[:, None]
        kept = there & (shared.rank < jnp.take_along_axis(keep, of, axis=1))
        allowed = kept[:, None, :] & (of[:, :, None] == of[:, None, :])
        nearest = jnp.minimum(first_argmax(jnp.where(allowed, shared.cosine, -jnp.inf)), n - 1)
        place = jnp.arange(n, dtype=jnp.int32)
        joined = jnp.where(kept, place, nearest)
        rows = jnp.arange(frames, dtype=jnp.int32)[:, None]
        member = there & ~kept
        members = jnp.zeros((frames, n + 1), jnp.int32).at[rows, jnp.where(member, joined, n)].add(1)[:, :n]
        mine = jnp.take_along_axis(members, joined, axis=1)
        weight = jnp.where(kept, jnp.where(mine > 0, 0.5, 1.0), 0.5 / jnp.maximum(mine, 1))

        # From the token standing at a place to the source tokens averaged into it.
        standing_weight = weight[shared.home, place[None, :]] / shared.length
        standing_target = joined[shared.home, place[None, :]]
        slot = (shared.home * _SETS + of) * n + standing_target
        target = jnp.where(shared.frame_mask[:, None], slot, frames * _SETS * n)
        sets = jnp.arange(_SETS)[None, :, None]
        present = kept[:, None, :] & (of[:, None, :] == sets)
        pick = present & (sets == 1) & (members == 0)[:, None, :]
        token = jnp.broadcast_to((rows * n + place)[:, None, :], (frames, _SETS, n))
        # A verbatim copy takes its token from `pick`, not from a sum.
        copied = kept & (shared.set_of == 1) & (members == 0)
        target = jnp.where(copied, frames * _SETS * n, target)
        diagnostics = {
            "importance": shared.importance,
            "sink": shared.sink,
            "segments": shared.segments,
            "reduced": shared.reduced,
            "kept_per_set": keep,
            "set_size": shared.size,
            "set_of": shared.set_of,
            "kept": kept,
        }
        return slotted_plan(
            token.reshape(-1),
            present.reshape(-1),
            pick.reshape(-1),
            target.reshape(1, -1),
            standing_weight.reshape(1, -1),
            capacity,
            diagnostics,
        )

    def budget(self, layout: Layout, ratio: float) -> VisionZipQwenBudget:
        """Effective ratios for every number of merged tokens, in float64."""
        ratio, total = check_ratio(ratio), layout.total
        reduced = np.minimum(np.arange(layout.slots * layout.tokens + 1), total)
        left = np.maximum((total - reduced) / total, 0.1)
        return VisionZipQwenBudget(fraction_words(np.minimum(ratio / left, 1.0)))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """floor(r*T*N + 1.5*T): a set keeps less than one token above its share, and there are at most 1.5*T sets."""
        return min(layout.total, math.floor(check_ratio(ratio) * layout.total + 1.5 * layout.frames + 1e-6))

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Cosines of neighbours and inside frames, and the weighted sums."""
        return {
            "neighbour cosines": neighbours(layout, width),
            "similarities": layout.frames * gram(layout, width),
            "weighted sums": sums(layout, width),
        }

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"qwen2_5_vl": {}, "qwen3_vl": {}}

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="visionzip_qwen",
        title="VisionZip (SToP's Qwen2.5-VL wrapper)",
        paper="2604.20937",
        summary="Averages tokens that stay the same over windows, then keeps the largest of each frame and averages.",
        nested=False,
        merges=True,
        exact=False,
        quirks=("the name is SToP's: neither attention nor VisionZip's seeds are used (no option)",),
    )


def _frame_importance(x: Float[Array, "T N D"]) -> Float[Array, "T N"]:
    """|x| * (1 + cos(x, mean of the frame))."""
    mean = x.mean(1, dtype=jnp.float32)
    if on_cpu():
        inner = jnp.einsum("tnd,td->tn", x, mean, precision=lax.Precision.HIGHEST)
    else:
        inner = jnp.sum(x.astype(jnp.float32) * mean[:, None], axis=-1)
    norm = jnp.sqrt(similarity.squared_norms(x))
    centre = jnp.sqrt(similarity.squared_norms(mean))[:, None]
    return norm * (1.0 + inner / (jnp.maximum(norm, 1e-8) * jnp.maximum(centre, 1e-8)))


def _standing_gram(
    x: Float[Array, "T N D"], averaged: Bool[Array, "T N"], ids: Int[Array, "T"], lengths: Int[Array, "T"]
) -> Float[Array, "T N N"]:
    """Inner products inside each frame, where `averaged` places hold their mean over the window that begins there.

    Accelerators sum from the last frame back, frame by frame, so that no float32 array of the video exists.
    """
    if on_cpu():
        means = segment.segment_total(x, ids) / lengths[:, None, None]
        return similarity.frame_gram(jnp.where(averaged[:, :, None], means, x))
    ends = jnp.append(ids[1:] != ids[:-1], True)

    def frame(later: Array, args: tuple) -> tuple[Array, Array]:
        tokens, averaged, end, length = args
        own = tokens.astype(jnp.float32)
        total = own + jnp.where(end, 0.0, later)
        standing = jnp.where(averaged[:, None], total / length, own)
        return total, similarity.dot_f32(standing, standing)

    return lax.scan(frame, jnp.zeros(x.shape[1:]), (x, averaged, ends, lengths), reverse=True)[1]


def _rank_sets(
    gram: Float[Array, "T N N"], set_of: Int[Array, "T N"], rule: SinkRule
) -> tuple[Float[Array, "T N N"], Int[Array, "T N"], Int[Array, "T 2"]]:
    """Cosines, ranks inside each token's set, and the sizes of the sets; means come from the Gram matrix."""
    frames = gram.shape[0]
    squared = similarity.gram_norms(gram)
    cosine = similarity.cosine_from_gram(gram, squared, squared, eps=1e-12)
    norm = jnp.sqrt(squared)
    rank = jnp.zeros(set_of.shape, jnp.int32)
    sizes = []
    for index in range(_SETS):
        inside = set_of == index
        size = jnp.sum(inside, -1, dtype=jnp.int32)
        count = jnp.maximum(size, 1)[:, None].astype(jnp.float32)
        to_mean = jnp.sum(jnp.where(inside[:, :, None], gram, 0.0), axis=1) / count
        mean_norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.where(inside, to_mean, 0.0), -1, keepdims=True) / count, 0.0))
        scale = jnp.maximum(norm, 1e-8) * jnp.maximum(mean_norm, 1e-8)
        u = norm * (1.0 + to_mean / scale)
        # Tokens outside take the value of one inside, which leaves the smallest and the largest score alone.
        inner = jnp.max(jnp.where(inside, u, -jnp.inf), -1, keepdims=True)
        filled = jnp.where(inside, u, inner)
        score = sink_scores(filled, jnp.arange(frames), jnp.ones(frames, bool), rule.gamma)
        lowered = u - rule.strength(u, inside) * score
        rank = jnp.where(inside, rank_descending(jnp.where(inside, lowered, -jnp.inf)), rank)
        sizes.append(size)
    return cosine, rank, jnp.stack(sizes, axis=1)
