"""Accuracy over retention and over time, as SVG that follows the reader's light or dark setting."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jvidprune.evals.counts import AXES, Against, share
from jvidprune.evals.metrics import ALL, FULL, Cell
from jvidprune.evals.plan import BASELINES, BLIND
from jvidprune.evals.results import SweepTable
from jvidprune.viz.sweep_style import INK, LINE, SOFT, SeriesStyle, css_variables, series_styles, themed

_SIZE = (9.6, 5.6)

HALO = "svg text{paint-order:stroke;stroke:var(--panel);stroke-width:3px;stroke-linejoin:round}"
"""Style of texts, so that lines behind them do not strike them out."""


def retention_plot(table: SweepTable, against: Against = "tokens") -> str:
    """Accuracy over the share of visual tokens that is really kept, one line a method, named at its end; an `<svg>`.

    Methods read a nominal ratio differently (some keep half of it, some half as much again), so that points stand where
    their counts put them. The band is the bootstrap interval of the unpruned model, those of the methods show on
    pointing. Dotted lines are what the question alone and a guess reach.

    Args:
      table: of the run.
      against: the count whose share of the unpruned model's is drawn; one of `counts.known_axes`, or "tokens".
    """
    figure, axes = _figure(against)
    full = table.cell(FULL, 1.0)
    visual = full.kept if full else 1.0

    def place(cell: Cell) -> float:
        run = cell.method, cell.ratio
        return cell.kept / visual if against == "tokens" else share(table.counts, run, against)

    ends, nominal = [], [_halvings(ratio) for ratio in table.ratios]
    for method, style in series_styles(swept(table)).items():
        cells = [c for r in sorted(table.ratios, reverse=True) if (c := table.cell(method, r)) is not None]
        if not cells:
            continue
        x, y = [_halvings(place(c)) for c in cells], [100 * c.accuracy for c in cells]
        _line(axes, method, x, y, style)
        low, high = ([100 * getattr(c, name) for c in cells] for name in ("low", "high"))
        axes.fill_between(x, low, high, color=style.colour, alpha=0.16, lw=0, gid=f"band-{method}")
        ends.append((method, x[-1], y[-1], style))
    places = [x for line in axes.lines for x in line.get_xdata()]
    if against in ("tokens", "nominal") or not places:
        # Most methods stand at the ratios that were asked for.
        places += nominal
        marks = list(table.ratios)
    else:
        marks = [mark for mark in _MARKS if min(places) <= _halvings(mark) <= max(places)]
        # Where all points lie close together, the ends are named.
        marks = marks if len(marks) > 1 else [2.0**-end for end in {min(places), max(places)}]
    left, right = min(places), max(places)
    width = max(right - left, 0.5)
    levels = _levels(axes, table, left, right)
    values = [y for line in axes.lines for y in line.get_ydata()]
    pad = max(2.0, 0.06 * (max(values) - min(values)))
    axes.set_ylim(min([*values, *levels]) - pad, max([*values, *levels]) + pad)
    axes.set_xlim(left - 0.03 * width, right + 0.34 * width)
    axes.set_xticks([_halvings(mark) for mark in marks], [f"{100 * mark:.3g} %" for mark in marks])
    _name_ends(axes, table, ends, right + 0.05 * width)
    words = "visual tokens kept" if against == "tokens" else AXES[against].text
    axes.set_xlabel(f"{words}, on a log scale" if against == "tokens" else f"{words}, share on a log scale", color=SOFT)
    axes.set_ylabel("accuracy, %", color=SOFT)
    return _svg(figure)


_MARKS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
"""Shares that an axis can be marked at."""

_LEAST_SPAN = 8.0
"""Points of accuracy that an axis shows at least."""


def _halvings(share: float) -> float:
    """How often all tokens are halved to leave a share of them."""
    return -float(np.log2(max(share, 1e-6)))


def time_plot(table: SweepTable) -> str:
    """Accuracy over milliseconds from encoded tokens to the answer of one question; an `<svg>` element.

    Every method is a path through its ratios; the marked and named point is that of the ratio nearest to 10 %.
    """
    figure, axes = _figure("time")
    styles = series_styles(swept(table))
    marked = nearest_ratio(table)
    points = []
    for method, style in styles.items():
        # A ratio that is refused on the clips where questions are asked alone has no time.
        found = {r: place for r in sorted(table.ratios, reverse=True) if (place := _place(table, method, r))}
        if not found:
            continue
        x, y = zip(*found.values(), strict=True)
        axes.plot(x, y, color=style.colour, lw=1.1, alpha=0.45, ls=style.dashes, gid=f"line-{method}")
        at = min(found, key=lambda ratio: abs(ratio - marked))
        points.append((*found[at], table.titles.get(method, method), style, method))
    full = _place(table, FULL, 1.0)
    if full is not None:
        points.append((*full, BASELINES[FULL], SeriesStyle(INK, "*", "-", False), FULL))
    for x, y, _, style, method in points:
        size = 13 if style.marker == "*" else 4 if style.control else 7
        axes.plot(
            [x],
            [y],
            marker="o" if style.control else style.marker,
            ms=size,
            color=style.colour,
            gid=f"dot-{method}",
        )
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.1)
    low, high = axes.get_ylim()
    # Where methods hardly differ, or not at all, the axis does not magnify it.
    more = max(0.0, _LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - more, high + more)
    if points:
        _time_ticks(axes, [x for x, *_ in points])
        _place_names(figure, axes, points)
    axes.set_xlabel("milliseconds from encoded video to one answer (reduce, prefill, generate)", color=SOFT)
    axes.set_ylabel("accuracy, %", color=SOFT)
    return _svg(figure)


def _place(table: SweepTable, method: str, ratio: float) -> tuple[float, float] | None:
    """Milliseconds an answer and accuracy in per cent of a run; None where it has no answers or no time."""
    cell = table.cell(method, ratio)
    if cell is None or not table.costs[method, ratio].answer > 0:
        return None
    return 1000 * table.costs[method, ratio].answer, 100 * cell.accuracy


def swept(table: SweepTable) -> list[str]:
    """The methods without the baselines."""
    return [method for method in table.methods if method not in BASELINES]


def nearest_ratio(table: SweepTable, wanted: float = 0.1) -> float:
    """The swept ratio nearest to a wanted one, the larger of two."""
    return min(table.ratios, key=lambda ratio: (abs(ratio - wanted), -ratio))


def standalone(svg: str) -> str:
    """An SVG file of its own, with the palette inside."""
    rules = "svg{background:var(--panel)}text{font-family:system-ui,sans-serif}.band{opacity:0}"
    style = f"<style>{css_variables()}{rules}{HALO}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda match: match.group(1) + style, svg, count=1)


def _figure(salt: str = "") -> tuple[Any, Any]:
    """A figure and its axes; several on one page need different salts, so that none uses parts of another."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": f"jvidprune {salt}"})
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.grid(axis="y", color=LINE, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, length=0, labelsize=11)
    return figure, axes


def _line(axes: Any, method: str, x: Sequence[float], y: Sequence[float], style: SeriesStyle) -> None:
    width, size = (1.3, 5) if style.control else (2.0, 6)
    options = {"color": style.colour, "ls": style.dashes, "lw": width, "ms": size, "marker": style.marker}
    axes.plot(x, y, **options, zorder=2 if style.control else 3, gid=f"line-{method}")


def _levels(axes: Any, table: SweepTable, left: float, right: float) -> tuple[float, float]:
    """The unpruned model, the question alone and a guess as level lines; the lowest and highest of them."""
    levels = []
    full, blind = table.cell(FULL, 1.0), table.cell(BLIND, 0.0)
    if full is not None:
        axes.fill_between([left, right], 100 * full.low, 100 * full.high, color=SOFT, alpha=0.10, lw=0, zorder=1)
        levels.append((100 * full.accuracy, f"{BASELINES[FULL]} {100 * full.accuracy:.1f}", INK, "-", "bottom"))
    known = [(BASELINES[BLIND], blind.accuracy)] if blind is not None else []
    known += [("chance", table.chance[ALL])] if table.chance.get(ALL) else []
    known.sort(key=lambda pair: -pair[1])
    for i, (name, value) in enumerate(known):
        levels.append((100 * value, f"{name} {100 * value:.1f}", SOFT, ":", "bottom" if i == 0 else "top"))
    for value, text, colour, dashes, side in levels:
        axes.plot([left, right], [value, value], color=colour, lw=1.2, ls=dashes, zorder=1)
        axes.annotate(
            text,
            (left, value),
            xytext=(0, 4 if side == "bottom" else -4),
            textcoords="offset points",
            color=colour,
            va=side,
            fontsize=10.5,
        )
    return min(v for v, *_ in levels), max(v for v, *_ in levels)


def _name_ends(axes: Any, table: SweepTable, ends: list[tuple[str, float, float, SeriesStyle]], x: float) -> None:
    """Names in a column at the right, pushed apart, with a thin line from each to the end of its series."""
    if not ends:
        return
    ends = sorted(ends, key=lambda end: end[2])
    bottom, top = axes.get_ylim()
    gap = (top - bottom) * 0.046
    places = spread([y for _, _, y, _ in ends], gap, bottom + gap / 2, top - gap / 2)
    for (method, end, y, style), place in zip(ends, places, strict=True):
        axes.plot([end, x - 0.01], [y, place], color=style.colour, lw=0.7, ls=(0, (1, 3)), gid=f"lead-{method}")
        # A method that refuses the smallest ratio ends earlier; its name says where.
        last = min(ratio for name, ratio in table.runs if name == method)
        where = "" if last == min(table.ratios) else f" at {100 * last:g} %"
        text = f"{table.titles.get(method, method)}  {y:.1f}{where}"
        weight = "normal" if style.control else "bold"
        axes.text(x, place, text, color=style.colour, va="center", fontsize=10.5, weight=weight, gid=f"name-{method}")


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places at least `gap` apart, each near its value, inside [low, high] where that is possible."""
    places = np.asarray(values, float).copy()
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    for _ in range(200):
        for i in range(1, len(places)):
            short = gap - (places[i] - places[i - 1])
            if short > 0:
                places[i - 1] -= short / 2
                places[i] += short / 2
        places[0], places[-1] = max(places[0], low), min(places[-1], high)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if places[-1] > high:
        places -= places[-1] - high
    return places.tolist()


def _time_ticks(axes: Any, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    low, high = min(values) / 1.3, max(values) * 1.3
    ticks = [m * 10.0**e for e in range(-3, 7) for m in (1, 1.5, 2, 3, 5, 7) if low <= m * 10.0**e <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _place_names(figure: Any, axes: Any, points: list[tuple[float, float, str, SeriesStyle, str]]) -> None:
    """Each name beside its point where it covers the fewest other names and points."""
    figure.canvas.draw()
    pixels = axes.transData.transform([(x, y) for x, y, *_ in points])
    scale, frame = figure.dpi / 72, axes.get_window_extent()
    boxes = [(px - 6, py - 6, px + 6, py + 6) for px, py in pixels]
    for (px, py), (x, y, text, style, method) in zip(pixels, points, strict=True):
        width, height = 6.3 * scale * len(text), 13 * scale
        best, chosen, cost = (9, 0), boxes[0], np.inf
        for dx, dy in _OFFSETS:
            left = px + dx * scale if dx > 0 else px - width / 2 if dx == 0 else px + dx * scale - width
            box = (left, py + dy * scale - height / 2, left + width, py + dy * scale + height / 2)
            outside = box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1
            price = sum(_overlap(box, other) for other in boxes) + 1e4 * outside + abs(dx) + abs(dy)
            if price < cost:
                best, cost, chosen = (dx, dy), price, box
        boxes.append(chosen)
        side = "left" if best[0] > 0 else "center" if best[0] == 0 else "right"
        weight = "normal" if style.control else "bold"
        axes.annotate(
            text,
            (x, y),
            best,
            textcoords="offset points",
            weight=weight,
            gid=f"name-{method}",
            ha=side,
            va="center",
            color=style.colour,
            fontsize=10.5,
        )


_NEAR = [(9, 0), (9, 11), (9, -11), (0, 13), (0, -13), (-9, 0), (-9, 11), (-9, -11)]
_OFFSETS = [*_NEAR, (14, 24), (14, -24), (-14, 24), (-14, -24)]
"""Places of a name beside its point, in typographic points."""


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = themed(buffer.getvalue()[buffer.getvalue().index("<svg") :])
    svg = re.sub(r'id="(line|band|lead|name|dot)-([^"]*)"', r'class="series \1" data-method="\2"', svg)
    # Several plots stand on one page, where an id may be there once: only those that something points at stay.
    pointed = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match.group(0) if match.group(1) in pointed else "", svg)
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1).replace(
        "<svg ", '<svg role="img" ', 1
    )
