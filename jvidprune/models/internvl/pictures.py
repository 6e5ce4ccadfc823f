"""InternVL's path of still pictures: tiles by the settings of the folder's image processor."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.checkpoint.processor import channels, resizes, square
from jvidprune.models.settings import PictureShape
from jvidprune.tokens import Layout
from jvidprune.video.preprocess import IMAGENET_MEAN, IMAGENET_STD
from jvidprune.video.tiles import Tiles, internvl_grid, internvl_tiles

_FEWEST, _MOST = 1, 12
_LARGEST = 1024
"""Of `max_patches`: as many shapes are looked at as its square."""


def pixels(config: Any, given: Mapping[str, Any]) -> Callable[[np.ndarray], Tiles]:
    """A still picture, (1, H, W, 3), to tiles.

    Pictures are cut whatever the folder's `crop_to_patches` says: the processor's own default goes before it.

    Args:
      config: of the model.
      given: the settings of the folder's image processor; the published ones where they say nothing.

    Raises:
      JvidpruneError: settings that make no sense, or another size than the tower's.
    """
    mean, std = channels(given, IMAGENET_MEAN, IMAGENET_STD)
    side, (fewest, most) = square(given, config.vision.image_size), _limits(given)

    def made(frames: np.ndarray) -> Tiles:
        return internvl_tiles(frames[0], side=side, fewest=fewest, most=most, mean=mean, std=std)

    return made


def shape(config: Any, height: int, width: int, given: Mapping[str, Any]) -> PictureShape:
    """What `pixels` makes of a picture of this size in pixels: a frame a tile."""
    fewest, most = _limits(given)
    rows, columns = internvl_grid(height, width, side=config.vision.image_size, fewest=fewest, most=most)
    tiles = rows * columns + (rows * columns > 1)
    return PictureShape((Layout(tiles, config.grid),), tiles)


def _limits(given: Mapping[str, Any]) -> tuple[int, int]:
    """Fewest and most tiles.

    Raises:
      JvidpruneError: no numbers in order, or pictures that are not resized.
    """
    if not resizes(given):
        raise JvidpruneError("the folder's image processor has do_resize false, but tiles of one size are read.")
    low, high = given.get("min_patches"), given.get("max_patches")
    low, high = _FEWEST if low is None else low, _MOST if high is None else high
    whole = all(isinstance(limit, int) and not isinstance(limit, bool) for limit in (low, high))
    if not whole or not 1 <= low <= high <= _LARGEST:
        raise JvidpruneError(
            f"the folder's image processor cuts pictures into {quoted(low)}..{quoted(high)} tiles; allowed: 1 to "
            f"{_LARGEST}, in order."
        )
    return low, high
