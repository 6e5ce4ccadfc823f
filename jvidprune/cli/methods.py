"""`jvidprune methods`: the reducers and what they promise."""

from typing import TYPE_CHECKING, Any

from jvidprune.cli.options import OUTPUT, Common, print_json

if TYPE_CHECKING:
    from jvidprune.cli.console import Console


def methods(*, out: Common = OUTPUT) -> None:
    """List the reducers: paper, the evidence they need, whether they merge and nest; reconstructions are marked."""
    from dataclasses import asdict
    from typing import Any

    from jvidprune.reducers.registry import framed, listing

    rows: list[dict[str, Any]] = [
        asdict(info) | {"label": info.label, "needs": sorted(needs), "frames": info.name in framed()}
        for info, needs in listing()
    ]
    if out.json:
        print_json(rows)
    elif out.quiet:
        print("\n".join(row["name"] for row in rows))
    else:
        show_methods(out.console(), rows)


def show_methods(console: "Console", rows: list[dict[str, Any]]) -> None:
    """Every method in three lines: name and paper, what it does, what it needs and promises."""
    from rich.padding import Padding

    from jvidprune.cli.console import marked

    for row in rows:
        paper = f"arXiv {row['paper']}" if row["paper"] != "-" else ""
        console.print(f"[bold]{row['name']}[/bold]  {marked(row['label'])}  [dim]{paper}[/dim]", plain=True)
        console.print(Padding(marked(row["summary"]), (0, 0, 0, 2)), plain=True)
        facts = [f"needs {', '.join(row['needs'])}" if row["needs"] else "needs the features alone"]
        facts.append("merges tokens" if row["merges"] else "selects tokens")
        if row["frames"]:
            facts = ["needs the frames and a model", "encodes other frames"]
        facts += ["no public code"] * (row["provenance"] == "reconstruction")
        facts += ["nested in the budget"] * row["nested"] + ["exact count"] * row["exact"]
        console.print(Padding(f"[dim]{marked(' · '.join(facts))}[/dim]", (0, 0, 0, 2)), plain=True)
