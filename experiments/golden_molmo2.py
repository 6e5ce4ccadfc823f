"""Makes the golden files of Molmo2 from the class that transformers ships, on two tiny random configurations.

    python3 -m venv golden && golden/bin/pip install torch transformers safetensors numpy
    golden/bin/python experiments/golden_molmo2.py tests/golden/models

The folder `molmo2` has the decoder of the 4B and 8B (Qwen3) under the names of the built-in class, `molmo2_olmo3` that
of the O-7B (OLMo 3) under the names and the config layout of the released checkpoints; both are read back through
transformers before their arrays are written. PyTorch and transformers >= 5.23 are needed here and nowhere else.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

SEED, STEPS, PATCH, TEXT_BEFORE, TEXT_AFTER = 7, 6, 4, 3, 5
VOCAB, EXTRA = 64, 12
IDS = {
    "image_start_token_id": VOCAB,
    "image_end_token_id": VOCAB + 1,
    "image_patch_id": VOCAB + 2,
    "low_res_image_start_token_id": VOCAB + 4,
    "frame_start_token_id": VOCAB + 7,
    "frame_end_token_id": VOCAB + 8,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


def configuration(olmo: bool) -> dict[str, Any]:
    """Sizes of one flavour; OLMo's frames have 8 x 8 patches, so that the last windows are cut off."""
    side = (8 if olmo else 9) * PATCH
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "image_size": [side, side],
        "patch_size": PATCH,
    }
    adapter = {
        "vision_feature_layer": [3, 1],
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 24,
        "text_hidden_size": 32,
    }
    text: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if olmo else 2,
        "head_dim": 8,
        "vocab_size": VOCAB,
        "additional_vocab_size": EXTRA,
        "num_hidden_layers": 4 if olmo else 2,
        "intermediate_size": 32,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    if olmo:
        text |= {"qk_norm_type": "olmo", "norm_after": True, "rope_parameters": YARN, "rope_scaling_layers": [1, 3]}
    return {"vision_config": vision, "adapter_config": adapter, "text_config": text, **IDS}


def released(config: dict[str, Any]) -> dict[str, Any]:
    """The same sizes in the layout of the released config.json, with a tower declared two blocks deeper than it is."""
    vision, adapter, text = (dict(config[f"{part}_config"]) for part in ("vision", "adapter", "text"))
    for old, new in (("image_size", "image_default_input_size"), ("patch_size", "image_patch_size")):
        vision[new] = vision.pop(old)
    vision["image_num_pos"] = (vision["image_default_input_size"][0] // PATCH) ** 2
    vision["num_hidden_layers"] += 2
    adapter["vit_layers"] = [layer - vision["num_hidden_layers"] for layer in adapter.pop("vision_feature_layer")]
    adapter["pooling_attention_mask"] = True
    scaling = dict(text.pop("rope_parameters"))
    text |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling, "layer_norm_eps": 1e-6}
    text |= {"qkv_bias": False, "use_qk_norm": True}
    return {"vit_config": vision, "adapter_config": adapter, "text_config": text, **IDS}


def released_names(tensors: dict[str, np.ndarray], vocab: int) -> dict[str, np.ndarray]:
    """Tensors of the built-in class under the names of the released checkpoints, where some are stored joined."""
    vit, block = "model.vision_backbone.image_vit", "model.vision_backbone.image_vit.transformer.resblocks"
    renames = [
        ("model.vision_tower.layers", block),
        ("model.vision_tower", vit),
        ("model.multi_modal_projector", "model.vision_backbone"),
        (".mlp.fc1", ".feed_forward.w1"),
        (".mlp.fc2", ".feed_forward.w2"),
        (".layer_norm1", ".attention_norm"),
        (".layer_norm2", ".ffn_norm"),
        ("image_projector.gate_proj", "image_projector.w1"),
        ("image_projector.down_proj", "image_projector.w2"),
        ("image_projector.up_proj", "image_projector.w3"),
        ("model.language_model.norm", "model.transformer.ln_f"),
        ("model.language_model.layers", "model.transformer.blocks"),
        (".input_layernorm", ".attn_norm"),
        (".post_attention_layernorm", ".ff_norm"),
        (".mlp.down_proj", ".mlp.ff_out"),
    ]
    found: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if name == "model.language_model.embed_tokens.weight":
            found["model.transformer.wte.embedding"], found["model.transformer.wte.new_embedding"] = np.split(
                value, [vocab]
            )
            continue
        text = ".language_model." in name
        if text and name.endswith(("q_proj.weight", "up_proj.weight")):
            first, others = ("q", "kv") if "q_proj" in name else ("up", ("gate",))
            parts = [value, *(tensors[name.replace(f"{first}_proj", f"{other}_proj")] for other in others)]
            value = np.concatenate(parts)
            name = name.replace("q_proj", "att_proj").replace("up_proj", "ff_proj")
        elif text and name.endswith(("k_proj.weight", "v_proj.weight", "gate_proj.weight")):
            continue
        name = name.replace("self_attn.o_proj", "self_attn.attn_out") if text else name
        for old, new in renames:
            name = name.replace(old, new)
        if "vision_backbone" in name:
            middle = "attention." if "resblocks" in name else ""
            for part in "qkvo":
                name = name.replace(f"self_attn.{part}_proj", f"{middle}w{part}")
                name = name.replace(f"image_pooling_2d.{part}_proj", f"image_pooling_2d.w{part}")
        found[name] = value
    return found


def windows(side: int, pool: int = 3) -> np.ndarray:
    """Patch ids of each window; what is missing is filled up with -1, the odd one below and on the right."""
    missing = -side % pool
    room = (missing // 2, missing - missing // 2)
    grid = np.pad(np.arange(side * side).reshape(side, side), (room, room), constant_values=-1)
    count = len(grid) // pool
    return grid.reshape(count, pool, count, pool).transpose(0, 2, 1, 3).reshape(count * count, pool * pool)


def prompt(frames: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Text, then for every frame a time stamp, the markers and the placeholders, then text."""
    ids = list(rng.integers(0, VOCAB, TEXT_BEFORE))
    for _ in range(frames):
        ids += list(rng.integers(0, VOCAB, 2))
        ids += [IDS["frame_start_token_id"], *[IDS["image_patch_id"]] * tokens, IDS["frame_end_token_id"]]
    return np.asarray([ids + list(rng.integers(0, VOCAB, TEXT_AFTER))], np.int64)


def build(olmo: bool) -> tuple[Any, dict[str, Any]]:
    """A model whose random weights are large enough that every part shows in the logits."""
    import torch
    from transformers.models.molmo2 import Molmo2Config, Molmo2ForConditionalGeneration

    torch.manual_seed(SEED + olmo)
    config = configuration(olmo)
    model = Molmo2ForConditionalGeneration(Molmo2Config(**config, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.normal_(0.0, 0.2).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                fan_in = value.shape[-1] if "embed" not in name else 1
                value.normal_(0.0, 0.9 * fan_in**-0.5 if fan_in > 1 else 0.7)
    return model, config


def pixels_of(frames: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, S, S, 3) resized bytes and (T, M, P) patch rows of a video, as the video processor makes them.

    `torch.nn.functional.interpolate` is what torchvision's resize of a tensor calls.
    """
    import torch

    planes = torch.tensor(frames).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(planes, (side, side), mode="bilinear", antialias=False)
    squares = resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    values = (squares.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    count = side // PATCH
    rows = values.reshape(-1, count, PATCH, count, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return squares, rows.reshape(len(frames), count * count, 3 * PATCH**2)


def run(model: Any, config: dict[str, Any], frames: int) -> dict[str, np.ndarray]:
    """Inputs and stages of one video and prompt, and a greedy answer step by step."""
    import torch

    rng = np.random.default_rng(SEED)
    side = config["vision_config"]["image_size"][0] // PATCH
    size = (23, 40) if frames == 2 else (31, 37)
    video = rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    squares, pixels = pixels_of(video, side * PATCH)
    window = windows(side)
    rows = columns = round(len(window) ** 0.5)
    pooling = np.concatenate([np.where(window >= 0, window + t * side * side, -1) for t in range(frames)])
    ids = prompt(frames, rows * columns, rng)
    visual = np.isin(ids, [*IDS.values()])
    given: dict[str, Any] = {
        "input_ids": torch.tensor(ids),
        "pixel_values_videos": torch.tensor(pixels),
        "video_token_pooling": torch.tensor(pooling.astype(np.int64)),
        "video_grids": torch.tensor([[frames, rows, columns]]),
        "mm_token_type_ids": torch.tensor(visual.astype(np.int64)),
    }
    model.set_attn_implementation("eager")
    with torch.no_grad():
        tower = model.model.vision_tower(given["pixel_values_videos"], output_hidden_states=True)
        features = model.model.get_video_features(
            given["pixel_values_videos"], given["video_token_pooling"], given["video_grids"]
        ).pooler_output
        out = model(**given, output_hidden_states=True, output_attentions=True, use_cache=True)
        logits, steps, answer, cache = out.logits[:, -1], [], [], out.cache
        for _ in range(STEPS):
            steps.append(logits[0].numpy())
            answer.append(int(logits[0].argmax()))
            more = model(input_ids=torch.tensor([[answer[-1]]]), cache=cache, use_cache=True)
            logits, cache = more.logits[:, -1], more.cache
    best = np.sort(np.stack(steps), axis=-1)
    return {
        "input_ids": ids,
        "frames_uint8": video,
        "resized_uint8": squares,
        # Targets of more than 128 pixels, rows and columns together, run through other code of the library.
        "resized_wide": pixels_of(video[:1, :12, :10], 68)[0],
        "video_token_pooling": pooling.astype(np.int32),
        "visual": visual,
        "vit_hidden": torch.stack(tower.hidden_states).numpy(),
        "features": torch.cat(features).reshape(frames, rows * columns, -1).numpy(),
        "inputs_embeds": out.hidden_states[0].numpy(),
        "position_ids": np.arange(ids.shape[1])[None],
        "lm_hidden": torch.stack(out.hidden_states).numpy(),
        "lm_last_query_attention": torch.stack(out.attentions)[:, :, :, -1].numpy(),
        "logits": out.logits.numpy(),
        "greedy_ids": np.asarray([answer]),
        "greedy_logits": np.stack(steps)[None],
        "greedy_margin": (best[:, -1] - best[:, -2])[None],
    }


def read_back(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Fails unless the folder loaded by transformers gives the logits that will be stored."""
    import torch
    from transformers.models.molmo2 import Molmo2ForConditionalGeneration

    model = Molmo2ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    frames = arrays["features"].shape[0]
    side = round(arrays["features"].shape[1] ** 0.5)
    squares = arrays["resized_uint8"]
    pixels = pixels_of(squares, squares.shape[1])[1]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(arrays["input_ids"]),
            pixel_values_videos=torch.tensor(pixels),
            video_token_pooling=torch.tensor(arrays["video_token_pooling"].astype(np.int64)),
            video_grids=torch.tensor([[frames, side, side]]),
            mm_token_type_ids=torch.tensor(arrays["visual"].astype(np.int64)),
        )
    difference = float(np.abs(out.logits.numpy() - arrays["logits"]).max())
    if difference > 1e-5:
        raise SystemExit(f"{folder}: read back by transformers, the logits differ by {difference:.1e}.")


def main() -> None:
    """Writes both folders."""
    from safetensors.numpy import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the models' golden files")
    out = parser.parse_args().out
    for name, olmo, frames in (("molmo2", False, 3), ("molmo2_olmo3", True, 2)):
        model, config = build(olmo)
        arrays = run(model, config, frames)
        tensors = {key: value.detach().numpy() for key, value in model.state_dict().items()}
        layout = config
        if olmo:
            tensors, layout = released_names(tensors, VOCAB), released(config)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "model.safetensors")
        kinds = {
            "model_type": "molmo2",
            "architectures": ["Molmo2ForConditionalGeneration"],
            "tie_word_embeddings": False,
        }
        (folder / "config.json").write_text(json.dumps(kinds | layout, indent=1) + "\n")
        read_back(folder, arrays)
        if olmo:
            del arrays["vit_hidden"], arrays["resized_wide"]  # the same code
        np.savez_compressed(folder / "io.npz", **arrays)
        print(name, sum(path.stat().st_size for path in folder.iterdir()), arrays["greedy_ids"].tolist())


if __name__ == "__main__":
    main()
