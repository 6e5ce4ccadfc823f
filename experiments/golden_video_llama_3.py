"""Makes the golden files of VideoLLaMA3 from the class that transformers ships, on two tiny random configurations.

    python3 -m venv golden && golden/bin/pip install torch transformers safetensors numpy
    golden/bin/python experiments/golden_video_llama_3.py tests

The first configuration (untied head) is written with its weights as a checkpoint folder, `golden/models/video_llama_3`,
the second (three heads, another patch size, tied head) as what the reference makes of it alone,
`data/video_llama_3_second.npz`: `tensors` makes its weights anew. With `--full WIDTH` nothing is written there: the
folder WIDTH gets a checkpoint of two layers and two blocks at the sizes of the 7B and what the reference makes of it,
for `jvidprune parity --model`. PyTorch and transformers >= 5.23 are needed here and nowhere else.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

STEPS, TEXT_BEFORE, TEXT_AFTER = 5, 3, 4

FIRST: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 8,
        "intermediate_size": 10,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 2,
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
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "image_token_id": 22,
    "video_token_id": 23,
    "tie_word_embeddings": False,
}
SECOND: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": 3,
    },
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
    },
    "image_token_id": 38,
    "video_token_id": 39,
    "tie_word_embeddings": True,
}
FULL: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 2,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 1024,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "image_token_id": 1022,
    "video_token_id": 1023,
    "tie_word_embeddings": False,
}
KINDS = {"model_type": "video_llama_3", "architectures": ["VideoLlama3ForConditionalGeneration"]}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint."""
    vision, text = config["vision_config"], config["text_config"]
    width, mlp, patch, out = (
        vision["hidden_size"],
        vision["intermediate_size"],
        vision["patch_size"],
        text["hidden_size"],
    )
    tower, lm = "model.vision_model", "model.language_model"
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, into: int, outof: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (into, outof)
        if bias:
            found[f"{name}.bias"] = (into,)

    def norm(name: str, size: int, bias: bool) -> None:
        found[f"{name}.weight"] = (size,)
        if bias:
            found[f"{name}.bias"] = (size,)

    found[f"{tower}.embeddings.patch_embedding.weight"] = (width, 3, patch, patch)
    found[f"{tower}.embeddings.patch_embedding.bias"] = (width,)
    for layer in range(vision["num_hidden_layers"]):
        block = f"{tower}.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{block}.self_attn.{part}", width, width)
        linear(f"{block}.mlp.fc1", mlp, width)
        linear(f"{block}.mlp.fc2", width, mlp)
        norm(f"{block}.layer_norm1", width, True)
        norm(f"{block}.layer_norm2", width, True)
    norm(f"{tower}.post_layernorm", width, True)
    linear("model.projector.readout.0", out, width)
    linear("model.projector.readout.2", out, out)
    found[f"{lm}.embed_tokens.weight"] = (text["vocab_size"], out)
    head = out // text["num_attention_heads"]
    keys = head * text["num_key_value_heads"]
    for layer in range(text["num_hidden_layers"]):
        block = f"{lm}.layers.{layer}"
        linear(f"{block}.self_attn.q_proj", out, out)
        linear(f"{block}.self_attn.k_proj", keys, out)
        linear(f"{block}.self_attn.v_proj", keys, out)
        linear(f"{block}.self_attn.o_proj", out, out, False)
        for part in ("gate_proj", "up_proj"):
            linear(f"{block}.mlp.{part}", text["intermediate_size"], out, False)
        linear(f"{block}.mlp.down_proj", out, text["intermediate_size"], False)
        norm(f"{block}.input_layernorm", out, False)
        norm(f"{block}.post_attention_layernorm", out, False)
    norm(f"{lm}.norm", out, False)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (text["vocab_size"], out)
    return found


def tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Random weights, large enough that every part shows in the logits; float16 numbers, whose values stay the same in
    every version of numpy.

    Args:
      config: of the model.
      seed: of the legacy generator, whose stream is frozen.
    """
    rng = np.random.RandomState(seed)
    found = {}
    for name, shape in shapes(config).items():
        value = rng.standard_normal(shape)
        if len(shape) == 1:
            value = 0.2 * value + ("norm" in name and name.endswith("weight"))
        else:
            value *= 0.7 if "embed_tokens" in name else 0.9 * np.prod(shape[1:]) ** -0.5
        found[name] = value.astype(np.float16)
    return found


def build(config: dict[str, Any], weights: dict[str, np.ndarray]) -> Any:
    """The reference model in float32 with these weights."""
    import torch
    from transformers.models.video_llama_3 import VideoLlama3Config, VideoLlama3ForConditionalGeneration

    model = VideoLlama3ForConditionalGeneration(VideoLlama3Config(**config, attn_implementation="eager")).eval()
    state = {name: torch.tensor(value.astype(np.float32)) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    if set(missing) - tied or unexpected:
        raise SystemExit(f"the class has other tensors: missing {missing}, unexpected {unexpected}.")
    model.tie_weights()
    return model


def prompt(config: dict[str, Any], frames: int, tokens: int, rng: Any) -> np.ndarray:
    """Text, then every frame behind two tokens of time, then text."""
    text = config["image_token_id"]
    ids = list(rng.randint(0, text, TEXT_BEFORE))
    for _ in range(frames):
        ids += [*rng.randint(0, text, 2), *[config["video_token_id"]] * tokens]
    return np.asarray([[*ids, *rng.randint(0, text, TEXT_AFTER)]], np.int64)


def run(model: Any, config: dict[str, Any], grid: tuple[int, int, int], seed: int, *, lean: bool) -> dict[str, Any]:
    """Inputs and stages of one video and prompt, and a greedy answer step by step.

    Args:
      model: the reference.
      config: of it.
      grid: frames, rows and columns in patches.
      seed: of pixels and text.
      lean: leave hidden states out.
    """
    import torch

    rng = np.random.RandomState(seed)
    frames, rows, columns = grid
    size = 3 * config["vision_config"]["patch_size"] ** 2
    # Levels of bytes, so that the file stays small.
    levels = rng.randint(0, 256, (frames * rows * columns, size)).astype(np.uint8)
    pixels = (levels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    ids = prompt(config, frames, rows * columns // 4, rng)
    where, merge = torch.tensor([grid]), torch.tensor([2])
    received: list[torch.Tensor] = []
    blocks = model.model.vision_model.encoder.layers
    inner = [block.self_attn for block in blocks]

    def note(module: Any, given: Any, out: Any) -> None:
        # One map a frame: (1, heads, queries, keys).
        received.append(torch.stack([weights[0].mean(dim=1) for weights in out[1]]))

    hooks = [one.register_forward_hook(note) for one in inner]
    with torch.no_grad():
        tower = model.model.vision_model(torch.tensor(pixels), where, merge, output_hidden_states=True)
        for hook in hooks:
            hook.remove()
        features = torch.cat(model.model.get_video_features(torch.tensor(pixels), where, merge).pooler_output)
        out = model(
            input_ids=torch.tensor(ids),
            pixel_values_videos=torch.tensor(pixels),
            video_grid_thw=where,
            video_merge_sizes=merge,
            output_hidden_states=True,
            output_attentions=True,
            use_cache=True,
        )
        logits, steps, answer, cache = out.logits[:, -1], [], [], out.cache
        for _ in range(STEPS):
            steps.append(logits[0].numpy())
            answer.append(int(logits[0].argmax()))
            more = model(input_ids=torch.tensor([[answer[-1]]]), cache=cache, use_cache=True)
            logits, cache = more.logits[:, -1], more.cache
    best = np.sort(np.stack(steps), axis=-1)
    attention = torch.stack(received).numpy()  # blocks, frames, heads, patches
    found = {
        "input_ids": ids.astype(np.int32),
        "pixels_uint8": levels,
        "video_grid_thw": np.asarray([grid], np.int32),
        "saliency": attention[-1].mean(axis=1).reshape(frames, -1, 4).mean(axis=-1),
        "projector": features.numpy(),
        "lm_last_query_attention": torch.stack(out.attentions)[:, :, :, -1].numpy(),
        "logits_tail": out.logits[:, -2:].numpy(),
        "greedy_ids": np.asarray([answer], np.int32),
        "greedy_logits": np.stack(steps)[None],
        "greedy_margin": (best[:, -1] - best[:, -2])[None],
    }
    if not lean:
        found |= {
            "vit_hidden": torch.stack(tower.hidden_states[1:]).numpy(),
            "lm_hidden": torch.stack(out.hidden_states).numpy(),
        }
    return found


def write(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
    """A checkpoint folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(KINDS | config) + "\n")


def main() -> None:
    """Writes all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the tests, or of the checkpoint at full width")
    parser.add_argument("--full", action="store_true", help="two layers at the widths of the 7B")
    given = parser.parse_args()
    if given.full:
        weights = tensors(FULL, 3)
        write(given.out, FULL, weights)
        np.savez_compressed(given.out / "io.npz", **run(build(FULL, weights), FULL, (2, 16, 22), 3, lean=False))
        return
    weights = tensors(FIRST, 22)
    folder = given.out / "golden" / "models" / "video_llama_3"
    write(folder, FIRST, weights)
    found = run(build(FIRST, weights), FIRST, (2, 4, 6), 22, lean=True)
    np.savez_compressed(folder / "io.npz", **found)
    print("first", sum(path.stat().st_size for path in folder.iterdir()), found["greedy_ids"].tolist())
    assert len(set(found["greedy_ids"][0])) > 3
    weights = tensors(SECOND, 7)
    found = run(build(SECOND, weights), SECOND, (3, 6, 4), 7, lean=True)
    second = given.out / "data" / "video_llama_3_second.npz"
    np.savez_compressed(second, **found)
    print("second", second.stat().st_size, found["greedy_ids"].tolist())


if __name__ == "__main__":
    main()
