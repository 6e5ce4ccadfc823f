"""Which stages a model can have in which some layers carry a recurrent state in place of keys and values (Qwen3.5).

A cut there means what it means elsewhere: behind it the dropped tokens are in no layer, neither in attention nor in
a recurrence. What a stage cannot have is told here, from its layer and its rule alone, before anything runs.
"""

from collections.abc import Sequence

from jvidprune.cuts.cut import Cut
from jvidprune.cuts.protocol import AHEAD, CutRule, DecodeRule
from jvidprune.errors import JvidpruneError
from jvidprune.tokens import InnerStage


def check_attended(stages: Sequence[InnerStage | Cut], layers: int, attending: Sequence[int]) -> None:
    """Refuses stages that read attention where there is none, or take tokens out of a state.

    Args:
      stages: of a reducer, or the cuts made of them; those at or behind `layers` do nothing.
      layers: of the decoder.
      attending: layers with attention, ascending; with all of them nothing is refused.

    Raises:
      JvidpruneError: names the rule, the layer and the nearest one that would do.
    """
    carrying = layers - len(attending)
    for stage in stages if carrying else ():
        rule, name = stage.rule, type(stage.rule).__name__
        if stage.boundary >= layers:
            continue
        if isinstance(rule, CutRule) and rule.renewal is not None:
            raise JvidpruneError(
                f"{name} renews its choice while decoding, but {carrying} of the {layers} layers carry a recurrent "
                "state, which no token can be taken out of or put back into."
            )
        if rule.trims:
            raise JvidpruneError(
                f"{name} takes tokens out of the layers before its cut too, but {carrying} of the {layers} layers "
                "carry a recurrent state, which no token can be taken out of."
            )
        if isinstance(rule, DecodeRule):
            check_read(name, stage.layer - 1, 1, attending)
        elif isinstance(rule, CutRule) and rule.probe != "none":
            ahead = rule.probe in AHEAD or stage.where == "middle"
            check_read(name, stage.layer - (not ahead), int(not ahead), attending)


def check_read(name: str, layer: int, behind: int, attending: Sequence[int]) -> None:
    """Refuses to read the attention or the keys of a layer without any.

    Args:
      name: of what reads them.
      layer: that is read.
      behind: how many layers behind it the stage stands.
      attending: layers with attention.

    Raises:
      JvidpruneError: names the nearest layer that has some.
    """
    if layer in attending:
        return
    nearest = min(attending, key=lambda one: (abs(one - layer), one))
    raise JvidpruneError(
        f"{name} reads layer {layer}, which carries a recurrent state and has no attention; the nearest layer with "
        f"attention is {nearest}, which a stage at layer {nearest + behind} reads."
    )
