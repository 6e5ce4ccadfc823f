"""The control of methods that prune inside the language model: a random cut at a deep layer (arXiv 2512.07580).

1. All n visual tokens enter the language model and run through its first `layer` layers.
2. From there on round(n * ratio) of them, or a fixed number, go on, drawn at random, at the positions that they had.

The count of the example is that before the language model, where nothing is dropped.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("inner_random"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
288
"""

import dataclasses
from typing import Any, ClassVar

from jvidprune.cuts.rules import RandomDraw
from jvidprune.fields import Index, Seed
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import CutPositions, InnerStage, Kept


@dataclasses.dataclass(frozen=True)
class InnerRandom(Full):
    """Keeps every token before the language model and a random share of them from layer `layer` on.

    Beyond the "information horizon", about layer 20 of a 7B model, training-free selectors are reported to be no
    better than this. `information_horizon` has the paper's own schedules; this is the plain control for any method: the
    same layer, count and positions. The same seed keeps the tokens of a smaller share in every larger one.

    Attributes:
      layer: first layer after the cut; 0 drops before the first layer.
      seed: of the draw.
      number: how many stay in place of the share, where there are as many.
      cut_positions: rotary positions behind the cut.
    """

    layer: Index = 20
    seed: Seed = 0
    number: Index | None = None
    cut_positions: CutPositions = "keep"

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The cut for a retention ratio."""
        kept = Kept(check_ratio(ratio), "round", self.number)
        return (InnerStage(self.layer, RandomDraw(), kept, self.cut_positions, self.seed),)

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="inner_random",
        title="Random, deep",
        paper="2512.07580",
        summary="Drops visual tokens at random inside the language model: the control for the information horizon.",
        nested=True,
        merges=False,
        exact=True,
    )
