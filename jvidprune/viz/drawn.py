"""Which frames of a clip stand for the token grids that are drawn on them."""

from typing import NamedTuple

from jaxtyping import UInt8
from numpy import ndarray

from jvidprune.errors import JvidpruneError
from jvidprune.llm.opening import shape_of
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.video.decode import Clip


class Drawn(NamedTuple):
    """One frame a token grid.

    Attributes:
      frames: (T, H, W, 3) uint8.
      labels: the time of each in seconds.
    """

    frames: UInt8[ndarray, "T H W 3"]
    labels: tuple[str, ...]


def check_drawn(llm: VideoLLM, clip: Clip) -> None:
    """Refuses what cannot be drawn, before it is encoded.

    Raises:
      JvidpruneError: a picture of several tiles or maps, which are no frames of it.
    """
    if clip.picture and shape_of(llm, clip).frames > 1:
        raise JvidpruneError(
            f"what is kept of a picture that {llm.loaded.family} cuts into tiles cannot be drawn; that of videos can."
        )


def drawn_frames(clip: Clip, steps: int) -> Drawn:
    """The frames that `steps` token grids are drawn on: a grid of Qwen stands for a pair, drawn on its first frame."""
    every = -(-len(clip.frames) // steps)
    return Drawn(clip.frames[::every], tuple(f"{time:.2f} s" for time in clip.timestamps[::every]))
