"""A resumable training loop: state in orbax checkpoints, the learning curve in a file beside them."""

import contextlib
import dataclasses
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.extras import need
from jvidprune.files import atomic_output, load_json, make_folder, parse_json
from jvidprune.training import checkpoints
from jvidprune.training.checkpoints import Keeping

Batch = Any
CURVE = "curve.jsonl"
METRICS = "metrics.csv"
"""The curve as a table, beside it."""


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


class Stepwise:
    """Batches that are a pure function of the step."""

    def __init__(self, make: Callable[[int], Batch], steps: int):
        self._make, self._steps = make, steps

    def iterate(self, step: int, saved: Any) -> Iterator[tuple[Batch, None]]:
        """Batches from `step` on; there is no state to save."""
        return ((batch, None) for batch in prefetch(self._make, step, self._steps))


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured on the way.

    Attributes:
      every: steps between measurements; the last step has one too.
      take: state -> metrics, for the curve and for the choice of the best checkpoint.
    """

    every: int
    take: Callable[[Any], dict[str, float]]


def fit(
    folder: str | Path,
    state: Any,
    update: Callable[[Any, Batch, Any], tuple[Any, dict[str, Any]]],
    batch: Callable[[int], Batch] | Any,
    steps: int,
    *,
    settings: dict[str, Any],
    every: int = 200,
    log: int = 20,
    report: Callable[[dict[str, float]], None] | None = None,
    stop_at: Callable[[], bool] | None = None,
    keeping: Keeping | None = None,
    measure: Measure | None = None,
    note: Callable[[str], None] | None = None,
) -> Any:
    """Trains to `steps`, going on where an earlier call in the same folder stopped.

    Checkpoints hold all that a step reads, the place in the input among it, and appear whole or not at all: a run that
    was killed and started again ends in the same state, bit for bit, and has written the same curve.

    Args:
      folder: of checkpoints, curve and settings; created if needed.
      state: initial state, any pytree of arrays; restored ones lie on the same devices.
      update: (state, batch, step) -> (state, metrics), jitted by the caller; metrics are scalars.
      batch: data of a step as a function of it; or an object whose `iterate(step, saved)` yields (batch, place) from
        `step` on, where `saved` is the place that came with the batch before, as JSON holds it.
      steps: to train in all.
      settings: what the run is made of, as JSON holds it; a folder with other settings is refused.
      every: steps between checkpoints, unless `keeping` says otherwise.
      log: steps between lines of the curve, each the mean of the metrics since the line before; divides the steps
        between checkpoints and between measurements.
      report: called with each new line.
      stop_at: asked at every checkpoint; True ends the run early, in a state that may be gone on from.
      keeping: which checkpoints are kept.
      measure: what is measured on the way.
      note: called with a sentence for each checkpoint that is damaged or missing; by default it is a warning. The
        newest whole one before it is gone on from.

    Raises:
      JvidpruneError: the folder cannot be made or holds a run with other settings, none of its checkpoints is whole, or
        `log` does not divide the other numbers of steps.
    """
    keeping = Keeping(every) if keeping is None else keeping
    for number in (keeping.every, measure.every if measure else log):
        if number % log:
            raise JvidpruneError(f"log must divide every, but {log} does not divide {number}.")
    folder = Path(folder).absolute()
    make_folder(folder)
    _check_settings(folder / "settings.json", settings)
    note = warn if note is None else note
    source = batch if hasattr(batch, "iterate") else Stepwise(batch, steps)
    reached = max((int(line["step"]) for line in read_curve(folder)), default=0) // keeping.every * keeping.every
    step, state, saved = checkpoints.newest(folder, state, placed=source is batch, note=note, reached=reached)
    with checkpoints.manager(folder, keeping) as manager:
        curve = _cut_curve(folder / CURVE, step)
        _write_curve(folder / CURVE, curve)
        sums: list[dict[str, Any]] = []
        for data, place in itertools.islice(source.iterate(step, saved), steps - step):
            state, metrics = update(state, data, np.int32(step))
            sums.append(metrics)
            step += 1
            measured = measure.take(state) if measure and (step % measure.every == 0 or step == steps) else {}
            if step % log == 0 or step == steps:
                line = {"step": step, **_means(sums), **measured}
                curve.append(line)
                sums = []
                _write_curve(folder / CURVE, curve)
                if report:
                    report(line)
            if step % keeping.every == 0 or step == steps:
                jax.block_until_ready(state)
                checkpoints.save(manager, step, state, place, measured)
                if stop_at and stop_at():
                    break
    return state


def warn(sentence: str) -> None:
    """Says something where nobody else listens."""
    warnings.warn(sentence, stacklevel=3)


def read_curve(folder: str | Path) -> list[dict[str, float]]:
    """Lines of a run's learning curve; what is no line of one, as a full disk leaves it, is passed over."""
    path = Path(folder) / CURVE
    if not path.exists():
        return []
    found = []
    for text in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            line = parse_json(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append(line)
    return found


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
    if path.exists():
        try:
            load_json(path)
        except JvidpruneError:
            raise JvidpruneError(
                f"{path} is damaged: remove it if the folder's run has the present settings, or choose another folder."
            ) from None
        if path.read_text(encoding="utf-8") != text:
            raise JvidpruneError(f"{path.parent} holds a run with other settings: choose another folder or remove it.")
        return
    with atomic_output(path) as part:
        part.write_text(text, encoding="utf-8")


def _cut_curve(path: Path, step: int) -> list[dict[str, float]]:
    """The curve up to a step; what a killed run wrote after its last checkpoint is written again."""
    return [line for line in read_curve(path.parent) if line["step"] <= step]


def _write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in curve), encoding="utf-8")
    os.replace(part, path)


class TensorBoard:
    """Scalars for TensorBoard; a run that goes on replaces what a killed one wrote behind it.

    Args:
      folder: of the event files.
      step: first step that is written, again if need be.

    Raises:
      JvidpruneError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, step: int):
        need("writing TensorBoard files", "tensorboardX")
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step)

    def write(self, line: Mapping[str, float]) -> None:
        """One line of the curve."""
        step = int(line["step"])
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
