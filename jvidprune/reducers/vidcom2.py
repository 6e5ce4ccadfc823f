"""VidCom2: more tokens for unusual frames, and in each frame the tokens least like video and frame (arXiv 2505.14454).

u is a token in the half of the channels that varies least over the video, made a unit vector.

1. Likeness to a centre c is the sum of exp(-|u - c|^2 / (2 alpha)) over alpha = 1/8, 1/4, 1/2, 1, 2.
2. Every token gets its likeness to the mean u of the video and to that of its frame.
3. Frames: p is the softmax over frames of minus the mean likeness to the video; frame t keeps
   k_t = round(N * min(ratio * (1 + p_t - mean p), 1)) tokens, at least one.
4. The k_t tokens of smallest total likeness stay, unchanged, in order of position.

Two implementations are reproduced: the authors' (`xuyang-liu16/VidCom2`, commit 944a17d) and the one in vLLM
(commit 0f17ee0), which adjusts the selection to an exact count. Pure selection, no attention, no text.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("vidcom2"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
73
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.fields import Temperature
from jvidprune.ops import compact
from jvidprune.ops.newline import NewlineRows
from jvidprune.ops.select import rank_ascending
from jvidprune.ops.similarity import over_frames
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, levels_of
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens

ALPHAS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
"""Widths of the Gaussian kernels that are summed."""


class VidCom2Budget(NamedTuple):
    """Integers of one ratio.

    `ratio_bits` holds the bits of the float32 ratio: the reference multiplies by it in float32 on the device, so this
    traces exactly what it uses. `target` is the exact count of the vLLM variant, -1 for the authors'.
    """

    ratio_bits: Any
    target: Any


class VidCom2Shared(NamedTuple):
    """Ratio-independent work: scores, frame shares, and the ranks of tokens by video + frame score.

    Attributes:
      video_score, frame_score: (T, N) float32 likeness to the centre of the video and of the frame, in 0..5.
      share: (T,) float32 softmax of the frames' unusualness, 0 on padding.
      rank: (T, N) int32 rank inside the frame, least alike first.
      global_rank: (M,) int32 the same over the video; a single 0 where the variant does not need it.
      channels: (C,) int32 channels of least variance, ascending.
      frame_mask: (T,) bool.
    """

    video_score: Float[Array, "T N"]
    frame_score: Float[Array, "T N"]
    share: Float[Array, "T"]
    rank: Int[Array, "T N"]
    global_rank: Int[Array, "M"]
    channels: Int[Array, "C"]
    frame_mask: Bool[Array, "T"]


@dataclasses.dataclass(frozen=True)
class VidCom2(PositionedReducer):
    """Scores tokens by Gaussian kernels around two centres, in the half of the channels that varies least.

    Frame t gets k_t = max(round(min(r * (1 + p_t - mean p), 1) * N), 1) tokens (half to even, float32), p the softmax
    of its unusualness at `temperature`; in it the k_t tokens of smallest score stay.

    Attributes:
      variant: `official` returns what the frame counts add up to, which the data decide: near r * T * N, less where
        frames are clamped at N, at least T. `vllm` drops the most alike kept tokens, or adds the least alike others,
        until min(max(T, int(T * N * (1 - q))), T * N) stay, q = 1 - ratio in float64.
      temperature: of the softmax over frames.
      deepstack: score the features and the DeepStack levels side by side, as vLLM does for Qwen3-VL.
      newline_rows: on LLaVA-Video, `after_frame` puts all row newlines of a frame behind its tokens; `all` and
        `nonempty` put them behind their rows.
    """

    variant: Literal["official", "vllm"] = "official"
    temperature: Temperature = 0.01
    deepstack: bool = False
    newline_rows: NewlineRows = "after_frame"

    @property
    def needs(self) -> frozenset[str]:
        """`features_deepstack` where those take part, else nothing."""
        return frozenset({"features_deepstack"} if self.deepstack else ())

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> VidCom2Shared:
        """Channels, scores, frame shares and ranks."""
        x = video.features.astype(jnp.float32)
        if self.deepstack:
            levels = video.evidence["features_deepstack"].astype(jnp.float32)
            x = jnp.concatenate([x, levels.reshape(*x.shape[:2], -1)], axis=-1)
        mask = video.frame_mask
        chosen, channels = _quiet_channels(x, mask, at_least=1 if self.variant == "vllm" else 0)
        to_video, to_frame = _centre_distances(x, chosen, mask)
        video_score, frame_score = _kernel(to_video), _kernel(to_frame)
        score = video_score + frame_score

        unusual = jnp.where(mask, -jnp.mean(video_score, axis=-1), -jnp.inf)
        heat = jnp.exp((unusual - jnp.max(unusual)) / self.temperature)
        share = heat / jnp.sum(heat)
        everywhere = jnp.where(mask[:, None], score, jnp.inf).reshape(-1)
        global_rank = rank_ascending(everywhere) if self.variant == "vllm" else jnp.zeros(1, jnp.int32)
        return VidCom2Shared(video_score, frame_score, share, rank_ascending(score), global_rank, channels, mask)

    def decide(self, shared: VidCom2Shared, budget: VidCom2Budget, *, capacity: int) -> Plan:
        """Frame counts, the selection, and for vLLM the exact count."""
        n = shared.rank.shape[1]
        ratio = lax.bitcast_convert_type(jnp.asarray(budget.ratio_bits, jnp.int32), jnp.float32)
        mean = jnp.sum(shared.share) / jnp.sum(shared.frame_mask, dtype=jnp.float32)
        scales = jnp.minimum(ratio * (1.0 + shared.share - mean), 1.0)
        counts = jnp.maximum(jnp.round(scales * n), 1.0).astype(jnp.int32)
        counts = jnp.where(shared.frame_mask, jnp.minimum(counts, n), 0)
        keep = (shared.rank < counts[:, None]).reshape(-1)
        if self.variant == "vllm":
            keep = _first_of(keep, shared.global_rank, budget.target)
        diagnostics = {
            "video_score": shared.video_score,
            "frame_score": shared.frame_score,
            "share": shared.share,
            "scales": jnp.where(shared.frame_mask, scales, 0.0),
            "frame_budgets": counts,
            "channels": shared.channels,
        }
        return compact.selection_plan(keep, capacity, diagnostics)

    def budget(self, layout: Layout, ratio: float) -> VidCom2Budget:
        """Float32 bits of the ratio, and the exact target of the vLLM variant."""
        return self.budget_of(layout, check_ratio(ratio), 1.0 - check_ratio(ratio))

    def budget_of(self, layout: Layout, ratio: float, pruned: float) -> VidCom2Budget:
        """The budget from the parameter each variant takes: a kept ratio (official) or a pruned fraction (vLLM)."""
        exact = self.variant == "vllm"
        bits = np.float32(1 - pruned if exact else ratio).view(np.int32)
        target = min(max(layout.frames, int(layout.total * (1 - pruned))), layout.total) if exact else -1
        return VidCom2Budget(np.int32(bits), np.int32(target))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """K for vLLM; else the sum of scale_t * N is at most r * T * N, and rounding adds at most 1/2 or 1 a frame."""
        budget = self.budget(layout, ratio)
        if self.variant == "vllm":
            return int(budget.target)
        least = ratio * (1 - 1 / layout.frames) * layout.tokens
        slack = layout.frames * (0.5 if least >= 0.51 else 1.0)
        return min(layout.total, int(ratio * layout.total * (1 + 1e-5) + slack) + 1)

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rows that get a newline."""
        return super().prompt._replace(newline_rows=self.newline_rows)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Passes over the features, and over the DeepStack levels where those take part.

        Of each number: 4 for variances, 3 for norms, 2 for centres, 2 to scale, 3 for each of two distances.
        """
        wide = width * (1 + levels_of(width) * self.deepstack)
        return {"passes over the features": 17.0 * layout.total * wide}

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {},
        "llava_video": {},
        "qwen2_5_vl": {},
        "qwen3_vl": {},
    }

    info: ClassVar[MethodInfo] = MethodInfo(
        name="vidcom2",
        title="VidCom2",
        paper="2505.14454",
        summary="Gives unusual frames more tokens and keeps the tokens least like their frame and the video.",
        nested=False,
        merges=False,
        exact=False,
        quirks=(
            "the count depends on the data (variant='vllm' makes it exact)",
            "one token a frame stays at any ratio (no option)",
            "on LLaVA-Video all row newlines of a frame follow its tokens (newline_rows='all' puts them behind rows)",
        ),
    )


def _quiet_channels(
    x: Float[Array, "T N D"], mask: Bool[Array, "T"], at_least: int
) -> tuple[Float[Array, "D"], Int[Array, "C"]]:
    """Half of the channels, those of least population variance over all real tokens, as a 0/1 vector and as indices."""
    d = x.shape[-1]
    weight = mask.astype(jnp.float32)
    tokens = jnp.sum(weight) * x.shape[1]
    mean = jnp.sum(jnp.sum(x, axis=1) * weight[:, None], axis=0) / tokens
    spread = jnp.sum(jnp.square(x - mean), axis=1)
    variance = jnp.sum(spread * weight[:, None], axis=0) / tokens
    count = max(at_least, d // 2)
    rank = rank_ascending(variance)
    channels = jnp.sort(jnp.where(rank < count, jnp.arange(d, dtype=jnp.int32), d))[:count]
    return (rank < count).astype(jnp.float32), channels


def _centre_distances(
    x: Float[Array, "T N D"], chosen: Float[Array, "D"], mask: Bool[Array, "T"]
) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """Squared distances of the unit tokens to the mean unit token of the video and of their frame.

    The unit vectors are never stored: two passes read the features, frame by frame on CPU, and scale on the fly.
    """
    weight = mask.astype(jnp.float32)

    def centre(frame: Array) -> tuple[Array, Array]:
        norm = jnp.sqrt(jnp.sum(jnp.square(frame) * chosen, axis=-1))
        scale = (1.0 / jnp.maximum(norm, 1e-12))[:, None]
        return scale, jnp.sum(frame * scale, axis=0) * chosen / x.shape[1]

    scale, frame_centre = over_frames(centre, x)
    video_centre = jnp.sum(frame_centre * weight[:, None], axis=0) / jnp.sum(weight)

    def distances(frame: Array, scale: Array, own: Array) -> tuple[Array, Array]:
        unit = frame * scale * chosen
        return jnp.sum(jnp.square(unit - video_centre), axis=-1), jnp.sum(jnp.square(unit - own), axis=-1)

    return over_frames(distances, x, scale, frame_centre)


def _kernel(squared: Float[Array, "T N"]) -> Float[Array, "T N"]:
    return sum((jnp.exp(-squared / (2.0 * alpha)) for alpha in ALPHAS), jnp.zeros_like(squared))


def _first_of(keep: Bool[Array, "M"], rank: Int[Array, "M"], target: Int[Array, ""]) -> Bool[Array, "M"]:
    """The first `target` tokens in the order (kept first, then by rank), which adds or drops as needed."""
    in_order = jnp.zeros_like(keep).at[rank].set(keep)
    total = jnp.sum(keep, dtype=jnp.int32)
    place = jnp.where(in_order, jnp.cumsum(in_order) - 1, total + jnp.cumsum(~in_order) - 1)
    return (place < target)[rank]
