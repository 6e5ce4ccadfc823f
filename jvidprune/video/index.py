"""What a file holds: its frames as they are shown, numbered once for all that read it, and their times.

Packets are listed without decoding them. Those that show nothing do not count: frames that an edit list leaves out,
VP8's and VP9's hidden reference frames, empty chunks. Where the packets cannot tell (no times, or two frames at one
time) and where the decoder turns out to give other frames than they promise, all frames are decoded once and counted.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from jvidprune.errors import JvidpruneError, reason
from jvidprune.video import pictures
from jvidprune.video.container import Choice, opened
from jvidprune.video.display import Display, display_of
from jvidprune.video.ends import ends_inside
from jvidprune.video.limits import Limits
from jvidprune.video.timing import Timing, timing

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# An MPEG-4 frame that repeats the one before, which decoders leave out, has no more bytes than this.
_EMPTY_VOP = 8
# Files whose packets lied, by `_Stamp`: the same numbers from then on for everybody in this process.
_COUNTED: set["_Stamp"] = set()

_Stamp = tuple[str, int, int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Frames of a file in the order they are shown.

    Attributes:
      total: number of frames.
      timing: when they are shown.
      times: (total,) int64 presentation times in units of the stream, rising; None where decoding alone numbers frames.
      keys: int64 times of those that decoding can start at, rising.
      size: width and height as shown, upright.
      display: how stored pictures are turned and mirrored.
      codec, format: names of the decoder's library.
      choice: the stream; None for files that Pillow reads.
      picture: it is a still picture, no video.
      cut: the sentence that says so where the end of the file is missing, or cannot be decoded.
    """

    total: int
    timing: Timing
    times: Int64[np.ndarray, "frames"] | None
    keys: Int64[np.ndarray, "keys"]
    size: tuple[int, int]
    display: Display
    codec: str
    format: str
    choice: Choice | None
    picture: bool = False
    cut: str | None = None


def index_of(path: Path, limits: Limits) -> Index:
    """The index of a file; kept for the next to ask, as long as the file is the same.

    Raises:
      JvidpruneError: unreadable, without video or frames, or more frames, seconds or pixels than allowed.
    """
    stamp = _stamp(path)
    return _index(path, limits, stamp, stamp in _COUNTED)


def recount(path: Path, limits: Limits) -> Index:
    """The index of a file whose packets turned out to promise other frames, by decoding all of it.

    Raises:
      JvidpruneError: as for `index_of`.
    """
    _COUNTED.add(_stamp(path))
    return index_of(path, limits)


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return os.path.abspath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _index(path: Path, limits: Limits, stamp: _Stamp, counted: bool) -> Index:
    if pictures.is_webp(path):
        return _pictured(path, limits, still=False)
    with opened(path, limits) as (container, stream, choice):
        listing = list_packets(path, container, stream, limits)
        format, codec = container.format.name, stream.codec_context.name
        brand = container.metadata.get("major_brand", "")
        still = listing.total == 1 and pictures.is_still(format, brand)
    if still and pictures.readable(path):
        return _pictured(path, limits, still=True)
    with opened(path, limits, choice) as (container, stream, _):
        first = _first_frame(container, stream)
        size = (stream.codec_context.width, stream.codec_context.height)
    if first is None:
        # Reading will say what is wrong, if it gets there.
        display = Display()
    else:
        display, size = display_of(first), (first.width, first.height)
        if listing.times is not None and first.pts != listing.times[0]:
            counted = True
    if counted or listing.times is None:
        listing = _count(path, limits, choice, listing)
    if listing.timing.duration > limits.seconds:
        raise JvidpruneError(
            f"{path} lasts {listing.timing.duration:.0f} seconds, more than the {limits.seconds:g} allowed."
        )
    found = (listing.total, listing.timing, listing.times, listing.keys, display.size(*size), display, codec, format)
    return Index(*found, choice, still, listing.cut)


def _pictured(path: Path, limits: Limits, *, still: bool) -> Index:
    seen = pictures.look(path, limits, still=still)
    if sum(seen.lasts) / 1000 > limits.seconds:
        raise JvidpruneError(
            f"{path} lasts {sum(seen.lasts) / 1000:.0f} seconds, more than the {limits.seconds:g} allowed."
        )
    total, lasts = len(seen.lasts), np.asarray(seen.lasts, np.int64)
    times = np.cumsum(lasts) - lasts
    rising = bool((np.diff(times) > 0).all())
    when = timing(total, times if rising else None, lasts, 0.001, None, 10.0 if total > 1 else 1.0)
    keys = np.zeros(0, np.int64)
    kind = (seen.codec, seen.codec, None, total == 1, seen.cut)
    return Index(total, when, times, keys, seen.display.size(*seen.size), seen.display, *kind)


@dataclasses.dataclass(frozen=True)
class Listing:
    """What the packets of a stream tell, see `Index`; `lasts` is how long each frame in order is shown."""

    total: int
    timing: Timing
    times: Int64[np.ndarray, "frames"] | None
    keys: Int64[np.ndarray, "keys"]
    unit: float
    rates: tuple[float | None, float | None]
    cut: str | None


class _Seen:
    """What is remembered of a packet, so that its data can go."""

    __slots__ = ("corrupt", "duration", "hidden", "key", "pts", "size")

    def __init__(self, packet: "Packet", codec: str):
        self.pts, self.size, self.duration = packet.pts, packet.size, packet.duration or 0
        self.key, self.corrupt = packet.is_keyframe, packet.is_corrupt
        self.hidden = packet.is_discard or (codec in ("vp8", "vp9") and shows_nothing(bytes(packet), codec))


def shows_nothing(data: bytes, codec: str) -> bool:
    """Whether a VP8 or VP9 packet holds a frame that is decoded for others to refer to, but never shown.

    Bit 4 of the first byte of VP8 says so (RFC 6386, section 9.1). VP9's header has a bit for it behind marker, profile
    and type (bitstream specification 6.2), unless the packet shows an earlier frame or is a superframe, which ends in a
    byte 110xxxxx twice and holds one frame that is shown.
    """
    if not data:
        return True
    if codec == "vp8":
        return not data[0] >> 4 & 1
    last = data[-1]
    length = 2 + ((last >> 3 & 3) + 1) * ((last & 7) + 1)
    if last >> 5 == 0b110 and len(data) >= length and data[-length] == last:
        return False
    bits = f"{int.from_bytes(data[:2].ljust(2, b'0'), 'big'):016b}"
    profile = int(bits[3] + bits[2], 2)
    at = 5 if profile == 3 else 4
    repeats, shown = bits[at] == "1", bits[at + 2] == "1"
    return bits[:2] == "10" and not repeats and not shown


def list_packets(path: Path, container: "InputContainer", stream: "VideoStream", limits: Limits) -> Listing:
    """Lists the frames of a stream from its packets, without decoding.

    Raises:
      JvidpruneError: no frames, or more frames or seconds than allowed.
    """
    codec = stream.codec_context.name
    packets: list[_Seen] = []
    for packet in container.demux(stream):
        if packet.size:
            packets.append(_Seen(packet, codec))
            _check_total(path, len(packets), limits)
    shown = [packet for packet in packets if not packet.hidden]
    if not shown:
        where = ends_inside(path)
        raise JvidpruneError(
            f"{path} holds a video without frames."
            if where is None
            else f"{path} is cut off: the file ends inside {where}, before its first frame."
        )
    unit = float(stream.time_base or 0)
    rates = (_number(stream.average_rate), _number(stream.guessed_rate) or _number(stream.base_rate))
    stamps = [packet.pts for packet in shown if packet.pts is not None]
    times = None
    repeats = codec == "mpeg4" and any(packet.size <= _EMPTY_VOP for packet in shown)
    if len(stamps) == len(shown) == len(set(stamps)) and not repeats:
        order = np.argsort(np.asarray(stamps, np.int64), kind="stable")
        shown = [shown[place] for place in order.tolist()]
        times = np.asarray(stamps, np.int64)[order]
    lasts = np.asarray([packet.duration for packet in shown], np.int64)
    exact = "mp4" in container.format.name
    when = timing(len(shown), times, lasts, unit, *rates, exact=exact)
    if when.duration > limits.seconds:
        raise JvidpruneError(f"{path} lasts {when.duration:.0f} seconds, more than the {limits.seconds:g} allowed.")
    keys = np.asarray(sorted(p.pts for p in shown if p.key and p.pts is not None), np.int64)
    cut = _cut_off(path, container, stream, packets)
    return Listing(len(shown), when, times, keys, unit, rates, cut)


def _number(rate: object) -> float | None:
    return float(rate) if rate else None  # type: ignore[arg-type]


def _check_total(path: Path, frames: int, limits: Limits) -> None:
    if frames > limits.total:
        raise JvidpruneError(f"{path} holds more than the {limits.total} frames allowed.")


def _cut_off(path: Path, container: "InputContainer", stream: "VideoStream", packets: list[_Seen]) -> str | None:
    """The sentence for a file whose end is missing, where there is evidence for that.

    Numbers and durations that a container announces are none: edit lists leave frames out, empty chunks count, headers
    are written before the frames and by programs that guess.
    """
    where = ends_inside(path)
    if any(packet.corrupt for packet in packets[-3:]):
        where = where or "its last frame"
    if container.format.name == "dv" and container.size % packets[-1].size:
        where = where or "its last frame"
    if any(entry.pos + entry.size > container.size for entry in getattr(stream, "index_entries", ())):
        where = where or "its frames"
    if where is None:
        return None
    if stream.frames > len(packets):
        return f"{path} is cut off: it holds {len(packets)} of the {stream.frames} frames it announces."
    return f"{path} is cut off: the file ends inside {where}."


def _first_frame(container: "InputContainer", stream: "VideoStream") -> "VideoFrame | None":
    from av.error import FFmpegError

    try:
        return next(iter(container.decode(stream)), None)
    except FFmpegError:
        return None


def _count(path: Path, limits: Limits, choice: Choice, listed: Listing) -> Listing:
    """Lists the frames of a file by decoding all of it; where that breaks off, `cut` says so."""
    from av.error import FFmpegError

    stamps: list[int | None] = []
    lasts: list[int] = []
    cut = listed.cut
    with opened(path, limits, choice) as (container, stream, _):
        # Decoding frames side by side loses the mark of an incomplete one now and then.
        stream.thread_type = "SLICE"
        exact = "mp4" in container.format.name
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    cut = cut or f"{path} is damaged: frame {len(stamps)} of {listed.total} is incomplete."
                    break
                stamps.append(frame.pts)
                lasts.append(getattr(frame, "duration", 0) or 0)
                _check_total(path, len(stamps), limits)
        except FFmpegError as error:
            why = f"decoding ends at frame {len(stamps)} of {listed.total}: {reason(error).lower()}"
            cut = cut or f"{path} is damaged: {why}."
    if not stamps:
        raise JvidpruneError(cut or f"{path} holds a video without frames.")
    times = None
    if None not in stamps:
        given = np.asarray(stamps, np.int64)
        times = given if bool((np.diff(given) > 0).all()) else None
    when = timing(len(stamps), times, np.asarray(lasts, np.int64), listed.unit, *listed.rates, exact=exact)
    keys = listed.keys if times is None else listed.keys[np.isin(listed.keys, times)]
    return Listing(len(stamps), when, times, keys, listed.unit, listed.rates, cut)
