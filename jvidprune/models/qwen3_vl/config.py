"""Sizes and token ids of a Qwen3-VL checkpoint, read from either rope layout of its config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.models.qwen.config import QwenTable, read_config
from jvidprune.models.qwen.model import QwenVLConfig

TABLE = QwenTable(
    title="Qwen3-VL",
    text={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "attention_bias": False,
    },
    vision={
        "depth": 27,
        "hidden_size": 1152,
        "hidden_act": "gelu_pytorch_tanh",
        "intermediate_size": 4304,
        "num_heads": 16,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 3584,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": (8, 16, 24),
    },
    qk_norm=True,
    interleaved=True,
    sections=(24, 20, 20),
    rms=False,
)


@dataclasses.dataclass(frozen=True)
class Qwen3VLConfig(QwenVLConfig):
    """Everything static about a Qwen3-VL model."""

    family: ClassVar[str] = "qwen3_vl"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Qwen3VLConfig":
        """Reads a config.json, see `read_config`."""
        return cls(**read_config(raw, TABLE))
