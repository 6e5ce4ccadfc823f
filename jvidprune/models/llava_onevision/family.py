"""LLaVA-OneVision as a family, and what LLaVA-Video shares with it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from jvidprune.models.family import LMMS_LAB, Family, named
from jvidprune.models.llava_onevision import pictures
from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig
from jvidprune.models.llava_onevision.modules import LlavaOnevision
from jvidprune.models.llava_onevision.params import HEAD_TENSORS, name_table
from jvidprune.models.settings import FamilySettings, squashed
from jvidprune.models.templates import PromptTemplate
from jvidprune.parallel import DECODER_AXES, TOWER_AXES, ShardingTable

LLAVA_SHARDING: ShardingTable = (
    *DECODER_AXES,
    *TOWER_AXES,
    (r"projector\.fc1\.kernel", ("vit_embed", "mlp")),
    (r"projector\.fc1\.bias", ("mlp",)),
    (r"projector\.fc2\.kernel", ("mlp", "embed")),
)

LLAVA_TELLTALES = ("multi_modal_projector.", "mm_projector.", "image_newline")

LLAVA_TEMPLATES = {
    # Conversation template "qwen_1_5", used for all published benchmark numbers of the LLaVA models.
    "qwen_1_5": PromptTemplate(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "\n{question}<|im_end|>\n<|im_start|>assistant\n",
    ),
    # Chat template shipped with the llava-hf checkpoints: a space after the role, no system turn.
    "llava_hf": PromptTemplate("<|im_start|>user ", "\n{question}<|im_end|><|im_start|>assistant\n", "\n"),
}

PILLOW = functools.partial(squashed, filter="pillow")
"""LLaVA-NeXT resizes with Pillow."""


def _unpooled(config: LlavaOnevisionConfig) -> LlavaOnevisionConfig:
    """Without the spatial pooling, which is for videos."""
    return dataclasses.replace(config, pool="none")


PICTURES: dict[str, Any] = {
    "pictures": True,
    "picture_pixels": pictures.pixels,
    "picture_shape": pictures.shape,
    "picture_maps": pictures.maps,
    "picture_config": _unpooled,
}
"""Fields of `FamilySettings` for still pictures."""

PILLOW_PIXELS: dict[str, Any] = {
    "pixels": PILLOW,
    "picture_pixels": functools.partial(pictures.pixels, filter="pillow"),
}

_RELEASED = FamilySettings("qwen_1_5", "one_token", "all", 32, "uniform", squashed, **PICTURES)


def has_video_layout(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json of lmms-lab is of LLaVA-Video: only that writes newlines or times."""
    layout = raw.get("mm_newline_position", "one_token")
    return layout != "one_token" or bool(raw.get("add_time_instruction", False))


def _matches(raw: Mapping[str, Any]) -> bool:
    # Both LLaVA families of lmms-lab carry one architecture name.
    return bool(named(raw) & _OWN) or not has_video_layout(raw)


_OWN = frozenset({"llava_onevision", "LlavaOnevisionForConditionalGeneration"})

FAMILY = Family(
    name="llava_onevision",
    names=_OWN | LMMS_LAB,
    matches=_matches,
    config=LlavaOnevisionConfig,
    model=LlavaOnevision,
    name_table=name_table,
    sharding=LLAVA_SHARDING,
    settings={
        "released": _RELEASED,
        # The folder's chat template, or where it carries none the one that was published with the family.
        "transformers": dataclasses.replace(_RELEASED, template="llava_hf", rule="hf_default", own_chat=True),
        # Its class for llava-hf checkpoints writes prompts with the processor's chat template.
        "lmms-eval": dataclasses.replace(_RELEASED, template="llava_hf", own_chat=True),
    },
    # LLaVA-NeXT resizes with Pillow; lmms-eval runs it with its own template.
    lmms_lab={name: dataclasses.replace(_RELEASED, **PILLOW_PIXELS) for name in ("released", "lmms-eval")},
    templates=LLAVA_TEMPLATES,
    kind="a LLaVA model",
    telltales=LLAVA_TELLTALES,
    head_tensors=HEAD_TENSORS,
    paper="2408.03326",
    checkpoints=("llava-hf/llava-onevision-qwen2-7b-ov-hf", "lmms-lab/llava-onevision-qwen2-7b-ov"),
    representative="llava-onevision-7b",
)
