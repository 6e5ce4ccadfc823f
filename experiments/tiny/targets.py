"""What every visual token could know: dense targets from the ground truth of a generated clip."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int8, Int16

from jvidprune.procedural.paint import COVER
from jvidprune.procedural.world import COLOUR_IDS, COLOURS, DIRECTION_IDS, SHAPE_IDS, SHAPES, Scene

IGNORE = -1
"""Class of a cell that a target says nothing about."""

SEEN: dict[str, int] = {"colour": len(COLOURS) + 1, "shape": len(SHAPES) + 1, "role": 3}
"""What one frame shows in a cell, and the number of classes; 0 is background, roles are main (1), tiny or small (2)."""

STORY: dict[str, int] = {
    "direction": len(DIRECTION_IDS) + 1,
    "frame": 16,
    "start": 16,
    "first_colour": len(COLOURS) + 1,
    "colour_before": len(COLOURS) + 1,
    "shape_before": len(SHAPES) + 1,
    "start_before": 16,
    "alike_shape": 6,
    "alike_colour": 6,
}
"""What only earlier frames tell, and the number of classes.

direction and first_colour of the object in the cell; the frame itself; the frame in which the object came (start);
colour, shape and start of what the cell showed one frame before; how many objects of the frame share the shape or the
colour of the one in the cell. Cells without an object are `IGNORE` where a target is about one, and so is the first
frame of what needs an earlier one.
"""


class Targets(NamedTuple):
    """Dense targets of a clip on a grid of N cells.

    Attributes:
      seen: (T, N, 3) classes of `SEEN`.
      offset: (T, N, 2) float32 from the middle of the cell to that of its object, in cells; NaN without object.
      story: (T, N, 9) classes of `STORY`, `IGNORE` where nothing is asked.
    """

    seen: Int8[np.ndarray, "T N 3"]
    offset: Float32[np.ndarray, "T N 2"]
    story: Int8[np.ndarray, "T N 9"]


def owners(scene: Scene, owner: Int16[np.ndarray, "T S S"], cells: int) -> Int16[np.ndarray, "T N"]:
    """Number of the object that covers most of each of cells x cells, 0 where none covers its share of `COVER`."""
    frames, side = owner.shape[:2]
    width, count = side // cells, len(scene.things) + 1
    owner = owner[:, : cells * width, : cells * width]
    cell = np.arange(cells * width) // width
    cell = np.arange(frames)[:, None, None] * cells**2 + cell[:, None] * cells + cell
    votes = np.bincount((cell * count + owner).ravel(), minlength=frames * cells**2 * count)
    votes = votes.reshape(frames, cells**2, count).astype(np.float32)
    votes[..., 0] = COVER * width * width
    return votes.argmax(-1).astype(np.int16)


def clip_targets(scene: Scene, owner: Int16[np.ndarray, "T S S"], cells: int) -> Targets:
    """Targets of a clip.

    Args:
      scene: the ground truth.
      owner: number of the object in each pixel, from `paint`.
      cells: rows and columns of the grid.
    """
    shown = owners(scene, owner, cells)
    frames, times = len(shown), np.arange(len(shown))
    table = np.full((len(scene.things) + 1, frames, 9), IGNORE, np.int64)
    table[0, :, :3] = 0
    centre = np.full((len(scene.things) + 1, frames, 2), np.nan, np.float32)
    for number, thing in enumerate(scene.things, 1):
        if thing.role == "clutter":
            table[number, :, :3] = 0
            continue
        colours = [COLOUR_IDS[thing.colour_at(t)] for t in range(frames)]
        role = 2 if thing.role in ("tiny", "small") else 1
        ways = [DIRECTION_IDS[thing.direction_at(t)] for t in range(frames)]
        moved = np.where(times > thing.start, ways, IGNORE)
        # Letters are no shape of `SEEN`.
        shape = SHAPE_IDS[thing.shape] if thing.shape in SHAPES else IGNORE
        rows = [colours, shape, role, moved, thing.start, COLOUR_IDS[thing.colour]]
        for column, row in enumerate(rows):
            table[number, :, column] = row
        centre[number] = thing.centre
    # Who shares shape or colour with whom, among what a frame shows.
    for t in range(1, frames):
        here = [n for n in np.unique(shown[t]) if n and table[n, t, 2] > 0]
        for column, kind in ((6, 1), (7, 0)):
            for number in here:
                table[number, t, column] = sum(table[other, t, kind] == table[number, t, kind] for other in here)
    found = table[shown, times[:, None]]
    story = np.full((*shown.shape, 9), IGNORE, np.int64)
    story[..., 0] = found[..., 3]
    story[..., 1] = times[:, None]
    story[..., 2:4] = found[..., 4:6]
    story[1:, :, 4:6] = found[:-1, :, :2]
    story[1:, :, 6] = found[:-1, :, 4]
    story[..., 7:9] = found[..., 6:8]
    size = owner.shape[1] // cells
    grid = (np.arange(cells) + 0.5) * size
    middle = np.stack([np.tile(grid, cells), np.repeat(grid, cells)], -1)
    offset = (centre[shown, times[:, None]] - middle) / size
    return Targets(found[..., :3].astype(np.int8), offset.astype(np.float32), story.astype(np.int8))
