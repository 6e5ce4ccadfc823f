"""What the scripts that make golden files of model families share: the reference's class, its answer, and the files.

PyTorch and transformers are needed by those scripts alone.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers import seeded

STEPS, TEXT_BEFORE, TEXT_AFTER = 5, 3, 4
"""Tokens of an answer, and text of a prompt in front of its video and behind it."""


def build(name: str, folder: Path, **options: Any) -> Any:
    """The reference model of a checkpoint folder in float32; its class has to take every tensor.

    Args:
      name: of the class in transformers.
      folder: of the checkpoint.
      **options: further ones of its `from_pretrained`.
    """
    import torch
    import transformers

    model, info = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **options
    )
    if odd := {key: value for key, value in info.items() if value}:
        raise SystemExit(f"the class has other tensors: {odd}.")
    return model.eval()


def greedy(model: Any, out: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1, STEPS) ids of the greedy answer behind a prompt that was read, and for each its logits and their lead."""
    import torch

    logits, steps, answer, cache = out.logits[:, -1], [], [], out.cache
    with torch.no_grad():
        for _ in range(STEPS):
            steps.append(logits[0].numpy())
            answer.append(int(logits[0].argmax()))
            more = model(input_ids=torch.tensor([[answer[-1]]]), cache=cache, use_cache=True)
            logits, cache = more.logits[:, -1], more.cache
    best = np.sort(np.stack(steps), axis=-1)
    return np.asarray([answer], np.int32), np.stack(steps)[None], (best[:, -1] - best[:, -2])[None]


def qwen_run(model: Any, grid: tuple[int, int, int], seed: int) -> dict[str, np.ndarray]:
    """Inputs and stages of one video and prompt of Qwen3-VL's kind, and a greedy answer step by step.

    What depends on positions is called `_tf5`, whose rule transformers 5 follows.

    Args:
      model: the reference.
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
    attention = torch.stack([layer for layer in out.attentions if layer is not None])[:, :, :, -1]
    stages = {
        "input_ids": ids.astype(np.int32),
        "pixel_values_videos": patches,
        "video_grid_thw": np.asarray([grid], np.int32),
        "projector": torch.cat(list(found.pooler_output)).numpy(),
        "position_ids_tf5": positions.numpy().astype(np.int32),
        "rope_delta_tf5": delta.numpy().reshape(-1).astype(np.int32),
        "lm_last_query_attention_tf5": attention.numpy(),
        "logits_tail_tf5": out.logits[:, -2:].numpy(),
    }
    if levels := getattr(found, "deepstack_features", None):
        stages["deepstack_features"] = torch.stack([torch.cat(list(level)) for level in levels]).numpy()
    answer, _, lead = greedy(model, out)
    return stages | {"greedy_ids_tf5": answer, "greedy_margin_tf5": lead}


def write_files(
    family: str,
    sets: Mapping[str, tuple[dict[str, Any], Any]],
    seeds: Mapping[str, int],
    make: Callable[[Path, Any, int], dict[str, np.ndarray]],
    text: str | None,
) -> None:
    """The command line of a script: the data of tests, or with `--full` a checkpoint at full width and its io file.

    Args:
      family: begins the files' names.
      sets: name to config.json and shape of the video; "full" is the one of `--full`.
      seeds: of each.
      make: what the reference makes of a checkpoint folder, a video's shape and a seed.
      text: of the script.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the data of tests, or of the checkpoint at full width")
    parser.add_argument("--full", action="store_true", help="few layers at full width")
    given = parser.parse_args()
    if given.full:
        raw, shape = sets["full"]
        seeded.write(given.out, raw, seeds["full"])
        np.savez_compressed(given.out / "io.npz", **make(given.out, shape, seeds["full"]))
        return
    for name, (raw, shape) in sets.items():
        if name == "full":
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = make(seeded.write(Path(folder), raw, seeds[name]), shape, seeds[name])
        path = given.out / f"{family}_{name}.npz"
        np.savez_compressed(path, **found)
        answer = next(value for key, value in found.items() if key.startswith("greedy_ids"))
        lead = next(value for key, value in found.items() if key.startswith("greedy_margin"))
        print(name, path.stat().st_size, answer.tolist(), lead.min())
        assert len(set(answer[0])) > 2
