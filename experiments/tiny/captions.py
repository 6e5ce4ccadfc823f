"""What a frame shows, in the benchmark's own words, for a tower that learns from language."""

from typing import Any, NamedTuple

import numpy as np

from experiments.tiny.batches import FrameBatch, frame_rows, joined
from jvidprune.models.tokenizer import Tokenizer
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.paint import paint
from jvidprune.procedural.templates import CORNERS
from jvidprune.procedural.world import Scene

LONGEST = 30
"""Most tokens of a caption, six objects; longer ones are cut off."""

SEEN_PIXELS = 12
"""Pixels of an object, of 84 x 84, from which on a caption names it."""

_BEFORE, _KIND = {"small": "small "}, {"glyph": "letter "}


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
    """The objects in view in reading order, each with the quarter of the image that its middle lies in."""
    side = owner.shape[1]
    least = SEEN_PIXELS * (side / 84) ** 2
    found = []
    for number, thing in enumerate(scene.things, 1):
        if thing.role != "clutter" and (owner[frame] == number).sum() >= least:
            x, y = thing.centre[frame]
            quarter = 2 * int(y > side / 2) + int(x > side / 2)
            name = f"{_BEFORE.get(thing.role, '')}{thing.colour_at(frame)} {_KIND.get(thing.role, '')}{thing.shape}"
            found.append((quarter, f"{name} {CORNERS[quarter]}"))
    return [text for _, text in sorted(found)]


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
    """A few frames of each of the clips step * clips, ... with captions.

    Args:
      task: clips.
      step: of the run.
      clips, frames: in a batch, and of each clip, drawn at random.
      sides: of the grids of patches and of tokens.
      tokenizer: of captions.
      dense: weight of the dense losses.
      seed: of the draws.
    """
    parts, texts = [], []
    for index in range(step * clips, (step + 1) * clips):
        scene, _ = task.scene(index)
        images, owner = paint(scene)
        picked = np.random.default_rng([seed, index]).permutation(len(images))[:frames]
        parts.append(frame_rows(scene, images, owner, picked, sides))
        texts += [", ".join(named(scene, owner, frame)) or "no" for frame in picked.tolist()]
    ids, length = np.zeros((len(texts), LONGEST), np.int32), np.zeros(len(texts), np.int32)
    for row, text in enumerate(texts):
        told = tokenizer.encode(text)[:LONGEST]
        ids[row, : len(told)], length[row] = told, len(told)
    same = np.array([[one == other for other in texts] for one in texts])
    return CaptionBatch(joined(parts), ids, length, same, np.float32(dense))
