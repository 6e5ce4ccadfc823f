"""Sizes and token ids of a Qwen2.5-VL checkpoint, read from either layout of its config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.models.qwen.config import QwenTable, read_config
from jvidprune.models.qwen.model import QwenVLConfig

TABLE = QwenTable(
    title="Qwen2.5-VL",
    text={
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    vision={
        "depth": 32,
        "hidden_size": 3584,
        "hidden_act": "silu",
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": (7, 15, 23, 31),
        "tokens_per_second": 4,
    },
    qk_norm=False,
    interleaved=False,
    sections=None,
    rms=True,
)


@dataclasses.dataclass(frozen=True)
class Qwen25VLConfig(QwenVLConfig):
    """Everything static about a Qwen2.5-VL model."""

    family: ClassVar[str] = "qwen2_5_vl"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Qwen25VLConfig":
        """Reads a config.json, see `read_config`."""
        return cls(**read_config(raw, TABLE))
