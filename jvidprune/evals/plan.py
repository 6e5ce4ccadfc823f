"""What a sweep runs: methods and ratios, checked, and the record that identifies the run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.evals.identity import model_identity, plain
from jvidprune.evals.matching import UNITS, Match
from jvidprune.evals.metrics import FULL
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.ops import compact
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import Reducer, check_ratio
from jvidprune.tokens import Budget, Layout, Plan, VideoTokens

BLIND = "no video"
"""The run that gives the model the question alone; what it answers right needs no video."""

SINGLE = "one frame"
"""The run that gives the model the tokens of the middle frame alone; what it answers right needs no time."""

BASELINES = {FULL: "unpruned", SINGLE: "middle frame alone", BLIND: "question alone"}
"""What sweeps run beside their methods, as people read it."""

RATIOS = (0.25, 0.20, 0.15, 0.10, 0.05)
"""Retention ratios that the papers of the field report."""


@dataclasses.dataclass(frozen=True)
class NoVideo:
    """Keeps no token at all, whatever the ratio: a baseline of text alone."""

    needs = frozenset()

    def budget(self, layout: Layout, ratio: float) -> Budget:
        """Nothing."""
        return np.int32(0)

    def capacity(self, layout: Layout, ratio: float) -> int:
        """One row, never used."""
        return 1

    def plan(self, video: VideoTokens, budget: Budget, *, capacity: int) -> Plan:
        """Drops everything."""
        return compact.selection_plan(jnp.zeros(video.features.shape[0] * video.features.shape[1], bool), capacity)


@dataclasses.dataclass(frozen=True)
class OneFrame:
    """Keeps the middle frame whole, the later one of an even number, whatever the ratio: a baseline without time."""

    needs = frozenset()

    def budget(self, layout: Layout, ratio: float) -> Budget:
        """The number of the frame."""
        return np.int32(layout.frames // 2)

    def capacity(self, layout: Layout, ratio: float) -> int:
        """The tokens of a frame."""
        return layout.tokens

    def plan(self, video: VideoTokens, budget: Budget, *, capacity: int) -> Plan:
        """Drops all other frames."""
        frames, tokens = video.features.shape[:2]
        return compact.selection_plan(jnp.repeat(jnp.arange(frames) == budget, tokens), capacity)


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """Methods by shown name, ratios and how answers are made.

    The unpruned model and the question without video are always part of a sweep.

    Attributes:
      methods: shown name -> reducer, without the baselines.
      ratios: in (0, 1], in the order of the tables.
      max_new_tokens: longest answer.
      own_ratios: shown name -> those of `ratios` that a method runs at, for methods that do not run at all of them.
      controls: shown name -> reducer of the controls that run beside the methods at all `ratios`. They are no part of
        what a run is: a run of the same methods goes on with other controls.
      single: the model is also asked with its middle frame alone, which is no part of what a run is either.
      match: what a method is to cost as much of as a plain selection at each of `ratios`, instead of being asked for
        that ratio (`evals.matching`); None asks for the ratio.

    Raises:
      JvidpruneError: no ratio, a ratio out of range or twice, a method with a reserved name, a control that is one of
        the methods, an unknown cost to match, or own ratios of an unknown method or outside of `ratios`.
    """

    methods: dict[str, Reducer]
    ratios: tuple[float, ...] = RATIOS
    max_new_tokens: int = 8
    own_ratios: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    controls: Mapping[str, Reducer] = dataclasses.field(default_factory=dict)
    match: Match | None = None
    single: bool = False

    def __post_init__(self) -> None:
        if not self.ratios:
            raise JvidpruneError("a sweep needs at least one retention ratio, got none.")
        if len(set(self.ratios)) < len(self.ratios):
            raise JvidpruneError(f"every retention ratio may be given once, got {', '.join(map(str, self.ratios))}.")
        for ratio in self.ratios:
            check_ratio(ratio)
        if self.max_new_tokens < 1:
            raise JvidpruneError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if self.match not in (None, *UNITS):
            raise JvidpruneError(f"costs are matched by {', '.join(UNITS)}, got {quoted(repr(self.match))}.")
        for name in BASELINES:
            if name in self.reducers:
                raise JvidpruneError(f"{name!r} is part of every sweep and need not be asked for.")
        for name in self.controls:
            if name in self.methods:
                raise JvidpruneError(f"{name} is one of the methods and need not be a control of the sweep as well.")
        for name, ratios in self.own_ratios.items():
            if name not in self.methods:
                raise JvidpruneError(f"own ratios of {name!r}, which is none of the sweep's methods.")
            if strange := set(ratios) - set(self.ratios):
                raise JvidpruneError(f"{name} has ratios of its own that the sweep lacks: {min(strange):g}.")

    @property
    def reducers(self) -> dict[str, Reducer]:
        """Methods and controls by shown name, in the order of the tables."""
        return {**self.methods, **self.controls}

    def groups(self) -> list[tuple[str, Reducer, tuple[float, ...]]]:
        """(name, reducer, ratios) that are run together, the baselines first."""
        fixed: list[tuple[str, Reducer, tuple[float, ...]]] = [(FULL, Full(), (1.0,)), (BLIND, NoVideo(), (0.0,))]
        fixed += [(SINGLE, OneFrame(), (1.0,))] * self.single
        own = self.own_ratios
        return [*fixed, *((name, method, own.get(name, self.ratios)) for name, method in self.reducers.items())]

    def runs(self) -> list[tuple[str, float]]:
        """(name, ratio) of everything that is run, in the order of the tables."""
        return [(name, ratio) for name, _, ratios in self.groups() for ratio in ratios]

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that any of the methods reads."""
        return frozenset().union(*(method.needs for method in self.reducers.values()))


MODEL = ("model", "prompt", "around", "code", "backend")
"""Parts of an identity that belong to the model and its surroundings, which change every result."""


_COUNTS = ("clips", "asked_clips")
"""Settings of a task that say how many clips there are: a run that goes on to more of them is the same run."""


def identity(llm: VideoLLM, task: Any, plan: SweepPlan) -> dict[str, Any]:
    """What a run is, as plain values, whatever clips there are; it names the run's folder and stands in its report.

    That is the model with its prompt, settings, code and backend (`identity.model_identity`); the task, where its files
    lie and what it says of itself; each method with all its settings and, where it is the user's own, its source; the
    ratios; the length of answers; the cost that is made equal, if any.
    """
    settings = {name: plain(value) for name, value in task.fingerprint().items() if name not in _COUNTS}
    return {
        **model_identity(llm),
        "task": {"name": task.name, "data": getattr(task, "folder", None), "settings": settings},
        "methods": {name: plain(method) for name, method in plan.methods.items()},
        "ratios": list(plan.ratios),
        "own_ratios": {name: list(ratios) for name, ratios in plan.own_ratios.items()},
        "max_new_tokens": plan.max_new_tokens,
        "match": plan.match,
    }
