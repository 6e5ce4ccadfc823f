"""Answers the procedural benchmark's questions from pixels and text alone: an independent check of its ground truth.

Objects are connected regions of one hue; their shapes follow from how they fill their bounding box. Works on clips
without clutter, posts, noise and crowds.
"""

import collections
import re
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from jvidprune.procedural.world import COLOURS

SHAPES = ("circle", "square", "triangle", "cross", "ring")
Blob = collections.namedtuple("Blob", "colour shape x y area")


def _chroma(rgb: np.ndarray) -> np.ndarray:
    return rgb - rgb.mean(-1, keepdims=True)


def _blobs(frame: np.ndarray) -> list[Blob]:
    palette = _chroma(np.array(list(COLOURS.values()), np.float64))
    full = np.linalg.norm(palette, axis=1)
    chroma = _chroma(frame.astype(np.float64))
    hue = (chroma @ (palette / full[:, None]).T).argmax(-1)
    strong = np.linalg.norm(chroma, axis=-1) > 0.5 * full[hue]
    found = []
    for number, colour in enumerate(COLOURS):
        regions, count = ndimage.label(strong & (hue == number), np.ones((3, 3)))
        for region in range(1, count + 1):
            y, x = np.nonzero(regions == region)
            if len(x) >= 20:
                shape = _shape(regions == region) if len(x) > 75 else "dot"
                found.append(Blob(colour, shape, (x.min() + x.max()) / 2, (y.min() + y.max()) / 2, len(x)))
    return found


def _shape(mask: np.ndarray) -> str:
    y, x = np.nonzero(mask)
    box = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
    high, wide = box.shape
    if not box[high // 2 - 1 : high // 2 + 1, wide // 2 - 1 : wide // 2 + 1].any():
        return "ring"
    if box[: high // 2].sum() < 0.62 * box[high - high // 2 :].sum():
        return "triangle"
    if box[np.ix_((1, -2), (1, -2))].all():
        return "square"
    return "circle" if box.mean() > 0.68 else "cross"


def _colour(name: str) -> str:
    return name.split()[0]


class Watcher:
    """Sees a clip once and answers questions about it in words."""

    def __init__(self, frames: np.ndarray):
        self.side, self.count = frames.shape[1], len(frames)
        light, darkest = frames.mean((1, 2, 3)), frames.min((1, 2, 3))
        beside = np.abs(np.diff(light, prepend=light[0], append=light[-1]))
        flashes = np.flatnonzero((darkest > 165) & (np.maximum(beside[1:], beside[:-1]) > 15))
        self.flash = int(flashes[0]) if len(flashes) else None
        self.seen = [[] if i == self.flash else _blobs(frame) for i, frame in enumerate(frames)]
        self.tracks = self._tracks()

    def _tracks(self) -> dict[str, list[tuple[int, Blob]]]:
        """Frames and places of each object by its name; objects of one colour are told apart by their shapes."""
        tracks = {}
        for colour in COLOURS:
            own = [(i, blob) for i, blobs in enumerate(self.seen) for blob in blobs if blob.colour == colour]
            votes = collections.Counter(blob.shape for _, blob in own)
            frames = len({i for i, _ in own})
            if len(own) < 1.5 * frames:
                tracks[f"{colour} {votes.most_common(1)[0][0]}"] = own
            else:
                shapes = [shape for shape, count in votes.items() if count > frames / 2]
                tracks |= {f"{colour} {s}": [(i, blob) for i, blob in own if blob.shape == s] for s in shapes}
        return {name: track for name, track in tracks.items() if track}

    def find(self, *words: str) -> str:
        """The one object that is called so."""
        (name,) = (name for name in self.tracks if set(words) <= set(name.split()))
        return name

    def first(self, name: str) -> int:
        return self.tracks[name][0][0]

    def direction(self, name: str) -> str:
        (_, start), (_, stop) = self.tracks[name][0], self.tracks[name][-1]
        x, y = stop.x - start.x, stop.y - start.y
        if max(abs(x), abs(y)) < 10:
            return "still"
        return ("left", "right")[int(x > 0)] if abs(x) > abs(y) else ("up", "down")[int(y > 0)]

    def brief(self) -> str:
        """The object that is there in one frame."""
        (name,) = (name for name, track in self.tracks.items() if len(track) == 1)
        return name

    def change(self) -> tuple[str, str]:
        """An object before and after: one ends where the other begins."""
        for a, track in self.tracks.items():
            for b, other in self.tracks.items():
                (end, old), (start, new) = track[-1], other[0]
                if end + 1 == start and np.hypot(old.x - new.x, old.y - new.y) < 8 and a.split()[1] == b.split()[1]:
                    return a, b
        raise AssertionError("nothing changed its colour")

    def vanished(self) -> str:
        (name,) = (name for name, track in self.tracks.items() if track[-1][0] < self.count - 1)
        return name

    def relation(self, a: str, b: str) -> str:
        one, two = dict(self.tracks[a]), dict(self.tracks[b])
        x, y = np.mean([(one[i].x - two[i].x, one[i].y - two[i].y) for i in one if i in two], axis=0)
        return ("left", "right")[int(x > 0)] if abs(x) > abs(y) else ("above", "below")[int(y > 0)]

    def answer(self, text: str, options: tuple[str, ...]) -> str:
        """In words: one of the options."""
        colours = re.findall(rf"\b({'|'.join(COLOURS)})\b", text)
        shapes = re.findall("|".join(SHAPES), text)
        named = [f"{colour} {shape}" for colour, shape in zip(colours, shapes, strict=False)]
        rules = [
            ("where is the tiny dot", self._corner),
            ("color is the tiny dot", lambda: _colour(self.find("dot"))),
            ("color is the object that moves", lambda: _colour(self._mover(text))),
            ("which object moves", lambda: self._mover(text)),
            ("color is the .+ at the end", lambda: _colour(self.change()[1])),
            ("color is the .+ at the start", lambda: _colour(self.change()[0])),
            ("color was the object that vanished", lambda: _colour(self.vanished())),
            ("which object vanished", self.vanished),
            ("color was the object shown", lambda: _colour(self.brief())),
            ("shape was the object shown", lambda: self.brief().split()[1]),
            ("what color is", lambda: _colour(self.find(shapes[0]))),
            ("what shape is", lambda: self.find(colours[0]).split()[1]),
            ("how many", lambda: str(sum((colours or shapes)[0] in name.split() for name in self.tracks))),
            ("relative to", lambda: self.relation(*named)),
            ("which way", lambda: self.direction(named[0])),
            ("which object appeared", lambda: self._order(text, options)),
            ("which appeared", lambda: _colour(self._order(text, [self.find(colour) for colour in colours]))),
            ("which second", lambda: str(self._event(named) + 1)),
            ("which quarter", lambda: ("first", "second", "third", "fourth")[self._event(named) * 4 // self.count]),
            ("changed color", lambda: self.change()[0].split()[1]),
            ("", lambda: ("no", "yes")[int(self._true(text, named))]),
        ]
        return next(rule() for pattern, rule in rules if re.search(pattern, text))

    def _corner(self) -> str:
        places = [(blob.x, blob.y) for _, blob in self.tracks[self.find("dot")]]
        x, y = np.mean(places, axis=0) > self.side / 2
        return f"{('top', 'bottom')[int(y)]} {('left', 'right')[int(x)]}"

    def _mover(self, text: str) -> str:
        (name,) = (name for name in self.tracks if self.direction(name) == text.rstrip("?").split()[-1])
        return name

    def _order(self, text: str, names: Sequence[str]) -> str:
        return (min if "first" in text else max)(names, key=self.first)

    def _event(self, named: list[str]) -> int:
        return self.first(named[0]) if named else self.flash

    def _true(self, text: str, named: list[str]) -> bool:
        if "flash" in text:
            return self.flash is not None
        if "change" in text:
            return named[0] == self.change()[0]
        if len(named) == 2:
            return self.relation(*named) in text.split()
        return named[0] in self.tracks
