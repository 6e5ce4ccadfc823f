"""Makes the golden files of Qwen3-VL with experts from the class that transformers ships, on two tiny configurations.

    python3 -m venv golden && golden/bin/pip install torch transformers && golden/bin/pip install -e '.[test]'
    PYTHONPATH=tests golden/bin/python experiments/golden_qwen3_vl_moe.py tests/data

A seed makes the weights (`helpers.seeded`), so that only what the reference makes of them is stored:
`qwen3_vl_moe_first.npz` (two of five experts) and `qwen3_vl_moe_second.npz` (three of seven, two DeepStack levels,
other sizes). With `--full` nothing is written there: the folder gets a checkpoint of two layers and two blocks at the
sizes of the 30B-A3B, 128 experts each, and what the reference makes of it, for `jvidprune parity --model`. PyTorch and
transformers >= 5.23 are needed here and nowhere else.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

STEPS, TEXT_BEFORE, TEXT_AFTER = 5, 3, 4

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
SETS = (("first", FIRST, (2, 4, 6)), ("second", SECOND, (3, 6, 4)))
SEEDS = {"first": 1, "second": 4, "full": 3}


def build(folder: Path) -> Any:
    """The reference model of a checkpoint folder in float32; its class has to take every tensor."""
    import torch
    from transformers import Qwen3VLMoeForConditionalGeneration

    model, info = Qwen3VLMoeForConditionalGeneration.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    odd = {key: value for key, value in info.items() if value}
    if odd:
        raise SystemExit(f"the class has other tensors: {odd}.")
    return model.eval()


def run(model: Any, raw: dict[str, Any], grid: tuple[int, int, int], seed: int) -> dict[str, np.ndarray]:
    """Inputs and stages of one video and prompt, and a greedy answer step by step.

    What depends on positions is called `_tf5`, whose rule transformers 5 follows.

    Args:
      model: the reference.
      raw: its config.json.
      grid: grid frames, rows and columns in patches.
      seed: of pixels and text.
    """
    import torch

    rng, config = np.random.RandomState(seed), model.config
    frames, rows, columns = grid
    values = 3 * 2 * config.vision_config.patch_size**2
    # Few different numbers, so that the file stays small.
    patches = (rng.randint(-8, 9, (frames * rows * columns, values)) / 8).astype(np.float32)
    text, tokens = config.image_token_id, rows * columns // 4
    ids = list(rng.randint(0, text, TEXT_BEFORE))
    for _ in range(frames):
        ids += [*rng.randint(0, text, 2), config.vision_start_token_id, *[config.video_token_id] * tokens]
        ids.append(config.vision_end_token_id)
    ids = np.asarray([[*ids, *rng.randint(0, text, TEXT_AFTER)]], np.int64)
    kinds = torch.tensor((ids == config.video_token_id) * 2)
    where, pixels = torch.tensor([grid]), torch.tensor(patches)
    with torch.no_grad():
        found = model.model.get_video_features(pixels, where)
        out = model(
            input_ids=torch.tensor(ids),
            pixel_values_videos=pixels,
            video_grid_thw=where,
            mm_token_type_ids=kinds,
            output_attentions=True,
            use_cache=True,
        )
        positions, delta = model.model.get_rope_index(torch.tensor(ids), kinds, video_grid_thw=where)
        logits, steps, answer, cache = out.logits[:, -1], [], [], out.cache
        for _ in range(STEPS):
            steps.append(logits[0].numpy())
            answer.append(int(logits[0].argmax()))
            more = model(input_ids=torch.tensor([[answer[-1]]]), cache=cache, use_cache=True)
            logits, cache = more.logits[:, -1], more.cache
    best = np.sort(np.stack(steps), axis=-1)
    return {
        "input_ids": ids.astype(np.int32),
        "pixel_values_videos": patches,
        "video_grid_thw": np.asarray([grid], np.int32),
        "projector": torch.cat(list(found.pooler_output)).numpy(),
        "deepstack_features": torch.stack([torch.cat(list(level)) for level in found.deepstack_features]).numpy(),
        "position_ids_tf5": positions.numpy().astype(np.int32),
        "rope_delta_tf5": delta.numpy().reshape(-1).astype(np.int32),
        "lm_last_query_attention_tf5": torch.stack(out.attentions)[:, :, :, -1].numpy(),
        "logits_tail_tf5": out.logits[:, -2:].numpy(),
        "greedy_ids_tf5": np.asarray([answer], np.int32),
        "greedy_margin_tf5": (best[:, -1] - best[:, -2])[None],
    }


def main() -> None:
    """Writes all files."""
    import tempfile

    from helpers import seeded

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the data of tests, or of the checkpoint at full width")
    parser.add_argument("--full", action="store_true", help="two layers at the widths of the 30B-A3B")
    given = parser.parse_args()
    if given.full:
        seeded.write(given.out, FULL, SEEDS["full"])
        np.savez_compressed(given.out / "io.npz", **run(build(given.out), FULL, (2, 16, 22), SEEDS["full"]))
        return
    for name, raw, grid in SETS:
        with tempfile.TemporaryDirectory() as folder:
            found = run(build(seeded.write(Path(folder), raw, SEEDS[name])), raw, grid, SEEDS[name])
        path = given.out / f"qwen3_vl_moe_{name}.npz"
        np.savez_compressed(path, **found)
        print(name, path.stat().st_size, found["greedy_ids_tf5"].tolist(), found["greedy_margin_tf5"].min())
        assert len(set(found["greedy_ids_tf5"][0])) > 2


if __name__ == "__main__":
    main()
