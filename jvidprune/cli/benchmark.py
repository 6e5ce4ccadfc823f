"""The procedural benchmark's verbs."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from jvidprune.cli.console import Console
from jvidprune.fields import Range, checked
from jvidprune.files import check_folder
from jvidprune.procedural.benchmark import Procedural, Split

# Clips that the text-only baseline is fitted on; only their questions are made.
_FITTED = 8000


def export(folder: Path, split: Split, clips: int, settings: dict[str, Any], *, console: Console) -> dict[str, Any]:
    """Writes clips and annotations."""
    from jvidprune.procedural.export import export as write

    _check(clips)
    task = Procedural(split, clips, **settings)
    check_folder(folder)
    with console.working():
        path = write(task, folder, progress=console.task("clips", clips))
    return {"path": str(path), "clips": clips, "questions": sum(len(task[i].questions) for i in range(clips))}


def baselines(split: Split, clips: int, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Chance and text-only guessing, as records and as a table."""
    from jvidprune.procedural.baselines import baselines as measure
    from jvidprune.procedural.baselines import table

    _check(clips)
    fitted = Procedural("validation" if split == "train" else "train", _FITTED, **settings)
    rows = measure(fitted, Procedural(split, clips, **settings))
    return [dataclasses.asdict(row) for row in rows], table(rows)


def _check(clips: int) -> None:
    checked(clips, Annotated[int, Range(1, 1_000_000)], "clips")
