"""PyramidDrop: visual tokens leave in stages, at layers ever deeper in the language model (arXiv 2410.17247).

All n visual tokens enter the language model; cuts stand before the layers at a quarter, half and three quarters of it.

1. Before layer l the attention that the last position of the prompt would pay in layer l itself is computed, mean over
   heads; layer l has not run yet.
2. The int(n lambda^i) visual tokens that would get most stay behind cut i, counted from n, not from those left.
3. The tokens that stay are counted from position 0 again, and generated ones go on without a gap in every layer.

The ratio r is the mean share over layers, which decides lambda; r = 0.46875 is the released lambda = 1/2. The count of
the example is that before the language model.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("pyramiddrop"), synthetic_tokens(grid=(6, 6)), 0.5).count.item()
288
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from jvidprune.cuts.rules import LookAhead, TextAhead
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Index, Range, Share
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import CutPositions, InnerStage, Kept


@dataclasses.dataclass(frozen=True)
class PyramidDrop(Full):
    """Keeps every token before the language model and drops them at several layers inside it.

    Follows `Cooperx521/PyramidDrop` at 6444f30 in its prompt pass; query heads that share a key share it in the ranking
    too, where the released code fails. Prompts are never shortened to a length of text, as they are there.

    Attributes:
      cut_layers: first layer behind each cut; None divides `depth` into `stages` parts, 8, 16, 24 of 32.
      shares: of n, what stays behind each cut; None takes powers of a lambda that is found for the ratio.
      depth: layers of the language model.
      stages: stretches of layers between cuts where `cut_layers` is None.
      ranked_by: attention of the `last` position, or the mean over the text queries (`text`), as in training.
      cut_positions: "renumber" as above; "renumber_prompt" lets generated tokens go on behind the uncut prompt
        (LightCompress); "keep" is ours, for positions on three axes.
    """

    cut_layers: tuple[Index, ...] | None = None
    shares: tuple[Share, ...] | None = None
    depth: Count = 28
    stages: Annotated[int, Range(1, 64)] = 4
    ranked_by: Literal["last", "text"] = "last"
    cut_positions: CutPositions = "renumber"

    def __post_init__(self) -> None:
        """Refuses layers and shares that make no schedule.

        Raises:
          JvidpruneError: layers that do not increase, shares that do, or not as many of them as cuts.
        """
        layers = self._places
        if list(layers) != sorted(set(layers)):
            raise JvidpruneError(f"PyramidDrop's cut_layers must increase, got {layers}.")
        if self.shares is not None and len(self.shares) != len(layers):
            raise JvidpruneError(f"PyramidDrop's shares must be one a cut, got {len(self.shares)} for {len(layers)}.")
        if self.shares is not None and list(self.shares) != sorted(self.shares, reverse=True):
            raise JvidpruneError(f"PyramidDrop's shares must not increase, got {self.shares}.")

    @property
    def _places(self) -> tuple[int, ...]:
        """First layer behind each cut."""
        if self.cut_layers is not None:
            return self.cut_layers
        return tuple(sorted({self.depth * i // self.stages for i in range(1, self.stages)}))

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The cuts for a mean share over the layers; with `shares` the ratio is only checked.

        Raises:
          JvidpruneError: a share that the layers in front of the first cut exceed alone.
        """
        layers = self._places
        shares = _powers(layers, self.depth, check_ratio(ratio)) if self.shares is None else self.shares
        rule = LookAhead() if self.ranked_by == "last" else TextAhead()
        return tuple(
            InnerStage(layer, rule, Kept(share, "floor", of="prompt"), self.cut_positions)
            for layer, share in zip(layers, shares, strict=True)
        )

    # Published for LLaVA-1.5 and LLaVA-NeXT with 32 layers alone. Positions on three axes are kept, which is ours.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "qwen2_5_vl": {"cut_positions": "keep"},
        "qwen3_vl": {"cut_positions": "keep"},
        # The layers nearest to the quarters of 32 that have attention; ours.
        "qwen3_5": {"cut_layers": (7, 15, 23), "cut_positions": "keep"},
    }

    info: ClassVar[MethodInfo] = MethodInfo(
        name="pyramiddrop",
        title="PyramidDrop",
        paper="2410.17247",
        summary="Drops visual tokens in stages, by the attention that the last position would pay in the next layer.",
        nested=False,
        merges=False,
        exact=True,
        quirks=(
            "positions are numbered again after every cut (cut_positions='keep')",
            "all layers before the first cut read everything, so that a mean share below theirs is refused "
            "(cut_layers=(2, 7, 14) cuts earlier)",
        ),
    )


def _powers(layers: tuple[int, ...], depth: int, ratio: float) -> tuple[float, ...]:
    """lambda, lambda^2, ... whose mean over `depth` layers, 1 before the first cut, is the ratio."""
    inside = [layer for layer in layers if layer < depth]
    lengths = [stop - start for start, stop in zip([0, *inside], [*inside, depth], strict=True)]

    def mean(power: float) -> float:
        return sum(length * power**i for i, length in enumerate(lengths)) / depth

    if ratio < mean(0.0):
        raise JvidpruneError(
            f"PyramidDrop with cuts before layers {', '.join(map(str, layers))} of {depth} keeps a mean share of at "
            f"least {mean(0.0):.3g}, got {ratio:g}; ask for more, or let it cut earlier with cut_layers=."
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle) >= ratio else (middle, high)
    # The released 1/2 is found as itself.
    power = round(high, 12)
    return tuple(power ** (i + 1) for i in range(len(layers)))
