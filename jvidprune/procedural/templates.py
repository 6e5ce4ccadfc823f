"""Questions from templates, and the closed list of words they are made of.

Within a template every answer is equally likely whatever the text says: what `scenario.stage` draws is symmetric in
colours, shapes, places and directions, coins decide between yes and no, and options stand in random order.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from jvidprune.evals.items import LETTERS, POST_PROMPTS, Kind, Question
from jvidprune.procedural.categories import ALL_FOCUS, ALL_TEXTS, TEXTS
from jvidprune.procedural.drawing import DIRECTIONS
from jvidprune.procedural.scenario import moments, related
from jvidprune.procedural.world import COLOURS, GLYPHS, SHAPES, Scene, Thing

_T = TypeVar("_T")

RELATIONS = ("left", "right", "above", "below")
QUARTERS = ("first", "second", "third", "fourth")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
COUNTS = ("1", "2", "3", "4", "5")
LONGEST_SECOND = 16
"""Longest clip that seconds are asked in; longer ones are asked for quarters."""
_PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}
_PHRASES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}

_RIDERS: dict[str, tuple[str, ...]] = {
    "tiny_colour": ("tiny_where",),
    "tiny_where": ("tiny_colour",),
    "needle_colour": ("needle_shape",),
    "needle_shape": ("needle_colour",),
    "changed": ("now", "before", "did_change"),
    "now": ("changed", "before", "did_change"),
    "before": ("changed", "now", "did_change"),
    "did_change": ("changed", "now", "before"),
    "small_colour": ("small_shape",),
    "small_shape": ("small_colour",),
    "letter_of": ("letter_colour",),
    "letter_colour": ("letter_of",),
    "turn_first": ("turn_last",),
    "turn_last": ("turn_first",),
    "middle": ("earlier",),
    "earlier": ("middle",),
    "alike_direction": ("alike_mover", "pair", "pair_other"),
    "alike_mover": ("alike_direction", "pair", "pair_other"),
    "pair": ("pair_other",),
    "pair_other": ("pair",),
}
# Templates whose answers stay balanced in whatever clip they are asked.
_ANYWHERE = ("colour_of", "shape_of", "relation", "is_relation", "direction", "exists", "exists")


def questions(
    rng: np.random.Generator, scene: Scene, count: int, categories: Sequence[str], item: str
) -> list[Question]:
    """Up to `count` questions about a scene: one of its focus first, then others that it can answer."""
    riders = [name for name in _RIDERS.get(scene.template, ()) if _CATEGORY[name] in categories]
    later = [*(riders[i] for i in rng.permutation(len(riders)))][:1]
    anywhere = [name for name in _ANYWHERE if _CATEGORY[name] in categories]
    later += [anywhere[i] for i in rng.permutation(len(anywhere)).tolist()]
    asked: list[Question] = []
    for template in (scene.template, *later):
        if len(asked) == count:
            break
        ask = _Ask(rng, scene, template, f"{item}-{len(asked)}")
        question = ask.question()
        if question is not None and all(question.text != other.text for other in asked):
            asked.append(question)
    return asked


_CATEGORY = {template: category for category, templates in ALL_FOCUS.items() for template in templates}


def template_of(question: Question) -> str:
    """Name of the template that a question's text comes from, "" if it comes from none."""
    return _template(question.text)


@functools.lru_cache(maxsize=1 << 16)
def _template(text: str) -> str:
    return next((name for name, pattern in _PATTERNS if pattern.fullmatch(text)), "")


def _pattern(text: str) -> re.Pattern[str]:
    text = re.sub(r"\\\{(a|b|c|phrase)\\\}", r"\\w+(?: \\w+)?", re.escape(text))
    return re.compile(re.sub(r"\\\{\w+\\\}", r"\\w+", text))


_PATTERNS = [(name, _pattern(text)) for name, text in ALL_TEXTS.items()]


class _Ask:
    """One question in the making."""

    def __init__(self, rng: np.random.Generator, scene: Scene, template: str, name: str):
        self.rng, self.scene, self.template, self.name = rng, scene, template, name
        self.things = [thing for thing in scene.things if thing.role != "clutter"]
        self.mains = scene.mains

    def question(self) -> Question | None:
        maker: Callable[[], Question | None] = getattr(self, f"_{_MAKERS.get(self.template, self.template)}")
        return maker()

    def _coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def _pick(self, things: Sequence[_T]) -> _T | None:
        return things[int(self.rng.integers(len(things)))] if things else None

    def _make(self, kind: Kind, options: Sequence[str], answer: str, text: str = "", **words: str) -> Question:
        category = _CATEGORY[self.template]
        if kind == "choice":
            answer = LETTERS[list(options).index(answer)]
        text = ALL_TEXTS[text or self.template].format(**words)
        return Question(self.name, text, category, kind, tuple(options), answer)

    def _choice(self, pool: Sequence[str], answer: str, first: Sequence[str] = (), text: str = "", **words: str):
        """Four options at most in random order: the answer, then of `first`, then of the pool."""
        others = [name for name in dict.fromkeys([*self._shuffled(first), *self._shuffled(pool)]) if name != answer]
        return self._make("choice", self._shuffled([answer, *others[:3]]), answer, text, **words)

    def _shuffled(self, names: Sequence[_T]) -> list[_T]:
        return [names[i] for i in self.rng.permutation(len(names)).tolist()]

    def _word(self, pool: Sequence[str], answer: str, first: Sequence[str] = (), **words: str) -> Question:
        """A choice or a short answer of the same closed set, as a coin falls."""
        if self._coin():
            return self._choice(pool, answer, first, **words)
        return self._make("short", tuple(pool), answer, **words)

    def _yes_no(self, answer: bool, **words: str) -> Question:
        return self._make("yes_no", ("yes", "no"), "yes" if answer else "no", **words)

    def _steady(self) -> list[Thing]:
        """Main objects that keep their colour."""
        return [thing for thing in self.mains if thing.change is None]

    def _colours(self) -> list[str]:
        return [thing.colour for thing in self.things] + [thing.after for thing in self.things if thing.after]

    def _shapes(self) -> list[str]:
        return [thing.shape for thing in self.things]

    def _colour_of(self) -> Question | None:
        shapes = self._shapes()
        thing = self._pick([thing for thing in self._steady() if shapes.count(thing.shape) == 1])
        return thing and self._word(tuple(COLOURS), thing.colour, self._colours(), shape=thing.shape)

    def _shape_of(self) -> Question | None:
        colours = self._colours()
        thing = self._pick([thing for thing in self._steady() if colours.count(thing.colour) == 1])
        return thing and self._word(tuple(SHAPES), thing.shape, self._shapes(), colour=thing.colour)

    def _count(self) -> Question:
        # The cast of a counting story begins with what is counted.
        thing = self.mains[0]
        by_shape = self.template == "count_shape"
        many = sum(other.shape == thing.shape if by_shape else other.colour == thing.colour for other in self.mains)
        return self._word(
            COUNTS[: self.scene.knobs.counted], str(many), plural=_PLURALS[thing.shape], colour=thing.colour
        )

    def _related(self) -> list[tuple[Thing, Thing, str]]:
        things = self._named()
        if len(things) < 2:
            return []
        frames = np.arange(self.scene.knobs.frames)
        shown = np.array([(frames >= thing.start) & (frames < thing.stop) for thing in things])
        centre = np.stack([thing.centre for thing in things])
        holds = related(centre[:, None] - centre[None], shown[:, None] & shown[None], self.scene.knobs.side)
        return [(things[i], things[j], RELATIONS[k]) for i, j, k in np.argwhere(holds).tolist() if i != j]

    def _named(self) -> list[Thing]:
        """Main objects of one colour that no other object shares in both colour and shape."""
        names = [thing.name for thing in self.things]
        return [thing for thing in self._steady() if names.count(thing.name) == 1]

    def _relation(self) -> Question | None:
        found = self._pick(self._related())
        if not found:
            return None
        a, b, relation = found
        return self._word(RELATIONS, relation, a=a.name, b=b.name)

    def _is_relation(self) -> Question | None:
        found = self._pick(self._related())
        if not found:
            return None
        a, b, relation = found
        truth = self._coin()
        opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
        phrase = _PHRASES[relation if truth else opposite[relation]]
        return self._yes_no(truth, a=a.name, b=b.name, phrase=phrase)

    def _direction(self) -> Question | None:
        focus = self.template == self.scene.template
        named = [self.mains[0]] if focus else self._named()
        thing = self._pick([thing for thing in named if thing.direction in DIRECTIONS and not thing.turn])
        return thing and self._word(tuple(DIRECTIONS), thing.direction, a=thing.name)

    def _mover(self) -> Question:
        thing = self.mains[0]
        return self._which(thing, "mover_colour", direction=thing.direction)

    def _which(self, thing: Thing, short: str, **words: str) -> Question:
        """An object among those of the clip by its name, or its colour in one word."""
        if self._coin():
            names = [other.name for other in self.mains]
            return self._choice(names, thing.name, **words)
        if self._coin():
            return self._choice(tuple(COLOURS), thing.colour, self._colours(), short, **words)
        return self._make("short", tuple(COLOURS), thing.colour, short, **words)

    def _order(self) -> Question:
        two = sorted(self.mains[:2], key=lambda thing: thing.start)
        thing = two[0] if self.template == "first" else two[1]
        if self._coin():
            return self._choice([other.name for other in two], thing.name)
        a, b = self._shuffled([other.colour for other in two])
        return self._make("short", (a, b), thing.colour, f"{self.template}_colour", a=a, b=b)

    def _second(self) -> Question:
        flash = self.template.startswith("flash")
        frame = self.scene.flash if flash else self.mains[0].start
        assert frame is not None
        allowed = moments(self.template, self.scene.knobs.frames)
        if self._coin():
            # Options lie two seconds apart at least: all even or all odd.
            alike = [str(other + 1) for other in allowed if (other - frame) % 2 == 0]
            return self._choice(alike, str(frame + 1), a=self.mains[0].name)
        return self._make("short", [str(other + 1) for other in allowed], str(frame + 1), a=self.mains[0].name)

    def _quarter(self) -> Question:
        frame = self.scene.flash if self.template.startswith("flash") else self.mains[0].start
        assert frame is not None
        quarter = QUARTERS[frame * 4 // self.scene.knobs.frames]
        return self._word(QUARTERS, quarter, a=self.mains[0].name)

    def _tiny_colour(self) -> Question:
        return self._word(tuple(COLOURS), self.scene.only("tiny").colour, self._colours())

    def _tiny_where(self) -> Question:
        thing, half = self.scene.only("tiny"), self.scene.knobs.side / 2
        x, y = thing.centre[(thing.start + thing.stop) // 2]
        return self._choice(CORNERS, CORNERS[2 * int(y > half) + int(x > half)])

    def _exists(self) -> Question | None:
        thing = self._pick(self._named())
        if thing is None:
            return None
        if self._coin():
            return self._yes_no(True, an=_article(thing.name), a=thing.name)
        present = {thing.name for thing in self.things} | {f"{t.after} {t.shape}" for t in self.things if t.after}
        # A tiny dot could be called a circle: none is asked for beside one.
        tiny = any(thing.role == "tiny" for thing in self.things)
        # What is not there shares its colour or its shape with what is, and mostly the rest with something else.
        by_colour = [f"{thing.colour} {shape}" for shape in self._shapes()], [f"{thing.colour} {s}" for s in SHAPES]
        by_shape = [f"{colour} {thing.shape}" for colour in self._colours()], [f"{c} {thing.shape}" for c in COLOURS]
        pools = [by_colour, by_shape] if self._coin() else [by_shape, by_colour]
        near = self.rng.random() < 0.7
        for pool in [pools[0][0], pools[0][1], pools[1][1]] if near else [pools[0][1], pools[1][1]]:
            absent = [name for name in dict.fromkeys(pool) if name not in present]
            absent = [name for name in absent if not (tiny and name.endswith("circle"))]
            if absent:
                name = absent[int(self.rng.integers(len(absent)))]
                return self._yes_no(False, an=_article(name), a=name)
        return None

    def _was_flash(self) -> Question:
        return self._yes_no(self.scene.flash is not None)

    def _changed(self) -> Question:
        thing = self.mains[0]
        shapes = self._shapes()
        return self._word(tuple(SHAPES), thing.shape, shapes)

    def _colour_then(self) -> Question:
        thing = self.mains[0]
        assert thing.after is not None
        colours = [thing.after, thing.colour]
        colour = colours[self.template == "before"]
        if self._coin():
            # Both of its colours are among the options.
            rest = [name for name in self._colours() if name not in colours]
            rest += [name for name in self._shuffled(tuple(COLOURS)) if name not in (*rest, *colours)]
            return self._choice([*colours, *rest[:2]], colour, shape=thing.shape)
        return self._make("short", tuple(COLOURS), colour, shape=thing.shape)

    def _did_change(self) -> Question | None:
        truth = self._coin()
        thing = self.mains[0] if truth else self._pick(self._named())
        return thing and self._yes_no(truth, a=thing.name)

    def _vanished(self) -> Question:
        return self._which(self.mains[0], "vanished_colour")

    def _needle_colour(self) -> Question:
        return self._word(tuple(COLOURS), self.scene.only("needle").colour, self._colours())

    def _needle_shape(self) -> Question:
        return self._word(tuple(SHAPES), self.scene.only("needle").shape, self._shapes())

    def _small_colour(self) -> Question:
        thing = self.scene.only("small")
        return self._word(tuple(COLOURS), thing.colour, self._colours(), shape=thing.shape)

    def _small_shape(self) -> Question:
        thing = self.scene.only("small")
        return self._word(tuple(SHAPES), thing.shape, self._shapes(), colour=thing.colour)

    def _letters(self) -> list[Thing]:
        return [thing for thing in self.things if thing.role == "glyph"]

    def _letter_of(self) -> Question:
        thing = self._letters()[0]
        return self._word(GLYPHS, thing.shape, [other.shape for other in self._letters()], colour=thing.colour)

    def _letter_colour(self) -> Question:
        thing = self._letters()[0]
        return self._word(tuple(COLOURS), thing.colour, self._colours(), letter=thing.shape)

    def _turn(self) -> Question:
        thing = self.mains[0]
        assert thing.turn is not None
        way = thing.direction if self.template == "turn_first" else thing.turn
        return self._word(tuple(DIRECTIONS), way, a=thing.name)

    def _middle(self) -> Question:
        thing = sorted(self.mains, key=lambda thing: thing.start)[1]
        if self._coin():
            return self._choice([other.name for other in self.mains], thing.name)
        a, b, c = self._shuffled([other.colour for other in self.mains])
        return self._make("short", (a, b, c), thing.colour, "middle_colour", a=a, b=b, c=c)

    def _earlier(self) -> Question:
        one, other = self._shuffled(self.mains)[:2]
        return self._yes_no(one.start < other.start, a=one.name, b=other.name)

    def _alike_direction(self) -> Question:
        thing = self.mains[0]
        return self._word(tuple(DIRECTIONS), thing.direction, a=thing.name)

    def _alike_mover(self) -> Question:
        thing = self.mains[2 * int(self._coin())]
        return self._word(tuple(SHAPES), thing.shape, self._shapes(), colour=thing.colour, direction=thing.direction)

    def _pair(self) -> Question:
        """Of the two questions of a clip one is about what is there and one about what is not."""
        there = bool(self.scene.noise % 2) == (self.template == "pair")
        # Colour and shape are both there, but not of one object.
        _, by_shape, by_colour = self.mains[:3]
        name = self._shuffled(self.mains[:3])[0].name if there else f"{by_shape.colour} {by_colour.shape}"
        return self._yes_no(there, an=_article(name), a=name)


_MAKERS = {
    "count_shape": "count",
    "count_colour": "count",
    "first": "order",
    "last": "order",
    "flash_second": "second",
    "appear_second": "second",
    "flash_quarter": "quarter",
    "appear_quarter": "quarter",
    "now": "colour_then",
    "before": "colour_then",
    "turn_first": "turn",
    "turn_last": "turn",
    "pair_other": "pair",
}


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def words(detail: bool = False) -> tuple[str, ...]:
    """Every word, letter and mark that prompts with `POST_PROMPTS` and answers are made of, sorted.

    Args:
      detail: with those of the categories that need many tokens.
    """
    fillers = [*COLOURS, *SHAPES, *_PLURALS.values(), *DIRECTIONS, *RELATIONS, *_PHRASES.values()]
    fillers += [*QUARTERS, *CORNERS, *COUNTS, *(str(i + 1) for i in range(LONGEST_SECOND)), "yes", "no", "a", "an"]
    texts = [re.sub(r"\{\w+\}", " ", text) for text in (ALL_TEXTS if detail else TEXTS).values()] + list(
        POST_PROMPTS.values()
    )
    letters = [f"{letter}." for letter in LETTERS[:4]] + list(GLYPHS if detail else ())
    return tuple(sorted({word for text in [*fillers, *texts, *letters] for word in split(text)}))


def split(text: str) -> list[str]:
    """Words and marks of a text, white space left out."""
    return re.findall(r"\w+|[^\w\s]", text)
