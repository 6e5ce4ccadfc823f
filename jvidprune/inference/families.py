"""What every family needs around its model: prompts, newline embeddings, frames, and what its tower reads."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.inference import qwen
from jvidprune.inference.processor import channels, sampling_keys, square, video_processor
from jvidprune.models.positions import MropeRule
from jvidprune.ops.newline import NewlineKind, NewlineRows
from jvidprune.reducers.prompting import PositionRule
from jvidprune.reducers.saved import load_positions
from jvidprune.video.preprocess import Patches, llava_pixels
from jvidprune.video.resize import Filter
from jvidprune.video.sampling import RATE_RULES, Rule
from jvidprune.video.wish import FrameWish


@dataclasses.dataclass(frozen=True)
class FamilySettings:
    """What a family needs around its model.

    Attributes:
      template: prompt template, a name of `prompt.TEMPLATES` or "chat" for the checkpoint's own.
      newline: where newline embeddings go among the kept tokens.
      newline_rows: with a grid layout, rows that get one.
      frames: frames its published evaluations use.
      rule: frame sampling rule of `jvidprune.video.sampling`, which also says by which rule a rate is sampled.
      pixels: the model's config and the settings of its folder's video processor to a function from (T, H, W, 3) uint8
        frames to what the tower reads.
      prompt: how videos stand in a prompt: with newline embeddings (LLaVA), with three-axis positions, time stamps and
        vision markers (the Qwen-VL families), or frame by frame behind their times (Molmo2).
      rule_of_positions: with `woven`, how text goes on behind a video; "max" is that of the released models.
      own_chat: the chat template of a folder goes before `template` where it carries one.
      begins: a prompt starts with the tokenizer's token for the beginning of a text, or of its end if it has none.
      fps: rate that a folder's video processor samples at, before `frames`; None for a number of frames.
      pictures: a still picture is read as a video of one frame, which it is to the Qwen-VL families; the others cut
        pictures into tiles, which is not supported.
      fewest, most, fastest: limits that a folder's video processor sets, see `FrameWish`.
      positions: rule of kept tokens' positions that was asked for, whatever the method; see
        `reducers.prompting.position_rule`, as for the next two.
      declared_positions: the rule that the checkpoint's folder declares.
      reference_positions: the rule of all methods' references on this family, None where they differ.
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
    pictures: bool = False
    fps: float | None = None
    fewest: int | None = None
    most: int | None = None
    fastest: float | None = None
    positions: PositionRule | None = None
    declared_positions: PositionRule | None = None
    reference_positions: PositionRule | None = None

    def wish(self, frames: int | None = None, fps: float | None = None) -> FrameWish:
        """What is read of a video: so many frames, a rate with `frames` as the most, or what the family reads.

        The limits of the folder hold for rates and for the family's own number of frames; a number that is asked for
        goes before them. A rate that the family samples up to a number of frames (LLaVA-Video, Molmo2) gives `frames`
        of the settings at most, where none are asked for.

        Raises:
          JvidpruneError: no frame, or no rate above 0.
        """
        if frames is None and fps is None:
            fps = self.fps
            if fps is None:
                frames = max(self.frames, self.fewest or 1)
                frames = min(frames, self.most or frames)
        if fps is None:
            return FrameWish(frames, rule=self.rule, fastest=self.fastest, pictures=self.pictures)
        if frames is None and RATE_RULES.get(self.rule, self.rule) in ("llava_video_upto", "molmo2"):
            frames = self.frames
        limits: dict[str, Any] = {"fewest": self.fewest, "most": self.most, "fastest": self.fastest}
        return FrameWish(frames, fps, self.rule, **limits, pictures=self.pictures)

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
    "llava_onevision": FamilySettings("qwen_1_5", "one_token", "all", 32, "uniform", _squashed),
    "llava_video": FamilySettings("qwen_1_5", "grid", "all", 64, "llava_video_force", _squashed),
    # These have no newline embeddings: nothing stands behind the video. All methods keep original positions on them.
    "qwen2_5_vl": FamilySettings(
        "qwen2_5_vl",
        "no_token",
        "all",
        32,
        "qwen_utils",
        qwen.patches,
        "qwen",
        pictures=True,
        reference_positions="original",
    ),
    "qwen3_vl": FamilySettings(
        "qwen3_vl",
        "no_token",
        "all",
        32,
        "hf_qwen3",
        qwen.patches,
        "qwen",
        pictures=True,
        reference_positions="original",
    ),
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
    """The settings of a family, with what a checkpoint folder says about frames and the positions of kept tokens.

    Raises:
      JvidpruneError: the settings of the folder's video processor are no JSON object, its frames make no sense, or
        the folder declares no rule of positions where it should.
    """
    settings = dataclasses.replace(FAMILIES[family], declared_positions=load_positions(folder))
    given = sampling_keys(video_processor(folder))
    if given.pop("samples") and not {"frames", "fps"} & given.keys():
        if family not in _OWN_SAMPLING:
            raise JvidpruneError(
                "the folder's video processor samples frames (do_sample_frames), but says neither num_frames nor fps."
            )
        given |= _OWN_SAMPLING[family]
    return dataclasses.replace(settings, **given)


_OWN_SAMPLING: dict[str, dict[str, float]] = {"qwen3_vl": {"fps": 2.0}, "molmo2": {}}
"""What the processors of families sample that do so where a folder only says that they shall."""
