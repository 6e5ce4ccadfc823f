"""The export verb: a checkpoint with the settings of a reducer beside it."""

import dataclasses
from pathlib import Path
from typing import Any

from jvidprune.cli.console import Console
from jvidprune.cli.run import RATIO
from jvidprune.errors import JvidpruneError
from jvidprune.files import check_folder
from jvidprune.llm.families import family_settings
from jvidprune.models.checkpoint.dtypes import DTypeName
from jvidprune.models.checkpoint.export import exact_dtype, export_model
from jvidprune.models.checkpoint.load import load_model, read_config
from jvidprune.models.evidence import check_evidence
from jvidprune.reducers.protocol import PositionRule
from jvidprune.reducers.registry import BACKBONES, for_model
from jvidprune.reducers.serialise import FILE, SavedPruning, load_settings
from jvidprune.stts.attach import EVIDENCE
from jvidprune.stts.released import released_scorer
from jvidprune.stts.saved import read_stts


def export(
    model: str,
    folder: Path,
    *,
    reducer: str | None,
    ratio: float | None,
    positions: PositionRule | None,
    dtype: DTypeName | None,
    pooling_head: str | None,
    revision: str | None = None,
    convention: str | None = None,
    mrope_rule: str | None = None,
    console: Console,
) -> dict[str, Any]:
    """Loads, checks that the model can give what the reducer needs, and writes.

    `positions` become a setting of the reducer, or without one the declaration of the new folder; the declaration of
    the source's folder is taken over.

    Raises:
      JvidpruneError: anything wrong with the checkpoint, the reducer or the folder, before something is written.
    """
    if reducer is None and ratio is not None:
        raise JvidpruneError(f"the ratio {ratio:g} goes into a file of settings with a method: name it with --reducer.")
    for what, name in (("convention", convention), ("M-RoPE rule", mrope_rule)):
        if reducer is None and name is not None:
            raise JvidpruneError(
                f"the {what} {name} goes into a file of settings with a method: name it with --reducer (none keeps all "
                "tokens)."
            )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JvidpruneError(f"cannot export to {folder}: it exists and is not empty.")
    check_folder(folder)
    family, config, source = read_config(model, revision)
    # Conventions and rules that the family does not have are refused.
    family_settings(family, source, convention, mrope_rule)
    backbone = family if family in BACKBONES else None
    pruning = None
    if reducer is not None:
        method: Any = for_model(reducer, config)
        if positions is not None:
            method = dataclasses.replace(method, positions=positions)
        reading = {"convention": convention, "mrope_rule": mrope_rule}
        pruning = SavedPruning(method, RATIO if ratio is None else ratio, backbone, **reading)
    known = load_settings(source)
    if reducer is None and positions is not None:
        known = known._replace(positions=positions)
    known = known._replace(pruning=pruning or known.pruning)
    extra = {} if reducer is None and positions is None else {FILE: known.text()}
    with console.working():
        bar = console.task("loading the model")
        loaded = load_model(
            model,
            dtype=exact_dtype(model, revision),
            revision=revision,
            pooling_head=pooling_head,
            progress=lambda done, total, _: bar(done, total),
        )
        # Of a hub id the folder has its weights only now.
        source = loaded.folder
        if pruning is not None:
            heads = loaded.config.vision.heads
            scored = read_stts(source, heads=heads) or released_scorer(source, heads)
            provides = loaded.model.provides | (EVIDENCE if scored else frozenset())
            check_evidence(family, pruning.reducer.needs - {"text"}, provides, None)
        console.start("writing")
        path = export_model(loaded, folder, dtype=dtype, extra=extra)
    files = sorted(file.name for file in path.iterdir())
    return {
        "path": str(path),
        "family": family,
        "files": files,
        "pruned": known.pruning is not None,
        "positions": known.positions,
    }
