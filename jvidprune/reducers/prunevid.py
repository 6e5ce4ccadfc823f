"""PruneVid: static tokens averaged over time, the rest clustered in space (arXiv 2412.16117).

1. Frames are clustered by density peaks of their mean tokens, gamma * T clusters; runs of one cluster are segments.
2. A place is static in a segment if the mean cosine over all pairs of its frames exceeds tau. It becomes its mean over
   these frames.
3. The static tokens of a segment, and the other tokens of each of its frames, are clustered by density peaks; a cluster
   becomes its plain mean. Sets of at most 14 tokens stay as they are.
4. Inside the language model, behind layer M, each block of tokens keeps the share alpha that gets most attention from
   the question there (`selected_layer`; a plan's `diagnostics["block"]` names the block of each row).

Follows the version of SToP's authors for LLaVA-OneVision by default, `budgeting="clusters"` the original for PLLaVA.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("prunevid"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
79
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.rules import TextInBlocks
from jvidprune.fields import Count, Index, Share
from jvidprune.ops import compact, segment
from jvidprune.ops.cluster import peak_scores
from jvidprune.ops.newline import NewlineKind
from jvidprune.ops.runs import refine_labels
from jvidprune.ops.select import first_argmin, order_descending, rank_of_order
from jvidprune.ops.similarity import distance_from_gram, dot_f32, over_frames, squared_norms
from jvidprune.ops.sink import SinkAdjust, SinkRule
from jvidprune.reducers.counting import Terms, gram, sums
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import AttentionName, InnerStage, Kept, Layout, Plan, VideoTokens

SMALLEST = 14
"""Sets of at most this many tokens are not clustered."""


class PruneVidBudget(NamedTuple):
    """int32 (slots + 1, N + 1): output tokens of a segment of w frames with n static places, indexed [w, n].

    Attributes:
      static: tokens that its static places become.
      dynamic: tokens that the other N - n places of each of its frames become.
    """

    static: Any
    dynamic: Any


class _Sets(NamedTuple):
    """Sets of N places ready to be clustered.

    Attributes:
      member: (S, N) places of the set.
      order: (S, N) places by falling peak score.
      near: (S, N, N) distance of each place to the place of each rank.
    """

    member: Bool[Array, "S N"]
    order: Int[Array, "S N"]
    near: Float[Array, "S N N"]


class PruneVidShared(NamedTuple):
    """Ratio-independent work; P is the static number of segments.

    Attributes:
      raw, label: (T,) frame clusters before and after the refinement, -1 on padding.
      segment: (T,) segment of each frame; length: (T,) its frames; start: (T,) its first one.
      similarity: (P, N) mean cosine of all pairs of frames of a segment at the same place.
      static: the segments' static sets, of mean tokens; dynamic: the frames' other tokens.
      real: (T,) frames that are no padding.
    """

    raw: Int[Array, "T"]
    label: Int[Array, "T"]
    segment: Int[Array, "T"]
    length: Int[Array, "T"]
    start: Int[Array, "T"]
    similarity: Float[Array, "P N"]
    static: _Sets
    dynamic: _Sets
    real: Bool[Array, "T"]


@dataclasses.dataclass(frozen=True)
class PruneVid(PositionedReducer):
    """Averages over time what does not change within a temporal segment and clusters what is left.

    Frames are clustered by density peaks of their mean tokens, labels are made contiguous, and runs of a label are the
    segments. A place whose mean cosine over all pairs of frames of the segment exceeds `tau` is static and becomes its
    mean over time. Static places of a segment, and the other tokens of each of its frames, are then clustered by
    density peaks; every output is the plain mean of its input tokens. Sets of at most 14 tokens are left alone.
    Rows: segments in time, of each first the static tokens, then those of each frame; inside a clustered set by
    falling score of the centre, whose id the row carries, else by place.

    It reads no attention. A `SinkRule` changes nothing unless `attention` names a map: then its bonus is added in the
    static test and its penalty lowers the scores of centres, which has no reference (SToP leaves PruneVid alone).

    Where the reference crashes the port continues: fewer than 7 frames (as many neighbours as there are), one frame
    (all dynamic), a cluster number that rounds to 0 (one cluster).

    Attributes:
      budgeting: `clusters`: a set of n tokens becomes int(n * ratio) clusters, as released for PLLaVA, so a still video
        keeps far less than the ratio. `retention`: the cluster ratio of a segment is set so that it keeps about the
        ratio of its tokens, plus 0.005, as in SToP's version for LLaVA-OneVision.
      tau: static above this mean cosine (strict; the paper includes equality).
      frame_share: frame clusters per frame (gamma).
      frames_asked: number of frames that `frame_share` refers to; None for those of the video. SToP's version uses the
        number asked for even where the video has fewer.
      neighbours: tokens in the density, the token itself included.
      attention: evidence for a sink rule, or None.
      selected_layer: M, the layer whose attention from text to video ranks the tokens of the second stage, whose kept
        tokens alone go on; None has no second stage (the paper's M = 10, and none in SToP's version).
      inner_share: alpha, the share of every block that the second stage keeps.
      newline: layout of LLaVA's newline embeddings, None for the family's. SToP's version has none where LLaVA-Video
        closes rows.
    """

    budgeting: Literal["retention", "clusters"] = "retention"
    tau: float = 0.8
    frame_share: Share = 0.25
    frames_asked: Count | None = None
    neighbours: Count = 7
    attention: AttentionName | None = None
    selected_layer: Index | None = None
    inner_share: Share = 0.4
    newline: NewlineKind | None = None

    wide_decisions = True

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Nothing, or the map that a sink rule reads."""
        return frozenset() if self.attention is None else frozenset({self.attention})

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> PruneVidShared:
        """Segments, static places, and the peak scores of every set, none of which depends on the ratio."""
        x, real = video.features, video.frame_mask
        frames, n, _ = x.shape
        raw = self._frame_labels(x, real)
        label = refine_labels(raw, real)
        ids = segment.segment_ids(segment.mask_cuts(label[1:] != label[:-1], real))
        length = jnp.where(real, segment.segment_lengths(ids), 0)
        index = jnp.arange(frames, dtype=jnp.int32)
        start = index - segment.position_in_segment(ids)

        adjusted = None
        if sink is not None and self.attention is not None:
            adjusted = sink.adjust(video.evidence[self.attention], jnp.zeros(frames, jnp.int32), real)
        # Runs that stay closed have at least 2 frames and swallow the open ones.
        most = max(1, frames // 2)
        opens = jnp.where(real & (start == index), ids, most)
        first = jnp.zeros(most, jnp.int32).at[opens].set(index, mode="drop")
        lengths = jnp.zeros(most, jnp.int32).at[opens].set(length, mode="drop")
        static, similarity = self._static_sets(x, first, lengths, adjusted)
        is_dynamic = real[:, None] & ~static.member[jnp.minimum(ids, most - 1)]
        penalty = jnp.zeros((frames, n)) if adjusted is None else adjusted.anchor_penalty
        dynamic = over_frames(self._set, x, is_dynamic, penalty)
        return PruneVidShared(raw, label, ids, length, start, similarity, static, cast(_Sets, dynamic), real)

    def decide(self, shared: PruneVidShared, budget: PruneVidBudget, *, capacity: int) -> Plan:
        """Cluster numbers, members and rows for one budget."""
        frames, n = shared.dynamic.member.shape
        index = jnp.arange(frames, dtype=jnp.int32)
        most = shared.static.member.shape[0]
        own = jnp.minimum(shared.segment, most - 1)
        static = shared.static.member[own] & shared.real[:, None]
        number = static.sum(axis=1)
        static_count = jnp.asarray(budget.static)[shared.length, number]
        dynamic_count = jnp.asarray(budget.dynamic)[shared.length, number]
        by_segment = jnp.zeros(most, jnp.int32).at[own].max(jnp.where(shared.real, static_count, 0))
        merged, rows, places = _clusters(shared.static, by_segment)
        groups, frame_rows, frame_places = _clusters(shared.dynamic, jnp.where(shared.real, dynamic_count, 0))

        # Candidate slots of a frame: N for its segment's static tokens, used in the first frame alone, N for its own.
        opens = (shared.start == index) & shared.real
        present = jnp.stack([rows[own] & opens[:, None], frame_rows & shared.real[:, None]], axis=1)
        base = index[:, None] * n
        token = jnp.stack([base + places[own], base + frame_places], axis=1)
        none = 2 * frames * n
        static_slot = shared.start[:, None] * 2 * n + merged[own]
        dynamic_slot = (index[:, None] * 2 + 1) * n + groups
        slot = jnp.where(static, static_slot, dynamic_slot)
        slot = jnp.where(shared.real[:, None], slot, none).reshape(-1)
        size = jnp.zeros(none + 1, jnp.int32).at[slot].add(1)
        alone = (size[:none] == 1) & (jnp.arange(none) // n % 2 == 1)
        target = jnp.where(alone[jnp.minimum(slot, none - 1)], none, slot)
        plan = compact.slotted_plan(
            token.reshape(-1),
            present.reshape(-1),
            alone,
            target[None],
            (1.0 / jnp.maximum(size[slot], 1))[None],
            capacity,
        )
        source, valid, _ = compact.compact(present.reshape(-1), capacity)
        diagnostics = {
            "frame_cluster_raw": shared.raw,
            "frame_cluster": shared.label,
            "segment": shared.segment,
            "similarity": shared.similarity,
            "static": static,
            "block": jnp.where(valid, _consecutive(source // n, valid), -1),
        }
        return plan._replace(diagnostics=diagnostics)

    def _frame_labels(self, x: Float[Array, "T N D"], real: Bool[Array, "T"]) -> Int[Array, "T"]:
        frames, _, dim = x.shape
        mean = jnp.mean(x.astype(jnp.float32), axis=1)
        distance = distance_from_gram(dot_f32(mean, mean), dim)
        order = order_descending(peak_scores(distance, real, self.neighbours, max_neighbours=self.neighbours))
        table = [max(1, int((self.frames_asked or t) * self.frame_share)) for t in range(frames + 1)]
        count = jnp.minimum(jnp.asarray(table, jnp.int32)[real.sum()], real.sum())
        return jnp.where(real, _join(order, distance[:, order], count), -1)

    def _static_sets(
        self, x: Float[Array, "T N D"], first: Int[Array, "P"], length: Int[Array, "P"], adjusted: SinkAdjust | None
    ) -> tuple[_Sets, Float[Array, "P N"]]:
        _, n, dim = x.shape
        bonus = jnp.zeros(n) if adjusted is None else adjusted.temporal_bonus[0]
        penalty = jnp.zeros(n) if adjusted is None else adjusted.anchor_penalty[0]

        def add(t: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            tokens = x[t].astype(jnp.float32)
            norm = jnp.maximum(jnp.sqrt(squared_norms(tokens)), 1e-12)
            return sums[0] + tokens, sums[1] + tokens / norm[:, None]

        def one(first: Array, length: Array) -> tuple[_Sets, Array]:
            nothing = jnp.zeros((n, dim), jnp.float32)
            total, unit = lax.fori_loop(first, first + length, add, (nothing, nothing))
            # The sum over all pairs of frames is the squared norm of the summed unit tokens.
            similarity = (squared_norms(unit) - length) / jnp.maximum(length * (length - 1), 1)
            similarity = jnp.where(length > 1, similarity, 0.0)
            static = (length > 1) & (similarity + bonus > self.tau)
            return self._set(total / jnp.maximum(length, 1), static, penalty), similarity

        return over_frames(one, first, length)

    def _set(self, tokens: Float[Array, "N D"], member: Bool[Array, "N"], penalty: Float[Array, "N"]) -> _Sets:
        n, dim = tokens.shape

        def ready(_: None) -> _Sets:
            distance = distance_from_gram(dot_f32(tokens, tokens), dim)
            scores = peak_scores(distance, member, self.neighbours, max_neighbours=self.neighbours) - penalty
            order = order_descending(scores)
            return _Sets(member, order, distance[:, order])

        def small(_: None) -> _Sets:
            return _Sets(member, jnp.arange(n, dtype=jnp.int32), jnp.zeros((n, n), jnp.float32))

        return lax.cond(member.sum() > SMALLEST, ready, small, None)

    def budget(self, layout: Layout, ratio: float) -> PruneVidBudget:
        """int(n * cluster ratio) for every length of a segment and number of static places, in float64."""
        ratio, n = check_ratio(ratio), layout.tokens
        frames = np.arange(layout.slots + 1)[:, None]
        places = np.arange(n + 1)[None, :]
        if self.budgeting == "clusters":
            share = np.full((layout.slots + 1, n + 1), ratio)
        else:
            tokens = np.maximum(places + (n - places) * frames, 1)
            share = np.minimum(ratio * n * frames / tokens + 0.005, 1.0)

        def outputs(size: np.ndarray) -> np.ndarray:
            clusters = np.maximum((size * share).astype(np.int32), 1)
            return np.where(size <= SMALLEST, size, clusters).astype(np.int32)

        return PruneVidBudget(outputs(places), outputs(n - places))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """14 * (segments + T) + the ratio of all tokens, and no more than these."""
        share = check_ratio(ratio) + (0.005 if self.budgeting == "retention" else 0.0)
        sets = max(1, layout.frames // 2) + layout.frames
        # One more for products that round up to an integer.
        return min(SMALLEST * sets + int(min(share, 1.0) * layout.total) + 1, layout.total)

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Newlines that were chosen, or that the preset has."""
        return super().prompt._replace(newline=self.newline)

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The second stage; int(n * alpha) of every block of n stay, also in the caches of the layers before."""
        if self.selected_layer is None:
            return ()
        return (InnerStage(self.selected_layer + 1, TextInBlocks(trims=True), Kept(self.inner_share, "floor")),)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Distances of frames and of the tokens of every set, and sums over segments and clusters."""
        frames = layout.frames
        return {
            "frame distances": 2.0 * frames**2 * width,
            "sums over segments": 5.0 * layout.total * width,
            "distances of tokens (at most)": (frames + frames // 2) * gram(layout, width),
            "weighted sums": sums(layout, width),
        }

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {"budgeting": "retention"},
        "llava_video": {"budgeting": "retention", "newline": "no_token"},
    }

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="prunevid",
        title="PruneVid",
        paper="2412.16117",
        summary="Averages static tokens over temporal segments and clusters the rest in space; reads no attention.",
        nested=False,
        merges=True,
        exact=False,
        quirks=(
            "static tokens are clustered once per segment, not per frame as the paper says (no option)",
            "inside a clustered set rows follow the score of the cluster, not its place (no option)",
            "the ratio is that of SToP's version; the original's counts clusters, not tokens (budgeting='clusters')",
        ),
    )


def _consecutive(values: Int[Array, "K"], valid: Bool[Array, "K"]) -> Int[Array, "K"]:
    """Numbers 0, 1, 2, ... of the runs of equal values."""
    changes = jnp.concatenate([jnp.zeros(1, bool), values[1:] != values[:-1]])
    return jnp.cumsum((changes & valid).astype(jnp.int32))


def _join(order: Int[Array, "N"], near: Float[Array, "N N"], count: Int[Array, ""]) -> Int[Array, "N"]:
    """Rank of the nearest of the first `count` centres, equal distances by rank; a centre joins itself."""
    n = order.shape[0]
    rank = rank_of_order(order)
    nearest = first_argmin(jnp.where(jnp.arange(n) < count, near, jnp.inf))
    return jnp.where(rank < count, rank, nearest).astype(jnp.int32)


def _clusters(sets: _Sets, count: Int[Array, "S"]) -> tuple[Int[Array, "S N"], Bool[Array, "S N"], Int[Array, "S N"]]:
    """Row of each place inside its set, which of the N rows exist, and the place that each row stands for.

    A small set has a row for each of its own places, at the number of the place.
    """

    def one(sets: _Sets, count: Array) -> tuple[Array, Array, Array]:
        n = sets.order.shape[0]
        places = jnp.arange(n, dtype=jnp.int32)

        def clustered(_: None) -> tuple[Array, Array, Array]:
            return _join(sets.order, sets.near, count), places < count, sets.order

        def apart(_: None) -> tuple[Array, Array, Array]:
            return places, sets.member, places

        return lax.cond(sets.member.sum() > SMALLEST, clustered, apart, None)

    return over_frames(one, sets, count)
