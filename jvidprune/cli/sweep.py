"""`jvidprune sweep`: methods by accuracy at retention ratios, with a report; resumes if stopped."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from jvidprune.cli.options import (
    MODEL,
    OUTPUT,
    PROCESSES,
    Common,
    Model,
    ModelChoice,
    ProcessChoice,
    Processes,
    print_json,
)
from jvidprune.errors import JvidpruneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from jvidprune.cli.console import Console
    from jvidprune.evals.hosts import Host
    from jvidprune.evals.metrics import Cell
    from jvidprune.evals.results import Cost, SweepTable
    from jvidprune.evals.runner import SweepRecords

METHODS = "random,uniform,attention_topk,visionzip,fastvid,flashvid,holitom,aot,stop,ottvid,dycoke,prunevid"
"""What is compared unless the user says otherwise."""

CONTROLS = "random,uniform,pool_space,pool_time,sample_space,sample_time"
"""What every sweep is held against unless the user says otherwise: none of them looks at the video."""


@dataclasses.dataclass(frozen=True)
class SweepChoice:
    """What to sweep."""

    methods: str = ""
    """As in "flashvid(alpha=0.5),./my_reducer.py:Mine", separated by commas; by default all that read the
    video before the language model."""
    controls: str = CONTROLS
    """Reducers that run beside the methods and that these are held against; "none" leaves them out."""
    ratios: str = "0.25,0.2,0.15,0.1,0.05"
    """Retention ratios in (0, 1], separated by commas."""
    task: str = "procedural"
    """"procedural", or a published benchmark: videomme, mvbench, egoschema, longvideobench, mlvu, nextqa,
    eventhallusion and more (docs/evaluation.md); "exported" reads what `jvidprune bench export` wrote."""
    prompts: Literal["lmms_eval", "stop", "official"] | None = None
    """Whose wording a published benchmark is asked in; by default lmms-eval's where it has the benchmark."""
    data: Path | None = None
    """Folder with a published benchmark's annotations and videos."""
    clips: int | None = None
    """Look at the first so many clips only."""
    questions: Literal["answerable", "all"] = "answerable"
    """Of the procedural benchmark: those that the embedded model was measured to answer above chance, or all."""
    max_new_tokens: int | None = None
    """Longest answer; by default as long as the benchmark's evaluation allows, 8 in the procedural benchmark."""
    strict: bool = False
    """Stop at the first video or annotation that cannot be used, instead of leaving it out and listing it."""
    save: Annotated[Path | None, arg(name="out")] = None
    """Folder of the run; by default runs/<hash of what changes results>."""

    def names(self) -> list[str]:
        """The methods as they were typed.

        Raises:
          JvidpruneError: none.
        """
        from jvidprune.expressions import split_list

        found = split_list(self.methods or METHODS)
        if not found:
            raise JvidpruneError("a sweep needs at least one method: names separated by commas, as in random,flashvid.")
        return found

    def control_names(self) -> list[str]:
        """The controls as they were typed, without those that are among the methods.

        Raises:
          JvidpruneError: no control; "none" says that none is wanted.
        """
        from jvidprune.expressions import split_list

        found = split_list(self.controls)
        if not found:
            raise JvidpruneError('controls are names separated by commas, as in random,pool_space, or "none".')
        methods = self.names()
        return [name for name in dict.fromkeys(found) if name not in methods] if found != ["none"] else []

    def longest(self) -> int:
        """Tokens of the longest answer.

        Raises:
          JvidpruneError: an unknown task.
        """
        from jvidprune.evals.datasets import answer_tokens

        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 8 if self.task == "procedural" else answer_tokens(self.task)

    def read_ratios(self) -> tuple[float, ...]:
        """Ratios from "0.25,0.1".

        Raises:
          JvidpruneError: something that is no number in (0, 1].
        """
        from jvidprune.reducers.protocol import check_ratio

        return tuple(check_ratio(part.strip()) for part in self.ratios.split(",") if part.strip())  # type: ignore[arg-type]


CHOICE = SweepChoice()

MARK = "†"
"""Behind an accuracy that is not shown to beat the best control."""


def sweep(
    *,
    choice: Annotated[SweepChoice, OmitArgPrefixes] = CHOICE,
    model: Model = MODEL,
    launch: Processes = PROCESSES,
    out: Common = OUTPUT,
) -> None:
    """Compare methods by accuracy at retention ratios: a table, a CSV file, plots and report.html; resumes if stopped.

    Videos and annotations that cannot be used are left out and listed. With --out a folder gathers what is asked of it:
    further clips, methods and ratios, or a mended video, are added to what is there.
    """
    console = out.console()
    table, record = swept(choice, model=model, launch=launch, console=console)
    if out.json:
        print_json(record)
    elif table is None:
        show_unfinished(console, record)
    elif out.quiet:
        print(record["report"])
    else:
        show_sweep(console, table, record)


def swept(
    choice: SweepChoice, *, model: ModelChoice, launch: ProcessChoice, console: "Console"
) -> "tuple[SweepTable | None, dict[str, Any]]":
    """Runs or resumes a sweep and writes its three tables, two plots and report.html into its folder.

    Args:
      choice: what to sweep.
      model: which model.
      launch: which process this is; each runs its own clips.
      console: talks to people.

    Returns:
      The table, and a plain record for machines. While other processes have clips to do there is no table: the one that
      finishes last makes it. Of a task whose answers a judge has to read there is none either.

    Raises:
      JvidpruneError: no or unknown methods, impossible numbers, a folder that cannot be written to, nothing that can be
        asked, or with `strict` anything that cannot.
    """
    from jvidprune.cli.left_out import listed, note_left_out, nothing_answered
    from jvidprune.cli.reading import check_reading, open_model
    from jvidprune.evals.items import left_out
    from jvidprune.evals.plan import BASELINES, SweepPlan
    from jvidprune.evals.records import counted
    from jvidprune.evals.results import make_table
    from jvidprune.evals.runner import run_sweep
    from jvidprune.evals.tasks import open_task
    from jvidprune.files import check_folder
    from jvidprune.reducers import registry
    from jvidprune.viz.sweep_files import write_outputs

    methods, controls, ratios = choice.names(), choice.control_names(), choice.read_ratios()
    for text in (*methods, *controls):
        registry.from_text(text)
    limits = check_reading(model)
    if choice.task == "procedural" and model.fps is not None:
        raise JvidpruneError("clips of the procedural benchmark have a frame a second: say how many with --frames.")
    if choice.save is not None:
        check_folder(choice.save)
    host, grace = open_host(launch)
    with console.working():
        check_prompt(choice, model)
        llm = open_model(model, console)
        task = open_task(
            choice.task,
            choice.data,
            llm,
            clips=choice.clips,
            questions=choice.questions,
            frames=model.frames,
            fps=model.fps,
            limits=limits,
            strict=choice.strict,
            prompts=choice.prompts,
        )
        note_left_out(left_out(task), console)
        names = [name for name in dict.fromkeys(methods) if name not in BASELINES]
        plan = SweepPlan(
            {name: llm.reducer(name) for name in names},
            ratios,
            choice.longest(),
            controls={name: llm.reducer(name) for name in controls if name not in BASELINES},
        )
        found = run_sweep(
            llm,
            task,
            plan,
            choice.save,
            host=host,
            grace=grace,
            strict=choice.strict,
            progress=_bars(console),
            report=lambda bad: console.note(f"left out: {bad}"),
        )
        if not found.complete:
            record = {"folder": str(found.files.folder), "complete": False, "host": host.number, "hosts": host.of}
            return None, record | {"left_out": listed(found.left_out)}
        if not found.samples:
            raise JvidpruneError(nothing_answered(task.name, found.left_out))
        titles = {name: registry.title(name) for name in plan.reducers}
        if not counted(found.samples):
            return None, _to_be_judged(found, titles) | {"left_out": listed(found.left_out)}
        console.start("writing the report")
        table = make_table(found, task, titles)
        shown = "the embedded model" if model.model is None else llm.loaded.folder.name
        record = write_outputs(llm, task, plan, found, table, shown)
    return table, record | {"left_out": listed(table.left_out)}


def _bars(console: "Console") -> "Callable[[str, int, int], None]":
    """Progress of a run as a bar for each thing that it does in turn."""
    bar, text = None, ""

    def progress(doing: str, done: int, total: int) -> None:
        nonlocal bar, text
        if bar is None or doing != text:
            bar, text = console.task(doing, total), doing
        bar(done, total)

    return progress


def _to_be_judged(found: "SweepRecords", titles: dict[str, str]) -> dict[str, Any]:
    """The record of a run all of whose answers a judge has to read; its files hold what was judged of them."""
    from jvidprune.evals.judge.scores import judged_run
    from jvidprune.evals.plan import BASELINES
    from jvidprune.viz.judged_report import write_judged_files

    folder = found.files.folder
    scored = judged_run(folder, found.samples)
    report = write_judged_files(folder, scored, BASELINES | titles, found.identity)
    record = {"folder": str(folder), "complete": True, "samples": len(found.samples), "report": str(report)}
    return record | {"unjudged": scored.awaiting, "judged": [row.row() for row in scored.rows]}


def check_prompt(choice: SweepChoice, model: ModelChoice) -> None:
    """Refuses what cannot hold the unpruned prompt, which every sweep asks.

    Raises:
      JvidpruneError: it does not fit into memory or the model's positions.
    """
    from jvidprune.costs.fits import check_question
    from jvidprune.evals.metrics import FULL
    from jvidprune.evals.tasks import SIDE
    from jvidprune.procedural.benchmark import Procedural

    if model.model is None:
        return
    # Frames of the procedural benchmark are small squares.
    procedural = choice.task == "procedural"
    check_question(
        model.model,
        None,
        "",
        reducer=FULL,
        ratio=1.0,
        frames=Procedural.frames if procedural and model.frames is None else model.frames,
        dtype=model.dtype,
        max_new_tokens=choice.longest(),
        size=(SIDE, SIDE) if procedural else None,
        mesh=model.mesh,
        revision=model.revision,
        convention=model.convention,
    )


def open_host(launch: ProcessChoice) -> "tuple[Host, float]":
    """This process among those of the sweep, and how long it waits for the others in the end.

    Raises:
      JvidpruneError: numbers that contradict each other, or a host that is not written as in 0/4.
    """
    from jvidprune.evals.hosts import GRACE, Host
    from jvidprune.launch import start

    if not launch.host:
        started = start(launch.coordinator, launch.processes, launch.process_id, keep_running=True)
        return Host(started.process, started.processes), GRACE
    if any(value is not None for value in (launch.coordinator, launch.processes, launch.process_id)):
        raise JvidpruneError(
            f"host {launch.host} needs no coordinator: leave out --coordinator, --processes, --process-id."
        )
    number, _, of = launch.host.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(of)):
        raise JvidpruneError(f"a host is written as in 0/4, got {launch.host!r}.")
    return Host(int(number), int(of)), 0.0


def show_sweep(console: "Console", table: "SweepTable", record: dict[str, Any]) -> None:
    """Accuracy of every method at every ratio with its interval, and where the files are."""
    from jvidprune.cli.console import marked
    from jvidprune.cli.judge import show_judged, waiting
    from jvidprune.cli.left_out import show_left_out
    from jvidprune.evals.controls import told
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
    for line in record["did_not_act"]:
        console.print(f"[yellow]{marked(line)}[/yellow]", plain=True)
    for method, reasons in table.refused.items():
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
    unproved = {run for run, standing in table.standings.items() if standing.outcome != "beats"}
    if unproved:
        caption.append(f"{MARK} not shown to beat the best control")
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
                _milliseconds(table.costs[method, at]),
            )
    return out


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


def _milliseconds(cost: "Cost") -> str:
    return f"{1000 * cost.answer:,.1f}" if cost.answer == cost.answer else ""


def _accuracy(cell: "Cell", interval: bool, *, bold: bool = False) -> str:
    number = f"{100 * cell.accuracy:.1f}"
    text = f"[bold]{number}[/bold]" if bold else number
    return f"{text} [dim]{100 * cell.low:.0f}–{100 * cell.high:.0f}[/dim]" if interval else text
