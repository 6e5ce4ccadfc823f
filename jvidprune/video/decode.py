"""Reading video files: what a file holds, and the frames that a sampling wish picks from it.

A file is read twice: once without decoding, for the presentation times of its frames (containers promise numbers of
frames that are not there, or none at all), then decoded up to the last wanted frame, jumping over groups of frames that
hold none.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from jvidprune.errors import JvidpruneError, reason
from jvidprune.video import pictures
from jvidprune.video.container import existing_file, opened
from jvidprune.video.display import Display, display_of
from jvidprune.video.index import Index, index_of, recount
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
      frames: frames of the file as they are shown.
      fps: average frames per second, frames / duration.
      width: pixels, as shown, upright.
      height: pixels, as shown.
      duration: seconds, those of the last frame included.
      codec: name of the codec, e.g. "h264".
      first, last: seconds of the first and last frame by the file's own clock.
      regular: whether frame i stands at i / fps from the first.
      rotation: degrees clockwise that stored pictures are turned by.
      mirrored: whether left and right are swapped before the turn.
      stream: number of the stream among all of the file.
      why: why this stream.
      format: name of the container, e.g. "mov,mp4,m4a,3gp,3g2,mj2".
      picture: it is a still picture, no video.
    """

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    codec: str
    first: float = 0.0
    last: float = 0.0
    regular: bool = True
    rotation: int = 0
    mirrored: bool = False
    stream: int = 0
    why: str = ""
    format: str = ""
    picture: bool = False


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames read from a file.

    Attributes:
      frames: (frames, height, width, 3) uint8 RGB, upright, in the order of `indices`.
      indices: (frames,) int64 frame numbers in the file, as shown.
      timestamps: (frames,) float64 presentation times in seconds from the first frame of the file: indices / fps where
        the file keeps its rate, and what the file says where it does not.
      fps: average frames per second of the file.
      total: frames in the file.
      start: seconds of the first frame of the file by the file's own clock.
      picture: it was a still picture, no video.
      span: seconds that were sampled from, where they are a part of the file.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    indices: Int64[np.ndarray, "frames"]
    timestamps: Float64[np.ndarray, "frames"]
    fps: float
    total: int
    start: float = 0.0
    picture: bool = False
    span: float | None = None

    @classmethod
    def from_frames(cls, frames: Any, *, fps: float | None = None, times: Sequence[float] | None = None) -> "Clip":
        """A clip of frames that did not come from a file, with a rate or the time of each.

        Args:
          frames: (T, H, W, 3) uint8 RGB.
          fps: frames a second, from 0 on.
          times: (T,) seconds of the frames, rising, in place of a rate.

        Raises:
          JvidpruneError: frames of another shape or type, both or neither of rate and times, no rate above 0, or times
            that do not rise from 0 on.
        """
        frames = as_frames(frames)
        count = len(frames)
        if (fps is None) == (times is None):
            raise JvidpruneError("frames are given either fps= or times=.")
        if times is None:
            check_wish(None, None, fps, None)
            rate = float(fps or 0.0)
            stamps = np.arange(count) / rate
        else:
            stamps = np.asarray(times, np.float64)
            if stamps.shape != (count,):
                raise JvidpruneError(f"{count} frames need as many times, got an array of shape {stamps.shape}.")
            if not np.isfinite(stamps).all() or (stamps < 0).any() or (np.diff(stamps) <= 0).any():
                raise JvidpruneError("the times of frames must be finite seconds from 0 on that rise.")
            # One frame has no rate; nothing is read from it where there is one.
            rate = (count - 1) / float(stamps[-1] - stamps[0]) if count > 1 else 1.0
        return cls(frames, np.arange(count), stamps, rate, count)

    @classmethod
    def of_picture(cls, picture: Any) -> "Clip":
        """A still picture that did not come from a file.

        Args:
          picture: (H, W, 3) uint8 RGB.

        Raises:
          JvidpruneError: another shape or type.
        """
        frames = as_frames(np.asarray(picture)[None])
        return cls(frames, np.arange(1), np.zeros(1), 1.0, 1, picture=True)

    @property
    def sampled_fps(self) -> float:
        """Frames per second of the sample: its length over the duration of the file, or of the part of it."""
        if self.span:
            return len(self.indices) / self.span
        return len(self.indices) / self.total * self.fps

    @property
    def duration(self) -> float:
        """Seconds of the file, those of its last frame included."""
        return self.total / self.fps

    @property
    def regular(self) -> bool:
        """Whether the frames stand where the rate puts them."""
        return bool(np.array_equal(self.timestamps, self.indices / self.fps))


def as_frames(frames: Any) -> UInt8[np.ndarray, "frames height width 3"]:
    """Frames as an array of numpy.

    Raises:
      JvidpruneError: no (T, H, W, 3) uint8, or no frame.
    """
    found = np.asarray(frames)
    if found.ndim != 4 or found.shape[-1] != 3 or found.dtype != np.uint8 or not found.size:
        raise JvidpruneError(
            f"frames must be at least one picture in an array (T, H, W, 3) of uint8, got {found.dtype} {found.shape}."
        )
    return found


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
    index = index_of(path, limits)
    if index.cut:
        raise JvidpruneError(index.cut)
    return _info(index)


def evenly(path: Path, seconds: float | None, limits: Limits) -> float | None:
    """The time at which a constant rate would show the frame that a file shows at `seconds` from its first.

    Part of a video is cut out by numbers of frames, time * rate; in a file of variable rate this time gives the frame.
    """
    when = index_of(path, limits).timing
    if seconds is None or when.regular:
        return seconds
    frames = np.arange(len(when.seconds))
    inside = float(np.interp(seconds, when.seconds, frames)) / when.rate
    return inside if seconds <= when.seconds[-1] else when.duration


def _info(index: Index) -> VideoInfo:
    when, stream = index.timing, index.choice
    return VideoInfo(
        index.total,
        when.rate,
        *index.size,
        when.duration,
        index.codec,
        first=when.start,
        last=when.last,
        regular=when.regular,
        rotation=index.display.rotation,
        mirrored=index.display.mirrored,
        stream=stream.index if stream else 0,
        why=stream.why if stream else "the only picture" if index.picture else "the only animation",
        format=index.format,
        picture=index.picture,
    )


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
        index outside the video, a wish the sampling rule cannot serve, a picture where the wish takes none, or a limit
        passed.
    """
    if wish is None:
        if num_frames is None and fps is None and indices is None:
            num_frames = 32
        check_wish(rule, num_frames, fps, indices)
        if rule is None and indices is None:
            wish = FrameWish(num_frames, fps)
    path = existing_file(path)
    most = 0 if rule in UP_TO else num_frames or (0 if indices is None else len(indices))
    check_count(path, most, limits)
    index = index_of(path, limits)
    if index.picture and wish is not None:
        wish.check_picture(path)
    for last_attempt in (False, True):
        if index.cut and (indices is None or max(indices) >= index.total):
            raise JvidpruneError(index.cut)
        total, rate = index.total, index.timing.rate
        try:
            chosen = (
                wish.indices(total, rate)
                if wish
                else sample_indices(total, rate, rule=rule, num_frames=num_frames, fps=fps, indices=indices)
            )
        except JvidpruneError as error:
            raise JvidpruneError(f"{path} cannot be sampled: {error}") from error
        if index.picture and wish is None and indices is None:
            # A still is one frame however many a rule repeats it.
            chosen = chosen[:1]
        check_count(path, len(chosen), limits)
        keeper = _Keeper(path, chosen, limits, progress)
        try:
            _fill(keeper, path, index, limits)
            break
        except _Mismatch as mismatch:
            if last_attempt:
                raise JvidpruneError(f"{path} is damaged: {mismatch}.") from None
            index = recount(path, limits)
    when = index.timing
    return Clip(keeper.result(), chosen, when.seconds[chosen], when.rate, index.total, when.start, index.picture)


def _fill(keeper: "_Keeper", path: Path, index: Index, limits: Limits) -> None:
    if index.choice is None:
        for number, picture in pictures.read(path, keeper.wanted, limits):
            keeper.add(number, picture, index.display)
        return
    with opened(path, limits, index.choice) as (container, stream, _):
        for number, frame in _decoded(path, container, stream, index, keeper.wanted):
            keeper.add(number, frame.to_ndarray(format="rgb24"), display_of(frame))


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
    before: int | None = -1
    for target in wanted:
        key = _jump(index, position, target)
        if key is not None:
            container.seek(key, stream=stream, backward=True)
            frames, before = stream_on(), None
        for frame in frames:
            position = _place(index, frame.pts)
            if before is not None and position != before + 1:
                raise _Mismatch(f"frame {before + 1} of {index.total} is not where the file says")
            before = position
            if position >= target:
                break
        if position != target:
            raise _Mismatch(f"frame {target} of {index.total} is not where the file says")
        yield position, frame


def _place(index: Index, pts: int | None) -> int:
    """The number of the frame at a time, that behind the last for a time that the index does not have."""
    assert index.times is not None
    number = index.total if pts is None else int(np.searchsorted(index.times, pts))
    return number if number < index.total and index.times[number] == pts else index.total


def _jump(index: Index, position: int, target: int) -> int | None:
    """The key frame to go to before decoding on to `target`, None where decoding straight on is as good."""
    assert index.times is not None
    before = int(np.searchsorted(index.keys, index.times[target], side="right"))
    far = position + _JUMP_FRAMES
    if not before or far >= target or index.keys[before - 1] <= index.times[far]:
        return None
    return int(index.keys[before - 1])


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
        self._read = 0
        self._frames: np.ndarray | None = None

    def add(self, number: int, stored: np.ndarray, display: Display) -> None:
        picture = display.upright(stored)
        if self._frames is None:
            self._frames = self._room(picture)
        if picture.shape != self._frames.shape[1:]:
            raise JvidpruneError(f"{self._path} changes its frame size at frame {number}, which is not supported.")
        self._frames[self._read] = picture
        self._read += 1
        if self._progress is not None:
            self._progress(self._read, len(self.wanted))

    def _room(self, picture: np.ndarray) -> np.ndarray:
        height, width, _ = picture.shape
        check_bytes(self._path, len(self._slots), width, height, self._limits)
        return np.empty((len(self.wanted), height, width, 3), np.uint8)

    def result(self) -> np.ndarray:
        """Frames in the order asked for."""
        assert self._frames is not None, "there is at least one wanted frame"
        in_order = len(self._slots) == len(self.wanted) and bool((np.diff(self._slots) > 0).all())
        return self._frames if in_order else self._frames[self._slots]
