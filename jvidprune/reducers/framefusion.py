"""FrameFusion: tokens merge over time in the first layers of the language model, then the rest is pruned once.

All n visual tokens enter the language model (arXiv 2501.01986). A budget c n is what a layer may read on average.

1. Calls stand in front of layer 0 and inside every layer, between attention and MLP. Each knows q, what each further
   layer may read so that all `depth` together keep to the budget.
2. A token whose cosine to that of the same place in the frame before is large enough merges into it, and so do whole
   runs; the mean stands in the place of the earliest.
3. If that would leave fewer than q, the int(n - q) most similar ones merge instead, and all is done.
4. A call that merges less than a tenth of the tokens is the last one to merge. In the next layer the round(q) tokens
   with the largest attention of the prompt's end stay.

The count of the example is that before the language model.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("framefusion"), synthetic_tokens(grid=(6, 6)), 0.3).count.item()
288
"""

import dataclasses
from typing import Any, ClassVar, Literal

from jvidprune.cuts.framefusion import CostBudget, Fuse, FuseEmbeddings
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Share
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import InnerStage, Layout


@dataclasses.dataclass(frozen=True)
class FrameFusion(Full):
    """Keeps every token before the language model, merges over time in its first layers and prunes once.

    Follows `thu-nics/FrameFusion` at fbec1d2. Newline embeddings between rows and frames count as tokens of their
    frame; the one behind a whole video is text, where the released adapter counts it wrongly. Tokens of different
    videos of a prompt never merge (the released code knows one video).

    The layers that may still merge run at full length and mask what is gone: the tokens are moved together behind the
    last call, where their number has a bound. So memory and work are less from layer `merge_calls` on.

    Attributes:
      similarity: least cosine of tokens that merge.
      ratio_bound: share of the tokens below which a call is the last to merge.
      rows: last positions of the prompt whose attention prunes.
      merge_calls: calls that can merge; if merging is still open behind them it is closed, and the next layer prunes
        (`forced` in a cut's diagnostics). The released code goes on without limit; one to three calls are usual.
      depth: layers that the budget is counted over, 28 in the released code whatever the model.
      cost_depth: "model" takes the model's own number of layers where it is known (`registry.for_model`).
    """

    similarity: Share = 0.6
    ratio_bound: Share = 0.1
    rows: Count = 1
    merge_calls: Count = 4
    depth: Count = 28
    cost_depth: Literal["official", "model"] = "official"

    def __post_init__(self) -> None:
        """Refuses calls that use up all layers of the budget.

        Raises:
          JvidpruneError: at least as many calls as layers.
        """
        if self.merge_calls >= self.depth:
            raise JvidpruneError(
                f"FrameFusion's merge_calls must be fewer than its depth, the layers that its budget is counted over, "
                f"got merge_calls={self.merge_calls} and depth={self.depth}."
            )

    @classmethod
    def at_depth(cls, layers: int, settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """The depth of the model, where the budget is to be counted over it."""
        asked = (settings | given).get("cost_depth") == "model" and "depth" not in given
        return {"depth": layers} if asked else {}

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The calls for a cost that is this share of the layers' tokens."""
        cost = check_ratio(ratio)
        shared = {"similarity": self.similarity, "ratio": self.ratio_bound, "depth": self.depth}
        stages = [InnerStage(0, FuseEmbeddings(**shared), CostBudget(cost, depth=self.depth))]
        for layer in range(self.merge_calls):
            final = layer == self.merge_calls - 1
            rule, kept = Fuse(**shared, rows=self.rows, final=final), CostBudget(cost, depth=self.depth, final=final)
            stages.append(InnerStage(layer, rule, kept, where="middle"))
        return tuple(stages)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Cosines and norms at every call that can merge, at full length."""
        check_ratio(ratio)
        return {"similarities over time": 4.0 * self.merge_calls * layout.total * width}

    # The README's example of LLaVA-Video has 0.6, that of Qwen2-VL 0.5 and four rows. What is not listed is as there.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_video": {},
        "qwen2_5_vl": {"similarity": 0.5, "rows": 4},
        "qwen3_vl": {"similarity": 0.5, "rows": 4},
    }

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="framefusion",
        title="FrameFusion",
        paper="2501.01986",
        summary="Merges same-position tokens over time in the first layers of the language model, then prunes once.",
        nested=False,
        merges=True,
        exact=True,
        quirks=(
            "the budget is counted over 28 layers whatever the model (cost_depth='model')",
            "the ratio is a share of tokens times layers, not of FLOPs, which fall more (no option)",
            "row newlines are alike in all frames and merge before the first layer, so that later frames lose the ends "
            "of their rows (no option)",
            "with a ratio of 1 nothing merges, equal frames neither (no option)",
        ),
    )
