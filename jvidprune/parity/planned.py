"""One compiled call from a video and explicit counts to the plan and its tokens, and what tables read of it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.ops import compact
from jvidprune.ops.sink import SinkRule
from jvidprune.parity.core import Golden
from jvidprune.reducers.protocol import with_defaults
from jvidprune.tokens import Budget, Plan, Reduced, VideoTokens


@functools.partial(jax.jit, static_argnames=("reducer", "capacity"))
def planned(
    reducer: Any, video: VideoTokens, budget: Budget, *, capacity: int, sink: SinkRule | None = None
) -> tuple[Plan, Reduced]:
    """The plan with its diagnostics, and the reduced tokens.

    Args:
      reducer: any `StagedReducer`.
      video: one video.
      budget: integers of the reducer's own kind, made from what a golden file states.
      capacity: static number of rows.
      sink: SToP's adjustments.
    """
    plan = reducer.decide(reducer.prepare(video, capacity=capacity, sink=sink), budget, capacity=capacity)
    return plan, with_defaults(reducer).apply(plan, video)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A reduced video of a golden file.

    Attributes:
      golden: the file.
      reducer, video, budget: what was run.
      plan, reduced: what came out.
    """

    golden: Golden
    reducer: Any
    video: VideoTokens
    budget: Any
    plan: Plan
    reduced: Reduced

    @classmethod
    def of(cls, golden: Golden, reducer: Any, video: VideoTokens, budget: Budget, *, capacity: int) -> "PlannedRun":
        """Runs a reducer for counts that a golden file states."""
        return cls(golden, reducer, video, budget, *planned(reducer, video, budget, capacity=capacity))

    @functools.cached_property
    def shown(self) -> Mapping[str, np.ndarray]:
        """The plan's diagnostics on the host."""
        return {name: np.asarray(value) for name, value in self.plan.diagnostics.items()}

    @functools.cached_property
    def count(self) -> int:
        """Rows in use."""
        return int(self.plan.count)

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """(M,) token ids of the rows in use."""
        return np.asarray(self.plan.ids)[: self.count]

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """(M, D) tokens of the rows in use."""
        return np.asarray(self.reduced.tokens)[: self.count]

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """(T, N) bool of the ids in use."""
        frames, tokens, _ = self.video.features.shape
        mask = np.zeros(frames * tokens, bool)
        mask[self.ids] = True
        return mask.reshape(frames, tokens)

    @functools.cached_property
    def frame_counts(self) -> np.ndarray:
        """(T,) rows of each frame."""
        frames, tokens, _ = self.video.features.shape
        return np.bincount(self.ids // tokens, minlength=frames)

    def deepstack(self, ids: Any = None) -> np.ndarray:
        """(L, M, D) DeepStack levels of the file at the rows in use, or at other ids."""
        frames, tokens, _ = self.video.features.shape
        levels = self.golden["deepstack"]
        flat = jnp.moveaxis(jnp.asarray(levels), 0, 2).reshape(frames * tokens, -1)
        plan = self.plan if ids is None else self.plan._replace(ids=ids)
        gathered = np.asarray(compact.gather_rows(plan, flat))[: self.count].reshape(self.count, len(levels), -1)
        return np.moveaxis(gathered, 1, 0)


def grid_of(golden: Golden) -> tuple[int, int]:
    """Rows and columns of a file's tokens: `grid`, `H` and `W`, those of its generator, else one row."""
    tokens = golden["features"].shape[1]
    config = golden.config
    generator = config.get("generator", {})
    sides = (config.get("grid", (0, 0)), *((found.get("H", 0), found.get("W", 0)) for found in (config, generator)))
    return next(((int(height), int(width)) for height, width in sides if height * width == tokens), (1, tokens))


def starts_and_ends(segment: np.ndarray) -> np.ndarray:
    """(S, 2) first and last frame of each segment of (T,) ascending ids."""
    starts = np.flatnonzero(np.diff(segment, prepend=-1))
    return np.stack([starts, np.append(starts[1:], len(segment)) - 1], axis=1)
