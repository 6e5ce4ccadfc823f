"""Files of pictures that Pillow reads: stills, which are no videos, and animated WebP, which PyAV cannot decode."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jvidprune.errors import JvidpruneError, reason
from jvidprune.video.display import Display, from_exif
from jvidprune.video.ends import ends_inside
from jvidprune.video.limits import Limits

_ORIENTATION = 0x0112
# Brands of still pictures in the container of mp4 files.
_STILL_BRANDS = ("avif", "mif1", "heic", "heix", "heim", "heis")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a file of pictures holds.

    Attributes:
      lasts: milliseconds that each picture is shown.
      size: width and height as stored.
      display: how they are turned.
      codec: name of the format, "png".
      cut: the sentence that says so where the end of the file is missing.
    """

    lasts: tuple[int, ...]
    size: tuple[int, int]
    display: Display
    codec: str
    cut: str | None


def is_webp(path: Path) -> bool:
    """Whether a file says that it is WebP."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        # Whoever opens it next says why.
        return False
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def is_still(format: str, brand: str) -> bool:
    """Whether a file of one frame in a format of PyAV is a picture by its kind, not a video of one frame."""
    return format.endswith("_pipe") or format in ("image2", "gif", "apng") or brand in _STILL_BRANDS


def readable(path: Path) -> bool:
    """Whether Pillow knows a file."""
    from PIL import Image

    try:
        with Image.open(path):
            return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def look(path: Path, limits: Limits, *, still: bool) -> Pictures:
    """What a file of pictures holds.

    Args:
      path: of the file.
      limits: what is accepted of it.
      still: the first picture is all that counts (pages of a TIFF file, the previews in a photograph).

    Raises:
      JvidpruneError: unreadable, or more pictures or pixels than allowed.
    """
    with _opened(path, limits) as image:
        total = 1 if still else getattr(image, "n_frames", 1)
        if total > limits.total:
            raise JvidpruneError(f"{path} holds more than the {limits.total} frames allowed.")
        codec = (image.format or "").lower()
        if total == 1:
            image.load()
            return Pictures((1000,), image.size, from_exif(image.getexif().get(_ORIENTATION, 1)), codec, _cut(path))
        lasts = []
        for number in range(total):
            image.seek(number)
            image.load()
            lasts.append(int(image.info.get("duration", 0)))
        return Pictures(tuple(lasts), image.size, Display(), codec, _cut(path))


def read(path: Path, numbers: Sequence[int], limits: Limits) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Pictures of a file as they are stored, by rising numbers.

    Raises:
      JvidpruneError: unreadable, or cut off.
    """
    with _opened(path, limits) as image:
        for number in numbers:
            if number:
                image.seek(number)
            yield number, np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[Any]:
    """A picture of Pillow; what goes wrong inside becomes one sentence."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > limits.pixels:
                size = f"{width} x {height} pixels"
                raise JvidpruneError(f"{path} has frames of {size}, more than the {limits.pixels} allowed.")
            yield image
    except JvidpruneError:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever their bytes lead them to.
        why = reason(error)
        ends = f"{path} is cut off: its picture is not all there." if "truncated" in why else None
        raise JvidpruneError(ends or _cut(path) or f"{path} cannot be read as a picture: {why}.") from error


def _cut(path: Path) -> str | None:
    where = ends_inside(path)
    return None if where is None else f"{path} is cut off: the file ends inside {where}."
