"""Pixels and dense labels of a scene: sprites are drawn once per shape, size and half pixel, then only blended in."""

import functools
import itertools
import math
import threading

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int16, Int64, UInt8

from jvidprune.procedural.drawing import GREY, Backdrop, backdrop, stamp
from jvidprune.procedural.world import COLOUR_IDS, COLOURS, DIRECTION_IDS, SHAPE_IDS, Scene, Thing

_GREY_LEVEL = 128
# Pixels of a cell that an object has to cover to be its label, as a share of the cell.
COVER = 1 / 6


def paint(scene: Scene) -> tuple[UInt8[np.ndarray, "frames side side 3"], Int16[np.ndarray, "frames side side"]]:
    """Draws a scene.

    Returns:
      the frames, and for each pixel the number of the object in front (1 for the first of `scene.things`), 0 for
      background and clutter.
    """
    frames, side = scene.knobs.frames, scene.knobs.side
    canvas = _canvas((frames, side, side, 3))
    owner = np.zeros((frames, side, side), np.int16)
    _background(scene, canvas)
    for number, thing in enumerate(scene.things, 1):
        _blend(thing, canvas, owner, 0 if thing.role == "clutter" else number)
    for left, width in scene.posts:
        _post(canvas, owner, left, width)
    if scene.flash is not None:
        canvas[scene.flash] = 0.3 * canvas[scene.flash] + 0.7 * 255
    canvas += _noise(scene, frames * side * side).reshape(frames, side, side, 1)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8), owner


_own = threading.local()


def _canvas(shape: tuple[int, ...]) -> Float32[np.ndarray, "frames side side 3"]:
    """A thread's canvas, kept from clip to clip: fresh memory of this size costs as much as drawing on it."""
    if getattr(_own, "shape", None) != shape:
        _own.shape, _own.canvas = shape, np.empty(shape, np.float32)
    return _own.canvas


def dense_labels(
    scene: Scene, owner: Int16[np.ndarray, "frames side side"], grid: tuple[int, int]
) -> Int8[np.ndarray, "frames rows columns 3"]:
    """What each cell of a grid shows: ids of colour, shape and direction of the object that covers most of it.

    All three are 0 where no object covers `COVER` of the cell. Sides that the grid does not divide lose their last
    pixels.
    """
    frames, side = owner.shape[:2]
    rows, columns = grid
    high, wide = side // rows, side // columns
    owner = owner[:, : rows * high, : columns * wide]
    count = len(scene.things) + 1
    cell = _cells(frames, (rows, columns), (high, wide)) * count
    votes = np.bincount(np.add(cell, owner, dtype=np.intp).ravel(), minlength=frames * rows * columns * count)
    votes = votes.reshape(frames, rows, columns, count)
    votes[..., 0] = math.ceil(COVER * high * wide) - 1
    # Ids of every object in every frame; colours can change on the way.
    table = np.zeros((frames, count, 3), np.int8)
    for number, thing in enumerate(scene.things, 1):
        if thing.role != "clutter":
            table[:, number] = COLOUR_IDS[thing.colour], SHAPE_IDS[thing.shape], DIRECTION_IDS[thing.direction]
            if thing.change is not None and thing.after is not None:
                table[thing.change :, number, 0] = COLOUR_IDS[thing.after]
            if thing.turn is not None:
                table[:, number, 2] = [DIRECTION_IDS[thing.direction_at(frame)] for frame in range(frames)]
    return table[np.arange(frames)[:, None, None], votes.argmax(-1)]


@functools.lru_cache(maxsize=8)
def _cells(frames: int, grid: tuple[int, int], size: tuple[int, int]) -> Int64[np.ndarray, "frames height width"]:
    """Number of the cell of each pixel, counted through all frames."""
    rows, columns = (np.arange(cells * side) // side for cells, side in zip(grid, size, strict=True))
    return np.arange(frames)[:, None, None] * (grid[0] * grid[1]) + rows[:, None] * grid[1] + columns


def _size(radius: float) -> int:
    """Half of a sprite's side."""
    return math.ceil(1.2 * radius + 3)


@functools.lru_cache(maxsize=4096)
def _sprite(
    shape: str, halves: int, right: int, down: int
) -> tuple[Float32[np.ndarray, "size size 1"], Float32[np.ndarray, "size size 1"], Bool[np.ndarray, "size size"]]:
    """A shape of a radius and an offset in half pixels: what it leaves of the ground, adds to it, and covers."""
    radius = halves / 2
    reach = _size(radius)
    at = (reach + right / 2, reach + down / 2)
    layers = []
    for ground in (0.0, 255.0):
        layer = np.full((2 * reach, 2 * reach, 1), ground, np.float32)
        # Grey of a middle level never reaches the ends of the scale: what it adds is proportional to the colour.
        stamp(layer, shape, (_GREY_LEVEL,) * 1, at, radius, 0.0)  # pyright: ignore[reportArgumentType]
        layers.append(layer)
    keep = (layers[1] - layers[0]) / 255
    add = layers[0] / _GREY_LEVEL
    return keep, add, add[..., 0] > 0.4


def _blend(thing: Thing, canvas: np.ndarray, owner: np.ndarray, number: int) -> None:
    halves = max(2, round(2 * thing.radius))
    reach, side = _size(halves / 2), canvas.shape[1]
    spots = np.rint(2 * thing.centre).astype(np.int64)
    corners, offsets = (spots // 2 - reach).tolist(), (spots % 2).tolist()
    changes = [thing.start] if thing.change is None else [thing.start, thing.change]
    for begin, end in zip(changes, [*changes[1:], thing.stop], strict=True):
        name = thing.colour_at(begin)
        rgb = np.asarray((_GREY_LEVEL,) * 3 if name == GREY else COLOURS[name], np.float32)
        for group in _groups(spots[begin:end], begin):
            (x, y), (right, down) = corners[group.start], offsets[group.start]
            high, wide = slice(max(y, 0), min(y + 2 * reach, side)), slice(max(x, 0), min(x + 2 * reach, side))
            if high.start >= high.stop or wide.start >= wide.stop:
                continue
            inside = slice(high.start - y, high.stop - y), slice(wide.start - x, wide.stop - x)
            keep, add, solid = (layer[inside] for layer in _sprite(thing.shape, halves, right, down))
            region = canvas[group, high, wide]
            region *= keep
            region += add * rgb
            np.copyto(owner[group, high, wide], number, where=solid)


def _groups(way: Int64[np.ndarray, "frames 2"], begin: int) -> list[slice]:
    """Runs of frames in which nothing moves, from frame `begin` on: each is drawn at once."""
    edges = [0, *(np.flatnonzero((way[1:] != way[:-1]).any(1)) + 1).tolist(), len(way)]
    return [slice(begin + start, begin + stop) for start, stop in itertools.pairwise(edges)]


def _post(canvas: np.ndarray, owner: np.ndarray, left: int, width: int) -> None:
    shade = 96 - 40 * np.abs(np.linspace(-1, 1, width, dtype=np.float32))
    canvas[:, :, left : left + width] = shade[:, None]
    owner[:, :, left : left + width] = 0


def _background(scene: Scene, canvas: np.ndarray) -> None:
    frames, side = canvas.shape[:2]
    light = np.linspace(1.08, 0.92, side, dtype=np.float32)[:, None, None]
    # The pattern is larger than the image by what the camera moves at most.
    slack = int(np.abs(scene.camera).max())
    for shot, (begin, end) in enumerate(itertools.pairwise((0, *scene.cuts, frames))):
        pattern = np.float32(30 * scene.knobs.texture) * _pattern(*scene.backdrops[shot], side)
        ground = light * np.asarray(scene.skies[shot], np.float32)
        for group in _groups(scene.camera[begin:end], begin):
            right, down = scene.camera[group.start] + slack
            canvas[group] = ground + pattern[down : down + side, right : right + side, None]


@functools.lru_cache(maxsize=256)
def _pattern(name: Backdrop, number: int, side: int) -> Float32[np.ndarray, "size size"]:
    axis = np.arange(side + side // 2, dtype=np.float32)
    return np.array(backdrop(name, np.random.default_rng([9, number]), axis[None], axis[:, None], side), np.float32)


@functools.lru_cache(maxsize=1)
def _static() -> Float32[np.ndarray, "length"]:
    return np.random.default_rng(7).standard_normal(1 << 21, np.float32)


def _noise(scene: Scene, length: int) -> Float32[np.ndarray, "length"]:
    table = _static()
    if length > len(table):
        table = np.resize(table, length)
    begin = scene.noise % (len(table) - length + 1)
    # Half a grey level: what follows rounds down.
    return table[begin : begin + length] * np.float32(scene.knobs.noise) + np.float32(0.5)
