"""Batches of the second recipe's questions: clips of a pool or frames, each read in a way that is drawn."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from experiments.tiny import variety
from experiments.tiny.batches import KINDS, Prompts, QuestionRows, question_rows
from experiments.tiny.features import Pool
from experiments.tiny.regime_losses import AnswerBatch
from experiments.tiny.variety import Shown
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.paint import paint

PACKED = {1: 1, 2: 2, 4: 3, 8: 4}
"""Times as many clips of a pool where a half, a quarter or an eighth of the tokens are read: rows hold no padding."""

ASKED_HELD = 8
"""Questions of a held-out clip."""


class Asking(Protocol):
    """What of a stage decides its batches of questions, see `regime.RegimeStage`."""

    @property
    def clips(self) -> int: ...
    @property
    def asked(self) -> int: ...
    @property
    def placed(self) -> int: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    @property
    def shares(self) -> tuple[float, float, float, float]: ...


def answer_batch(
    task: Procedural, step: int, stage: Asking, prompts: Prompts, side: int, seed: int, pool: Pool | None
) -> AnswerBatch:
    """Clips with questions, all read in one number of rows that is drawn for the step, each in a way of its own.

    Args:
      task: clips, and the categories that are asked.
      step: of the run, counted from the stage's first clip.
      stage: for the numbers.
      prompts: encode questions.
      side: of a frame's grid of tokens.
      seed: of the draws.
      pool: its clips are drawn from and more of them are read where fewer tokens are; None paints the clips step *
        clips, ....
    """
    counts = variety.row_counts(task.frames, side)
    rng = np.random.default_rng([seed, step, 2])
    rows = counts[int(rng.choice(len(counts), p=stage.shares))]
    seen: list[Any] = []
    asked: list[QuestionRows] = []
    if pool is None:
        for index in range(step * stage.clips, (step + 1) * stage.clips):
            scene, _ = task.scene(index)
            seen.append(paint(scene)[0])
            asked.append(question_rows(rng, task, scene, prompts, stage.asked, stage.kinds, stage.placed))
    else:
        many = min(stage.clips * PACKED[counts[0] // rows], len(pool))
        for number in np.sort(rng.choice(len(pool), many, replace=False)).tolist():
            seen.append(pool.seen[number])
            asked.append(question_rows(rng, task, pool.scene(number), prompts, stage.asked, stage.kinds, stage.placed))
    shown = [variety.draw(rng, task.frames, side, rows) for _ in seen]
    return AnswerBatch(np.stack(seen), QuestionRows(*_columns(asked)), Shown(*_columns(shown)))


def _columns(rows: list[Any]) -> list[np.ndarray]:
    return [np.stack(column) for column in zip(*rows, strict=True)]


def held_batches(task: Procedural, clips: int, prompts: Prompts, side: int, size: int = 4) -> Iterator[AnswerBatch]:
    """The first clips of a task, all tokens read, with their questions.

    Args:
      task: clips.
      clips: number of them.
      prompts: encode questions.
      side: of a frame's grid of tokens.
      size: clips in a batch, of which the last ones are left out if they are fewer.
    """
    every = np.arange(task.frames * side * side + 1, dtype=np.int32)
    for start in range(0, clips - size + 1, size):
        seen, asked = [], []
        for index in range(start, start + size):
            scene, _ = task.scene(index)
            seen.append(paint(scene)[0])
            asked.append(question_rows(np.random.default_rng(index), task, scene, prompts, ASKED_HELD, KINDS))
        shown = Shown(np.stack([every[:-1]] * size), np.stack([every] * size))
        yield AnswerBatch(np.stack(seen), QuestionRows(*_columns(asked)), shown)
