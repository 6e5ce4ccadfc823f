"""VisionZip, FastVID and HoliTom as they run in tables on Qwen3-VL: ranked by the norms of the merged tokens.

Three baselines of `xuyang-liu16/VidCom2` (branch qwen, commit a85d485) that V-CAST's and VidCom2's tables call by the
names of the methods. None is the published one; no paper describes them. a = |x| stands for attention everywhere; in
an earlier state of the branch (`version="first"`, commits d6235c5 to e19a4bd), a is attention pooled in a wrong order.

* VisionZip: of each frame the dominant tokens of largest a; of the rest the densest become seeds, every other token
  joins the most similar seed, and a seed is the plain mean of its members.
* FastVID: its Qwen2.5-VL variant ranked by a, with the mean token as frame embedding and counts of its own.
* HoliTom: its merging before the language model ranked by a; row i of n then stands at place i (T N - 1) / (n - 1) of
  the video, whatever token it came from.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("qwen_norm"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Share
from jvidprune.ops import compact
from jvidprune.ops.cluster import k_smallest
from jvidprune.ops.select import first_argmax, rank_descending
from jvidprune.ops.similarity import frame_gram, over_frames, squared_norms
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, gram, sums
from jvidprune.reducers.fastvid import FastVID, FastVIDBudget
from jvidprune.reducers.holitom import HoliTom, HoliTomBudget
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens


class SeedBudget(NamedTuple):
    """int32 scalars of each frame: dominant tokens, and seeds."""

    dominant: Any
    seeds: Any


class NormShared(NamedTuple):
    """(T, N) a of the tokens, (T,) real frames, and the method's own ratio-independent work."""

    norm: Float[Array, "T N"]
    real: Bool[Array, "T"]
    method: Any


class SeedShared(NamedTuple):
    """(F, M) rank by a, (F, M, M) cosines and (F, M) real tokens of the frames, or of the video as one list."""

    rank: Int[Array, "F M"]
    cosine: Float[Array, "F M M"]
    real: Bool[Array, "F M"]


@dataclasses.dataclass(frozen=True)
class QwenNorm(PositionedReducer):
    """One of three baselines by feature norms; see the module.

    Attributes:
      method: `visionzip` keeps max(1, int(N * ratio)) tokens a frame, max(1, int(share)) of them dominant; `fastvid`
        at most that many a frame on average; `holitom` as HoliTom counts.
      version: `norm` as above. `first`, for `visionzip` and `holitom`: a is the evidence "attention_columns" between
        its minimum and maximum over the video, and a token gets the mean of the four patches that it would have if
        these came row by row, which they do not: only the frame is right. VisionZip then counts int(T * N * ratio) over
        the whole video as one list, with its dominant tokens before its seeds, at the places of the kept tokens in
        order: rows and places disagree. HoliTom's rows stand at the first places of the video. The tables' VisionZip
        and HoliTom rows can only have come from it.
      dominant_share: of `visionzip`.
      neighbours: of `visionzip`, others in a token's density.
      segments: of `fastvid`, least number.
      tau: cut below this similarity (`fastvid`, 0.84), or unchanged above it (`holitom`, 0.8); None is the method's.
      ignore: of `fastvid`: frames at least as similar to their successor keep nothing.
      context_share, interval: of `fastvid`, as there.
      beta: least weight of a peak (`fastvid`, 0.5), or weight of a centre (`holitom`, 0.6); None is the method's.
      spread: of `holitom`, `norm`: put rows at evenly spaced places of the video, with the position and the DeepStack
        levels of those places, as released. False leaves rows at their own tokens. Places are exact quotients rounded
        down, of which the released float64 misses single ones by one for a few numbers of rows.
    """

    method: Literal["visionzip", "fastvid", "holitom"] = "visionzip"
    version: Literal["norm", "first"] = "norm"
    dominant_share: Share = 0.6
    neighbours: Count = 5
    segments: Count = 8
    tau: float | None = None
    ignore: float = 0.99
    context_share: Share = 0.5
    interval: Count = 4
    beta: Share | None = None
    spread: bool = True

    wide_decisions = True

    @property
    def in_time(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those that cut the video into segments or windows."""
        return self.method != "visionzip"

    @property
    def needs(self) -> frozenset[str]:
        """Attention of patches for the first version, else nothing."""
        return frozenset({"attention_columns"} if self.version == "first" else ())

    def __post_init__(self) -> None:
        if self.version == "first" and self.method == "fastvid":
            raise JvidpruneError("the first version has visionzip and holitom, got fastvid.")

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> NormShared:
        """The method's own shared work, with a in place of attention; a sink rule adjusts that."""
        if self.version == "first":
            norm = misplaced_scores(video.evidence["attention_columns"], video.grid, video.frame_mask)
        else:
            norm = over_frames(lambda frame: jnp.sqrt(squared_norms(frame)), video.features)
        if self.method != "visionzip":
            evidence = {"attention_last": norm}
            if self.method == "fastvid":
                mean = over_frames(lambda frame: jnp.mean(frame.astype(jnp.float32), axis=0), video.features)
                evidence["frame_embedding"] = mean
            shown = dataclasses.replace(video, evidence=evidence)
            return NormShared(norm, video.frame_mask, self.inner_method.prepare(shown, capacity=capacity, sink=sink))
        ranked = norm
        if sink is not None:
            ranked = sink.adjust(norm, jnp.zeros(norm.shape[0], jnp.int32), video.frame_mask).attention
        real, x = video.frame_mask[:, None] & jnp.ones(norm.shape, bool), video.features
        if self.version == "first":
            real, ranked = real.reshape(1, -1), ranked.reshape(1, -1)
            x = x.reshape(1, real.size, -1)
            ranked = jnp.where(real, ranked, -jnp.inf)
        gram = frame_gram(x)
        length = jnp.maximum(jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2)), 1e-12)
        cosine = gram / (length[:, :, None] * length[:, None, :])
        return NormShared(norm, video.frame_mask, SeedShared(rank_descending(ranked), cosine, real))

    def decide(self, shared: NormShared, budget: Any, *, capacity: int) -> Plan:
        """The method's own plan, HoliTom's with the places of its rows."""
        if self.method == "visionzip":
            plan = self._seeded(shared.method, budget, capacity)
        elif self.method == "fastvid":
            plan = self._fastvid().decide(shared.method, budget, capacity=capacity)
        else:
            plan = self._holitom().decide(shared.method, budget, capacity=capacity)
        if self.version == "first" or (self.method == "holitom" and self.spread):
            plan = self._misplaced(plan, jnp.sum(shared.real, dtype=jnp.int32) * shared.norm.shape[1])
        return plan._replace(diagnostics=plan.diagnostics | {"norm": shared.norm})

    def _seeded(self, shared: SeedShared, budget: SeedBudget, capacity: int) -> Plan:
        """VisionZip: dominant tokens, seeds and members, rows ascending by id."""
        frames, n = shared.rank.shape
        dominant = shared.rank < budget.dominant
        rest = ~dominant & shared.real
        among = jnp.where(rest[:, :, None] & rest[:, None, :], shared.cosine, -jnp.inf)
        # The largest is taken to be the token itself; fewer tokens have fewer neighbours.
        near = -k_smallest(-among, min(self.neighbours + 1, n))[..., 1:]
        density = jnp.sum(jnp.where(jnp.isfinite(near), near, 0.0), axis=-1)
        density = density / jnp.maximum(jnp.sum(jnp.isfinite(near), axis=-1), 1)
        seed = rest & (rank_descending(jnp.where(rest, density, -jnp.inf)) < budget.seeds)
        nearest = first_argmax(jnp.where(seed[:, None, :], shared.cosine, -jnp.inf))
        real = shared.real
        start = jnp.arange(frames, dtype=jnp.int32)[:, None] * n
        member = rest & real & (budget.seeds > 0)
        target = jnp.where(member, start + jnp.minimum(nearest, n - 1), frames * n).reshape(-1)
        members = jnp.zeros(frames * n + 1, jnp.int32).at[target].add(1)
        # A seed that lost itself to an equal one and has no members stays as it is.
        full = members[:-1].reshape(frames, n) > 0
        diagnostics = {"dominant": dominant & real, "seed": seed & real, "members": members[:-1].reshape(frames, n)}
        weight = (1.0 / jnp.maximum(members[target], 1))[None]
        pick, merged = (dominant | (seed & ~full)) & real, seed & full & real
        if self.version == "norm":
            return compact.ascending_plan(
                pick.reshape(-1), merged.reshape(-1), target[None], weight, capacity, diagnostics
            )
        # All dominant tokens, then all seeds.
        token = jnp.arange(frames * n, dtype=jnp.int32)
        return compact.slotted_plan(
            jnp.concatenate([token, token]),
            jnp.concatenate([(dominant & real).reshape(-1), seed.reshape(-1)]),
            jnp.concatenate([jnp.ones(frames * n, bool), ~full.reshape(-1)]),
            (frames * n + target)[None],
            weight,
            capacity,
            diagnostics,
        )

    def _misplaced(self, plan: Plan, total: Int[Array, ""]) -> Plan:
        """The plan with its rows at other places than their tokens' own, of `total` real ones."""
        rows, m = plan.ids.shape[0], plan.row.shape[-1]
        index = jnp.arange(rows, dtype=jnp.int32)
        gaps = jnp.maximum(plan.count - 1, 1)
        # index * last // gaps in two parts that fit int32.
        last = total - 1
        even = index * (last // gaps) + index * (last % gaps) // gaps
        levels = even
        if self.version == "norm":
            place = even
        elif self.method == "holitom":
            place = index
        else:
            place, levels = jnp.sort(plan.ids), plan.ids
        # Ids name places now, so copies become sums of one token.
        copied = jnp.full(m, rows, jnp.int32).at[jnp.where(plan.is_pick, plan.ids, m)].set(index, mode="drop")
        return plan._replace(
            ids=jnp.where(plan.valid, place, m),
            is_pick=jnp.zeros_like(plan.is_pick),
            row=jnp.concatenate([plan.row, copied[None]]),
            weight=jnp.concatenate([plan.weight, (copied < rows).astype(jnp.float32)[None]]),
            diagnostics=plan.diagnostics | {"source": plan.ids, "level_place": jnp.where(plan.valid, levels, m)},
        )

    @property
    def inner_method(self) -> FastVID | HoliTom:
        """The reducer that runs on the norms, for `fastvid` and `holitom`."""
        return self._fastvid() if self.method == "fastvid" else self._holitom()

    def _fastvid(self) -> FastVID:
        return FastVID(
            variant="qwen3_norm",
            attention="attention_last",
            segments=self.segments,
            tau=0.84 if self.tau is None else self.tau,
            ignore=self.ignore,
            context_share=self.context_share,
            interval=self.interval,
            beta=0.5 if self.beta is None else self.beta,
        )

    def _holitom(self) -> HoliTom:
        return HoliTom(
            tau=0.8 if self.tau is None else self.tau,
            beta=0.6 if self.beta is None else self.beta,
        )

    def budget(self, layout: Layout, ratio: float) -> SeedBudget | FastVIDBudget | HoliTomBudget:
        """The method's own counts, in float64."""
        if self.method == "holitom":
            return self._holitom().budget(layout, ratio)
        if self.method == "fastvid":
            return self._fastvid().budget(layout, ratio)
        kept = keep_count(self._listed(layout), check_ratio(ratio))
        dominant = max(1, int(kept * self.dominant_share))
        return SeedBudget(np.int32(dominant), np.int32(kept - dominant))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """HoliTom's bound; T times the tokens of a frame for the others, which keep no more on average."""
        if self.method == "holitom":
            return self._holitom().capacity(layout, ratio)
        return layout.total // self._listed(layout) * keep_count(self._listed(layout), check_ratio(ratio))

    @property
    def tokens_per_frame(self) -> Callable[[Layout, float], int] | None:
        """Tokens of every frame for `visionzip`, None where frames differ."""
        if self.method != "visionzip" or self.version == "first":
            return None
        return lambda layout, ratio: keep_count(layout.tokens, check_ratio(ratio))

    def _listed(self, layout: Layout) -> int:
        """Tokens that are counted together: a frame's, or those of the video."""
        return layout.total if self.version == "first" else layout.tokens

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Norms, and the method's own terms; of FastVID and HoliTom only their settings are read."""
        norms = {"norms": 2.0 * layout.total * width}
        if self.method == "visionzip":
            similarities = layout.frames * gram(layout, width)
            return norms | {"similarities": similarities, "weighted sums": sums(layout, width)}
        return norms | self.inner_method.flops(layout, width, ratio)

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"qwen2_5_vl": {}, "qwen3_vl": {}}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="qwen_norm",
        title="Qwen3-VL baselines by norms",
        # The repository is that of VidCom2; no paper describes what it calls by these names.
        paper="2505.14454",
        summary="Ranks tokens by feature norms: three baselines listed under other methods' names for Qwen3-VL.",
        nested=False,
        merges=True,
        exact=False,
        quirks=(
            "norms of features replace attention (the methods themselves are visionzip, fastvid and holitom)",
            "HoliTom's rows get evenly spaced positions, whatever tokens they came from (spread=False)",
            "the first version pools attention in a wrong order and puts rows at wrong places (version='norm')",
        ),
    )


def keep_count(tokens: int, ratio: float) -> int:
    """max(1, int(N * ratio)) in float64."""
    return max(1, int(tokens * ratio))


def misplaced_scores(
    columns: Float[Array, "T P"], grid: tuple[int, int], frame_mask: Bool[Array, "T"]
) -> Float[Array, "T N"]:
    """Attention of patches in 0..1, pooled as if they came row by row; all ones where it hardly varies."""
    columns = columns.astype(jnp.float32)
    real = frame_mask[:, None]
    low = jnp.min(jnp.where(real, columns, jnp.inf))
    span = jnp.max(jnp.where(real, columns, -jnp.inf)) - low
    varies = span > 1e-8
    scaled = jnp.where(varies, (columns - low) / jnp.where(varies, span, 1.0), 1.0)
    height, width = grid
    return jnp.mean(scaled.reshape(-1, height, 2, width, 2), axis=(2, 4)).reshape(-1, height * width)
