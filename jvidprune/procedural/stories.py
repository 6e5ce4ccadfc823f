"""Casts of the stories that need many tokens: small things, letters, turns, orders of three, look-alikes.

The benchmark's default asks about none of them; `benchmark.detailed` asks about all.
"""

from collections.abc import Callable, Mapping

import numpy as np

from jvidprune.procedural.drawing import DIRECTIONS, STILL
from jvidprune.procedural.world import GLYPHS, Thing

Cast = Callable[[np.random.Generator, int, list[str], list[str]], list[Thing]]
"""(rng, frames, all colours and all shapes in random order) to objects without places."""


def _ways(rng: np.random.Generator) -> list[str]:
    return [tuple(DIRECTIONS)[i] for i in rng.permutation(len(DIRECTIONS)).tolist()]


def _small(rng: np.random.Generator, frames: int, colours: list[str], shapes: list[str]) -> list[Thing]:
    """Five to seven small objects of different colours; the first has a shape of its own among them.

    A main object shares its shape or its colour, so that being small has to be seen.
    """
    many = int(rng.integers(5, 8))
    kinds = [(colours[0], shapes[0])] + [(colours[i], shapes[1 + int(rng.integers(4))]) for i in range(1, many)]
    other = (colours[0], shapes[1]) if rng.random() < 0.5 else (colours[many], shapes[0])
    main = Thing(*other, "main", 0, frames, _ways(rng)[0] if rng.random() < 0.5 else STILL)
    return [main, *(Thing(*kind, "small", 0, frames) for kind in kinds)]


def _letters(rng: np.random.Generator, frames: int, colours: list[str], shapes: list[str]) -> list[Thing]:
    """Two or three letters, each in view for half of the clip at least, and a main object."""
    letters = [GLYPHS[i] for i in rng.permutation(len(GLYPHS))[: int(rng.integers(2, 4))].tolist()]
    things = [Thing(colours[0], shapes[0], "main", 0, frames, _ways(rng)[0])]
    for number, letter in enumerate(letters, 1):
        length = int(rng.integers(frames // 2, frames + 1))
        start = int(rng.integers(frames - length + 1))
        things.append(Thing(colours[number], letter, "glyph", start, start + length))
    return things


def _turning(rng: np.random.Generator, frames: int, colours: list[str], shapes: list[str]) -> list[Thing]:
    """An object that turns half way, and one or two that do not."""
    ways = _ways(rng)
    things = [Thing(colours[0], shapes[0], "main", 0, frames, ways[0], turn=ways[1])]
    for number in range(1, int(rng.integers(2, 4))):
        things.append(Thing(colours[number], shapes[number], "main", 0, frames, ways[int(rng.integers(4))]))
    return things


def _three(rng: np.random.Generator, frames: int, colours: list[str], shapes: list[str]) -> list[Thing]:
    """Three objects that appear one after the other, at least two frames apart, in random order."""
    spots = np.sort(rng.integers(frames - 6, size=3)) + 2 * np.arange(3)
    return [
        Thing(colours[number], shapes[number], "main", start, frames)
        for number, start in enumerate(rng.permutation(spots).tolist())
    ]


def _alike(rng: np.random.Generator, frames: int, colours: list[str], shapes: list[str]) -> list[Thing]:
    """An object with one of its shape and one of its colour, all moving in different directions."""
    kinds = [(colours[0], shapes[0]), (colours[1], shapes[0]), (colours[0], shapes[1])]
    if rng.random() < 0.5:
        kinds.append((colours[2], shapes[2]))
    return [Thing(*kind, "main", 0, frames, way) for kind, way in zip(kinds, _ways(rng), strict=False)]


CASTS: Mapping[str, Cast] = {
    "small_colour": _small,
    "small_shape": _small,
    "letter_of": _letters,
    "letter_colour": _letters,
    "turn_first": _turning,
    "turn_last": _turning,
    "middle": _three,
    "earlier": _three,
    "alike_direction": _alike,
    "alike_mover": _alike,
    "pair": _alike,
    "pair_other": _alike,
}
"""By the template that a clip is staged for."""
