"""Which tokens of a generated clip show which object: masks of a scene on any grid of tokens."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int16, Int64

from jvidprune.procedural.paint import COVER
from jvidprune.procedural.world import Scene, Thing


@dataclasses.dataclass(frozen=True)
class Masks:
    """Objects of a clip on its grid of tokens.

    Attributes:
      things: the objects, clutter left out.
      cover: (objects, S) float32 share of each token's pixels that an object covers, S = steps * rows * columns.
      shown: (objects, S) bool, the tokens that show an object: those of which it covers `paint.COVER`, and in every
        step in which it is in view the one of which it covers most.
      owner: (S,) int64 number of the object that covers most of a token that shows any, else -1.
      grid: (rows, columns).
      steps: of tokens in time, each of one or several frames.
    """

    things: tuple[Thing, ...]
    cover: Float32[np.ndarray, "things S"]
    shown: Bool[np.ndarray, "things S"]
    owner: Int64[np.ndarray, "S"]
    grid: tuple[int, int]
    steps: int

    def of(self, role: str | None = None) -> Bool[np.ndarray, "S"]:
        """Tokens that show an object, or one of a role ("tiny", "needle")."""
        some = [role in (None, thing.role) for thing in self.things]
        return np.asarray(self.shown[some].any(0))

    def worth(self) -> Float32[np.ndarray, "S"]:
        """How much of an object's whole appearance in the clip a token holds at most: what stands in few counts more.

        The cover of a token over that of all tokens together, of the object that has most of itself there.
        """
        whole = self.cover.sum(1, keepdims=True)
        shares = np.divide(self.cover, whole, out=np.zeros_like(self.cover), where=whole > 0)
        return shares.max(0, initial=0.0)


def masks(scene: Scene, owner: Int16[np.ndarray, "frames side side"], grid: tuple[int, int], steps: int) -> Masks:
    """Masks on a grid of tokens.

    Args:
      scene: of the clip.
      owner: number of the object in front of every pixel, from `paint`.
      grid: (rows, columns) of tokens, 1 to as many as there are pixels; a pixel belongs to the token that its upper
        left corner lies in.
      steps: how many times the tokens stand at; the frames are divided evenly among them.
    """
    frames, side = owner.shape[:2]
    (rows, columns), count = grid, len(scene.things) + 1
    step = np.arange(frames) * steps // frames
    y, x = (np.arange(side) * cells // side for cells in grid)
    cell = (step[:, None, None] * rows + y[:, None]) * columns + x
    total = steps * rows * columns
    votes = np.bincount((cell * count + owner).ravel(), minlength=total * count).reshape(total, count)
    pixels = np.maximum(votes.sum(1), 1)
    numbers = [number for number, thing in enumerate(scene.things, 1) if thing.role != "clutter"]
    cover = (votes[:, numbers] / pixels[:, None]).T.astype(np.float32)
    by_step = cover.reshape(len(numbers), steps, rows * columns)
    most = by_step.max(2, keepdims=True)
    shown = ((by_step >= COVER) | ((by_step == most) & (most > 0))).reshape(len(numbers), total)
    if not numbers:
        return Masks((), cover, shown, np.full(total, -1, np.int64), grid, steps)
    seen = np.where(shown, cover, 0.0)
    owned = np.where(seen.max(0) > 0, seen.argmax(0), -1)
    return Masks(tuple(scene.things[number - 1] for number in numbers), cover, shown, owned, grid, steps)
