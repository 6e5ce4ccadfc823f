"""Linear read-outs: ridge regressions that are fitted once on all tokens of clips of their own, in closed form.

What they are then given is the rows of a reduction and nothing else, as a language model is whose weights stay as they
are; no read-out is fitted to a method. Three regressions:

1. token -> which of the colours and shapes it shows (0 or 1 for each; none for the background), on all tokens.
2. token -> x and y of its middle, on the tokens that show an object.
3. clip -> number of its objects, from the highest score of each colour and shape over all tokens.

Clips are then read by maxima over rows. A row stands in the frame of its `index`, as in a prompt.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from jvidprune.evals.probe.measures import ProbedRows, Sums
from jvidprune.procedural.masks import Masks
from jvidprune.procedural.world import COLOURS, SHAPES, Thing

NEAR = 0.2
"""Of the image's side: how far off a place may be that is right."""

PENALTY = 1e-3
"""Of a ridge, as a share of the mean squared feature."""

ROLES = ("main", "tiny", "needle")
"""Objects that questions can ask about."""


class Ridge(NamedTuple):
    """A fitted regression: `x @ slope + offset`."""

    slope: Float[np.ndarray, "D Y"]
    offset: Float[np.ndarray, "Y"]

    def __call__(self, x: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "K Y"]:
        return x @ self.slope + self.offset


class Moments:
    """Sums over rows that a ridge is solved from, so that no more than one clip is held at a time."""

    def __init__(self, width: int, targets: int):
        self._gram, self._cross = np.zeros((width + 1, width + 1)), np.zeros((width + 1, targets))

    def add(self, x: Float[np.ndarray, "K D"], y: Float[np.ndarray, "K Y"]) -> None:
        """Takes rows in."""
        one = np.concatenate([x, np.ones((len(x), 1), x.dtype)], 1).astype(np.float64)
        self._gram += one.T @ one
        self._cross += one.T @ y

    def solve(self, penalty: float = PENALTY) -> Ridge:
        """min |x w + b - y|^2 / n + penalty * mean(x^2) |w|^2, with the offset b free."""
        rows = max(self._gram[-1, -1], 1.0)
        size = np.diag(self._gram)[:-1].mean() / rows
        lead = np.diag(np.append(np.full(len(self._gram) - 1, penalty * size * rows), 0.0))
        found = np.linalg.lstsq(self._gram + lead, self._cross, rcond=None)[0]
        return Ridge(found[:-1], found[-1])


def shown_by(found: Masks, frames: int) -> Float[np.ndarray, "S 13"]:
    """1 for the colour and the shape that each token shows."""
    cells = found.grid[0] * found.grid[1]
    first = np.arange(found.steps) * frames // found.steps
    out = np.zeros((len(found.owner), len(COLOURS) + len(SHAPES)))
    names, shapes = list(COLOURS), list(SHAPES)
    for token in np.flatnonzero(found.owner >= 0).tolist():
        thing = found.things[found.owner[token]]
        out[token, names.index(thing.colour_at(int(first[token // cells])))] = 1
        out[token, len(names) + shapes.index(thing.shape)] = 1
    return out


COLOUR, SHAPE = slice(0, len(COLOURS)), slice(len(COLOURS), len(COLOURS) + len(SHAPES))
"""Where the scores of colours and of shapes stand."""


def asked_pairs(found: Masks) -> list[tuple[int, slice, int]]:
    """What is asked about the objects of a clip: (score of what is named, scores that answer, the right one of these).

    An object is named by its colour where no other has it, and by its shape alike; those that change colour are not
    asked about.
    """
    things = [thing for i, thing in enumerate(found.things) if thing.role in ROLES and found.shown[i].any()]
    colours = [colour for thing in things for colour in (thing.colour, thing.after) if colour]
    shapes = [thing.shape for thing in things]
    out = []
    for thing in things:
        colour, shape = list(COLOURS).index(thing.colour), SHAPE.start + list(SHAPES).index(thing.shape)
        if thing.change is None and colours.count(thing.colour) == 1:
            out.append((colour, SHAPE, shape))
        if thing.change is None and shapes.count(thing.shape) == 1:
            out.append((shape, COLOUR, colour))
    return out


def middles(grid: tuple[int, int], steps: int) -> Float[np.ndarray, "S 2"]:
    """x and y of the middle of each token, as shares of the image's sides."""
    rows, columns = grid
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return np.tile(np.stack([x.ravel(), y.ravel()], 1), (steps, 1))


@dataclasses.dataclass
class Fitting:
    """Gathers clips and fits the three regressions on them."""

    width: int

    def __post_init__(self) -> None:
        self._what = Moments(self.width, len(COLOURS) + len(SHAPES))
        self._where = Moments(self.width, 2)
        self._clips: list[tuple[np.ndarray, int]] = []

    def add(self, features: Float32[np.ndarray, "M D"], found: Masks, frames: int) -> None:
        """Takes a clip in.

        Args:
          features: every token.
          found: masks on these.
          frames: of the clip.
        """
        self._what.add(features, shown_by(found, frames))
        some = found.of()
        self._where.add(features[some], middles(found.grid, found.steps)[some])
        self._clips.append((features, number(found.things)))

    def fit(self) -> "Readouts":
        """The regressions; the clips that were taken in are let go."""
        what, where = self._what.solve(), self._where.solve()
        scores = np.array([what(features).max(0) for features, _ in self._clips])
        counts = np.array([count for _, count in self._clips], np.float64)
        many = Moments(scores.shape[1], 1)
        many.add(scores, counts[:, None])
        self._clips.clear()
        return Readouts(what, where, many.solve(), float(np.median(counts)))


def number(things: Sequence[Thing]) -> int:
    """Objects of a clip that questions can ask about."""
    return sum(thing.role in ROLES for thing in things)


@dataclasses.dataclass(frozen=True)
class Readouts:
    """The fitted regressions.

    Attributes:
      what: token -> colours and shapes.
      where: token -> x and y.
      many: highest scores of a clip -> number of objects.
      usual: the median number of objects of the clips they were fitted on.
    """

    what: Ridge
    where: Ridge
    many: Ridge
    usual: float

    def read(self, rows: ProbedRows, found: Masks, side: int) -> Sums:
        """Measures of what the rows still tell.

        Args:
          rows: of a reduction.
          found: masks of the clip on its tokens.
          side: of the image in pixels.
        """
        scores = self.what(rows.tokens)
        best = scores.max(0)
        sums: Sums = {}
        pairs = asked_pairs(found)
        if pairs:
            told = [(to.start + int(scores[scores[:, of].argmax(), to].argmax())) == answer for of, to, answer in pairs]
            sums["attribute"] = float(sum(told)), float(len(told))
        right, asked = 0, 0
        cells = found.grid[0] * found.grid[1]
        for number_, thing in enumerate(found.things):
            if thing.role not in ROLES or not found.shown[number_].any():
                continue
            row = int(scores[:, list(COLOURS).index(thing.colour)].argmax())
            step = int(rows.index[row]) // cells
            frame = step * len(thing.centre) // found.steps
            in_view = thing.start <= frame < thing.stop
            off = self.where(rows.tokens[row : row + 1])[0] - thing.centre[frame] / side
            right += in_view and float(np.hypot(*off)) <= NEAR
            asked += 1
        if asked:
            sums["position"] = float(right), float(asked)
        many = float(self.many(best[None])[0, 0])
        sums["count"] = float(abs(many - number(found.things)) < 0.5), 1.0
        return sums

    def guess(self, found: Masks, side: int) -> Sums:
        """The same measures of who has not looked: any name, the middle of the image, the usual number."""
        sums: Sums = {}
        pairs = asked_pairs(found)
        if pairs:
            sums["attribute"] = sum(1 / (to.stop - to.start) for _, to, _ in pairs), float(len(pairs))
        asked = [t for i, t in enumerate(found.things) if t.role in ROLES and found.shown[i].any()]
        near = [
            np.hypot(*(thing.centre[thing.start : thing.stop] / side - 0.5).T) <= NEAR
            for thing in asked
            if thing.stop > thing.start
        ]
        if near:
            sums["position"] = float(sum(float(one.mean()) for one in near)), float(len(near))
        sums["count"] = float(abs(self.usual - number(found.things)) < 0.5), 1.0
        return sums
