"""A selector early, a random draw deep inside the language model: beyond the information horizon (arXiv 2512.07580).

1. A host leaves a n of the n visual tokens: DivPrune before the language model, or DART before its layer K.
2. Before layer L, 20 of 32, b n of them are drawn at random, or all are dropped ("VTW"); nothing is ranked any more.
3. Behind each cut positions are counted from 0 again, and generated tokens go on without a gap in every layer.

The ratio is the mean share over layers; a and b keep the proportion of the nearest published schedule, those of 192 and
64 tokens of LLaVA-1.5's 576.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("information_horizon"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
107
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from jvidprune.cuts.dart import KeyNormPivots, PivotCount
from jvidprune.cuts.rules import RandomDraw
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Index, Seed
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.dart import DART
from jvidprune.reducers.divprune import DivPrune, DivPruneBudget
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, StagedReducer, check_ratio
from jvidprune.tokens import CutPositions, InnerStage, Kept, Layout, Plan, VideoTokens

Host = Literal["divprune", "dart", "none"]
Then = Literal["random", "drop"]

_DEPTH, _TOKENS = 32, 576
"""Layers and visual tokens of LLaVA-1.5, which the published schedules are for."""


class Schedule(NamedTuple):
    """What stays of `_TOKENS`: `first` from layer `host_layer` on, `last` from layer `layer` on."""

    host_layer: int
    first: int
    layer: int
    last: int


SCHEDULES: Mapping[tuple[str, str], Mapping[int, Schedule]] = {
    ("divprune", "random"): {192: Schedule(0, 284, 20, 38), 64: Schedule(0, 96, 20, 10)},
    ("divprune", "drop"): {192: Schedule(0, 284, 20, 0), 64: Schedule(0, 98, 21, 0)},
    ("dart", "random"): {192: Schedule(2, 252, 20, 38), 64: Schedule(1, 60, 20, 27)},
    ("dart", "drop"): {192: Schedule(2, 260, 21, 0), 64: Schedule(1, 60, 26, 0)},
    ("none", "random"): {192: Schedule(0, 576, 20, 38)},
    ("none", "drop"): {192: Schedule(0, 576, 20, 0)},
}
"""Host and last stage -> mean number that a published script is named after -> schedule; without a host, ours."""


@dataclasses.dataclass(frozen=True)
class InformationHorizon(PositionedReducer):
    """DivPrune or DART, then a random draw before a deep layer.

    Follows `YahongWang1/Information-Horizon` at 75909b2 with a seed for its draw, which has none there. Layers of the
    published schedules are scaled to the depth of the model, which is ours; so are ratios other than theirs.

    Attributes:
      host: `divprune`, `dart`, or `none`, where all tokens reach the last stage.
      then: a random draw, or `drop` all that is left.
      layer: L; None takes that of the nearest published schedule at the model's depth.
      host_layer: K of DART; None takes that of the schedule.
      numbers: visual tokens behind the host and behind layer L, as in the scripts (284 and 38); the ratio is then only
        checked.
      depth: layers of the language model.
      seed: of the draw.
      cut_positions: rotary positions behind the cuts; "keep" is ours, for positions on three axes.
    """

    host: Host = "divprune"
    then: Then = "random"
    layer: Count | None = None
    host_layer: Count | None = None
    numbers: tuple[Index, Index] | None = None
    depth: Count = _DEPTH
    seed: Seed = 0
    cut_positions: CutPositions = "renumber"

    def __post_init__(self) -> None:
        """Refuses stages that contradict each other.

        Raises:
          JvidpruneError: tokens left where all are dropped, or a host behind the last stage.
        """
        if self.then == "drop" and self.numbers is not None and self.numbers[1]:
            raise JvidpruneError(f"then='drop' leaves no token, so the second of numbers is 0, got {self.numbers[1]}.")
        for schedule in SCHEDULES[self.host, self.then].values():
            first, last = self._layers(schedule)
            if self.host == "dart" and first >= last:
                raise JvidpruneError(f"DART's layer must lie before the last stage's, got {first} and {last}.")

    def _layers(self, schedule: Schedule) -> tuple[int, int]:
        """K and L."""
        deep = schedule.layer * self.depth // _DEPTH if self.layer is None else self.layer
        return schedule.host_layer if self.host_layer is None else self.host_layer, deep

    def schedule(self, ratio: float) -> tuple[int, float, int, float]:
        """K, a, L and b for a mean share over the layers.

        Raises:
          JvidpruneError: a share that the layers in front of the host exceed alone.
        """
        ratio, known = check_ratio(ratio), SCHEDULES[self.host, self.then]
        published = known[min(known, key=lambda mean: abs(math.log(ratio * _TOKENS / mean)))]
        first, last = self._layers(published)
        start = first if self.host == "dart" else last if self.host == "none" else 0
        begin, last = (min(layer, self.depth) for layer in (start, last))
        wanted, part = ratio * self.depth - begin, published.last / published.first
        if self.numbers is not None:
            return first, 1.0, last, 1.0
        middle, rest = last - begin, self.depth - last
        a = wanted / (middle + rest * part) if middle + rest * part else 1.0
        b = part * a
        if a > 1 or self.host == "none":
            a, b = 1.0, min(max((wanted - middle) / rest, 0.0), 1.0) if rest else 1.0
        if wanted < 0 or a <= 0:
            raise JvidpruneError(
                f"InformationHorizon reads all tokens in layers 0 to {begin - 1} of {self.depth}, a mean share of "
                f"{begin / self.depth:.3g} alone, got {ratio:g}; ask for more, or choose another host or layer."
            )
        return first, a, last, 0.0 if self.then == "drop" else b

    @property
    def _selector(self) -> StagedReducer:
        return DivPrune() if self.host == "divprune" else Full()

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> Any:
        """DivPrune's order where it is the host; else the mask of all tokens."""
        return self._selector.prepare(video, capacity=capacity)

    def decide(self, shared: Any, budget: Any, *, capacity: int) -> Plan:
        """DivPrune's picks where it is the host; else all tokens."""
        return self._selector.decide(shared, budget, capacity=capacity)

    def budget(self, layout: Layout, ratio: float) -> Any:
        """What the host keeps before the language model."""
        if self.host != "divprune":
            return self._selector.budget(layout, ratio)
        if self.numbers is not None:
            check_ratio(ratio)
            return DivPruneBudget(np.int32(min(self.numbers[0], layout.total)))
        return self._selector.budget(layout, self.schedule(ratio)[1])

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly what the host keeps before the language model."""
        if self.host != "divprune":
            return self._selector.capacity(layout, ratio)
        return int(self.budget(layout, ratio).keep)

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """DART's cut where it is the host, and the last stage."""
        first, a, last, b = self.schedule(ratio)
        stages = []
        if self.host == "dart":
            count = PivotCount(a) if self.numbers is None else PivotCount(number=self.numbers[0])
            stages.append(InnerStage(first, KeyNormPivots(), count, self.cut_positions))
        kept = Kept(b / a, "round") if self.numbers is None else Kept(number=self.numbers[1])
        return (*stages, InnerStage(last, RandomDraw(), kept, self.cut_positions, self.seed))

    def flops(self, layout: Layout, width: int, ratio: float) -> Mapping[str, float]:
        """The host's."""
        host = {"divprune": DivPrune(), "dart": DART(), "none": Full()}[self.host]
        return host.flops(layout, width, self.schedule(ratio)[1])

    # Published for LLaVA-1.5 alone. Positions on three axes are kept, which is ours.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "qwen2_5_vl": {"cut_positions": "keep"},
        "qwen3_vl": {"cut_positions": "keep"},
    }

    info: ClassVar[MethodInfo] = MethodInfo(
        name="information_horizon",
        title="Information horizon",
        paper="2512.07580",
        summary="Keeps what DivPrune or DART chooses, and a random part of it in deep layers of the language model.",
        nested=False,
        merges=False,
        exact=True,
        quirks=(
            "positions are numbered again after every cut (cut_positions='keep')",
            "the scripts named 192 and 64 that drop everything process 177.5 and 64.3 tokens a layer "
            "(numbers=(284, 0) is the first of them)",
        ),
    )
