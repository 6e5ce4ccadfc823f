"""From parameters in training to a checkpoint folder in the published Hugging Face layout."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jvidprune.models.llava_onevision import LlavaOnevision
from jvidprune.models.load import FAMILIES
from jvidprune.models.weights import Rule


def tensors(model: Any, dtype: Any = np.float16) -> dict[str, np.ndarray]:
    """The tensors of a model under their published names: the inverse of loading.

    Args:
      model: of a LLaVA family; its parameters.
      dtype: of the tensors.
    """
    config = model.config
    name_table = importlib.import_module(f"jvidprune.models.{FAMILIES[config.family].package}").name_table
    found: dict[str, np.ndarray] = {}
    values = {".".join(map(str, path)): np.asarray(x[...]) for path, x in nnx.to_flat_state(nnx.state(model))}
    for rule in name_table(config).rules:
        value = values[rule.target]
        if "{L}" not in rule.source:
            found[rule.source] = _stored(value, rule, config.vision.channels, config.vision.patch_size)
            continue
        for layer, part in enumerate(value):
            name = rule.source.replace("{L}", str(layer))
            found[name] = _stored(part, rule, config.vision.channels, config.vision.patch_size)
    return {name: np.ascontiguousarray(value.astype(dtype)) for name, value in found.items()}


def _stored(value: np.ndarray, rule: Rule, channels: int, patch: int) -> np.ndarray:
    if rule.transform == "copy":
        return value
    return value.T if rule.transform == "transpose" else value.T.reshape(-1, channels, patch, patch)


def write_checkpoint(folder: Path, model: LlavaOnevision, raw: dict[str, Any], tokenizer: Any, frames: int) -> None:
    """Writes model.safetensors (float16), config.json, generation, preprocessor and tokenizer files.

    Args:
      folder: created if needed.
      model: what is published.
      raw: its config.json.
      tokenizer: a tokenizers.Tokenizer.
      frames: frames of a video that the model was made for.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    ends = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    side = raw["vision_config"]["image_size"]
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": side, "width": side}}
    for name, value in (
        ("config.json", raw),
        ("generation_config.json", {"eos_token_id": ends}),
        ("preprocessor_config.json", pixels),
        ("video_preprocessor_config.json", {**pixels, "num_frames": frames}),
    ):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
