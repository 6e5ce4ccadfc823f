"""How a file wants its pictures turned and mirrored before they are shown: the whole display matrix, not its angle."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Mirroring and clockwise turn of the eight orientations that Exif counts.
_EXIF = {1: (0, False), 2: (0, True), 3: (180, False), 4: (180, True)} | {
    5: (270, True),
    6: (90, False),
    7: (90, True),
    8: (270, False),
}


@dataclasses.dataclass(frozen=True)
class Display:
    """What is done to a stored picture to show it upright: first mirrored, then turned.

    Attributes:
      rotation: degrees clockwise: 0, 90, 180 or 270.
      mirrored: left and right are swapped before the turn.
    """

    rotation: int = 0
    mirrored: bool = False

    def upright(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """The picture as it is shown."""
        if self.mirrored:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(np.rot90(picture, -(self.rotation // 90)))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as shown of those that are stored."""
        return (height, width) if self.rotation % 180 else (width, height)


def from_matrix(a: float, b: float, c: float, d: float) -> Display:
    """The display of a matrix that takes column x and row y to (a x + c y, b x + d y), as ISO/IEC 14496-12 has it.

    Scaling, moving and shearing are left out, angles rounded to the next quarter; a matrix of zeros is none.
    """
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    # What is left is a turn by t with a = d = cos t and b = -c = sin t, downward rows counted positive.
    quarters = round(math.atan2(b - c, a + d) / (math.pi / 2)) if (a, b, c, d) != (0, 0, 0, 0) else 0
    return Display(quarters % 4 * 90, mirrored)


def from_exif(orientation: int) -> Display:
    """The display of Exif's tag Orientation; numbers that it does not know turn nothing."""
    return Display(*_EXIF.get(orientation, (0, False)))


def display_of(frame: "VideoFrame") -> Display:
    """The display of a decoded frame, from the 3 x 3 matrix of its side data.

    PyAV's `frame.rotation` is the angle of this matrix alone: a mirror image has 180 degrees there.
    """
    from av.sidedata.sidedata import Type

    sides: Any = frame.side_data
    data = sides.get(Type.DISPLAYMATRIX)
    if data is None:
        return Display()
    matrix = np.frombuffer(data, np.int32)[:9].astype(np.float64).reshape(3, 3)
    return from_matrix(*matrix[:2, :2].ravel().tolist())
