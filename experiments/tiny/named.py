"""What becomes of the objects that a question names: a dense target of the words that name them, in a warm-up."""

import numpy as np
from jaxtyping import Float32, Int32

from jvidprune.procedural.drawing import DIRECTIONS, STILL
from jvidprune.procedural.world import COLOURS, SHAPES, Scene, Thing

MOST = 2
"""Objects of a question that are told; further ones are not."""
SPOTS = 6
"""Numbers that tell where and when an object is."""
WAYS = (*DIRECTIONS, STILL)
_WITHOUT = ("the", "a", "an")
"""Words before a shape that is named without its colour."""


def told_of(
    scene: Scene, words: list[str]
) -> tuple[Int32[np.ndarray, "MOST"], Float32[np.ndarray, "MOST SPOTS"], Int32[np.ndarray, "MOST"]]:
    """The slots of words that name main objects, and what becomes of these.

    Args:
      scene: what the clip shows.
      words: of the question, one a token.

    Returns:
      slots of the last word of each name, -1 for none; x and y in the first and in the last frame, in half sides off
      the middle, and the first frame and the one behind the last as parts of the clip, from -1 to 1; the number of the
      direction in `WAYS`.
    """
    slots, spots, ways = np.full(MOST, -1, np.int32), np.zeros((MOST, SPOTS), np.float32), np.zeros(MOST, np.int32)
    count = 0
    for slot, word in enumerate(words):
        thing = _meant(scene, word, words[slot - 1] if slot else "")
        if thing is None or count == MOST:
            continue
        half, frames = scene.knobs.side / 2, scene.knobs.frames
        ends = thing.centre[[thing.start, thing.stop - 1]].ravel() / half - 1
        times = 2 * np.array([thing.start, thing.stop]) / frames - 1
        slots[count], spots[count], ways[count] = slot, [*ends, *times], WAYS.index(thing.direction)
        count += 1
    return slots, spots, ways


def _meant(scene: Scene, word: str, before: str) -> Thing | None:
    """The only main object that "red circle", "red object" or "circle" can mean."""
    if word in SHAPES:
        fits = [thing for thing in scene.things if thing.shape == word and before in (thing.colour, *_WITHOUT)]
    elif word == "object" and before in COLOURS:
        fits = [thing for thing in scene.things if thing.colour == before and thing.role != "clutter"]
    else:
        return None
    if len(fits) != 1 or fits[0].role != "main" or fits[0].change is not None or fits[0].turn:
        return None
    return fits[0]
