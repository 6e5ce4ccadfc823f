"""FastVID: segments, salient tokens, and density peaks that absorb the rest of their segment (arXiv 2503.11187).

R = int(N * ratio) tokens a frame; a is the attention of the tower's pooling head, g_t the embedding of frame t.

1. DySeg: a segment ends behind frame t where cos(g_t, g_(t+1)) < tau, and at the c - 1 smallest of these cosines.
2. Of the R L tokens of a segment of L frames the share d goes to peaks, the rest to salient tokens.
3. ATS: in every frame the tokens of largest a are salient and stay unchanged.
4. DTM: every p-th frame of a segment, counted from its last, is an anchor frame. Among its other tokens the peaks are
   those of largest density times distance to a denser one.
5. Every token that is left joins its most similar peak in each anchor frame of its segment. A peak becomes
   w * itself + (1 - w) * mean of its members, with w = max(1 / (members + 1), beta).

The three released copies, one a backbone, do not implement the same arithmetic; `variant` names which one is followed.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("fastvid"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Share
from jvidprune.ops import compact, segment
from jvidprune.ops.branch import mean_rounds, on_cpu
from jvidprune.ops.cluster import centre_mask, peak_scores
from jvidprune.ops.select import first_argmax, rank_descending
from jvidprune.ops.similarity import distance_from_gram, dot_f32, normalise, over_frames
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, gram, sums
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import AttentionName, Layout, Plan, VideoTokens

Variant = Literal["llava_onevision", "llava_video", "qwen2_5_vl", "qwen3_norm"]

_HOLDERS = ("qwen2_5_vl", "qwen3_norm")
"""Variants in which near-equal frames keep nothing and peaks of a frame are limited."""


class FastVIDBudget(NamedTuple):
    """int32 counts of one ratio.

    Attributes:
      tokens: () R, tokens per frame.
      context: (slots + 1,) tokens of a segment that density peaks may have, by the segment's number of frames.
    """

    tokens: Any
    context: Any


class FastVIDShared(NamedTuple):
    """Ratio-independent work; A is the static number of anchor frames a segment can have.

    Attributes:
      similarity: (T-1,) cosine of neighbouring frame embeddings.
      segment: (T,) segment of each frame.
      length: (T,) frames of its segment.
      holds: (T,) frames that may keep tokens; holders: (T,) how many its segment has; order: (T,) its place among them.
      slot: (T,) which anchor frame of its segment a frame is, A for none; slots: (T,) how many its segment has.
      anchor_frame: (T, A) frame behind each anchor slot of the segment.
      rank: (T, N) rank by attention.
      penalty: (T, N) subtracted from peak scores.
      gram: (T, A, N, N) inner products of the tokens of frame t with those of each anchor frame of its segment.
      scale: (T, N) one over the norm of each token of an anchor frame, 0 for a zero token.
      zero: (T, N) tokens that are exactly zero.
      distance: (T, N, N) scaled distances inside each anchor frame.
      real: (T,) frames that are no padding.
    """

    similarity: Float[Array, "T-1"]
    segment: Int[Array, "T"]
    length: Int[Array, "T"]
    holds: Bool[Array, "T"]
    holders: Int[Array, "T"]
    order: Int[Array, "T"]
    slot: Int[Array, "T"]
    slots: Int[Array, "T"]
    anchor_frame: Int[Array, "T A"]
    rank: Int[Array, "T N"]
    penalty: Float[Array, "T N"]
    gram: Float[Array, "T A N N"]
    scale: Float[Array, "T N"]
    zero: Bool[Array, "T N"]
    distance: Float[Array, "T N N"]
    real: Bool[Array, "T"]


class _Counts(NamedTuple):
    """(T,) salient tokens and peaks of each frame, and whether a frame's peaks absorb only tokens of that frame."""

    salient: Int[Array, "T"]
    peaks: Int[Array, "T"]
    alone: Bool[Array, "T"]


class _Leads(NamedTuple):
    """Peaks that a cosine of NaN leads to, (T,) places or N for none.

    Attributes:
      top: the best-scored peak of a frame, where zero tokens go.
      zero: the best-scored peak that is zero itself, where all other tokens go.
    """

    top: Int[Array, "T"]
    zero: Int[Array, "T"]


@dataclasses.dataclass(frozen=True)
class FastVID(PositionedReducer):
    """Keeps salient tokens of every frame and, in a few anchor frames a segment, density peaks that absorb the rest.

    Reads an attention map (T, N) and `frame_embedding` (T, Df). A segment ends where neighbouring embeddings are less
    similar than `tau` and at the `segments - 1` least similar places. Every `interval`-th frame of a segment, counted
    from its last one, is an anchor frame. Of the tokens that are not salient, the peaks are those of largest density
    times distance to a denser one; every other token of the segment joins its most similar peak in each anchor frame,
    and a peak becomes w * itself + (1 - w) * mean of its members, w = max(1 / (members + 1), beta). Rows ascend by id.

    A `SinkRule` replaces the attention and lowers peak scores by its anchor penalty, once where a frame's peaks absorb
    only that frame and twice elsewhere, as SToP's code does (arXiv 2604.20937, section 5.2 of our notes on it).

    Where the reference crashes the port continues: fewer frames than segments, one segment, no tokens left to merge,
    more peaks wanted than free tokens (all of them), fewer than 4 free tokens (as many neighbours as there are).

    The cosine of a token that is exactly zero is NaN in the reference, which counts as the largest: such a token joins
    the best-scored peak of an anchor frame, and a peak that is zero takes all other tokens of the segment there.

    Attributes:
      variant: whose arithmetic. `llava_onevision`: peaks a segment are int(R d) a frame shared out evenly, the
        remainder lost; peaks are members of their own mean; where a frame gets exactly int(R d) peaks it absorbs only
        its own tokens. `llava_video`: int(R L d) peaks a segment of L frames, exactly R L tokens kept; peaks are no
        members. `qwen2_5_vl`: as `llava_video`, but frames at least `ignore` similar to their successor keep nothing
        and a frame has at most N // 2 peaks, which loses tokens. `qwen3_norm`: as `qwen2_5_vl`, but at least one token
        a frame, and no peak in a segment of one token (what `qwen_norm` runs).
      attention: evidence that salience is ranked by.
      segments: least number of segments (c).
      tau: cut below this similarity (strict).
      ignore: only `qwen2_5_vl` and `qwen3_norm`, see there.
      context_share: share of the budget that goes to peaks (d).
      interval: frames from one anchor frame to the next (p).
      beta: least weight of a peak in its merged token.
      neighbours: tokens in the density, the token itself included.
      count_from: `end` as the code does, `start` as the paper's text and figures say.
    """

    variant: Variant = "llava_onevision"
    attention: AttentionName = "attention_pooling_head"
    segments: Count = 8
    tau: float = 0.9
    ignore: float = 0.95
    context_share: Share = 0.4
    interval: Count = 4
    beta: Share = 0.6
    neighbours: Count = 4
    count_from: Literal["end", "start"] = "end"

    wide_decisions = True

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The attention map that salience is ranked by, and one vector a frame."""
        return frozenset({self.attention, "frame_embedding"})

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> FastVIDShared:
        """Segments, anchor frames, ranks by attention, and inner products with the anchor frames of each segment."""
        x, real = video.features, video.frame_mask
        frames, n, dim = x.shape
        attention = video.evidence[self.attention].astype(jnp.float32)
        penalty = jnp.zeros((frames, n))
        if sink is not None:
            adjusted = sink.adjust(attention, jnp.zeros(frames, jnp.int32), real)
            attention, penalty = adjusted.attention, adjusted.anchor_penalty

        unit = normalise(video.evidence["frame_embedding"])
        similarity = jnp.sum(unit[:-1] * unit[1:], axis=-1)
        forced = segment.smallest_cuts(jnp.where(real[1:], similarity, jnp.inf), self.segments - 1)
        cuts = segment.mask_cuts(forced | segment.threshold_cuts(similarity, self.tau), real)
        ids = segment.segment_ids(cuts)
        holds = real
        if self.variant in _HOLDERS:
            last = jnp.append(cuts, True) | ~jnp.append(real[1:], False)
            holds = real & (last | jnp.append(similarity < self.ignore, True))

        holders = segment.segment_total(holds.astype(jnp.int32), ids)
        before = jnp.cumsum(holds.astype(jnp.int32)) - holds
        order = before - _first_of_segment(before, ids)
        place = order if self.count_from == "start" else holders - 1 - order
        is_anchor = holds & (place % self.interval == 0)
        most = _most_slots(frames, self.segments, self.interval)
        slot = jnp.where(is_anchor, place // self.interval, most)
        slots = -(-holders // self.interval)
        index = jnp.arange(frames, dtype=jnp.int32)
        anchor_frame = jnp.zeros((frames, most), jnp.int32).at[ids, slot].set(index, mode="drop")[ids]

        def products(t: Array, j: Array) -> Array:
            return dot_f32(x[t], x[anchor_frame[t, j]])

        gram = self._over_anchors(products, slots, most, 0.0)
        own = gram[index, jnp.minimum(slot, most - 1)]
        norm = jnp.sqrt(jnp.diagonal(own, axis1=1, axis2=2))
        return FastVIDShared(
            similarity=similarity,
            segment=ids,
            length=segment.segment_lengths(ids),
            holds=holds,
            holders=holders,
            order=order,
            slot=slot,
            slots=slots,
            anchor_frame=anchor_frame,
            rank=rank_descending(attention),
            penalty=penalty,
            gram=gram,
            scale=jnp.where(norm > 0, 1.0 / jnp.where(norm > 0, norm, 1.0), 0.0),
            zero=~jnp.any(x != 0, axis=-1),
            distance=distance_from_gram(own, dim),
            real=real,
        )

    def decide(self, shared: FastVIDShared, budget: FastVIDBudget, *, capacity: int) -> Plan:
        """Salient tokens, peaks and members for one budget."""
        counts = self._counts(shared, budget)
        salient = shared.rank < counts.salient[:, None]
        free = ~salient & shared.real[:, None]
        peak, lead = self._peaks(shared, counts, free)
        target = self._targets(shared, counts, free, peak, lead)

        frames, n = salient.shape
        m = frames * n
        members = jnp.zeros(m + 1, jnp.int32).at[target].add(1)
        own_weight = jnp.maximum(1.0 / (members + 1), self.beta)
        share = ((1.0 - own_weight) / jnp.maximum(members, 1))[target]
        token = jnp.arange(m, dtype=jnp.int32)
        # A peak's weight for itself shares the slot of its own frame, where it joins nothing or itself.
        slots = jnp.arange(target.shape[0], dtype=jnp.int32)
        own = peak.reshape(m) & (jnp.repeat(shared.slot, n) == slots[:, None])
        away = own & (target < m) & (target != token)
        own = own & ~away
        weight = jnp.where(own, own_weight[:m] + jnp.where(target < m, share, 0.0), share)
        target = jnp.where(own, token, target)
        if self.variant == "llava_onevision":
            # A peak may join another one that is zero: its own weight then has a slot more.
            target = jnp.concatenate([target, jnp.where(away.any(axis=0), token, m)[None]])
            weight = jnp.concatenate([weight, own_weight[None, :m]])
        diagnostics = {
            "segment": shared.segment,
            "similarity": shared.similarity,
            "holds_tokens": shared.holds,
            "salient_per_frame": counts.salient,
            "anchor_per_frame": counts.peaks,
        }
        return compact.ascending_plan(
            salient.reshape(m) & jnp.repeat(shared.real, n),
            peak.reshape(m),
            target,
            weight,
            capacity,
            diagnostics,
        )

    def _counts(self, shared: FastVIDShared, budget: FastVIDBudget) -> _Counts:
        n = shared.rank.shape[1]
        context = jnp.asarray(budget.context)[shared.length]
        rest = budget.tokens * shared.length - context
        holders = jnp.maximum(shared.holders, 1)
        salient = rest // holders + (shared.order < rest % holders)
        anchors = jnp.maximum(shared.slots, 1)
        peaks = context // anchors
        alone = jnp.zeros(peaks.shape, bool)
        if self.variant == "llava_onevision":
            # A test on counts, as in the code: besides one-frame segments it catches some with few context tokens.
            alone = peaks == budget.context[1]
        else:
            peaks = peaks + (shared.slot < context % anchors)
        is_anchor = shared.slot < shared.gram.shape[1]
        peaks = jnp.where(is_anchor, peaks, 0)
        if self.variant in _HOLDERS:
            several = shared.length > 1
            peaks = jnp.where(several, jnp.minimum(peaks, n // 2), peaks)
            salient = jnp.where(several, jnp.minimum(salient, n - peaks), salient)
        salient = jnp.where(shared.holds, jnp.minimum(salient, n), 0)
        return _Counts(salient, jnp.minimum(peaks, n - salient), alone)

    def _peaks(
        self, shared: FastVIDShared, counts: _Counts, free: Bool[Array, "T N"]
    ) -> tuple[Bool[Array, "T N"], _Leads]:
        """Peaks of each frame, and those that a cosine of NaN leads to."""
        n = shared.rank.shape[1]
        once = counts.alone | (shared.length == 1)
        penalty = shared.penalty * jnp.where(once, 1.0, 2.0)[:, None]

        def scored(distance: Array, free: Array, penalty: Array, scale: Array, peaks: Array) -> tuple[Array, ...]:
            scores = peak_scores(distance, free, self.neighbours, max_neighbours=self.neighbours)
            peak, rank = centre_mask(scores - penalty, peaks)
            place = jnp.arange(n, dtype=jnp.int32)
            zero = jnp.where(peak & (scale == 0), rank, n)
            first = jnp.where(zero == zero.min(), place, n).min()
            return peak, jnp.where(rank == 0, place, n).min(), jnp.where(zero.min() < n, first, n)

        def none(*_: Array) -> tuple[Array, ...]:
            return jnp.zeros(n, bool), jnp.int32(n), jnp.int32(n)

        def one(*frame: Array) -> tuple[Array, ...]:
            return lax.cond(frame[-1] > 0, scored, none, *frame)

        peak, top, zero = over_frames(one, shared.distance, free, penalty, shared.scale, counts.peaks)
        return peak, _Leads(top, zero)

    def _targets(
        self,
        shared: FastVIDShared,
        counts: _Counts,
        free: Bool[Array, "T N"],
        peak: Bool[Array, "T N"],
        lead: _Leads,
    ) -> Int[Array, "A M"]:
        """Token id of the peak that each token joins in every anchor frame of its segment; T * N for none."""
        frames, n = free.shape
        most = shared.gram.shape[1]
        none = frames * n
        place = jnp.arange(n, dtype=jnp.int32)

        def join(t: Array, j: Array) -> Array:
            f = shared.anchor_frame[t, j]
            # The norm of the joining token cannot change which peak is most similar.
            cosine = jnp.where(peak[f], shared.gram[t, j] * shared.scale[f], -jnp.inf)
            best = jnp.minimum(first_argmax(cosine), n - 1)
            here = t == f
            pool = free[t] & peak[f].any()
            if self.variant == "llava_onevision":
                pool = pool & (here | ~counts.alone[f])
                best = jnp.where(here & peak[t], place, best)
            else:
                pool = pool & ~(here & peak[t])
            # Cosines of zero tokens are NaN in the reference, which its argmax takes for the largest.
            best = jnp.where(lead.zero[f] < n, lead.zero[f], best)
            best = jnp.where(shared.zero[t], lead.top[f], best)
            return jnp.where(pool, f * n + best, none).astype(jnp.int32)

        return self._over_anchors(join, shared.slots, most, none).transpose(1, 0, 2).reshape(most, none)

    def _over_anchors(
        self, one: Callable[[Array, Array], Array], slots: Int[Array, "T"], most: int, fill: float
    ) -> Shaped[Array, "T A *S"]:
        """`one(frame, number)` of every anchor frame of each frame's segment, `fill` where a segment has no more.

        On CPU frame by frame, each with the anchors that it has. On accelerators all frames side by side, in as many
        rounds as the longest segment has anchors.
        """
        frames = jnp.arange(slots.shape[0], dtype=jnp.int32)
        made = jax.eval_shape(one, frames[0], frames[0])
        if on_cpu():

            def frame(t: Array) -> Array:
                blank = jnp.full((most, *made.shape), fill, made.dtype)
                return lax.fori_loop(0, slots[t], lambda j, out: out.at[j].set(one(t, j)), blank)

            return lax.map(frame, frames)

        def together(j: Array, out: Array) -> Array:
            new = jax.vmap(one, (0, None))(frames, j)
            new = jnp.where((j < slots).reshape(-1, *([1] * made.ndim)), new, jnp.asarray(fill, made.dtype))
            return lax.dynamic_update_index_in_dim(out, new, j, axis=1)

        # As many rounds as segments of equal length have.
        longest = -(-slots.shape[0] // self.segments)
        with mean_rounds(-(-longest // self.interval)):
            return lax.fori_loop(
                0, slots.max(), together, jnp.full((slots.shape[0], most, *made.shape), fill, made.dtype)
            )

    def budget(self, layout: Layout, ratio: float) -> FastVIDBudget:
        """R = int(N * ratio) and the table of peaks a segment, rounded as each released copy does.

        Raises:
          JvidpruneError: R = 0.
        """
        tokens = self._tokens(layout, ratio)
        lengths = range(layout.slots + 1)
        if self.variant == "llava_onevision":
            table = [int(tokens * self.context_share) * length for length in lengths]
        else:
            table = [int(tokens * length * self.context_share) for length in lengths]
        if self.variant in _HOLDERS:
            table = [max(peaks, 1) for peaks in table]
        if self.variant == "qwen3_norm":
            # A segment of one token keeps it, without a peak.
            table = [peaks if tokens * length > 1 else 0 for length, peaks in enumerate(table)]
        return FastVIDBudget(np.int32(tokens), np.asarray(table, np.int32))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """T * R rows: no copy keeps more than R tokens a frame on average over a segment."""
        return layout.frames * self._tokens(layout, ratio)

    def _tokens(self, layout: Layout, ratio: float) -> int:
        tokens = int(layout.tokens * check_ratio(ratio))
        if self.variant == "qwen3_norm":
            tokens = max(1, tokens)
        if tokens < 1:
            raise JvidpruneError(f"FastVID keeps no token of a frame of {layout.tokens} at ratio {ratio:g}.")
        return tokens

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Newlines behind rows of which something is left; positions are those of the unpruned sequence everywhere."""
        return super().prompt._replace(newline_rows="nonempty", reference_positions="original")

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Similarities of every frame to the anchor frames of its segment; segments of equal length are typical."""
        length = -(-layout.frames // self.segments)
        slots = -(-length // self.interval)
        return {
            "anchor frame similarities": layout.frames * slots * gram(layout, width),
            "weighted sums": sums(layout, width, slots),
        }

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {},
        "llava_video": {"variant": "llava_video"},
        "qwen2_5_vl": {"variant": "qwen2_5_vl", "tau": 0.84, "attention": "attention_mean_query"},
        # Not published: the settings of Qwen2.5-VL on the evidence that these towers have.
        "qwen3_vl": {"variant": "qwen2_5_vl", "tau": 0.84, "attention": "attention_last"},
        "molmo2": {"variant": "qwen2_5_vl", "tau": 0.84, "attention": "attention_last"},
        "video_llama_3": {"variant": "qwen2_5_vl", "tau": 0.84, "attention": "attention_mean_query"},
        # What the class token pays, as the paper ranks by where a tower has one.
        "internvl": {"variant": "qwen2_5_vl", "tau": 0.84, "attention": "attention_pooling_head"},
    }

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="fastvid",
        title="FastVID",
        paper="2503.11187",
        summary="Keeps salient tokens of every frame and merges the rest of a segment into density peaks.",
        nested=False,
        merges=True,
        exact=False,
        quirks=(
            "anchor frames are counted from the end of a segment (count_from='start' for the paper's order)",
            "LLaVA-OneVision's copy loses the remainder of peaks over anchor frames (variant='llava_video' keeps it)",
            "LLaVA-OneVision's copy counts a peak among its own members, the other copies do not (variant)",
        ),
    )


def _first_of_segment(values: Int[Array, "T"], ids: Int[Array, "T"]) -> Int[Array, "T"]:
    """Smallest value of each frame's segment."""
    frames = ids.shape[0]
    return jnp.full(frames, jnp.iinfo(jnp.int32).max, jnp.int32).at[ids].min(values)[ids]


def _most_slots(frames: int, segments: int, interval: int) -> int:
    """Anchor frames of the longest segment there can be: all others have one frame."""
    longest = frames - min(segments, frames) + 1
    return -(-longest // interval)
