"""Frames into a real video file."""

import math
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output
from jvidprune.video.resize import check_frames


def write_mp4(
    path: str | os.PathLike[str], frames: UInt8[np.ndarray, "frames height width 3"] | Sequence[np.ndarray], fps: float
) -> Path:
    """Writes frames as an mp4 file that plays everywhere: H.264 where PyAV has an encoder, MPEG-4 otherwise.

    The file appears whole or not at all. An odd side gains one repeated row or column: the colour planes of the codecs
    have half as many.

    Raises:
      JvidpruneError: frames that are no uint8 (frames, height, width, 3), a rate not above 0, or a place that cannot be
        written to.
    """
    import av
    from av.error import FFmpegError
    from av.video.stream import VideoStream

    check_frames(frames)
    if not 0 < fps < math.inf:
        raise JvidpruneError(f"a video file needs a rate above 0, not {fps}.")
    height, width = (side + side % 2 for side in frames[0].shape[:2])
    codec = _encoder()
    with atomic_output(path) as part:
        try:
            with av.open(
                f"file:{os.path.abspath(part)}", "w", format="mp4", options={"movflags": "faststart"}
            ) as container:
                stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(100_000))
                assert isinstance(stream, VideoStream)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                # One thread: the bytes of the file depend on how many share the work.
                stream.codec_context.thread_count = 1
                if codec == "mpeg4":
                    stream.bit_rate = int(0.3 * width * height * fps)
                else:
                    stream.codec_context.options = {"crf": "18", "preset": "veryfast"}
                for picture in frames:
                    grown = np.pad(picture, ((0, height - len(picture)), (0, width - picture.shape[1]), (0, 0)), "edge")
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(grown, format="rgb24")))
                container.mux(stream.encode())
        except (FFmpegError, OSError) as error:
            raise JvidpruneError(f"{path} cannot be written as a video: {error.strerror or error}.") from error
    return Path(path)


def _encoder() -> str:
    from av.codec import Codec

    try:
        return Codec("libx264", "w").name
    except ValueError:
        return "mpeg4"
