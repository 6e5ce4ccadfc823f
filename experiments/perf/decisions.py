"""What the timing of a reducer's decisions runs, and at which ratios."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
from jax import lax

from jvidprune import VideoTokens
from jvidprune.errors import JvidpruneError
from jvidprune.ops.branch import on_cpu
from jvidprune.reducers.protocol import StagedReducer
from jvidprune.tokens import Layout


def run_plans(reducer: Any, video: VideoTokens, budgets: Any, *, capacity: int) -> Any:
    """What `run_budgets` decides, without the tokens."""
    if isinstance(reducer, StagedReducer):
        decide = partial(reducer.decide, reducer.prepare(video, capacity=capacity))
    else:
        decide = partial(reducer.plan, video)

    def one(budget: Any) -> Any:
        return decide(budget, capacity=capacity)._replace(diagnostics={})

    return lax.map(one, budgets) if on_cpu() else jax.vmap(one)(budgets)


def possible(reducer: Any, layout: Layout, ratios: Iterable[float]) -> tuple[float, ...]:
    """The ratios that the reducer accepts; DyCoke keeps at least a quarter."""

    def accepts(ratio: float) -> bool:
        try:
            reducer.budget(layout, ratio)
        except JvidpruneError:
            return False
        return True

    return tuple(filter(accepts, ratios))
