"""`jvidprune parity`: golden files of the reference implementations through the port."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from jvidprune.cli.options import OUTPUT, Common, Output, QuantiseName, print_json
from jvidprune.errors import JvidpruneError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jvidprune.parity.core import FileReport


def parity(
    folder: Annotated[Path, Positional],
    /,
    *,
    model: bool = False,
    quantise: QuantiseName | None = None,
    out: Common = OUTPUT,
) -> None:
    """Run a folder of golden .npz files through the port and compare.

    Args:
      folder: golden files; with `--model` a tiny checkpoint folder with io*.npz.
      model: the folder is a checkpoint.
      quantise: with `--model`, measure how far bfloat16, and the language model's matrices in one byte a weight, are
        from the float32 reference; no tolerance is claimed.
    """
    from jvidprune.parity.registry import reports

    if quantise is not None:
        if not model:
            raise JvidpruneError("quantised weights are those of a model: add --model and its folder.")
        return _deviations(folder, quantise, out)
    found = reports(folder, model=model)
    passed = parity_tables(found, as_json=out.json, quiet=out.quiet)
    if not passed:
        sys.exit(1)


def _deviations(folder: Path, quantise: QuantiseName, out: Output) -> None:
    """Prints how far quantised weights lead from the reference."""
    from rich import box
    from rich.table import Table

    from jvidprune.parity.quantised import deviations

    found = deviations(folder, quantise)
    if out.json:
        return print_json([row._asdict() for row in found])
    caption = "logits: |ours - theirs| / |theirs| over all; tokens: of the greedy answers, in the same place"
    table = Table(box=box.SIMPLE_HEAD, title="distance from the float32 reference", caption=caption)
    for name in ("file", "model", "held in", "logits", "from bfloat16", "best tokens", "greedy tokens"):
        table.add_column(name, justify="left" if name in ("file", "model", "held in") else "right", overflow="fold")
    for row in found:
        near = "" if row.from_bfloat16 is None else f"{row.from_bfloat16:.2%}"
        tokens = f"{row.best:.1%}", "none" if row.tokens == 0 else f"{row.greedy} of {row.tokens}"
        table.add_row(row.file, row.family, row.held, f"{row.logits:.2%}", near, *tokens)
    out.console().print(table)


def parity_tables(reports: "Iterable[FileReport]", *, as_json: bool, quiet: bool) -> bool:
    """Prints one table over all reports; True if every file passed."""
    import dataclasses
    import json

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from jvidprune.cli.console import marked

    styles = {"ok": "green", "mismatch": "bold red", "not compared": "red"}
    table = Table(box=box.SIMPLE_HEAD, title="parity with the reference implementations")
    for name, justify in [
        ("file", "left"),
        ("method", "left"),
        ("compared", "left"),
        ("largest deviation", "right"),
        ("allowed", "right"),
        ("verdict", "left"),
        ("note", "left"),
    ]:
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    records, counts, all_passed = [], dict.fromkeys(styles, 0), True
    for report in reports:
        all_passed &= report.passed
        for number, row in enumerate(report.rows):
            counts[row.verdict] += 1
            records.append({"file": report.file, "method": report.method} | dataclasses.asdict(row))
            table.add_row(
                marked(report.file) if number == 0 else "",
                report.method if number == 0 else "",
                marked(row.what),
                "" if row.deviation is None else f"{row.deviation:.3g}",
                "" if row.limit is None else f"{row.limit:.3g}",
                f"[{styles[row.verdict]}]{row.verdict}[/]",
                marked(row.note),
            )
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count or verdict == "ok")
    if as_json:
        print(
            json.dumps(
                {"passed": all_passed, "counts": counts, "rows": records}, indent=1, allow_nan=False, default=str
            )
        )
        return all_passed
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width)
    if not quiet:
        console.print(table)
    console.print(f"[bold {'green' if all_passed else 'red'}]{'passed' if all_passed else 'failed'}[/]: {summary}")
    return all_passed
