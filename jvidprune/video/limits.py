"""What reading a video file may cost, so that no file from anywhere can take the machine."""

import dataclasses
import math

from jvidprune.errors import JvidpruneError


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that is accepted of a video file; what lies beyond is refused in one sentence, before it is allocated.

    Attributes:
      pixels: width * height of a frame.
      frames: frames asked for at once.
      bytes: memory of the frames asked for, in RGB.
      total: frames in the file.
      seconds: length of the file.

    Raises:
      JvidpruneError: a limit that is not above 0.
    """

    pixels: int = 8192 * 8192
    frames: int = 4096
    bytes: int = 8 << 30
    total: int = 4_000_000
    seconds: float = 48 * 3600.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise JvidpruneError(f"the limit {field.name} must be a number above 0, not {value!r}.")

    @classmethod
    def from_text(cls, text: str, base: "Limits | None" = None) -> "Limits":
        """Limits from "seconds=3600,pixels=2000000"; those not named are those of `base`, by default `DEFAULT`.

        Raises:
          JvidpruneError: an unknown name, or a value that is no number above 0.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        given: dict[str, float] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in names:
                raise JvidpruneError(f"there is no limit {name!r}; there are {', '.join(names)}, written name=number.")
            try:
                given[name] = float(value) if name == "seconds" else int(float(value))
            except (ValueError, OverflowError):
                raise JvidpruneError(f"the limit {name} must be a number above 0, not {value!r}.") from None
        return dataclasses.replace(base or DEFAULT, **given)


DEFAULT = Limits()
"""Generous: two days of film, frames of 67 megapixels, 8 GiB of frames."""
