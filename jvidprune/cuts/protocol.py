"""What a rule inside the language model sees and answers: the tokens between two layers, and the classes of rules.

A rule of one's own is a frozen dataclass that subclasses `CutRule`, as the published ones in `cuts.rules` do.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.decoding import DecodePolicy, Renewal
from jvidprune.fields import check_fields
from jvidprune.tokens import InnerStage, NewlineRole, StageRule

Probe = Literal["none", "last", "text", "keys", "ahead", "ahead_text"]
"""What a rule reads of the model, L being the first layer behind the cut.

* "none": nothing.
* "last": attention of the last valid position in layer L - 1 (FastV), or of some (`CutRule.last_rows`).
* "text": attention of the text queries in layer L - 1 (PruneVid).
* "keys": keys of all positions in layer L - 1, after rotary (DART).
* "ahead": attention that the last valid position would pay in layer L if nothing were cut (PyramidDrop); nothing of it
  is cached, and L may be 0.
* "ahead_text": the same of the text queries (PyramidDrop in training).
"""

AHEAD: tuple[Probe, ...] = ("ahead", "ahead_text")
"""Probes of the layer behind the cut."""


class TokenState(NamedTuple):
    """The tokens between two layers.

    Attributes:
      hidden: (B, S, D).
      positions: (B, S) or (3, B, S) rotary positions.
      valid: (B, S) slots in use.
      visual: (B, S) tokens that compete at a cut.
      source: (B, S) slot of the prompt that the token came from.
      text_queries: (B, S) text tokens whose attention ranks visual ones (PruneVid).
      block: (B, S) group of each visual token (PruneVid), or its place in its frame (`StageRule.by_place`); 0 where
        there are none.
      side: what a rule put aside for a later one, any pytree with a leading axis B; it goes round the layers and is
        neither cut nor gathered (states of bypassed tokens, groups; SwiftVLM, arXiv 2602.03134).
      bidirectional: (B, S) slots that see each other in either direction, or None.
      bias: (B, S) float32 added to the scaled attention scores of each token as a key, or None.
      aside: where all tokens stood before a cut that moved them together and behind which some come back, a
        `cuts.cut.Spread`, or None; rules do not see it.
    """

    hidden: Float[Array, "B S D"]
    positions: Int[Array, "... B S"]
    valid: Bool[Array, "B S"]
    visual: Bool[Array, "B S"]
    source: Int[Array, "B S"]
    text_queries: Bool[Array, "B S"]
    block: Int[Array, "B S"]
    side: Any = None
    bidirectional: Any = None
    bias: Any = None
    aside: Any = None


class CutInputs(NamedTuple):
    """What a rule is given beside the tokens of one prompt.

    Attributes:
      kept: () int32 how many of its visual tokens stay, or what else the table of the stage's `Kept` says of them.
      table: (Q,) int32 how many of n tokens stay, for rules that count in blocks.
      seed: () int32 for rules that draw.
      attention: (H, R, S) float32 weights of the probed rows, or None; rows of "text" behind the last text query repeat
        the last valid position.
      keys: (S, K, d) of the probed layer, or None.
      normed: (S, D) the states under the norm in front of the model's head, for a rule that reads them, or None.
      rotary: (cos, sin), each (S, r), by which the model turns the first r channels of keys at the tokens' positions
        (all of them but in Qwen3.5), for a rule that reads them, or None.
      weights: arrays of the stage's `weights` by name, {} where it has none.
    """

    kept: Int[Array, ""]
    table: Int[Array, "Q"]
    seed: Int[Array, ""]
    attention: Any = None
    keys: Any = None
    normed: Any = None
    rotary: Any = None
    weights: Any = None


class Chosen(NamedTuple):
    """A rule's answer for one prompt.

    Attributes:
      hidden: (S, D) states, merged or as they were.
      survivors: (S,) tokens that stay; the text is among them. A rule that brings back tokens marks their slots.
      score: (S,) what visual tokens were ranked by, for records.
      side: what is put aside for later rules; None leaves what is there.
      order: (S,) int32 where tokens change their slots (merged ones behind the kept ones): slot s takes over position,
        role and source of slot order[s], and `hidden`, `survivors` and `score` are those of the new slots.
      diagnostics: what else the rule can show, arrays by name.
      bias: (S,) float32 added to the scaled attention scores of each token as a key, for all queries and heads, in all
        layers from here to the next cut that gives another one, and in every step of the answer; None leaves what is
        there, at first nothing. Layers with it run the plain attention.
    """

    hidden: Float[Array, "S D"]
    survivors: Bool[Array, "S"]
    score: Float[Array, "S"]
    side: Any = None
    order: Any = None
    diagnostics: Any = None
    bias: Any = None


@dataclasses.dataclass(frozen=True)
class CutRule(StageRule):
    """How a cut chooses; a subclass says what it probes, and implements `choose`.

    Its fields are static under jit: what differs from prompt to prompt stands in `InnerStage` and arrives in
    `CutInputs`.

    Attributes:
      causal: whether the layer in front of the cut is causal; it is not where HoliTom's released code asks it for its
        weights.
      renewal: how the choice is renewed while decoding, or None.

    Raises:
      JvidpruneError: a field with a value that its annotation does not allow.
    """

    causal: bool = dataclasses.field(default=True, kw_only=True)
    renewal: Renewal | None = dataclasses.field(default=None, kw_only=True)

    probe: ClassVar[Probe] = "none"
    """What is read of the model."""
    last_rows: ClassVar[int] = 1
    """How many of the last valid positions "last" and "ahead" probe; where there are fewer the last one repeats."""
    reads_normed: ClassVar[bool] = False
    """Whether the states are also given under the norm in front of the model's head (DART)."""
    reads_rotary: ClassVar[bool] = False
    """Whether the rotary tables of the tokens are given too (SparseVLM+)."""
    keeps_roles: ClassVar[bool] = False
    """Whether dropped tokens stay marked as visual, so that a later rule finds their slots: it gets the slots of this
    cut again, though the layers between may have run on the tokens that stayed, moved together."""
    brings_back: ClassVar[bool] = False
    """Whether survivors may be tokens that were dropped behind earlier cuts whose rules keep roles."""
    renewable: ClassVar[bool] = False
    """Whether the choice is the largest attention of the last position, which can be renewed while decoding."""

    def __post_init__(self) -> None:
        check_fields(self)

    def restore(self, state: TokenState) -> TokenState:
        """The state that is probed and chosen from: dropped tokens may be written back and marked valid (SwiftVLM).

        Args:
          state: of one prompt, without the batch axis, in the slots of the cut that put the dropped tokens aside. What
            `hidden` holds in slots that are not valid means nothing.
        """
        return state

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """Which tokens of one prompt stay: at most `inputs.kept` visual ones, merged ones included.

        Args:
          inputs: counts, and what was probed.
          state: without the batch axis; `visual` and `text_queries` are False outside `valid`.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class DecodeRule(StageRule):
    """What a decoding step lets the deep layers read; the prompt is left alone."""

    newlines: NewlineRole = dataclasses.field(default="never", kw_only=True)

    cuts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def policy(self, stage: InnerStage, visual: Bool[np.ndarray, "B S"]) -> DecodePolicy:
        """The policy before the first decoding step.

        Args:
          stage: whose rule this is; `kept` counts what is read.
          visual: (B, S) prompt slots with a visual token.
        """
        raise NotImplementedError
