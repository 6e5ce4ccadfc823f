"""The sweep as a user meets it: choose a task and methods, run or resume, print, write the report."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from jvidprune.cli.console import Console
from jvidprune.cli.left_out import listed, note_left_out, nothing_answered
from jvidprune.cli.run import check_reading, open_model
from jvidprune.costs.fits import check_question
from jvidprune.errors import JvidpruneError
from jvidprune.evals.hosts import GRACE, Host
from jvidprune.evals.items import left_out
from jvidprune.evals.metrics import FULL
from jvidprune.evals.pairs import possible_ratios
from jvidprune.evals.plan import BASELINES, SweepPlan
from jvidprune.evals.results import SweepTable, make_table, write_csv
from jvidprune.evals.runner import SweepRecords, run_sweep
from jvidprune.evals.subset import Subset, answerable
from jvidprune.files import atomic_output, check_folder
from jvidprune.launch import start
from jvidprune.llm.encoded import sweep_video
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.reducers import registry
from jvidprune.reducers.protocol import check_ratio
from jvidprune.viz.decision import Decision
from jvidprune.viz.sweep_examples import disagreements, draw_examples
from jvidprune.viz.sweep_plots import nearest_ratio, retention_plot, standalone, time_plot
from jvidprune.viz.sweep_report import sweep_page

METHODS = "random,uniform,attention_topk,visionzip,fastvid,flashvid,holitom,aot,stop,ottvid,dycoke,prunevid"
"""What is compared unless the user says otherwise."""

CLIPS = 50
"""Clips of the procedural benchmark in a default run: all of it stays below five minutes on two cores."""

SIDE = 392
"""Height and width of its frames for towers of any resolution (the Qwen-VL families)."""


@dataclasses.dataclass(frozen=True)
class SweepChoice:
    """What to sweep, as it was written on the command line."""

    methods: Sequence[str]
    ratios: tuple[float, ...]
    task: str
    data: Path | None
    clips: int | None
    questions: Literal["answerable", "all"]
    max_new_tokens: int
    out: Path | None
    strict: bool = False


def read_ratios(text: str) -> tuple[float, ...]:
    """Ratios from "0.25,0.1".

    Raises:
      JvidpruneError: something that is no number in (0, 1].
    """
    return tuple(check_ratio(part.strip()) for part in text.split(",") if part.strip())  # type: ignore[arg-type]


def sweep(
    choice: SweepChoice,
    *,
    model: dict[str, Any],
    console: Console,
    launch: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[SweepTable | None, dict[str, Any]]:
    """Runs or resumes a sweep and writes table.csv, retention.svg, time.svg and report.html into its folder.

    Args:
      choice: what to sweep.
      model: which model.
      console: talks to people.
      launch: `coordinator`, `processes` and `process_id` as for `launch.start`, or `host` ("0/4") for processes that
        nothing but the folder connects; each process runs its own clips.

    Returns:
      The table, and a plain record for machines. While other processes have clips to do there is no table: the one that
      finishes last makes it.

    Raises:
      JvidpruneError: no or unknown methods, impossible numbers, a folder that cannot be written to, nothing that can be
        asked, or with `strict` anything that cannot.
    """
    if not choice.methods:
        raise JvidpruneError("a sweep needs at least one method: names separated by commas, as in random,flashvid.")
    for text in choice.methods:
        registry.from_text(text)
    for ratio in choice.ratios:
        check_ratio(ratio)
    check_reading(model)
    if choice.task == "procedural" and model["fps"] is not None:
        raise JvidpruneError("clips of the procedural benchmark have a frame a second: say how many with --frames.")
    if choice.out is not None:
        check_folder(choice.out)
    host, grace = open_host(launch)
    with console.working():
        if model["model"] is not None:
            # The unpruned prompt, which every sweep asks. Frames of the procedural benchmark are small squares.
            size = (SIDE, SIDE) if choice.task == "procedural" else None
            count = Procedural.frames if choice.task == "procedural" and model["frames"] is None else model["frames"]
            options = {"frames": count, "dtype": model["dtype"], "max_new_tokens": choice.max_new_tokens, "size": size}
            options |= {"mesh": model.get("mesh", ""), "revision": model.get("revision")}
            options["convention"] = model.get("convention")
            check_question(model["model"], None, "", reducer=FULL, ratio=1.0, **options)
        llm = open_model(model, console)
        task = open_task(choice, llm, model, console)
        names = [name for name in dict.fromkeys(choice.methods) if name not in BASELINES]
        plan = SweepPlan({name: llm.reducer(name) for name in names}, choice.ratios, choice.max_new_tokens)
        bar, text = None, ""

        def progress(doing: str, done: int, total: int) -> None:
            nonlocal bar, text
            if bar is None or doing != text:
                bar, text = console.task(doing, total), doing
            bar(done, total)

        options: dict[str, Any] = {"host": host, "grace": grace, "strict": choice.strict}
        options |= {"progress": progress, "report": lambda bad: console.note(f"left out: {bad}")}
        found = run_sweep(llm, task, plan, choice.out, **options)
        if not found.complete:
            record = {"folder": str(found.files.folder), "complete": False, "host": host.number, "hosts": host.of}
            return None, record | {"left_out": listed(found.left_out)}
        if not found.samples:
            raise JvidpruneError(nothing_answered(task.name, found.left_out))
        console.start("writing the report")
        table = make_table(found, task, {name: registry.title(name) for name in names})
        shown = "the embedded model" if model["model"] is None else llm.loaded.folder.name
        record = write_outputs(llm, task, plan, found, table, shown)
    return table, record


def open_host(launch: Mapping[str, Any]) -> tuple[Host, float]:
    """This process among those of the sweep, and how long it waits for the others in the end.

    Raises:
      JvidpruneError: numbers that contradict each other, or a host that is not written as in 0/4.
    """
    text = launch.get("host")
    if not text:
        names = ("coordinator", "processes", "process_id")
        started = start(*(launch.get(name) for name in names), keep_running=True)
        return Host(started.process, started.processes), GRACE
    if any(launch.get(name) is not None for name in ("coordinator", "processes", "process_id")):
        raise JvidpruneError(f"host {text} needs no coordinator: leave out --coordinator, --processes, --process-id.")
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(of)):
        raise JvidpruneError(f"a host is written as in 0/4, got {text!r}.")
    return Host(int(number), int(of)), 0.0


def open_task(choice: SweepChoice, llm: VideoLLM, model: dict[str, Any], console: Console) -> Any:
    """The procedural benchmark at the size of the model's tower, or a local copy of a published one.

    Raises:
      JvidpruneError: an unknown task, or files that are not there.
    """
    if choice.clips is not None and choice.clips < 1:
        raise JvidpruneError(f"a sweep needs at least 1 clip, got {choice.clips}.")
    if choice.task == "procedural":
        if choice.data is not None:
            raise JvidpruneError("the procedural benchmark reads no files: leave out --data or name a --task.")
        side = getattr(llm.loaded.config.vision, "image_size", SIDE)
        count = Procedural.frames if model["frames"] is None else model["frames"]
        settings: dict[str, Any] = {"frames": count, "side": max(56, side)}
        clips = choice.clips or CLIPS
        measured = llm.loaded.folder / "accuracy.csv"
        if choice.questions == "all" or not measured.exists():
            return Procedural("test", clips=clips, **settings)
        return answerable_part(measured, clips, **settings)
    from jvidprune.evals.datasets import open_dataset

    wish, limits = llm.settings.wish(model["frames"], model["fps"]), check_reading(model)
    options: dict[str, Any] = {"clips": choice.clips, "wish": wish, "limits": limits, "strict": choice.strict}
    task = open_dataset(choice.task, choice.data, **options)
    note_left_out(left_out(task), console)
    return task


def answerable_part(measured: Path, clips: int, **settings: Any) -> Subset:
    """So many clips of the procedural benchmark with the questions that a model was measured to answer above chance."""
    pairs = answerable(measured)
    if not pairs:
        raise JvidpruneError(f"{measured} has no question above chance; ask --questions all.")
    categories = tuple(dict.fromkeys(category for category, _ in pairs))
    return Subset(Procedural("test", clips=20 * clips, categories=categories, **settings), pairs, clips)


def write_outputs(
    llm: VideoLLM, task: Any, plan: SweepPlan, found: SweepRecords, table: SweepTable, model: str
) -> dict[str, Any]:
    """Everything a reader opens; each file appears whole."""
    folder = found.files.folder
    write_csv(table, folder / "table.csv")

    ratios = {name: some for name, _, some in plan.groups()}

    def decide(clip: Any, methods: Sequence[str], ratio: float) -> dict[str, Decision]:
        video = llm.encode(clip.frames, plan.needs)
        out = {}
        for name in methods:
            # Those of this clip, as the run asked for them: its compiled program serves again.
            possible, _ = possible_ratios(plan.methods[name], video, ratios[name])
            reduced = sweep_video(video, plan.methods[name], possible)[possible.index(ratio)].reduced
            shape = {"frames": video.features.shape[0], "grid": video.grid}
            out[name] = Decision.from_reduced(reduced, method=table.titles[name], ratio=ratio, **shape)
        return out

    examples = draw_examples(disagreements(found.samples, nearest_ratio(table)), task, decide)
    note = ""
    if llm.untrained:
        note = "The weights of this model are random: accuracies are noise, token counts and times are real."
    elif isinstance(task, Subset):
        asked = ", ".join(f"{category} ({kind.replace('_', '/')})" for category, kind in task.pairs)
        note = f"Asked are the questions that this model was measured to answer above chance: {asked}; on the others "
        note += "nothing can be seen of pruning (--questions all asks them too)."
    page = sweep_page(table, examples, model=model, note=note)
    files = {"retention.svg": standalone(retention_plot(table)), "time.svg": standalone(time_plot(table))}
    for name, text in (files | {"report.html": page}).items():
        with atomic_output(folder / name) as part:
            part.write_text(text, encoding="utf8")
    return {
        "folder": str(folder),
        "complete": True,
        "report": str(folder / "report.html"),
        "untrained": llm.untrained,
        "resumed_samples": found.resumed,
        "samples": len(found.samples),
        "rows": [_known(table.cells[run[0], run[1], "all"]) for run in table.runs],
        "costs": [_known(table.costs[run]) for run in table.runs],
        "refused": table.refused,
        "left_out": listed(table.left_out),
    }


def _known(row: Any) -> dict[str, Any]:
    """Fields of a row; numbers that do not exist are None, as JSON has no NaN."""
    return {key: None if value != value else value for key, value in dataclasses.asdict(row).items()}
