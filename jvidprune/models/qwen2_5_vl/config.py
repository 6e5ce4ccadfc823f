"""Sizes and token ids of a Qwen2.5-VL checkpoint, read from either layout of its config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.errors import JvidpruneError
from jvidprune.models.decoder import DecoderConfig
from jvidprune.models.layers import check_activation
from jvidprune.models.qwen_vit import QwenVisionConfig
from jvidprune.models.qwen_vl import QwenVLConfig, token_ids

# The class defaults of transformers, for keys a config.json leaves out; those of the published models differ.
_TEXT: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 3584,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "tokens_per_second": 4,
}


@dataclasses.dataclass(frozen=True)
class Qwen25VLConfig(QwenVLConfig):
    """Everything static about a Qwen2.5-VL model."""

    family: ClassVar[str] = "qwen2_5_vl"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Qwen25VLConfig":
        """Reads a config.json: flat (published) or nested (re-saved), both rope layouts.

        Raises:
          JvidpruneError: no rotary sections, or an option this port does not have.
        """
        text = DecoderConfig.from_hf(_TEXT | {k: v for k, v in raw.get("text_config", raw).items() if v is not None})
        if text.rope.sections is None:
            raise JvidpruneError("config.json of a Qwen2.5-VL model must give mrope_section in its rope settings.")
        rope = dataclasses.replace(text.rope, interleaved=False)
        rope.axis_of(text.head_dim)
        sizes = _VISION | dict(raw.get("vision_config") or {})
        vision = QwenVisionConfig(
            width=sizes["hidden_size"],
            mlp=sizes["intermediate_size"],
            layers=sizes["depth"],
            heads=sizes["num_heads"],
            out=sizes["out_hidden_size"],
            patch_size=sizes["patch_size"],
            rms=True,
            activation=check_activation(sizes["hidden_act"]),
            merge=sizes["spatial_merge_size"],
            pair=sizes["temporal_patch_size"],
            channels=sizes.get("in_chans", sizes.get("in_channels", 3)),
            window=sizes["window_size"] // sizes["spatial_merge_size"] // sizes["patch_size"],
            full_blocks=tuple(sizes["fullatt_block_indexes"]),
        )
        return cls(
            vision=vision,
            text=dataclasses.replace(text, rope=rope),
            tokens_per_second=sizes["tokens_per_second"],
            **token_ids(raw),
        )
