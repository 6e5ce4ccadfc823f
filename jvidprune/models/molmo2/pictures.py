"""Molmo2's path of still pictures: the whole as one crop and overlapping crops, pooled over their common grid."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.checkpoint.processor import BILINEAR, channels, resizes, square
from jvidprune.models.molmo2.config import Molmo2Config
from jvidprune.models.molmo2.connector import window_means
from jvidprune.models.molmo2.windows import grid_windows
from jvidprune.models.settings import PictureMap, PictureShape
from jvidprune.tokens import Layout, VideoTokens
from jvidprune.video.preprocess import normalise
from jvidprune.video.resize import check_frames, resize_planes
from jvidprune.video.tiles import Tiles

_STEP = 256
"""Windows that are pooled are filled up to a multiple of it."""


class Crops(NamedTuple):
    """How a picture is cut.

    Attributes:
      tiles: rows and columns of crops.
      margins: patches at the left and right (top and bottom) of a crop that its neighbours show too.
      pool: rows and columns of a window in patches.
      side: patches on a side of a crop.
    """

    tiles: tuple[int, int]
    margins: tuple[int, int]
    pool: tuple[int, int]
    side: int

    @property
    def count(self) -> int:
        """Crops, that of the whole included."""
        return 1 + self.tiles[0] * self.tiles[1]

    @property
    def step(self) -> int:
        """Patches from one crop to the next."""
        return self.side - sum(self.margins)

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of patches of all crops together."""
        rows, columns = (count * self.step + sum(self.margins) for count in self.tiles)
        return rows, columns

    @property
    def grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(h, w) tokens of the whole and of the crops."""
        (down, across), (rows, columns) = self.pool, self.patches
        return (-(-self.side // down), -(-self.side // across)), (-(-rows // down), -(-columns // across))

    def windows(self) -> Int32[np.ndarray, "N P"]:
        """Patches of every window, those of the whole first, numbered through all crops."""
        side, (left, right) = self.side, self.margins
        number = np.arange(side * side, dtype=np.int32).reshape(side, side)
        # Of what two crops show, each shows its own half: the margins fall away but at the picture's edges.
        rows, columns = self.tiles

        def own(place: int, count: int) -> slice:
            return slice(left * (place > 0), side - right * (place < count - 1))

        def crop(row: int, column: int) -> np.ndarray:
            patches = number + side * side * (1 + row * columns + column)
            return patches[own(row, rows), own(column, columns)]

        whole = np.block([[crop(row, column) for column in range(columns)] for row in range(rows)])
        return np.concatenate([grid_windows(grid, self.pool) for grid in (number, whole)])


def pixels(config: Molmo2Config, given: Mapping[str, Any]) -> Callable[[np.ndarray], Tiles]:
    """A still picture, (1, H, W, 3), to crops.

    Args:
      config: of the model.
      given: the settings of the folder's image processor; the published ones where they say nothing.

    Raises:
      JvidpruneError: settings that make no sense, or another size than the tower's.
    """
    mean, std = channels(given)
    side, patch = square(given, config.vision.image_size), config.vision.patch_size
    if not resizes(given, BILINEAR):
        raise JvidpruneError("the folder's image processor has do_resize false, but crops of one size are read.")
    _limits(config, given)

    def made(frames: np.ndarray) -> Tiles:
        check_frames(frames)
        height, width = frames[0].shape[:2]
        plan = _plan(config, height, width, given)
        rows, columns = plan.patches
        canvas = resize_planes(frames[0], (rows * patch, columns * patch), filter="bilinear")
        crops = [resize_planes(frames[0], (side, side), filter="bilinear")]
        for row, column in itertools.product(range(plan.tiles[0]), range(plan.tiles[1])):
            top, left = row * plan.step * patch, column * plan.step * patch
            crops.append(canvas[:, top : top + side, left : left + side])
        return Tiles.of(normalise(np.stack(crops), mean, std), plan)

    return made


def shape(config: Molmo2Config, height: int, width: int, given: Mapping[str, Any]) -> PictureShape:
    """What `pixels` and `maps` make of a picture of this size in pixels: the whole, then the map of its crops."""
    plan = _plan(config, height, width, given)
    return PictureShape(tuple(Layout(1, grid) for grid in plan.grids), plan.count)


def maps(model: Any, tokens: VideoTokens, tiles: Tiles) -> tuple[PictureMap, ...]:
    """The whole picture and the map of its crops, each window a token.

    Evidence is the mean over the patches of a window, as of videos; `frame_embedding` the mean token of a map.

    Args:
      model: with its connector.
      tokens: patches of the crops, with evidence of each.
      tiles: from `pixels`.
    """
    plan: Crops = tiles.plan
    windows = plan.windows()
    filling = np.full((-len(windows) % _STEP, windows.shape[1]), -1, np.int32)
    arrays = _pooled(model, tokens, jnp.asarray(np.concatenate([windows, filling])))
    found, at = [], 0
    for rows, columns in plan.grids:
        own = {name: value[:, at : at + rows * columns] for name, value in arrays.items()}
        at += rows * columns
        features = own.pop("features")
        if "frame_embedding" in tokens.evidence:
            own["frame_embedding"] = features.mean(axis=1, dtype=jnp.float32)
        found.append(PictureMap(VideoTokens(features, own, jnp.ones(1, bool), (rows, columns))))
    return tuple(found)


@jax.jit
def _pooled(model: Any, tokens: VideoTokens, windows: Int32[Array, "N P"]) -> dict[str, Array]:
    """Features and evidence of windows over the patches of all crops."""
    arrays = {name: value for name, value in tokens.evidence.items() if name != "frame_embedding"}
    flat = {name: value.reshape(1, -1, *value.shape[2:]) for name, value in arrays.items()}
    found = {name: window_means(value, windows) for name, value in flat.items()}
    joined = tokens.features.reshape(1, -1, tokens.features.shape[-1])
    return found | {"features": model.connector(joined, windows)}


def _plan(config: Molmo2Config, height: int, width: int, given: Mapping[str, Any]) -> Crops:
    most, margins, pool = _limits(config, given)
    side, patch = config.vision.side, config.vision.patch_size
    step, shared = side - sum(margins), sum(margins) * patch
    return Crops(select_tiles(height - shared, width - shared, step * patch, most), margins, pool, side)


@functools.lru_cache
def select_tiles(height: int, width: int, step: int, most: int) -> tuple[int, int]:
    """Rows and columns of crops: those that need the least growing, or where all shrink, the least shrinking.

    In float32, as in the reference, whose sizes without their margins may also be 0 or below.

    Args:
      height, width: of the picture without the margins of its outer crops, in pixels.
      step: from one crop to the next in pixels.
      most: crops.
    """
    known = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    known.sort(key=lambda pair: (pair[0] * pair[1], pair[0]))
    with np.errstate(divide="ignore"):
        scales = (np.asarray(known, np.float32) * np.float32(step)) / np.asarray([height, width], np.float32)
    needed = scales.min(axis=1)
    if (needed < 1).all():
        return known[int(needed.argmax())]
    return known[int(np.where(needed < 1, np.float32(10e9), needed).argmin())]


def _limits(config: Molmo2Config, given: Mapping[str, Any]) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Most crops, margins and windows.

    Raises:
      JvidpruneError: values that make no sense, or patches that are not the model's.
    """
    most: Any = given.get("max_crops") or 8
    margins: Any = given.get("overlap_margins") or (4, 4)
    pool: Any = given.get("pooling_size") or (2, 2)
    pairs = [tuple(one) if isinstance(one, list | tuple) else () for one in (margins, pool)]
    numbers = [most, *pairs[0], *pairs[1]]
    whole = all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= 1024 for one in numbers)
    if not whole or len(numbers) != 5 or min(most, *pairs[1]) < 1 or sum(pairs[0]) >= config.vision.side:
        raise JvidpruneError(
            f"the folder's image processor cuts pictures into {quoted(most)} crops with margins {quoted(margins)} and "
            f"windows {quoted(pool)}, which the {config.vision.side} patches of a crop's side do not allow."
        )
    if (patch := given.get("patch_size", config.vision.patch_size)) != config.vision.patch_size:
        raise JvidpruneError(
            f"the folder's image processor has patch_size {quoted(patch)}, but the model was built for "
            f"{config.vision.patch_size}."
        )
    return most, (pairs[0][0], pairs[0][1]), (pairs[1][0], pairs[1][1])
