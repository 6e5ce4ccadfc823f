"""How a method's tokens stand in the prompt, where its reference does not leave that to the model family.

A reducer declares it as plain attributes (fields where a user may choose, class variables or properties otherwise), all
of them optional:

* `newline`: layout of the newline embeddings on LLaVA, e.g. "frame" for FlashVID on LLaVA-Video;
* `newline_rows`: with the "grid" layout, the rows that get one;
* `positions`: "original" keeps the positions of the unpruned prompt on LLaVA too (FastVID). The Qwen-VL families always
  keep them, because all published methods do;
* `filed`: True where rows stand under other places than their tokens' own, told by the diagnostic "place" (VisionZip's
  grid layout);
* `vision_markers`: "drop" leaves out all vision start and end tokens of Qwen3-VL (FlashVID's released code).
"""

from typing import Any, Literal, NamedTuple

from jvidprune.ops.newline import NewlineKind, NewlineRows

PositionRule = Literal["family", "original"]
MarkerRule = Literal["keep", "drop"]


class PromptRules(NamedTuple):
    """What a reducer declares; None leaves it to the model family."""

    newline: NewlineKind | None = None
    newline_rows: NewlineRows | None = None
    positions: PositionRule = "family"
    vision_markers: MarkerRule = "keep"
    filed: bool = False


def prompt_rules(reducer: Any) -> PromptRules:
    """The declarations of a reducer, with the defaults where it has none."""
    given = {name: getattr(reducer, name, None) for name in PromptRules._fields}
    return PromptRules(**{name: value for name, value in given.items() if value is not None})
