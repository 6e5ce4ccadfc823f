"""What `jvidprune sweep` prints: its tables, and the sentences below them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from jvidprune.cli.console import Console
    from jvidprune.evals.counts import Against, Counts
    from jvidprune.evals.metrics import Cell
    from jvidprune.evals.results import RunCost, SweepTable
    from jvidprune.evals.throughput import Throughput

MARK = "†"
"""Behind an accuracy that is not shown to beat the best control."""


def show_sweep(console: "Console", table: "SweepTable", record: dict[str, Any]) -> None:
    """Accuracy of every method at every ratio with its interval, and where the files are."""
    from jvidprune.cli.console import marked
    from jvidprune.cli.judge import show_judged, waiting
    from jvidprune.cli.left_out import show_left_out
    from jvidprune.evals.controls import told
    from jvidprune.evals.difficulty import told_hard
    from jvidprune.evals.matching import unreached
    from jvidprune.evals.paired import apart
    from jvidprune.evals.plan import BASELINES
    from jvidprune.viz.sweep_plots import nearest_ratio

    console.print(sweep_table(table, intervals=console.width >= 130))
    if table.grounding:
        console.print(grounding_table(table))
    for line in told(table.standings.values(), table.titles):
        console.print(marked(line), plain=True)
    best = table.best_two(nearest_ratio(table))
    if best is not None:
        console.print(marked(apart(best, table.titles)), plain=True)
    if table.frozen:
        console.print(
            marked(f"one frame answers nearly as much as all of them in: {', '.join(table.frozen)}"), plain=True
        )
    needed = table.resolution(nearest_ratio(table))
    if needed is not None:
        console.print(marked(str(needed)), plain=True)
    for line in told_hard(table.difficulty, nearest_ratio(table), BASELINES | table.titles):
        console.print(marked(line), plain=True)
    for line in record["did_not_act"]:
        console.print(f"[yellow]{marked(line)}[/yellow]", plain=True)
    show_throughput(console, table.throughput, BASELINES | table.titles)
    for line in unreached(table.refused):
        console.print(f"[dim]{marked(line)}[/dim]", plain=True)
    for method, reasons in _other_refusals(table).items():
        console.print(f"[dim]{method}: {marked(next(iter(reasons.values())))}[/dim]", plain=True)
    if record["untrained"]:
        console.print(
            "[yellow]The weights of this model are random: its accuracies are noise, its costs are real.[/yellow]"
        )
    show_judged(console, table.opened, BASELINES | table.titles)
    if table.unjudged:
        console.print(waiting(table.unjudged, str(table.folder)), unbroken=True)
    show_left_out(console, record)
    resumed = f" ({record['resumed_samples']:,} were there)" if record["resumed_samples"] else ""
    console.print(f"{record['samples']:,} answers{resumed} · table.csv, plots and records beside the report")
    console.print(f"report: [bold]{marked(record['report'])}[/bold]", unbroken=True)


def _other_refusals(table: "SweepTable") -> "dict[str, dict[float, str]]":
    """Why methods were not asked for a ratio, where it is not that they are out of reach of its cost."""
    from jvidprune.evals.matching import unreached

    return {name: why for name, why in table.refused.items() if not unreached({name: why})}


def show_unfinished(console: "Console", record: dict[str, Any]) -> None:
    """A host that is done before others, or a task of open answers alone."""
    from jvidprune.cli.console import marked
    from jvidprune.cli.judge import waiting
    from jvidprune.cli.left_out import show_left_out

    if record["complete"]:
        show_left_out(console, record)
        if record["unjudged"]:
            console.print(waiting(record["unjudged"], record["folder"]), unbroken=True)
        console.print(f"report: [bold]{marked(record['report'])}[/bold]", unbroken=True)
        return
    console.print(
        f"host {record['host']} of {record['hosts']} has done its clips; the host that finishes last writes the "
        f"report. If one has died, start it again, or the whole command: {marked(record['folder'])}",
        plain=True,
    )


def sweep_table(table: "SweepTable", *, intervals: bool) -> "Table":
    """Methods by ratios, the best of a column bold; tokens and times are those of the smallest ratio a method has."""
    from rich import box
    from rich.table import Table

    from jvidprune.cli.console import marked
    from jvidprune.evals.matching import UNITS
    from jvidprune.evals.metrics import FULL
    from jvidprune.evals.plan import BASELINES, BLIND, SINGLE

    full, blind, single = table.cell(FULL, 1.0), table.cell(BLIND, 0.0), table.cell(SINGLE, 1.0)
    caption = [f"{table.clips} clips, {full.questions} questions" if full else f"{table.clips} clips"]
    caption += ["accuracy in per cent" + " with 95 % intervals" * intervals]
    if table.matched:
        match = next(iter(table.matched.values())).match
        caption.append(f"columns cost as much as a plain selection, in {UNITS[match][0]}")
    smallest = min(table.ratios)
    swept = [method for method in table.methods if method not in BASELINES]
    refused = any(table.cell(method, smallest) is None for method in swept)
    else_at = " (counts and ms else at a method's smallest)" * refused
    caption += [f"share of unpruned, counts and ms an answer at {100 * smallest:g} %{else_at}"]
    unproved = {run for run, standing in table.standings.items() if standing.outcome != "beats"}
    if unproved:
        caption.append(f"{MARK} not shown to beat the best control")
    out = Table(
        box=box.SIMPLE_HEAD, caption=" · ".join(caption), caption_justify="left", collapse_padding=True, pad_edge=False
    )
    # A long name folds before numbers are cut.
    out.add_column("method", overflow="fold")
    for ratio in table.ratios:
        out.add_column(f"{100 * ratio:g} %", justify="right", no_wrap=True)
    counted = _counted(table, wide=intervals)
    for name in ("share", "tokens", *counted, "ms"):
        out.add_column(name, justify="right", no_wrap=True)
    best = {r: max((c.accuracy for m in swept if (c := table.cell(m, r))), default=-1.0) for r in table.ratios}
    for cell in (full, single, blind):
        if cell is not None:
            run = cell.method, cell.ratio
            row = [_accuracy(cell, intervals), *[""] * (len(table.ratios) - 1), "", f"{cell.kept:,.0f}"]
            row += [_count(table.counts[run], name) for name in counted.values()]
            last = _milliseconds(table.costs[run])
            out.add_row(BASELINES[cell.method], *row, last, style="dim", end_section=cell is blind)
    for method in swept:
        cells = [table.cell(method, ratio) for ratio in table.ratios]
        texts = ["–" if c is None else _accuracy(c, intervals, bold=c.accuracy == best[c.ratio]) for c in cells]
        if unproved:
            texts = [
                text + (MARK if (method, r) in unproved else " ") for text, r in zip(texts, table.ratios, strict=True)
            ]
        last = min((c for c in cells if c is not None), key=lambda cell: cell.ratio, default=None)
        if last is not None:
            at = last.ratio
            rel = f"{100 * last.relative:.0f} %" if last.relative == last.relative and at == smallest else ""
            out.add_row(
                marked(table.titles.get(method, method)),
                *texts,
                rel,
                f"{last.kept:,.0f}",
                *(_count(table.counts[method, at], name) for name in counted.values()),
                _milliseconds(table.costs[method, at]),
            )
    return out


def _counted(table: "SweepTable", *, wide: bool) -> "dict[str, Against]":
    """Columns of counts beside the tokens at the input, by their heads: those that all runs know.

    On a narrow terminal the mean over the layers stands there where it differs from the input of some method.
    """
    from jvidprune.evals.counts import known_axes

    inside = any(abs(one.value("layer_tokens") - one.value("tokens")) >= 1 for one in table.counts.values())
    heads: dict[str, Against] = {"a layer": "layer_tokens"} if wide or inside else {}
    heads |= {"TFLOP": "prefill_tflops", "KV MiB": "kv_bytes"} if wide else {}
    known = known_axes(table.counts) if table.counts else []
    return {head: name for head, name in heads.items() if name in known}


def _count(counts: "Counts", name: "Against") -> str:
    value = counts.value(name)
    return f"{value:,.0f}" if name == "layer_tokens" else f"{value / (2**20 if name == 'kv_bytes' else 1):,.3g}"


def grounding_table(table: "SweepTable") -> "Table":
    """How well spans of seconds were found, in per cent."""
    from rich import box
    from rich.table import Table

    from jvidprune.cli.console import marked
    from jvidprune.evals.plan import BASELINES
    from jvidprune.evals.spans import GROUNDING_HEAD, grounding_rows

    out = Table(box=box.SIMPLE_HEAD, caption="spans of seconds, per cent; accuracies count R@0.5")
    for number, name in enumerate(GROUNDING_HEAD):
        out.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in grounding_rows(table.grounding, BASELINES | table.titles):
        out.add_row(*map(marked, row))
    return out


def _milliseconds(cost: "RunCost") -> str:
    return f"{1000 * cost.answer:,.1f}" if cost.answer == cost.answer else ""


def _accuracy(cell: "Cell", interval: bool, *, bold: bool = False) -> str:
    number = f"{100 * cell.accuracy:.1f}"
    text = f"[bold]{number}[/bold]" if bold else number
    return f"{text} [dim]{100 * cell.low:.0f}–{100 * cell.high:.0f}[/dim]" if interval else text


def show_throughput(console: "Console", found: "Sequence[Throughput]", titles: "Mapping[str, str]") -> None:
    """Speed and memory of methods, and what has to be known of it; nothing where nothing was measured."""
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
