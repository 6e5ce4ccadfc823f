"""Checkpoint folders of given tensors or of what is loaded, and the parameters of models."""

import json

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jvidprune.models import load_model
from jvidprune.models.checkpoint.export import exact_dtype, export_model


def write(folder, tensors, config):
    """A folder in the layout of transformers."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def parameters(model):
    """Arrays of a model by their dotted paths."""
    return {".".join(map(str, path)): np.asarray(p[...]) for path, p in nnx.to_flat_state(nnx.state(model))}


def export_checkpoint(source, out, *, pooling_head=None, **options):
    """Loads a checkpoint with the type it is stored in and exports it; see `export_model` for the options."""
    loaded = load_model(source, dtype=exact_dtype(source), pooling_head=pooling_head)
    export_model(loaded, out, **options)
    return loaded
