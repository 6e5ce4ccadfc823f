"""One compiled call from a video and explicit counts to the plan and its tokens, as the comparers need it."""

import functools
from typing import Any

import jax

from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.protocol import full
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
    return plan, full(reducer).apply(plan, video)
