"""`jvidprune train cost`: the cost and the masses of AOT's transports, learned beside a frozen model."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes

from jvidprune.cli.options import CHECKPOINT, OUTPUT, Checkpoint, Common

if TYPE_CHECKING:
    from jvidprune.cli.console import Console

MODEL = "model"
"""Folder beside the learned parts that links to the model and reduces with them."""


@dataclasses.dataclass(frozen=True)
class CostTrainChoice:
    """What to learn and from what, as it was written on the command line."""

    objective: Literal["reconstruction", "answer", "kl"] = "reconstruction"
    """Dropped tokens rebuilt from the output, right answers, or what the unpruned model says."""
    cost: Literal["network", "mahalanobis", "own"] = "network"
    """A small network on cosine, distance, time and saliency; a distance of projected features; or the method's own."""
    masses: bool = False
    """Learn the masses of both sides, too."""
    stage: Literal["intra", "inter", "both"] = "both"
    """AOT's transport inside frames, along clips, or both, each with parts of its own."""
    reducer: str = "aot"
    """The method whose transports learn: AOT with any settings."""
    ratios: tuple[float, float] = (0.05, 0.25)
    """Lowest and highest retention ratio; every clip of a step draws its own."""
    draws: int = 2
    """Ratios of each clip in a step."""
    clips: int = 4
    """Clips of a step."""
    steps: int = 100
    """Steps of the optimiser."""
    rate: float | None = None
    """Peak learning rate of Adam; by default 0.01, and 0.001 of a Mahalanobis distance."""
    hidden: int = 16
    """Width of a network's hidden layer."""
    rank: int = 32
    """Rank of a Mahalanobis distance."""
    seed: int = 0
    """Of first weights and of draws."""
    log: int = 10
    """Steps between lines of the curve."""
    every: int = 20
    """Steps between checkpoints."""
    measure: int = 50
    """Steps between measurements on held-out clips, 0 for none."""
    train_clips: int = 64
    """Clips to learn from; they are encoded once and kept in memory."""
    held_clips: int = 16
    """Held-out clips."""
    questions: int = 3
    """Most questions about a procedural clip."""
    task: str = "procedural"
    """"procedural", or a benchmark whose local copy lies in --data."""
    data: Path | None = None
    """Folder with a benchmark's annotations and videos."""
    ratio: float = 0.1
    """Retention ratio that the folder of the result names."""


CHOICE = CostTrainChoice()


@dataclasses.dataclass(frozen=True)
class TrainCost:
    """Learn the cost of AOT's transports beside a frozen model."""

    folder: Path = Path("runs/cost")
    """Of checkpoints, curve and the learned parts (safetensors); below it, in model/, links to the model's files with
    settings that reduce with them. The same command goes on where it stopped."""
    settings: Annotated[CostTrainChoice, OmitArgPrefixes] = CHOICE
    model: Checkpoint = CHECKPOINT
    out: Common = OUTPUT


def train_cost(what: TrainCost, console: "Console") -> dict[str, Any]:
    """Trains or resumes, writes parts and model folder, and says what came out.

    Raises:
      JvidpruneError: settings that make no run, another run in the folder, or anything wrong with the files.
    """
    from jvidprune import launch
    from jvidprune.cli.reading import check_reading, open_model
    from jvidprune.files import check_folder, make_folder
    from jvidprune.reducers.protocol import check_ratio
    from jvidprune.reducers.registry import from_text
    from jvidprune.reducers.writing import expression
    from jvidprune.training.clips import open_clips
    from jvidprune.training.loop import read_curve
    from jvidprune.training.transport_parts import check_published, publish, trainable
    from jvidprune.training.transports import CostChoice, CostTrainer

    choice, folder, model = what.settings, what.folder, what.model
    # Before anything is loaded.
    check_ratio(choice.ratio)
    trainable(from_text(choice.reducer))
    names = {field.name for field in dataclasses.fields(CostChoice)}
    made = CostChoice(**{key: value for key, value in vars(choice).items() if key in names})
    limits = check_reading(model)
    check_folder(folder)
    launch.start()
    with console.working():
        llm = open_model(model, console, dtype="float32")
        check_published(folder / MODEL, llm)
        frames = model.frames or llm.settings.frames
        options: dict[str, Any] = {"questions": choice.questions, "held": choice.held_clips, "limits": limits}
        options |= {"clips": choice.train_clips, "frames": frames, "held_frames": frames}
        learned, held = open_clips(llm, choice.task, choice.data, **options)
        console.start("encoding clips")
        trainer = CostTrainer(llm, llm.reducer(choice.reducer), made, learned, held, frames=frames)
        make_folder(folder)
        bar = console.task("training", choice.steps)

        def report(line: dict[str, float]) -> None:
            console.note(described(line))

        method = trainer.run(folder, report=report, progress=bar, note=console.note)
        target = publish(folder / MODEL, llm, method, choice.ratio)
    curve = read_curve(folder)
    measured = [line for line in curve if "held/reconstruction" in line]
    return {
        "folder": str(folder),
        "model": str(target),
        "reducer": expression(method),
        "steps": choice.steps,
        "metrics": {name: value for name, value in curve[-1].items() if name != "step"},
        "measured": measured,
    }


def described(line: dict[str, float]) -> str:
    """A line of the curve for people."""
    shown = {"loss": "loss", "reconstruction": "error", "answer": "answer", "apart": "KL", "accuracy/all": "accuracy"}
    shown |= {f"held/{name}": f"held-out {title}" for name, title in (*shown.items(), ("accuracy", "accuracy"))}
    values = (f"{title} {line[name]:.4g}" for name, title in shown.items() if name in line)
    return f"step {int(line['step'])}: {', '.join(values)}"


def show_learned(console: "Console", record: dict[str, Any]) -> None:
    """Where the parts are, and how to use them."""
    from jvidprune.cli.console import marked

    for line in (record["measured"][:1] + record["measured"][-1:])[: len(record["measured"])]:
        console.print(described({key: value for key, value in line.items() if key.startswith(("held/", "step"))}))
    console.print(f"reducer: {marked(record['reducer'])}", plain=True, unbroken=True)
    console.print(f"model with it: [bold]{marked(record['model'])}[/bold]", unbroken=True)
