"""Makes the golden files of Qwen3-VL with experts from the class that transformers ships, on two tiny configurations.

    python3 -m venv golden && golden/bin/pip install torch transformers && golden/bin/pip install -e '.[test]'
    PYTHONPATH=tests golden/bin/python experiments/golden_qwen3_vl_moe.py tests/data

A seed makes the weights (`helpers.seeded`), so that only what the reference makes of them is stored:
`qwen3_vl_moe_first.npz` (two of five experts) and `qwen3_vl_moe_second.npz` (three of seven, two DeepStack levels,
other sizes). With `--full` nothing is written there: the folder gets a checkpoint of two layers and two blocks at the
sizes of the 30B-A3B, 128 experts each, and what the reference makes of it, for `jvidprune parity --model`. PyTorch and
transformers >= 5.23 are needed here and nowhere else.
"""

from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"model_type": "qwen3_vl_moe", "architectures": ["Qwen3VLMoeForConditionalGeneration"]}
FIRST: dict[str, Any] = KINDS | {
    "vision_config": {
        "depth": 2,
        "hidden_size": 8,
        "num_heads": 2,
        "intermediate_size": 10,
        "patch_size": 2,
        "out_hidden_size": 10,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
    "text_config": {
        "hidden_size": 10,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 6,
        "vocab_size": 28,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        "tie_word_embeddings": False,
    },
    "image_token_id": 24,
    "video_token_id": 25,
    "vision_start_token_id": 26,
    "vision_end_token_id": 27,
    "tie_word_embeddings": False,
}
SECOND: dict[str, Any] = KINDS | {
    "vision_config": {
        "depth": 3,
        "hidden_size": 24,
        "num_heads": 3,
        "intermediate_size": 20,
        "patch_size": 3,
        "out_hidden_size": 16,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 5,
        "vocab_size": 40,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 2, 2]},
        "tie_word_embeddings": False,
    },
    "image_token_id": 36,
    "video_token_id": 37,
    "vision_start_token_id": 38,
    "vision_end_token_id": 39,
    "tie_word_embeddings": False,
}
FULL: dict[str, Any] = KINDS | {
    "vision_config": {"depth": 2, "out_hidden_size": 2048, "deepstack_visual_indexes": [0]},
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "vocab_size": 1024,
        "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        "tie_word_embeddings": False,
    },
    "image_token_id": 1020,
    "video_token_id": 1021,
    "vision_start_token_id": 1022,
    "vision_end_token_id": 1023,
    "tie_word_embeddings": False,
}
SETS = {"first": (FIRST, (2, 4, 6)), "second": (SECOND, (3, 6, 4)), "full": (FULL, (2, 16, 22))}
SEEDS = {"first": 1, "second": 4, "full": 3}


def run(folder: Path, grid: tuple[int, int, int], seed: int) -> dict[str, np.ndarray]:
    """What the reference makes of a checkpoint folder and a video."""
    from helpers import golden_models

    model = golden_models.build("Qwen3VLMoeForConditionalGeneration", folder, experts_implementation="eager")
    return golden_models.qwen_run(model, grid, seed)


def main() -> None:
    """Writes all files."""
    from helpers import golden_models

    golden_models.write_files("qwen3_vl_moe", SETS, SEEDS, run, __doc__)


if __name__ == "__main__":
    main()
