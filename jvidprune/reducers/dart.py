"""DART: what stays is unlike a few pivots, not what is attended to (arXiv 2502.11494).

All n visual tokens enter the language model; one cut stands before its layer K.

1. Image pivots: the 4 visual tokens whose keys in layer K - 1 have the largest L1 norms, all heads together.
2. Text pivots: the 4 tokens behind the video, chosen alike.
3. u is the state behind layer K - 1 under the model's last norm. Each pivot p in turn takes the q = int(r n / 8) tokens
   of smallest cos(u_p, u_c) that none before it took.
4. The image pivots and all that was taken stay, 4 + 8 q tokens, at the positions that they had.

No attention is read, so that fused kernels serve. The count of the example is that before the language model.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("dart"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
288
"""

import dataclasses
from typing import Any, ClassVar, Literal

from jvidprune.cuts.dart import KeyNormPivots, PivotCount, PivotOrder
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Index, Share
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import CutPositions, InnerStage, Layout


@dataclasses.dataclass(frozen=True)
class DART(Full):
    """Keeps every token before the language model and cuts before its layer `layer`.

    A retention ratio is the share kept at the cut, not a mean over layers. Follows `ZichenWen1/DART` at 5a19452; no run
    on videos is published, so the whole video counts as its one image.

    Attributes:
      layer: K; None takes 2, or 1 for `exact`.
      dropped: the share to drop in place of 1 - ratio, which is then only checked.
      number: m, the nominal number of tokens that stay (192, 128, 64 of LLaVA-1.5): q = m // 8.
      image_pivots, text_pivots: 4 and 4; another port takes 10 and 5.
      pivot_order: pivots in the order of CPython's hash table ("hash"), as in the released loop over a set, so that the
        choice depends on where the video starts modulo 32, or image pivots by norm, then text pivots by norm ("norm").
      variant: `official`, or `exact` after AngelSlim's port: round(r n) tokens stay, text pivots come from all text,
        pivots are visited by norm, and states are compared without a norm.
      cut_positions: rotary positions behind the cut.
    """

    layer: Index | None = None
    dropped: Share | None = None
    number: Index | None = None
    image_pivots: Count = 4
    text_pivots: Count = 4
    pivot_order: PivotOrder = "hash"
    variant: Literal["official", "exact"] = "official"
    cut_positions: CutPositions = "keep"

    def __post_init__(self) -> None:
        """Refuses a cut that has no layer in front of it.

        Raises:
          JvidpruneError: a layer below 1, or more pivots than the order of a hash table is known for.
        """
        if self.layer == 0:
            raise JvidpruneError("DART reads the layer before its cut, so the cut's layer is at least 1, got 0.")
        self._rule()

    def _rule(self) -> KeyNormPivots:
        exact = self.variant == "exact"
        return KeyNormPivots(self.image_pivots, self.text_pivots, "norm" if exact else self.pivot_order, whole=exact)

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The cut for a retention ratio; 1 - dropped is taken in float64, as the reference does."""
        share, rule = check_ratio(ratio) if self.dropped is None else 1 - self.dropped, self._rule()
        kept = PivotCount(share, number=self.number, image=rule.image, text=rule.text, whole=rule.whole)
        layer = self.layer if self.layer is not None else 1 if rule.whole else 2
        return (InnerStage(layer, rule, kept, self.cut_positions),)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Cosines of all tokens with every pivot, and their norms."""
        return {"cosines with pivots": 2.0 * (self.image_pivots + self.text_pivots + 1) * layout.total * width}

    # The settings of the released scripts for LLaVA-1.5, LLaVA-NeXT and Qwen2.5-VL, which are those of the class; for
    # Qwen3.5 the first layer behind one with keys, which is ours.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"qwen2_5_vl": {}, "qwen3_5": {"layer": 4}}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dart",
        title="DART",
        paper="2502.11494",
        summary="Keeps visual tokens unlike a few pivots of large keys, inside the language model.",
        nested=False,
        merges=False,
        exact=True,
        quirks=(
            "4 + 8 q tokens stay, which may be 4 more than asked for (variant='exact')",
            "pivots are visited in the order of a hash table, which depends on where the video starts "
            "(pivot_order='norm')",
            "states of an early layer go through the last norm of the model before they are compared (variant='exact')",
            "the ratio is the share kept after the cut; the layers before it read all tokens (no option)",
        ),
    )
