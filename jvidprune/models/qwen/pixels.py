"""Frames to the patches of a tower that reads frames of any size, by the steps of a convention."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jvidprune.models.checkpoint.processor import qwen_limits
from jvidprune.models.settings import FamilySettings, PictureShape
from jvidprune.tokens import Layout
from jvidprune.video.preprocess import (
    QWEN2_5_VL,
    QWEN2_5_VL_PICTURE,
    QWEN3_VL,
    QWEN3_VL_PICTURE,
    VIDEO_LLAMA_3,
    VIDEO_LLAMA_3_PICTURE,
    Patches,
    PictureUtils,
    QwenPixels,
    QwenUtils,
    qwen_patches,
    qwen_picture,
    qwen_picture_size,
)

_PICTURES: dict[str, QwenPixels] = {
    "qwen2_5_vl": QWEN2_5_VL_PICTURE,
    "qwen3_vl": QWEN3_VL_PICTURE,
    "qwen3_vl_moe": QWEN3_VL_PICTURE,
    "qwen3_5": QWEN3_VL_PICTURE,
    "video_llama_3": VIDEO_LLAMA_3_PICTURE,
}

_PIXELS: dict[str, QwenPixels] = {
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_moe": QWEN3_VL,
    "qwen3_5": QWEN3_VL,
    "video_llama_3": VIDEO_LLAMA_3,
}


@dataclasses.dataclass(frozen=True)
class PixelSteps:
    """How frames get to the pixels of a tower, before they are normalised.

    Attributes:
      utils: the resizing of qwen-vl-utils, which comes first; None leaves the processor alone.
      processor: the processor resizes (behind qwen-vl-utils once more, if its rule asks for another size).
      limits: smallest and largest area or volume that the processor is loaded with; None takes those of its folder.
    """

    utils: QwenUtils | None
    processor: bool = True
    limits: tuple[int, int] | None = None


TWICE = PixelSteps(QwenUtils())
"""qwen-vl-utils, then the processor's own rule, as the README of Qwen2.5-VL has it."""

ONCE = PixelSteps(QwenUtils(), processor=False)
"""qwen-vl-utils alone: the README of Qwen3-VL calls its processor with `do_resize=False`."""

ALONE = PixelSteps(None)
"""The processor's rule alone."""


def stepped(steps: PixelSteps) -> dict[str, Any]:
    """The fields of `models.settings.FamilySettings` that these steps decide."""
    made = {"pixels": patches, "grid": grid_of, "sized": sized_patches}
    return {name: functools.partial(of, steps=steps) for name, of in made.items()}


def patches(config: Any, given: Mapping[str, Any], *, steps: PixelSteps) -> Callable[[np.ndarray], Patches]:
    """Frames to patches.

    Args:
      config: of the model.
      given: the settings of the folder's video processor; the published ones where they say nothing.
      steps: of a convention.

    Raises:
      JvidpruneError: settings that make no sense or belong to another model.
    """
    return functools.partial(qwen_patches, family=_rules(config, given, steps), utils=steps.utils)


def sized_patches(
    config: Any, given: Mapping[str, Any], *, steps: PixelSteps
) -> Callable[[np.ndarray, tuple[int, int]], Patches]:
    """Frames and a grid (h, w) of tokens to patches of that grid: resized once, from the frames as they are.

    The filter is that of the first resizing of the steps; no limits of pixels hold, and nothing resizes again.

    Args:
      config, given, steps: as for `patches`.
    """
    family = _rules(config, given, steps)

    def made(frames: np.ndarray, grid: tuple[int, int]) -> Patches:
        size = grid[0] * family.factor, grid[1] * family.factor
        return qwen_patches(frames, family, utils=steps.utils, size=size)

    return made


def grid_of(
    config: Any, frames: int, height: int, width: int, given: Mapping[str, Any], *, steps: PixelSteps
) -> tuple[int, int]:
    """(rows, columns) of tokens that `patches` makes of a grid frame of a video of this size in pixels."""
    family = _rules(config, given, steps)
    if steps.utils is not None:
        height, width = steps.utils.size(frames, height, width, family.factor)
    sides = family.size(frames, height, width)
    return sides[0] // family.factor, sides[1] // family.factor


def with_pictures(settings: FamilySettings, steps: PixelSteps) -> FamilySettings:
    """The settings with still pictures read by the same steps: one grid frame, sized by the limits of pictures."""
    pixels, shape = (functools.partial(of, steps=steps) for of in (picture_patches, picture_shape))
    return dataclasses.replace(settings, picture_pixels=pixels, picture_shape=shape)


def picture_patches(config: Any, given: Mapping[str, Any], *, steps: PixelSteps) -> Callable[[np.ndarray], Patches]:
    """A still picture, (1, H, W, 3), to patches.

    Args:
      config: that pictures are encoded with.
      given: the settings of the folder's image processor; the published ones where they say nothing.
      steps: of a convention.

    Raises:
      JvidpruneError: settings that make no sense or belong to another model.
    """
    family = _rules(config, given, steps, _PICTURES)

    def made(frames: np.ndarray) -> Patches:
        return qwen_picture(frames[0], family, utils=_picture_utils(steps))

    return made


def picture_shape(config: Any, height: int, width: int, given: Mapping[str, Any], *, steps: PixelSteps) -> PictureShape:
    """The grid frame that `picture_patches` makes of a picture of this size in pixels."""
    family = _rules(config, given, steps, _PICTURES)
    rows, columns = qwen_picture_size(height, width, family, utils=_picture_utils(steps))
    return PictureShape((Layout(1, (rows // family.factor, columns // family.factor)),))


def _picture_utils(steps: PixelSteps) -> PictureUtils | None:
    return None if steps.utils is None else PictureUtils(steps.utils.min_pixels, steps.utils.max_pixels)


def _rules(
    config: Any, given: Mapping[str, Any], steps: PixelSteps, known: Mapping[str, QwenPixels] = _PIXELS
) -> QwenPixels:
    vision = config.vision
    family = dataclasses.replace(known[config.family], patch=vision.patch_size, merge=vision.merge, pair=vision.pair)
    found = qwen_limits(given, family)
    if steps.limits is not None:
        found = dataclasses.replace(found, min_pixels=steps.limits[0], max_pixels=steps.limits[1])
    return found if steps.processor else dataclasses.replace(found, do_resize=False)
