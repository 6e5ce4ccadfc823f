"""Drawing in numpy: antialiased shapes with light and shadow, background patterns, and where shapes can go."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32

Backdrop = Literal["waves", "checks", "stripes", "dots"]
BACKDROPS: tuple[Backdrop, ...] = get_args(Backdrop)

RGB = tuple[int, int, int]
"""A colour, 0 to 255 each."""

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Signs of x and y, which count to the right and down."""

STILL, GREY = "still", "grey"
"""The direction of what does not move, and the colour of what has no part in a story."""


def _regular(corners: int, inner: float = 1.0) -> np.ndarray:
    """Corners of a polygon on the unit circle, first one on top; every second one at `inner` for stars."""
    angle = 2 * math.pi * np.arange(corners) / corners - math.pi / 2
    radius = np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


_CROSS = np.array([(a, b) for a, b in ((1, 3), (1, 1), (3, 1), (3, -1), (1, -1), (1, -3))], np.float64) / 3.2
_POLYGONS: dict[str, np.ndarray] = {
    "triangle": _regular(3),
    "square": _regular(4) @ np.array([[1, 1], [-1, 1]]) * math.sqrt(0.5),
    "diamond": _regular(4) * (0.72, 1.05),
    "hexagon": _regular(6),
    "star": _regular(10, 0.45),
    "cross": np.concatenate([_CROSS, -_CROSS]),
}
_STROKES: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "F": ((-0.5, -0.75, -0.5, 0.75), (-0.5, -0.75, 0.5, -0.75), (-0.5, 0, 0.3, 0)),
    "H": ((-0.5, -0.75, -0.5, 0.75), (0.5, -0.75, 0.5, 0.75), (-0.5, 0, 0.5, 0)),
    "K": ((-0.5, -0.75, -0.5, 0.75), (-0.5, 0, 0.5, -0.75), (-0.5, 0, 0.5, 0.75)),
    "L": ((-0.5, -0.75, -0.5, 0.75), (-0.5, 0.75, 0.5, 0.75)),
    "T": ((0, -0.75, 0, 0.75), (-0.6, -0.75, 0.6, -0.75)),
    "U": ((-0.5, -0.75, -0.5, 0.75), (0.5, -0.75, 0.5, 0.75), (-0.5, 0.75, 0.5, 0.75)),
    "X": ((-0.5, -0.75, 0.5, 0.75), (-0.5, 0.75, 0.5, -0.75)),
    "Z": ((-0.5, -0.75, 0.5, -0.75), (0.5, -0.75, -0.5, 0.75), (-0.5, 0.75, 0.5, 0.75)),
}
"""Letters as lines from x, y to x, y."""
_STROKE = 0.17
"""Half of a line's width."""
DRAWN_SHAPES = ("circle", "ring", *_POLYGONS)


def backdrop(
    name: Backdrop,
    rng: np.random.Generator,
    x: Float32[np.ndarray, "1 width"],
    y: Float32[np.ndarray, "height 1"],
    side: int,
) -> Float32[np.ndarray, "height width"]:
    """A pattern of values around -1 to 1 at world coordinates in pixels; its scale follows `side`."""
    return np.broadcast_to(_PATTERNS[name](rng, x, y, side), (y.shape[0], x.shape[1]))


def _waves(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    angle, phase, length = rng.uniform(0, math.pi, 4), rng.uniform(0, 6.28, 4), side * rng.uniform(0.25, 0.7, 4)
    waves = [
        np.sin((x * math.cos(a) + y * math.sin(a)) * (2 * math.pi / n) + p)
        for a, p, n in zip(angle, phase, length, strict=True)
    ]
    return 0.4 * np.sum(waves, axis=0)


def _checks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    pitch = math.pi / (side * rng.uniform(0.14, 0.22))
    return np.tanh(6 * np.sin(x * pitch)) * np.tanh(6 * np.sin(y * pitch)) * 0.6


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    turn, pitch = rng.uniform(0.3, 1.2), 2 * math.pi / (side * rng.uniform(0.14, 0.25))
    return np.tanh(5 * np.sin((x * math.cos(turn) + y * math.sin(turn)) * pitch)) * 0.6


def _dots(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    pitch = 2 * math.pi / (side * rng.uniform(0.14, 0.22))
    return np.tanh(5 * (np.cos(x * pitch) + np.cos(y * pitch) - 1.2)) * 0.6


_PATTERNS: dict[Backdrop, Callable[[np.random.Generator, np.ndarray, np.ndarray, int], np.ndarray]] = {
    "waves": _waves,
    "checks": _checks,
    "stripes": _stripes,
    "dots": _dots,
}


def stamp(
    canvas: Float32[np.ndarray, "height width 3"],
    shape: str,
    rgb: RGB,
    centre: tuple[float, float],
    radius: float,
    angle: float,
) -> None:
    """Draws one shape in place, with a soft shadow, a darker rim and light from the upper left.

    Args:
      canvas: grey levels 0..255.
      shape: one of `DRAWN_SHAPES`, or a letter.
      rgb: its colour.
      centre: x and y in pixels.
      radius: pixels, of the circle around the shape.
      angle: radians, clockwise.
    """
    x, y = centre
    reach = 1.6 * radius + 3
    left, top = max(0, math.floor(x - reach)), max(0, math.floor(y - reach))
    right, bottom = min(canvas.shape[1], math.ceil(x + reach)), min(canvas.shape[0], math.ceil(y + reach))
    if left >= right or top >= bottom:
        return
    u = ((np.arange(left, right) + 0.5 - x) / radius).astype(np.float32)[None, :]
    v = ((np.arange(top, bottom) + 0.5 - y) / radius).astype(np.float32)[:, None]
    region = canvas[top:bottom, left:right]
    shadow = 0.28 * np.clip(0.5 - _distance(shape, angle, u - 0.12, v - 0.18) / 0.3, 0, 1)
    region *= (1 - shadow)[..., None]
    edge = _distance(shape, angle, u, v) * radius
    light = 1.04 - 0.16 * (u + v) / 1.4
    rim = np.clip(0.5 + (edge + 0.1 * radius) / max(1.0, 0.05 * radius), 0, 1)
    colour = np.asarray(rgb, np.float32) * (light * (1 - 0.22 * rim))[..., None]
    cover = np.clip(0.5 - edge, 0, 1)[..., None]
    region += cover * (np.clip(colour, 0, 255) - region)


def _distance(shape: str, angle: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a shape of radius 1, negative inside."""
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * u + sin * v, cos * v - sin * u
    if shape == "circle":
        return np.hypot(u, v) - 1
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.72) - 0.27
    if shape in _STROKES:
        return np.min([_to_line(u, v, *line) for line in _STROKES[shape]], axis=0) - _STROKE
    corners = _POLYGONS[shape].tolist()
    nearest, inside = np.full(u.shape, np.inf, np.float32), np.zeros(u.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.square(u - ax - along * ex) + np.square(v - ay - along * ey))
        # Even-odd rule: edges to the right of a point that pass its height.
        if ey:
            inside ^= ((ay > v) != (by > v)) & (u < ax + (v - ay) * (ex / ey))
    return np.where(inside, -1, 1) * np.sqrt(nearest) - 0.05


def _to_line(u: np.ndarray, v: np.ndarray, ax: float, ay: float, bx: float, by: float) -> np.ndarray:
    """Distance to the line from a to b."""
    ex, ey = bx - ax, by - ay
    along = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0, 1)
    return np.hypot(u - ax - along * ex, v - ay - along * ey)
