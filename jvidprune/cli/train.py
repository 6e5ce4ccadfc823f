"""The training verb: checks what was asked for, runs or resumes, publishes the checkpoint."""

from pathlib import Path
from typing import Any

from jvidprune.cli.console import Console
from jvidprune.cli.left_out import listed, note_left_out
from jvidprune.cli.run import check_reading, open_model
from jvidprune.cli.train_choice import TrainChoice
from jvidprune.errors import JvidpruneError
from jvidprune.files import make_folder

MODEL = "model"
"""Folder of the published checkpoint, below that of the run."""


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


def train_stts(choice: TrainChoice, folder: Path, *, model: dict[str, Any], console: Console) -> dict[str, Any]:
    """Trains or resumes in `folder`, publishes the checkpoint below it, and says what came out.

    Raises:
      JvidpruneError: settings that make no run, another run in the folder, or anything wrong with the files.
    """
    from jvidprune import launch
    from jvidprune.stts.config import check_removed
    from jvidprune.training.stts_run import open_run, publish

    # Before anything is loaded.
    check_removed(choice.topk)
    rates = read_rates(choice.rates)
    limits = check_reading(model)
    make_folder(folder)
    launch.start()
    with console.working():
        llm = open_model(model | {"dtype": "float32"}, console)
        console.start("looking at the clips")
        told: dict[str, Any] = {"report": lambda bad: console.note(f"left out: {bad}")}
        run = open_run(llm, choice, rates, frames=model["frames"], limits=limits, **told)
        note_left_out(run.tuner.left_out, console)
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
