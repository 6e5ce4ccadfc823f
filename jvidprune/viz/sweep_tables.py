"""The tables of accuracies in the report of a sweep: rows and cells with their tips and tints."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jvidprune.evals.controls import OUTCOMES, sentence
from jvidprune.evals.metrics import FULL, Cell
from jvidprune.evals.plan import BASELINES, BLIND, SINGLE
from jvidprune.evals.results import SweepTable
from jvidprune.viz.sweep_plots import swept
from jvidprune.viz.sweep_style import css_colour, series_styles


class RatioColumn(NamedTuple):
    """A column, and the button of a table by categories."""

    key: str
    text: str
    shown: bool


class _Shown(NamedTuple):
    """A cell of a table; without an accuracy the tip says why there is none."""

    accuracy: str | None
    bounds: str = ""
    tokens: str = ""
    tip: str = ""
    tint: str = ""
    best: bool = False
    mark: str = ""


class _Baseline(NamedTuple):
    """A row of one number, at no ratio."""

    name: str
    cell: _Shown


class _Method(NamedTuple):
    """A row of the table of methods by ratios."""

    method: str
    name: str
    colour: str
    cells: list[_Shown]


class _Held(NamedTuple):
    """A method against the best control at one ratio: change, interval, control, tokens of both, and who is ahead."""

    change: str
    bounds: str
    control: str
    tokens: str
    outcome: str
    tip: str


class _Against(NamedTuple):
    """A row of the table against the controls; None where a method has no answers."""

    name: str
    cells: list[_Held | None]


class _Matrix(NamedTuple):
    """Any two methods at one ratio: points of the row's method over the column's."""

    ratio: RatioColumn
    names: list[str]
    rows: list[tuple[str, list[_Shown | None]]]


class _Categories(NamedTuple):
    """A row of a table by categories."""

    name: str
    base: bool
    cells: list[_Shown | None]


class CategoryTable(NamedTuple):
    """Methods by categories at one ratio."""

    ratio: RatioColumn
    rows: list[_Categories]


def shown_name(table: SweepTable, method: str) -> str:
    """How a method is written for people."""
    return BASELINES.get(method, table.titles.get(method, method))


def amount(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(ratio: float) -> str:
    """A retention ratio as in "10 %"."""
    return f"{100 * ratio:g} %"


def interval(cell: Cell) -> str:
    """The 95 % interval of an accuracy in whole percent."""
    return f"[{100 * cell.low:.0f}, {100 * cell.high:.0f}]"


def baseline_rows(table: SweepTable) -> list[_Baseline]:
    """What needs no ratio: all tokens, one frame, no video."""
    rows = []
    for name, ratio in ((FULL, 1.0), (SINGLE, 1.0), (BLIND, 0.0)):
        cell = table.cell(name, ratio)
        if cell is not None:
            rows.append(_Baseline(shown_name(table, name), _number(cell)))
    return rows


def headline_rows(table: SweepTable) -> list[_Method]:
    """Methods by ratios: accuracy and its interval, tinted by the accuracy relative to the unpruned model."""
    ratios, methods = table.ratios, swept(table)
    styles = series_styles(methods)
    best = {r: max((c.accuracy for m in methods if (c := table.cell(m, r))), default=-1.0) for r in ratios}
    rows = []
    for method in methods:
        cells = []
        for ratio in ratios:
            cell = table.cell(method, ratio)
            if cell is None:
                cells.append(_Shown(None, tip=table.refused.get(method, {}).get(ratio, "")))
            else:
                tip = f"{_relative(cell)} of unpruned · {cell.kept:,.1f} tokens · prompt {cell.prompt:,.0f}"
                standing = table.standings.get((method, ratio))
                mark = "" if standing is None or standing.outcome == "beats" else "†"
                effect = table.effects.get((method, ratio))
                mark += "‡" if effect is not None and effect.flags else ""
                tip += "" if standing is None else f" · {OUTCOMES[standing.outcome]}"
                shown = {"tip": tip, "tint": _tint(cell), "best": cell.accuracy == best[ratio], "mark": mark}
                cells.append(_number(cell)._replace(**shown))
        rows.append(_Method(method, shown_name(table, method), css_colour(styles[method]), cells))
    return rows


def control_rows(table: SweepTable) -> list[_Against]:
    """Methods by ratios: the change from the best control at as many tokens."""
    rows = []
    for method in swept(table):
        standings = [table.standings.get((method, ratio)) for ratio in table.ratios]
        cells: list[_Held | None] = []
        for standing in standings:
            if standing is None:
                cells.append(None)
                continue
            rival, found = standing.rival, standing.rival.difference
            at = "" if rival.run[1] == standing.run[1] else f" at {percent(rival.run[1])}"
            bounds = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            tokens = f"{standing.kept:,.0f} : {rival.kept:,.0f} tokens"
            control = shown_name(table, rival.run[0]) + at
            tip = f"{sentence(standing, table.titles)}: {OUTCOMES[standing.outcome]}"
            cells.append(_Held(f"{100 * found.change:+.1f}", bounds, control, tokens, standing.outcome, tip))
        if any(cells):
            rows.append(_Against(shown_name(table, method), cells))
    return rows


def _number(cell: Cell) -> _Shown:
    return _Shown(f"{100 * cell.accuracy:.1f}", interval(cell), f"{cell.kept:,.0f} tokens")


def _relative(cell: Cell) -> str:
    return "–" if math.isnan(cell.relative) else f"{100 * cell.relative:.0f} %"


def _tint(cell: Cell) -> str:
    """Background by relative accuracy: nothing at 100 %, warm below, cool above; strongest at 50 % and 150 %."""
    if math.isnan(cell.relative):
        return ""
    strength = min(1.0, abs(1.0 - cell.relative) / 0.5)
    colour = "warm" if cell.relative < 1 else "cool"
    return f"background:color-mix(in srgb,var(--{colour}) {70 * strength:.0f}%,transparent)"


def category_rows(table: SweepTable, ratio: float, columns: Sequence[str]) -> list[_Categories]:
    """Baselines and methods at a ratio by categories, and the mean over these."""
    rows = []
    for method, at in [(FULL, 1.0), *((m, ratio) for m in swept(table)), (SINGLE, 1.0), (BLIND, 0.0)]:
        cells = [table.cell(method, at, name) for name in columns]
        if cells[0] is None:
            continue
        base = method in BASELINES
        shown = [
            None
            if cell is None
            else _Shown(
                f"{100 * cell.accuracy:.0f}",
                tip=f"{interval(cell)}, {_relative(cell)} of unpruned, {amount(cell.questions, 'question')}",
                tint="" if base else _tint(cell),
            )
            for cell in cells
        ]
        mean = table.category_mean(method, at)
        tip = "mean over the categories, each counting alike"
        shown.append(None if mean is None else _Shown(f"{100 * mean:.0f}", tip=tip))
        rows.append(_Categories(shown_name(table, method), base, shown))
    return rows


def matrix(table: SweepTable, shown: RatioColumn, ratio: float) -> _Matrix:
    """Any two methods at a ratio; a difference that interval and corrected test establish is bold."""
    methods = [method for method in swept(table) if table.cell(method, ratio) is not None]
    found = {}
    for pair in table.pairs.get(ratio, ()):
        found[pair.second[0], pair.first[0]], found[pair.first[0], pair.second[0]] = pair, pair.turned()
    rows = []
    for method in methods:
        cells = []
        for other in methods:
            pair = found.get((method, other))
            if pair is None:
                cells.append(None)
                continue
            bounds = f"[{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]"
            tip = f"{shown_name(table, method)} over {shown_name(table, other)}: {bounds}, right alone {pair.gained:,} "
            tip += f"and {pair.lost:,} of {pair.questions:,}, p = {pair.p:.2g}, corrected {pair.adjusted or 0.0:.2g}"
            cells.append(_Shown(f"{100 * pair.change:+.1f}", tip=tip, best=pair.established))
        rows.append((shown_name(table, method), cells))
    return _Matrix(shown, [shown_name(table, method) for method in methods], rows)
