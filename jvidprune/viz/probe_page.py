"""The report of a probe: a page in the style of a sweep's, with a table for each ratio."""

from collections.abc import Mapping
from typing import NamedTuple

from jvidprune.evals.probe.measures import MEASURES
from jvidprune.evals.probe.table import BASELINES, ProbeTable, Run, Value
from jvidprune.viz.pages import render
from jvidprune.viz.sweep_style import css_variables


class ProbeColumn(NamedTuple):
    """A column of the table: one measure, or kept and merged tokens of a kind of object."""

    head: str
    measures: tuple[str, ...]

    def text(self, values: Mapping[str, Value], intervals: bool) -> str:
        """The cell of a run."""
        found = [values[name] for name in self.measures]
        number = "+".join(map(str, found)) if str(found[0]) != "–" else "–"
        return f"{number} {found[0].bounds}".strip() if intervals else number

    @property
    def narrow(self) -> bool:
        """Whether it stands in narrow tables too."""
        return len(self.measures) > 1 or self.measures[0] in ("found", "purity", "attribute", "position", "count")

    @property
    def tip(self) -> str:
        """What it is."""
        return " ".join(MEASURES[name].text for name in self.measures)


COLUMNS = (
    ProbeColumn("object", ("object_kept", "object_merged")),
    ProbeColumn("rare", ("rare_kept", "rare_merged")),
    ProbeColumn("needle", ("needle_kept", "needle_merged")),
    *(ProbeColumn(one.short, (name,)) for name, one in MEASURES.items() if not name.endswith(("_kept", "_merged"))),
)
"""Columns of the tables in terminals and pages."""


class _Cell(NamedTuple):
    text: str
    bounds: str


class _Row(NamedTuple):
    name: str
    base: bool
    tokens: str
    cells: list[_Cell]


class _Part(NamedTuple):
    key: str
    text: str
    shown: bool
    rows: list[_Row]


def probe_page(table: ProbeTable, *, model: str) -> str:
    """The page as one string: no network, no files beside it.

    Args:
      table: what was found.
      model: what the model is called.
    """
    count = sum(name not in (*BASELINES, *table.controls) for name in dict.fromkeys(name for name, _ in table.runs))
    return render(
        "jvidprune.viz",
        "probe.html",
        palette=css_variables(),
        halo="",
        title=f"What {'one method leaves' if count == 1 else f'{count} methods leave'} of the tokens of {model}",
        subtitle=f"{table.clips} generated clips of {table.visual} tokens, read-outs fitted on {table.fitted} others; "
        "no language model was asked · brackets are 95 % bootstrap intervals over clips",
        columns=COLUMNS,
        measures=MEASURES,
        parts=[
            _Part(f"{r:g}", f"{100 * r:g} %", r == table.first, [_row(table, run) for run in table.at(r)])
            for r in table.ratios
        ],
        refused=[(table.titles.get(name, name), why) for name, why in table.refused.items()],
    )


def _row(table: ProbeTable, run: Run) -> _Row:
    values = table.values[run]
    cells = [_Cell(column.text(values, False), values[column.measures[0]].bounds) for column in COLUMNS]
    base = run[0] in BASELINES or run[0] in table.controls
    tokens = f"{table.tokens[run]:,.1f}" if table.tokens[run] else ""
    return _Row(table.titles.get(run[0], run[0]), base, tokens, cells)
