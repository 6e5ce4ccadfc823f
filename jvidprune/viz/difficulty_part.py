"""The report's section on difficulty: accuracies by length of clips, and on the questions that a control misses."""

from typing import NamedTuple

from jvidprune.evals.difficulty import LENGTHS, Hard
from jvidprune.evals.metrics import ALL, FULL, Cell
from jvidprune.evals.paired import apart
from jvidprune.evals.plan import BASELINES, BLIND
from jvidprune.evals.results import SweepTable
from jvidprune.viz.pages import render
from jvidprune.viz.sweep_plots import nearest_ratio


class _Row(NamedTuple):
    """A method, whether it is a baseline, and its cells: text and tip."""

    name: str
    base: bool
    cells: list[tuple[str, str]]


class _Part(NamedTuple):
    """The tables of one ratio; those of the ratio chosen in the page are shown."""

    key: str
    text: str
    shown: bool
    lengths: list[_Row]
    hard: list[_Row]
    counts: str
    apart: str


def difficulty_part(table: SweepTable) -> str:
    """The section, empty where records tell nothing of it."""
    found, first = table.difficulty, nearest_ratio(table)
    names = BASELINES | table.titles
    parts = []
    for ratio in table.ratios:
        hard = found.hard.get(ratio)
        best = None if hard is None else hard.best_two
        parts.append(
            _Part(
                f"{ratio:g}",
                f"{100 * ratio:g} %",
                ratio == first,
                _lengths(table, ratio, names),
                [] if hard is None else _hard(hard, names),
                "" if hard is None else f"{hard.hard:,} hard, {hard.easy:,} easy",
                "" if best is None else f"On the hard ones, {apart(best, table.titles)}.",
            )
        )
    bins = "" if found.lengths.own else f"Bins by the seconds of a clip: {', '.join(LENGTHS)}."
    groups = "The benchmark's own groups of lengths." if found.lengths.own else bins
    return render(
        "jvidprune.viz",
        "difficulty.html",
        parts=parts,
        names=found.lengths.names,
        groups=groups,
        note=found.note,
    )


def _lengths(table: SweepTable, ratio: float, names: dict[str, str]) -> list[_Row]:
    rows = []
    swept = [(method, ratio) for method in table.methods if method not in BASELINES]
    for run in ((FULL, 1.0), *swept, (BLIND, 0.0)):
        cells = [table.difficulty.lengths.cells.get((*run, name)) for name in table.difficulty.lengths.names]
        if any(cell is not None for cell in cells):
            rows.append(_Row(names.get(run[0], run[0]), run[0] in BASELINES, [_cell(cell) for cell in cells]))
    return rows


def _hard(hard: Hard, names: dict[str, str]) -> list[_Row]:
    rows = []
    for (method, ratio, _), one in hard.on_hard.items():
        cells = [_cell(one, bounds=True), _cell(hard.on_easy.get((method, ratio, ALL)), bounds=True)]
        rows.append(_Row(names.get(method, method), method in BASELINES, cells))
    return sorted(rows, key=lambda row: row.base)


def _cell(cell: Cell | None, *, bounds: bool = False) -> tuple[str, str]:
    if cell is None:
        return "–", ""
    interval = f"[{100 * cell.low:.0f}, {100 * cell.high:.0f}]"
    text = f"{100 * cell.accuracy:.1f}" + (f" {interval}" if bounds else "")
    return text, f"{interval}, {cell.questions:,} questions"
