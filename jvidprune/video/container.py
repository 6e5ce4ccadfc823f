"""Opening a video file and choosing the stream that a player would show.

Only local files are opened: a playlist cannot make the decoder fetch anything, and no name of a file is taken for a
protocol. Every error is one sentence.
"""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.video.ends import ends_inside
from jvidprune.video.limits import Limits

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which stream of a file is read.

    Attributes:
      index: its number among all streams of the file.
      why: why this one, as the end of a sentence.
    """

    index: int
    why: str


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there and holds bytes.

    Raises:
      JvidpruneError: it does not, or is no regular file.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise JvidpruneError(f"{path} is a folder, not a video file.")
        if not path.exists():
            raise JvidpruneError(f"no such video file: {path}.")
        if not path.is_file():
            raise JvidpruneError(f"{path} is no regular file.")
        if path.stat().st_size == 0:
            raise JvidpruneError(f"{path} is empty.")
    except PermissionError as error:
        raise JvidpruneError(f"{path} may not be read: permission denied.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, JvidpruneError):
            raise
        # A name that no file system takes: too long, or with a zero byte.
        raise JvidpruneError(f"no such video file: {quoted(str(path), 200)}.") from error
    return path


@contextlib.contextmanager
def opened(
    path: Path, limits: Limits, choice: Choice | None = None
) -> Iterator[tuple["InputContainer", "VideoStream", Choice]]:
    """The container, its video stream and why it is this one; errors of the decoder inside become one sentence.

    Args:
      path: of a file.
      limits: what is accepted of it.
      choice: stream; by default the one that a player would show.

    Raises:
      JvidpruneError: unreadable, without a video stream, or with frames beyond the limit.
    """
    from av.error import FFmpegError

    try:
        if choice is None:
            with _container(path) as container:
                choice = _choose(path, container)
        with _container(path) as container:
            stream: Any = container.streams[choice.index]
            context = stream.codec_context
            if context.width * context.height > limits.pixels:
                size = f"{context.width} x {context.height} pixels"
                raise JvidpruneError(f"{path} has frames of {size}, more than the {limits.pixels} allowed.")
            stream.thread_type = "AUTO"
            # Streams may grow in the middle: the decoder itself refuses frames beyond the limit.
            context.options = {"max_pixels": str(limits.pixels)}
            yield container, stream, choice
    except PermissionError as error:
        raise JvidpruneError(f"{path} may not be read: permission denied.") from error
    except (FFmpegError, OSError) as error:
        where = ends_inside(path)
        if where is not None:
            raise JvidpruneError(f"{path} is cut off: the file ends inside {where}.") from error
        why = reason(error)
        raise JvidpruneError(f"{path} cannot be read as a video: {why[:1].lower()}{why[1:]}.") from error


@contextlib.contextmanager
def _container(path: Path) -> Iterator["InputContainer"]:
    import av

    # The protocol is named, so that no colon or per cent sign in the name means anything.
    options: dict[str, Any] = {"options": {"protocol_whitelist": "file"}}
    if int(av.__version__.split(".")[0]) < 19:
        # Titles and comments of a file may be in any encoding, or in none; PyAV 19 takes them as they are.
        options["metadata_errors"] = "replace"
    # The library is told to stay silent: what it would print is not for the user, and the sentence says enough.
    with _silenced(), av.open(f"file:{os.path.abspath(path)}", **options) as container:
        yield container


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    import av.logging

    before = av.logging.get_level()
    av.logging.set_level(None)
    try:
        yield
    finally:
        av.logging.set_level(before)


def _choose(path: Path, container: "InputContainer") -> Choice:
    """The stream with moving pictures that is marked as default, else the largest, else the one of most bits."""
    from av.stream import Disposition

    # The cover picture of an audio file poses as a video stream of one frame.
    aside = Disposition.attached_pic | Disposition.timed_thumbnails
    pictures = [stream for stream in container.streams.video if stream.disposition & aside]
    videos = [stream for stream in container.streams.video if stream not in pictures]
    if not videos:
        kinds = sorted({stream.type for stream in container.streams if stream not in pictures})
        found = f"there is only {' and '.join(kinds)} in it" if kinds else "it is empty or cut off"
        raise JvidpruneError(f"{path} holds no video: {found}.")
    known = [stream for stream in videos if stream.codec_context is not None]
    if not known:
        where = ends_inside(path)
        raise JvidpruneError(
            f"{path} holds a video whose codec cannot be read."
            if where is None
            else f"{path} is cut off: the file ends inside {where}."
        )
    if len(videos) == 1:
        return Choice(videos[0].index, "the only video in it")
    counts = _packet_counts(container, known)

    def marks(stream: "VideoStream") -> tuple[int, ...]:
        context = stream.codec_context
        default = bool(stream.disposition & Disposition.default)
        return counts[stream.index] > 1, default, context.width * context.height, context.bit_rate or 0

    best = max(known, key=lambda stream: (*marks(stream), -stream.index))
    words = {1: "marked as the default", 0: "with more than one picture", 2: "that is largest", 3: "of the most bits"}
    for place, why in words.items():
        if all(marks(best)[place] > marks(stream)[place] for stream in known if stream is not best):
            return Choice(best.index, f"of {len(videos)} videos the one {why}")
    return Choice(best.index, f"of {len(videos)} videos the first of the best")


def _packet_counts(container: "InputContainer", videos: list["VideoStream"]) -> Counter[int]:
    """Packets of each stream; as soon as all have two, no more are counted."""
    counts = Counter({stream.index: stream.frames for stream in videos})
    if min(counts.values()) > 0:
        return counts
    counts = Counter({stream.index: 0 for stream in videos})
    for packet in container.demux(*videos):
        counts[packet.stream.index] += bool(packet.size)
        if min(counts.values()) > 1:
            break
    return counts
