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


def check_published(folder: Path, llm: VideoLLM) -> None:
    """Refuses a folder in whose place `publish` would delete files that it links to, before the work for it.

    Args:
      folder: as `publish` gets it.
      llm: whose files are linked to.

    Raises:
      JvidpruneError: files of the model lie in the folder.
    """
    source = llm.loaded.folder
    try:
        targets = [place.resolve() for place in (folder, _part(folder))]
        files = [source.resolve(), *(place for file in source.iterdir() for place in _way(file))]
    except (OSError, RuntimeError) as error:
        raise JvidpruneError(f"cannot write {folder}: {reason(error)}.") from error
    if any(file.is_relative_to(target) for file in files for target in targets):
        raise JvidpruneError(
            f"cannot write {folder}: files of the model {source}, to which it would link, lie there; name another one."
        )


def publish(folder: Path, llm: VideoLLM, method: AOT, ratio: float) -> Path:
    """A checkpoint folder that reduces with the method: links to the model's files, and settings of its own.

    Args:
      folder: replaced if it is there.
      llm: whose files are linked to, so that they stay where they are.
      method: from `CostTrainer.run`.
      ratio: that holds unless another one is asked for.

    Raises:
      JvidpruneError: a folder that cannot be written to, or that holds files of the model.
    """
    check_published(folder, llm)
    part, declared = _part(folder), load_declared(llm.loaded.folder)
    pruning = SavedPruning(method, ratio, llm.loaded.family, llm.settings.convention, llm.settings.mrope_rule)
    text = declared._replace(pruning=pruning).text()
    try:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        for name, file in _linked(llm.loaded.folder).items():
            (part / name).symlink_to(file)
        (part / FILE).write_text(text, encoding="utf-8")
        if folder.is_dir():
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise JvidpruneError(f"cannot write {folder}: {reason(error)}.") from error
    return folder


def _part(folder: Path) -> Path:
    """Where a folder is made before it takes its place."""
    return folder.with_name(f".{folder.name}.part")


def _way(file: Path) -> list[Path]:
    """A file, what it links to, and so on to the file itself."""
    found = [file.parent.resolve() / file.name]
    while found[-1].is_symlink() and len(found) < _LONGEST:
        following = found[-1].parent / found[-1].readlink()
        found.append(following.parent.resolve() / following.name)
    return found


_LONGEST = 40
"""Links that an operating system follows at most."""


def _linked(source: Path) -> dict[str, Path]:
    """The files of a checkpoint by name, where they lie themselves: links to links would end with any of them."""
    return {file.name: file.resolve() for file in source.iterdir() if file.is_file() and file.name != FILE}
