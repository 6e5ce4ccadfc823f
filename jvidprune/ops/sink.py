"""Sink scores and the four adjustments that SToP makes to a reducer (arXiv 2604.20937).

A reducer that can be adjusted takes `sink: SinkRule | None` in its `prepare` and uses whichever of the four fields it
has a place for; without a rule nothing changes.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.segment import per_segment_sum
from jvidprune.ops.select import rank_descending


class SinkAdjust(NamedTuple):
    """What a rule says of one video.

    Attributes:
      attention: (T, N) float32, replaces the attention wherever the base ranks or weighs tokens by it.
      temporal_bonus: (T, N) float32, added to the similarity of frame t and t + 1 at the same place in threshold
        tests, never in a segmentation objective.
      anchor_penalty: (T, N) float32, subtracted from the density-peak scores of cluster centres.
      blocked: (T, N) bool, places that uniform target slots avoid.
    """

    attention: Float[Array, "T N"]
    temporal_bonus: Float[Array, "T N"]
    anchor_penalty: Float[Array, "T N"]
    blocked: Bool[Array, "T N"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SinkRule:
    """Strengths of the sink terms; all but the block count may be traced.

    Attributes:
      mu_s: weight of the score in the attention, in the units of attention maps whose unpooled rows sum to 1.
      mu_t: weight in temporal similarity tests.
      gamma: exponent of the mean attention.
      kappa: weight in cluster-centre scores.
      static_threshold: replaces the base's similarity threshold of the static test where not None (the reference
        hard-codes 0.8 in HoliTom).
      blocked: number of places of highest score that uniform target slots avoid; static.
      of_mean: mu_s is in units of the mean of what is ranked, over all tokens of real frames, so that one value is
        equally strong on maps of any number of tokens and any normalisation; static.
    """

    mu_s: float
    mu_t: float = 0.0
    gamma: float = 1.1
    kappa: float = 0.0
    static_threshold: float | None = None
    blocked: int = dataclasses.field(default=0, metadata={"static": True})
    of_mean: bool = dataclasses.field(default=False, metadata={"static": True})

    def adjust(
        self, attention: Float[Array, "T N"], groups: Int[Array, "T"], frame_mask: Bool[Array, "T"]
    ) -> SinkAdjust:
        """The four fields for one video; `groups` are the ids over whose frames the score is averaged."""
        attention = attention.astype(jnp.float32)
        score = sink_scores(attention, groups, frame_mask, self.gamma)
        return SinkAdjust(
            attention - self.strength(attention, frame_mask[:, None]) * score,
            self.mu_t * score,
            self.kappa * score,
            rank_descending(score) < self.blocked,
        )

    def strength(self, ranked: Float[Array, "T N"], there: Bool[Array, "T #N"]) -> Float[Array, ""] | float:
        """mu_s in the units of what is ranked."""
        if not self.of_mean:
            return self.mu_s
        there = jnp.broadcast_to(there, ranked.shape)
        return self.mu_s * jnp.sum(jnp.where(there, ranked, 0.0)) / jnp.maximum(jnp.sum(there), 1)


def sink_scores(
    attention: Float[Array, "T N"], groups: Int[Array, "T"], frame_mask: Bool[Array, "T"], gamma: float | Array = 1.1
) -> Float[Array, "T N"]:
    """Min-max normalised power of the mean attention of each place over the frames of a group.

    Args:
      attention: (T, N) non-negative.
      groups: (T,) int32 group of each frame, in 0..T-1: zeros for the whole video, or segment ids.
      frame_mask: (T,) bool; padding frames do not count.
      gamma: exponent.

    Returns:
      (T, N) float32 in [0, 1], equal for all frames of a group. Constant maps score 0 (the reference divides rounding
      dust by 1e-12 there).
    """
    weight = frame_mask.astype(jnp.float32)
    total = per_segment_sum(attention.astype(jnp.float32) * weight[:, None], groups)
    frames = per_segment_sum(weight, groups)
    power = jnp.maximum(total / jnp.maximum(frames, 1.0)[:, None], 0.0) ** gamma
    low, high = power.min(-1, keepdims=True), power.max(-1, keepdims=True)
    flat = (high - low) <= 1e-6 * high
    return jnp.where(flat, 0.0, (power - low) / (high - low + 1e-12))[groups]
