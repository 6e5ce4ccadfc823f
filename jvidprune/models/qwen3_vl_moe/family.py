"""Qwen3-VL with experts as a family: Qwen3-VL's, but for its layers."""

import dataclasses

from jvidprune.models.qwen3_vl.family import FAMILY as DENSE
from jvidprune.models.qwen3_vl_moe.config import Qwen3VLMoeConfig
from jvidprune.parallel import EXPERT_AXES

FAMILY = dataclasses.replace(
    DENSE,
    name="qwen3_vl_moe",
    names=frozenset({"qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"}),
    config=Qwen3VLMoeConfig,
    sharding=(*EXPERT_AXES, *DENSE.sharding),
    checkpoints=("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
    representative="qwen3-vl-30b-a3b",
)
