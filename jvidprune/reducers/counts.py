"""How many tokens a share is: the two roundings of the references, and methods that keep an exact number.

>>> half_even(5, 0.5), half_up(5, 0.5)
(2, 3)
"""

from collections.abc import Callable
from typing import ClassVar, Literal

from jvidprune.reducers.protocol import PositionedReducer, check_ratio
from jvidprune.tokens import Layout

Rounding = Callable[[int, float], int]


def half_even(total: int, ratio: float) -> int:
    """max(1, round(ratio * n)) in float64, halves to even as Python rounds."""
    return max(1, round(ratio * total))


def half_up(total: int, ratio: float) -> int:
    """max(1, floor(n * ratio + 1/2)) in float64."""
    return max(1, int(total * ratio + 0.5))


class CountedReducer(PositionedReducer):
    """A method that keeps exactly `keep_for` tokens, of each frame or of the whole video.

    Attributes:
      scope: a field of the subclass.
      rounding: of the share.
    """

    scope: Literal["video", "frame"]
    rounding: ClassVar[Rounding] = staticmethod(half_even)

    def keep_for(self, layout: Layout, ratio: float) -> int:
        """Tokens of the video, or of each frame.

        Raises:
          JvidpruneError: an impossible ratio.
        """
        total = layout.total if self.scope == "video" else layout.tokens
        return type(self).rounding(total, check_ratio(ratio))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly those tokens; those of padding frames included where each frame keeps its own."""
        return self.keep_for(layout, ratio) * (1 if self.scope == "video" else layout.slots)

    @property
    def tokens_per_frame(self) -> Callable[[Layout, float], int] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Tokens kept of every frame, None where frames differ."""
        return None if self.scope == "video" else self.keep_for
