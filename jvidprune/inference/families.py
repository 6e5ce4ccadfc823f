"""What every family needs around its model: prompts, newline embeddings, frames, and what its tower reads."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jvidprune.inference import qwen
from jvidprune.inference.processor import channels, square, video_processor
from jvidprune.models.positions import MropeRule
from jvidprune.ops.newline import NewlineKind, NewlineRows
from jvidprune.video.preprocess import Patches, llava_pixels
from jvidprune.video.resize import Filter
from jvidprune.video.sampling import Rule


@dataclasses.dataclass(frozen=True)
class FamilySettings:
    """What a family needs around its model.

    Attributes:
      template: prompt template, a name of `prompt.TEMPLATES` or "chat" for the checkpoint's own.
      newline: where newline embeddings go among the kept tokens.
      newline_rows: with a grid layout, rows that get one.
      frames: frames its published evaluations use.
      rule: frame sampling rule of `jvidprune.video.sampling`.
      pixels: the model's config and the settings of its folder's video processor to a function from (T, H, W, 3) uint8
        frames to what the tower reads.
      prompt: how videos stand in a prompt: with newline embeddings (LLaVA), with three-axis positions, time stamps and
        vision markers (the Qwen-VL families), or frame by frame behind their times (Molmo2).
      rule_of_positions: with `woven`, how text goes on behind a video; "max" is that of the released models.
      own_chat: the chat template of a folder goes before `template` where it carries one.
      begins: a prompt starts with the tokenizer's token for the beginning of a text, or of its end if it has none.
    """

    template: str
    newline: NewlineKind
    newline_rows: NewlineRows
    frames: int
    rule: Rule
    pixels: Callable[[Any, Mapping[str, Any]], Callable[[np.ndarray], np.ndarray | Patches]]
    prompt: Literal["newlines", "qwen", "molmo2"] = "newlines"
    rule_of_positions: MropeRule = "max"
    own_chat: bool = False
    begins: bool = False

    @property
    def woven(self) -> bool:
        """Whether positions have three axes (the Qwen-VL families)."""
        return self.prompt == "qwen"

    @property
    def placeholder(self) -> str:
        """What a chat template writes for a video."""
        return _PLACEHOLDERS[self.prompt]


_PLACEHOLDERS = {
    "newlines": "<video>",
    "qwen": "<|vision_start|><|video_pad|><|vision_end|>",
    "molmo2": "<|video|>",
}


def _squashed(
    config: Any, given: Mapping[str, Any], *, filter: Filter = "torchvision"
) -> Callable[[np.ndarray], np.ndarray]:
    mean, std = channels(given)
    size = square(given, config.vision.image_size)
    return functools.partial(llava_pixels, size=size, mean=mean, std=std, filter=filter)


FAMILIES: dict[str, FamilySettings] = {
    "llava_onevision": FamilySettings("qwen_1_5", "one_token", "all", 32, "llava_video_force", _squashed),
    "llava_video": FamilySettings("qwen_1_5", "grid", "all", 64, "llava_video_force", _squashed),
    # These have no newline embeddings: nothing stands behind the video.
    "qwen2_5_vl": FamilySettings("qwen2_5_vl", "no_token", "all", 32, "qwen_utils", qwen.patches, "qwen"),
    "qwen3_vl": FamilySettings("qwen3_vl", "no_token", "all", 32, "hf_qwen3", qwen.patches, "qwen"),
    "molmo2": FamilySettings(
        "molmo2",
        "no_token",
        "all",
        128,
        "molmo2",
        functools.partial(_squashed, filter="bilinear"),
        "molmo2",
        own_chat=True,
        begins=True,
    ),
}


def family_settings(family: str, folder: Path) -> FamilySettings:
    """The settings of a family, with the number of frames that a checkpoint folder was made for.

    Raises:
      JvidpruneError: the settings of the folder's video processor are no JSON object.
    """
    settings = FAMILIES[family]
    # Published processors leave num_frames open; a folder that names it was made for so many.
    frames = video_processor(folder).get("num_frames")
    return dataclasses.replace(settings, frames=frames) if type(frames) is int and frames > 0 else settings
