"""DyCoke: drop what a frame repeats from its neighbours, and read less of the cache while decoding (arXiv 2411.15024).

1. TTM: the video is read in windows of four frames, whose first frame stays whole.
2. s is the cosine of a token with the one at the same place: frames 1 and 3 are compared with the frame before them,
   frame 2 with frame 0.
3. Each of these frames keeps the m = int((1 - K) * N) tokens of smallest s, K = 4 (1 - ratio) / 3.
4. DP, while decoding and from layer L on: the cache is read at the 1 - P most attended video tokens, a set that is
   renewed where attention has moved (`decode_layer`, `cuts.decoding.DecodePolicy`).

In spite of its name the first part (temporal token merging, TTM) drops tokens. Both follow `KD-TAO/DyCoke`.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("dycoke"), synthetic_tokens(grid=(6, 6)), 0.5).count.item()
163
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.rules import DynamicDecode
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Share
from jvidprune.ops import compact
from jvidprune.ops.select import rank_ascending, rank_of_order
from jvidprune.ops.similarity import frame_pair_inner, squared_norms
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import InnerStage, Kept, Layout, Plan, VideoTokens


class DyCokeBudget(NamedTuple):
    """int32 scalar: tokens kept of a pruned frame."""

    keep: Any


class DyCokeShared(NamedTuple):
    """Ratio-independent work.

    Attributes:
      similarity: (T, N) float32 cosine to the same place of the frame a frame is compared with, 1 where there is none.
      token: (T, N) int32 tokens of each frame in output order.
      rank: (T, N) int32 rank of those by similarity, the least similar first.
      complete, dropped: (T,) bool frames kept whole or left out altogether (padding is left out).
    """

    similarity: Float[Array, "T N"]
    token: Int[Array, "T N"]
    rank: Int[Array, "T N"]
    complete: Bool[Array, "T"]
    dropped: Bool[Array, "T"]


@dataclasses.dataclass(frozen=True)
class DyCoke(PositionedReducer):
    """In windows of four frames the first stays; the others keep the m tokens least similar to an earlier frame.

    Frames 1 and 3 of a window are compared with the frame before them, frame 2 with frame 0, token by token at the
    same place. m = int((1 - K) * N) in float64, K the share dropped from a pruned frame. A retention ratio is the
    nominal one, (1 + 3 (1 - K)) / 4, so it lies in [0.25, 1]; K is rounded to 12 decimals after inversion.

    Attributes:
      mode: `official` keeps three quirks of the code: the third frame of the last window of a multiple of 4 stays
        whole, the last of an odd number of frames is dropped, and inside a pruned frame tokens come by rising
        similarity. It needs 5 frames. `fixed` prunes every window, keeps an unpaired last frame whole, sorts by
        position and takes any number of frames.
      decode_layer: first layer that reads a reduced cache while decoding (DP; the paper's L = 3), None for no such
        stage.
      decode_dropped: P, the share of the cached video tokens that a reduced cache leaves out.
      decode_threshold: cosine of successive attentions below which the set is renewed.
      decode_mode: `official` reads the whole cache when attention has not moved; `paper` keeps the previous set then.
    """

    mode: Literal["official", "fixed"] = "official"
    decode_layer: Count | None = None
    decode_dropped: Share = 0.7
    decode_threshold: float = 0.9
    decode_mode: Literal["official", "paper"] = "official"

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> DyCokeShared:
        """Similarities, ranks and the role of every frame; nothing here depends on the budget."""
        frames, n, _ = video.features.shape
        similarity = _reference_similarity(video.features)
        real = jnp.sum(video.frame_mask, dtype=jnp.int32)
        complete, dropped = _roles(jnp.arange(frames, dtype=jnp.int32), real, self.mode)
        dropped = dropped | ~video.frame_mask
        token = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (frames, n))
        rank = rank_ascending(similarity)
        if self.mode == "official":
            token, rank = jnp.where(complete[:, None], token, rank_of_order(rank)), token
        return DyCokeShared(similarity, token, rank, complete, dropped)

    def decide(self, shared: DyCokeShared, budget: DyCokeBudget, *, capacity: int) -> Plan:
        """Whole frames and the first `keep` places of the pruned ones."""
        frames, n = shared.token.shape
        keep = (shared.complete[:, None] | (shared.rank < budget.keep)) & ~shared.dropped[:, None]
        ids = (shared.token + jnp.arange(frames, dtype=jnp.int32)[:, None] * n).reshape(-1)
        nothing = jnp.zeros((0, frames * n))
        diagnostics = {"similarity": shared.similarity, "complete": shared.complete, "dropped": shared.dropped}
        keep = keep.reshape(-1)
        return compact.slotted_plan(ids, keep, keep, nothing.astype(jnp.int32), nothing, capacity, diagnostics)

    def budget(self, layout: Layout, ratio: float) -> DyCokeBudget:
        """Tokens kept of a pruned frame for a nominal ratio.

        Raises:
          JvidpruneError: a ratio below 0.25, or fewer than 5 frames in official mode.
        """
        ratio = check_ratio(ratio)
        if ratio < 0.25:
            raise JvidpruneError(f"DyCoke keeps every fourth frame whole: its ratio is at least 0.25, got {ratio:g}.")
        return self.budget_of(layout, round(4.0 * (1.0 - ratio) / 3.0, 12))

    def budget_of(self, layout: Layout, pruned: float) -> DyCokeBudget:
        """The budget for K, the share dropped from a pruned frame.

        Raises:
          JvidpruneError: fewer than 5 frames, unless `mode` is "fixed".
        """
        if self.mode == "official" and layout.frames < 5:
            raise JvidpruneError(f"DyCoke's reference needs 5 frames, got {layout.frames}; mode='fixed' takes any.")
        return DyCokeBudget(np.int32(int((1 - pruned) * layout.tokens)))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """The exact number of tokens."""
        return self.count(layout, int(self.budget(layout, ratio).keep))

    def count(self, layout: Layout, keep: int) -> int:
        """Tokens of the whole video when pruned frames keep `keep`."""
        complete, dropped = (np.asarray(v) for v in _roles(np.arange(layout.frames), layout.frames, self.mode))
        return int(np.where(dropped, 0, np.where(complete, layout.tokens, keep)).sum())

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The decoding stage."""
        if self.decode_layer is None:
            return ()
        rule = DynamicDecode(self.decode_threshold, self.decode_mode)
        return (InnerStage(self.decode_layer, rule, Kept(1 - self.decode_dropped, "floor")),)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Cosines of the frames that are compared with their references, and the norms of all.

        Raises:
          JvidpruneError: a ratio that `budget` refuses.
        """
        self.budget(layout, ratio)
        compared = layout.frames // 2 + (layout.frames + 1) // 4
        return {"reference cosines": 2.0 * (layout.frames + compared) * layout.tokens * width}

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"llava_onevision": {}}

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dycoke",
        title="DyCoke",
        paper="2411.15024",
        summary="Keeps every fourth frame whole and the least repeated tokens of the frames between.",
        nested=True,
        merges=False,
        exact=True,
        quirks=(
            "odd videos lose their last frame, the last window keeps its third frame (mode='fixed' does neither)",
            "tokens of a pruned frame come in order of similarity (mode='fixed' sorts them)",
            "the ratio is nominal: 32 frames at 47.5 % keep 49.4 % (no option)",
        ),
    )


def _roles(frame: Any, frames: Any, mode: str) -> tuple[Any, Any]:
    """Which frames stay whole and which are dropped, for numpy or traced arrays of frame numbers."""
    alone = (frames % 2 == 1) & (frame == frames - 1)
    if mode == "fixed":
        return (frame % 4 == 0) | alone, frame < 0
    # The second pass starts windows at i = 0, 4, ... < T - 4, so the last one is left alone.
    whole = (frame % 4 == 0) | ((frame % 4 == 2) & (frame - 2 >= frames - 4))
    return whole & ~alone, alone


def _reference_similarity(x: Float[Array, "T N D"]) -> Float[Array, "T N"]:
    """Cosine of frames 1 and 3 of a window with the frame before, of frame 2 with frame 0, norms floored at 1e-8."""
    late = np.flatnonzero(np.arange(x.shape[0]) % 4).astype(np.int32)
    early = late - np.where(late % 4 == 2, 2, 1).astype(np.int32)
    norm = jnp.maximum(jnp.sqrt(squared_norms(x)), 1e-8)
    cosine = frame_pair_inner(x, early, late) / (norm[late] * norm[early])
    return jnp.ones(x.shape[:2], jnp.float32).at[late].set(cosine)
