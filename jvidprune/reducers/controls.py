"""Controls: reducers any published method has to beat. Counts round half up and are at least one.

`Random` keeps tokens at random, `Uniform` every so many in raster order, `FrameDrop` whole frames evenly spaced,
`AttentionTopK` those with most attention of the tower's last block, and `NormTopK` those with the largest features.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("uniform"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jvidprune.fields import Seed
from jvidprune.ops import compact
from jvidprune.ops.select import rank_descending
from jvidprune.ops.similarity import squared_norms
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counts import CountedReducer, half_up
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens


class CountBudget(NamedTuple):
    """int32 scalar: how many of the first ranks stay, of the video or of each frame."""

    keep: Any


class TableBudget(NamedTuple):
    """int32 table of 0 and 1, what stays: (slots * N,) tokens or (slots,) frames, padding included."""

    keep: Any


class RankShared(NamedTuple):
    """(T, N) int32 rank of every token, over the video or inside its frame, and the frame mask."""

    rank: Int[Array, "T N"]
    frame_mask: Bool[Array, "T"]


def spread(total: int, count: int) -> np.ndarray:
    """`count` of `total` places, each in the middle of its stretch: floor((2 i + 1) * total / (2 * count))."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)


class RankedReducer(CountedReducer):
    """Keeps the first ranks, so that budgets are nested; subclasses have a field `scope` and say how tokens rank."""

    rounding = staticmethod(half_up)

    def decide(self, shared: RankShared, budget: CountBudget, *, capacity: int) -> Plan:
        """The first ranks, ascending by id."""
        keep = (shared.rank < budget.keep) & shared.frame_mask[:, None]
        return compact.selection_plan(keep.reshape(-1), capacity)

    def _ranks(self, scores: Array, mask: Array) -> RankShared:
        scores = jnp.where(mask[:, None], scores.astype(jnp.float32), -jnp.inf)
        shape = scores.shape if self.scope == "frame" else (1, -1)
        return RankShared(rank_descending(scores.reshape(shape)).reshape(scores.shape), mask)

    def budget(self, layout: Layout, ratio: float) -> CountBudget:
        """Kept ranks of the video, or of each frame."""
        return CountBudget(np.int32(self.keep_for(layout, ratio)))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly the kept tokens."""
        return self.keep_for(layout, ratio) * (1 if self.scope == "video" else layout.frames)


@dataclasses.dataclass(frozen=True)
class Random(RankedReducer):
    """Keeps tokens at random; the same seed keeps the tokens of a smaller budget in every larger one.

    Frame t draws from its own stream, so padding changes nothing.

    Attributes:
      seed: of the draw.
      scope: exact count over the `video`, or the same count in every `frame`.
    """

    seed: Seed = 0
    scope: Literal["video", "frame"] = "video"

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> RankShared:
        """Ranks of one uniform draw a token."""
        frames, n, _ = video.features.shape
        key = jax.random.key(self.seed)
        scores = jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(key, t), (n,)))(jnp.arange(frames))
        return self._ranks(scores, video.frame_mask)

    info: ClassVar[MethodInfo] = MethodInfo(
        "random", "Random", "-", "Keeps tokens at random.", nested=True, merges=False, exact=True
    )


@dataclasses.dataclass(frozen=True)
class AttentionTopK(RankedReducer):
    """Keeps the most attended tokens (`attention_last`); a `SinkRule` replaces the attention.

    Attributes:
      scope: ranks over the `video`, or the same count in every `frame`.
    """

    scope: Literal["video", "frame"] = "video"

    needs = frozenset({"attention_last"})

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> RankShared:
        """Ranks by attention, equal ones by id."""
        attention = video.evidence["attention_last"]
        if sink is not None:
            groups = jnp.zeros(attention.shape[0], jnp.int32)
            attention = sink.adjust(attention, groups, video.frame_mask).attention
        return self._ranks(attention, video.frame_mask)

    info: ClassVar[MethodInfo] = MethodInfo(
        "attention_topk", "Attention top-k", "-", "Keeps the most attended tokens.", True, False, True
    )


@dataclasses.dataclass(frozen=True)
class NormTopK(RankedReducer):
    """Keeps the tokens whose features have the largest norm, as the language model reads them.

    A tower that was trained on few things may say how much there is to see by the norm alone: a method that does not
    beat this control has not been shown to rank better than that.

    Attributes:
      scope: ranks over the `video`, or the same count in every `frame`.
    """

    scope: Literal["video", "frame"] = "video"

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> RankShared:
        """Ranks by the sum of squares in float32, equal ones by id."""
        return self._ranks(squared_norms(video.features), video.frame_mask)

    info: ClassVar[MethodInfo] = MethodInfo(
        "norm_topk", "Norm top-k", "-", "Keeps the tokens with the largest features.", True, False, True
    )


@dataclasses.dataclass(frozen=True)
class Uniform(PositionedReducer):
    """Keeps evenly spaced tokens of the video in raster order; blind to content, so its budget is the selection."""

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> Bool[Array, "T"]:
        """Nothing but the frame mask."""
        return video.frame_mask

    def decide(self, shared: Bool[Array, "T"], budget: TableBudget, *, capacity: int) -> Plan:
        """The table as a plan."""
        keep = jnp.asarray(budget.keep).reshape(shared.shape[0], -1) * shared[:, None]
        return compact.selection_plan(keep.reshape(-1), capacity)

    def budget(self, layout: Layout, ratio: float) -> TableBudget:
        """The kept tokens, spread over the real frames."""
        keep = np.zeros(layout.slots * layout.tokens, np.int32)
        keep[spread(layout.total, half_up(layout.total, check_ratio(ratio)))] = 1
        return TableBudget(keep)

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly the kept tokens."""
        return half_up(layout.total, check_ratio(ratio))

    info: ClassVar[MethodInfo] = MethodInfo(
        "uniform", "Uniform", "-", "Keeps evenly spaced tokens.", nested=False, merges=False, exact=True
    )


@dataclasses.dataclass(frozen=True)
class FrameDrop(PositionedReducer):
    """Keeps evenly spaced frames whole: round(T ratio), halves up, of them."""

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> Bool[Array, "T N"]:
        """The frame mask, once a token."""
        return jnp.broadcast_to(video.frame_mask[:, None], video.features.shape[:2])

    def decide(self, shared: Bool[Array, "T N"], budget: TableBudget, *, capacity: int) -> Plan:
        """All tokens of the kept frames."""
        keep = shared & (jnp.asarray(budget.keep)[:, None] > 0)
        return compact.selection_plan(keep.reshape(-1), capacity)

    def budget(self, layout: Layout, ratio: float) -> TableBudget:
        """The kept frames."""
        keep = np.zeros(layout.slots, np.int32)
        keep[spread(layout.frames, half_up(layout.frames, check_ratio(ratio)))] = 1
        return TableBudget(keep)

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Kept frames times tokens of a frame."""
        return half_up(layout.frames, check_ratio(ratio)) * layout.tokens

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        "frame_drop", "Frame drop", "-", "Keeps evenly spaced frames whole.", nested=False, merges=False, exact=True
    )
