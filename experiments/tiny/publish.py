"""From parameters in training to a checkpoint folder in the published Hugging Face layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jvidprune.models.checkpoint.load import name_table
from jvidprune.models.checkpoint.names import bind
from jvidprune.models.llava_onevision import LlavaOnevision
from jvidprune.procedural.settings import BenchmarkSetting
from jvidprune.reducers.prompt_rules import PositionRule
from jvidprune.reducers.serialise import FILE, FolderSettings


def tensors(model: Any, dtype: Any = np.float16) -> dict[str, np.ndarray]:
    """The tensors of a model under their published names: the inverse of loading.

    Args:
      model: of a LLaVA family; its parameters.
      dtype: of the tensors.
    """
    config, vision = model.config, model.config.vision
    values = {".".join(map(str, path)): x[...] for path, x in nnx.to_flat_state(nnx.state(model))}
    table = name_table(config.family, config)
    found: dict[str, np.ndarray] = {}
    for binding in bind({path: x.shape for path, x in values.items()}, table):
        for number, name in enumerate(binding.sources):
            kernel = (vision.width, vision.channels, vision.patch_size, vision.patch_size)
            found[name] = binding.written(values[binding.path], number, kernel).astype(dtype)
    return found


def write_checkpoint(
    folder: Path,
    model: LlavaOnevision,
    raw: dict[str, Any],
    tokenizer: Any,
    frames: int,
    positions: PositionRule | None = None,
    benchmark: BenchmarkSetting | None = None,
) -> None:
    """Writes model.safetensors (float16), config.json, generation, preprocessor and tokenizer files.

    Args:
      folder: created if needed.
      model: what is published.
      raw: its config.json.
      tokenizer: a tokenizers.Tokenizer.
      frames: frames of a video that the model was made for.
      positions: rule of kept tokens' positions that it was made for, None to declare none.
      benchmark: setting of the procedural benchmark that it was made for, None to declare none.
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
    declared = FolderSettings(positions=positions, benchmark=benchmark)
    if declared != FolderSettings():
        (folder / FILE).write_text(declared.text(), encoding="utf-8")
