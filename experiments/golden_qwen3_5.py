"""Makes the golden files of Qwen3.5 from the class that transformers ships, on two tiny random configurations.

    python3 -m venv golden && golden/bin/pip install torch transformers && golden/bin/pip install -e '.[test]'
    PYTHONPATH=tests golden/bin/python experiments/golden_qwen3_5.py tests/data

A seed makes the weights (`helpers.seeded`), so that only what the reference makes of them is stored:
`qwen3_5_first.npz` (every fourth of five layers has attention, as published) and `qwen3_5_second.npz` (every third of
six, a prompt of several chunks, other sizes, tied head). With `--full` nothing is written there: the folder gets a
checkpoint of four layers and two blocks at the sizes of the 9B and what the reference makes of it, for
`jvidprune parity --model`. PyTorch and transformers >= 5.23 are needed here and nowhere else.
"""

from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"]}
FIRST: dict[str, Any] = KINDS | {
    "vision_config": {
        "depth": 2,
        "hidden_size": 8,
        "num_heads": 2,
        "intermediate_size": 10,
        "patch_size": 2,
        "out_hidden_size": 10,
        "num_position_embeddings": 16,
    },
    "text_config": {
        "hidden_size": 10,
        "intermediate_size": 12,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 4,
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
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "full_attention_interval": 3,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 5,
        "linear_value_head_dim": 7,
        "linear_conv_kernel_dim": 3,
        "vocab_size": 40,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "mrope_section": [2, 2, 2],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.5,
        },
        "tie_word_embeddings": True,
    },
    "image_token_id": 36,
    "video_token_id": 37,
    "vision_start_token_id": 38,
    "vision_end_token_id": 39,
    "tie_word_embeddings": True,
}
FULL: dict[str, Any] = KINDS | {
    "vision_config": {"depth": 2, "out_hidden_size": 4096},
    "text_config": {
        "num_hidden_layers": 4,
        "vocab_size": 1024,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.25,
        },
        "tie_word_embeddings": False,
    },
    "image_token_id": 1020,
    "video_token_id": 1021,
    "vision_start_token_id": 1022,
    "vision_end_token_id": 1023,
    "tie_word_embeddings": False,
}
SETS = {"first": (FIRST, (2, 4, 6)), "second": (SECOND, (4, 8, 6)), "full": (FULL, (2, 16, 22))}
SEEDS = {"first": 1, "second": 2, "full": 3}


def run(folder: Path, grid: tuple[int, int, int], seed: int) -> dict[str, np.ndarray]:
    """What the reference makes of a checkpoint folder and a video."""
    from helpers import golden_models

    return golden_models.qwen_run(golden_models.build("Qwen3_5ForConditionalGeneration", folder), grid, seed)


def main() -> None:
    """Writes all files."""
    from helpers import golden_models

    golden_models.write_files("qwen3_5", SETS, SEEDS, run, __doc__)


if __name__ == "__main__":
    main()
