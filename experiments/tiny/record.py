"""What a training run leaves beside its weights: settings, learning curves, and the accuracy that it reached."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.tiny.recipe import Recipe
from jvidprune.files import write_table
from jvidprune.training.loop import read_curve

RECORD, CURVES, ACCURACY = "record.json", "curves.csv", "accuracy.csv"


def write_record(
    out: Path,
    run: Path,
    recipe: Recipe,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    measured: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Writes record.json, curves.csv and accuracy.csv.

    Args:
      out: folder of the checkpoint.
      run: folder of the run, with the learning curves.
      recipe: of the run.
      tables: rows of `measure.accuracy_table` by what the model was given, e.g. "all tokens" and "text alone".
      measured: on what they were measured.
      notes: what a reader has to know besides.
    """
    curves = [{"stage": stage.name, **line} for stage in recipe.stages for line in read_curve(run / stage.name)]
    rows = [{"given": given, **row} for given, table in tables.items() for row in table]
    record = {
        "command": "python experiments/train_tiny.py",
        "seed": recipe.seed,
        "sizes": dataclasses.asdict(recipe.sizes),
        "stages": [dataclasses.asdict(stage) for stage in recipe.stages],
        "benchmark": recipe.task.fingerprint(),
        "notes": list(notes),
        "measured_on": dict(measured),
        "accuracy": rows,
        "curve": [
            {name: line[name] for name in ("stage", "step", "loss", "accuracy/all") if name in line} for line in curves
        ],
    }
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_table(out / CURVES, curves)
    write_table(out / ACCURACY, rows)
