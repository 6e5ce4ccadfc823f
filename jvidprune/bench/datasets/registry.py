"""Published benchmarks by name."""

import importlib
from pathlib import Path
from typing import Any

from jvidprune.bench.datasets.task import VideoTask
from jvidprune.bench.datasets.videos import wish_of
from jvidprune.errors import JvidpruneError, reason
from jvidprune.reducers.presets import unknown
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
) -> VideoTask:
    """A local copy of a benchmark as a task.

    Args:
      name: one of `names()`, written with or without dashes; or "exported", what `jvidprune bench export` wrote.
      folder: the copy: annotation files and videos, at the places where they are published or anywhere below.
      frames, fps, rule, wish: frames that are read of each video, see `videos.read_clip`.
      clips: only the first so many clips whose videos are there.
      limits: what is accepted of a video.

    Raises:
      JvidpruneError: an unknown name, no folder, no annotations, unexpected columns, or no video at all.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key not in _KNOWN:
        raise JvidpruneError(unknown("task", name, ("procedural", *_KNOWN)))
    if folder is None:
        raise JvidpruneError(f"{name} is read from a local copy: say where with --data.")
    module = importlib.import_module(f"jvidprune.bench.datasets.{key}")
    try:
        entries = list(module.entries(Path(folder)))
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, JvidpruneError):
            raise
        # A field of another type than the benchmark's own files have.
        raise JvidpruneError(f"{name} in {folder} cannot be read: {reason(error)}.") from error
    read: dict[str, Any] = {"wish": wish_of(wish, frames, fps, rule), "limits": limits}
    return VideoTask(key, entries, Path(folder), **read, clips=clips, extraction=module.EXTRACTION)
