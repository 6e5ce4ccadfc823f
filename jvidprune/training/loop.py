"""A resumable training loop: state in orbax checkpoints, the learning curve in a file beside them."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jvidprune.errors import JvidpruneError

Batch = Any
CURVE = "curve.jsonl"


def prefetch(
    make: Callable[[int], Batch], start: int, stop: int, *, workers: int = 1, ahead: int = 3
) -> Iterator[Batch]:
    """make(start), ..., make(stop - 1) in order, made by threads a few steps ahead."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = {step: pool.submit(make, step) for step in range(start, min(start + ahead, stop))}
        for step in range(start, stop):
            if step + ahead < stop:
                waiting[step + ahead] = pool.submit(make, step + ahead)
            yield waiting.pop(step).result()


def fit(
    folder: str | Path,
    state: Any,
    update: Callable[[Any, Batch, Any], tuple[Any, dict[str, Any]]],
    batch: Callable[[int], Batch],
    steps: int,
    *,
    settings: dict[str, Any],
    every: int = 200,
    log: int = 20,
    report: Callable[[dict[str, float]], None] | None = None,
    stop_at: Callable[[], bool] | None = None,
) -> Any:
    """Trains to `steps`, going on where an earlier call in the same folder stopped.

    Batches are a pure function of the step, and what is saved is all that a step reads: a run that was killed and
    started again ends in the same state, bit for bit, and has written the same curve.

    Args:
      folder: of checkpoints, curve and settings; created if needed.
      state: initial state, any pytree of arrays.
      update: (state, batch, step) -> (state, metrics), jitted by the caller; metrics are scalars.
      batch: data of a step.
      steps: to train in all.
      settings: what the run is made of, as JSON holds it; a folder with other settings is refused.
      every: steps between checkpoints.
      log: steps between lines of the curve, each the mean of the metrics since the line before; divides `every`.
      report: called with each new line.
      stop_at: asked at every checkpoint; True ends the run early, in a state that may be gone on from.

    Raises:
      JvidpruneError: the folder holds a run with other settings, or `log` does not divide `every`.
    """
    import orbax.checkpoint as ocp

    if every % log:
        raise JvidpruneError(f"log must divide every, but {log} does not divide {every}.")
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.json", settings)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        step = manager.latest_step() or 0
        if step:
            state = manager.restore(step, args=ocp.args.StandardRestore(state))
        curve = _cut_curve(folder / CURVE, step)
        _write_curve(folder / CURVE, curve)
        sums: list[dict[str, Any]] = []
        for data in prefetch(batch, step, steps):
            state, metrics = update(state, data, np.int32(step))
            sums.append(metrics)
            step += 1
            if step % log == 0 or step == steps:
                line = {"step": step, **_means(sums)}
                curve.append(line)
                sums = []
                _write_curve(folder / CURVE, curve)
                if report:
                    report(line)
            if step % every == 0 or step == steps:
                jax.block_until_ready(state)
                manager.save(step, args=ocp.args.StandardSave(state))
                if stop_at and stop_at():
                    break
    return state


def read_curve(folder: str | Path) -> list[dict[str, float]]:
    """Lines of a run's learning curve."""
    path = Path(folder) / CURVE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _means(sums: list[dict[str, Any]]) -> dict[str, float]:
    """Means over steps; hits/x over asked/x becomes accuracy/x, left out where nothing was asked."""
    means = {name: float(np.mean([float(part[name]) for part in sums])) for name in sums[0]}
    line = {name: mean for name, mean in means.items() if not name.startswith(("hits/", "asked/"))}
    for name, mean in means.items():
        kind, _, what = name.partition("/")
        if kind == "hits" and means[f"asked/{what}"]:
            line[f"accuracy/{what}"] = mean / means[f"asked/{what}"]
    return line


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise JvidpruneError(f"{path.parent} holds a run with other settings: choose another folder or remove it.")
    path.write_text(text, encoding="utf-8")


def _cut_curve(path: Path, step: int) -> list[dict[str, float]]:
    """The curve up to a step; what a killed run wrote after its last checkpoint is written again."""
    return [line for line in read_curve(path.parent) if line["step"] <= step]


def _write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in curve), encoding="utf-8")
    os.replace(part, path)
