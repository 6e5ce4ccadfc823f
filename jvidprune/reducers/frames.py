"""Controls on frames: the model sees smaller or fewer frames, at as many tokens as a method would keep.

They stand before the tower, so that the tower becomes cheaper too, and they take a video's original frames once.

1. The tokens (T, h, w) of the whole video and the ratio r give those of another one, on the host.
2. `Downscale`: T frames of h' x w' tokens, where h' w' <= k = max(1, round(r h w)) and both sides shrink by factors
   within 2 of each other (`grids.target_grid`); the frames are resized to h' and w' times the pixels of a token, with
   the filter of the family's own preprocessing, whose limits of pixels do not hold for them.
3. `FewerFrames`: max(1, round(r T)) frames of h x w tokens, each in the middle of its stretch of the sampled ones.

No paper proposes them; several published methods lose to smaller frames (VTC-Bench, arXiv 2510.07143). A `VideoLLM`
runs them, since tokens alone have no frames.

>>> from jvidprune import Layout, reducers
>>> reducers.get("downscale").seen(Layout(16, (14, 14)), 0.1)
Layout(frames=16, grid=(4, 5), unpooled_grid=None, padded_frames=None)
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.reducers.counts import half_even
from jvidprune.reducers.grids import target_grid
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, TokensFrom, check_ratio, title_of
from jvidprune.tokens import Layout, Plan, VideoTokens


class FramesBudget(NamedTuple):
    """int32 scalars: the frames that are encoded, and the tokens on their sides."""

    frames: Any
    height: Any
    width: Any


class _OtherFrames(PositionedReducer):
    """Makes tokens of other frames; subclasses say of which, in `seen`."""

    tokens_from: ClassVar[TokensFrom] = "frames"  # pyright: ignore[reportIncompatibleVariableOverride]

    def budget(self, layout: Layout, ratio: float) -> FramesBudget:
        """What is encoded at one ratio."""
        seen = self.seen(layout, ratio)
        return FramesBudget(np.int32(seen.frames), *map(np.int32, seen.grid))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly the tokens of what is encoded."""
        return self.seen(layout, ratio).total

    def plan(self, video: VideoTokens, budget: FramesBudget, *, capacity: int) -> Plan:
        """Nothing can be planned on tokens.

        Raises:
          JvidpruneError: always.
        """
        raise JvidpruneError(f"{title_of(self)} makes tokens of other frames: VideoLLM runs it, tokens have no plan.")


@dataclasses.dataclass(frozen=True)
class Downscale(_OtherFrames):
    """Encodes smaller frames, for towers that read frames of any size (Qwen2.5-VL, Qwen3-VL).

    Attributes:
      keep_aspect: h' = floor(sqrt(k h / w)) and w' = floor(k / h'), at least 1 and, which the formula alone does not
        say, no more than there are: the frame's own shape, in place of the largest grid within a factor of 2.
    """

    keep_aspect: bool = False

    def seen(self, layout: Layout, ratio: float) -> Layout:
        """As many frames of a smaller grid."""
        height, width = layout.grid
        k = half_even(layout.tokens, check_ratio(ratio))
        if not self.keep_aspect:
            return layout._replace(grid=target_grid(height, width, k))
        rows = min(height, max(1, math.isqrt(k * height // width)))
        return layout._replace(grid=(rows, min(width, max(1, k // rows))))

    def check_model(self, config: Any) -> None:
        """Refuses a tower that reads frames of one size.

        Raises:
          JvidpruneError: names the method that does nearly the same behind such a tower.
        """
        if getattr(config, "grid", None) is not None:
            raise JvidpruneError(one_size(config.family))

    info: ClassVar[MethodInfo] = MethodInfo(
        "downscale", "Smaller frames", "-", "Encodes smaller frames, resized from the originals.", False, False, True
    )


@dataclasses.dataclass(frozen=True)
class FewerFrames(_OtherFrames):
    """Encodes fewer frames, evenly spread over those that were sampled, at their own times."""

    def seen(self, layout: Layout, ratio: float) -> Layout:
        """A share of the frames."""
        return layout._replace(frames=half_even(layout.frames, check_ratio(ratio)), padded_frames=None)

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        "fewer_frames", "Fewer frames", "-", "Encodes fewer frames, evenly spread.", False, False, True
    )


def one_size(family: str) -> str:
    """The sentence about a family whose frames have one size."""
    return (
        f"downscale needs a tower that reads frames of any size, and {family} makes as many tokens of every size: "
        "pool_space keeps a smaller grid there."
    )
