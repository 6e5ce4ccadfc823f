"""What is chosen about STTS: where it scores, how much it removes, and which of the released quirks it keeps."""

import dataclasses
import math
from typing import Annotated, Literal

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Index, Range, Ratio, check_fields
from jvidprune.models.fused import AttentionKind

Method = Literal["scorer", "heuristic", "easy", "random"]
"""What ranks the windows: the learned scorer, or one of the three baselines of the same code."""

Packing = Literal["flat", "rows", "masked"]
"""How the blocks behind the pruning run: tokens in one sequence, frames in rows by first-fit decreasing, or dense
frames with masked keys (the oracle: no saving). All give the same kept tokens."""

MIN_BIAS_SCALE = math.exp(-2.0)
"""Smallest rescaled score of the released code: biases lie in [-2, 0]."""


@dataclasses.dataclass(frozen=True)
class STTSConfig:
    """Settings of STTS (arXiv 2603.18004); the defaults are those of the released code.

    Attributes:
      prune_at: 0-based block whose output is scored; the next one is biased by the scores, those behind it are packed.
      removed: share of the windows that is removed, in [0, 1); the released code calls it `topk`.
      window: tokens of the language model on a side of a window. 1 makes a window of the patches that become one token,
        as in Molmo2; larger windows must divide the grid of tokens.
      method: what ranks the windows. The baselines rank what enters the tower, and have no biased block.
      bias: False leaves the next block unbiased; the language model's loss then never reaches the scorer.
      min_bias_scale: m in (0, 1]; scores are rescaled to [m, 1] and their logarithm is the bias.
      rescale: scores are rescaled within each row of windows ("rows", the released code) or each frame ("frame").
      coefficient: factor of the auxiliary loss.
      detach_target: True keeps the auxiliary loss from changing the tower through its target.
      within_examples: True leaves pairs of frames of different videos out of the auxiliary loss.
      refill: "official" gives a frame that is alone in a packed row its pruned patches back, as the released code does;
        results then depend on the packing. False, the default of this port, never does.
      packing: how the blocks behind run.
      attention: which code computes attention of packed tokens.
      prune_from_frame: frames that are left out of the frame count in the budget.
      threshold: of the heuristics: similarity below which a window is new.
      retry: of the heuristics, when a window that must stay was pruned: up to five more tries with a threshold that is
        0.05 lower, each from the full mask ("restart") or each on what the last one left ("official", which prunes the
        budget again every time).
      keep_positions: whether the language model's tokens keep the positions of the unpruned prompt, or are counted
        anew; None leaves it to the folder and the family (`reducers.prompt_rules.position_rule`).

    Raises:
      JvidpruneError: a value of a wrong type or out of range.
    """

    prune_at: Index = 3
    removed: Annotated[float, Range(0, 1, below=True)] = 0.5
    window: Count = 1
    method: Method = "scorer"
    bias: bool = True
    min_bias_scale: Ratio = MIN_BIAS_SCALE
    rescale: Literal["rows", "frame"] = "rows"
    coefficient: float = 0.5
    detach_target: bool = False
    within_examples: bool = False
    refill: Literal["official", False] = False
    packing: Packing = "flat"
    attention: AttentionKind = "auto"
    prune_from_frame: Index = 0
    threshold: float = 0.85
    retry: Literal["restart", "official"] = "restart"
    keep_positions: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def first_packed(self) -> int:
        """The first block that runs on kept tokens alone."""
        return self.prune_at + (2 if self.method == "scorer" else 1)

    def check_layers(self, layers: int) -> None:
        """JvidpruneError unless a tower of so many blocks has the ones that are named."""
        last = layers - (2 if self.method == "scorer" else 1)
        if self.prune_at > last:
            raise JvidpruneError(
                f"prune_at {self.prune_at} is too deep for a tower of {layers} blocks with method {self.method!r}; "
                f"allowed: 0..{last}."
            )


def check_removed(removed: float) -> float:
    """The share that is removed as a float.

    Raises:
      JvidpruneError: not a number in [0, 1).
    """
    try:
        value = float(removed)
    except (TypeError, ValueError):
        raise JvidpruneError(f"the removed share must be a number in [0, 1), got {removed!r}.") from None
    if not 0.0 <= value < 1.0:
        raise JvidpruneError(f"the removed share must lie in [0, 1), got {value:g}.")
    return value
