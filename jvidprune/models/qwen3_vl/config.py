"""Sizes and token ids of a Qwen3-VL checkpoint, read from either rope layout of its config.json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.errors import JvidpruneError
from jvidprune.models.decoder import DecoderConfig
from jvidprune.models.layers import check_activation
from jvidprune.models.qwen_vit import QwenVisionConfig
from jvidprune.models.qwen_vl import QwenVLConfig, token_ids

# The class defaults of transformers, for keys a config.json leaves out.
_TEXT: dict[str, Any] = {
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
}
_VISION: dict[str, Any] = {
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
}
_SECTIONS = (24, 20, 20)


@dataclasses.dataclass(frozen=True)
class Qwen3VLConfig(QwenVLConfig):
    """Everything static about a Qwen3-VL model."""

    family: ClassVar[str] = "qwen3_vl"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Qwen3VLConfig":
        """Reads a config.json with either rope layout; rotary sections are always interleaved, whatever it says.

        Raises:
          JvidpruneError: a position table that is no square, or an option this port does not have.
        """
        given = {key: value for key, value in raw.get("text_config", raw).items() if value is not None}
        text = DecoderConfig.from_hf(_TEXT | given, qk_norm=True)
        rope = dataclasses.replace(text.rope, interleaved=True, sections=text.rope.sections or _SECTIONS)
        rope.axis_of(text.head_dim)
        sizes = _VISION | dict(raw.get("vision_config") or {})
        side = math.isqrt(sizes["num_position_embeddings"])
        if side**2 != sizes["num_position_embeddings"]:
            raise JvidpruneError(f"num_position_embeddings {sizes['num_position_embeddings']} is no square number.")
        taps = tuple(sizes["deepstack_visual_indexes"])
        if list(taps) != sorted(set(taps)) or not all(0 <= tap < sizes["depth"] for tap in taps):
            raise JvidpruneError(
                f"deepstack_visual_indexes {list(taps)} must be increasing blocks below {sizes['depth']}."
            )
        if len(taps) > text.layers:
            raise JvidpruneError(f"{len(taps)} DeepStack levels need as many layers, the model has {text.layers}.")
        vision = QwenVisionConfig(
            width=sizes["hidden_size"],
            mlp=sizes["intermediate_size"],
            layers=sizes["depth"],
            heads=sizes["num_heads"],
            out=sizes["out_hidden_size"],
            patch_size=sizes["patch_size"],
            rms=False,
            activation=check_activation(sizes["hidden_act"]),
            merge=sizes["spatial_merge_size"],
            pair=sizes["temporal_patch_size"],
            channels=sizes["in_channels"],
            table_side=side,
            taps=taps,
        )
        return cls(vision=vision, text=dataclasses.replace(text, rope=rope), **token_ids(raw))
