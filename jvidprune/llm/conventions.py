"""Whose way from a file to a model: sampling, pixel limits, resizing, template, positions and markers in one word.

The same checkpoint is fed differently by its authors' code, by transformers and by lmms-eval: other frames, other
sizes, up to several times as many tokens. A convention is one of these ways as a whole, a `FamilySettings` in each
`Family`; docs/conventions.md says what each one does.

"released" is the code that the authors published with the model (LLaVA-NeXT, qwen-vl-utils 0.0.14 with the processor as
their README calls it, allenai's processor) and the default. "transformers" is the processor of transformers 5 at the
folder's settings. "lmms-eval" is the model class of lmms-eval 0.7.3 at its defaults.
"""

import dataclasses
from typing import cast, get_args

from jvidprune.errors import JvidpruneError
from jvidprune.models import family as families
from jvidprune.models.settings import Convention, FamilySettings

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

DEFAULT: Convention = "released"


def check_convention(name: str) -> None:
    """Refuses what is no convention.

    Raises:
      JvidpruneError: an unknown name.
    """
    if name not in CONVENTIONS:
        raise JvidpruneError(f"unknown convention {name!r}; known: {', '.join(CONVENTIONS)}.")


def settings_of(family: str, convention: str | None = None, *, lmms_lab: bool = False) -> FamilySettings:
    """What a family needs around its model in a convention.

    Args:
      family: a name of `models.family.names`.
      convention: one of `CONVENTIONS`; None for `DEFAULT`.
      lmms_lab: the checkpoint is in the format of LLaVA-NeXT (all of llava_video, some of llava_onevision).

    Raises:
      JvidpruneError: an unknown convention, or one that has no way for the family.
    """
    convention = DEFAULT if convention is None else convention
    check_convention(convention)
    found = families.get(family)
    ways = found.lmms_lab if lmms_lab and found.lmms_lab else found.settings
    if convention not in ways:
        if ways is found.lmms_lab:
            raise JvidpruneError(
                "transformers has no class for lmms-lab checkpoints (llava_qwen), so that there is no such convention "
                "for them: take released or lmms-eval, or a checkpoint that was converted for transformers."
            )
        there = ", ".join(name for name in CONVENTIONS if name in ways)
        raise JvidpruneError(f"{convention} has no model class for {family}; there are the conventions {there}.")
    return dataclasses.replace(ways[convention], convention=cast(Convention, convention))
