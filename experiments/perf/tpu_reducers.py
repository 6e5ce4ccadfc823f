"""All reducers compiled for one TPU chip, one and eight ratios: compile time, temporaries, bytes moved.

JAX_PLATFORMS=cpu python -m experiments.perf.tpu_reducers [--methods fastvid ...] [--before earlier.json]

Needs `pip install libtpu` and no TPU. Rows are saved as they come; a rerun compiles what is missing. Rows of an earlier
revision, measured by the same command there, stand beside them.
"""

import json
from pathlib import Path
from typing import Any

import jax
import tyro

from jvidprune import reducers
from jvidprune.files import atomic_output

from .tpu_cells import TPUCell, run_cell

COLUMNS = ["HBM GB", "with VMEM", "XLA's count", "temporaries MiB", "outputs MiB", "compile s", "CPU s"]


def table(content: dict[str, Any]) -> str:
    """The rows as markdown."""
    before, rows = content["before"], content["rows"]
    lines = [
        f"# Reducers on a TPU v5e chip, compiled and not run (jax {content['jax']})\n",
        "T=32, N=196, D=3584, bfloat16, batch 1; eight ratios 0.05 to 0.40, one is 0.30. Bytes are read and written: "
        "of HBM, and of HBM and VMEM together, with bodies of loops counted as often as they run, and as XLA's cost "
        "analysis counts them, each body once. Where data decide how often a loop runs, the program names a number; a "
        "star marks programs with loops that do not, counted once. In brackets: commit 287fd3c, whose output had room "
        "for the tokens asked for and not for the next eighth of the video that `reduce` makes room for.\n",
        "Eight / one: HBM bytes of eight ratios without their outputs, over all bytes of one. Compile times are of a "
        "machine of two cores that ran other work as well; CPU seconds are those of the compiler's threads.\n",
        f"| method | ratios | {' | '.join(COLUMNS)} | eight / one |",
        f"| --- | ---: | {' | '.join('---:' for _ in COLUMNS)} | ---: |",
    ]
    for key, row in rows.items():
        method, ratios = key.split()[0], key.split()[1].partition("=")[2]
        if "refused" in row:
            lines.append(f"| {method} | {ratios} | {row['refused']} |{' |' * len(COLUMNS)}")
            continue
        cells = []
        for name, unit, digits in (
            ("main", 1e9, 2),
            ("total", 1e9, 2),
            ("xla", 1e9, 2),
            ("temporaries", 2**20, 0),
            ("outputs", 2**20, 0),
            ("compile_s", 1, 0),
            ("compile_cpu_s", 1, 0),
        ):
            pair = row, before.get(key)
            now, then = (_value(one, name) / unit if one and name in (*one, "total") else None for one in pair)
            star = "*" if name in ("main", "total") and row["uncounted"] else ""
            cells.append(f"{now:.{digits}f}{star}" + ("" if then is None else f" ({then:.{digits}f})"))
        cells.append(_quotient(rows, before, key))
        lines.append(f"| {method} | {ratios} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _value(row: dict[str, Any], name: str) -> float:
    return row["main"] + row["near"] if name == "total" else row[name]


def _quotient(rows: dict[str, Any], before: dict[str, Any], key: str) -> str:
    single = key.replace("ratios=8", "ratios=1")
    found = []
    for group in (rows, before):
        eight, one = group.get(key), group.get(single)
        if single == key or not eight or not one or "refused" in one:
            return "" if not found else found[0]
        value = (eight["main"] - eight["outputs"]) / one["main"]
        found.append(f"({value:.1f})" if found else f"{value:.1f}")
    return " ".join(found)


def main(
    methods: tuple[str, ...] = (),
    json_file: Path = Path("experiments/perf/tpu.json"),
    markdown: Path = Path("experiments/perf/tpu.md"),
    before: Path | None = None,
) -> None:
    """Compiles what the JSON does not hold yet and writes both files.

    Args:
      methods: registry names; all by default.
      json_file: where rows are kept.
      markdown: the table.
      before: JSON of an earlier revision, kept beside the rows.
    """
    content: dict[str, Any] = {"jax": jax.__version__, "rows": {}, "before": {}}
    if json_file.exists():
        content = json.loads(json_file.read_text())
    if before is not None:
        content["before"] = json.loads(before.read_text())["rows"]
    for method in methods or tuple(reducers.names()):
        for ratios in (1, 8):
            cell = TPUCell(method, ratios)
            if cell.key not in content["rows"]:
                row = content["rows"][cell.key] = run_cell(cell)
                print(f"{cell.key}: {row['main'] / 1e9:.2f} GB, {row['temporaries'] / 2**20:.0f} MiB", flush=True)
            with atomic_output(json_file) as part:
                part.write_text(json.dumps(content, indent=1) + "\n")
            with atomic_output(markdown) as part:
                part.write_text(table(content))


if __name__ == "__main__":
    tyro.cli(main)
