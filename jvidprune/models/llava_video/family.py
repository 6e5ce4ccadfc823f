"""LLaVA-Video as a family."""

import dataclasses

from jvidprune.models.family import LMMS_LAB, Family
from jvidprune.models.llava_onevision.family import (
    LLAVA_SHARDING,
    LLAVA_TELLTALES,
    LLAVA_TEMPLATES,
    PICTURES,
    PILLOW_PIXELS,
    has_video_layout,
)
from jvidprune.models.llava_onevision.params import HEAD_TENSORS, name_table
from jvidprune.models.llava_video.config import LlavaVideoConfig
from jvidprune.models.llava_video.modules import LlavaVideo
from jvidprune.models.settings import FamilySettings

_RELEASED = FamilySettings("qwen_1_5", "grid", "all", 64, "llava_video_force", **PICTURES | PILLOW_PIXELS)

_SETTINGS = {
    "released": _RELEASED,
    # Without `force_sample` a frame a second is read, and evenly spread ones where that is too many.
    "lmms-eval": dataclasses.replace(_RELEASED, rule="llava_video_upto"),
}

FAMILY = Family(
    name="llava_video",
    names=LMMS_LAB,
    matches=has_video_layout,
    config=LlavaVideoConfig,
    model=LlavaVideo,
    name_table=name_table,
    sharding=LLAVA_SHARDING,
    settings=_SETTINGS,
    lmms_lab=_SETTINGS,
    templates=LLAVA_TEMPLATES,
    kind="a LLaVA model",
    telltales=LLAVA_TELLTALES,
    head_tensors=HEAD_TENSORS,
    paper="2410.02713",
    checkpoints=("lmms-lab/LLaVA-Video-7B-Qwen2",),
    representative="llava-video-7b",
)
