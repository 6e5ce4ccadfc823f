"""V-CAST: frames where the mean feature changes direction get more tokens, outliers stay (arXiv 2603.27650).

g_t is the mean token of frame t, made a unit vector.

1. Curvature c_t = 1 - cos(g_t - g_(t-1), g_(t+1) - g_t), in 0..2; 1 for the first and the last frame.
2. Weights p = softmax(c / 0.7) over the frames.
3. K = round(ratio * T * N) tokens: one for every frame, the rest in proportion to p, rounded down; what is left over
   goes to the frames of largest fraction.
4. Token score: 1 - cos(x, g_t) plus the norm of x between the smallest and the largest of its frame.
5. The k_t best of every frame stay, unchanged, in order of position.

Text-free, no attention. Follows `xinyouu/V-CAST` (commit c235ef3), which runs on Qwen3-VL; DeepStack levels follow.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("vcast"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.fields import Index, Temperature
from jvidprune.ops import compact
from jvidprune.ops.loops import bounded_while
from jvidprune.ops.select import order_descending, rank_descending, rank_of_order
from jvidprune.ops.similarity import over_frames, squared_norms
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens

EPS = 1e-6
"""Floor of every norm, and what the range of norms is widened by."""


class VCASTBudget(NamedTuple):
    """int32 scalars: tokens of the video, and the least of every frame."""

    total: Any
    least: Any


class VCASTShared(NamedTuple):
    """Ratio-independent work.

    Attributes:
      curvature: (T,) float32 c.
      weight: (T,) float32 p, 0 on padding.
      outlier: (T, N) float32 1 - cos to the frame's mean.
      score: (T, N) float32.
      rank: (T, N) int32 rank inside the frame by falling score.
      frame_mask: (T,) bool.
    """

    curvature: Float[Array, "T"]
    weight: Float[Array, "T"]
    outlier: Float[Array, "T N"]
    score: Float[Array, "T N"]
    rank: Int[Array, "T N"]
    frame_mask: Bool[Array, "T"]


@dataclasses.dataclass(frozen=True)
class VCAST(PositionedReducer):
    """Shares an exact budget among frames by curvature and keeps the outliers of every frame.

    K = round(ratio * T * N) in float64, halves to even, at least `least` a frame. A video of one frame passes unpruned,
    as in the released code. Still frames have no direction and count as bent by 1, like both ends.

    Attributes:
      temperature: of the softmax over frames.
      least: tokens that every frame keeps.
      leftover: what rounding down leaves goes to the frame of largest fraction, all of it until the frame is full, and
        then to the next (`first`, the released loop), or in turn to one frame after the other (`spread`, the usual
        largest remainders). Ties go to the earliest frame.
    """

    temperature: Temperature = 0.7
    least: Index = 1
    leftover: Literal["first", "spread"] = "first"

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> VCASTShared:
        """Curvature, weights, scores and ranks; a sink rule has no place here."""
        real = video.frame_mask
        mean = over_frames(lambda frame: jnp.mean(frame.astype(jnp.float32), axis=0), video.features)
        still = jnp.all(mean[1:] == mean[:-1], axis=-1)
        mean = mean / jnp.maximum(jnp.sqrt(squared_norms(mean)), EPS)[:, None]
        curvature = _curvature(mean, still, real)
        weight = jnp.where(real, jnp.exp((curvature - jnp.max(curvature)) / self.temperature), 0.0)
        weight = weight / jnp.sum(weight)
        # The released code divides by the sum once more, which can change the last bit.
        weight = weight / jnp.sum(weight)

        def scores(frame: Array, centre: Array) -> tuple[Array, Array]:
            frame = frame.astype(jnp.float32)
            norm = jnp.sqrt(squared_norms(frame))
            length = jnp.maximum(jnp.sqrt(squared_norms(centre)), EPS)
            outlier = 1.0 - jnp.sum(frame * centre, axis=-1) / (jnp.maximum(norm, EPS) * length)
            low = jnp.min(norm)
            return outlier, outlier + (norm - low) / (jnp.max(norm) - low + EPS)

        outlier, score = over_frames(scores, video.features, mean)
        return VCASTShared(curvature, weight, outlier, score, rank_descending(score), real)

    def decide(self, shared: VCASTShared, budget: VCASTBudget, *, capacity: int) -> Plan:
        """Frame budgets and the best-ranked tokens of every frame."""
        n = shared.rank.shape[1]
        counts, raw = _shares(shared.weight, shared.frame_mask, n, budget, self.leftover)
        diagnostics = {
            "curvature": shared.curvature,
            "weights": shared.weight,
            "outlier": shared.outlier,
            "score": shared.score,
            "budgets": counts,
            "raw": raw,
        }
        return compact.selection_plan((shared.rank < counts[:, None]).reshape(-1), capacity, diagnostics)

    def budget(self, layout: Layout, ratio: float) -> VCASTBudget:
        """K, and the least of every frame."""
        ratio = check_ratio(ratio)
        least = min(self.least, layout.tokens)
        total = max(round(layout.total * ratio), 1, layout.frames * least)
        return VCASTBudget(np.int32(layout.total if layout.frames == 1 else total), np.int32(least))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly K: shares are bounded by N, their sum by T * N, and all that is left over finds room."""
        return int(self.budget(layout, ratio).total)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Passes over the features: of each number 1 for means, 2 for norms, 2 for the cosine with the mean."""
        return {"passes over the features": 5.0 * layout.total * width}

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"qwen3_vl": {}}

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="vcast",
        title="V-CAST",
        paper="2603.27650",
        summary="Gives more tokens to frames where the mean feature changes direction; keeps outliers of each frame.",
        nested=False,
        merges=False,
        exact=True,
        quirks=(
            "tokens left over by rounding go to one frame, mostly the first (leftover='spread' distributes them)",
            "a video of one frame is not pruned (no option)",
        ),
    )


def _curvature(mean: Float[Array, "T D"], still: Bool[Array, "T-1"], real: Bool[Array, "T"]) -> Float[Array, "T"]:
    """1 - cosine of the steps before and behind each frame; 1 at both ends and where nothing moves."""
    frames = mean.shape[0]
    # A compiler may fuse the scaling of `mean` with the difference and round once: equal frames would seem to move.
    step = jnp.where(still[:, None], 0.0, mean[1:] - mean[:-1])
    norm = jnp.maximum(jnp.sqrt(squared_norms(step)), EPS)
    bend = 1.0 - jnp.sum(step[1:] * step[:-1], axis=-1) / (norm[1:] * norm[:-1])
    ends = jnp.ones(min(frames, 1)), jnp.ones(min(frames - 1, 1))
    curvature = jnp.concatenate([ends[0], bend, ends[1]])
    inside = real & jnp.append(real[1:], False)
    return jnp.where(inside, curvature, 1.0)


def _shares(
    weight: Float[Array, "T"], real: Bool[Array, "T"], tokens: int, budget: VCASTBudget, leftover: str
) -> tuple[Int[Array, "T"], Float[Array, "T"]]:
    """Tokens of every frame, which add up to the budget, and the unrounded shares of what the least leaves."""
    least = jnp.where(real, budget.least, 0)
    free = budget.total - jnp.sum(least)
    raw = weight * jnp.asarray(free, jnp.float32)
    counts = least + jnp.minimum(jnp.floor(raw).astype(jnp.int32), jnp.where(real, tokens, 0) - least)

    def rooms(counts: Array) -> tuple[Array, Array, Array]:
        """What is left over, the frames by falling fraction, and their rooms in that order."""
        room = jnp.where(real, tokens, 0) - counts
        order = order_descending(jnp.where(room > 0, raw - jnp.floor(raw), -1.0))
        return budget.total - jnp.sum(counts), order, room[order]

    def hand_out(counts: Array) -> Array:
        left, order, room = rooms(counts)
        if leftover == "first":
            given = jnp.clip(left - (jnp.cumsum(room) - room), 0, room)
        else:
            given = ((jnp.arange(room.shape[0]) < left) & (room > 0)).astype(jnp.int32)
        return counts + given[rank_of_order(order)]

    if leftover == "first":
        return hand_out(counts), raw
    # One round is enough unless full frames have handed their shares back; each gives one to every frame with room.
    return bounded_while(lambda counts: jnp.sum(counts) < budget.total, hand_out, counts, rounds=tokens), raw
