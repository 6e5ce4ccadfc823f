"""SparseVLM: text tokens that look at the video rate it, layer by layer; what they drop is recycled (arXiv 2410.04417).

All n visual tokens enter the language model.

1. Raters: text tokens behind the video that get more than the mean share of the visual tokens, by a softmax over inner
   products of embeddings.
2. Behind layers 2, 6 and 15 a visual token's relevance is the attention that the raters pay it, mean over heads.
3. The k most relevant stay. Of the d others the best int(0.3 d) + 1 are clustered by density peaks on their states, a
   tenth of their number plus one, and the mean of each cluster stands behind the kept tokens.
4. The tokens that stay are counted from position 0 again.

Four different methods were released under the name, see `flavor`. The count of the example is that before the language
model.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("sparsevlm"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
288
"""

import dataclasses
import math
from typing import Any, ClassVar

from jvidprune.cuts.sparsevlm import Flavor, ListCount, RankCount, Raters, TextRated
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Index, NotNegative, Positive
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import CutPositions, InnerStage, Kept, Layout

LISTS: dict[str, dict[int, tuple[int, ...]]] = {
    "lists": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "plus": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
"""Flavor -> mean number that is asked for -> tokens kept at each cut, of 576."""

_TOKENS = 576
_CUTS: dict[str, tuple[int, ...]] = {"rank": (3, 7, 16, 20), "lists": (3, 7, 16), "plus": (3, 7, 16), "video": (2,)}


@dataclasses.dataclass(frozen=True)
class SparseVLM(Full):
    """Keeps every token before the language model and cuts at several layers inside it.

    Follows `Gumpest/SparseVLMs`:

    * `lists` (main 26a5f48, the default there and here): counts from a fixed list;
    * `plus` (SparseVLM+, the same commit): fixed lists too; attention is divided by what the rotary embedding alone
      gives, 14 heads count, dropped tokens are gone, positions stay;
    * `rank` (91fb6d9, the first release): int(scale * rank + bias) tokens, of the rank of the raters' attention;
    * `video` (branch of Video-LLaVA, f05b898): as many as the rank, behind layer 1.

    With `lists` and `plus` the published list nearest to the ratio is scaled, so that a third of 576 tokens is the list
    of 192. That number is the mean of tokens that leave a layer; those that a layer reads are more. With `rank` and
    `video` the prompt decides the counts, and the ratio is only checked.

    Attributes:
      flavor: as above.
      cut_layers: first layer behind each cut; None takes the flavor's.
      numbers: tokens kept at each cut, of `lists` and `plus`; None takes them from the ratio.
      scale, bias: of `rank`.
      heads: of `plus`.
      cut_positions: rotary positions behind the cuts; None takes the flavor's. "keep" for the others is ours, for
        positions on three axes.
    """

    flavor: Flavor = "lists"
    cut_layers: tuple[Count, ...] | None = None
    numbers: tuple[Index, ...] | None = None
    scale: Positive = 13.5
    bias: NotNegative = 0.0
    heads: Count = 14
    cut_positions: CutPositions | None = None

    def __post_init__(self) -> None:
        """Refuses layers and numbers that make no schedule.

        Raises:
          JvidpruneError: layers that do not increase, numbers for counts that follow from a rank, or not one a cut.
        """
        places, listed = self._places, self.flavor in LISTS
        if list(places) != sorted(set(places)):
            raise JvidpruneError(f"SparseVLM's cut_layers must increase, got {places}.")
        if self.numbers is not None and not listed:
            raise JvidpruneError(f"numbers belong to the flavors lists and plus; {self.flavor} counts by a rank.")
        if listed and self.numbers is not None and len(self.numbers) != len(places):
            raise JvidpruneError(f"SparseVLM's numbers must be one a cut, got {len(self.numbers)} for {len(places)}.")
        if listed and self.numbers is None and len(places) != 3:
            raise JvidpruneError(f"the published lists are for three cuts; {len(places)} cut_layers need numbers too.")

    @property
    def _places(self) -> tuple[int, ...]:
        return _CUTS[self.flavor] if self.cut_layers is None else self.cut_layers

    def _counts(self, ratio: float) -> tuple[Kept, ...]:
        if self.flavor not in LISTS:
            scale, bias = (self.scale, self.bias) if self.flavor == "rank" else (1.0, 0.0)
            return (RankCount(scale=scale, bias=bias),) * len(self._places)
        recycled = self.flavor == "lists"
        if self.numbers is not None:
            return tuple(ListCount(number=number, recycled=recycled) for number in self.numbers)
        known = LISTS[self.flavor]
        mean = min(known, key=lambda mean: abs(math.log(ratio * _TOKENS / mean)))
        shares = (min(1.0, number * ratio / mean) for number in known[mean])
        return tuple(ListCount(share, of="prompt", recycled=recycled) for share in shares)

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The raters' stage, and the cuts."""
        rule = TextRated(self.flavor, self.scale, self.bias, self.heads)
        positions = self.cut_positions or ("keep" if self.flavor == "plus" else "renumber")
        counts = self._counts(check_ratio(ratio))
        cuts = (InnerStage(at, rule, kept, positions) for at, kept in zip(self._places, counts, strict=True))
        return (InnerStage(0, Raters()), *cuts)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Distances between the dropped tokens that are recycled at each cut; at most, where a rank counts."""
        total, left, terms = layout.total, layout.total, 0.0
        if self.flavor == "plus":
            return {}
        for kept in self._counts(check_ratio(ratio)):
            dropped = left if self.flavor in ("rank", "video") else left - kept.count(left, total)
            terms += 2.0 * (3 * dropped // 10 + 1) ** 2 * width
            left = kept.left(left, total)
        return {"distances of recycled tokens": terms}

    # Published for LLaVA-1.5, Mini-Gemini and Video-LLaVA. Positions on three axes are kept, which is ours.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "qwen2_5_vl": {"cut_positions": "keep"},
        "qwen3_vl": {"cut_positions": "keep"},
        # Behind the layers nearest to the published ones that have attention; ours.
        "qwen3_5": {"cut_layers": (4, 8, 16), "cut_positions": "keep"},
    }

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sparsevlm",
        title="SparseVLM",
        paper="2410.04417",
        summary="Drops the visual tokens that a few text tokens attend to least, and merges some of the dropped ones.",
        nested=False,
        merges=True,
        exact=True,
        quirks=(
            "counts come from fixed lists, not from the rank that the paper describes (flavor='rank')",
            "the number asked for is a mean of tokens that leave a layer; layers read more (no option)",
            "at least one token is dropped at every cut, also if the list keeps all (no option)",
            "positions are numbered again after every cut, except in SparseVLM+ (cut_positions='keep')",
        ),
    )
