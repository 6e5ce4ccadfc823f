"""What people see: progress on stderr, tables on stdout; all of it silent on request."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console as RichConsole
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jvidprune.parity.core import FileReport

if TYPE_CHECKING:
    from jvidprune.cli.plan import PlanRow
    from jvidprune.costs.flops import FlopReport
    from jvidprune.evals.metrics import Cell
    from jvidprune.evals.results import Cost, SweepTable
    from jvidprune.llm.stages import Stage
    from jvidprune.llm.video_llm import Answer


LISTED = 20
"""Sentences about what was left out that are printed; machines and reports get all of them."""


class Console:
    """Prints for a person, or nothing when quiet."""

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self._out = RichConsole(quiet=quiet)
        self._err = RichConsole(stderr=True, quiet=quiet)
        self._progress: Progress | None = None

    def note(self, text: str) -> None:
        """One line of information on stderr."""
        self._err.print(text, style="dim", highlight=False)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Progress bars live inside; they vanish when done."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        # Without a terminal all that bars leave behind is an empty line.
        shown: dict[str, Any] = {"transient": True, "disable": not self._err.is_terminal}
        with Progress(*columns, TimeElapsedColumn(), console=self._err, **shown) as progress:
            self._progress = progress
            try:
                yield
            finally:
                self._progress = None

    def task(self, name: str, total: int | None = None) -> Callable[[int, int | None], None]:
        """Starts a bar; the returned function takes (done, total)."""
        if self._progress is None:
            return lambda done, total=None: None
        for task in self._progress.tasks:
            self._progress.remove_task(task.id)
        task_id = self._progress.add_task(name, total=total)

        def update(done: int, total: int | None = None) -> None:
            if self._progress is not None:
                self._progress.update(task_id, completed=done)
                if total is not None:
                    self._progress.update(task_id, total=total)

        return update

    def start(self, name: str) -> None:
        """A bar without a known end."""
        self.task(name)

    def answer(self, answer: "Answer") -> None:
        """The answer and its stage table."""
        self._out.print(f"\n[bold]{_escape(answer.question)}[/bold]")
        self._out.print(_escape(answer.text) or "[dim](empty answer)[/dim]", highlight=False)
        self._out.print()
        share = f"{answer.kept:,} of {answer.visual:,} visual tokens ({answer.kept / answer.visual:.1%})"
        kept = f"{answer.reducer} kept {share}"
        self._out.print(stage_table(answer.stages, kept))
        if answer.untrained:
            self._out.print(
                "[yellow]The weights of this model are random: its answers are noise, its costs are real.[/yellow]"
            )

    def reduction(self, record: dict[str, Any]) -> None:
        """Where the drawing is, and the count of every method."""
        table = Table(box=box.SIMPLE_HEAD)
        for name, justify in [("method", "left"), ("asked", "right"), ("tokens", "right"), ("of all", "right")]:
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for row in record["methods"]:
            table.add_row(row["method"], f"{row['ratio']:.1%}", f"{row['tokens']:,}", f"{row['achieved']:.1%}")
        self._out.print(table)
        self._out.print(f"drawn on {record['frames']} frames: [bold]{_escape(record['out'])}[/bold]")

    def sweep(self, table: "SweepTable", record: dict[str, Any]) -> None:
        """Accuracy of every method at every ratio with its interval, and where the files are."""
        self._out.print(sweep_table(table, intervals=self._out.width >= 130))
        for method, reasons in table.refused.items():
            self._out.print(f"[dim]{method}: {_escape(next(iter(reasons.values())))}[/dim]", highlight=False)
        if record["untrained"]:
            self._out.print(
                "[yellow]The weights of this model are random: its accuracies are noise, its costs are real.[/yellow]"
            )
        self.left_out(record)
        resumed = f" ({record['resumed_samples']:,} were there)" if record["resumed_samples"] else ""
        self._out.print(f"{record['samples']:,} answers{resumed} · table.csv, plots and records beside the report")
        self._out.print(f"report: [bold]{_escape(record['report'])}[/bold]", soft_wrap=True)

    def left_out(self, record: dict[str, Any]) -> None:
        """What was left out, a sentence each."""
        bad = record["left_out"]
        if bad:
            self._out.print(f"[yellow]left out: {len(bad)}[/yellow]")
        for one in bad[:LISTED]:
            text = one["reason"] if one["item"] in one["reason"] else f"{one['item']}: {one['reason']}"
            self._out.print(f"  {_escape(text)}", highlight=False, soft_wrap=True)
        if len(bad) > LISTED:
            self._out.print(f"  and {len(bad) - LISTED} more")

    def unfinished(self, record: dict[str, Any]) -> None:
        """A host that is done before others."""
        self._out.print(
            f"host {record['host']} of {record['hosts']} has done its clips; the host that finishes last writes the "
            f"report. If one has died, start it again, or the whole command: {_escape(record['folder'])}",
            highlight=False,
        )

    def training(self, record: dict[str, Any]) -> None:
        """Where the trained checkpoint is, and what it reached."""
        kept, visual = record["kept"], record["visual"]
        self.left_out(record)
        self._out.print(f"a clip keeps {kept:,} of {visual:,} visual tokens ({kept / visual:.1%})")
        for name, value in record["metrics"].items():
            self._out.print(f"{name} {value:.4g}", highlight=False)
        self._out.print(
            f"checkpoint of step {record['best_step']} of {record['steps']}: [bold]{_escape(record['model'])}[/bold]",
            soft_wrap=True,
        )

    def methods(self, rows: list[dict[str, Any]]) -> None:
        """Every method in three lines: name and paper, what it does, what it needs and promises."""
        for row in rows:
            paper = f"arXiv {row['paper']}" if row["paper"] != "-" else ""
            self._out.print(f"[bold]{row['name']}[/bold]  {_escape(row['title'])}  [dim]{paper}[/dim]", highlight=False)
            self._out.print(Padding(_escape(row["summary"]), (0, 0, 0, 2)), highlight=False)
            facts = [f"needs {', '.join(row['needs'])}" if row["needs"] else "needs the features alone"]
            facts.append("merges tokens" if row["merges"] else "selects tokens")
            facts += ["nested in the budget"] * row["nested"] + ["exact count"] * row["exact"]
            self._out.print(Padding(f"[dim]{_escape(' · '.join(facts))}[/dim]", (0, 0, 0, 2)), highlight=False)

    def flops(self, report: "FlopReport") -> None:
        """The breakdown of an answer's cost."""
        self._out.print(report)

    def plan(self, rows: "list[PlanRow]") -> None:
        """Memory and expected times, a row a chip, mesh, number of frames and ratio; one row alone stage by stage."""
        from jvidprune.cli.plan import plan_table, stages_table

        wide = self._out if self._out.is_terminal else RichConsole(width=120)
        wide.print(plan_table(rows))
        if len(rows) == 1:
            wide.print(stages_table(rows[0]))

    def show(self, table: Table) -> None:
        """A table that a verb has made."""
        self._out.print(table)

    def models(self, rows: list[dict[str, Any]]) -> None:
        """The family table."""
        table = Table(box=box.SIMPLE_HEAD)
        for name in rows[0]:
            table.add_column(name)
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        self._out.print(table)


def stage_table(stages: Iterable["Stage"], caption: str) -> Table:
    """Seconds, compile seconds, what was produced, its rate and the GFLOP it took, a row a stage."""
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("stage")
    for name in ("seconds", "compile s", "produced", "per second", "GFLOP"):
        table.add_column(name, justify="right")
    for stage in stages:
        table.add_row(
            stage.name,
            f"{stage.seconds:.3f}",
            f"{stage.compile_seconds:.2f}",
            f"{stage.tokens:,} {stage.unit}",
            f"{stage.rate:,.0f}",
            "" if stage.flops is None else f"{stage.flops / 1e9:,.3g}",
        )
    return table


def sweep_table(table: "SweepTable", *, intervals: bool) -> Table:
    """Methods by ratios, the best of a column bold; tokens and times are those of the smallest ratio a method has."""
    from jvidprune.evals.metrics import FULL
    from jvidprune.evals.plan import BASELINES, BLIND

    full, blind = table.cell(FULL, 1.0), table.cell(BLIND, 0.0)
    caption = [f"{table.clips} clips, {full.questions} questions" if full else f"{table.clips} clips"]
    caption += ["accuracy in per cent" + " with 95 % intervals" * intervals]
    smallest = min(table.ratios)
    swept = [method for method in table.methods if method not in BASELINES]
    refused = any(table.cell(method, smallest) is None for method in swept)
    else_at = " (tokens and ms else at a method's smallest)" * refused
    caption += [f"share of unpruned, tokens and ms an answer at {100 * smallest:g} %{else_at}"]
    out = Table(box=box.SIMPLE_HEAD, caption=" · ".join(caption), caption_justify="left")
    out.add_column("method", no_wrap=True)
    for ratio in table.ratios:
        out.add_column(f"{100 * ratio:g} %", justify="right", no_wrap=True)
    for name in ("share", "tokens", "ms"):
        out.add_column(name, justify="right", no_wrap=True)
    best = {r: max((c.accuracy for m in swept if (c := table.cell(m, r))), default=-1.0) for r in table.ratios}
    for cell in (full, blind):
        if cell is not None:
            row = [_accuracy(cell, intervals), *[""] * (len(table.ratios) - 1), "", f"{cell.kept:,.0f}"]
            cost = table.costs[cell.method, cell.ratio]
            out.add_row(BASELINES[cell.method], *row, _milliseconds(cost), style="dim", end_section=cell is blind)
    for method in swept:
        cells = [table.cell(method, ratio) for ratio in table.ratios]
        texts = ["–" if c is None else _accuracy(c, intervals, bold=c.accuracy == best[c.ratio]) for c in cells]
        last = min((c for c in cells if c is not None), key=lambda cell: cell.ratio, default=None)
        if last is not None:
            at = last.ratio
            rel = f"{100 * last.relative:.0f} %" if last.relative == last.relative and at == smallest else ""
            out.add_row(
                _escape(table.titles.get(method, method)),
                *texts,
                rel,
                f"{last.kept:,.0f}",
                _milliseconds(table.costs[method, at]),
            )
    return out


def _milliseconds(cost: "Cost") -> str:
    return f"{1000 * cost.answer:,.1f}" if cost.answer == cost.answer else ""


def _accuracy(cell: "Cell", interval: bool, *, bold: bool = False) -> str:
    number = f"{100 * cell.accuracy:.1f}"
    text = f"[bold]{number}[/bold]" if bold else number
    return f"{text} [dim]{100 * cell.low:.0f}–{100 * cell.high:.0f}[/dim]" if interval else text


def parity_tables(reports: Iterable[FileReport], *, as_json: bool, quiet: bool) -> bool:
    """Prints one table over all reports; True if every file passed."""
    styles = {"ok": "green", "mismatch": "bold red", "not compared": "red"}
    table = Table(box=box.SIMPLE_HEAD, title="parity with the reference implementations")
    for name, justify in [
        ("file", "left"),
        ("method", "left"),
        ("compared", "left"),
        ("largest deviation", "right"),
        ("allowed", "right"),
        ("verdict", "left"),
        ("note", "left"),
    ]:
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    records, counts, all_passed = [], dict.fromkeys(styles, 0), True
    for report in reports:
        all_passed &= report.passed
        for number, row in enumerate(report.rows):
            counts[row.verdict] += 1
            records.append({"file": report.file, "method": report.method} | dataclasses.asdict(row))
            table.add_row(
                _escape(report.file) if number == 0 else "",
                report.method if number == 0 else "",
                _escape(row.what),
                "" if row.deviation is None else f"{row.deviation:.3g}",
                "" if row.limit is None else f"{row.limit:.3g}",
                f"[{styles[row.verdict]}]{row.verdict}[/]",
                _escape(row.note),
            )
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count or verdict == "ok")
    if as_json:
        print(
            json.dumps(
                {"passed": all_passed, "counts": counts, "rows": records}, indent=1, allow_nan=False, default=str
            )
        )
        return all_passed
    width = None if sys.stdout.isatty() else 160
    console = RichConsole(width=width)
    if not quiet:
        console.print(table)
    console.print(f"[bold {'green' if all_passed else 'red'}]{'passed' if all_passed else 'failed'}[/]: {summary}")
    return all_passed


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
