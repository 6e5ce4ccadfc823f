"""The world of the procedural benchmark: who is in a clip, where, when, and what happens to them.

`scenario` decides it, `paint` draws it, `templates` asks about it.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int64

from jvidprune.procedural.drawing import DIRECTIONS, RGB, STILL

COLOURS: dict[str, RGB] = {
    "red": (222, 40, 44),
    "orange": (245, 138, 24),
    "yellow": (248, 226, 60),
    "green": (44, 160, 62),
    "cyan": (70, 216, 226),
    "blue": (44, 84, 226),
    "purple": (132, 52, 180),
    "pink": (246, 130, 196),
}
# Of the shapes that are drawn, those that questions ask about: radius of the circle around one that makes all look
# equally large.
SHAPES: dict[str, float] = {"circle": 0.92, "square": 1.12, "triangle": 1.2, "cross": 1.08, "ring": 1.0}
GLYPHS = ("F", "H", "K", "L", "T", "U", "X", "Z")
"""Letters that are drawn and asked for; none is the letter of an option."""
COLOUR_IDS = {name: i + 1 for i, name in enumerate(COLOURS)}
"""Ids of colours in dense labels; 0 is background."""
SHAPE_IDS = {name: i + 1 for i, name in enumerate((*SHAPES, *GLYPHS))}
"""Ids of shapes in dense labels, those of letters last; 0 is background."""
DIRECTION_IDS = {name: i + 1 for i, name in enumerate((*DIRECTIONS, STILL))}
"""Ids of directions in dense labels; 0 is background."""


@dataclasses.dataclass(frozen=True)
class Knobs:
    """How large and how hard a clip is; lengths in pixels of an 84-pixel image, scaled to the side.

    Attributes:
      frames: length, at one frame a second.
      side: height and width in pixels.
      objects: most main objects in view at a time, 2 to 5.
      clutter: small grey shapes behind.
      cuts: most hard cuts where a story allows them.
      texture: contrast of backgrounds, 0 to 1.
      noise: standard deviation of sensor noise in grey levels.
      camera: pixels that the camera moves over a clip.
      posts: most grey posts in front, which objects pass behind.
      crowding: share of its time that an object may touch or overlap another, 0 to 1.
      size: factor of the radius of main objects.
      counted: most objects of a kind that are counted, 4 or 5.
    """

    frames: int
    side: int
    objects: int
    clutter: int
    cuts: int
    texture: float
    noise: float
    camera: float
    posts: int
    crowding: float
    size: float = 1.0
    counted: int = 4


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
      colour: name in `COLOURS`, "grey" for clutter.
      shape: name in `SHAPES`, of a glyph in `GLYPHS`.
      role: "main", "tiny" (a dot of few pixels), "needle" (in view for one frame), "small" (one of many that are half
        as wide as a main one), "glyph" (a letter) or "clutter".
      start: first frame in view.
      stop: frame after the last.
      direction: where it moves in the world: left, right, up, down or still.
      radius: pixels of the circle around it.
      centre: (frames, 2) x and y in pixels of the image, also where it is not in view.
      change: frame from which its colour is `after`, None for no change.
      after: colour after the change.
      turn: where it moves in the second half of its time, None for where it moved before.
    """

    colour: str
    shape: str
    role: str
    start: int
    stop: int
    direction: str = STILL
    radius: float = 0.0
    centre: Float64[np.ndarray, "frames 2"] = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))
    change: int | None = None
    after: str | None = None
    turn: str | None = None

    @property
    def name(self) -> str:
        """As questions call it, e.g. "red circle"."""
        return f"{self.colour} {self.shape}"

    def colour_at(self, frame: int) -> str:
        """Name of its colour in a frame."""
        return self.after if self.after and self.change is not None and frame >= self.change else self.colour

    def direction_at(self, frame: int) -> str:
        """Where it moves to reach its place in a frame."""
        return self.turn if self.turn and 2 * frame > self.start + self.stop - 1 else self.direction


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything that happens in a clip.

    Attributes:
      knobs: what it was staged with.
      focus: category that the clip is made for.
      template: name of the template of the focus.
      things: objects in the order they are drawn, clutter first.
      cuts: first frames after a cut.
      flash: frame of a flash of light, None for none.
      camera: (frames, 2) whole pixels that the camera has moved right and down.
      skies: grey level or tint of the background of each shot.
      backdrops: name and number of the background pattern of each shot.
      posts: left edges and widths of posts in pixels.
      noise: where in the table of noise the clip's begins.
    """

    knobs: Knobs
    focus: str
    template: str
    things: tuple[Thing, ...]
    cuts: tuple[int, ...]
    flash: int | None
    camera: Int64[np.ndarray, "frames 2"]
    skies: tuple[RGB, ...]
    backdrops: tuple[tuple[str, int], ...]
    posts: tuple[tuple[int, int], ...]
    noise: int

    @property
    def mains(self) -> tuple[Thing, ...]:
        """Objects that take part without being tiny, small, a letter or in view for one frame only."""
        return tuple(thing for thing in self.things if thing.role == "main")

    def only(self, role: str) -> Thing:
        """The one object of a role."""
        return next(thing for thing in self.things if thing.role == role)
