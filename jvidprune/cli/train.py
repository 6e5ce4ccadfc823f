"""`jvidprune train`: a scorer inside the tower, a pruning module, routers or a cost, trained or resumed."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from jvidprune.cli.options import CHECKPOINT, OUTPUT, Checkpoint, CheckpointChoice, Common, print_json
from jvidprune.cli.train_beside import TrainCovipal, TrainRouters, show_trained, train_covipal, train_routers
from jvidprune.cli.train_cost import TrainCost, show_learned, train_cost
from jvidprune.errors import JvidpruneError
from jvidprune.extras import need

if TYPE_CHECKING:
    from jvidprune.cli.console import Console

MODEL = "model"
"""Folder of the published checkpoint, below that of the run."""


@dataclasses.dataclass(frozen=True)
class TrainChoice:
    """What to train and how, as it was written on the command line."""

    topk: float = 0.5
    """Share of the visual tokens that is REMOVED, as the released code calls it."""
    prune_at: int | None = None
    """0-based tower block whose output is scored; by default 3, or half way up a tower of fewer than 8 blocks."""
    window: int = 1
    """Tokens on a side of the windows that are kept or removed together."""
    coefficient: float = 0.5
    """Factor of the auxiliary loss."""
    prune_method: Literal["scorer", "random", "heuristic", "easy"] = "scorer"
    """What ranks the windows: the scorer that is learned, or a baseline, for which the model can be trained too."""
    steps: int = 150
    """Steps of the optimiser."""
    rates: str = "scorer=1e-4,tower=5e-6,connector=5e-6,llm=1e-5"
    """Peak learning rates; groups that are not named, or at 0, stay as they are."""
    rows: int = 4
    """Rows of a step."""
    row_clips: int = 1
    """Most clips of a row."""
    slots: int | None = None
    """Tokens of a row; by default what the first clips with all their questions take."""
    questions: int = 8
    """Most questions about a procedural clip."""
    accumulate: int = 1
    """Parts that a step is computed in, one after the other."""
    warmup: int | None = None
    """Steps to the peak rate; by default 200, or a tenth of a shorter run."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    decay: float = 0.0
    """Weight decay of matrices."""
    z: float = 1e-4
    """Coefficient of the softmax's auxiliary loss, 0 for none."""
    precision: Literal["float32", "bfloat16", "pure_bfloat16"] = "float32"
    """"bfloat16" computes in it and keeps float32 parameters."""
    remat: bool = False
    """Compute layers again in the backward pass: less memory, more time."""
    mesh: str = ""
    """Devices, as in "data=2,fsdp=2,tensor=2"; by default one."""
    seed: int = 0
    """Of the order of clips, of the scorer's first weights and of random pruning."""
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
    keep: int = 2
    """Newest checkpoints that are kept, besides the one with the best held-out accuracy."""
    eval_every: int = 50
    """Steps between measurements on held-out clips, 0 for none."""
    eval_clips: int = 32
    """Held-out clips."""
    eval_frames: int | None = None
    """Frames of held-out clips, with as many tokens kept as in training (test-time scaling)."""
    strict: bool = False
    """Stop at the first video or annotation of a benchmark that cannot be used, instead of leaving it out."""
    tensorboard: bool = False
    """Write TensorBoard's event files."""


CHOICE = TrainChoice()


@dataclasses.dataclass(frozen=True)
class TrainStts:
    """Train a scorer that prunes tokens inside the vision tower (STTS), and the model with it."""

    folder: Path = Path("runs/stts")
    """Of checkpoints, curves and, below it in model/, the trained checkpoint. The same command goes on where it
    stopped."""
    settings: Annotated[TrainChoice, OmitArgPrefixes] = CHOICE
    model: Checkpoint = CHECKPOINT
    out: Common = OUTPUT


Trainable = Annotated[
    Annotated[TrainStts, subcommand("stts")]
    | Annotated[TrainCovipal, subcommand("covipal")]
    | Annotated[TrainRouters, subcommand("routers")]
    | Annotated[TrainCost, subcommand("cost")],
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
]


def train(what: Trainable) -> None:
    """Train what reduces tokens: a scorer in the tower, a module, routers, or the cost of AOT's transports."""
    need("training", "grain", "optax", "orbax.checkpoint", *["tensorboardX"] * _boards(what))
    console = what.out.console()
    if isinstance(what, TrainStts):
        record = train_stts(what.settings, what.folder, model=what.model, console=console)
        file, show = record["model"], show_training
    elif isinstance(what, TrainCost):
        record = train_cost(what, console)
        file, show = record["model"], show_learned
    else:
        record = train_covipal(what, console) if isinstance(what, TrainCovipal) else train_routers(what, console)
        file, show = record["file"], show_trained
    if what.out.json:
        print_json(record)
    elif what.out.quiet:
        print(file)
    else:
        show(console, record)


def _boards(what: TrainStts | TrainCovipal | TrainRouters | TrainCost) -> bool:
    return isinstance(what, TrainStts) and what.settings.tensorboard


def read_rates(text: str) -> dict[str, float]:
    """Learning rates from "scorer=1e-4,llm=1e-5".

    Raises:
      JvidpruneError: something that is no group with a number.
    """
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise JvidpruneError(f"learning rates are written as in scorer=1e-4,llm=1e-5, got {part!r}.") from None
    return found


def train_stts(choice: TrainChoice, folder: Path, *, model: CheckpointChoice, console: "Console") -> dict[str, Any]:
    """Trains or resumes in `folder`, publishes the checkpoint below it, and says what came out.

    Raises:
      JvidpruneError: settings that make no run, another run in the folder, or anything wrong with the files.
    """
    from jvidprune import launch
    from jvidprune.cli.left_out import listed, note_left_out
    from jvidprune.cli.reading import check_reading, open_model
    from jvidprune.files import check_folder, make_folder
    from jvidprune.stts.config import check_removed
    from jvidprune.training.stts import open_run, publish

    # Before anything is loaded.
    check_removed(choice.topk)
    rates = read_rates(choice.rates)
    limits = check_reading(model)
    check_folder(folder)
    launch.start()
    with console.working():
        llm = open_model(model, console, dtype="float32")
        console.start("looking at the clips")

        def left_out(bad: Any) -> None:
            console.note(f"left out: {bad}")

        run = open_run(llm, choice, rates, frames=model.frames, limits=limits, report=left_out)
        note_left_out(run.tuner.left_out, console)
        make_folder(folder)
        bar = console.task("training", choice.steps)

        def report(line: dict[str, float]) -> None:
            console.note(describe(line))

        trained = run.tuner.run(folder, report=report, progress=bar, tensorboard=choice.tensorboard, note=console.note)
        console.start("publishing")
        target = folder / MODEL
        publish(target, run, trained)
    last = trained.curve[-1] if trained.curve else {}
    measured = next((line for line in trained.curve if line["step"] == trained.step), last)
    return {
        "folder": str(folder),
        "model": str(target),
        "steps": choice.steps,
        "best_step": trained.step,
        "kept": run.kept,
        "visual": run.whole,
        "notes": list(trained.notes),
        "metrics": {name: value for name, value in measured.items() if name != "step"},
        "left_out": listed(run.tuner.left_out),
    }


def describe(line: dict[str, float]) -> str:
    """A line of the curve for people."""
    shown = {"loss": "loss", "answer": "answer", "auxiliary": "auxiliary", "accuracy/all": "accuracy"}
    shown |= {"eval/accuracy": "held-out accuracy"}
    values = (f"{title} {line[name]:.4g}" for name, title in shown.items() if name in line)
    return f"step {int(line['step'])}: {', '.join(values)}"


def show_training(console: "Console", record: dict[str, Any]) -> None:
    """Where the trained checkpoint is, and what it reached."""
    from jvidprune.cli.console import marked
    from jvidprune.cli.left_out import show_left_out

    kept, visual = record["kept"], record["visual"]
    show_left_out(console, record)
    console.print(f"a clip keeps {kept:,} of {visual:,} visual tokens ({kept / visual:.1%})")
    for name, value in record["metrics"].items():
        console.print(f"{name} {value:.4g}", plain=True)
    console.print(
        f"checkpoint of step {record['best_step']} of {record['steps']}: [bold]{marked(record['model'])}[/bold]",
        unbroken=True,
    )
