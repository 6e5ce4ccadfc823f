"""How a reduced video stands in the prompt: its newline embeddings, vision markers and rotary positions."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.ops.newline import NewlineKind, NewlineRows

PositionRule = Literal["renumbered", "original"]
"""Rotary positions of a prompt whose visual tokens were reduced.

"renumbered" counts the tokens that are left 0, 1, 2, ..., on all axes alike where there are three (golden files of the
Qwen-VL families call it reindexed); an answer goes on at their number. "original" gives every token, newline and word
the position it has in the prompt without any reduction, merged tokens that of the token their row is named after, and
an answer goes on where it would there. The order of the tokens and cuts inside the language model, which have their own
rule (`InnerStage.positions`), are the same under both.
"""

MarkerRule = Literal["keep", "drop"]


class PromptRules(NamedTuple):
    """How a method's tokens stand in the prompt, where its reference does not leave that to the model family.

    None leaves a rule to the model family.

    Attributes:
      newline: layout of the newline embeddings on LLaVA, e.g. "frame" for FlashVID on LLaVA-Video.
      newline_rows: with the "grid" layout, the rows that get one.
      positions: the rotary positions of kept tokens, see `PositionRule`: as the user wants them; else, of methods that
        wrap others, those of what they wrap, or the rule that the method learned under (STTS). None, the default of
        every method, leaves them to the folder's declaration and to the reference, see `position_rule`.
      reference_positions: the rule of the reference on families that count positions on one axis, "renumbered" unless
        it is declared (FastVID "original"). The references of the Qwen-VL families all keep original positions.
      vision_markers: "drop" leaves out all vision start and end tokens of Qwen3-VL (FlashVID's released code).
      official_places: True where rows stand under other places than their tokens' own, told by the diagnostic "place"
        (VisionZip's grid layout).
    """

    newline: NewlineKind | None = None
    newline_rows: NewlineRows | None = None
    positions: PositionRule | None = None
    reference_positions: PositionRule = "renumbered"
    vision_markers: MarkerRule = "keep"
    official_places: bool = False

    def newline_layout(self, family: NewlineKind) -> NewlineKind:
        """Where newline embeddings go: as the method declares, else as the model's own `FamilySettings.newline_of`."""
        return self.newline or family


def check_positions(value: Any, what: str = "positions") -> PositionRule | None:
    """A rule of positions, or None for none.

    Raises:
      JvidpruneError: anything else.
    """
    for known in (None, *get_args(PositionRule)):
        if type(value) is type(known) and value == known:
            return known
    raise JvidpruneError(f"{what} must be {' or '.join(get_args(PositionRule))}, got {quoted(repr(value))}.")


def position_rule(
    rules: Sequence[PromptRules],
    *,
    told: Sequence[PositionRule | None] = (),
    asked: PositionRule | None = None,
    declared: PositionRule | None = None,
    reference: PositionRule | None = None,
) -> PositionRule:
    """The one rule of a prompt with the tokens of methods with these rules, one for each video.

    The first of these that says anything decides: what was asked for with the videos; what was asked for when the model
    was loaded; the methods' own settings; the declaration of the checkpoint's folder; the references, where "original"
    goes before "renumbered".

    Args:
      rules: of the videos' methods, see `protocol.prompt_rules`.
      told: rules asked for with the videos, whatever their method.
      asked: rule asked for whatever the video.
      declared: of the folder, see `reducers.serialise.load_positions`.
      reference: of all methods on this family; None asks the methods.

    Raises:
      JvidpruneError: videos of one prompt whose methods were told different rules.
    """
    own: list[PositionRule | None] = [rule.positions for rule in rules]
    levels: list[Sequence[PositionRule | None]] = [told, [asked], own, [declared], [reference]]
    for level in levels:
        if {"original", "renumbered"} <= set(level):
            raise JvidpruneError(
                "the positions of one prompt follow one rule, but its videos were told original and renumbered: name "
                "one for all of them."
            )
        for rule in level:
            if rule is not None:
                return rule
    return "original" if any(rule.reference_positions == "original" for rule in rules) else "renumbered"
