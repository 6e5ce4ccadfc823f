"""Published checkpoints by a short name: the sizes of their config.json as data, for everything that needs no weights.

Only what the configs of `jvidprune.models` read is listed; where a key is missing the default is the published value.
"""

from typing import Any

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import described

_QWEN2_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_theta": 1e6,
}
_QWEN2_05B: dict[str, Any] = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 152000,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
_VIT2_5: dict[str, Any] = {"hidden_size": 1280, "intermediate_size": 3420, "tokens_per_second": 2}
_VIT3_SMALL: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}


_VIT3_5_SMALL: dict[str, Any] = {"depth": 12, "hidden_size": 768, "num_heads": 12, "intermediate_size": 3072}


def _qwen2_5(text: dict[str, Any], width: int) -> dict[str, Any]:
    rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    common = {"rms_norm_eps": 1e-6, "max_position_embeddings": 128000, "rope_scaling": rope}
    return {"model_type": "qwen2_5_vl", **text, **common, "vision_config": _VIT2_5 | {"out_hidden_size": width}}


def _qwen3(width: int, mlp: int, layers: int, heads: int, vision: dict[str, Any], tied: bool) -> dict[str, Any]:
    text = {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "tie_word_embeddings": tied,
    }
    return {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision | {"out_hidden_size": width}}


def _qwen3_moe(width: int, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """128 experts of which a token passes 8."""
    raw = _qwen3(width, 8 * hidden, layers, heads, {}, False)
    counts = {"num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": hidden}
    return raw | {"model_type": "qwen3_vl_moe", "text_config": raw["text_config"] | counts | {"rope_theta": 5e6}}


def _qwen3_5(
    width: int, mlp: int, layers: int, heads: int, kv_heads: int, value_heads: int, tied: bool, vision: dict[str, Any]
) -> dict[str, Any]:
    """Every fourth layer has attention."""
    rope = {"rope_theta": 1e7, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25}
    text = {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "linear_num_value_heads": value_heads,
        "max_position_embeddings": 262144,
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
    }
    return {"model_type": "qwen3_5", "text_config": text, "vision_config": vision | {"out_hidden_size": width}}


def _molmo2(width: int, mlp: int, layers: int, **text: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": 32}
    return {
        "model_type": "molmo2",
        "text_config": {**sizes, "head_dim": 128, "max_position_embeddings": 36864, **text},
        "adapter_config": {"intermediate_size": mlp, "text_hidden_size": width},
    }


_OLMO3: dict[str, Any] = {
    "num_key_value_heads": 32,
    "vocab_size": 100278,
    "qk_norm_type": "olmo",
    "norm_after": True,
    "rope_theta": 5e5,
    "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192},
    "rope_scaling_layers": list(range(3, 32, 4)),
}


def _video_llama_3(text: dict[str, Any]) -> dict[str, Any]:
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    return {"model_type": "video_llama_3", "text_config": text, "vision_config": tower | {"patch_size": 14}}


_QWEN2_5_1_5B: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}


def _internvl(kind: str, tied: bool, *, large: bool = False, **text: Any) -> dict[str, Any]:
    """InternViT of 300M parameters, or of 6B."""
    tower: dict[str, Any] = {"attention_bias": True}
    if large:
        tower = {
            "hidden_size": 3200,
            "intermediate_size": 12800,
            "num_hidden_layers": 45,
            "num_attention_heads": 25,
            "norm_type": "rms_norm",
            "use_qk_norm": True,
        }
    return {
        "model_type": "internvl",
        "text_config": {"model_type": kind, **text},
        "vision_config": tower,
        "tie_word_embeddings": tied,
    }


def _internvl3(width: int, mlp: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    """InternVL3, on Qwen2.5."""
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}
    counts = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 151674}
    return _internvl("qwen2", False, **sizes, **counts, rope_theta=1e6, max_position_embeddings=32768, **more)


def _internvl3_5(width: int, mlp: int, layers: int, heads: int, tied: bool, **more: Any) -> dict[str, Any]:
    """InternVL3.5, on Qwen3."""
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "head_dim": 128}
    counts = {"num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": 151936}
    return _internvl("qwen3", tied, **sizes, **counts, rope_theta=1e6, max_position_embeddings=40960, **more)


PUBLISHED: dict[str, dict[str, Any]] = {
    "llava-onevision-0.5b": {"model_type": "llava_onevision", "text_config": _QWEN2_05B},
    "llava-onevision-7b": {"model_type": "llava_onevision", "text_config": _QWEN2_7B | {"vocab_size": 152128}},
    "llava-video-7b": {
        "model_type": "llava_qwen",
        "mm_newline_position": "grid",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        **_QWEN2_7B,
    },
    "qwen2.5-vl-3b": _qwen2_5(
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        2048,
    ),
    "qwen2.5-vl-7b": _qwen2_5(_QWEN2_7B, 3584),
    "qwen3-vl-2b": _qwen3(2048, 6144, 28, 16, _VIT3_SMALL, True),
    "qwen3-vl-4b": _qwen3(2560, 9728, 36, 32, _VIT3_SMALL, True),
    "qwen3-vl-8b": _qwen3(4096, 12288, 36, 32, {}, False),
    "qwen3-vl-30b-a3b": _qwen3_moe(2048, 768, 48, 32),
    "qwen3-vl-235b-a22b": _qwen3_moe(4096, 1536, 94, 64),
    "qwen3.5-0.8b": _qwen3_5(1024, 3584, 24, 8, 2, 16, True, _VIT3_5_SMALL),
    "qwen3.5-2b": _qwen3_5(2048, 6144, 24, 8, 2, 16, True, _VIT3_SMALL),
    "qwen3.5-4b": _qwen3_5(2560, 9216, 32, 16, 4, 32, True, _VIT3_SMALL),
    "qwen3.5-9b": _qwen3_5(4096, 12288, 32, 16, 4, 32, False, {}),
    "qwen3.5-27b": _qwen3_5(5120, 17408, 64, 24, 4, 48, False, {}),
    "molmo2-4b": _molmo2(2560, 9728, 36, num_key_value_heads=8, rope_theta=5e6),
    "molmo2-8b": _molmo2(4096, 12288, 36, num_key_value_heads=8, rope_theta=1e6),
    "molmo2-o-7b": _molmo2(4096, 11008, 32, **_OLMO3),
    "videollama3-2b": _video_llama_3(_QWEN2_5_1_5B),
    "videollama3-7b": _video_llama_3(_QWEN2_7B),
    "internvl3-1b": _internvl3(896, 4864, 24, 14, 2),
    "internvl3-2b": _internvl3(1536, 8960, 28, 12, 2),
    "internvl3-8b": _internvl3(3584, 18944, 28, 28, 4),
    "internvl3-14b": _internvl3(5120, 13824, 48, 40, 8),
    "internvl3-38b": _internvl3(5120, 27648, 64, 40, 8, large=True),
    "internvl3_5-1b": _internvl3_5(1024, 3072, 28, 16, True),
    "internvl3_5-2b": _internvl3_5(2048, 6144, 28, 16, True),
    "internvl3_5-4b": _internvl3_5(2560, 9728, 36, 32, True),
    "internvl3_5-8b": _internvl3_5(4096, 12288, 36, 32, False),
    "internvl3_5-14b": _internvl3_5(5120, 17408, 40, 40, False),
    "internvl3_5-38b": _internvl3_5(5120, 25600, 64, 64, False, large=True),
}
"""config.json of each; LLaVA's vision sizes are those of the tower it names."""


def config_of(raw: dict[str, Any]) -> Any:
    """The config of the family that a config.json describes.

    Raises:
      JvidpruneError: an unknown architecture, a value that no model has, or an option that the port does not have.
    """
    return described(raw)[1]


def short_name(name: str) -> str:
    """A key of `PUBLISHED` where a name or hub id means one: lower case, without the owner."""
    return name.lower().rpartition("/")[2] if name.count("/") == 1 else name.lower()


def published(name: str) -> Any:
    """The config of a published checkpoint by its short name, or by a hub id that ends in it (allenai/Molmo2-8B).

    Raises:
      JvidpruneError: unknown name.
    """
    raw = PUBLISHED.get(short_name(name))
    if raw is None:
        raise JvidpruneError(f"unknown published model {name!r}; known: {', '.join(PUBLISHED)}.")
    return config_of(raw)
