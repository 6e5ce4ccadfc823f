"""The procedural benchmark: seeded clips of shapes, and questions whose answers are known by construction."""

import dataclasses
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int8, UInt8

from jvidprune.errors import JvidpruneError
from jvidprune.evals import items
from jvidprune.evals.items import Item, Question
from jvidprune.procedural import templates
from jvidprune.procedural.categories import ALL_CATEGORIES, ALL_FOCUS, CATEGORIES
from jvidprune.procedural.paint import dense_labels, paint
from jvidprune.procedural.scenario import stage
from jvidprune.procedural.settings import SETTINGS, BenchmarkSetting
from jvidprune.procedural.templates import LONGEST_SECOND
from jvidprune.procedural.world import Knobs, Scene
from jvidprune.video.decode import Clip

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_SEEDS = 1 << 40
"""Seeds of a split: those of split s are s * 2^40 + 0, 1, 2, ..., so that splits of any settings share no seed."""
VERSION = 1
"""Raised whenever equal settings give other clips or questions."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A clip with everything known about it.

    Attributes:
      frames: (frames, side, side, 3) uint8 RGB.
      labels: (frames, rows, columns, 3) int8: ids of colour, shape and direction (`world.COLOUR_IDS`, `SHAPE_IDS`,
        `DIRECTION_IDS`) of the object that covers most of a cell, 0 for background.
      scene: the ground truth.
      questions: what is asked.
    """

    frames: UInt8[np.ndarray, "frames side side 3"]
    labels: Int8[np.ndarray, "frames rows columns 3"]
    scene: Scene
    questions: tuple[Question, ...]


@dataclasses.dataclass(frozen=True)
class Procedural:
    """Seeded clips with questions; item i is a pure function of the split, i and the settings.

    Attributes:
      split: "train", "validation" or "test"; their seeds never overlap.
      clips: number of items.
      frames: frames of a clip, one a second; at least 8. 32 or 64 make a needle of what is shown in one frame.
      side: height and width in pixels, at least 56.
      difficulty: 0 to 1; sets every knob below that is None.
      objects: most main objects in view at a time, 2 to 5.
      clutter: small grey shapes behind.
      cuts: most hard cuts.
      texture: contrast of backgrounds, 0 to 1.
      noise: standard deviation of sensor noise in grey levels.
      camera: pixels (of 84) that the camera moves over a clip.
      posts: most posts in front, which objects pass behind.
      crowding: share of its time that an object may touch another, 0 to 1.
      questions: most questions about a clip; the first is of the category it was made for.
      size: factor of the radius of main objects, 0.5 to 1.3.
      counted: most objects of a kind that are counted, 4 or 5.
      categories: which of `categories.ALL_CATEGORIES` are asked; clip i is made for categories[i % len(categories)].
      grid: (rows, columns) of dense labels.

    Raises:
      JvidpruneError: a value outside its range, or an unknown split or category.
    """

    split: Split = "test"
    clips: int = 200
    frames: int = 8
    side: int = 84
    difficulty: float = 0.5
    objects: int | None = None
    clutter: int | None = None
    cuts: int | None = None
    texture: float | None = None
    noise: float | None = None
    camera: float | None = None
    posts: int | None = None
    crowding: float | None = None
    size: float = 1.0
    counted: int = 4
    questions: int = 3
    categories: tuple[str, ...] = CATEGORIES
    grid: tuple[int, int] = (12, 12)

    def __post_init__(self):
        if self.split not in SPLITS:
            raise JvidpruneError(f"a split is one of {', '.join(SPLITS)}, not {self.split}.")
        if unknown := [name for name in self.categories if name not in ALL_CATEGORIES]:
            raise JvidpruneError(f"there is no category {unknown[0]}; there are {', '.join(ALL_CATEGORIES)}.")
        if not self.categories or self.questions < 1 or not 0 <= self.clips <= SPLIT_SEEDS:
            raise JvidpruneError("a benchmark needs a category, a question for each clip and 0 or more clips.")
        if self.frames < 8 or self.side < 56:
            raise JvidpruneError(f"clips have 8 frames of 56 pixels at least, not {self.frames} of {self.side}.")
        if not 0 <= self.difficulty <= 1:
            raise JvidpruneError(f"difficulty lies in 0..1, not {self.difficulty}.")
        if not 0.5 <= self.size <= 1.3 or self.counted not in (4, 5):
            raise JvidpruneError(f"size lies in 0.5..1.3 and 4 or 5 are counted, not {self.size} and {self.counted}.")
        if not all(1 <= cells <= self.side for cells in self.grid):
            raise JvidpruneError(f"a grid has 1 to {self.side} rows and columns, not {self.grid}.")
        knobs = self.knobs
        if not 2 <= knobs.objects <= 5 or not (0 <= knobs.texture <= 1 and 0 <= knobs.crowding <= 1):
            raise JvidpruneError("there are 2 to 5 objects, and texture and crowding lie in 0..1.")
        if min(knobs.clutter, knobs.cuts, knobs.posts) < 0 or not (0 <= knobs.noise <= 64 and 0 <= knobs.camera <= 12):
            raise JvidpruneError("clutter, cuts and posts are not negative, noise lies in 0..64 and camera in 0..12.")

    @property
    def name(self) -> str:
        """Name in tables."""
        return "procedural"

    @property
    def knobs(self) -> Knobs:
        """Every setting of clips, with what `difficulty` decides filled in."""
        hard = self.difficulty
        by_difficulty = {
            "objects": 2 + min(3, round(3.2 * hard)),
            "clutter": round(6 * hard),
            "cuts": round(2 * hard),
            "texture": hard,
            "noise": 8 * hard,
            "camera": 8 * hard,
            "posts": round(1.2 * hard),
            "crowding": 0.6 * hard,
        }
        chosen = {name: getattr(self, name) for name in by_difficulty}
        filled = {name: by_difficulty[name] if value is None else value for name, value in chosen.items()}
        return Knobs(self.frames, self.side, **filled, size=self.size, counted=self.counted)

    def chance(self, question: Question) -> float:
        """Accuracy of a uniform guess among the admitted answers."""
        return items.chance(question)

    def seed(self, index: int) -> int:
        """Seed of an item; no other split has it.

        Raises:
          IndexError: there is no such item.
        """
        if not 0 <= index < self.clips:
            raise IndexError(f"there is no item {index} among {self.clips}.")
        return SPLITS.index(self.split) * SPLIT_SEEDS + index

    def scene(self, index: int) -> tuple[Scene, tuple[Question, ...]]:
        """What happens in a clip and what is asked about it, without drawing it."""
        rng = np.random.default_rng(self.seed(index))
        focus = self.categories[index % len(self.categories)]
        choices = [name for name in ALL_FOCUS[focus] if not (name.endswith("second") and self.frames > LONGEST_SECOND)]
        scene = stage(rng, self.knobs, focus, choices[int(rng.integers(len(choices)))])
        name = f"{self.split}-{index}"
        return scene, tuple(templates.questions(rng, scene, self.questions, self.categories, name))

    def sample(self, index: int) -> Sample:
        """A clip with dense labels, its scene and its questions."""
        scene, questions = self.scene(index)
        frames, owner = paint(scene)
        return Sample(frames, dense_labels(scene, owner, self.grid), scene, questions)

    def clip(self, index: int) -> Clip:
        """The frames of an item, as if read from a file of one frame a second."""
        frames, _ = paint(self.scene(index)[0])
        count = len(frames)
        return Clip(frames, np.arange(count), np.arange(count, dtype=np.float64), 1.0, count)

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> Item:
        _, questions = self.scene(index)
        return Item(f"{self.split}-{index}", questions, lambda: self.clip(index), lambda: self._drawn(index))

    def _drawn(self, index: int) -> dict[str, Any]:
        """What decides the frames of an item: not which questions are asked about it, but what it was made for."""
        beside = ("clips", "questions", "grid")
        settings = {name: value for name, value in self.fingerprint().items() if name not in beside}
        return settings | {"item": index}

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides clips and questions."""
        settings = dataclasses.asdict(self) | dataclasses.asdict(self.knobs)
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        # Settings that came later stand in no record of a benchmark without them.
        for name, default in (("size", 1.0), ("counted", 4)):
            if settings[name] == default:
                del settings[name]
        return {"task": self.name, "version": VERSION, **settings}


def sample(split: Split, index: int, **settings: Any) -> Sample:
    """One clip of a split with dense labels, scene and questions; settings as of `Procedural`."""
    return Procedural(split, clips=index + 1, **settings).sample(index)


def in_setting(setting: BenchmarkSetting, split: Split, clips: int, **changed: Any) -> Procedural:
    """The benchmark under one of `SETTINGS`.

    Args:
      setting: its name.
      split, clips: as of `Procedural`.
      **changed: settings as of `Procedural`, which go before those of the named one.

    Raises:
      JvidpruneError: what `Procedural` raises.
    """
    return Procedural(split, clips, **{**SETTINGS[setting], **changed})


def detailed(split: Split, clips: int, **settings: Any) -> Procedural:
    """The benchmark under "detailed" of `SETTINGS`; settings as of `Procedural`, which they may replace."""
    return in_setting("detailed", split, clips, **settings)


def vocabulary(detail: bool = False) -> tuple[str, ...]:
    """Every word, letter and mark that prompts and answers are made of, sorted; a tokenizer needs no others.

    Args:
      detail: with those of the categories that only `detailed` asks about.
    """
    return templates.words(detail)
