"""What both Qwen-VL families share."""

import dataclasses
from typing import Any

from jvidprune.models.qwen.pixels import PixelSteps, stepped, with_pictures
from jvidprune.models.settings import FamilySettings
from jvidprune.parallel import DECODER_AXES, TOWER_AXES, ShardingTable
from jvidprune.video.preprocess import QwenUtils

SHARDING: ShardingTable = (
    *DECODER_AXES,
    *TOWER_AXES,
    (r"vision\.merger\.mlp\.fc1\.kernel", ("vit_embed", "vit_mlp")),
    (r"vision\.merger\.mlp\.fc1\.bias", ("vit_mlp",)),
    (r"vision\.merger\.mlp\.fc2\.kernel", ("vit_mlp", "embed")),
    (r"vision\.deepstack\.mlp\.fc1\.kernel", (None, "vit_embed", "vit_mlp")),
    (r"vision\.deepstack\.mlp\.fc1\.bias", (None, "vit_mlp")),
    (r"vision\.deepstack\.mlp\.fc2\.kernel", (None, "vit_mlp", "embed")),
)

KIND, TELLTALES = "a Qwen-VL model", ("visual.", "model.visual.")

LMMS_PIXELS = (256 * 28 * 28, 1_605_632)
"""Smallest and largest area of a frame that lmms-eval asks of qwen-vl-utils and of the processor."""

LMMS_UTILS = QwenUtils(min_pixels=LMMS_PIXELS[0], max_pixels=LMMS_PIXELS[1])


def released(template: str, steps: PixelSteps) -> FamilySettings:
    """Settings of the authors' code: no newline embeddings, nothing behind the video, original positions always."""
    found = FamilySettings(
        template,
        "no_token",
        "all",
        32,
        "qwen_utils",
        **stepped(steps),
        prompt="mrope",
        writes_times=True,
        mrope_rule="released",
        pictures=True,
        reference_positions="original",
    )
    return with_pictures(found, steps)


def changed(settings: FamilySettings, steps: PixelSteps, **other: Any) -> FamilySettings:
    """The settings with other steps of resizing, and with other values."""
    return with_pictures(dataclasses.replace(settings, **stepped(steps), **other), steps)
