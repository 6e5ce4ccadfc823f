"""HoliTom: what stays the same over globally chosen windows is merged, the rest is thinned (arXiv 2505.21334).

a is the attention of the tower's last block; a token is unchanged where its cosine with the frame before exceeds tau.

1. Windows: dynamic programming cuts the video so that keeping one copy of every token that never changes inside its
   window saves most.
2. The static tokens of a window, those that never change in it, become their mean over its frames.
3. R_eff = min(ratio * T * N / tokens left, 1) is the share that stays of every set.
4. Of the n dynamic tokens of a frame the ceil(n R_eff) of largest a stay unchanged.
5. The n static tokens of a window are clustered by density peaks into round(n R_eff) tokens
   beta * centre + (1 - beta) * mean of the members.
6. Inside the language model half of the visual tokens are merged into the other half (`inner_layer`).

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("holitom"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
73
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.rules import HalvingMerge
from jvidprune.fields import Count, Share
from jvidprune.ops import compact, segment
from jvidprune.ops.cluster import assign_to_centres, centre_mask, peak_scores
from jvidprune.ops.exact import ceil_product, fraction_words, round_product
from jvidprune.ops.select import rank_descending
from jvidprune.ops.similarity import (
    distance_from_gram,
    dot_f32,
    frame_gram,
    over_frames,
    same_position_cosine,
)
from jvidprune.ops.sink import SinkRule
from jvidprune.ops.windows import best_windows, window_cuts, window_gains
from jvidprune.reducers.counting import Terms, gram, neighbours, sums
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import InnerStage, Kept, Layout, Plan, VideoTokens


class HoliTomBudget(NamedTuple):
    """The share of the tokens to keep once a number of tokens is left after merging over time.

    Attributes:
      share: (slots * N + 1, 3) int32, the double R_eff for every number of tokens left, as fixed point.
    """

    share: Any


class HoliTomShared(NamedTuple):
    """Ratio-independent work; P is the static number of windows of more than one frame.

    Attributes:
      similarity: (T-1, N) cosine of neighbouring frames at the same place.
      window: (T,) window of each frame.
      start: (T,) first frame of its window.
      slot: (T,) number of the window among those of more than one frame, P for one-frame windows.
      static: (T, N) tokens that stay the same throughout their window.
      left: () tokens left after merging over time, as the windows' objective counts them.
      rank: (T, N) rank by attention among the tokens that are not static.
      first: (P,) first frame of each slot's window, 0 where unused; length: (P,) its frames, 0 where unused.
      distance: (P, N, N) scaled distances of the window's mean tokens.
      penalty: (P, N) subtracted from the scores of static centres.
      frame_distance: (T, N, N) distances inside each frame; no rows unless `contextual_share` > 0.
      real: (T,) frames that are no padding.
    """

    similarity: Float[Array, "T-1 N"]
    window: Int[Array, "T"]
    start: Int[Array, "T"]
    slot: Int[Array, "T"]
    static: Bool[Array, "T N"]
    left: Int[Array, ""]
    rank: Int[Array, "T N"]
    first: Int[Array, "P"]
    length: Int[Array, "P"]
    distance: Float[Array, "P N N"]
    penalty: Float[Array, "P N"]
    frame_distance: Float[Array, "F N N"]
    real: Bool[Array, "T"]


class _Clusters(NamedTuple):
    """Per set of N places: chosen centres, the centre of each place (N for none), and the place's weight in it."""

    centre: Bool[Array, "S N"]
    joined: Int[Array, "S N"]
    weight: Float[Array, "S N"]


@dataclasses.dataclass(frozen=True)
class HoliTom(PositionedReducer):
    """Cuts the video into windows that merge best over time, then thins what changes and clusters what does not.

    Reads `attention_last` (T, N). A token is unchanged from one frame to the next where the cosine exceeds `tau`.
    Dynamic programming picks the windows for which keeping one copy of every token that never changes saves most. In a
    window those static tokens become their mean over time. Then every set is cut by the same share R_eff, chosen so
    that about ratio * T * N tokens remain: of each frame the ceil(share) most attended dynamic tokens stay as they
    are, and the window's static tokens are clustered by density peaks into round(share) tokens
    beta * centre + (1 - beta) * mean of the members. Ids of static tokens lie in the window's first frame.

    Counts equal those of the reference's float64 arithmetic although R_eff depends on the data.

    A `SinkRule` replaces the attention, adds its bonus to the similarity of the static test alone, may replace that
    test's threshold, and lowers the scores of static centres (SToP, arXiv 2604.20937). With a threshold above `tau`
    fewer tokens are merged over time than R_eff counts on, and the bound of `capacity` does not hold:
    min(T * N, ratio * T^2 * N) does.

    Attributes:
      layout: `one_token`: windows in time, of each first its static tokens, then frame after frame the dynamic ones.
        `grid`: ascending by id, as a newline after each row needs it (LLaVA-Video).
      tau: a token is unchanged above this cosine (strict). The published LLaVA-OneVision scripts use 0.65 at
        ratio 0.10 and 0.80 above.
      beta: weight of a centre in its merged token.
      neighbours: tokens in the density, the token itself included.
      max_window: longest window in frames.
      contextual_share: share of the dynamic tokens of a frame that are clusters of the others instead of attended
        ones. The released code has it but fails for any value above 0; this follows the paper's idea.
      merge: `beta`, or `mean` for the plain mean of centre and members (a switch of the released code).
      keep_static: keep at least one token of every static set; the released code drops a set whose share rounds to 0.
      inner_layer: first decoder layer after the merging inside the language model; None merges nothing there.
      inner_dropped: R, the share of the visual tokens, newlines included, that is merged away there.
      probe_causal: keep the layer before that merging causal. In the released code it is not: asking it for its
        attention takes a path that leaves the mask out.
    """

    layout: Literal["one_token", "grid"] = "one_token"
    tau: float = 0.8
    beta: Share = 0.6
    neighbours: Count = 7
    max_window: Count = 1024
    contextual_share: Share = 0.0
    merge: Literal["beta", "mean"] = "beta"
    keep_static: bool = False
    inner_layer: Count | None = None
    inner_dropped: Share = 0.5
    probe_causal: bool = False

    needs = frozenset({"attention_last"})
    wide_decisions = True

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> HoliTomShared:
        """Windows, static tokens, ranks by attention, distances of the windows' mean tokens."""
        x, real = video.features, video.frame_mask
        frames, n, dim = x.shape
        attention = video.evidence["attention_last"].astype(jnp.float32)
        similarity = same_position_cosine(x)
        unchanged = (similarity > self.tau) & real[1:, None]
        same, penalty = unchanged, jnp.zeros((frames, n))
        if sink is not None:
            adjusted = sink.adjust(attention, jnp.zeros(frames, jnp.int32), real)
            attention, penalty = adjusted.attention, adjusted.anchor_penalty
            threshold = self.tau if sink.static_threshold is None else sink.static_threshold
            same = (similarity + adjusted.temporal_bonus[:-1] > threshold) & real[1:, None]

        value, start = best_windows(window_gains(unchanged), self.max_window)
        cuts = window_cuts(start)
        window = segment.segment_ids(cuts)
        length = segment.segment_lengths(window)
        index = jnp.arange(frames, dtype=jnp.int32)
        first_frame = index - segment.position_in_segment(window)
        static = static_places(same, window)

        most = max(1, frames // 2)
        opens = (length > 1) & (index == first_frame)
        number = jnp.cumsum(opens.astype(jnp.int32)) - 1
        slot = jnp.where(length > 1, number, most)
        where = jnp.where(opens, number, most)
        first = jnp.zeros(most, jnp.int32).at[where].set(index, mode="drop")
        lengths = jnp.zeros(most, jnp.int32).at[where].set(length, mode="drop")
        used = (lengths > 0) & static[first].any(axis=1)

        def distances(first: Array, length: Array, used: Array) -> Array:
            def add(t: Array, total: Array) -> Array:
                return total + x[t].astype(jnp.float32)

            def of_means(_: None) -> Array:
                mean = lax.fori_loop(first, first + length, add, jnp.zeros((n, dim), jnp.float32)) / length
                return distance_from_gram(dot_f32(mean, mean), dim)

            return lax.cond(used, of_means, lambda _: jnp.zeros((n, n), jnp.float32), None)

        frame_distance = jnp.zeros((0, n, n), jnp.float32)
        if self.contextual_share > 0:
            frame_distance = distance_from_gram(frame_gram(x), dim)
        return HoliTomShared(
            similarity=similarity,
            window=window,
            start=first_frame,
            slot=slot,
            static=static,
            left=real.sum(dtype=jnp.int32) * n - value[-1],
            rank=rank_descending(jnp.where(static, -jnp.inf, attention)),
            first=first,
            length=lengths,
            # One after the other everywhere: windows have different lengths, and most slots are empty.
            distance=lax.map(lambda window: distances(*window), (first, lengths, used)),
            penalty=penalty[first],
            frame_distance=frame_distance,
            real=real,
        )

    def decide(self, shared: HoliTomShared, budget: HoliTomBudget, *, capacity: int) -> Plan:
        """Counts of every set, kept dynamic tokens, clusters of static ones, and the order of the rows."""
        frames, n = shared.static.shape
        share = jnp.asarray(budget.share)[shared.left]
        dynamic = ~shared.static & shared.real[:, None]
        wanted = ceil_product(share, dynamic.sum(axis=1))
        attended = jnp.asarray([round(k * (1 - self.contextual_share)) for k in range(n + 1)], jnp.int32)[wanted]
        kept = dynamic & (shared.rank < attended[:, None])

        static = shared.static[shared.first] & (shared.length > 0)[:, None]
        clusters = round_product(share, static.sum(axis=1))
        if self.keep_static:
            clusters = jnp.where(static.any(axis=1), jnp.maximum(clusters, 1), clusters)
        merged = self._cluster(shared.distance, static, clusters, shared.penalty)

        # Candidate slots of a frame, each over its N places: static tokens, dynamic ones, clusters of dynamic ones.
        index = jnp.arange(frames, dtype=jnp.int32)
        own = jnp.minimum(shared.slot, shared.first.shape[0] - 1)
        has_window = shared.slot < shared.first.shape[0]
        opens = has_window & (shared.start == index)
        present = [merged.centre[own] & opens[:, None], kept]
        joined = jnp.where(shared.static & has_window[:, None], merged.joined[own], n)
        weight = merged.weight[own] / jnp.maximum(shared.length[own], 1)[:, None]
        planes = 3 if self.contextual_share > 0 else 2
        target = self._slot(shared.start[:, None], 0, joined, planes, n)
        if self.contextual_share > 0:
            rest = dynamic & ~kept
            groups = self._cluster(shared.frame_distance, rest, wanted - attended, jnp.zeros((frames, n)))
            present.append(groups.centre)
            target = jnp.where(rest, self._slot(index[:, None], 2, groups.joined, planes, n), target)
            joined = jnp.where(rest, groups.joined, joined)
            weight = jnp.where(rest, groups.weight, weight)
        target = jnp.where(joined < n, target, frames * n * planes)

        axis = 1 if self.layout == "one_token" else 2
        slots = jnp.stack(present, axis=axis)
        pick = jnp.broadcast_to(jnp.expand_dims(jnp.arange(planes) == 1, 2 - axis), slots.shape[1:])
        token = jnp.broadcast_to(
            jnp.expand_dims(index[:, None] * n + jnp.arange(n, dtype=jnp.int32), axis), slots.shape
        )
        diagnostics = {
            "segment": shared.window,
            "similarity": shared.similarity,
            "static": shared.static,
            "left": shared.left,
            "static_kept": jnp.where(has_window, merged.centre.sum(axis=1, dtype=jnp.int32)[own], 0),
            "dynamic_kept": jnp.where(shared.real, wanted, 0),
        }
        return compact.slotted_plan(
            token.reshape(-1),
            slots.reshape(-1),
            jnp.broadcast_to(pick, slots.shape).reshape(-1),
            target.reshape(1, -1),
            weight.reshape(1, -1),
            capacity,
            diagnostics,
        )

    def _slot(self, frame: Array, plane: int, place: Array, planes: int, n: int) -> Array:
        if self.layout == "one_token":
            return (frame * planes + plane) * n + place
        return (frame * n + place) * planes + plane

    def _cluster(
        self,
        distance: Float[Array, "S N N"],
        valid: Bool[Array, "S N"],
        count: Int[Array, "S"],
        penalty: Float[Array, "S N"],
    ) -> _Clusters:
        """Density-peak clusters of each set; the density looks at no more neighbours than there will be clusters."""
        n = valid.shape[1]

        def some(distance: Array, valid: Array, count: Array, penalty: Array) -> _Clusters:
            near = jnp.minimum(count, self.neighbours)
            scores = peak_scores(distance, valid, near, max_neighbours=self.neighbours) - penalty
            centre, _ = centre_mask(scores, count)
            joined = jnp.where(valid, assign_to_centres(distance, centre), n)
            members = jnp.zeros(n + 1, jnp.int32).at[joined].add(1)[jnp.minimum(joined, n)]
            others = jnp.maximum(members - 1, 1)
            if self.merge == "mean":
                weight = 1.0 / jnp.maximum(members, 1)
            else:
                weight = jnp.where(centre, jnp.where(members > 1, self.beta, 1.0), (1.0 - self.beta) / others)
            return _Clusters(centre, joined, jnp.where(valid, weight, 0.0))

        def none(distance: Array, valid: Array, count: Array, penalty: Array) -> _Clusters:
            return _Clusters(jnp.zeros(n, bool), jnp.full(n, n, jnp.int32), jnp.zeros(n))

        def one(distance: Array, valid: Array, count: Array, penalty: Array) -> _Clusters:
            return lax.cond(count > 0, some, none, distance, valid, count, penalty)

        return over_frames(one, distance, valid, count, penalty)

    def budget(self, layout: Layout, ratio: float) -> HoliTomBudget:
        """R_eff = min(ratio / (left / (T * N)), 1) for every number of tokens that can be left."""
        left = np.arange(1, layout.slots * layout.tokens + 1, dtype=np.float64)
        share = np.minimum(check_ratio(ratio) / (left / layout.total), 1.0)
        return HoliTomBudget(fraction_words(np.concatenate([np.ones(1), share])))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """floor(ratio * T * N + 1.5 * T): less than 1 is rounded up per frame and at most 1/2 per window."""
        rounding = 2.0 if self.keep_static else 1.5
        return min(int(check_ratio(ratio) * layout.total + rounding * layout.frames), layout.total)

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Newlines of the layout, behind rows of which something is left."""
        return super().prompt._replace(newline=self.layout, newline_rows="nonempty")

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The merging inside the language model; round(n * (1 - R)), halves to even, of n visual tokens stay."""
        if self.inner_layer is None:
            return ()
        rule = HalvingMerge(causal=self.probe_causal, newlines="always")
        return (InnerStage(self.inner_layer, rule, Kept(1 - self.inner_dropped, "round")),)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Cosines of neighbours, distances of the kept tokens, and those of contextual ones where there are any."""
        terms = {
            "neighbour cosines": neighbours(layout, width),
            "window distances (at most)": layout.frames // 2 * gram(layout, width),
            "weighted sums": sums(layout, width),
        }
        if self.contextual_share > 0:
            terms["distances in frames"] = layout.frames * gram(layout, width)
        return terms

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {"inner_layer": 18},
        "llava_video": {"layout": "grid", "inner_layer": 18},
    }

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="holitom",
        title="HoliTom",
        paper="2505.21334",
        summary="Merges what stays the same over globally chosen windows, then keeps attended and clustered tokens.",
        nested=False,
        merges=True,
        exact=False,
        quirks=(
            "the static tokens of a window vanish where their share rounds to 0 (keep_static=True keeps one)",
            "contextual clusters of dynamic tokens fail in the released code and are off (contextual_share > 0)",
            "the layer before the merging inside the model sees the future (probe_causal=True)",
        ),
    )


def static_places(same: Bool[Array, "T-1 N"], window: Int[Array, "T"]) -> Bool[Array, "T N"]:
    """Tokens that are the same in all frames of their window, which has more than one."""
    inside = window[1:] == window[:-1]
    changes = (
        jnp.zeros((window.shape[0], same.shape[1]), jnp.int32).at[:-1].set((~same & inside[:, None]).astype(jnp.int32))
    )
    return (segment.segment_total(changes, window) == 0) & (segment.segment_lengths(window) > 1)[:, None]
