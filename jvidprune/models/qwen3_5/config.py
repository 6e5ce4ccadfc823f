"""Sizes and token ids of a Qwen3.5 checkpoint, read from its config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.errors import JvidpruneError
from jvidprune.models.decoder_config import DeltaConfig
from jvidprune.models.qwen.config import read_config, read_counts
from jvidprune.models.qwen3_vl.config import TABLE, Qwen3VLConfig

_TABLE = TABLE._replace(
    title="Qwen3.5",
    text=dict(TABLE.text)
    | {
        "vocab_size": 248320,
        "intermediate_size": 12288,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "rope_theta": 1e4,
    },
    vision={key: value for key, value in TABLE.vision.items() if key != "deepstack_visual_indexes"},
    sections=(11, 11, 10),
    partial=0.25,
)

_IDS = {
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}

_SIZES = {
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
}

_KINDS = {"full_attention": True, "linear_attention": False}


@dataclasses.dataclass(frozen=True)
class Qwen35Config(Qwen3VLConfig):
    """Everything static about a Qwen3.5 model."""

    family: ClassVar[str] = "qwen3_5"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Qwen35Config":
        """Reads a config.json, see `read_config`; layers are those of `layer_types`, or every fourth has attention.

        Raises:
          JvidpruneError: what `read_config` raises, layers of an unknown kind or of one kind alone, sizes of the
            recurrent layers that make no sense, or biases of the attention, which no published model has.
        """
        text = {key: value for key, value in raw.get("text_config", raw).items() if value is not None}
        if text.get("attention_bias"):
            raise JvidpruneError("attention_bias is true, but attention of Qwen3.5 is supported without biases alone.")
        counts = read_counts(text, _SIZES, {"linear_conv_kernel_dim": 2, "full_attention_interval": 2})
        key_heads, heads, key_dim, value_dim, taps, interval = counts
        if heads % key_heads:
            raise JvidpruneError(f"config.json gives {heads} linear_num_value_heads, no multiple of {key_heads}.")
        fields = read_config({**_IDS, **raw}, _TABLE)
        attending = _attending(text.get("layer_types"), fields["text"].layers, interval)
        delta = DeltaConfig(attending, key_heads, heads, key_dim, value_dim, taps)
        fields["text"] = dataclasses.replace(fields["text"], gated=True, centred=True, delta=delta)
        return cls(**fields)

    @property
    def units(self) -> dict[str, int]:
        """Pieces of the logical axes that sharding must not cut."""
        delta = self.text.delta
        assert delta is not None
        return super().units | {"delta_heads": delta.value_heads, "delta_key_heads": delta.key_heads}


def _attending(kinds: Any, layers: int, interval: int) -> tuple[int, ...]:
    """Layers with attention."""
    if kinds is None:
        kinds = ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(str(kind) not in _KINDS for kind in kinds):
        raise JvidpruneError(f"layer_types must name {layers} layers as one of {', '.join(_KINDS)}.")
    attending = tuple(layer for layer, kind in enumerate(kinds) if _KINDS[kind])
    if not 0 < len(attending) < layers:
        raise JvidpruneError("layer_types must name layers with full attention and layers with linear attention.")
    return attending
