"""Makes the golden files of InternVL from the class that transformers ships, on two tiny random configurations.

    python3 -m venv golden && golden/bin/pip install torch transformers && golden/bin/pip install -e '.[test]'
    PYTHONPATH=tests golden/bin/python experiments/golden_internvl.py tests/data

A seed makes the weights (`helpers.seeded`), so that only what the reference makes of them is stored:
`internvl_first.npz` (Qwen2 behind the blocks of the 300M tower, untied head) and `internvl_second.npz` (Qwen3 behind
those of the 6B tower, grouped queries, tied head, other sizes). With `--full` nothing is written there: the folder gets
a checkpoint of two layers and two blocks at the sizes of InternVL3.5-8B and what the reference makes of it, for
`jvidprune parity --model`. PyTorch and transformers >= 5.23 are needed here and nowhere else.
"""

from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"model_type": "internvl", "architectures": ["InternVLForConditionalGeneration"]}
FIRST: dict[str, Any] = KINDS | {
    "vision_config": {
        "hidden_size": 8,
        "intermediate_size": 10,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [8, 8],
        "patch_size": [2, 2],
        "attention_bias": True,
    },
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 24,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    },
    "image_token_id": 23,
    "image_seq_length": 4,
    "tie_word_embeddings": False,
}
SECOND: dict[str, Any] = KINDS | {
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": [12, 12],
        "patch_size": [3, 3],
        "norm_type": "rms_norm",
        "use_qk_norm": True,
        "use_mean_pooling": False,
    },
    "text_config": {
        "model_type": "qwen3",
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "vocab_size": 40,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
    },
    "image_token_id": 39,
    "image_seq_length": 4,
    "tie_word_embeddings": True,
}
FULL: dict[str, Any] = KINDS | {
    "vision_config": {"num_hidden_layers": 2, "attention_bias": True},
    "text_config": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 1024,
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "image_token_id": 1023,
    "tie_word_embeddings": False,
}
SETS = {"first": (FIRST, 2), "second": (SECOND, 3), "full": (FULL, 2)}
SEEDS = {"first": 2, "second": 1, "full": 3}


def run(folder: Path, frames: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs and stages of one video and prompt, and a greedy answer step by step.

    Args:
      folder: of the checkpoint.
      frames: of the video.
      seed: of pixels and text.
    """
    import torch
    from helpers import golden_models

    model = golden_models.build("InternVLForConditionalGeneration", folder)
    rng, config = np.random.RandomState(seed), model.config
    side = config.vision_config.image_size[0]
    patches = side // config.vision_config.patch_size[0]
    tokens = (patches // 2) ** 2
    # Levels of bytes, so that the file stays small.
    levels = rng.randint(0, 256, (frames, 3, side, side)).astype(np.uint8)
    mean, std = (
        np.asarray(values, np.float32).reshape(3, 1, 1) * np.float32(255)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    pixels = torch.tensor((levels.astype(np.float32) - mean) / std)
    text = config.image_token_id
    ids = list(rng.randint(0, text, golden_models.TEXT_BEFORE))
    for _ in range(frames):
        ids += [*rng.randint(0, text, 2), *[text] * tokens, int(rng.randint(0, text))]
    ids = np.asarray([[*ids, *rng.randint(0, text, golden_models.TEXT_AFTER)]], np.int64)

    def pooled(x: Any) -> np.ndarray:
        """Means over blocks of 2 x 2 patches of (frames, patches)."""
        half = patches // 2
        return x.reshape(frames, half, 2, half, 2).mean(dim=(2, 4)).reshape(frames, -1).numpy()

    with torch.no_grad():
        tower = model.model.vision_tower(pixels, output_attentions=True)
        features = model.model.get_image_features(
            pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
        ).pooler_output
        out = model(input_ids=torch.tensor(ids), pixel_values=pixels, output_attentions=True, use_cache=True)
    answer, steps, lead = golden_models.greedy(model, out)
    # Heads, queries and keys of the last block; place 0 is the class token.
    last = tower.attentions[-1]
    return {
        "input_ids": ids.astype(np.int32),
        "pixels_uint8": levels,
        "saliency": pooled(last.mean(dim=(1, 2))[:, 1:]),
        "class_attention": pooled(last[:, :, 0].mean(dim=1)[:, 1:]),
        "class_token": tower.last_hidden_state[:, 0].numpy(),
        "projector": features.numpy(),
        "lm_last_query_attention": torch.stack(out.attentions)[:, :, :, -1].numpy(),
        "logits_tail": out.logits[:, -2:].numpy(),
        "greedy_ids": answer,
        "greedy_logits": steps,
        "greedy_margin": lead,
    }


def main() -> None:
    """Writes all files."""
    from helpers import golden_models

    golden_models.write_files("internvl", SETS, SEEDS, run, __doc__)


if __name__ == "__main__":
    main()
