"""Whose way from a file to a model: sampling, pixel limits, resizing, template, positions and markers in one word.

The same checkpoint is fed differently by its authors' code, by transformers and by lmms-eval: other frames, other
sizes, up to several times as many tokens. A convention is one of these ways as a whole, a `FamilySettings` for each
family; docs/conventions.md says what each one does.

"released" is the code that the authors published with the model (LLaVA-NeXT, qwen-vl-utils 0.0.14 with the processor as
their README calls it, allenai's processor) and the default. "transformers" is the processor of transformers 5 at the
folder's settings. "lmms-eval" is the model class of lmms-eval 0.7.3 at its defaults.
"""

import dataclasses
import functools
from typing import Any, get_args

from jvidprune.errors import JvidpruneError
from jvidprune.llm.prompts import qwen
from jvidprune.llm.prompts.qwen import PixelSteps
from jvidprune.llm.settings import Convention, FamilySettings, squashed
from jvidprune.video.preprocess import QwenUtils

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

DEFAULT: Convention = "released"

_LMMS_PIXELS = (256 * 28 * 28, 1_605_632)
"""Smallest and largest area of a frame that lmms-eval asks of qwen-vl-utils and of the processor."""


_PILLOW = functools.partial(squashed, filter="pillow")

RELEASED: dict[str, FamilySettings] = {
    "llava_onevision": FamilySettings("qwen_1_5", "one_token", "all", 32, "uniform", squashed),
    "llava_video": FamilySettings("qwen_1_5", "grid", "all", 64, "llava_video_force", _PILLOW),
    # These have no newline embeddings: nothing stands behind the video. All methods keep original positions on them.
    "qwen2_5_vl": FamilySettings(
        "qwen2_5_vl",
        "no_token",
        "all",
        32,
        "qwen_utils",
        functools.partial(qwen.patches, steps=qwen.TWICE),
        "qwen",
        pictures=True,
        reference_positions="original",
        steps=qwen.TWICE,
    ),
    "qwen3_vl": FamilySettings(
        "qwen3_vl",
        "no_token",
        "all",
        32,
        "qwen_utils",
        functools.partial(qwen.patches, steps=qwen.ONCE),
        "qwen",
        pictures=True,
        reference_positions="original",
        steps=qwen.ONCE,
    ),
    "molmo2": FamilySettings(
        "molmo2",
        "no_token",
        "all",
        128,
        "molmo2",
        functools.partial(squashed, filter="bilinear"),
        "molmo2",
        own_chat=True,
        begins=True,
    ),
}
"""By family, as in the tables that follow."""


def _qwen(settings: FamilySettings, steps: PixelSteps, **changed: Any) -> FamilySettings:
    return dataclasses.replace(settings, pixels=functools.partial(qwen.patches, steps=steps), steps=steps, **changed)


def _transformers() -> dict[str, FamilySettings]:
    """The folder's chat template, or where it carries none the one that was published with the family."""
    ways = {
        "llava_onevision": dataclasses.replace(RELEASED["llava_onevision"], template="llava_hf", rule="hf_default"),
        "qwen2_5_vl": _qwen(RELEASED["qwen2_5_vl"], qwen.ALONE, rule="hf_qwen2", mrope_rule="transformers-5"),
        "qwen3_vl": _qwen(
            RELEASED["qwen3_vl"], qwen.ALONE, rule="hf_qwen3", mrope_rule="transformers-5", markers="around"
        ),
        "molmo2": dataclasses.replace(RELEASED["molmo2"], rule="hf_molmo2"),
    }
    return {name: dataclasses.replace(way, own_chat=True) for name, way in ways.items()}


def _lmms_eval() -> dict[str, FamilySettings]:
    low, high = _LMMS_PIXELS
    utils = QwenUtils(min_pixels=low, max_pixels=high)
    again, once = PixelSteps(utils, limits=_LMMS_PIXELS), PixelSteps(utils, processor=False)
    return {
        # Its class for llava-hf checkpoints writes prompts with the processor's chat template.
        "llava_onevision": dataclasses.replace(RELEASED["llava_onevision"], template="llava_hf", own_chat=True),
        # Without `force_sample` a frame a second is read, and evenly spread ones where that is too many.
        "llava_video": dataclasses.replace(RELEASED["llava_video"], rule="llava_video_upto"),
        "qwen2_5_vl": _qwen(RELEASED["qwen2_5_vl"], again, mrope_rule="lmms-eval"),
        # A system turn, which Qwen3-VL's own prompt leaves out: the prompt of Qwen2.5-VL.
        "qwen3_vl": _qwen(RELEASED["qwen3_vl"], once, mrope_rule="lmms-eval", template="qwen2_5_vl"),
    }


_WAYS: dict[str, dict[str, FamilySettings]] = {
    "released": RELEASED,
    "transformers": _transformers(),
    "lmms-eval": _lmms_eval(),
}


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
      family: key of `RELEASED`.
      convention: one of `CONVENTIONS`; None for `DEFAULT`.
      lmms_lab: the checkpoint is in the format of LLaVA-NeXT (all of llava_video, some of llava_onevision).

    Raises:
      JvidpruneError: an unknown convention, or one that has no way for the family.
    """
    convention = DEFAULT if convention is None else convention
    check_convention(convention)
    if (lmms_lab or family == "llava_video") and convention == "transformers":
        raise JvidpruneError(
            "transformers has no class for lmms-lab checkpoints (llava_qwen), so that there is no such convention for "
            "them: take released or lmms-eval, or a checkpoint that was converted for transformers."
        )
    if family not in _WAYS[convention]:
        there = ", ".join(name for name, ways in _WAYS.items() if family in ways)
        raise JvidpruneError(f"{convention} has no model class for {family}; there are the conventions {there}.")
    found = _WAYS[convention][family]
    if lmms_lab and family == "llava_onevision":
        # LLaVA-NeXT resizes with Pillow; lmms-eval runs it with its own template.
        found = dataclasses.replace(RELEASED[family], pixels=_PILLOW)
    return dataclasses.replace(found, convention=convention)
