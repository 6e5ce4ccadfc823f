"""Decoders made from weights that stand in a golden file, under the names of the checkpoint."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jvidprune.models.checkpoint.names import decoder_rules
from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_config import DecoderConfig


def decoder_of(weights: Mapping[str, np.ndarray], text: Mapping[str, Any]) -> Decoder:
    """A float32 decoder.

    Args:
      weights: tensors named `layers.0.self_attn.q_proj.weight`, `norm.weight`, ..., with or without `embed_tokens` and
        `lm_head`; a decoder without them has zeros for both.
      text: sizes under the names of a config.json.
    """
    width = text["hidden_size"]
    tensors = dict(weights)
    tensors.setdefault("embed_tokens.weight", np.zeros((8, width), np.float32))
    tied = "lm_head.weight" not in tensors
    sizes = {"vocab_size": len(tensors["embed_tokens.weight"]), "tie_word_embeddings": tied}
    config = DecoderConfig.from_hf({**text, **sizes})
    rules = decoder_rules("m", "lm_head", qkv_bias=config.qkv_bias, qk_norm=config.qk_norm, tied=tied)
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    arrays = {}
    for rule in rules:
        name = rule.source.removeprefix("m.")
        stacked = "{L}" in name
        parts = [tensors[name.replace("{L}", str(layer))] for layer in range(config.layers if stacked else 1)]
        parts = [part.T if rule.transform == "transpose" else part for part in parts]
        arrays[rule.target.removeprefix("lm.")] = jnp.asarray(np.stack(parts) if stacked else parts[0])
    flat = nnx.to_flat_state(state)
    filled = [(path, leaf.replace(arrays[".".join(map(str, path))])) for path, leaf in flat]
    return nnx.merge(graph, nnx.from_flat_state(filled))
