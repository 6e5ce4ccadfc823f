"""`jvidprune train covipal` and `jvidprune train routers`: what learns beside a model that stays as it is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes

from jvidprune.cli.options import CHECKPOINT, OUTPUT, Checkpoint, Common

if TYPE_CHECKING:
    from jvidprune.cli.console import Console
    from jvidprune.evals.items import LeftOut, Task
    from jvidprune.llm.video_llm import VideoLLM
    from jvidprune.reducers.protocol import Reducer
    from jvidprune.weights import Weights


@dataclasses.dataclass(frozen=True)
class Learned:
    """From which clips, and how often something is said and kept."""

    rows: int = 4
    """Clips of a step, each with its first question."""
    seed: int = 0
    """Of the order of clips, of new weights and of what a step draws."""
    task: str = "procedural"
    """"procedural", or a benchmark whose local copy lies in --data."""
    data: Path | None = None
    """Folder with a benchmark's annotations and videos."""
    train_clips: int | None = None
    """Learn from the first so many clips only."""
    log: int = 10
    """Steps between lines of the curve."""
    every: int = 50
    """Steps between checkpoints."""
    strict: bool = False
    """Stop at the first video or annotation of a benchmark that cannot be used, instead of leaving it out."""


LEARNED = Learned()


@dataclasses.dataclass(frozen=True)
class TrainCovipal:
    """Train the module of CoViPAL (reconstruction), which chooses visual tokens; the model stays as it is."""

    folder: Path = Path("runs/covipal")
    """Of both stages, and of pruner.safetensors, the module. The same command goes on where it stopped."""
    steps: tuple[int, int] = (300, 200)
    """Of the first stage, which imitates the attention of a deep layer, and of the second, which learns by answers."""
    rates: tuple[float, float] = (1e-3, 1e-4)
    """Peak learning rates of the two."""
    place: int = 0
    """Layer of the language model that the module acts in front of, 0 for its input."""
    guidance: int | None = None
    """Layer whose attention is imitated; by default round(0.6 layers)."""
    shares: tuple[float, ...] = (0.1, 0.25, 0.5)
    """Of visual tokens that stay, one drawn for every step of the second stage."""
    distilled: float = 0.1
    """Factor of what the unpruned model says, beside the answers."""
    width: int = 256
    """Of the module."""
    blocks: int = 2
    """Of the module."""
    hidden: int = 1024
    """Width of the module's MLPs."""
    heads: int = 4
    """Of the module's attention."""
    grid: bool = True
    """Whether the module knows where in the video a token lies."""
    learned: Annotated[Learned, OmitArgPrefixes] = LEARNED
    model: Checkpoint = CHECKPOINT
    out: Common = OUTPUT


@dataclasses.dataclass(frozen=True)
class TrainRouters:
    """Train the routers of a mixture of depths (mod, videollm_mod); the model stays as it is."""

    folder: Path = Path("runs/routers")
    """Of the run, and of router.safetensors, the routers. The same command goes on where it stopped."""
    reducer: str = "videollm_mod"
    """Method whose routers learn, as text; its settings are those that they will serve."""
    ratio: float = 0.6
    """Mean share of visual tokens over the layers."""
    steps: int = 300
    """Steps of the optimiser."""
    rate: float = 1e-2
    """Peak learning rate."""
    learned: Annotated[Learned, OmitArgPrefixes] = LEARNED
    model: Checkpoint = CHECKPOINT
    out: Common = OUTPUT


def train_covipal(choice: TrainCovipal, console: "Console") -> dict[str, Any]:
    """Trains or resumes both stages, and says where the module lies and how it is used.

    Raises:
      JvidpruneError: settings that make no run, another run in the folder, or anything wrong with the files.
    """
    from jvidprune.covipal import CoViPAL
    from jvidprune.training.pruners import PrunerChoice, train_pruner

    # Before anything is loaded.
    names = {one.name for one in dataclasses.fields(choice)} & {one.name for one in dataclasses.fields(PrunerChoice)}
    own = {name: getattr(choice, name) for name in names}
    learned = choice.learned
    asked = PrunerChoice(**own, rows=learned.rows, seed=learned.seed, log=learned.log, every=learned.every)

    def run(llm: "VideoLLM", task: "Task", **told: Any) -> "tuple[Reducer, Weights]":
        module = train_pruner(llm, task, choice.folder, asked, **told)[-1]
        return CoViPAL(module), module

    stages = [choice.folder / name for name in ("guided", "answers")[: 1 + (choice.steps[1] > 0)]]
    return _train(choice, run, stages, sum(choice.steps), console)


def train_routers(choice: TrainRouters, console: "Console") -> dict[str, Any]:
    """Trains or resumes the routers of a method, and says where they lie and how they are used.

    Raises:
      JvidpruneError: a method without routers, settings that make no run, another run in the folder, or anything wrong
        with the files.
    """
    from jvidprune.errors import JvidpruneError
    from jvidprune.fields import settings_of
    from jvidprune.reducers.protocol import check_ratio
    from jvidprune.reducers.registry import from_text
    from jvidprune.training.routers import train_router

    # Before anything is loaded.
    check_ratio(choice.ratio)
    known = from_text(choice.reducer)
    if "router" not in (settings_of(type(known)) if dataclasses.is_dataclass(known) else ()):
        raise JvidpruneError(f"{choice.reducer} has no routers: train those of mod or videollm_mod.")
    learned = choice.learned
    settings = {"steps": choice.steps, "rate": choice.rate, "rows": learned.rows, "seed": learned.seed}
    settings |= {"log": learned.log, "every": learned.every}

    def run(llm: "VideoLLM", task: "Task", **told: Any) -> "tuple[Reducer, Weights]":
        method: Any = llm.reducer(choice.reducer)
        router = train_router(llm, task, choice.folder, method, choice.ratio, **settings, **told)
        return dataclasses.replace(method, router=router), router

    return _train(choice, run, [choice.folder], choice.steps, console)


def _train(
    choice: TrainCovipal | TrainRouters,
    run: "Callable[..., tuple[Reducer, Weights]]",
    stages: list[Path],
    steps: int,
    console: "Console",
) -> dict[str, Any]:
    """Opens model and clips, runs, and tells what came out.

    Args:
      choice: which checkpoint, which clips, and the folder.
      run: (model, clips, whom it tells) to the method with what was trained, and that as its file.
      stages: folders of its curves.
      steps: of all of them.
      console: talks to people.
    """
    from jvidprune import launch
    from jvidprune.cli.left_out import listed, note_left_out
    from jvidprune.cli.reading import check_reading, open_model
    from jvidprune.evals.items import left_out
    from jvidprune.files import check_folder
    from jvidprune.reducers.writing import expression
    from jvidprune.training.clips import clips_to_learn, frames_of
    from jvidprune.training.loop import read_curve

    model, learned = choice.model, choice.learned
    limits = check_reading(model)
    check_folder(choice.folder)
    launch.start()
    unread: list[Any] = []

    def skipped(bad: "LeftOut") -> None:
        unread.append(bad)
        console.note(f"left out: {bad}")

    with console.working():
        llm = open_model(model, console, dtype="float32")
        console.start("looking at the clips")
        frames = frames_of(llm, learned.task, model.frames)
        reading: dict[str, Any] = {"limits": limits, "strict": learned.strict}
        task = clips_to_learn(llm, learned.task, learned.data, frames=frames, clips=learned.train_clips, **reading)
        note_left_out(left_out(task), console)
        bar = console.task("training", steps)

        def report(line: dict[str, float]) -> None:
            console.note(described(line))

        method, trained = run(
            llm,
            task,
            frames=frames,
            report=report,
            progress=bar,
            note=console.note,
            strict=learned.strict,
            skipped=skipped,
        )
    curves = {folder.name: read_curve(folder) for folder in stages}
    return {
        "folder": str(choice.folder),
        "file": trained.path,
        "method": expression(method, llm.loaded.family, llm.loaded.config.text.layers),
        "steps": steps,
        "metrics": {name: curve[-1] if curve else {} for name, curve in curves.items()},
        "left_out": listed((*left_out(task), *unread)),
    }


def described(line: dict[str, float]) -> str:
    """A line of a curve for people."""
    shown = {"loss": "loss", "uniform": "of equal scores", "recall": "recall", "answer": "answer"}
    shown |= {"unpruned": "unpruned", "accuracy/all": "accuracy"}
    values = (f"{title} {line[name]:.4g}" for name, title in shown.items() if name in line)
    return f"step {int(line['step'])}: {', '.join(values)}"


def show_trained(console: "Console", record: dict[str, Any]) -> None:
    """Where the file is, what it reached, and how it is used."""
    from jvidprune.cli.console import marked
    from jvidprune.cli.left_out import show_left_out

    show_left_out(console, record)
    for name, line in record["metrics"].items():
        if line:
            console.print(f"{marked(name)}: {described(line)}", plain=True)
    console.print(f"trained: [bold]{marked(record['file'])}[/bold]", unbroken=True)
    console.print(f'jvidprune ask --reducer "{marked(record["method"])}"', plain=True, unbroken=True)
