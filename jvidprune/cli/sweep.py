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
    from jvidprune.cli.console import Console
    from jvidprune.evals.counts import Against
    from jvidprune.evals.hosts import Host
    from jvidprune.evals.items import Task
    from jvidprune.evals.plan import SweepPlan
    from jvidprune.evals.results import SweepTable
    from jvidprune.evals.runner import SweepRecords
    from jvidprune.llm.video_llm import VideoLLM
    from jvidprune.video.limits import Limits

METHODS = "random,uniform,attention_topk,visionzip,fastvid,flashvid,holitom,aot,stop,ottvid,dycoke,prunevid"
"""What is compared unless the user says otherwise."""

CONTROLS = "random,uniform,pool_space,pool_time,sample_space,sample_time,downscale"
"""What every sweep is held against unless the user says otherwise: none of them looks at the video."""


@dataclasses.dataclass(frozen=True)
class SweepChoice:
    """What to sweep."""

    methods: str = ""
    """As in "flashvid(alpha=0.5),./my_reducer.py:Mine", separated by commas; by default all that read the
    video before the language model."""
    controls: str = CONTROLS
    """Reducers that run beside the methods and that these are held against; "none" leaves them out. By default
    downscale runs where the tower reads frames of any size."""
    ratios: str | None = None
    """Retention ratios in (0, 1], separated by commas; by default 0.25,0.2,0.15,0.1,0.05, and 0.25,0.1,0.05 of a model
    that was trained for the detailed setting of the procedural benchmark."""
    task: str = "procedural"
    """"procedural", or a published benchmark: videomme, mvbench, egoschema, longvideobench, mlvu, nextqa,
    eventhallusion and more (docs/evaluation.md); "exported" reads what `jvidprune bench export` wrote."""
    prompts: Literal["lmms_eval", "stop", "official"] | None = None
    """Whose wording a published benchmark is asked in; by default lmms-eval's where it has the benchmark."""
    data: Path | None = None
    """Folder with a published benchmark's annotations and videos."""
    clips: int | None = None
    """Look at the first so many clips only. Of the procedural benchmark about 300, of three questions each, tell two
    methods 5 points apart at 10 % (experiments/retention_all.md); every report counts how many its own run needs."""
    questions: Literal["answerable", "all"] = "answerable"
    """Of the procedural benchmark: those that the model was measured to answer above chance, or all."""
    max_new_tokens: int | None = None
    """Longest answer; by default as long as the benchmark's evaluation allows, 8 in the procedural benchmark."""
    one_frame: Literal["auto", "yes", "no"] = "auto"
    """Ask with the middle frame alone as well, and mark the categories that it answers; unasked in the procedural
    benchmark."""
    strict: bool = False
    """Stop at the first video or annotation that cannot be used, instead of leaving it out and listing it."""
    match: Literal["tokens", "flops", "kv"] | None = None
    """Ask each method for what costs as much as a plain selection at each ratio: tokens of a layer, FLOPs of the
    prefill, or bytes of keys and values; by default for the ratio itself."""
    against: (
        Literal["tokens", "nominal", "tokens_all", "layer_tokens", "layer_all", "prefill_tflops", "kv_bytes"] | None
    ) = None
    """What accuracies are drawn against at first, in the page with its switch and in retention.svg
    (docs/evaluation.md): by default visual tokens at the language model's input, or what --match makes equal."""
    throughput: bool = False
    """Measure beside accuracies how fast methods answer, alone and in the largest batch that fits, and the memory
    that they hold."""
    largest_batch: int = 32
    """Of --throughput: the largest batch that is tried."""
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

    def controls_for(self, llm: "VideoLLM") -> list[str]:
        """The controls that run on a model: those that were asked for, or of the usual ones those that it can."""
        usual = self.controls == CONTROLS and llm.settings.sized is None
        return [name for name in self.control_names() if not (usual and name == "downscale")]

    def drawn_against(self) -> "Against":
        """What accuracies are drawn against: as asked for, else what costs are matched by, else tokens."""
        matched: dict[str | None, Against] = {"tokens": "layer_tokens", "flops": "prefill_tflops", "kv": "kv_bytes"}
        return self.against or matched.get(self.match, "tokens")

    def longest(self) -> int:
        """Tokens of the longest answer.

        Raises:
          JvidpruneError: an unknown task.
        """
        from jvidprune.evals.datasets import answer_tokens

        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 8 if self.task == "procedural" else answer_tokens(self.task)

    def read_ratios(self, default: tuple[float, ...] = ()) -> tuple[float, ...]:
        """Ratios from "0.25,0.1".

        Args:
          default: where none are named.

        Raises:
          JvidpruneError: something that is no number in (0, 1].
        """
        from jvidprune.reducers.protocol import check_ratio

        if self.ratios is None:
            return default
        return tuple(check_ratio(part.strip()) for part in self.ratios.split(",") if part.strip())  # type: ignore[arg-type]

    def ratios_for(self, llm: "VideoLLM") -> tuple[float, ...]:
        """The ratios that were asked for, else the usual ones of the benchmark."""
        from jvidprune.evals.plan import RATIOS
        from jvidprune.evals.tasks import DEFAULT_SWEEPS

        usual = DEFAULT_SWEEPS[llm.settings.benchmark].ratios if self.task == "procedural" else RATIOS
        return self.read_ratios(usual)


CHOICE = SweepChoice()


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
    from jvidprune.cli.sweep_shown import show_sweep, show_unfinished

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
    from jvidprune.cli.reading import open_model
    from jvidprune.evals.items import left_out
    from jvidprune.evals.runner import run_sweep
    from jvidprune.evals.tasks import open_task

    limits = _checked(choice, model)
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
        plan = _plan(choice, llm)
        found = run_sweep(
            llm,
            task,
            plan,
            choice.save,
            host=host,
            grace=grace,
            strict=choice.strict,
            progress=console.bars(),
            report=lambda bad: console.note(f"left out: {bad}"),
        )
        if not found.complete:
            record = {"folder": str(found.files.folder), "complete": False, "host": host.number, "hosts": host.of}
            return None, record | {"left_out": listed(found.left_out)}
        if not found.samples:
            raise JvidpruneError(nothing_answered(task.name, found.left_out))
        return _written(choice, llm, task, plan, found, embedded=model.model is None, console=console)


def _checked(choice: SweepChoice, model: ModelChoice) -> "Limits":
    """What is accepted of files; whatever can be refused without the model is refused here."""
    from jvidprune.cli.reading import check_reading
    from jvidprune.evals.throughput import check_limit
    from jvidprune.files import check_folder
    from jvidprune.reducers import registry

    methods, controls = choice.names(), choice.control_names()
    choice.read_ratios()
    for text in (*methods, *controls):
        registry.from_text(text)
    limits = check_reading(model)
    check_limit(choice.largest_batch)
    if choice.task == "procedural" and model.fps is not None:
        raise JvidpruneError("clips of the procedural benchmark have a frame a second: say how many with --frames.")
    if choice.save is not None:
        check_folder(choice.save)
    return limits


def _plan(choice: SweepChoice, llm: "VideoLLM") -> "SweepPlan":
    """Methods and controls with a model's settings, and the ratios."""
    from jvidprune.evals.plan import BASELINES, SweepPlan

    methods = [name for name in dict.fromkeys(choice.names()) if name not in BASELINES]
    controls = [name for name in choice.controls_for(llm) if name not in BASELINES]
    return SweepPlan(
        {name: llm.reducer(name) for name in methods},
        choice.ratios_for(llm),
        choice.longest(),
        controls={name: llm.reducer(name) for name in controls},
        match=choice.match,
        single=choice.one_frame == "yes" or (choice.one_frame == "auto" and choice.task == "procedural"),
    )


def _written(
    choice: SweepChoice,
    llm: "VideoLLM",
    task: "Task",
    plan: "SweepPlan",
    found: "SweepRecords",
    *,
    embedded: bool,
    console: "Console",
) -> "tuple[SweepTable | None, dict[str, Any]]":
    """Table and record of a finished run, its files written; no table where a judge has to read all answers."""
    from jvidprune.cli.left_out import listed
    from jvidprune.evals.records import counted
    from jvidprune.evals.results import make_table
    from jvidprune.evals.throughput import measure_throughput, read_throughput
    from jvidprune.reducers import registry
    from jvidprune.viz.sweep_files import write_outputs

    titles = {name: registry.title(name) for name in plan.reducers}
    if choice.throughput:
        measure_throughput(llm, task, plan, found, limit=choice.largest_batch, progress=console.bars())
    if not counted(found.samples):
        return None, _to_be_judged(found, titles) | {"left_out": listed(found.left_out)}
    console.start("writing the report")
    limit = choice.largest_batch if choice.throughput else None
    table = make_table(found, task, titles)
    table = dataclasses.replace(table, throughput=read_throughput(llm, task, plan, found, limit=limit))
    shown = "the embedded model" if embedded else llm.loaded.folder.name
    record = write_outputs(llm, task, plan, found, table, shown, choice.drawn_against())
    return table, record | {"left_out": listed(table.left_out)}


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
    from jvidprune.llm.folder import declared_benchmark
    from jvidprune.procedural.benchmark import in_setting

    if model.model is None:
        return
    # Frames of the procedural benchmark are small squares.
    procedural, frames = choice.task == "procedural", model.frames
    if procedural and frames is None:
        frames = in_setting(declared_benchmark(model.model, model.revision), "test", 1).frames
    check_question(
        model.model,
        None,
        "",
        reducer=FULL,
        ratio=1.0,
        frames=frames,
        dtype=model.dtype,
        quantise=model.quantise,
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
