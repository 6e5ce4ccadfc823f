"""Videos of a local copy, found by the names that annotations give, and the frames that are read from them."""

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from jvidprune.errors import JvidpruneError, reason
from jvidprune.video.decode import Clip, probe, read_frames
from jvidprune.video.limits import DEFAULT
from jvidprune.video.sampling import Rule

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class VideoIndex:
    """Video files (and folders of frames) below a folder, by path, by name and by name without suffix."""

    def __init__(self, folder: Path):
        self._root = folder
        self._names: dict[str, Path] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                relative = path.relative_to(folder)
                for name in (relative.as_posix(), path.name, path.stem):
                    self._names.setdefault(name, path)

    def find(self, names: Sequence[str]) -> Path | None:
        """The first of several names that is there: a path below the folder, a file name, or one without suffix.

        Names come from annotation files: one that leads out of the folder is not there.
        """
        for name in names:
            if name in self._names:
                return self._names[name]
            inside = name not in ("", ".") and not {"..", "/"} & set(PurePath(name).parts)
            if inside and _is_folder(self._root / name):
                return self._root / name
        return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        # A name that no file system takes: too long, or with characters it has no bytes for.
        return False


def read_clip(
    path: Path,
    *,
    frames: int,
    fps: float | None,
    rule: Rule | None,
    start: float | None = None,
    end: float | None = None,
) -> Clip:
    """Frames of a video, of a part of it, or of a folder of frames.

    Args:
      path: a file, or a folder of numbered images, taken as 3 a second (TVQA's frames in MVBench).
      frames: how many, unless `fps` is given.
      fps: rate.
      rule: sampling rule of whole files.
      start, end: seconds of a part; its frames are the middles of `frames` equal stretches, as MVBench's own code has
        it.

    Raises:
      JvidpruneError: an unreadable file, or a folder without images.
    """
    if path.is_dir():
        return _read_images(path, frames, start, end)
    if start is None and end is None:
        return read_frames(path, fps=fps) if fps else read_frames(path, num_frames=frames, rule=rule)
    info = probe(path)
    return read_frames(path, indices=part_indices(info.frames, info.fps, frames, start, end))


def part_indices(total: int, fps: float, count: int, start: float | None, end: float | None) -> np.ndarray:
    """(count,) int64 frames at the middles of equal stretches of a part of a video.

    int(first + stretch / 2 + round(stretch * i)) with first = round(start * fps), as MVBench's notebook computes it,
    kept inside the video.

    Args:
      total: frames of the video.
      fps: its rate.
      count: how many.
      start, end: seconds; None for the ends of the video.
    """
    first = max(0, round((start or 0.0) * fps))
    last = total - 1 if end is None else min(round(end * fps), total - 1)
    stretch = (last - first) / count
    places = first + stretch / 2 + np.round(stretch * np.arange(count))
    return np.clip(places.astype(np.int64), 0, total - 1)


def _read_images(folder: Path, count: int, start: float | None, end: float | None, fps: float = 3.0) -> Clip:
    from PIL import Image

    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise JvidpruneError(f"no images in the frame folder {folder}.")
    indices = part_indices(len(files), fps, count, start, end)
    frames: list[np.ndarray] = []
    for path in (files[i] for i in indices):
        try:
            with Image.open(path) as picture:
                if picture.width * picture.height > DEFAULT.pixels:
                    raise JvidpruneError(f"{path} has more than the {DEFAULT.pixels} pixels allowed.")
                frames.append(np.asarray(picture.convert("RGB")))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise JvidpruneError(f"{path} cannot be read as a picture: {reason(error)}.") from error
        if frames[-1].shape != frames[0].shape:
            raise JvidpruneError(f"{path} is of another size than the other frames of its folder.")
    return Clip(np.stack(frames), indices, indices / fps, fps, len(files))
