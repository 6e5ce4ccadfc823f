"""Generated clips: coloured shapes that move, cuts, camera motion and distractors, with everything about them known.

`script` decides what happens from a seed, `render` draws it, `write_mp4` makes a real file of frames. A benchmark can
ask about the objects and scenes of a script (which colour, which direction, before or after which cut).
"""

import dataclasses
import hashlib
import itertools
import math
import os
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from jvidprune.errors import JvidpruneError
from jvidprune.procedural.drawing import BACKDROPS, DIRECTIONS, DRAWN_SHAPES, GREY, RGB, Backdrop, backdrop, stamp
from jvidprune.video.encode import write_mp4
from jvidprune.video.resize import map_frames

Camera = Literal["static", "pan", "zoom", "shake"]
Motion = Literal["left", "right", "up", "down", "orbit", "bounce", "still"]
CAMERAS: tuple[Camera, ...] = get_args(Camera)
MOTIONS: tuple[Motion, ...] = get_args(Motion)

SOFT_COLOURS: dict[str, RGB] = {
    "red": (222, 62, 62),
    "orange": (240, 140, 40),
    "yellow": (246, 208, 60),
    "green": (70, 168, 92),
    "teal": (38, 166, 170),
    "blue": (62, 110, 220),
    "purple": (140, 86, 200),
    "pink": (236, 112, 168),
}
_DULL = (128, 132, 140)
_SKIES = (
    ((226, 236, 246), (180, 204, 228)),
    ((250, 238, 220), (232, 206, 176)),
    ((226, 242, 228), (180, 212, 190)),
    ((240, 230, 246), (204, 188, 222)),
    ((66, 74, 96), (36, 42, 60)),
)


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """What a generated clip is made from; equal specs give equal clips.

    Attributes:
      seed: of every choice.
      frames: length of the clip.
      fps: frames per second.
      size: height and width in pixels.
      shapes: moving coloured shapes in a scene; their colours differ.
      distractors: small grey shapes in a scene that drift without a part in the story.
      cuts: hard cuts; there is one scene more.
      camera: motion of the camera, None for another one in each scene.
      texture: contrast of the background pattern, 0 to 1.
      noise: standard deviation of the sensor noise in grey levels.

    Raises:
      JvidpruneError: a value outside its range.
    """

    seed: int = 0
    frames: int = 64
    fps: float = 8.0
    size: tuple[int, int] = (288, 384)
    shapes: int = 3
    distractors: int = 4
    cuts: int = 2
    camera: Camera | None = None
    texture: float = 0.5
    noise: float = 1.5

    def __post_init__(self):
        if self.frames < 1:
            raise JvidpruneError(f"a clip needs at least 1 frame, got {self.frames}.")
        if not 0 < self.fps < math.inf:
            raise JvidpruneError(f"a clip needs a rate above 0, got {self.fps}.")
        if self.seed < 0:
            raise JvidpruneError(f"the seed of a clip must be at least 0, got {self.seed}.")
        if min(self.size) < 16:
            raise JvidpruneError(f"a clip needs at least 16 x 16 pixels, not {self.size[0]} x {self.size[1]}.")
        if not 0 <= self.shapes <= len(SOFT_COLOURS):
            raise JvidpruneError(f"a scene holds 0 to {len(SOFT_COLOURS)} shapes, got {self.shapes}.")
        if self.distractors < 0:
            raise JvidpruneError(f"a scene holds 0 distractors or more, got {self.distractors}.")
        if not 0 <= self.cuts < self.frames:
            raise JvidpruneError(f"{self.frames} frames can have 0 to {self.frames - 1} cuts, not {self.cuts}.")
        if not (0 <= self.texture <= 1 and 0 <= self.noise <= 64):
            raise JvidpruneError(f"texture lies in 0..1 and noise in 0..64, not {self.texture} and {self.noise}.")


@dataclasses.dataclass(frozen=True)
class Shot:
    """Frames between two cuts.

    Attributes:
      start: first frame.
      stop: frame after the last.
      camera: how it moves.
      shift: (frames, 2) x and y of the camera in pixels, relative to the middle.
      zoom: (frames,) magnification.
      backdrop: pattern of the background.
      sky: colours at the top and at the bottom.
    """

    start: int
    stop: int
    camera: Camera
    shift: Float64[np.ndarray, "frames 2"]
    zoom: Float64[np.ndarray, "frames"]
    backdrop: Backdrop
    sky: tuple[RGB, RGB]


@dataclasses.dataclass(frozen=True)
class ClipObject:
    """One shape through one scene.

    Attributes:
      scene: index of its scene.
      shape: one of `DRAWN_SHAPES`.
      colour: a name in `SOFT_COLOURS`, "grey" for a distractor.
      rgb: the colour drawn.
      distractor: whether it has no part in the story.
      motion: how it moves in the world; the camera's motion comes on top.
      centre: (frames, 2) x and y in pixels of the image, frame by frame of its scene.
      radius: (frames,) pixels of the image.
      angle: (frames,) radians, clockwise.
      visible: (frames,) bool, whether its centre lies inside the image (others drawn later may cover it).
    """

    scene: int
    shape: str
    colour: str
    rgb: RGB
    distractor: bool
    motion: Motion
    centre: Float64[np.ndarray, "frames 2"]
    radius: Float64[np.ndarray, "frames"]
    angle: Float64[np.ndarray, "frames"]
    visible: np.ndarray


@dataclasses.dataclass(frozen=True)
class Script:
    """Everything that happens in a clip: scenes in order, objects in the order they are drawn."""

    spec: ClipSpec
    scenes: tuple[Shot, ...]
    objects: tuple[ClipObject, ...]


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A clip and what is in it.

    Attributes:
      frames: (frames, height, width, 3) uint8 RGB.
      script: the ground truth.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    script: Script

    @property
    def spec(self) -> ClipSpec:
        """What the clip was made from."""
        return self.script.spec


def script(spec: ClipSpec) -> Script:
    """Decides what happens in a clip, without drawing it."""
    rng = np.random.default_rng([spec.seed, 0])
    scenes, objects = [], []
    edges = np.linspace(0, spec.frames, spec.cuts + 2)
    # Cuts off the regular grid, but never so far that a scene loses its frames.
    jitter = rng.uniform(-0.25, 0.25, len(edges)) * (edges[1] - edges[0] - 1)
    edges[1:-1] += jitter[1:-1]
    bounds = [math.floor(edge + 0.5) for edge in edges.tolist()]
    skies, backdrops = rng.permutation(len(_SKIES)), rng.permutation(len(BACKDROPS))
    cameras = rng.permutation(len(CAMERAS))
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        camera = spec.camera or CAMERAS[cameras[number % len(cameras)]]
        shift, zoom = _camera_path(rng, spec, camera, stop - start)
        backdrop = BACKDROPS[backdrops[number % len(backdrops)]]
        sky = _SKIES[skies[number % len(skies)]]
        scenes.append(Shot(start, stop, camera, shift, zoom, backdrop, sky))
        objects += _cast(rng, spec, number, scenes[-1])
    return Script(spec, tuple(scenes), tuple(objects))


def _camera_path(
    rng: np.random.Generator, spec: ClipSpec, camera: Camera, frames: int
) -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(-1, 1, frames) if frames > 1 else np.zeros(1)
    reach = 0.12 * min(spec.size)
    turn = rng.uniform(0, 2 * math.pi)
    direction = np.array([math.cos(turn), 0.5 * math.sin(turn)])
    phase = rng.uniform(0, 2 * math.pi, (2, 3))
    speed = rng.uniform(2, 7, (2, 3))
    shift, zoom = np.zeros((frames, 2)), np.ones(frames)
    if camera == "pan":
        shift = reach * t[:, None] * direction
    elif camera == "zoom":
        zoom = 1.2 + 0.2 * t * (1 if turn < math.pi else -1)
    elif camera == "shake":
        shift = 0.1 * reach * np.sin(speed * t[:, None, None] * 2 + phase).sum(-1)
    return shift, zoom


def _cast(rng: np.random.Generator, spec: ClipSpec, number: int, scene: Shot) -> list[ClipObject]:
    """The objects of a scene: distractors behind, shapes in front."""
    frames = scene.stop - scene.start
    t = np.linspace(-1, 1, frames) if frames > 1 else np.zeros(1)
    middle = np.array([spec.size[1], spec.size[0]]) / 2
    names = rng.permutation(list(SOFT_COLOURS)).tolist()
    homes = _spread(rng, spec.distractors + spec.shapes)
    objects = []
    for i, home in enumerate(homes):
        distractor = i < spec.distractors
        motion: Motion = MOTIONS[int(rng.integers(len(MOTIONS)))]
        size = rng.uniform(0.035, 0.055) if distractor else rng.uniform(0.1, 0.15)
        travel = _travel(rng, motion, t) * (0.25 if distractor else 1.0)
        world = middle + (home + travel) * (middle - 0.1 * min(spec.size))
        centre = (world - middle - scene.shift) * scene.zoom[:, None] + middle
        shape = DRAWN_SHAPES[int(rng.integers(len(DRAWN_SHAPES)))]
        colour = GREY if distractor else names[i - spec.distractors]
        spin = rng.uniform(-0.9, 0.9) * t + rng.uniform(-0.3, 0.3)
        inside = np.asarray(((centre >= 0) & (centre < 2 * middle)).all(1))
        radius = size * min(spec.size) * scene.zoom
        rgb = _DULL if distractor else SOFT_COLOURS[colour]
        objects.append(ClipObject(number, shape, colour, rgb, distractor, motion, centre, radius, spin, inside))
    return objects


def _spread(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Places in [-0.75, 0.75]^2 away from each other: the best of a few draws each."""
    homes: list[np.ndarray] = []
    for _ in range(count):
        draws = rng.uniform(-0.75, 0.75, (12, 2))
        gaps = [min((float(np.hypot(*(draw - home))) for home in homes), default=1.0) for draw in draws]
        homes.append(draws[int(np.argmax(gaps))])
    return homes


def _travel(rng: np.random.Generator, motion: Motion, t: np.ndarray) -> np.ndarray:
    """(frames, 2) way of an object relative to its home, in half image sides."""
    far, phase = rng.uniform(0.35, 0.6), rng.uniform(0, 2 * math.pi)
    zero = np.zeros_like(t)
    if motion in DIRECTIONS:
        return far * t[:, None] * np.array(DIRECTIONS[motion])
    if motion == "orbit":
        return 0.3 * np.stack([np.cos(math.pi * t + phase), np.sin(math.pi * t + phase)], 1)
    if motion == "bounce":
        return np.stack([0.4 * far * t, -0.4 * np.abs(np.sin(1.5 * math.pi * t + phase))], 1)
    return np.stack([zero, zero], 1)


def render(spec: ClipSpec | Script, *, workers: int | None = None) -> Rendered:
    """Draws a clip.

    Args:
      spec: what to make a script from, or a script of one's own.
      workers: threads; by default one a core.
    """
    story = script(spec) if isinstance(spec, ClipSpec) else spec
    shots = [(number, i) for number, scene in enumerate(story.scenes) for i in range(scene.stop - scene.start)]
    return Rendered(np.stack(map_frames(lambda shot: _draw(story, *shot), shots, workers)), story)


def _draw(story: Script, number: int, i: int) -> UInt8[np.ndarray, "height width 3"]:
    scene, spec = story.scenes[number], story.spec
    canvas = _background(spec, number, scene, i)
    for thing in story.objects:
        if thing.scene == number:
            stamp(canvas, thing.shape, thing.rgb, tuple(thing.centre[i]), float(thing.radius[i]), float(thing.angle[i]))
    rng = np.random.default_rng([spec.seed, 1, scene.start + i])
    canvas += spec.noise * rng.standard_normal((*spec.size, 1), np.float32)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _background(spec: ClipSpec, number: int, scene: Shot, i: int) -> Float32[np.ndarray, "height width 3"]:
    height, width = spec.size
    zoom, (right, down) = scene.zoom[i], scene.shift[i]
    x = ((np.arange(width) - width / 2) / zoom + right).astype(np.float32)[None, :]
    y = ((np.arange(height) - height / 2) / zoom + down).astype(np.float32)[:, None]
    top, bottom = np.asarray(scene.sky, np.float32)
    canvas = top + (bottom - top) * np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    pattern = backdrop(scene.backdrop, np.random.default_rng([spec.seed, 2, number]), x, y, min(spec.size))
    return canvas + np.float32(26 * spec.texture) * pattern[..., None]


# Drawn anew under another name whenever the drawing changes.
_DRAWING = 1


def default_clip(cache_dir: str | os.PathLike[str], spec: ClipSpec = ClipSpec()) -> Path:
    """The clip that stands in where a user gives no video: made once in a folder, the same on every machine.

    Args:
      cache_dir: folder, created if it is not there.
      spec: another clip to be kept there; each has its own name.

    Raises:
      JvidpruneError: the folder cannot be written to.
    """
    name = hashlib.sha256(f"{_DRAWING} {spec}".encode()).hexdigest()[:8]
    path = Path(cache_dir) / f"clip-{name}.mp4"
    return path if path.is_file() else write_mp4(path, render(spec).frames, spec.fps)
