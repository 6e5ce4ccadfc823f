"""The report of a sweep: one page without network or neighbours, light and dark."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jvidprune.costs.flops import tera
from jvidprune.evals.controls import OUTCOMES, base_name
from jvidprune.evals.counts import Against
from jvidprune.evals.effect import flagged
from jvidprune.evals.extract import option_letter
from jvidprune.evals.items import LETTERS
from jvidprune.evals.joined import PARTS_HEAD, JoinedPart, part_rows
from jvidprune.evals.metrics import ALL, FULL, Cell
from jvidprune.evals.paired import apart
from jvidprune.evals.plan import BASELINES, BLIND
from jvidprune.evals.results import STILL, SweepTable
from jvidprune.evals.spans import GROUNDING_HEAD, grounding_rows
from jvidprune.evals.throughput import Throughput
from jvidprune.evals.throughput_table import (
    EXPLAINED,
    HEAD,
    SPEED_HEAD,
    gain,
    throughput_notes,
    throughput_rows,
)
from jvidprune.viz.difficulty_part import difficulty_part
from jvidprune.viz.judged_report import judged_part
from jvidprune.viz.overlay import LEGEND
from jvidprune.viz.pages import render
from jvidprune.viz.report import data_url
from jvidprune.viz.sweep_counts import counts_part
from jvidprune.viz.sweep_examples import ClipExample
from jvidprune.viz.sweep_plots import HALO, nearest_ratio, swept, time_plot
from jvidprune.viz.sweep_style import CONTROLS, css_variables
from jvidprune.viz.sweep_tables import (
    CategoryTable,
    RatioColumn,
    amount,
    baseline_rows,
    category_rows,
    control_rows,
    headline_rows,
    interval,
    matrix,
    percent,
    shown_name,
)

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


class _Card(NamedTuple):
    """A large number."""

    name: str
    value: str
    text: str


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
    ratios = [RatioColumn(f"{ratio:g}", percent(ratio), ratio == first) for ratio in table.ratios]
    columns = [ALL, *table.categories]
    peak = max((cost.memory for cost in table.costs.values()), default=0)
    return render(
        "jvidprune.viz",
        "sweep.html",
        palette=css_variables(),
        halo=HALO,
        title=f"Accuracy at few tokens: {amount(len(swept(table)), 'method')} on {model}",
        subtitle=_subtitle(table),
        note=note,
        left_out=table.left_out,
        listed=_SHOWN,
        cards=_cards(table),
        ratios=ratios,
        baselines=baseline_rows(table),
        headline=headline_rows(table),
        against=control_rows(table),
        outcomes=list(dict.fromkeys(standing.outcome for standing in table.standings.values())),
        words=OUTCOMES,
        **counts_part(table, against),
        time=time_plot(table),
        columns=[*(name.replace("_", " ") + " ◦" * (name in table.frozen) for name in columns), "mean"],
        frozen=table.frozen,
        still=f"{100 * STILL:g}",
        categories=[
            CategoryTable(shown, category_rows(table, ratio, columns))
            for shown, ratio in zip(ratios, table.ratios, strict=True)
        ],
        chance=[*(f"{100 * table.chance.get(name, 0.0):.0f}" for name in columns), ""],
        legend=LEGEND,
        examples=[_shot(table, example) for example in examples],
        apart=[apart(best, table.titles) for r in table.ratios if (best := table.best_two(r)) is not None],
        needed=[str(one) for r in table.ratios if (one := table.resolution(r)) is not None],
        matrices=[matrix(table, shown, r) for shown, r in zip(ratios, table.ratios, strict=True)],
        unmoved=flagged(table.effects.values(), table.titles),
        effects=_effects(table),
        effects_head=_EFFECTS_HEAD,
        grounding=grounding_rows(table.grounding, BASELINES | table.titles),
        grounding_head=GROUNDING_HEAD,
        judged=judged_part(table.opened, BASELINES | table.titles),
        difficulty=difficulty_part(table),
        benchmarks=_benchmarks(table.parts),
        throughput=_throughput(table.throughput, BASELINES | table.titles),
        peak=f"{peak / 2**20:,.0f}",
        costs_head=_COSTS_HEAD,
        costs=_costs(table),
        refused=[_Refusal(shown_name(table, m), next(iter(why.values()))) for m, why in table.refused.items()],
        settings=json.dumps(table.identity, indent=1, ensure_ascii=False),
    )


def _subtitle(table: SweepTable) -> str:
    full = table.cell(FULL, 1.0)
    questions = full.questions if full else 0
    parts = [f"task {table.identity['task']['name']}", amount(table.clips, "clip"), amount(questions, "question")]
    parts += [f"retention {', '.join(percent(ratio) for ratio in table.ratios)}"]
    return " · ".join([*parts, "brackets are 95 % bootstrap intervals over clips"])


def _cards(table: SweepTable) -> list[_Card]:
    """Three or four large numbers: the unpruned model, the best method and random at about 10 %."""
    ratio = nearest_ratio(table)
    cards = []
    full = table.cell(FULL, 1.0)
    if full is not None:
        text = f"of {amount(full.questions, 'question')} right with all {full.kept:,.0f} visual tokens"
        cards.append(_Card(BASELINES[FULL], f"{100 * full.accuracy:.1f} %", text))
    cells = {method: cell for method in swept(table) if (cell := table.cell(method, ratio))}
    idle = {method for (method, at), effect in table.effects.items() if at == ratio and effect.idle}
    published = {m: c for m, c in cells.items() if base_name(m) not in CONTROLS and m not in idle}
    if published:
        best = max(published, key=lambda m: (published[m].accuracy, -published[m].kept))
        cell = published[best]
        text = f"best at {percent(ratio)}: {interval(cell)}, {cell.kept:,.0f} tokens{_kept_share(cell)}"
        cards.append(_Card(shown_name(table, best), f"{100 * cell.accuracy:.1f} %", text))
    if "random" in cells:
        cell = cells["random"]
        text = f"at {percent(ratio)}: {interval(cell)}, {cell.kept:,.0f} tokens{_kept_share(cell)}"
        cards.append(_Card("random tokens", f"{100 * cell.accuracy:.1f} %", text))
    blind = table.cell(BLIND, 0.0)
    if blind is not None:
        chance = f"; a guess gets {100 * table.chance[ALL]:.1f} %" if ALL in table.chance else ""
        cards.append(_Card(BASELINES[BLIND], f"{100 * blind.accuracy:.1f} %", f"right without any video{chance}"))
    return cards


def _kept_share(cell: Cell) -> str:
    return "" if math.isnan(cell.relative) else f", {100 * cell.relative:.0f} % of unpruned"


def _shot(table: SweepTable, example: ClipExample) -> _Shot:
    rows = [_Strip("video", data_url(example.strip, 88), f"frames of {example.clip}")]
    for method, said, right, kept, strip in example.rows:
        name = shown_name(table, method)
        small, words = f"{kept} tokens", _said(said, example.options)
        rows.append(_Strip(name, data_url(strip, 88), f"tokens kept by {name}", small, words, right))
    options = [_Option(text, LETTERS[i] == example.answer) for i, text in enumerate(example.options)]
    category, ratio = example.category.replace("_", " "), percent(example.ratio)
    return _Shot(example.clip, example.question, category, ratio, options, example.answer, rows)


def _said(text: str, options: Sequence[str]) -> str:
    """An answer for people: a letter with the option it stands for."""
    letter = option_letter(text, options) if options else ""
    if letter and len(text) <= 2:
        return f"{letter}: {options[LETTERS.index(letter)]}"
    return text if len(text) <= 40 else text[:39] + "…"


def _effects(table: SweepTable) -> list[list[str]]:
    """What every method at every ratio did to the tokens and to the answers."""
    rows = []
    for (method, ratio), effect in table.effects.items():
        shares = [effect.mean(name) for name in ("kept", "merged", "dropped")]
        asked, by_logits = effect.count("questions"), effect.count("by_logits")
        texts = [shown_name(table, method), percent(ratio)]
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
        texts = [shown_name(table, run[0]), percent(run[1]), f"{cell.kept:,.1f}", f"{cell.prompt:,.1f}"]
        texts += ["" if math.isnan(value) else f"{1000 * value:,.1f}" for value in seconds]
        texts += [tera(1e12 * cost.tflops), tera(1e12 * cost.prefill_tflops)]
        texts += [f"{cost.compile:.1f}" if cost.compile else ""]
        rows.append(texts)
    return rows


def _benchmarks(parts: Sequence[JoinedPart]) -> str:
    """The benchmarks of a joined run; empty in the report of one benchmark.

    Args:
      parts: of the joined run; none for that of one benchmark.
    """
    return render("jvidprune.viz", "benchmarks.html", head=PARTS_HEAD, rows=part_rows(parts) if parts else [])


def _throughput(found: Sequence[Throughput], titles: Mapping[str, str]) -> str:
    """Speed and memory; empty where nothing was measured.

    Args:
      found: what was measured of a run.
      titles: names of methods as they are shown.
    """
    gains = [gain(one, found) for one in found]
    return render(
        "jvidprune.viz",
        "throughput.html",
        head=HEAD,
        speed_head=SPEED_HEAD,
        rows=throughput_rows(found, titles),
        gains=["–" if times != times else f"{times:.2f} ×" for times in gains],
        notes=throughput_notes(found),
        explained=EXPLAINED,
        cpu=any(one.platform == "cpu" for one in found),
    )
