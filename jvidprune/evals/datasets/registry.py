"""Published benchmarks by name."""

import importlib
from pathlib import Path

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets.task import VideoTask
from jvidprune.evals.datasets.videos import wish_of
from jvidprune.texts import unknown
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.sampling import Rule
from jvidprune.video.wish import FrameWish

_NAMES = ("videomme", "mvbench", "egoschema", "longvideobench", "mlvu", "nextqa", "eventhallusion")
_KNOWN = (*_NAMES, "exported")


def names() -> tuple[str, ...]:
    """The published benchmarks that there are loaders for."""
    return _NAMES


def open_dataset(
    name: str,
    folder: Path | None,
    *,
    frames: int | None = None,
    fps: float | None = None,
    rule: Rule | None = None,
    wish: FrameWish | None = None,
    clips: int | None = None,
    limits: Limits = DEFAULT,
    strict: bool = False,
) -> VideoTask:
    """A local copy of a benchmark as a task.

    Args:
      name: one of `names()`, written with or without dashes; or "exported", what `jvidprune bench export` wrote.
      folder: the copy: annotation files and videos, at the places where they are published or anywhere below.
      frames, fps, rule, wish: frames that are read of each video, see `videos.read_clip`.
      clips: only the first so many clips whose videos are there.
      limits: what is accepted of a video.
      strict: refuse the first annotation or video that cannot be asked, instead of leaving it out.

    Raises:
      JvidpruneError: an unknown name, no folder, no annotations, or nothing in them that can be asked.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key not in _KNOWN:
        raise JvidpruneError(unknown("task", name, ("procedural", *_KNOWN)))
    if folder is None:
        raise JvidpruneError(f"{name} is read from a local copy: say where with --data.")
    module = importlib.import_module(f"jvidprune.evals.datasets.{key}")
    return VideoTask(
        key,
        module.entries(Path(folder)),
        Path(folder),
        wish=wish_of(wish, frames, fps, rule),
        limits=limits,
        extraction=module.EXTRACTION,
        unique=getattr(module, "UNIQUE", False),
        clips=clips,
        strict=strict,
    )
