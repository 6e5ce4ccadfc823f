"""Easier questions that only training asks: on which side an object is or goes, called by one word or by two.

The benchmark asks for relations and directions of objects that are called by colour and shape. Both follow from steps
that these questions ask for one by one; without them the language model stays at chance for thousands of steps.
"""

from typing import NamedTuple

import numpy as np

from jvidprune.evals.items import Question
from jvidprune.procedural.world import Scene, Thing

CATEGORY = "place"
"""Of these questions; the benchmark has none of that name."""

SPARE = 0.08
"""Part of the side within which nobody is asked on which side of the middle an object is."""
APART = 0.2
"""Part of the side that two objects are apart, always, where one is asked to be left or right of the other."""

_SIDES = (("left", "right"), ("above", "below"))
_WAYS = (("left", "right"), ("up", "down"))


def place_questions(rng: np.random.Generator, scene: Scene, count: int) -> list[Question]:
    """Up to `count` questions on sides of the middle, of other objects, and on ways; all answers are one word.

    Args:
      rng: of the draw.
      scene: what the clip shows.
      count: most questions.
    """
    called = [(thing, name) for thing in scene.mains if thing.change is None for name in _called(scene, thing)]
    sides = [question for thing, name in called for question in _sides(scene, thing, name)]
    groups = [
        [question for question in sides if question.when == "always"],
        [question for question in sides if question.when != "always"],
        [question for thing, name in called for question in _ways(thing, name)],
        [question for a, one in called for b, other in called for question in _relations(scene, a, b, one, other)],
    ]
    # One of each kind in turn: of the simplest there are few.
    lots = [(turn + rng.random(), group[i]) for group in groups for turn, i in enumerate(rng.permutation(len(group)))]
    chosen = [question for _, question in sorted(lots, key=lambda lot: lot[0])[:count]]
    return [Question("", one.text, CATEGORY, "short", one.options, one.answer) for one in chosen]


class _Asked(NamedTuple):
    text: str
    options: tuple[str, str]
    answer: str
    when: str = "always"


def _called(scene: Scene, thing: Thing) -> list[str]:
    """What a question may call an object: its colour or its shape alone where no other has it, or both."""
    others = [other for other in scene.things if other.role != "clutter" and other is not thing]
    names = []
    if all(thing.colour not in (other.colour, other.after) for other in others):
        names.append(f"{thing.colour} object")
    if all(thing.shape != other.shape for other in others):
        names.append(thing.shape)
    if all(thing.name != other.name for other in others):
        names.append(thing.name)
    return names


def _sides(scene: Scene, thing: Thing, name: str) -> list[_Asked]:
    off = thing.centre[thing.start : thing.stop] - scene.knobs.side / 2
    found = []
    for axis, pair in enumerate(_SIDES):
        parts = {"always": off[:, axis], "at the start": off[:1, axis], "at the end": off[-1:, axis]}
        for when, part in parts.items():
            time = "" if when == "always" else f" {when}"
            for side, answer in zip((-1, 1), pair, strict=True):
                if (side * part > SPARE * scene.knobs.side).all():
                    found.append(_Asked(f"is the {name} {pair[0]} or {pair[1]}{time}?", pair, answer, when))
    return found


def _ways(thing: Thing, name: str) -> list[_Asked]:
    pairs = () if thing.turn else tuple(pair for pair in _WAYS if thing.direction in pair)
    return [_Asked(f"does the {name} go {pair[0]} or {pair[1]}?", pair, thing.direction) for pair in pairs]


def _relations(scene: Scene, a: Thing, b: Thing, one: str, other: str) -> list[_Asked]:
    both = slice(max(a.start, b.start), min(a.stop, b.stop))
    gap = a.centre[both] - b.centre[both]
    found = []
    for axis, pair in enumerate(_SIDES):
        for side, answer in zip((-1, 1), pair, strict=True):
            if len(gap) and (side * gap[:, axis] > APART * scene.knobs.side).all():
                found.append(_Asked(f"is the {one} {pair[0]} or {pair[1]} of the {other}?", pair, answer))
    return found
