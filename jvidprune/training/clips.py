"""Which clips a run learns from, and which it is measured on: generated ones, or those of a benchmark."""

import dataclasses
from pathlib import Path

from jvidprune.errors import JvidpruneError
from jvidprune.evals.items import Task
from jvidprune.evals.subset import TaskPart
from jvidprune.evals.tasks import benchmark_of
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.sampling import check_wish
from jvidprune.video.wish import FrameWish


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
      llm: whose folder declares a setting of procedural clips, and whose tower says how large they are.
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
        learned = _procedural(llm, data, clips, frames=frames, questions=questions)
        return learned, dataclasses.replace(learned, split="validation", clips=held, frames=held_frames)
    from jvidprune.evals.datasets import open_dataset

    # Rows have one size: shorter videos show frames several times.
    wishes = (FrameWish(count, rule=llm.settings.rule, repeat=True) for count in (frames, held_frames))
    learned, measured = (open_dataset(task, data, wish=wish, limits=limits, strict=strict) for wish in wishes)
    split = len(learned) - held
    if split < 1:
        raise JvidpruneError(f"{task} has {len(learned)} clips: too few to keep {held} of them apart.")
    return TaskPart(learned, range(min(split, clips or split))), TaskPart(measured, range(split, split + held))


def clips_to_learn(
    llm: VideoLLM,
    task: str,
    data: Path | None,
    *,
    frames: int,
    clips: int | None = None,
    limits: Limits = DEFAULT,
    strict: bool = False,
) -> Task:
    """Clips to learn from where nothing is measured: of the procedural training split, or all of another benchmark.

    Args:
      llm, task, data, frames, clips, limits, strict: as for `open_clips`.

    Raises:
      JvidpruneError: an unknown task, files that are not there, or no clip.
    """
    if clips is not None and clips < 1:
        raise JvidpruneError(f"a run needs at least one clip to learn from, got {clips}.")
    if task == "procedural":
        return _procedural(llm, data, clips, frames=frames, questions=Procedural.questions)
    from jvidprune.evals.datasets import open_dataset

    wish = FrameWish(frames, rule=llm.settings.rule, repeat=True)
    learned = open_dataset(task, data, wish=wish, limits=limits, strict=strict)
    return TaskPart(learned, range(min(len(learned), clips or len(learned))))


def frames_of(llm: VideoLLM, task: str, frames: int | None) -> int:
    """Frames of a clip to learn from: as asked, else the procedural benchmark's or what the family was evaluated with.

    Raises:
      JvidpruneError: no frame.
    """
    if frames is None:
        frames = benchmark_of(llm, "train", 1).frames if task == "procedural" else llm.settings.frames
    check_wish(None, frames, None, None)
    return frames


def _procedural(llm: VideoLLM, data: Path | None, clips: int | None, *, frames: int, questions: int) -> Procedural:
    if data is not None:
        raise JvidpruneError("the procedural benchmark reads no files: leave out --data or name a --task.")
    # Not `evals.tasks.clip_side`: towers of any resolution learn from the smallest clips there are, as a step holds all
    # tokens of several clips at once, and runs go on with the size that they began with.
    side = max(56, getattr(llm.loaded.config.vision, "image_size", 56))
    return benchmark_of(llm, "train", clips or 1 << 30, frames=frames, side=side, questions=questions)
