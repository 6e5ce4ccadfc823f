"""`jvidprune costs`: costs, masses, solvers and temperatures of a transport side by side, one compiled call a clip."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from jvidprune.cli.options import MODEL, OUTPUT, Common, Model, ModelChoice, print_json
from jvidprune.errors import JvidpruneError

if TYPE_CHECKING:
    from jvidprune.cli.console import Console


@dataclasses.dataclass(frozen=True)
class CostsChoice:
    """What is compared, every combination of it."""

    cost: str = "own,TokenCost(1.0, 0.0),LocalityCost"
    """Costs, separated by commas: "own" for the method's, the library's (by default features without places, and that
    of OTT-Vid), or one of yours: "my_cost.py:MyCost(2)"."""
    masses: str = "own"
    """Masses likewise, as in "own,Saliency(sources=-1.0)"."""
    solvers: str = "own"
    """Solvers likewise, as in "Sinkhorn,FixedSinkhorn,OttSinkhorn"."""
    projections: str = "own"
    """What is read of a plan: own, mass, row, column, hard."""
    epsilons: tuple[float, ...] = ()
    """Temperatures; by default each solver's own."""
    ratios: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Retention ratios."""
    where: Literal["inside", "along", "both"] = "both"
    """AOT's transport inside frames, along clips, or both."""
    reducer: str = "aot"
    """The method whose transports are exchanged: aot or ottvid with any settings."""
    clips: int = 20
    """Clips of the embedded benchmark, or of the folder at most."""
    questions: Literal["answerable", "all", "none"] | None = None
    """Of the embedded benchmark: those that the model answers above chance (the default), all, or none. Of a folder
    that `jvidprune bench export` wrote: all (the default), or none. Other folders have none."""
    timed: bool = False
    """Also measure the time of one reduction by each setting alone, which compiles a program for each."""


CHOICE = CostsChoice()


def costs(
    videos: Annotated[Path | None, Positional, arg(metavar="FOLDER")] = None,
    /,
    *,
    folder: Annotated[Path, arg(name="out")] = Path("runs/costs"),
    choice: Annotated[CostsChoice, OmitArgPrefixes] = CHOICE,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Compare costs, masses, solvers and temperatures of a transport, in one compiled call a clip; resumes if stopped.

    Reconstruction of what is dropped, objects recalled, right answers, marginal errors.

    Args:
      videos: folder of clips, or what `jvidprune bench export` wrote, which has questions; by default the embedded
        benchmark, which alone has objects.
      folder: of records, table (costs.md, costs.csv) and figure (costs.svg).
    """
    console = out.console()
    record = compare_costs(videos, folder, choice, model, console)
    if out.json:
        print_json(record)
    elif out.quiet:
        print(record["page"])
    else:
        console.print(Path(record["page"]).read_text(encoding="utf8"), plain=True, unbroken=True)
        console.print(record["page"], unbroken=True)


def compare_costs(
    videos: Path | None, folder: Path, choice: CostsChoice, model: ModelChoice, console: "Console"
) -> dict[str, Any]:
    """Measures, writes table and figure, and says where they are.

    Raises:
      JvidpruneError: parts that are none, a method without transport, a folder without videos, questions that it does
        not have, a rate of frames of the embedded benchmark.
    """
    from jvidprune.cli.reading import check_reading, open_model
    from jvidprune.evals.laboratory import Laboratory, run_laboratory, times_of
    from jvidprune.evals.laboratory_table import rows
    from jvidprune.evals.transport_settings import settings
    from jvidprune.expressions import split_list
    from jvidprune.files import check_folder
    from jvidprune.reducers.protocol import check_ratio
    from jvidprune.reducers.registry import from_text
    from jvidprune.viz.laboratory import write_laboratory

    # Before anything is loaded.
    ratios = tuple(check_ratio(ratio) for ratio in choice.ratios)
    lists = {name: split_list(getattr(choice, name)) for name in ("masses", "solvers", "projections")}
    options: dict[str, Any] = {**lists, "costs": split_list(choice.cost), "epsilons": choice.epsilons}
    options["where"] = choice.where
    settings(from_text(choice.reducer), **options)
    limits = check_reading(model)
    check_folder(folder)
    if choice.clips < 1:
        raise JvidpruneError(f"there must be at least 1 clip, got {choice.clips}.")
    if videos is None and model.fps is not None:
        raise JvidpruneError("clips of the procedural benchmark have a frame a second: say how many with --frames.")
    exported = videos is not None and has_questions(videos, choice.questions)
    files = None if videos is None or exported else video_files(videos)[: choice.clips]
    with console.working():
        llm = open_model(model, console)
        methods = settings(llm.reducer(choice.reducer), **options)
        lab = Laboratory(llm, methods, ratios)
        if videos is None:
            clips = embedded_clips(llm, choice, model.frames)
        elif files is None:
            clips = exported_clips(llm, videos, choice, model, console)
        else:
            clips = [_file_clip(llm, path, model, limits) for path in files]
        bar = console.task(f"{len(methods)} transports at {len(ratios)} ratios", len(clips))
        records = run_laboratory(lab, clips, folder, progress=bar)
        times = times_of(lab, clips[0]) if choice.timed else None
        what = "clips of the embedded benchmark" if videos is None else f"clips of {videos}"
        title = f"Transports of {choice.reducer} on {len(clips)} {what}"
        written = write_laboratory(folder, records, list(methods), ratios, title=title, times=times)
    found = rows(records, list(methods), ratios)
    return {
        "page": str(written[1]),
        "files": [str(path) for path in written],
        "clips": len(clips),
        "times": times,
        "rows": [{key: None if value != value else value for key, value in row.items()} for row in found],
    }


def video_files(folder: Path) -> list[Path]:
    """The videos of a folder, by name.

    Raises:
      JvidpruneError: no folder, or none in it.
    """
    if not folder.is_dir():
        raise JvidpruneError(f"there is no folder {folder} with clips.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _VIDEOS)
    if not found:
        raise JvidpruneError(f"the folder {folder} has no video ({', '.join(_VIDEOS)}).")
    return found


ANNOTATIONS = "annotations.json"
"""What `jvidprune bench export` writes beside its clips."""


def has_questions(folder: Path, wanted: Literal["answerable", "all", "none"] | None) -> bool:
    """Whether a folder is one with questions.

    Args:
      folder: of clips.
      wanted: of its questions.

    Raises:
      JvidpruneError: questions are wanted that the folder does not have.
    """
    there = (folder / ANNOTATIONS).is_file()
    if wanted in ("answerable", "all") and not there:
        raise JvidpruneError(
            f"{folder} has no questions ({ANNOTATIONS}, as jvidprune bench export writes it): leave out --questions."
        )
    if wanted == "answerable":
        raise JvidpruneError(
            f"which questions of {folder} the model answers above chance is not known: ask --questions all or none."
        )
    return there


def exported_clips(llm: Any, folder: Path, choice: CostsChoice, model: ModelChoice, console: "Console") -> list[Any]:
    """Clips of what `jvidprune bench export` wrote, with their questions or without; what cannot be used is named.

    Raises:
      JvidpruneError: annotations that are none, or no video that is there.
    """
    from jvidprune.cli.left_out import note_left_out
    from jvidprune.cli.reading import check_reading
    from jvidprune.evals.items import left_out
    from jvidprune.evals.laboratory import task_clips
    from jvidprune.evals.tasks import open_task

    options: dict[str, Any] = {"clips": choice.clips, "frames": model.frames, "fps": model.fps}
    task = open_task("exported", folder, llm, limits=check_reading(model), **options)
    note_left_out(left_out(task), console)
    return [clip._replace(questions=()) if choice.questions == "none" else clip for clip in task_clips(task)]


_VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")


def _file_clip(llm: Any, path: Path, model: ModelChoice, limits: Any) -> Any:
    from jvidprune.evals.laboratory import LabClip
    from jvidprune.files import content_mark

    wish = llm.settings.wish(model.frames, model.fps)
    return LabClip(
        path.name,
        lambda: llm.sample(path, frames=model.frames, fps=model.fps, limits=limits),
        lambda: {"video": content_mark(path)} | dataclasses.asdict(wish),
    )


def embedded_clips(llm: Any, choice: CostsChoice, frames: int | None = None) -> list[Any]:
    """Clips of the embedded benchmark, with what is seen in them and the questions that are wanted.

    Args:
      llm: the model that is asked.
      choice: how many, and which questions.
      frames: of a clip; by default the benchmark's own number.
    """
    from jvidprune.evals.laboratory import procedural_clips
    from jvidprune.evals.tasks import open_task

    wanted = "all" if choice.questions in ("all", "none") else "answerable"
    task = open_task("procedural", None, llm, clips=choice.clips, questions=wanted, frames=frames)
    found = procedural_clips(task)
    return [one._replace(questions=()) for one in found] if choice.questions == "none" else found
