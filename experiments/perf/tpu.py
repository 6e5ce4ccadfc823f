"""What XLA makes of the library for TPUs that need not be there: reducers, towers, prefills and a training step.

JAX_PLATFORMS=cpu python -m experiments.perf.tpu [--methods fastvid ...] [--seconds 150]

Needs `pip install libtpu` and no TPU. Rows are saved as they come; a rerun compiles what is missing, so that it can be
ended and run in pieces. Rows that have not been run are named. Rows of an earlier revision stand beside those of now.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from jvidprune import reducers
from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output

from .tpu_cells import TPUCell, run_cell
from .tpu_models import model_cells, run_model
from .tpu_tables import table

Part = Literal["reducers", "models", "batches"]

Cell = tuple[str, Callable[[], dict[str, Any]]]
"""Name of a row, and what compiles it."""


def reducer_names() -> tuple[str, ...]:
    """The methods that make tokens in front of the language model; others are part of prefills."""
    names = []
    for name in reducers.names():
        method: Any = reducers.get(name)
        if not isinstance(method, reducers.Full):
            names.append(name)
    return tuple(names)


def cells(parts: tuple[Part, ...], methods: tuple[str, ...]) -> Iterator[Cell]:
    """All rows of some parts, in the order in which they are run."""
    for part in parts:
        if part == "models":
            yield from ((cell.key, lambda cell=cell: run_model(cell)) for cell in model_cells())
            continue
        for method in methods or reducer_names():
            for ratios in (1,) if part == "batches" else (1, 8):
                one = TPUCell(method, ratios, batch=8 if part == "batches" else 1)
                yield one.key, lambda one=one: run_cell(one)


def main(
    methods: tuple[str, ...] = (),
    parts: tuple[Part, ...] = ("reducers", "models", "batches"),
    seconds: float = float("inf"),
    json_file: Path = Path("experiments/perf/tpu.json"),
    markdown: Path = Path("experiments/perf/tpu.md"),
    again: bool = False,
) -> None:
    """Compiles what the JSON does not hold yet and writes both files.

    Args:
      methods: registry names; all by default.
      parts: reducers at one and eight ratios, models on their slices, reducers on eight videos.
      seconds: begin no row after so many.
      json_file: where rows are kept.
      markdown: the table.
      again: compile rows that are there once more.
    """
    began = time.monotonic()
    content: dict[str, Any] = {"jax": jax.__version__, "rows": {}, "before": {}}
    if json_file.exists():
        content = json.loads(json_file.read_text())
    wanted = list(cells(("reducers", "models", "batches"), ()))
    for key, run in cells(parts, methods):
        if key in content["rows"] and not again:
            continue
        if time.monotonic() - began > seconds:
            break
        try:
            content["rows"][key] = run()
        except JvidpruneError as error:
            content["rows"][key] = {"refused": str(error)}
        except jax.errors.JaxRuntimeError as error:
            content["rows"][key] = {"refused": f"XLA: {str(error).splitlines()[0][:200]}"}
        print(key, {k: v for k, v in content["rows"][key].items() if k != "messages"}, flush=True)
        _write(json_file, json.dumps(content, indent=1) + "\n")
    _write(markdown, table(content, [key for key, _ in wanted]))


def _write(path: Path, text: str) -> None:
    with atomic_output(path) as part:
        part.write_text(text)


if __name__ == "__main__":
    tyro.cli(main)
