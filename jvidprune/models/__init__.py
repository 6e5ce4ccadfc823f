"""Flax NNX ports: one family a folder, and the parts they share (tower, decoder, cache, loader, generation)."""

from jvidprune.models.checkpoint.load import FAMILIES, LoadedModel, load_model
from jvidprune.models.generate import decode, generate, prefill
from jvidprune.models.tokenizer import Tokenizer, end_ids, load_tokenizer

__all__ = [
    "FAMILIES",
    "LoadedModel",
    "Tokenizer",
    "decode",
    "end_ids",
    "generate",
    "load_model",
    "load_tokenizer",
    "prefill",
]
