"""All comparers, asked in this order whether they recognise a file."""

import importlib

from jvidprune.parity.core import Comparer

_MODULES = (
    "visionzip",
    "divprune",
    "scissor",
    "tome",
    "grids",
    "cdpruner",
    "vcast",
    "qwen_norm",
    "evs",
    "vidcom2",
    "holov",
    "dycoke",
    "fastv",
    "dart",
    "information_horizon",
    "pyramiddrop",
    "sparsevlm",
    "framefusion",
    "mod",
    "flashvid_cut",
    "flashvid",
    "flashvid_hooks",
    "fastvid",
    "holitom",
    "prunevid",
    "preprocess",
    "ottvid",
    "aot",
    "stop",
    "stts",
    "stts_tower",
)


def comparers() -> list[Comparer]:
    """Every comparer, imported when asked for; each module lists its own in `COMPARERS`."""
    found: list[Comparer] = []
    for name in _MODULES:
        found += importlib.import_module(f"jvidprune.parity.{name}").COMPARERS
    return found
