"""`jvidprune models`: the model families."""

from typing import TYPE_CHECKING, Any

from jvidprune.cli.options import OUTPUT, Common, print_json

if TYPE_CHECKING:
    from jvidprune.cli.console import Console


def models(*, out: Common = OUTPUT) -> None:
    """List the model families that checkpoints can be loaded for."""
    from jvidprune.models.family import listing

    rows = listing()
    if out.json:
        print_json(rows)
    elif out.quiet:
        print("\n".join(row["family"] for row in rows))
    else:
        show_models(out.console(), rows)


def show_models(console: "Console", rows: list[dict[str, Any]]) -> None:
    """The family table."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
