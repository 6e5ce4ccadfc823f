"""Videos of a local copy, found by the names that annotations give, and the frames that are read from them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from jvidprune.errors import JvidpruneError, reason
from jvidprune.video.decode import Clip, check_bytes, check_count, evenly, probe, read_frames
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.sampling import Rule
from jvidprune.video.wish import FrameWish

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_IMAGE_RATE = 3.0
"""Pictures a second of a folder of frames."""


class VideoIndex:
    """Video files (and folders of frames) below a folder, by the ends of their paths, with suffix and without.

    Files lie where the benchmark publishes them or anywhere below; a name that two files claim belongs to neither,
    unless it is the whole path of one.
    """

    def __init__(self, folder: Path):
        self._root = folder
        self._paths: dict[str, Path] = {}
        self._ends: dict[str, Path | None] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                relative = path.relative_to(folder)
                self._paths[relative.as_posix()] = path
                for whole in (relative, relative.with_suffix("")):
                    for start in range(len(whole.parts)):
                        end = "/".join(whole.parts[start:])
                        self._ends[end] = None if end in self._ends else path

    def find(self, names: Sequence[str]) -> Path | None:
        """The first of several names that is there: a path below the folder, or the end of the path of one file alone.

        A name with folders is found in these folders only. Names come from annotation files: one that leads out of the
        folder is not there.
        """
        for name in names:
            path = self._paths.get(name) or self._ends.get(name)
            if path is not None:
                return path
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
    frames: int | None = None,
    fps: float | None = None,
    rule: Rule | None = None,
    wish: FrameWish | None = None,
    start: float | None = None,
    end: float | None = None,
    limits: Limits = DEFAULT,
) -> Clip:
    """Frames of a video, of a part of it, or of a folder of frames.

    A part or a folder gives as many frames as a video of its length, at the middles of equal stretches, as MVBench's
    own code has it.

    Args:
      path: a file, or a folder of numbered images, taken as 3 a second (TVQA's frames in MVBench).
      frames: how many at most.
      fps: rate.
      rule: sampling rule.
      wish: instead of these three.
      start, end: seconds of a part.
      limits: what is accepted of a file, and of a folder as if it were one.

    Raises:
      JvidpruneError: an unreadable file, a folder without images, a wish that no video can meet, or a limit passed.
    """
    wish = wish_of(wish, frames, fps, rule)
    if path.is_dir():
        return _read_images(path, wish, start, end, limits)
    if start is None and end is None:
        return read_frames(path, wish=wish, limits=limits)
    info = probe(path, limits=limits)
    seconds = min(info.duration, info.duration if end is None else end) - (start or 0.0)
    places = [evenly(path, edge, limits) for edge in (start, end)]
    count = part_count(info.frames, info.fps, wish, start, end)
    if not info.regular and seconds > 0:
        inside = max(1, round(((places[1] or info.duration) - (places[0] or 0.0)) * info.fps))
        count = part_count(inside, inside / seconds, wish, None, None)
    clip = read_frames(path, indices=part_indices(info.frames, info.fps, count, *places), limits=limits)
    return dataclasses.replace(clip, span=seconds if seconds > 0 else None)


def wish_of(wish: FrameWish | None, frames: int | None, fps: float | None, rule: Rule | None) -> FrameWish:
    """A whole wish, or one made of its three main parts.

    Raises:
      JvidpruneError: see `FrameWish`.
    """
    return FrameWish(frames, fps, rule or "uniform") if wish is None else wish


def part_count(total: int, rate: float, wish: FrameWish, start: float | None, end: float | None) -> int:
    """How many frames of a part of a video are read: as many as of a video of its length.

    Args:
      total, rate: frames of the video and its frames per second.
      wish: what is wanted.
      start, end: seconds; None for the ends of the video.
    """
    length = total / rate
    seconds = (length if end is None else min(end, length)) - (start or 0.0)
    # Rounding may take a hair off a whole number of frames.
    return len(wish.indices(max(1, int(seconds * rate + 1e-6)), rate))


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


def _read_images(folder: Path, wish: FrameWish, start: float | None, end: float | None, limits: Limits) -> Clip:
    from PIL import Image

    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise JvidpruneError(f"no images in the frame folder {folder}.")
    if len(files) > limits.total:
        raise JvidpruneError(f"{folder} holds more than the {limits.total} frames allowed.")
    if (lasts := len(files) / _IMAGE_RATE) > limits.seconds:
        raise JvidpruneError(f"{folder} lasts {lasts:.0f} seconds, more than the {limits.seconds:g} allowed.")
    count = part_count(len(files), _IMAGE_RATE, wish, start, end)
    check_count(folder, count, limits)
    indices = part_indices(len(files), _IMAGE_RATE, count, start, end)
    frames: list[np.ndarray] = []
    for path in (files[i] for i in indices):
        try:
            with Image.open(path) as picture:
                if picture.width * picture.height > limits.pixels:
                    raise JvidpruneError(f"{path} has more than the {limits.pixels} pixels allowed.")
                check_bytes(folder, count, picture.width, picture.height, limits)
                frames.append(np.asarray(picture.convert("RGB")))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise JvidpruneError(f"{path} cannot be read as a picture: {reason(error)}.") from error
        if frames[-1].shape != frames[0].shape:
            raise JvidpruneError(f"{path} is of another size than the other frames of its folder.")
    return Clip(np.stack(frames), indices, indices / _IMAGE_RATE, _IMAGE_RATE, len(files))
