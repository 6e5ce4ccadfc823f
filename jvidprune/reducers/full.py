"""No reduction: every token of every real frame, the baseline of all tables.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("none"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
288
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from jvidprune.ops.compact import selection_plan
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens


class FullBudget(NamedTuple):
    """Nothing to decide; the count is carried so that budgets stack."""

    tokens: np.int32


@dataclasses.dataclass(frozen=True)
class Full(PositionedReducer):
    """Keeps all tokens whatever the ratio says."""

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> Any:
        """(T * N,) mask of the tokens of real frames."""
        return jnp.repeat(video.frame_mask, video.features.shape[1])

    def decide(self, shared: Any, budget: FullBudget, *, capacity: int) -> Plan:
        """Every token of every real frame, ascending."""
        return selection_plan(shared, capacity)

    def budget(self, layout: Layout, ratio: float) -> FullBudget:
        """The token count of the video; the ratio is only checked."""
        check_ratio(ratio)
        return FullBudget(np.int32(layout.total))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """All tokens, padding frames included."""
        return layout.slots * layout.tokens

    info: ClassVar[MethodInfo] = MethodInfo(
        name="none",
        title="All tokens",
        paper="-",
        summary="keeps every token: the unpruned model",
        nested=True,
        merges=False,
        exact=True,
    )
