"""Tables of a sweep as Markdown, for files that people read."""

from collections.abc import Iterable, Sequence

from jvidprune.evals.metrics import ALL, FULL, Cell
from jvidprune.evals.paired import Difference
from jvidprune.evals.plan import BASELINES, BLIND, SINGLE
from jvidprune.evals.results import SweepTable


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def accuracy_table(table: SweepTable) -> str:
    """Accuracy in per cent with its interval, methods by ratios, the baselines first."""
    rows = []
    for name, ratio in ((FULL, 1.0), (SINGLE, 1.0), (BLIND, 0.0)):
        cell = table.cell(name, ratio)
        if cell is not None:
            rows.append([BASELINES[name], _interval(cell), *[""] * (len(table.ratios) - 1)])
    for method in table.methods:
        if method not in BASELINES:
            cells = (table.cell(method, ratio) for ratio in table.ratios)
            rows.append([table.titles.get(method, method), *("–" if c is None else _interval(c) for c in cells)])
    return grid(["method", *(f"{100 * ratio:g} %" for ratio in table.ratios)], rows)


def category_table(table: SweepTable, ratio: float) -> str:
    """Accuracy in per cent by category at one ratio, with the unpruned model, the question alone and chance."""
    columns = [ALL, *table.categories]
    rows = []
    swept = [(method, ratio) for method in table.methods if method not in BASELINES]
    for method, at in [(FULL, 1.0), *swept, (SINGLE, 1.0), (BLIND, 0.0)]:
        cells = [table.cell(method, at, name) for name in columns]
        if cells[0] is not None:
            name = BASELINES.get(method) or table.titles.get(method, method)
            rows.append([name, *("–" if c is None else f"{100 * c.accuracy:.0f}" for c in cells)])
    rows.append(["chance", *(f"{100 * table.chance.get(name, 0.0):.0f}" for name in columns)])
    return grid([f"at {100 * ratio:g} %", *(name.replace("_", " ") for name in columns)], rows)


def difference_table(names: Sequence[str], rows: Sequence[Sequence[Difference | None]]) -> str:
    """Changes in points of accuracy with their intervals, one row a comparison; those clear of zero are bold."""
    ratios = [d.ratio for d in max(rows, key=lambda row: sum(d is not None for d in row)) if d is not None]
    texts = [[name, *map(_change, row)] for name, row in zip(names, rows, strict=True)]
    return grid(["change, points", *(f"{100 * ratio:g} %" for ratio in ratios)], texts)


def _interval(cell: Cell) -> str:
    return f"{100 * cell.accuracy:.1f} [{100 * cell.low:.0f}, {100 * cell.high:.0f}]"


def _change(found: Difference | None) -> str:
    if found is None:
        return "–"
    text = f"{100 * found.change:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"**{text}**" if found.clear else text
