"""Which clips a run learns from and which it is measured on: the procedural benchmark, or a local copy of another."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError
from jvidprune.evals.items import Item, LeftOut, Question, Task, left_out
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.training.examples import Encoder
from jvidprune.training.rows import Shape
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.wish import FrameWish

LOOKED_AT = 16
"""Clips whose questions decide how long rows are."""


class Part:
    """Some items of a task.

    Args:
      task: the whole.
      numbers: of the items.
    """

    def __init__(self, task: Task, numbers: Sequence[int]):
        self._task, self._numbers = task, numbers

    @property
    def name(self) -> str:
        """That of the task."""
        return self._task.name

    @property
    def categories(self) -> tuple[str, ...]:
        """Those of the task."""
        return self._task.categories

    def chance(self, question: Question) -> float:
        """As the task has it."""
        return self._task.chance(question)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Item:
        return self._task[self._numbers[index]]

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What cannot be asked of the task."""
        return left_out(self._task)

    def fingerprint(self) -> dict[str, Any]:
        """That of the task; which items there are changes with its files, and a run goes on with those that are."""
        return self._task.fingerprint()


def open_clips(
    llm: VideoLLM,
    task: str,
    data: Path | None,
    *,
    frames: int,
    held_frames: int,
    questions: int,
    held: int,
    clips: int | None = None,
    limits: Limits = DEFAULT,
    strict: bool = False,
) -> tuple[Task, Task]:
    """Clips to learn from and clips to measure on, which share none.

    The procedural benchmark has splits; of another one every clip but the last `held` is learned from.

    Args:
      llm: whose tower says how large procedural clips are.
      task: "procedural" or a name of `evals.datasets.names()`.
      data: folder with annotations and videos.
      frames: of a clip to learn from.
      held_frames: of a clip to measure on.
      questions: most questions about a procedural clip.
      held: clips to measure on.
      clips: to learn from at most; by default all there are.
      limits: what is accepted of a benchmark's videos.
      strict: refuse the first video or annotation of a benchmark that cannot be used.

    Raises:
      JvidpruneError: an unknown task, files that are not there, or too few clips.
    """
    if held < 1 or (clips is not None and clips < 1) or questions < 1:
        raise JvidpruneError(
            "a run needs at least one clip to learn from, one to measure on, and a question about each."
        )
    if task == "procedural":
        if data is not None:
            raise JvidpruneError("the procedural benchmark reads no files: leave out --data or name a --task.")
        side = max(56, getattr(llm.loaded.config.vision, "image_size", 56))
        learned = Procedural("train", clips=clips or 1 << 30, frames=frames, side=side, questions=questions)
        return learned, dataclasses.replace(learned, split="validation", clips=held, frames=held_frames)
    from jvidprune.evals.datasets import open_dataset

    # Rows have one size: shorter videos show frames several times.
    wishes = (FrameWish(count, rule=llm.settings.rule, repeat=True) for count in (frames, held_frames))
    learned, measured = (open_dataset(task, data, wish=wish, limits=limits, strict=strict) for wish in wishes)
    split = len(learned) - held
    if split < 1:
        raise JvidpruneError(f"{task} has {len(learned)} clips: too few to keep {held} of them apart.")
    return Part(learned, range(min(split, clips or split))), Part(measured, range(split, split + held))


def rows_for(llm: VideoLLM, task: Task, *, frames: int, kept: int, rows: int, clips: int) -> Shape:
    """Rows that hold so many clips with nearly all of their questions.

    Args:
      llm: whose prompts are read.
      task: clips and questions, of which the first few are looked at.
      frames: of a clip.
      kept: visual tokens of a clip.
      rows: of a step.
      clips: of a row.

    Raises:
      JvidpruneError: a row that is longer than the model's positions.
    """
    encode = Encoder(llm, frames, kept, 1 << 30, 1 << 30)
    found = [encode.tokens(task[number]) for number in range(min(LOOKED_AT, len(task)))]
    slots = clips * max(len(example["ids"]) for example in found)
    answers = clips * max(len(example["slot"]) for example in found)
    limit = llm.loaded.config.text.max_positions
    longest = max(len(example["ids"]) for example in found)
    if longest > limit:
        raise JvidpruneError(f"a clip with its questions takes {longest} slots, but the model has {limit} positions.")
    return Shape(rows=rows, clips=clips, slots=-(-slots // 32) * 32, answers=-(-answers // 8) * 8)
