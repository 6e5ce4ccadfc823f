"""Mixture of depths: in routed layers of the language model some visual tokens pass attention and MLP by (p-MoD).

All n visual tokens enter the language model and none leaves it (arXiv 2412.04449). In a routed layer l:

1. A router gives every visual token r = w x + b from the residual x and a gate g = 0.2 tanh(r) + 1.
2. The trunc(n rho_l) visual tokens with the largest gate run, and all text. They see each other alone, at the positions
   that they had, and the layer caches keys and values of them alone.
3. A visual token that runs gets attention as usual and g times the MLP branch; one that does not becomes g x.

rho_l falls from layer to layer along a cosine. The ratio is the mean share of visual tokens over all layers, which is
that of the KV cache: the released 32 layers keep 0.5375. The count of the example is that before the language model.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("mod"), synthetic_tokens(grid=(6, 6)), 0.5).count.item()
288
"""

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from jvidprune.cuts.routers import NormName, RandomRoute, RouterTopK, UniformRoute
from jvidprune.cuts.routing import RouteRule
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Range, Seed, Share
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import InnerStage, Kept, Layout
from jvidprune.weights import AnyWeights, Weights

Schedule = Literal["shiftedcos_decay", "shiftedlinear_decay", "interleave", "deep_all", "deep_all_include_last"]
"""Which layers are routed, and with which shares, see `shares_of`."""

Choice = Literal["router", "random", "uniform"]
"""What chooses the tokens that run: the router, or one of two controls without gates."""

_SPAN = 31
"""Layer at which the released decay ends, whatever the model."""


@dataclasses.dataclass(frozen=True)
class Truncated(Kept):
    """trunc(n * share) tokens, the product in float32 as in p-MoD."""

    def count(self, n: int, prompt: int | None = None) -> int:
        """How many of n tokens run."""
        return min(n, int(np.trunc(np.float32(n) * np.float32(self.share))))


def shares_of(
    schedule: Schedule, factor: float, depth: int, *, highest: float = 0.85, lowest: float = 0.15, span: int = _SPAN
) -> tuple[tuple[int, float], ...]:
    """The routed layers of p-MoD with the shares of visual tokens that run in them, of the last layer's number minus 1.

    "interleave" routes odd layers, "deep_all" layers 2 to the last but one, "deep_all_include_last" the last too; the
    share is `factor`. "shiftedcos_decay" has cos(pi l / span) / 2 + factor in layer l, "shiftedlinear_decay"
    0.5 - l / span + factor; layers above `highest` are not routed, none has less than `lowest`.

    Args:
      schedule: name.
      factor: share, or shift of the curve.
      depth: layers of the language model.
      highest, lowest: of a curve.
      span: layer at which a curve has fallen by 1.
    """
    if schedule in ("interleave", "deep_all", "deep_all_include_last"):
        last = depth - 1 if schedule == "deep_all" else depth
        layers = range(1, depth, 2) if schedule == "interleave" else range(2, last)
        return tuple((layer, factor) for layer in layers)
    found = []
    for layer in range(depth):
        part = layer / span
        fallen = math.cos(math.pi * part) * 0.5 if schedule == "shiftedcos_decay" else 0.5 - part
        if fallen + factor <= highest:
            found.append((layer, max(fallen + factor, lowest)))
    return tuple(found)


def mean_share(shares: tuple[tuple[int, float], ...], depth: int) -> float:
    """Mean share of visual tokens over all layers."""
    return (depth - len(shares) + math.fsum(share for _, share in shares)) / depth


@dataclasses.dataclass(frozen=True)
class MoD(Full):
    """Keeps every token and lets most of them pass the deep layers of the language model by.

    Follows `MCG-NJU/p-MoD` at 459f6df, target "vision_all". The model has to be trained with its router: without
    `router` every gate is 1, equal gates go by position, and the first tokens of the video run, which is where training
    starts. "random" and "uniform" choose without a router, as controls.

    Attributes:
      schedule: which layers are routed, see `shares_of`.
      highest, lowest: shares between which a curve runs; layers above are not routed.
      factor: share of the routed layers, or shift of the curve (0.5 in the released model); None finds it for the
        ratio. With a number the ratio is only checked.
      depth: layers of the language model.
      span: a curve ends at layer 31 ("official") or at the model's last one ("model").
      router: weights "layers.{l}.weight" (D,) and "layers.{l}.bias" () of each routed layer l, or their file.
      norm: function from r to the gate, see `cuts.routers.read_norm`.
      scale_skipped: tokens that pass by are multiplied by their gate too.
      choice: what chooses the tokens that run.
      seed: of "random".
    """

    schedule: Schedule = "shiftedcos_decay"
    highest: Share = 0.85
    lowest: Share = 0.15
    factor: Annotated[float, Range(-2, 2)] | None = None
    depth: Count = 32
    span: Literal["official", "model"] = "official"
    router: AnyWeights | None = None
    norm: NormName = "tanh_0.2_1"
    scale_skipped: bool = True
    choice: Choice = "router"
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Refuses numbers that make no schedule.

        Raises:
          JvidpruneError: a lowest share above the highest, a share outside [0, 1], or a router for another choice.
        """
        if self.lowest > self.highest:
            raise JvidpruneError(
                f"MoD's lowest share must not exceed its highest, got lowest={self.lowest:g} and "
                f"highest={self.highest:g}."
            )
        if self.factor is not None and not self._curved and not 0 <= self.factor <= 1:
            raise JvidpruneError(
                f"MoD's factor is the share of the layers that {self.schedule} routes and must lie in [0, 1], got "
                f"{self.factor:g}."
            )
        check_choice("MoD", self.choice, self.router)

    @property
    def _curved(self) -> bool:
        return self.schedule.endswith("_decay")

    def shares(self, ratio: float) -> tuple[tuple[int, float], ...]:
        """The routed layers and their shares for a mean share over the layers.

        Raises:
          JvidpruneError: a mean share that the layers that are not routed exceed alone.
        """
        ratio = check_ratio(ratio)
        if self.factor is not None:
            return self._with(self.factor)
        low = -2.0 if self._curved else 0.0
        least = mean_share(self._with(low), self.depth)
        if ratio < least:
            mend = "lowest=" if self._curved else "schedule='shiftedcos_decay'"
            raise JvidpruneError(
                f"MoD with schedule {self.schedule!r} keeps a mean share of at least {least:.3g} over {self.depth} "
                f"layers, got {ratio:g}; ask for more, or choose {mend} for less."
            )
        high = 2.0 if self._curved else 1.0
        if mean_share(self._with(high), self.depth) <= ratio:
            return self._with(high)
        # Rises with the factor, in steps where a layer leaves the curve.
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_share(self._with(middle), self.depth) <= ratio else (low, middle)
        # The released 0.5 is found as itself.
        found = self._with(round(low, 12))
        return found if mean_share(found, self.depth) <= ratio else self._with(low)

    def _with(self, factor: float) -> tuple[tuple[int, float], ...]:
        span = _SPAN if self.span == "official" else max(self.depth - 1, 1)
        return shares_of(self.schedule, factor, self.depth, highest=self.highest, lowest=self.lowest, span=span)

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The routed layers for a mean share over the layers.

        Raises:
          JvidpruneError: as for `shares`, or a routed layer that the router's file lacks.
        """
        rule = rule_of(self.choice, self.norm, scale_skipped=self.scale_skipped)
        return tuple(
            InnerStage(layer, rule, Truncated(share), seed=self.seed, weights=layer_weights(self.router, layer))
            for layer, share in self.shares(ratio)
        )

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """A product of every token with the router of every routed layer."""
        return router_terms(self.choice, len(self.shares(ratio)), layout, width)

    # Published for LLaVA models of 32 layers alone; nothing of it is particular to a family.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="mod",
        title="p-MoD",
        paper="2412.04449",
        summary="Mixture of depths: routed layers run on the visual tokens that a trained router chooses, and cache "
        "those alone.",
        nested=False,
        merges=False,
        exact=True,
        quirks=(
            "the curve ends at layer 31 whatever the model's depth (span='model')",
            "tokens that skip a layer are multiplied by their gate as well (scale_skipped=False)",
            "without a trained router the first tokens of the video run in all routed layers (router=, or "
            "choice='uniform')",
            "the router learns through the gate alone: the choice has no gradient (no option)",
        ),
    )


def check_choice(title: str, choice: Choice, router: Any) -> None:
    """Refuses weights that would not be read.

    Raises:
      JvidpruneError: a router beside a choice that has none.
    """
    if router is not None and choice != "router":
        raise JvidpruneError(f"{title} with choice {choice!r} reads no router: leave out router=.")


def rule_of(choice: Choice, norm: str, *, scale_skipped: bool, by_frame: bool = False) -> RouteRule:
    """The rule of every routed layer."""
    if choice == "router":
        return RouterTopK(norm, scale_skipped=scale_skipped, by_frame=by_frame)
    return RandomRoute(by_frame=by_frame) if choice == "random" else UniformRoute(by_frame=by_frame)


def router_terms(choice: Choice, layers: int, layout: Layout, width: int) -> Terms:
    """FLOPs of a product of every token with the router of each of the routed layers."""
    return {"routers": 2.0 * (layers if choice == "router" else 0) * layout.total * width}


def layer_weights(router: Weights | None, layer: int) -> Weights | None:
    """The router of one layer, None where there is no file.

    Raises:
      JvidpruneError: a file without this layer, or without one of its two arrays.
    """
    if router is None:
        return None
    found = router.part(f"layers.{layer}.")
    if found is None or not {"weight", "bias"} <= found.arrays.keys():
        where = "the router" if router.path is None else router.path
        raise JvidpruneError(
            f"{where} has no layers.{layer}.weight and layers.{layer}.bias, but layer {layer} is routed; choose the "
            "schedule, factor and depth that it was trained with."
        )
    return found
