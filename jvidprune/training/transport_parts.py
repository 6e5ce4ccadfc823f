"""The learned parts of AOT's transports: in a method, in files, and beside a model's own files."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array

from jvidprune.errors import JvidpruneError, reason
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.ops.transport import LearnedCost, LearnedMasses
from jvidprune.ops.transport.modules import module_of
from jvidprune.reducers.aot import AOT
from jvidprune.reducers.protocol import title_of
from jvidprune.reducers.serialise import FILE, SavedPruning, load_declared
from jvidprune.weights import Weights

Parts = dict[str, dict[str, Array]]
"""Arrays of the learned parts by "intra_cost", "intra_masses", "inter_cost" and "inter_masses"."""


def trainable(reducer: Any) -> AOT:
    """The method as it is trained, differentiable in its transports.

    Raises:
      JvidpruneError: one whose tokens have no derivative in its transports.
    """
    if not isinstance(reducer, AOT):
        raise JvidpruneError(
            f"a cost is learned through AOT, whose tokens follow its plans; those of {title_of(reducer)} do not."
        )
    return dataclasses.replace(reducer, plan_gradient="through")


def with_parts(method: AOT, parts: Parts) -> AOT:
    """The method with the learned parts in its transports, as modules that may hold traced arrays."""
    changed = {}
    for stage in ("intra", "inter"):
        own = {name: module_of(parts[f"{stage}_{key}"]) for name, key in _PARTS if f"{stage}_{key}" in parts}
        if own:
            changed[f"{stage}_transport"] = dataclasses.replace(getattr(method, f"{stage}_transport"), **own)
    return dataclasses.replace(method, **changed)


_PARTS = (("cost", "cost"), ("marginals", "masses"))


def saved_parts(method: AOT, parts: Parts, folder: Path) -> AOT:
    """Writes each part into its file, "intra_cost.safetensors", and gives the method that reads them, as it is used."""
    changed: dict[str, Any] = {"plan_gradient": "stop"}
    for stage in ("intra", "inter"):
        own = {}
        for name, key in _PARTS:
            if f"{stage}_{key}" in parts:
                arrays = {path: np.asarray(array) for path, array in parts[f"{stage}_{key}"].items()}
                weights = Weights.of(arrays).write(folder.absolute() / f"{stage}_{key}.safetensors")
                own[name] = (LearnedCost if key == "cost" else LearnedMasses)(weights)
        if own:
            changed[f"{stage}_transport"] = dataclasses.replace(getattr(method, f"{stage}_transport"), **own)
    return dataclasses.replace(method, **changed)


def publish(folder: Path, llm: VideoLLM, method: AOT, ratio: float) -> Path:
    """A checkpoint folder that reduces with the method: links to the model's files, and settings of its own.

    Args:
      folder: replaced if it is there.
      llm: whose files are linked to, so that they stay where they are.
      method: from `CostTrainer.run`.
      ratio: that holds unless another one is asked for.

    Raises:
      JvidpruneError: a folder that cannot be written to.
    """
    source, part = llm.loaded.folder.absolute(), folder.with_name(f".{folder.name}.part")
    declared = load_declared(source)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for file in source.iterdir():
            if file.is_file() and file.name != FILE:
                (part / file.name).symlink_to(file)
    except OSError as error:
        raise JvidpruneError(f"cannot write {folder}: {reason(error)}.") from error
    pruning = SavedPruning(method, ratio, llm.loaded.family, llm.settings.convention, llm.settings.mrope_rule)
    (part / FILE).write_text(declared._replace(pruning=pruning).text(), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder
