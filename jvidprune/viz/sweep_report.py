"""The report of a sweep: one page without network or neighbours, light and dark."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from jvidprune.costs.flops import tera
from jvidprune.evals.controls import OUTCOMES, base_name, sentence
from jvidprune.evals.counts import Against
from jvidprune.evals.effect import flagged
from jvidprune.evals.extract import option_letter
from jvidprune.evals.items import LETTERS
from jvidprune.evals.metrics import ALL, FULL, Cell
from jvidprune.evals.paired import apart
from jvidprune.evals.plan import BASELINES, BLIND, SINGLE
from jvidprune.evals.results import STILL, SweepTable
from jvidprune.evals.spans import GROUNDING_HEAD, grounding_rows
from jvidprune.viz.benchmarks_part import benchmarks_part
from jvidprune.viz.difficulty_part import difficulty_part
from jvidprune.viz.judged_report import judged_part
from jvidprune.viz.overlay import LEGEND
from jvidprune.viz.pages import render
from jvidprune.viz.report import data_url
from jvidprune.viz.sweep_counts import counts_part
from jvidprune.viz.sweep_examples import ClipExample
from jvidprune.viz.sweep_plots import HALO, nearest_ratio, swept, time_plot
from jvidprune.viz.sweep_style import CONTROLS, css_colour, css_variables, series_styles
from jvidprune.viz.throughput_part import throughput_part

_SHOWN = 12
"""Of what is left out; longer lists are opened by a click."""

_COSTS_HEAD = (
    "method",
    "retention",
    "tokens",
    "prompt",
    "encode ms",
    "reduce ms",
    "prefill ms",
    "generate ms",
    "TFLOP",
    "of it prefill",
    "compile s",
)


_EFFECTS_HEAD = ("method", "retention", "kept %", "merged %", "dropped %", "logits differ", "answers differ", "")


class _Ratio(NamedTuple):
    """A column, and the button of a table by categories."""

    key: str
    text: str
    shown: bool


class _Card(NamedTuple):
    """A large number."""

    name: str
    value: str
    text: str


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

    ratio: _Ratio
    names: list[str]
    rows: list[tuple[str, list[_Shown | None]]]


class _Categories(NamedTuple):
    """A row of a table by categories."""

    name: str
    base: bool
    cells: list[_Shown | None]


class _CategoryTable(NamedTuple):
    """Methods by categories at one ratio."""

    ratio: _Ratio
    rows: list[_Categories]


class _Option(NamedTuple):
    """One of the answers that could be chosen."""

    text: str
    right: bool


class _Strip(NamedTuple):
    """Frames side by side, of the video or with the tokens of a method and what it said."""

    name: str
    source: str
    alt: str
    small: str = ""
    said: str | None = None
    right: bool = False


class _Shot(NamedTuple):
    """A question that methods answer differently."""

    clip: str
    question: str
    category: str
    ratio: str
    options: list[_Option]
    answer: str
    rows: list[_Strip]


class _Refusal(NamedTuple):
    """A method that was not run."""

    name: str
    reason: str


def sweep_page(
    table: SweepTable, examples: Sequence[ClipExample] = (), *, model: str, note: str = "", against: Against = "tokens"
) -> str:
    """The page as one string.

    Args:
      table: of the run.
      examples: clips with the tokens that methods kept.
      model: what the model is called.
      note: a sentence for the reader, above everything.
      against: what accuracies are drawn against at first.
    """
    first = nearest_ratio(table)
    ratios = [_Ratio(f"{ratio:g}", _percent(ratio), ratio == first) for ratio in table.ratios]
    columns = [ALL, *table.categories]
    peak = max((cost.memory for cost in table.costs.values()), default=0)
    return render(
        "jvidprune.viz",
        "sweep.html",
        palette=css_variables(),
        halo=HALO,
        title=f"Accuracy at few tokens: {_count(len(swept(table)), 'method')} on {model}",
        subtitle=_subtitle(table),
        note=note,
        left_out=table.left_out,
        listed=_SHOWN,
        cards=_cards(table),
        ratios=ratios,
        baselines=_baselines(table),
        headline=_headline(table),
        against=_against(table),
        outcomes=list(dict.fromkeys(standing.outcome for standing in table.standings.values())),
        words=OUTCOMES,
        **counts_part(table, against),
        time=time_plot(table),
        columns=[*(name.replace("_", " ") + " ◦" * (name in table.frozen) for name in columns), "mean"],
        frozen=table.frozen,
        still=f"{100 * STILL:g}",
        categories=[
            _CategoryTable(shown, _category_rows(table, ratio, columns))
            for shown, ratio in zip(ratios, table.ratios, strict=True)
        ],
        chance=[*(f"{100 * table.chance.get(name, 0.0):.0f}" for name in columns), ""],
        legend=LEGEND,
        examples=[_shot(table, example) for example in examples],
        apart=[apart(best, table.titles) for r in table.ratios if (best := table.best_two(r)) is not None],
        needed=[str(one) for r in table.ratios if (one := table.resolution(r)) is not None],
        matrices=[_matrix(table, shown, r) for shown, r in zip(ratios, table.ratios, strict=True)],
        unmoved=flagged(table.effects.values(), table.titles),
        effects=_effects(table),
        effects_head=_EFFECTS_HEAD,
        grounding=grounding_rows(table.grounding, BASELINES | table.titles),
        grounding_head=GROUNDING_HEAD,
        judged=judged_part(table.opened, BASELINES | table.titles),
        difficulty=difficulty_part(table),
        benchmarks=benchmarks_part(table.parts),
        throughput=throughput_part(table.throughput, BASELINES | table.titles),
        peak=f"{peak / 2**20:,.0f}",
        costs_head=_COSTS_HEAD,
        costs=_costs(table),
        refused=[_Refusal(shown_name(table, m), next(iter(why.values()))) for m, why in table.refused.items()],
        settings=json.dumps(table.identity, indent=1, ensure_ascii=False),
    )


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


def _percent(ratio: float) -> str:
    return f"{100 * ratio:g} %"


def _cards(table: SweepTable) -> list[_Card]:
    """Three or four large numbers: the unpruned model, the best method and random at about 10 %."""
    ratio = nearest_ratio(table)
    cards = []
    full = table.cell(FULL, 1.0)
    if full is not None:
        text = f"of {_count(full.questions, 'question')} right with all {full.kept:,.0f} visual tokens"
        cards.append(_Card(BASELINES[FULL], f"{100 * full.accuracy:.1f} %", text))
    cells = {method: cell for method in swept(table) if (cell := table.cell(method, ratio))}
    idle = {method for (method, at), effect in table.effects.items() if at == ratio and effect.idle}
    published = {m: c for m, c in cells.items() if base_name(m) not in CONTROLS and m not in idle}
    if published:
        best = max(published, key=lambda m: (published[m].accuracy, -published[m].kept))
        cell = published[best]
        text = f"best at {_percent(ratio)}: {_bounds(cell)}, {cell.kept:,.0f} tokens{_kept_share(cell)}"
        cards.append(_Card(shown_name(table, best), f"{100 * cell.accuracy:.1f} %", text))
    if "random" in cells:
        cell = cells["random"]
        text = f"at {_percent(ratio)}: {_bounds(cell)}, {cell.kept:,.0f} tokens{_kept_share(cell)}"
        cards.append(_Card("random tokens", f"{100 * cell.accuracy:.1f} %", text))
    blind = table.cell(BLIND, 0.0)
    if blind is not None:
        chance = f"; a guess gets {100 * table.chance[ALL]:.1f} %" if ALL in table.chance else ""
        cards.append(_Card(BASELINES[BLIND], f"{100 * blind.accuracy:.1f} %", f"right without any video{chance}"))
    return cards


def _kept_share(cell: Cell) -> str:
    return "" if math.isnan(cell.relative) else f", {100 * cell.relative:.0f} % of unpruned"


def _bounds(cell: Cell) -> str:
    return f"[{100 * cell.low:.0f}, {100 * cell.high:.0f}]"


def _baselines(table: SweepTable) -> list[_Baseline]:
    rows = []
    for name, ratio in ((FULL, 1.0), (SINGLE, 1.0), (BLIND, 0.0)):
        cell = table.cell(name, ratio)
        if cell is not None:
            rows.append(_Baseline(shown_name(table, name), _number(cell)))
    return rows


def _headline(table: SweepTable) -> list[_Method]:
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


def _against(table: SweepTable) -> list[_Against]:
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
            at = "" if rival.run[1] == standing.run[1] else f" at {_percent(rival.run[1])}"
            bounds = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            tokens = f"{standing.kept:,.0f} : {rival.kept:,.0f} tokens"
            control = shown_name(table, rival.run[0]) + at
            tip = f"{sentence(standing, table.titles)}: {OUTCOMES[standing.outcome]}"
            cells.append(_Held(f"{100 * found.change:+.1f}", bounds, control, tokens, standing.outcome, tip))
        if any(cells):
            rows.append(_Against(shown_name(table, method), cells))
    return rows


def _number(cell: Cell) -> _Shown:
    return _Shown(f"{100 * cell.accuracy:.1f}", _bounds(cell), f"{cell.kept:,.0f} tokens")


def _relative(cell: Cell) -> str:
    return "–" if math.isnan(cell.relative) else f"{100 * cell.relative:.0f} %"


def _tint(cell: Cell) -> str:
    """Background by relative accuracy: nothing at 100 %, warm below, cool above; strongest at 50 % and 150 %."""
    if math.isnan(cell.relative):
        return ""
    strength = min(1.0, abs(1.0 - cell.relative) / 0.5)
    colour = "warm" if cell.relative < 1 else "cool"
    return f"background:color-mix(in srgb,var(--{colour}) {70 * strength:.0f}%,transparent)"


def _category_rows(table: SweepTable, ratio: float, columns: Sequence[str]) -> list[_Categories]:
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
                tip=f"{_bounds(cell)}, {_relative(cell)} of unpruned, {_count(cell.questions, 'question')}",
                tint="" if base else _tint(cell),
            )
            for cell in cells
        ]
        mean = table.category_mean(method, at)
        tip = "mean over the categories, each counting alike"
        shown.append(None if mean is None else _Shown(f"{100 * mean:.0f}", tip=tip))
        rows.append(_Categories(shown_name(table, method), base, shown))
    return rows


def _shot(table: SweepTable, example: ClipExample) -> _Shot:
    rows = [_Strip("video", data_url(example.strip, 88), f"frames of {example.clip}")]
    for method, said, right, kept, strip in example.rows:
        name = shown_name(table, method)
        small, words = f"{kept} tokens", _said(said, example.options)
        rows.append(_Strip(name, data_url(strip, 88), f"tokens kept by {name}", small, words, right))
    options = [_Option(text, LETTERS[i] == example.answer) for i, text in enumerate(example.options)]
    category, ratio = example.category.replace("_", " "), _percent(example.ratio)
    return _Shot(example.clip, example.question, category, ratio, options, example.answer, rows)


def _said(text: str, options: Sequence[str]) -> str:
    """An answer for people: a letter with the option it stands for."""
    letter = option_letter(text, options) if options else ""
    if letter and len(text) <= 2:
        return f"{letter}: {options[LETTERS.index(letter)]}"
    return text if len(text) <= 40 else text[:39] + "…"


def _matrix(table: SweepTable, shown: _Ratio, ratio: float) -> _Matrix:
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


def _effects(table: SweepTable) -> list[list[str]]:
    """What every method at every ratio did to the tokens and to the answers."""
    rows = []
    for (method, ratio), effect in table.effects.items():
        shares = [effect.mean(name) for name in ("kept", "merged", "dropped")]
        asked, by_logits = effect.count("questions"), effect.count("by_logits")
        texts = [shown_name(table, method), _percent(ratio)]
        texts += ["–" if math.isnan(share) else f"{100 * share:.1f}" for share in shares]
        texts += [f"{effect.count('differ'):,} of {asked:,}" if asked and by_logits == asked else "–"]
        texts += [f"{effect.count('answers'):,} of {asked:,}" if asked else "–"]
        notes = effect.flags or (["prunes inside the language model"] if effect.clips[0].inside else [])
        rows.append([*texts, "; ".join(notes)])
    return rows


def _costs(table: SweepTable) -> list[list[str]]:
    """Tokens and stage times at every ratio."""
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
        rows.append(texts)
    return rows
