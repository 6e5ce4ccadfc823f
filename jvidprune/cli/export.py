"""`jvidprune export`: a checkpoint with the settings of a reducer beside it."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

from jvidprune.cli.ask import RATIO
from jvidprune.cli.options import OUTPUT, Common, ConventionName, MropeRuleName, print_json
from jvidprune.errors import JvidpruneError

if TYPE_CHECKING:
    from jvidprune.cli.console import Console


@dataclasses.dataclass(frozen=True)
class ExportChoice:
    """What goes into the new folder."""

    reducer: str | None = None
    """Method with settings that goes into jvidprune_config.json; by default the file is copied if there is one."""
    ratio: float | None = None
    """Retention ratio in (0, 1] that goes with it; by default 0.1."""
    positions: Literal["renumbered", "original"] | None = None
    """Of kept tokens; goes with the reducer, or without one holds for every method on the checkpoint."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Store parameters so; by default as each is stored."""
    pooling_head: str | None = None
    """Folder or hub id of the original SigLIP, whose pooling head is to be part of a LLaVA checkpoint."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    convention: ConventionName | None = None
    """That videos are read in, which goes into jvidprune_config.json with the reducer."""
    mrope_rule: MropeRuleName | None = None
    """Of the Qwen-VL families, likewise."""
    allow_code: bool = False
    """Import the module of a method that is not jvidprune's, where the checkpoint's own file names one."""


CHOICE = ExportChoice()


def export(
    model: Annotated[str, Positional],
    folder: Annotated[Path, Positional],
    /,
    *,
    choice: Annotated[ExportChoice, OmitArgPrefixes] = CHOICE,
    out: Common = OUTPUT,
) -> None:
    """Write a checkpoint with pruning settings beside it, in the layout and with the tensor names other tools read.

    Args:
      model: checkpoint folder or hub id.
      folder: to create.
    """
    record = write(model, folder, choice, console=out.console())
    if out.json:
        print_json(record)
    else:
        print(record["path"])


def write(model: str, folder: Path, choice: ExportChoice, *, console: "Console") -> dict[str, Any]:
    """Loads, checks that the model can give what the reducer needs, and writes.

    `positions` become a setting of the reducer, or without one the declaration of the new folder; the declaration of
    the source's folder is taken over.

    Raises:
      JvidpruneError: anything wrong with the checkpoint, the reducer or the folder, before something is written.
    """
    from jvidprune.files import check_folder
    from jvidprune.llm.folder import family_settings
    from jvidprune.models.checkpoint.export import exact_dtype, export_model
    from jvidprune.models.checkpoint.load import load_model, read_config
    from jvidprune.models.evidence import check_evidence
    from jvidprune.reducers.registry import for_model
    from jvidprune.reducers.serialise import FILE, SavedPruning, load_declared, load_settings
    from jvidprune.reducers.writing import expression
    from jvidprune.stts.attach import EVIDENCE
    from jvidprune.stts.saved import read_stts, released_scorer
    from jvidprune.tokens import QUESTION

    if choice.reducer is None and choice.ratio is not None:
        raise JvidpruneError(
            f"the ratio {choice.ratio:g} goes into a file of settings with a method: name it with --reducer."
        )
    for what, name in (("convention", choice.convention), ("M-RoPE rule", choice.mrope_rule)):
        if choice.reducer is None and name is not None:
            raise JvidpruneError(
                f"the {what} {name} goes into a file of settings with a method: name it with --reducer (none keeps all "
                "tokens)."
            )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JvidpruneError(f"cannot export to {folder}: it exists and is not empty.")
    check_folder(folder)
    family, config, source = read_config(model, choice.revision)
    # Conventions and rules that the family does not have are refused.
    family_settings(family, source, choice.convention, choice.mrope_rule)
    pruning = None
    if choice.reducer is not None:
        method: Any = for_model(choice.reducer, config)
        if choice.positions is not None:
            method = dataclasses.replace(method, positions=choice.positions)
        ratio = RATIO if choice.ratio is None else choice.ratio
        reading = {"convention": choice.convention, "mrope_rule": choice.mrope_rule}
        pruning = SavedPruning(method, ratio, family, **reading)
    known = load_settings(source, allow_code=choice.allow_code) if choice.reducer is None else load_declared(source)
    if choice.reducer is None and choice.positions is not None:
        known = known._replace(positions=choice.positions)
    known = known._replace(pruning=pruning or known.pruning)
    extra = {} if choice.reducer is None and choice.positions is None else {FILE: known.text()}
    with console.working():
        bar = console.task("loading the model")
        loaded = load_model(
            model,
            dtype=exact_dtype(model, choice.revision),
            revision=choice.revision,
            pooling_head=choice.pooling_head,
            progress=lambda done, total, _: bar(done, total),
        )
        # Of a hub id the folder has its weights only now.
        source = loaded.folder
        if pruning is not None:
            heads = loaded.config.vision.heads
            scored = read_stts(source, heads=heads) or released_scorer(source, heads)
            provides = loaded.model.provides | (EVIDENCE if scored else frozenset())
            check_evidence(family, pruning.reducer.needs - QUESTION, provides, None)
        console.start("writing")
        path = export_model(loaded, folder, dtype=choice.dtype, extra=extra)
    files = sorted(file.name for file in path.iterdir())
    return {
        "path": str(path),
        "family": family,
        "files": files,
        "pruned": known.pruning is not None,
        "reducer": None if known.pruning is None else expression(known.pruning.reducer),
        "positions": known.positions,
    }
