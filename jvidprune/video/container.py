"""Opening a video file and listing its frames without decoding them.

Only local files are opened: a playlist cannot make the decoder fetch anything. Every error is one sentence.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jvidprune.errors import JvidpruneError, reason
from jvidprune.video.limits import Limits
from jvidprune.video.sampling import DEFAULT_RATE

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream


@dataclasses.dataclass(frozen=True)
class Index:
    """Frames of a file in presentation order.

    Attributes:
      times: presentation times in units of the stream, strictly rising; None where the container does not tell.
      keys: those of the frames that decoding can start at, rising.
      total: number of frames.
      cut: the sentence that says so where the end of the file is missing.
    """

    times: tuple[int, ...] | None
    keys: tuple[int, ...]
    total: int
    cut: str | None = None


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there and holds bytes.

    Raises:
      JvidpruneError: it does not, or is no regular file.
    """
    path = Path(path)
    if path.is_dir():
        raise JvidpruneError(f"{path} is a folder, not a video file.")
    if not path.exists():
        raise JvidpruneError(f"there is no video file {path}.")
    if not path.is_file():
        raise JvidpruneError(f"{path} is no regular file.")
    if path.stat().st_size == 0:
        raise JvidpruneError(f"{path} is empty.")
    return path


@contextlib.contextmanager
def opened(path: Path, limits: Limits) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """The container and its video stream; errors of the decoder inside the block become one sentence.

    Raises:
      JvidpruneError: unreadable, without a video stream, or with frames beyond the limit.
    """
    import av
    from av.error import FFmpegError

    try:
        # The library is told to stay silent: what it would print is not for the user, and the sentence says enough.
        options: dict[str, Any] = {"options": {"protocol_whitelist": "file"}}
        if int(av.__version__.split(".")[0]) < 19:
            # Titles and comments of a file may be in any encoding, or in none; PyAV 19 takes them as they are.
            options["metadata_errors"] = "replace"
        with _silenced(), av.open(str(path), **options) as container:
            stream = _video_stream(path, container)
            context = stream.codec_context
            if context.width * context.height > limits.pixels:
                size = f"{context.width} x {context.height} pixels"
                raise JvidpruneError(f"{path} has frames of {size}, more than the {limits.pixels} allowed.")
            stream.thread_type = "AUTO"
            # Streams may grow in the middle: the decoder itself refuses frames beyond the limit.
            context.options = {"max_pixels": str(limits.pixels)}
            yield container, stream
    except PermissionError as error:
        raise JvidpruneError(f"{path} may not be read: permission denied.") from error
    except (FFmpegError, OSError) as error:
        why = reason(error)
        raise JvidpruneError(f"{path} cannot be read as a video: {why[:1].lower()}{why[1:]}.") from error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    import av.logging

    before = av.logging.get_level()
    av.logging.set_level(None)
    try:
        yield
    finally:
        av.logging.set_level(before)


def _video_stream(path: Path, container: "InputContainer") -> "VideoStream":
    from av.stream import Disposition

    # The cover picture of an audio file poses as a video stream of one frame.
    pictures = [stream for stream in container.streams.video if stream.disposition & Disposition.attached_pic]
    videos = [stream for stream in container.streams.video if stream not in pictures]
    if not videos:
        kinds = sorted({stream.type for stream in container.streams if stream not in pictures})
        found = f"there is only {' and '.join(kinds)} in it" if kinds else "it is empty or cut off"
        raise JvidpruneError(f"{path} holds no video: {found}.")
    if videos[0].codec_context is None:
        raise JvidpruneError(f"{path} holds a video whose codec is not known.")
    return videos[0]


def frame_rate(stream: "VideoStream") -> float:
    """Average frames per second."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and math.isfinite(rate) and rate > 0:
            return float(rate)
    return DEFAULT_RATE


def list_frames(path: Path, container: "InputContainer", stream: "VideoStream", limits: Limits) -> Index:
    """Lists the frames of a file from its packets, without decoding.

    Raises:
      JvidpruneError: no frames, or more frames or seconds than allowed.
    """
    packets: list[_Seen] = []
    for packet in map(_Seen, container.demux(stream)):
        if packet.size:
            packets.append(packet)
            _check_total(path, len(packets), limits)
    shown = [packet for packet in packets if not packet.hidden]
    if not shown:
        raise JvidpruneError(f"{path} holds a video without frames.")
    times = [packet.pts for packet in shown if packet.pts is not None]
    keys = [packet.pts for packet in shown if packet.pts is not None and packet.key]
    timed = len(times) == len(shown) == len(set(times))
    seconds = (max(times) - min(times)) * float(stream.time_base or 0) if timed else math.inf
    lasts = seconds if timed else len(shown) / frame_rate(stream)
    if lasts > limits.seconds:
        raise JvidpruneError(f"{path} lasts {lasts:.0f} seconds, more than the {limits.seconds:g} allowed.")
    cut = _cut_off(path, container, stream, packets, seconds)
    if not timed:
        return Index(None, (), len(shown), cut)
    return Index(tuple(sorted(times)), tuple(sorted(keys)), len(times), cut)


def _check_total(path: Path, frames: int, limits: Limits) -> None:
    if frames > limits.total:
        raise JvidpruneError(f"{path} holds more than the {limits.total} frames allowed.")


class _Seen:
    """What is remembered of a packet, so that its data can go."""

    __slots__ = ("corrupt", "hidden", "key", "pts", "size")

    def __init__(self, packet: "Packet"):
        self.pts, self.size = packet.pts, packet.size
        self.key, self.hidden, self.corrupt = packet.is_keyframe, packet.is_discard, packet.is_corrupt


def _cut_off(
    path: Path, container: "InputContainer", stream: "VideoStream", packets: list[_Seen], seconds: float
) -> str | None:
    """The sentence for a file whose end is missing, as far as its container can tell."""
    counted = f"{path} is cut off: it holds {len(packets)} of the {stream.frames} frames it announces."
    if "mp4" in container.format.name:
        # The announced number also counts frames that an edit list leaves out, so a lower one proves nothing here.
        beyond = any(entry.pos + entry.size > container.size for entry in getattr(stream, "index_entries", ()))
        return counted if beyond or packets[-1].corrupt else None
    if len(packets) < 0.9 * stream.frames:
        return counted
    announced = 0.0 if stream.frames else _clock(stream.metadata.get("DURATION", ""))
    if seconds + 1 < 0.9 * announced:
        return f"{path} is cut off: it holds {seconds:.1f} of the {announced:.1f} seconds it announces."
    return None


def _clock(text: str) -> float:
    """Seconds of "00:01:02.5", 0 for anything else."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def count_frames(path: Path, limits: Limits) -> Index:
    """Lists the frames of a file by decoding all of it: for containers that announce other frames than they hold."""
    total = 0
    with opened(path, limits) as (container, stream):
        for _ in container.decode(stream):
            total += 1
            _check_total(path, total, limits)
    if not total:
        raise JvidpruneError(f"{path} holds a video without frames.")
    return Index(None, (), total)
