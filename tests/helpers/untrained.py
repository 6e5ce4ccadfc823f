"""A LLaVA-OneVision with random weights in the published folder layout, for tests of code paths."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.tiny import tokenizer

from experiments.tiny import publish, recipe
from jvidprune.models.checkpoint.folder import UNTRAINED_MARK
from jvidprune.models.llava_onevision import Config, Model

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")

# An odd grid of 7 x 7 patches, so that pooling interpolates.
SMALL = recipe.ModelSizes(vision=(24, 32, 3, 2, 28, 4), text=(32, 48, 3, 4, 2))
# 12 x 12 patches a frame before pooling, 6 x 6 tokens behind it.
LARGE = recipe.ModelSizes(vision=(96, 256, 6, 4, 84, 7), text=(96, 256, 10, 6, 2))


def config_json(sizes=SMALL):
    """config.json with a head of its own and a vocabulary of bytes."""
    raw = recipe.config_json(sizes, tokenizer(SPECIAL))
    text = raw["text_config"] | {"tie_word_embeddings": False, "max_position_embeddings": 32768}
    return raw | {"text_config": text, "tie_word_embeddings": False}


def write(folder: Path) -> Path:
    """Fills a folder with a checkpoint that has SigLIP's pooling head: norms near one, kernels scaled by fan-in."""
    raw = config_json()
    config = Config.from_hf(raw).with_tensors(["vision_tower.vision_model.head.probe", "language_model.lm_head.weight"])
    graph, state = nnx.split(nnx.eval_shape(lambda: Model(config, dtype=jnp.float32)))
    rng, flat = np.random.default_rng(0), nnx.to_flat_state(state)
    values = [(path, value.replace(_draw(path[-1], value.shape, rng))) for path, value in flat]
    publish.write_checkpoint(folder, nnx.merge(graph, nnx.from_flat_state(values)), raw, tokenizer(SPECIAL), frames=8)
    # Published processors leave the number of frames open.
    (folder / "video_preprocessor_config.json").unlink()
    (folder / UNTRAINED_MARK).write_text("The weights in this folder are random.\n")
    return folder


def _draw(name, shape, rng):
    noise = rng.standard_normal(shape)
    if name == "scale":
        noise = 1.0 + 0.1 * noise
    elif name == "bias":
        noise = 0.02 * noise
    elif name == "kernel":
        noise = noise / np.sqrt(shape[-2])
    else:
        noise = 0.5 * noise
    return jnp.asarray(noise, jnp.float32)
