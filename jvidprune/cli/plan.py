"""`jvidprune plan`: does it fit the chips, what bounds it, and when does the answer begin?"""

import math
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes

from jvidprune.cli.options import OUTPUT, Common, print_json
from jvidprune.cli.plan_rows import PlanChoice, PlanRow, mesh_text, rows
from jvidprune.errors import JvidpruneError

if TYPE_CHECKING:
    from rich.table import Table

CHOICE = PlanChoice()


def plan(*, choice: Annotated[PlanChoice, OmitArgPrefixes] = CHOICE, out: Common = OUTPUT) -> None:
    """Say whether model, video and ratio fit a mesh of named chips, what bounds them, and when the answer begins."""
    if choice.train and not choice.compile:
        raise JvidpruneError("a training step is planned by compiling it: add --compile and a slice, as in v5e:2x4.")
    if choice.compile:
        return _compiled(choice, out)
    found = rows(choice)
    if out.json:
        print_json([row.record() for row in found])
    elif out.quiet:
        print("\n".join("fits" if row.memory.fits else "does not fit" for row in found))
    else:
        console = out.console()
        width = None if console.is_terminal else 120
        console.print(plan_table(found), width=width)
        if len(found) == 1:
            console.print(stages_table(found[0]), width=width)


def _compiled(choice: PlanChoice, out: Common) -> None:
    """Shows the plans as XLA compiles them; JvidpruneError behind the tables for the first that does not fit."""
    from jvidprune.cli.plan_compiled import compiled_rows, compiled_table, messages_table, remedy

    found = compiled_rows(choice)
    if out.json:
        print_json([row.record() for row in found])
    elif out.quiet:
        print("\n".join("fits" if row.compiled.fits else "does not fit" for row in found))
    else:
        console = out.console()
        for row in found:
            console.print(compiled_table(row))
            console.print(messages_table(row))
    for row in found:
        if not row.compiled.fits:
            raise JvidpruneError(remedy(row, choice, math.prod(row.paper.mesh.values())))


def plan_table(found: list[PlanRow]) -> "Table":
    """A row a plan: does it fit, what bounds it, when the first token comes."""
    from rich import box
    from rich.table import Table

    from jvidprune.costs.roofline import REACHED_BANDWIDTH, REACHED_FLOPS

    caption = (
        f"GB on one device; times expected at {REACHED_FLOPS:.0%} of peak FLOP/s and {REACHED_BANDWIDTH:.0%} of the "
        "bandwidth, from frames to the first token; decoding the file, compilation and a reducer's many small steps "
        "are not in them"
    )
    cells: dict[str, list[str]] = {
        "chip": [row.chip.name for row in found],
        "mesh": [mesh_text(row.mesh) for row in found],
        "frames": [f"{row.frames}" for row in found],
        "ratio": [f"{row.ratio:g}" for row in found],
    }
    # What is the same everywhere stands above.
    common = {name: column[0] for name, column in cells.items() if len(set(column)) == 1}
    same = ", ".join(
        f"{value} frames" if name == "frames" else value for name, value in common.items() if name != "ratio"
    )
    cells = {name: column for name, column in cells.items() if name not in common or name == "ratio"}
    cells |= {
        "prompt": [f"{row.prompt:,}" for row in found],
        "GB": [f"{row.memory.peak / 1e9:.1f} of {row.memory.available / 1e9:.1f}" for row in found],
        "fits": ["yes" if row.memory.fits else "[bold red]no[/]" for row in found],
        "first token": [f"{1000 * row.first_token:,.0f} ms" for row in found],
        "slowest": [row.bound for row in found],
        "next": [f"{1000 * row.stages[-1].seconds:.1f} ms" for row in found],
    }
    title = found[0].model + (f" · {same}" if same else "")
    table = Table(box=box.SIMPLE_HEAD, title=title, caption=caption, caption_justify="left")
    for name in cells:
        table.add_column(name, justify="left" if name in ("chip", "mesh", "slowest") else "right", no_wrap=True)
    for values in zip(*cells.values(), strict=True):
        table.add_row(*values)
    return table


def stages_table(row: PlanRow) -> "Table":
    """One plan stage by stage: work of one device, seconds of each bound alone, and together."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"{row.chip.title}, {mesh_text(row.mesh)}")
    table.add_column("stage")
    for name in ("TFLOP", "GB moved", "GB sent", "FLOPs ms", "HBM ms", "links ms", "expected ms", "bound"):
        table.add_column(name, justify="right")
    for stage in row.stages:
        amounts = stage.flops / 1e12, stage.bytes / 1e9, stage.sent / 1e9
        seconds = stage.compute, stage.memory, stage.link, stage.seconds
        cells = [f"{amount:,.2f}" for amount in amounts] + [f"{1000 * value:,.2f}" for value in seconds]
        table.add_row("one token more" if stage.name == "token" else stage.name, *cells, stage.bound)
    return table
