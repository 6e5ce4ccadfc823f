"""The smallest checkpoints that exercise a family: random tensors under its published names, a tokenizer of bytes.

All families give 6 grid frames of 4 x 4 tokens of one width, so that programs of reducers can be shared.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.tiny import SPECIAL, tokenizer
from helpers.whole import whole_tensors
from safetensors.numpy import save_file

from jvidprune.models import family as families

WIDTH, LAYERS = 16, 2

_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 256 + len(SPECIAL),
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
_SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
}
_VIT = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
    "out_hidden_size": WIDTH,
}
_IDS = {
    "video_token_id": 256 + SPECIAL.index("<|video_pad|>"),
    "vision_start_token_id": 256 + SPECIAL.index("<|vision_start|>"),
    "vision_end_token_id": 256 + SPECIAL.index("<|vision_end|>"),
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llava_onevision": {"model_type": "llava_onevision", "text_config": _TEXT, "vision_config": _SIGLIP},
    "llava_video": {
        "model_type": "llava_qwen",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "average",
        "vision_config_override": _SIGLIP,
        **_TEXT,
    },
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
        "vision_config": _VIT | {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2},
        **_TEXT,
        **_IDS,
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "text_config": _TEXT | {"head_dim": 8, "rope_scaling": {"mrope_section": [2, 1, 1]}},
        "vision_config": _VIT | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **_IDS,
    },
    "molmo2": {
        "model_type": "molmo2",
        "text_config": _TEXT | {"head_dim": 8, "additional_vocab_size": 16},
        "vision_config": _SIGLIP | {"head_dim": 8, "image_size": [48, 48], "patch_size": 4},
        "adapter_config": {
            "vision_feature_layer": [1, 0],
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 16,
            "text_hidden_size": WIDTH,
        },
    },
    "video_llama_3": {
        "model_type": "video_llama_3",
        "text_config": _TEXT,
        "vision_config": {key: value for key, value in _SIGLIP.items() if key != "image_size"},
        "video_token_id": _IDS["video_token_id"],
    },
    "qwen3_vl_moe": {
        "model_type": "qwen3_vl_moe",
        "text_config": _TEXT
        | {
            "head_dim": 8,
            "rope_scaling": {"mrope_section": [2, 1, 1]},
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
        },
        "vision_config": _VIT | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **_IDS,
    },
    "qwen3_5": {
        "model_type": "qwen3_5",
        "text_config": _TEXT
        | {
            # With attention in every second layer a cut can stand behind one that has it.
            "num_hidden_layers": 4,
            "full_attention_interval": 2,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 4,
            "linear_value_head_dim": 6,
            "rope_parameters": {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5},
        },
        "vision_config": _VIT | {"num_position_embeddings": 16},
        **_IDS,
    },
    "internvl": {
        "model_type": "internvl",
        "text_config": _TEXT | {"model_type": "qwen3", "head_dim": 8},
        "vision_config": _SIGLIP,
        "image_token_id": _IDS["video_token_id"],
    },
}
"""config.json of each family."""


def write(family: str, folder: Path, *, pooling_head: bool = False) -> Path:
    """Writes config.json, model.safetensors and tokenizer.json, with the tied embedding as head.

    Args:
      family: key of `CONFIGS`.
      folder: created.
      pooling_head: LLaVA: also the attention-pooling head of SigLIP.
    """
    package = families.get(family)
    config = package.config.from_hf(CONFIGS[family])
    config = config.with_tensors(["vision_tower.vision_model.head.probe"] * pooling_head)
    rules = {rule.target: rule for rule in package.name_table(config).rules}
    state = nnx.state(nnx.eval_shape(lambda: package.model(config, dtype=jnp.float32)))
    rng, tensors = np.random.default_rng(0), {}
    for path, variable in nnx.to_flat_state(state):
        rule = rules[".".join(map(str, path))]
        stacked = "{L}" in rule.source
        for name in rule.sources(variable.shape):
            shape = variable.shape[1:] if stacked else variable.shape
            scale = 1.0 if rule.target.endswith("scale") else 0.0
            value = scale + rng.standard_normal(shape) * (0.1 if len(shape) == 1 else shape[0] ** -0.5)
            if rule.transform == "conv":
                # The one stored shape that a parameter does not tell: a patch's channels, frames, rows and columns.
                side = config.vision.patch_size
                value = value.T.reshape(shape[1], 3, *[2] * (getattr(config.vision, "pair", 1) > 1), side, side)
            elif rule.transform == "taps":
                value = value.T[:, None]
            elif rule.transform == "transpose":
                value = value.T
            tensors[name] = np.ascontiguousarray(value, np.float32)
    for join in package.name_table(config).joins:
        # Stored apart, as in the published checkpoints.
        if family == "video_llama_3":
            parts = np.split(tensors.pop(join.target), len(join.sources))
            tensors |= {name: np.ascontiguousarray(part) for name, part in zip(join.sources, parts, strict=True)}
    if family == "qwen3_5":
        tensors = whole_tensors(tensors, package.name_table(config).splits, np.concatenate)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder
