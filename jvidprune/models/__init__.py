"""Flax NNX ports: one family a folder, and the parts they share (tower, decoder, cuts, cache, loader, generation).

Names are imported on first use: a reducer that names a rule of `cut_rules` loads no model. A module and what it defines
may share a name (`generate.generate`, `prefill.prefill`); such functions are imported from their modules.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jvidprune.models.checkpoint.load import LoadedModel, load_model
    from jvidprune.models.family import Family, register
    from jvidprune.models.tokenizer import Tokenizer, end_ids, load_tokenizer

_SOURCES = {
    "checkpoint.load": ("LoadedModel", "load_model"),
    "family": ("Family", "register"),
    "tokenizer": ("Tokenizer", "end_ids", "load_tokenizer"),
}

__all__ = [
    "Family",
    "LoadedModel",
    "Tokenizer",
    "end_ids",
    "load_model",
    "load_tokenizer",
    "register",
]


def __getattr__(name: str) -> Any:
    for module, names in _SOURCES.items():
        if name in names:
            return getattr(importlib.import_module(f"jvidprune.models.{module}"), name)
    raise AttributeError(f"module 'jvidprune.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
