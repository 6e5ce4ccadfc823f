"""What a frame shows, in the benchmark's own words, for a tower that learns from language."""

from typing import Any, NamedTuple

import numpy as np

from experiments.tiny.batches import FrameBatch, frame_batch
from jvidprune.models.tokenizer import Tokenizer
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.paint import paint
from jvidprune.procedural.world import Scene

LONGEST = 56
"""Most tokens of a caption: six objects."""

SEEN_PIXELS = 12
"""Pixels of an object, of 84 x 84, from which on a caption names it."""


class CaptionBatch(NamedTuple):
    """Frames with captions; F frames of S pixels.

    Attributes:
      frames: what frames show, with the targets of the warm-up's dense losses.
      ids: (F, L) int32 captions, zeros behind.
      length: (F,) int32 tokens in use.
      same: (F, F) bool, frames with the same objects in the same places: their captions are no mistakes.
      dense: () float32 weight of the dense losses at this step.
    """

    frames: FrameBatch
    ids: Any
    length: Any
    same: Any
    dense: Any


def named(scene: Scene, owner: np.ndarray, frame: int) -> list[str]:
    """The objects in view, sorted, each with the quarter of the image that its middle lies in."""
    side = owner.shape[1]
    least = SEEN_PIXELS * (side / 84) ** 2
    found = []
    for number, thing in enumerate(scene.things, 1):
        if thing.role != "clutter" and (owner[frame] == number).sum() >= least:
            x, y = thing.centre[frame]
            place = f"{'bottom' if y > side / 2 else 'top'} {'right' if x > side / 2 else 'left'}"
            found.append(f"{thing.colour_at(frame)} {thing.shape} {place}")
    return sorted(found)


def caption_batch(
    task: Procedural,
    step: int,
    clips: int,
    frames: int,
    sides: tuple[int, int],
    tokenizer: Tokenizer,
    *,
    dense: float,
    seed: int = 0,
) -> CaptionBatch:
    """A few frames of each of the clips step * clips, ... with captions whose objects stand in random order.

    Args:
      task: clips.
      step: of the run.
      clips, frames: in a batch, and of each clip.
      sides: of the grids of patches and of tokens.
      tokenizer: of captions.
      dense: weight of the dense losses.
      seed: of the draws.
    """
    batch = frame_batch(task, step, clips, frames, sides, seed)
    texts: list[list[str]] = []
    for index in range(step * clips, (step + 1) * clips):
        # The same draw as that of the frames.
        rng = np.random.default_rng([seed, index])
        scene, _ = task.scene(index)
        _, owner = paint(scene)
        texts += [named(scene, owner, int(frame)) for frame in rng.permutation(len(owner))[:frames]]
    rng = np.random.default_rng([seed, step, 1])
    ids, length = np.zeros((len(texts), LONGEST), np.int32), np.zeros(len(texts), np.int32)
    for row, objects in enumerate(texts):
        shuffled = [objects[i] for i in rng.permutation(len(objects)).tolist()]
        told = tokenizer.encode(", ".join(shuffled) if shuffled else "no")[:LONGEST]
        ids[row, : len(told)], length[row] = told, len(told)
    same = np.array([[one == other for other in texts] for one in texts])
    return CaptionBatch(batch, ids, length, same, np.float32(dense))
