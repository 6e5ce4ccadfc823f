"""The report of a sweep: one page without network or neighbours, light and dark."""

import html
import json
import math
from collections.abc import Sequence
from importlib import resources

from jvidprune.costs.flops import tera
from jvidprune.evals.extract import option_letter
from jvidprune.evals.items import LETTERS
from jvidprune.evals.metrics import ALL, FULL, Cell
from jvidprune.evals.plan import BASELINES, BLIND
from jvidprune.evals.results import SweepTable
from jvidprune.viz.report import data_url
from jvidprune.viz.sweep_examples import Example
from jvidprune.viz.sweep_plots import HALO, nearest_ratio, retention_plot, swept, time_plot
from jvidprune.viz.sweep_style import CONTROLS, css_colour, css_variables, series_styles

_SHOWN = 12
"""Of what is left out; longer lists are opened by a click."""


def sweep_page(table: SweepTable, examples: Sequence[Example] = (), *, model: str, note: str = "") -> str:
    """The page as one string.

    Args:
      table: of the run.
      examples: clips with the tokens that methods kept.
      model: what the model is called.
      note: a sentence for the reader, above everything.
    """
    parts = {
        "__PALETTE__": css_variables(),
        "__HALO__": HALO,
        "__TITLE__": html.escape(f"Accuracy at few tokens: {_count(len(swept(table)), 'method')} on {model}"),
        "__SUBTITLE__": html.escape(_subtitle(table)),
        "__NOTE__": f'<p class="note">{html.escape(note)}</p>' if note else "",
        "__LEFT_OUT__": _left_out(table),
        "__CARDS__": _cards(table),
        "__HEADLINE__": _headline(table),
        "__RETENTION__": retention_plot(table),
        "__TIME__": time_plot(table),
        "__CATEGORIES__": _categories(table),
        "__EXAMPLES__": _examples(table, examples),
        "__COSTS__": _costs(table),
        "__SETTINGS__": _settings(table),
    }
    page = resources.files("jvidprune.viz").joinpath("sweep_page.html").read_text(encoding="utf8")
    for mark, value in parts.items():
        page = page.replace(mark, value)
    return page


def shown_name(table: SweepTable, method: str) -> str:
    """How a method is written for people."""
    return BASELINES.get(method, table.titles.get(method, method))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _subtitle(table: SweepTable) -> str:
    full = table.cell(FULL, 1.0)
    questions = full.questions if full else 0
    parts = [f"task {table.identity['task']['name']}", _count(table.clips, "clip"), _count(questions, "question")]
    parts += [f"retention {', '.join(_percent(ratio) for ratio in table.ratios)}"]
    return " · ".join([*parts, "brackets are 95 % bootstrap intervals over clips"])


def _left_out(table: SweepTable) -> str:
    """What could not be asked, each with its sentence."""
    if not table.left_out:
        return ""
    rows = "".join(f"<li><b>{html.escape(one.item)}</b> {html.escape(one.reason)}</li>" for one in table.left_out)
    head = f"{len(table.left_out):,} left out, not counted in any number below"
    shown = " open" if len(table.left_out) <= _SHOWN else ""
    return f'<details class="note" id="left-out"{shown}><summary>{head}</summary><ul>{rows}</ul></details>'


def _percent(ratio: float) -> str:
    return f"{100 * ratio:g} %"


def _cards(table: SweepTable) -> str:
    """Three or four large numbers: the unpruned model, the best method and random at about 10 %."""
    ratio = nearest_ratio(table)
    cards = []
    full = table.cell(FULL, 1.0)
    if full is not None:
        text = f"of {_count(full.questions, 'question')} right with all {full.kept:,.0f} visual tokens"
        cards.append((BASELINES[FULL], f"{100 * full.accuracy:.1f} %", text))
    cells = {method: cell for method in swept(table) if (cell := table.cell(method, ratio))}
    published = {m: c for m, c in cells.items() if m.partition(":")[0] not in CONTROLS}
    if published:
        best = max(published, key=lambda m: (published[m].accuracy, -published[m].kept))
        cell = published[best]
        text = f"best at {_percent(ratio)}: {_bounds(cell)}, {cell.kept:,.0f} tokens{_kept_share(cell)}"
        cards.append((shown_name(table, best), f"{100 * cell.accuracy:.1f} %", text))
    if "random" in cells:
        cell = cells["random"]
        text = f"at {_percent(ratio)}: {_bounds(cell)}, {cell.kept:,.0f} tokens{_kept_share(cell)}"
        cards.append(("random tokens", f"{100 * cell.accuracy:.1f} %", text))
    blind = table.cell(BLIND, 0.0)
    if blind is not None:
        chance = f"; a guess gets {100 * table.chance[ALL]:.1f} %" if ALL in table.chance else ""
        cards.append((BASELINES[BLIND], f"{100 * blind.accuracy:.1f} %", f"right without any video{chance}"))
    return "".join(
        f'<div class="card"><b>{html.escape(name)}</b><div class="big">{html.escape(value)}</div>'
        f'<div class="small">{html.escape(text)}</div></div>'
        for name, value, text in cards
    )


def _kept_share(cell: Cell) -> str:
    return "" if math.isnan(cell.relative) else f", {100 * cell.relative:.0f} % of unpruned"


def _bounds(cell: Cell) -> str:
    return f"[{100 * cell.low:.0f}, {100 * cell.high:.0f}]"


def _headline(table: SweepTable) -> str:
    """Methods by ratios: accuracy and its interval, tinted by the accuracy relative to the unpruned model."""
    ratios, methods = table.ratios, swept(table)
    styles = series_styles(methods)
    best = {r: max((c.accuracy for m in methods if (c := table.cell(m, r))), default=-1.0) for r in ratios}
    head = "".join(f"<th>{_percent(r)}</th>" for r in ratios)
    rows = []
    for name, ratio in ((FULL, 1.0), (BLIND, 0.0)):
        cell = table.cell(name, ratio)
        if cell is not None:
            span = f'<td colspan="{len(ratios)}" class="span">{_number(cell)}</td>'
            rows.append(f"<tr class=base><th>{html.escape(shown_name(table, name))}</th>{span}</tr>")
    for method in methods:
        dot = f'<i class="dot" style="background:{css_colour(styles[method])}"></i>'
        cells = []
        for ratio in ratios:
            cell = table.cell(method, ratio)
            if cell is None:
                why = table.refused.get(method, {}).get(ratio, "")
                cells.append(f'<td class="none" title="{html.escape(why)}">–</td>')
            else:
                bold = " best" if cell.accuracy == best[ratio] else ""
                tip = f"{_relative(cell)} of unpruned · {cell.kept:,.1f} tokens · prompt {cell.prompt:,.0f}"
                cells.append(f'<td class="num{bold}" style="{_tint(cell)}" title="{tip}">{_number(cell)}</td>')
        name = html.escape(shown_name(table, method))
        rows.append(f'<tr data-method="{html.escape(method)}"><th>{dot}{name}</th>{"".join(cells)}</tr>')
    return f'<table class="grid"><thead><tr><th>method</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _number(cell: Cell) -> str:
    return f"{100 * cell.accuracy:.1f} <small>{_bounds(cell)}</small><br><small>{cell.kept:,.0f} tokens</small>"


def _relative(cell: Cell) -> str:
    return "–" if math.isnan(cell.relative) else f"{100 * cell.relative:.0f} %"


def _tint(cell: Cell) -> str:
    """Background by relative accuracy: nothing at 100 %, warm below, cool above; strongest at 50 % and 150 %."""
    if math.isnan(cell.relative):
        return ""
    strength = min(1.0, abs(1.0 - cell.relative) / 0.5)
    colour = "warm" if cell.relative < 1 else "cool"
    return f"background:color-mix(in srgb,var(--{colour}) {70 * strength:.0f}%,transparent)"


def _categories(table: SweepTable) -> str:
    """One heat table a ratio; buttons choose which is shown."""
    ratios, first = table.ratios, nearest_ratio(table)
    buttons = "".join(
        f'<button data-ratio="{r:g}" aria-pressed="{str(r == first).lower()}" class="{"on" if r == first else ""}">'
        f"{_percent(r)}</button>"
        for r in ratios
    )
    tables = "".join(_category_table(table, r, hidden=r != first) for r in ratios)
    return f'<div class="seg" id="ratios" role="group" aria-label="retention ratio">{buttons}</div>{tables}'


def _category_table(table: SweepTable, ratio: float, *, hidden: bool) -> str:
    columns = [ALL, *table.categories]
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
    rows = []
    for method, at in [(FULL, 1.0), *((m, ratio) for m in swept(table)), (BLIND, 0.0)]:
        cells = [table.cell(method, at, name) for name in columns]
        if cells[0] is None:
            continue
        base = method in BASELINES
        row = "".join(
            "<td>–</td>"
            if cell is None
            else f'<td class="num" style="{"" if base else _tint(cell)}" title="{_bounds(cell)}, {_relative(cell)} of '
            f'unpruned, {_count(cell.questions, "question")}">{100 * cell.accuracy:.0f}</td>'
            for cell in cells
        )
        name = html.escape(shown_name(table, method))
        rows.append(f'<tr class="{"base" if base else ""}"><th>{name}</th>{row}</tr>')
    chance = "".join(f'<td class="num">{100 * table.chance.get(name, 0.0):.0f}</td>' for name in columns)
    rows.append(f'<tr class="base"><th>chance</th>{chance}</tr>')
    body = f"<thead><tr><th>at {_percent(ratio)}</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    hide = " hidden" if hidden else ""
    return f'<div class="scroll" data-ratio="{ratio:g}"{hide}><table class="grid">{body}</table></div>'


def _examples(table: SweepTable, examples: Sequence[Example]) -> str:
    if not examples:
        return '<p class="small">The methods agree on every question of this run.</p>'
    out = []
    for example in examples:
        options = "".join(
            f'<li class="{"right" if LETTERS[i] == example.answer else ""}">{html.escape(text)}</li>'
            for i, text in enumerate(example.options)
        )
        asked = f"<ol>{options}</ol>" if options else f"<p>answer: <b>{html.escape(example.answer)}</b></p>"
        rows = [_example_row("video", "", "", data_url(example.strip, 88), f"frames of {example.clip}")]
        for method, said, right, kept, strip in example.rows:
            name, mark = shown_name(table, method), "✓" if right else "✗"
            verdict = (
                f'<span class="{"yes" if right else "no"}">{mark} {html.escape(_said(said, example.options))}</span>'
            )
            rows.append(_example_row(name, verdict, f"{kept} tokens", data_url(strip, 88), f"tokens kept by {name}"))
        category = html.escape(example.category.replace("_", " "))
        out.append(
            f'<article class="example"><div class="asked"><span class="tag">{category}</span>'
            f'<span class="small">{html.escape(example.clip)} · at {_percent(example.ratio)}</span>'
            f"<h3>{html.escape(example.question)}</h3>{asked}</div><div class=strips>{''.join(rows)}</div></article>"
        )
    return "".join(out)


def _said(text: str, options: Sequence[str]) -> str:
    """An answer for people: a letter with the option it stands for."""
    letter = option_letter(text, options) if options else ""
    if letter and len(text) <= 2:
        return f"{letter}: {options[LETTERS.index(letter)]}"
    return text if len(text) <= 40 else text[:39] + "…"


def _example_row(name: str, verdict: str, small: str, url: str, alt: str) -> str:
    label = f"<b>{html.escape(name)}</b>{verdict}<small>{html.escape(small)}</small>"
    return f'<div class="who">{label}</div><img src="{url}" alt="{html.escape(alt)}">'


def _costs(table: SweepTable) -> str:
    """Tokens and stage times at every ratio."""
    head = ["method", "retention", "tokens", "prompt", "encode ms", "reduce ms", "prefill ms", "generate ms"]
    head += ["TFLOP", "of it prefill", "compile s"]
    rows = []
    for run in table.runs:
        cell, cost = table.cell(*run), table.costs[run]
        if cell is None:
            continue
        seconds = (cost.encode, cost.reduce, cost.prefill, cost.generate)
        texts = [shown_name(table, run[0]), _percent(run[1]), f"{cell.kept:,.1f}", f"{cell.prompt:,.1f}"]
        texts += ["" if math.isnan(value) else f"{1000 * value:,.1f}" for value in seconds]
        texts += [tera(1e12 * cost.tflops), tera(1e12 * cost.prefill_tflops)]
        texts += [f"{cost.compile:.1f}" if cost.compile else ""]
        rows.append("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>")
    peak = max((cost.memory for cost in table.costs.values()), default=0)
    line = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    note = (
        "Times are medians without compilation: of encoding a clip, of this ratio's share in the one call that reduces "
        "to all of them, and of one question asked alone. TFLOPs are counted for an answer of mean length, encoding "
        f"included. Peak memory of the run: {peak / 2**20:,.0f} MiB."
    )
    refused = "".join(
        f"<li>{html.escape(shown_name(table, method))}: {html.escape(next(iter(reasons.values())))}</li>"
        for method, reasons in table.refused.items()
    )
    left_out = (
        f"<p class=small>Not run, because the method refuses:</p><ul class=small>{refused}</ul>" if refused else ""
    )
    body = f"<thead><tr>{line}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<p class="small">{note}</p><div class="scroll"><table class="plain">{body}</table></div>{left_out}'


def _settings(table: SweepTable) -> str:
    return html.escape(json.dumps(table.identity, indent=1, ensure_ascii=False))
