"""What the report of a sweep says of counts: accuracies drawn against any of them, and a table of all."""

from typing import Any, NamedTuple

from jvidprune.evals.counts import AXES, COUNTS_HEAD, Against, counts_row, known_axes
from jvidprune.evals.matching import MATCHED_HEAD, UNITS, unreached
from jvidprune.evals.plan import BASELINES
from jvidprune.evals.results import SweepTable
from jvidprune.viz.sweep_plots import retention_plot


class Curve(NamedTuple):
    """Accuracies against one of the counts, and its place in the switch."""

    key: Against
    text: str
    shown: bool
    svg: str


def shown_axis(table: SweepTable, against: Against) -> Against:
    """What is drawn at first: what was asked for, if the records of the run tell it of every method."""
    return against if against in known_axes(table.counts) else "tokens"


def curves(table: SweepTable, against: Against = "tokens") -> list[Curve]:
    """A plot for everything that the records of a run tell; the one asked for is shown, else the first."""
    known, first = known_axes(table.counts), shown_axis(table, against)
    # Older records know the tokens at the input alone.
    keys = known or [first]
    return [Curve(key, AXES[key].button, key == first, retention_plot(table, key)) for key in keys]


def counts_part(table: SweepTable, against: Against = "tokens") -> dict[str, Any]:
    """What the page's template reads of counts."""
    names = BASELINES | table.titles
    rows = [counts_row(table.counts[run], names.get(run[0], run[0])) for run in table.runs if run in table.counts]
    part = {"curves": curves(table, against), "counts": rows, "counts_head": COUNTS_HEAD}
    match = table.identity.get("match")
    return part | {
        "matched": [one.texts(names.get(run[0], run[0])) for run, one in table.matched.items()],
        "matched_head": MATCHED_HEAD,
        "unit": UNITS[match][0] if match else "",
        "out_of_reach": unreached(table.refused),
    }
