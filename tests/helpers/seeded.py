"""Checkpoints whose weights a seed makes: what golden files of a family are computed from, and nothing else stored."""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.whole import whole_tensors
from safetensors.numpy import save_file

from jvidprune.models import family as families
from jvidprune.models.checkpoint.load import described


def tensors(raw: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Random weights under the published names, large enough that every part shows in the logits.

    They are float16 numbers, whose values stay the same in every version of numpy; whether names and shapes are those
    of the reference, its class says when it loads them.

    Args:
      raw: config.json.
      seed: of the legacy generator, whose stream is frozen.
    """
    family, config = described(raw)
    package = families.get(family)
    rules = {rule.target: rule for rule in package.name_table(config).rules}
    state = nnx.state(nnx.eval_shape(lambda: package.model(config, dtype=jnp.float32)))
    shapes: dict[str, tuple[int, ...]] = {}
    for path, variable in nnx.to_flat_state(state):
        rule, shape = rules[".".join(map(str, path))], variable.shape
        inner = shape[1:] if "{L}" in rule.source else shape
        if rule.transform == "conv":
            # The one stored shape that a parameter does not tell.
            side, pair = config.vision.patch_size, getattr(config.vision, "pair", 1)
            inner = (inner[1], config.vision.channels, *[pair] * (pair > 1), side, side)
        elif rule.transform == "taps":
            inner = (inner[1], 1, inner[0])
        elif rule.transform == "transpose":
            inner = inner[::-1]
        for name in rule.sources(shape):
            shapes[name] = inner
    shapes = whole_tensors(
        shapes,
        package.name_table(config).splits,
        lambda parts: (sum(part[0] for part in parts), *parts[0][1:]),
    )
    rng, found = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        shape = shapes[name]
        value = rng.standard_normal(shape)
        if len(shape) == 1:
            scale = "norm" in name and name.endswith("weight")
            value = 0.2 * value + (1.0 if scale else 0.5 if "lambda" in name else 0.0)
        else:
            value *= 0.3 if "embed" in name and "patch" not in name else 0.9 * np.prod(shape[1:]) ** -0.5
        found[_published(name)] = value.astype(np.float16)
    return found


def _published(name: str) -> str:
    """Qwen3-VL's canonical names are flat, its published ones nested."""
    name = re.sub(r"^visual\.", "model.visual.", name)
    return re.sub(r"^model\.(?=(embed_tokens|layers|norm)\.)", "model.language_model.", name)


def write(folder: Path, raw: dict[str, Any], seed: int) -> Path:
    """A checkpoint folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(raw, seed), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw) + "\n")
    return folder
