"""EVS: keep the tokens that changed most since the previous frame (Efficient Video Sampling, arXiv 2510.14624).

1. d = 1 - cos(x_t, x_(t-1)) of every token with the one at the same place one frame before; 255 in the first frame.
2. K = max(N, int(T * N * (1 - q))) with q = 1 - ratio.
3. The K tokens of largest d in the whole video stay, unchanged, in order of position: the first frame always does.

Follows vLLM's `evs.py` (commit 094f117), which ranks projected embeddings by cosine; a published summary of the paper
scores pixel changes instead. Pure selection.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("evs"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.fields import NotNegative
from jvidprune.ops import compact
from jvidprune.ops.select import rank_descending
from jvidprune.ops.similarity import same_position_inner, squared_norms
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, levels_of, neighbours
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens

FIRST_FRAME = 255.0
"""Score of every token of the first frame: above any 1 - cosine, so that frame is always complete."""


class EVSBudget(NamedTuple):
    """int32 scalar: tokens kept of the whole video."""

    keep: Any


class EVSShared(NamedTuple):
    """(T, N) dissimilarity to the previous frame, and the rank of every token by it over the whole video."""

    dissimilarity: Float[Array, "T N"]
    rank: Int[Array, "M"]


@dataclasses.dataclass(frozen=True)
class EVS(PositionedReducer):
    """Ranks all tokens of the video by 1 - cosine to the same place one frame earlier and keeps the first K.

    The first frame is always complete; K = max(N, int(T * N * (1 - q))) with q = 1 - ratio in float64, so the count
    can be one below int(T * N * ratio): 1000 tokens at ratio 0.1 give 99. Ties keep the earlier frame. A ratio of at
    most 1 / T keeps the first frame alone. Frames that the previous frame equals up to rounding are ranked by that
    rounding; `floor` = 1e-6 makes them tie instead, so that the earliest frames win.

    Attributes:
      floor: dissimilarities below it count as 0; 0 is the reference.
      deepstack: rank by the features and the DeepStack levels side by side, as vLLM does for Qwen3-VL.
    """

    floor: NotNegative = 0.0
    deepstack: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """`features_deepstack` where those take part, else nothing."""
        return frozenset({"features_deepstack"} if self.deepstack else ())

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> EVSShared:
        """Dissimilarities and ranks; nothing here depends on the budget."""
        x = video.features
        inner, square = same_position_inner(x), squared_norms(x)
        if self.deepstack:
            levels = video.evidence["features_deepstack"].reshape(*x.shape[:2], -1)
            inner, square = inner + same_position_inner(levels), square + squared_norms(levels)
        norm = jnp.maximum(jnp.sqrt(square), 1e-8)
        change = 1.0 - inner / (norm[1:] * norm[:-1])
        if self.floor > 0:
            change = jnp.where(change < self.floor, 0.0, change)
        scores = jnp.concatenate([jnp.full((1, x.shape[1]), FIRST_FRAME), change])
        ranked = jnp.where(video.frame_mask[:, None], scores, -jnp.inf)
        return EVSShared(scores, rank_descending(ranked.reshape(-1)))

    def decide(self, shared: EVSShared, budget: EVSBudget, *, capacity: int) -> Plan:
        """The K best-ranked tokens, ascending by id."""
        diagnostics = {"dissimilarity": shared.dissimilarity, "rank": shared.rank}
        return compact.selection_plan(shared.rank < budget.keep, capacity, diagnostics)

    def budget(self, layout: Layout, ratio: float) -> EVSBudget:
        """The exact number of kept tokens."""
        return EVSBudget(np.int32(keep_count(layout.frames, layout.tokens, 1.0 - check_ratio(ratio))))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly K."""
        return int(self.budget(layout, ratio).keep)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Cosines with the frame before, of the DeepStack levels too where those take part."""
        return {"neighbour cosines": neighbours(layout, width) * (1 + levels_of(width) * self.deepstack)}

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "qwen2_5_vl": {},
        "qwen3_vl": {"deepstack": True},
        "qwen3_5": {},
    }

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="evs",
        title="EVS",
        paper="2510.14624",
        summary="Keeps the first frame and the tokens that differ most from the previous frame.",
        nested=True,
        merges=False,
        exact=True,
        quirks=(
            "the count goes through 1 - (1 - ratio) in float64 and can be one short (no option)",
            "a static video is ranked by rounding noise (floor=1e-6 makes it tie)",
        ),
    )


def keep_count(frames: int, tokens: int, pruned: float) -> int:
    """K for a pruned fraction q, in float64 as the server computes it."""
    return max(tokens, int(frames * tokens * (1 - pruned)))


def media_positions(
    ids: np.ndarray, grid: tuple[int, int], *, tokens_per_second: float, second_per_grid: float, truncate: bool = True
) -> np.ndarray:
    """(K, 3) time, row and column of kept tokens as Qwen2.5-VL counts them, the media at the origin.

    Args:
      ids: kept global ids frame * N + token.
      grid: (h, w) after merging.
      tokens_per_second: time scale of the model.
      second_per_grid: seconds of a temporal patch.
      truncate: cast `second_per_grid` to an integer first, as the server does: below 1 all frames share time 0.
    """
    h, w = grid
    frame, cell = np.asarray(ids) // (h * w), np.asarray(ids) % (h * w)
    seconds = int(second_per_grid) if truncate else second_per_grid
    time = np.trunc(frame * tokens_per_second * seconds).astype(np.int32)
    return np.stack([time, cell // w, cell % w], axis=1).astype(np.int32)


def prompt_positions(
    media: np.ndarray, *, prefix: int, suffix: int, width: int, full_end: int | None = None
) -> tuple[np.ndarray, int]:
    """(3, L) rotary positions of prefix text, vision start, kept tokens and suffix text, and the decoding delta.

    Args:
      media: (K, 3) from `media_positions`.
      prefix: text tokens before the vision start token.
      suffix: tokens after the video.
      width: columns of the grid; vLLM lets the text go on at vision start + 1 + width, which can overlap the video.
      full_end: largest media position of the UNPRUNED video; given, the text goes on behind it instead.

    Raises:
      JvidpruneError: a video without kept tokens.
    """
    if len(media) == 0:
        raise JvidpruneError("positions need at least one kept token, got none.")
    base = prefix + 1
    after = base + (width if full_end is None else full_end + 1)
    before = np.tile(np.arange(base), (3, 1))
    behind = np.tile(np.arange(after, after + suffix), (3, 1))
    positions = np.concatenate([before, base + media.T, behind], axis=1).astype(np.int32)
    return positions, int(positions.max() + 1 - positions.shape[1])
