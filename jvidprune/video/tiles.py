"""Still pictures cut into tiles of one size: how many there are, and what of each is read."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from jvidprune.errors import JvidpruneError
from jvidprune.video.preprocess import Channels, normalise
from jvidprune.video.resize import Filter, check_frames, resize_planes

SLOTS = (1, 3, 5, 7, 10, 13, 19, 25, 37)
"""Numbers of tiles that towers are compiled for: a picture takes the next one, beyond the last in steps of 12."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tiles:
    """A picture as a tower of one size reads it.

    Attributes:
      values: (slots, 3, S, S) float32 normalised tiles, zeros behind the picture's own.
      count: tiles of the picture.
      plan: how its maps are made of the tiles, hashable; None where the tiles are all there is.
    """

    values: Float32[np.ndarray, "slots 3 S S"]
    count: int
    plan: Any = None

    @classmethod
    def of(cls, values: Float32[np.ndarray, "count 3 S S"], plan: Any = None) -> "Tiles":
        """The tiles of a picture, filled up to a number that towers are compiled for."""
        filling = np.zeros((slots_of(len(values)) - len(values), *values.shape[1:]), values.dtype)
        return cls(np.concatenate([values, filling]), len(values), plan)

    @property
    def mask(self) -> Bool[np.ndarray, "slots"]:
        """False on tiles that fill up."""
        return np.arange(len(self.values)) < self.count


def slots_of(count: int) -> int:
    """The number of tiles that a picture of `count` tiles is filled up to."""
    return next((size for size in SLOTS if size >= count), 1 + 12 * -(-(count - 1) // 12))


@functools.lru_cache
def internvl_grid(height: int, width: int, *, side: int, fewest: int, most: int) -> tuple[int, int]:
    """Rows and columns of InternVL's tiles: those whose shape comes next to the picture's.

    Among equally near ones, in the order of their number, a later one goes before an earlier one only while its tiles
    have less than twice the area of the picture.

    Args:
      height, width: of the picture in pixels.
      side: of a tile in pixels.
      fewest, most: tiles, without the small picture of the whole.
    """
    known = [(rows, columns) for columns in range(1, most + 1) for rows in range(1, most + 1)]
    allowed = sorted((one for one in known if fewest <= one[0] * one[1] <= most), key=lambda one: one[0] * one[1])
    shape, area = width / height, width * height
    best, least = (1, 1), np.inf
    for rows, columns in allowed:
        away = abs(shape - columns / rows)
        if away < least or (away == least and area > 0.5 * side**2 * rows * columns):
            best, least = (rows, columns), away
    return best


def cut(planes: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(C, rows * S, columns * S) to (rows * columns, C, S, S), row by row."""
    (rows, columns), (channels, height, width) = grid, planes.shape
    parts = planes.reshape(channels, rows, height // rows, columns, width // columns)
    return parts.transpose(1, 3, 0, 2, 4).reshape(rows * columns, channels, height // rows, width // columns)


def internvl_tiles(
    picture: UInt8[np.ndarray, "height width 3"],
    *,
    side: int,
    fewest: int,
    most: int,
    mean: Channels,
    std: Channels,
) -> Tiles:
    """What InternVL reads of a still picture: tiles row by row, and behind several of them the whole as one tile.

    Args:
      picture: uint8 RGB.
      side: of a tile in pixels.
      fewest, most: tiles, see `internvl_grid`.
      mean, std: per channel, in units of the full range.

    Raises:
      JvidpruneError: no uint8 (height, width, 3).
    """
    check_frames(picture[None])
    rows, columns = grid = internvl_grid(*picture.shape[:2], side=side, fewest=fewest, most=most)
    tiles = cut(resize_planes(picture, (rows * side, columns * side)), grid)
    if rows * columns > 1:
        tiles = np.concatenate([tiles, resize_planes(picture, (side, side))[None]])
    return Tiles.of(normalise(tiles, mean, std))


class Anyres(NamedTuple):
    """How LLaVA cuts a picture, and what of the tokens of its tiles becomes a map.

    Attributes:
      tiles: rows and columns of tiles.
      resized: height and width in pixels of the picture in the middle of these.
      rows, columns: (start, stop) tokens of all tiles side by side that show the picture.
      grid: (h, w) of the map that these are resized to.
    """

    tiles: tuple[int, int]
    resized: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    grid: tuple[int, int]

    @property
    def count(self) -> int:
        """Tiles, the small picture of the whole included."""
        return 1 + self.tiles[0] * self.tiles[1]


@functools.lru_cache
def anyres(
    height: int, width: int, *, side: int, tokens: int, sizes: tuple[tuple[int, int], ...], largest: int
) -> Anyres:
    """The plan of a picture: of the sizes the one that shows most of its pixels, of these the one with the least room.

    Args:
      height, width: of the picture in pixels.
      side: of a tile in pixels.
      tokens: on a side of a tile.
      sizes: heights and widths in pixels that pictures are resized into, multiples of `side`.
      largest: tiles whose tokens a map has at most, nearly: larger ones are resized.

    Raises:
      JvidpruneError: a picture so narrow that no token would show it.
    """
    best, shown, room = sizes[0], 0, math.inf
    for tall, wide in sizes:
        scale = min(wide / width, tall / height)
        seen = min(int(width * scale) * int(height * scale), width * height)
        if seen > shown or (seen == shown and tall * wide - seen < room):
            best, shown, room = (tall, wide), seen, tall * wide - seen
    down, across = best[0] / height, best[1] / width
    if across < down:
        resized = min(math.ceil(height * across), best[0]), best[1]
    else:
        resized = best[0], min(math.ceil(width * down), best[1])
    tiles = best[0] // side, best[1] // side
    rows, columns = (0, tiles[0] * tokens), (0, tiles[1] * tokens)
    if width / height > columns[1] / rows[1]:
        away = (rows[1] - int(round(height * (columns[1] / width), 7))) // 2
        rows = away, rows[1] - away
    else:
        away = (columns[1] - int(round(width * (rows[1] / height), 7))) // 2
        columns = away, columns[1] - away
    grid = rows[1] - rows[0], columns[1] - columns[0]
    over = math.sqrt(grid[0] * grid[1] / (largest * tokens**2))
    if over > 1.1:
        grid = int(grid[0] // over), int(grid[1] // over)
    if min(grid) < 1:
        raise JvidpruneError(
            f"a picture of {height} x {width} pixels is too narrow: no token of its tiles would show it."
        )
    return Anyres(tiles, resized, rows, columns, grid)


def anyres_tiles(
    picture: UInt8[np.ndarray, "height width 3"],
    plan: Anyres,
    *,
    side: int,
    mean: Channels,
    std: Channels,
    filter: Filter,
) -> Tiles:
    """What LLaVA reads of a still picture: the whole squashed to one tile, then tiles row by row.

    Args:
      picture: uint8 RGB; it is resized as it is, and black fills the tiles around it.
      plan: from `anyres`, of a picture of this size.
      side: of a tile in pixels.
      mean, std: per channel, in units of the full range.
      filter: see `resize.resize_frames`.

    Raises:
      JvidpruneError: no uint8 (height, width, 3).
    """
    check_frames(picture[None])
    (rows, columns), (tall, wide) = plan.tiles, plan.resized
    canvas = np.zeros((3, rows * side, columns * side), np.uint8)
    top, left = (rows * side - tall) // 2, (columns * side - wide) // 2
    canvas[:, top : top + tall, left : left + wide] = resize_planes(picture, plan.resized, filter=filter)
    whole = resize_planes(picture, (side, side), filter=filter)
    return Tiles.of(normalise(np.concatenate([whole[None], cut(canvas, plan.tiles)]), mean, std), plan)
