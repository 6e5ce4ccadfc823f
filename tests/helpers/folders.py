"""Checkpoint folders of given tensors, and the parameters of what is loaded from them."""

import json

import numpy as np
from flax import nnx
from safetensors.numpy import save_file


def write(folder, tensors, config):
    """A folder in the layout of transformers."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def parameters(model):
    """Arrays of a model by their dotted paths."""
    return {".".join(map(str, path)): np.asarray(p[...]) for path, p in nnx.to_flat_state(nnx.state(model))}
