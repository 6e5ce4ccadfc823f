"""Pixels and dense labels of a scene: sprites are drawn once per shape, size and half pixel, then only blended in."""

import functools
import math

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int16, UInt8

from jvidprune.bench.world import COLOUR_IDS, COLOURS, DIRECTION_IDS, GREY, SHAPE_IDS, Scene, Thing
from jvidprune.video.drawing import Backdrop, backdrop, stamp

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
    pad = _size(max((thing.radius for thing in scene.things), default=0.0))
    wide = side + 2 * pad
    canvas = np.empty((frames, wide, wide, 3), np.float32)
    owner = np.zeros((frames, wide, wide), np.int16)
    _background(scene, canvas, pad)
    for number, thing in enumerate(scene.things, 1):
        _blend(thing, canvas, owner, pad, 0 if thing.role == "clutter" else number)
    for left, width in scene.posts:
        _post(canvas, owner, left + pad, width)
    canvas, owner = canvas[:, pad:-pad, pad:-pad], owner[:, pad:-pad, pad:-pad]
    if scene.flash is not None:
        canvas[scene.flash] = 0.3 * canvas[scene.flash] + 0.7 * 255
    canvas = canvas + _noise(scene, frames * side * side).reshape(frames, side, side, 1)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8), owner


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
    cell = np.arange(rows * high)[:, None] // high * columns + np.arange(columns * wide) // wide
    cell = (np.arange(frames)[:, None, None] * (rows * columns) + cell) * count
    votes = np.bincount((cell + owner).ravel(), minlength=frames * rows * columns * count)
    votes = votes.reshape(frames, rows, columns, count)
    votes[..., 0] = math.ceil(COVER * high * wide) - 1
    # Ids of every object in every frame; colours can change on the way.
    table = np.zeros((frames, count, 3), np.int8)
    for number, thing in enumerate(scene.things, 1):
        if thing.role != "clutter":
            table[:, number] = COLOUR_IDS[thing.colour], SHAPE_IDS[thing.shape], DIRECTION_IDS[thing.direction]
            if thing.change is not None and thing.after is not None:
                table[thing.change :, number, 0] = COLOUR_IDS[thing.after]
    return table[np.arange(frames)[:, None, None], votes.argmax(-1)]


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


def _blend(thing: Thing, canvas: np.ndarray, owner: np.ndarray, pad: int, number: int) -> None:
    halves = max(2, round(2 * thing.radius))
    reach = _size(halves / 2)
    spots = np.rint(2 * (thing.centre + pad)).astype(np.int64)
    corners, offsets = (spots // 2 - reach).tolist(), (spots % 2).tolist()
    first, last = thing.start, thing.stop
    changes = [first] if thing.change is None else [first, thing.change]
    for begin, end in zip(changes, [*changes[1:], last], strict=True):
        name = thing.colour_at(begin)
        rgb = np.asarray((_GREY_LEVEL,) * 3 if name == GREY else COLOURS[name], np.float32)
        same = thing.direction == "still" and not np.any(spots[begin:end] != spots[begin])
        # An object that stays where it is goes into all its frames at once.
        groups = [slice(begin, end)] if same else [slice(frame, frame + 1) for frame in range(begin, end)]
        for group in groups:
            (x, y), (right, down) = corners[group.start], offsets[group.start]
            if min(x, y) < 0 or max(x, y) + 2 * reach > canvas.shape[1]:
                continue
            keep, add, solid = _sprite(thing.shape, halves, right, down)
            region = canvas[group, y : y + 2 * reach, x : x + 2 * reach]
            region *= keep
            region += add * rgb
            owner[group, y : y + 2 * reach, x : x + 2 * reach][:, solid] = number


def _post(canvas: np.ndarray, owner: np.ndarray, left: int, width: int) -> None:
    shade = 96 - 40 * np.abs(np.linspace(-1, 1, width, dtype=np.float32))
    canvas[:, :, left : left + width] = shade[:, None]
    owner[:, :, left : left + width] = 0


def _background(scene: Scene, canvas: np.ndarray, pad: int) -> None:
    frames, wide = canvas.shape[:2]
    edges = (0, *scene.cuts, frames)
    light = np.linspace(1.08, 0.92, wide, dtype=np.float32)[:, None, None]
    for shot, (sky, (name, number)) in enumerate(zip(scene.skies, scene.backdrops, strict=True)):
        begin, end = edges[shot], edges[shot + 1]
        pattern = _pattern(name, number, wide + 2 * pad, scene.knobs.side)
        ground = light * np.asarray(sky, np.float32)
        moves = scene.camera[begin:end]
        still = not np.any(moves != moves[0])
        for group in [slice(begin, end)] if still else [slice(frame, frame + 1) for frame in range(begin, end)]:
            right, down = np.clip(scene.camera[group.start] + pad, 0, 2 * pad)
            view = pattern[down : down + wide, right : right + wide, None]
            canvas[group] = ground + np.float32(30 * scene.knobs.texture) * view


@functools.lru_cache(maxsize=256)
def _pattern(name: Backdrop, number: int, size: int, side: int) -> Float32[np.ndarray, "size size"]:
    axis = np.arange(size, dtype=np.float32)
    return np.array(backdrop(name, np.random.default_rng([9, number]), axis[None], axis[:, None], side), np.float32)


@functools.lru_cache(maxsize=1)
def _static() -> Float32[np.ndarray, "length"]:
    return np.random.default_rng(7).standard_normal(1 << 21, np.float32)


def _noise(scene: Scene, length: int) -> Float32[np.ndarray, "length"]:
    table = _static()
    begin = scene.noise % len(table)
    piece = table[begin : begin + length]
    if len(piece) < length:
        piece = np.resize(np.concatenate([piece, table]), length)
    # Half a grey level: what follows rounds down.
    return piece * np.float32(scene.knobs.noise) + np.float32(0.5)
