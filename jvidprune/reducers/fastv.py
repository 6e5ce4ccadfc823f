"""FastV: drop visual tokens inside the language model by the attention they get after two layers (arXiv 2403.06764).

1. All n visual tokens enter the language model and run through its first K layers.
2. phi is the attention that a visual token gets from the last position of the prompt in layer K - 1, mean over heads.
3. From layer K on only the (1 - R) n visual tokens of largest phi go on, at the positions that they had; layers before
   it cache all tokens.

The count of the example is that before the language model, where nothing is dropped; 1 - R is the ratio.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("fastv"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
288
"""

import dataclasses
from typing import Any, ClassVar, Literal

from jvidprune.cuts.decoding import Renewal
from jvidprune.cuts.rules import LastQueryTopK
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Index, Share
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import InnerStage, Kept

Variant = Literal["drop", "lmms", "inplace", "mask"]


@dataclasses.dataclass(frozen=True)
class FastV(Full):
    """Keeps every token before the language model and cuts before its layer `layer`.

    The visual tokens are ranked by the attention of the last prompt position in layer `layer` - 1, mean over heads.
    Kept tokens keep their positions; layers before the cut cache everything, the others what is kept; decoding keeps
    the choice. A retention ratio is the share kept at the cut, not a mean over layers.

    The repository holds four implementations that select alike and count differently:

    * `drop` (the port to LLaVA): round(n * (1 - R)), halves to even, before layer 2;
    * `lmms` (the evaluation wrapper): int(n * (1 - R)), before layer 3. The original assumes 576 tokens behind 35
      others and runs the layer before the cut twice, which stores its keys twice; the port counts the tokens there are
      and runs it once;
    * `inplace` and `mask`: a given `count`. Both originals have no cache, so they choose anew for every generated
      token, by its own attention, and run the layers behind the cut over the whole sequence again; `mask` hides the
      columns of dropped tokens where `inplace` removes their states, to the same numbers. `reselect="never"` keeps the
      choice of the prompt and the price of a cached step.

    Attributes:
      layer: first layer after the cut; None takes the variant's.
      dropped: R, the share to drop; None takes it from the ratio.
      variant: as above.
      count: tokens to keep, for `inplace` and `mask`.
      reselect: when the choice is renewed while decoding: `auto` as the variant's original, `never`, `recompute` at
        every step with the layers behind the cut run anew, or `bank` where attention has moved, reading cached keys
        and values of all tokens (`cuts.reselection.Reselection`).
      shift: with `bank`, renew above this value of 1 - cosine of the attention to that of the last choice.
    """

    layer: Index | None = None
    dropped: Share | None = None
    variant: Variant = "drop"
    count: Index | None = None
    reselect: Literal["auto", "never", "recompute", "bank"] = "auto"
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Refuses settings that contradict each other.

        Raises:
          JvidpruneError: a layer below 1, or a count where none belongs or none where one does.
        """
        if self.layer == 0:
            raise JvidpruneError(
                "FastV reads the layer before the cut, so it cuts before layer 1 at the earliest, got 0."
            )
        if (self.variant in ("inplace", "mask")) != (self.count is not None):
            raise JvidpruneError(
                f"variant {self.variant!r} with count {self.count}: inplace and mask need a count, the others none."
            )

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The cut for a retention ratio; 1 - R is taken in float64, as the reference does."""
        keep = check_ratio(ratio) if self.dropped is None else 1 - self.dropped
        layer = self.layer if self.layer is not None else 3 if self.variant == "lmms" else 2
        kept = Kept(keep, "floor" if self.variant == "lmms" else "round", self.count)
        again = self.reselect
        if again == "auto":
            again = "recompute" if self.count is not None else "never"
        renewal = None if again == "never" else Renewal(again, self.shift if again == "bank" else None)
        return (InnerStage(layer, LastQueryTopK(renewal=renewal), kept),)

    # Of Qwen3.5's layers every fourth has attention to read; ours.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {},
        "llava_video": {},
        "qwen2_5_vl": {},
        "qwen3_5": {"layer": 4},
    }

    info: ClassVar[MethodInfo] = MethodInfo(
        name="fastv",
        title="FastV",
        paper="2403.06764",
        summary="Drops the visual tokens that the last position attends to least, inside the language model.",
        nested=True,
        merges=False,
        exact=True,
        quirks=(
            "the ratio is the share kept after the cut; the layers before it read all tokens (no option)",
            "the released evaluation wrapper rounds down and cuts a layer later (variant='lmms')",
        ),
    )
