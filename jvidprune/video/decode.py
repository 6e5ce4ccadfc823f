"""Reading video files: what a file holds, and the frames that a sampling wish picks from it.

A file is read twice: once without decoding, for the presentation times of its frames (containers promise numbers of
frames that are not there, or none at all), then decoded up to the last wanted frame, jumping over groups of frames that
hold none.
"""

import bisect
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from jvidprune.errors import JvidpruneError, reason
from jvidprune.video.container import Index, count_frames, existing_file, frame_rate, list_frames, opened
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.sampling import UP_TO, Rule, check_wish, sample_indices
from jvidprune.video.wish import FrameWish

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Groups of frames closer than this are decoded through: a jump costs about as much.
_JUMP_FRAMES = 32

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a file holds.

    Attributes:
      frames: frames that are really in the file.
      fps: average frames per second.
      width: pixels, as stored (before rotation).
      height: pixels, as stored.
      duration: seconds, frames / fps.
      codec: name of the codec, e.g. "h264".
    """

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    codec: str


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames read from a file.

    Attributes:
      frames: (frames, height, width, 3) uint8 RGB, upright, in the order of `indices`.
      indices: (frames,) int64 frame numbers in the file.
      timestamps: (frames,) float64 presentation times in seconds from the first frame; in files of variable frame rate
        these are not indices / fps, which the time instructions of the backbones use.
      fps: average frames per second of the file.
      total: frames in the file.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    indices: Int64[np.ndarray, "frames"]
    timestamps: Float64[np.ndarray, "frames"]
    fps: float
    total: int

    @property
    def sampled_fps(self) -> float:
        """Frames per second of the sample: its length over the duration of the file."""
        return len(self.indices) / self.total * self.fps


class _Mismatch(Exception):
    """The decoder's frames are not those the container announced."""


def probe(path: str | os.PathLike[str], *, limits: Limits = DEFAULT) -> VideoInfo:
    """What a video file holds; the file is read through, but not decoded.

    Args:
      path: any container and codec that PyAV knows.
      limits: what is accepted.

    Raises:
      JvidpruneError: missing, a folder, unreadable, damaged, without video or frames, or beyond a limit.
    """
    path = existing_file(path)
    with opened(path, limits) as (container, stream):
        index, rate, context = list_frames(path, container, stream, limits), frame_rate(stream), stream.codec_context
        if index.cut:
            raise JvidpruneError(index.cut)
        return VideoInfo(index.total, rate, context.width, context.height, index.total / rate, context.name)


def read_frames(
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    rule: Rule | None = None,
    wish: FrameWish | None = None,
    limits: Limits = DEFAULT,
    progress: Progress | None = None,
) -> Clip:
    """Frames of a video file by a number of frames (default 32), a rate, explicit indices, or a family's wish.

    Args:
      path: any container and codec that PyAV knows.
      num_frames: wanted frames; the most that are read where no rule is named, else what the rule makes of it.
      fps: wanted frames per second, likewise.
      indices: explicit frame indices, in any order, repeats allowed.
      rule: sampling rule of a reference, with its refusals (`sampling.sample_indices`).
      wish: instead of all of these.
      limits: what is accepted of the file and of the wish.
      progress: called with (frames read, frames wanted) as frames come in.

    Raises:
      JvidpruneError: missing, a folder, unreadable, damaged before the last wanted frame, without video or frames, an
        index outside the video, a wish the sampling rule cannot serve, or a limit passed.
    """
    if wish is None:
        if num_frames is None and fps is None and indices is None:
            num_frames = 32
        check_wish(rule, num_frames, fps, indices)
        if rule is None and indices is None:
            wish = FrameWish(num_frames, fps)
    path = existing_file(path)
    most = 0 if rule in UP_TO else num_frames or (0 if indices is None else len(indices))
    check_count(path, wish.asked if wish else most, limits)
    with opened(path, limits) as (container, stream):
        index = list_frames(path, container, stream, limits)
        rate, unit = frame_rate(stream), float(stream.time_base or 0)
    if index.cut and (indices is None or max(indices) >= index.total):
        raise JvidpruneError(index.cut)
    for last_attempt in (False, True):
        try:
            wanted: dict[str, Any] = {"rule": rule, "num_frames": num_frames, "fps": fps, "indices": indices}
            chosen = wish.indices(index.total, rate) if wish else sample_indices(index.total, rate, **wanted)
        except JvidpruneError as error:
            raise JvidpruneError(f"{path} cannot be sampled: {error}") from error
        check_count(path, len(chosen), limits)
        keeper = _Keeper(path, chosen, limits, progress)
        try:
            with opened(path, limits) as (container, stream):
                for number, frame in _decoded(path, container, stream, index, keeper.wanted):
                    keeper.add(number, frame)
            break
        except _Mismatch as mismatch:
            if last_attempt:
                raise JvidpruneError(f"{path} is damaged: {mismatch}.") from None
            index = count_frames(path, limits)
    frames, times = keeper.result()
    seconds = chosen / rate if index.times is None else (times - index.times[0]) * unit
    return Clip(frames, chosen, seconds, rate, index.total)


def _decoded(
    path: Path, container: "InputContainer", stream: "VideoStream", index: Index, wanted: Sequence[int]
) -> Iterator[tuple[int, "VideoFrame"]]:
    """The wanted frames (rising numbers) with their numbers.

    Raises:
      _Mismatch: the decoder gives other frames than the index lists.
      JvidpruneError: the file is damaged.
    """
    position = -1

    def stream_on() -> Iterator["VideoFrame"]:
        return _until_damage(path, container.decode(stream), lambda: position, index.total)

    frames = stream_on()
    if index.times is None:
        pending = set(wanted)
        for position, frame in enumerate(frames):
            if position in pending:
                yield position, frame
            if position == wanted[-1]:
                return
        raise _Mismatch(f"only {position + 1} of its {index.total} frames can be decoded")
    place: dict[int | None, int] = {pts: number for number, pts in enumerate(index.times)}
    for target in wanted:
        key = _jump(index, position, target)
        if key is not None:
            container.seek(key, stream=stream, backward=True)
            frames = stream_on()
        for frame in frames:
            position = place.get(frame.pts, index.total)
            if position >= target:
                break
        if position != target:
            raise _Mismatch(f"frame {target} of {index.total} is not where the file says")
        yield position, frame


def _jump(index: Index, position: int, target: int) -> int | None:
    """The key frame to go to before decoding on to `target`, None where decoding straight on is as good."""
    assert index.times is not None
    before = bisect.bisect_right(index.keys, index.times[target])
    far = position + _JUMP_FRAMES
    return index.keys[before - 1] if before and far < target and index.keys[before - 1] > index.times[far] else None


def _until_damage(
    path: Path, frames: Iterator["VideoFrame"], position: Callable[[], int], total: int
) -> Iterator["VideoFrame"]:
    from av.error import FFmpegError

    try:
        for frame in frames:
            if frame.is_corrupt:
                raise JvidpruneError(f"{path} is damaged: frame {position() + 1} of {total} is incomplete.")
            yield frame
    except FFmpegError as error:
        why = reason(error).lower()
        raise JvidpruneError(
            f"{path} is damaged: decoding ends at frame {position() + 1} of {total}: {why}."
        ) from error


def check_count(path: Path, frames: int, limits: Limits) -> None:
    """Refuses more frames of a file or folder than the limits allow."""
    if frames > limits.frames:
        raise JvidpruneError(f"{frames} frames of {path} are wanted, more than the {limits.frames} allowed.")


def check_bytes(path: Path, frames: int, width: int, height: int, limits: Limits) -> None:
    """Refuses frames of a size whose RGB values take more memory than the limits allow."""
    if 3 * width * height * frames > limits.bytes:
        raise JvidpruneError(
            f"{frames} frames of {width} x {height} pixels from {path} "
            f"need more than the {limits.bytes / 2**30:.3g} GiB allowed."
        )


class _Keeper:
    """Collects the wanted frames as arrays; a frame wanted twice is converted once."""

    def __init__(self, path: Path, chosen: np.ndarray, limits: Limits, progress: Progress | None):
        self._path, self._limits, self._progress = path, limits, progress
        wanted, self._slots = np.unique(chosen, return_inverse=True)
        self.wanted: list[int] = wanted.tolist()
        self._times: list[int] = []
        self._frames: np.ndarray | None = None

    def add(self, number: int, frame: "VideoFrame") -> None:
        picture = _upright(frame)
        if self._frames is None:
            self._frames = self._room(picture)
        if picture.shape != self._frames.shape[1:]:
            raise JvidpruneError(f"{self._path} changes its frame size at frame {number}, which is not supported.")
        self._frames[len(self._times)] = picture
        self._times.append(frame.pts or 0)
        if self._progress is not None:
            self._progress(len(self._times), len(self.wanted))

    def _room(self, picture: np.ndarray) -> np.ndarray:
        height, width, _ = picture.shape
        check_bytes(self._path, len(self._slots), width, height, self._limits)
        return np.empty((len(self.wanted), height, width, 3), np.uint8)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames and presentation times in the order asked for."""
        assert self._frames is not None, "there is at least one wanted frame"
        in_order = len(self._slots) == len(self.wanted) and bool((np.diff(self._slots) > 0).all())
        return self._frames if in_order else self._frames[self._slots], np.asarray(self._times)[self._slots]


def _upright(frame: "VideoFrame") -> np.ndarray:
    """RGB pixels, turned as the display matrix of the file asks; angles are counterclockwise."""
    picture = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
