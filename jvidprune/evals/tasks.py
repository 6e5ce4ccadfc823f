"""Which clips and questions a sweep asks: the procedural benchmark or a local copy of a published one."""

from pathlib import Path
from typing import Any, Literal

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets.registry import Prompts
from jvidprune.evals.subset import Subset, answerable
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.video.limits import DEFAULT, Limits

CLIPS = 50
"""Clips of the procedural benchmark in a default run: all of it stays below five minutes on two cores."""

SIDE = 392
"""Height and width of its frames for towers of any resolution (the Qwen-VL families)."""


def clip_side(llm: VideoLLM) -> int:
    """Height and width of the procedural benchmark's clips for a model: those of its tower's images, else `SIDE`."""
    return max(56, getattr(llm.loaded.config.vision, "image_size", SIDE))


def open_task(
    name: str,
    data: Path | None,
    llm: VideoLLM,
    *,
    clips: int | None = None,
    questions: Literal["answerable", "all"] = "answerable",
    frames: int | None = None,
    fps: float | None = None,
    limits: Limits = DEFAULT,
    strict: bool = False,
    prompts: Prompts | None = None,
) -> Any:
    """The procedural benchmark at the size of the model's tower, or a local copy of a published one.

    Args:
      name: "procedural", or a published benchmark.
      data: folder of a published one.
      llm: the model that is asked.
      clips: the first so many alone.
      questions: of the procedural benchmark, those that this model was measured to answer above chance, or all.
      frames, fps: as for `VideoLLM.sample`.
      limits: what is accepted of a video.
      prompts: whose wording a published one is asked in (`datasets.open_dataset`).
      strict: refuse annotations and videos that are wrong instead of leaving them out.

    Raises:
      JvidpruneError: an unknown task, or files that are not there.
    """
    if clips is not None and clips < 1:
        raise JvidpruneError(f"a sweep needs at least 1 clip, got {clips}.")
    if name == "procedural":
        if prompts is not None:
            raise JvidpruneError(f"the procedural benchmark has its own wording, not the prompts {prompts!r}.")
        if data is not None:
            raise JvidpruneError("the procedural benchmark reads no files: leave out --data or name a --task.")
        side = clip_side(llm)
        count = Procedural.frames if frames is None else frames
        measured = llm.loaded.folder / "accuracy.csv"
        if questions == "all" or not measured.exists():
            return Procedural("test", clips=clips or CLIPS, frames=count, side=side)
        return answerable_part(measured, clips or CLIPS, frames=count, side=side)
    from jvidprune.evals.datasets import open_dataset

    wish = llm.settings.wish(frames, fps)
    return open_dataset(name, data, clips=clips, wish=wish, limits=limits, strict=strict, prompts=prompts)


def answerable_part(measured: Path, clips: int, **settings: Any) -> Subset:
    """So many clips of the procedural benchmark with the questions that a model was measured to answer above chance.

    Raises:
      JvidpruneError: none of its questions was answered above chance.
    """
    pairs = answerable(measured)
    if not pairs:
        raise JvidpruneError(f"{measured} has no question above chance; ask --questions all.")
    categories = tuple(dict.fromkeys(category for category, _ in pairs))
    return Subset(Procedural("test", clips=20 * clips, categories=categories, **settings), pairs, clips)
