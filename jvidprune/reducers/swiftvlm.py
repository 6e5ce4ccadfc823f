"""SwiftVLM (reconstruction): visual tokens dropped at one layer bypass the next ones and can be chosen again later.

No code is public: this follows what is said of the paper (arXiv 2602.03134). All n visual tokens enter the language
model; cuts stand before the layers at about 2, 10 and 14 of 32.

1. Before layer c the attention that the last position would pay in layer c is computed, and the k largest stay.
2. The others go in Z groups to the most similar of Z evenly spaced ones. Each group goes on as one token, its mean m_g.
3. Before the next cut a token i of group g is h_i + (m_g now - m_g then), and all n are ranked again.
4. Behind the last cut only the k tokens are left.

The ratio is the mean share over layers, merged tokens included. The count of the example is that before the language
model.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("swiftvlm"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
288
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from jvidprune.cuts.swiftvlm import PER_GROUP, Bypass, BypassCount, Heads, Place, Return, Rounds, groups_of
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Index
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import InnerStage, Layout

_PUBLISHED, _DEPTH = (2, 10, 14), 32
"""Cuts of LLaVA-1.5-7B, layers 3, 11 and 15 of 32 counted from 1."""

_FIRST = 2
"""Layers that no profile chooses: the first two."""


@dataclasses.dataclass(frozen=True)
class SwiftVLM(Full):
    """Keeps every token before the language model; inside it low tokens bypass the layers between the cuts.

    Every cut chooses k of all n tokens, k = round(((r L - F) n - Z B) / (B + D)) for L layers, of which F read all
    tokens, B lie between cuts and D behind the last; if fewer than Z tokens are low each is a group of its own. Layers
    between cuts cache the kept and the merged tokens that they ran on: a token that comes back has no keys there.
    Positions are kept, an answer goes on behind the uncut prompt and keeps the last choice.

    Ours, where nothing is said: equal counts at all cuts, Z = round(n / 32), the grouping, heads averaged, a merged
    token at the position of its seed and counted as one key, the caches. Progressive drop, the paper's baseline, is
    `pyramiddrop(cut_layers=..., shares=..., cut_positions=keep)`.

    Attributes:
      cut_layers: first layer behind each cut; None takes 2, 10 and 14 in proportion to `depth`. `chosen_layers` finds
        them for a measured profile.
      numbers: visual tokens kept at each cut; the ratio is then only checked.
      groups: Z; None is round(n / 32), at least 1.
      heads: attention of several heads as one score.
      rounds: of k-means behind the first grouping.
      place: `before` a layer, or `after` it has run on all tokens, one layer later.
      depth: layers of the language model.
    """

    cut_layers: tuple[Index, ...] | None = None
    numbers: tuple[Index, ...] | None = None
    groups: Count | None = None
    heads: Heads = "mean"
    rounds: Rounds = 0
    place: Place = "before"
    depth: Count = _DEPTH

    def __post_init__(self) -> None:
        """Refuses layers and numbers that make no schedule.

        Raises:
          JvidpruneError: layers that do not increase (by 2 where each runs on all tokens), or not a number for each.
        """
        layers, step = self._places, 1 if self.place == "before" else 2
        if any(after - before < step for before, after in itertools.pairwise(layers)):
            raise JvidpruneError(f"SwiftVLM's cut_layers must increase by at least {step}, got {layers}.")
        if self.numbers is not None and len(self.numbers) != len(layers):
            raise JvidpruneError(
                f"SwiftVLM's numbers must be one a cut, got {len(self.numbers)} for layers "
                f"{', '.join(map(str, layers))}."
            )

    @property
    def _places(self) -> tuple[int, ...]:
        """Layers that rank, in order."""
        if self.cut_layers is not None:
            return self.cut_layers
        step = 1 if self.place == "before" else 2
        found: list[int] = []
        for layer in (max(round(self.depth * place / _DEPTH), 1) for place in _PUBLISHED):
            if not found or layer >= found[-1] + step:
                found.append(layer)
        return tuple(found)

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The cuts for a mean share over the layers; with `numbers` the ratio is only checked.

        Raises:
          JvidpruneError: a share that the layers before the first cut and the merged tokens exceed alone.
        """
        ratio, later = check_ratio(ratio), int(self.place == "after")
        # Cuts behind the end do nothing.
        layers = [layer for layer in self._places if layer + later < self.depth]
        if not layers:
            return ()
        returns = later * (len(layers) - 1)
        whole, between = layers[0] + later + returns, layers[-1] - layers[0] - returns
        behind = self.depth - whole - between
        least = (whole + (between / PER_GROUP if self.groups is None else 0.0)) / self.depth
        if self.numbers is None and ratio <= least:
            raise JvidpruneError(
                f"SwiftVLM that ranks at layers {', '.join(map(str, layers))} of {self.depth} reads a mean share of "
                f"{least:.3g} alone before the first cut and by merged tokens, got {ratio:g}; ask for more, or let it "
                "cut earlier with cut_layers=."
            )
        stages = []
        for at, layer in enumerate(layers):
            final = layer == layers[-1]
            number = None if self.numbers is None else self.numbers[at]
            kept = BypassCount(
                ratio, number=number, groups=self.groups, whole=whole, between=between, behind=behind, final=final
            )
            if later and at > 0:
                stages.append(InnerStage(layer, Return(), BypassCount()))
            rule = Bypass(self.groups, self.heads, self.rounds, final, self.place)
            stages.append(InnerStage(layer + later, rule, kept))
        return tuple(stages)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Cosines of low tokens with the seeds, their means, and how they come back, at every cut but the last."""
        counts = [stage.kept for stage in self.inner(ratio) if isinstance(stage.rule, Bypass) and not stage.rule.final]
        low = [layout.total - kept.count(layout.total) for kept in counts]
        merged = [min(groups_of(layout.total, self.groups), one) for one in low]
        pairs = sum(one * groups for one, groups in zip(low, merged, strict=True))
        return {
            "similarities to seeds": 2.0 * (1 + self.rounds) * pairs * width + 2.0 * sum(low) * width,
            "means of groups": 2.0 * (1 + self.rounds) * sum(low) * width,
            "tokens brought back": 2.0 * sum(low) * width,
        }

    # Published for LLaVA-1.5 and LLaVA-NeXT with 32 layers alone.
    # Layers with attention nearest to those of the class; ours.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"qwen3_5": {"cut_layers": (3, 11, 15)}}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="swiftvlm",
        title="SwiftVLM",
        paper="2602.03134",
        summary="Lets dropped tokens bypass layers of the language model as a few means, to be chosen again later.",
        nested=False,
        merges=True,
        exact=True,
        quirks=(
            "a token that comes back has no keys in the layers that it bypassed (no option)",
            "layers before the first cut read everything, so a smaller mean share than theirs is refused (cut_layers)",
            "the paper's wording lets the layer that ranks run on everything, its costs do not (place='after')",
        ),
        provenance="reconstruction",
    )


def chosen_layers(profile: Sequence[float] | Float[np.ndarray, "L"], cuts: int = 3) -> tuple[int, ...]:
    """Layers for `cut_layers` from how well the tokens that each layer would choose serve all layers from the third on.

    Of all i_1 < ... < i_m behind the first two layers, at which the profile rises, those with the largest
    sum of x_{i_k} (i_{k+1} - i_k), counted from 1 and with i_{m+1} = L, as in the paper; of equally good ones those
    that come first.

    Args:
      profile: x_i for each of the L layers, finite; those of the first two are not read.
      cuts: m.

    Returns:
      The layers counted from 0, which is the first layer behind each cut.

    Raises:
      JvidpruneError: not a row of finite numbers, or no rising choice of so many layers.
    """
    x = np.asarray(profile, np.float64)
    if x.ndim != 1 or not np.isfinite(x[_FIRST:]).all() or cuts < 1:
        raise JvidpruneError(
            f"a profile is one finite number for each layer and at least one cut, got {x.shape} and {cuts}."
        )
    depth = len(x)
    # The best choice of so many cuts that begins with layer i, and its value.
    best: dict[int, tuple[float, tuple[int, ...]]] = {}
    for left in range(cuts):
        found: dict[int, tuple[float, tuple[int, ...]]] = {}
        for i in range(_FIRST, depth):
            ends = [(x[i] * (depth - 1 - i), ())] if left == 0 else []
            later = [(x[i] * (j - i) + value, rest) for j, (value, rest) in best.items() if j > i and x[j] > x[i]]
            if ends or later:
                value, rest = max(ends + later, key=lambda option: option[0])
                found[i] = value, (i, *rest)
        best = found
    if not best:
        raise JvidpruneError(f"no {cuts} layers behind the second of {depth} have a rising profile; ask for fewer.")
    return max(best.values(), key=lambda option: option[0])[1]
