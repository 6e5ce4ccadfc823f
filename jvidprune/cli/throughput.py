"""Speed and memory of a sweep's methods on the console."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from jvidprune.cli.console import Console
    from jvidprune.evals.throughput import Throughput


def show_throughput(console: "Console", found: "Sequence[Throughput]", titles: "Mapping[str, str]") -> None:
    """The table and what has to be known of it; nothing where nothing was measured."""
    from jvidprune.cli.console import marked
    from jvidprune.evals.throughput_table import throughput_notes

    if not found:
        return
    console.print(throughput_table(found, titles))
    for note in throughput_notes(found):
        console.print(f"[dim]{marked(note)}[/dim]", plain=True)


def throughput_table(found: "Sequence[Throughput]", titles: "Mapping[str, str]") -> "Table":
    """One question alone, and under it the largest batch that fits: rates, decoded tokens and peak memory."""
    from rich import box
    from rich.table import Table

    from jvidprune.cli.console import marked
    from jvidprune.evals.throughput_table import HEAD, SPEED_HEAD, throughput_rows

    caption = "answers a second from frames, and from tokens that are there; * memory of the compiled programs"
    out = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1))
    for number, name in enumerate((*HEAD, *SPEED_HEAD)):
        out.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for row in throughput_rows(found, titles):
        first, alone, largest = row[: len(HEAD)], row[len(HEAD) :][: len(SPEED_HEAD)], row[-len(SPEED_HEAD) :]
        out.add_row(*map(marked, first), *map(marked, alone))
        out.add_row(*[""] * len(HEAD), *map(marked, largest), style="dim", end_section=True)
    return out
