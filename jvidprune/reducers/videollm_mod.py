"""VideoLLM-MoD: every other layer of the language model runs on a few visual tokens of each frame (reconstruction).

All visual tokens enter the language model and none leaves it (arXiv 2408.16730; no code is public). In layers
1, 3, 5, ...:

1. A router gives every visual token a gate from the residual, as in `mod`.
2. The max(1, round(s P)) visual tokens of a frame of P with the largest gate run, and all text. A frame's choice needs
   no later frame, so a stream and a whole video are read alike.
3. The others stay as they are, and the layer caches no keys and values of them.

The ratio is the mean share of visual tokens over all layers, which decides s; 0.6 is the paper's s = 0.2 with layers
of an even number. The count of the example is that before the language model.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("videollm_mod"), synthetic_tokens(grid=(6, 6)), 0.6).count.item()
288
"""

import dataclasses
from typing import Any, ClassVar

from jvidprune.cuts.routers import NormName
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Seed, Share
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.full import Full
from jvidprune.reducers.mod import Choice, check_choice, layer_weights, router_terms, rule_of
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import InnerStage, Kept, Layout
from jvidprune.weights import AnyWeights


@dataclasses.dataclass(frozen=True)
class AtLeastOne(Kept):
    """max(1, round(n * share)) tokens of a frame of n."""

    def count(self, n: int, prompt: int | None = None) -> int:
        """How many of n tokens run."""
        return min(n, max(1, round(n * self.share)))


@dataclasses.dataclass(frozen=True)
class VideoLLMMoD(Full):
    """Keeps every token and runs every other layer on the best tokens of each frame.

    The paper says which layers, that the tokens of a frame compete, and a share of 0.2; the router, its gate on the MLP
    branch and the positions are p-MoD's, which has code. A newline that stands in a frame competes as one of its
    tokens. Without `router` every gate is 1 and the first tokens of each frame run, which is where training starts.

    Attributes:
      share: of each frame's tokens, in a routed layer; None finds it for the ratio. With a number the ratio is only
        checked.
      depth: layers of the language model.
      router, norm, choice, seed: as in `mod`.
      scale_skipped: tokens that pass by are multiplied by their gate, as p-MoD does.
    """

    share: Share | None = None
    depth: Count = 28
    router: AnyWeights | None = None
    norm: NormName = "tanh_0.2_1"
    scale_skipped: bool = False
    choice: Choice = "router"
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Refuses a router for another choice.

        Raises:
          JvidpruneError: that.
        """
        check_choice("VideoLLM-MoD", self.choice, self.router)

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The routed layers for a mean share over the layers.

        Raises:
          JvidpruneError: a mean share that the other layers exceed alone, or a layer that the router's file lacks.
        """
        share, layers = self._share(check_ratio(ratio)), range(1, self.depth, 2)
        rule = rule_of(self.choice, self.norm, scale_skipped=self.scale_skipped, by_frame=True)
        return tuple(
            InnerStage(layer, rule, AtLeastOne(share), seed=self.seed, weights=layer_weights(self.router, layer))
            for layer in layers
        )

    def _share(self, ratio: float) -> float:
        """Of each frame, in a routed layer."""
        if self.share is not None:
            return self.share
        routed = self.depth // 2
        if ratio < 1 - routed / self.depth:
            raise JvidpruneError(
                f"VideoLLM-MoD routes {routed} of {self.depth} layers and keeps a mean share of more than "
                f"{1 - routed / self.depth:.3g}, got {ratio:g}; ask for more."
            )
        # Rounded, so that the paper's share is found as itself.
        return min(round(1 - self.depth * (1 - ratio) / max(routed, 1), 12), 1.0)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """A product of every token with the router of every routed layer."""
        check_ratio(ratio)
        return router_terms(self.choice, self.depth // 2, layout, width)

    # No code and no checkpoint is public.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="videollm_mod",
        title="VideoLLM-MoD",
        paper="2408.16730",
        summary="Every other layer runs on the visual tokens of each frame that a trained router chooses, and caches "
        "those alone.",
        nested=False,
        merges=False,
        exact=True,
        quirks=(
            "router, gate and positions are p-MoD's, since the paper's are not public (no option)",
            "tokens that skip a layer do not change (scale_skipped=True is p-MoD's)",
            "without a trained router the first tokens of each frame run (router=, or choice='uniform')",
        ),
        provenance="reconstruction",
    )
