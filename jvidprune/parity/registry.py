"""All comparers, asked in this order whether they recognise a file, and the reports of a folder."""

import importlib
from collections.abc import Iterator
from pathlib import Path

from jvidprune.errors import JvidpruneError
from jvidprune.parity.core import Comparer, FileReport, run_folder

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


def reports(folder: Path, *, model: bool = False) -> Iterator[FileReport]:
    """Yields one report a file, as each is done.

    Args:
      folder: golden files, or with `model` a checkpoint folder holding io*.npz.
      model: which of the two.

    Raises:
      JvidpruneError: no such folder, or nothing in it to compare.
    """
    if not folder.is_dir():
        raise JvidpruneError(f"no folder {folder}.")
    if model:
        from jvidprune.parity.models import compare_model_folder

        yield from compare_model_folder(folder)
        return
    yield from run_folder(folder, comparers())
