"""Which frames of a clip stand for the token grids that are drawn on them."""

from typing import NamedTuple

from jaxtyping import UInt8
from numpy import ndarray

from jvidprune.errors import JvidpruneError
from jvidprune.video.decode import Clip


class Drawn(NamedTuple):
    """One frame a token grid.

    Attributes:
      frames: (T, H, W, 3) uint8.
      labels: the time of each in seconds.
    """

    frames: UInt8[ndarray, "T H W 3"]
    labels: tuple[str, ...]


def drawn_frames(clip: Clip, steps: int) -> Drawn:
    """The frames that `steps` token grids are drawn on: a grid of Qwen stands for a pair, drawn on its first frame.

    Raises:
      JvidpruneError: a picture of several tiles, which are no frames of it.
    """
    if clip.picture and steps > 1:
        raise JvidpruneError(f"what is kept of a picture of {steps} tiles cannot be drawn; videos and others can.")
    every = -(-len(clip.frames) // steps)
    return Drawn(clip.frames[::every], tuple(f"{time:.2f} s" for time in clip.timestamps[::every]))
