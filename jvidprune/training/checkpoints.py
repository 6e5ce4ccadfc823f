"""Checkpoints of a run in orbax folders; damaged ones are told, put aside and passed over."""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jvidprune.errors import JvidpruneError, reason
from jvidprune.files import parse_json

FOLDER, DAMAGED = "checkpoints", "damaged"
"""Where checkpoints lie below a run's folder, and where damaged ones are moved to."""

_STATE, _PLACED, _INPUT, _METRICS = "default", "state", "input", "metrics"
"""Items of a checkpoint: the state alone, or beside the place in the input; what was measured."""

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Which checkpoints are kept, and how they are written.

    Attributes:
      every: steps between checkpoints; the last step has one too.
      latest: newest ones that are kept.
      best: metric of `Measure` whose best checkpoint is kept besides; "" for none. Larger is better.
      background: they are written while training goes on.
    """

    every: int = 200
    latest: int = 2
    best: str = ""
    background: bool = False


def manager(folder: Path, keeping: Keeping) -> Any:
    """The orbax manager of a run's checkpoints; `newest` before it takes away what it could not read."""
    import orbax.checkpoint as ocp

    if not keeping.best:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keeping.latest,
            enable_async_checkpointing=keeping.background,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(folder / FOLDER, options=options)
    managers = ocp.checkpoint_managers

    def value(metrics: Any) -> float:
        return metrics[keeping.best]

    best = managers.BestN(get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        best_fn=value,
        preservation_policy=managers.AnyPreservationPolicy([managers.LatestN(keeping.latest), best]),
        enable_async_checkpointing=keeping.background,
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(folder / FOLDER, options=options)


def save(writer: Any, step: int, state: Any, place: Any, metrics: dict[str, float]) -> None:
    """Writes a checkpoint.

    Args:
      writer: from `manager`.
      step: of the checkpoint.
      state: pytree of arrays.
      place: in the input, as JSON holds it; None where a run's input has none.
      metrics: measured at this step.
    """
    import orbax.checkpoint as ocp

    args: Any = ocp.args.StandardSave(state)
    if place is not None:
        args = ocp.args.Composite(state=args, input=ocp.args.JsonSave(place))
    writer.save(step, args=args, metrics=metrics or None)


def newest(folder: Path, state: Any, *, placed: bool, note: Note, reached: int = 0) -> tuple[int, Any, Any]:
    """Step, state and place in the input of the newest whole checkpoint; step 0 and `state` where there is none yet.

    Damaged newer ones are moved to `DAMAGED` below the folder, each with a sentence. Nothing is moved where none is
    whole.

    Args:
      folder: of the run.
      state: of the same shapes; says on which devices the arrays go.
      placed: whether the run's input has a place that is saved with the state.
      note: called with each sentence.
      reached: newest step that has had a checkpoint, as far as the curve tells.

    Raises:
      JvidpruneError: there are checkpoints, and none is whole.
    """
    steps = _steps(folder)
    wrong = {step: why for step in steps if (why := _fault(folder, step, placed))}
    found = None
    for step in reversed(steps):
        if step in wrong:
            continue
        try:
            found = (step, *restore(folder, step, state, placed=placed))
            break
        except JvidpruneError as error:
            if jax.process_count() > 1:
                # The others may have read theirs, and wait: all must go on from one step.
                raise
            wrong[step] = str(error)
    if found is None and steps:
        told = wrong[steps[-1]]
        raise JvidpruneError(
            f"none of the {len(steps)} checkpoints in {folder / FOLDER} can be read (step {steps[-1]}: {told}): remove "
            f"{folder} to train from the start."
        )
    at = 0 if found is None else found[0]
    onward = f"training goes on from step {at}" if at else "training starts again"
    if reached > max([at, *steps]):
        note(f"the checkpoint of step {reached} is not in {folder / FOLDER}; {onward}.")
    for step in sorted(wrong):
        aside = _put_aside(folder, step)
        note(f"the checkpoint of step {step} in {folder / FOLDER} is damaged ({wrong[step]}), now {aside}; {onward}.")
    _synchronise()
    return (0, state, None) if found is None else found


def best(folder: Path, keeping: Keeping, state: Any, *, placed: bool, note: Note) -> tuple[int | None, Any]:
    """Step and state of the best whole checkpoint; (None, `state`) where none was measured.

    Damaged ones are put aside as `newest` does.

    Args:
      folder: of the run.
      keeping: with the metric.
      state: as for `newest`.
      placed: as for `newest`.
      note: called with a sentence for each damaged one.
    """
    while True:
        with manager(folder, keeping) as reader:
            step = reader.best_step()
        if step is None:
            return None, state
        try:
            return step, restore(folder, step, state, placed=placed)[0]
        except JvidpruneError as error:
            if jax.process_count() > 1:
                raise
            aside = _put_aside(folder, step)
            note(f"the best checkpoint, of step {step}, is damaged ({error}), now {aside}; the next best is taken.")


def restore(folder: Path, step: int, state: Any, *, placed: bool) -> tuple[Any, Any]:
    """State and place in the input of a checkpoint.

    Args:
      folder: of the run.
      step: of the checkpoint.
      state: as for `newest`.
      placed: as for `newest`.

    Raises:
      JvidpruneError: it cannot be read; the text says why, in the middle of a sentence.
    """
    import orbax.checkpoint as ocp

    path, why = folder / FOLDER / str(step), ""
    with _unheard():
        try:
            with ocp.StandardCheckpointer() as reader:
                found = reader.restore(path / (_PLACED if placed else _STATE), state)
            place = json.loads((path / _INPUT / "metadata").read_text(encoding="utf-8")) if placed else None
            return found, place
        except Exception as error:
            # Of the error itself nothing may live on, see `_unheard`.
            why = _why(error)
        gc.collect()
    raise JvidpruneError(why)


def _why(error: BaseException) -> str:
    """What an error of orbax means, in the middle of a sentence: the root of its chain says it shortest."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
        return "a file beside its arrays is no JSON"
    text = reason(error, 160)
    if "tree structures do not match" in text:
        return "its state is laid out otherwise, as other versions of jvidprune did"
    # TensorStore begins with a status code and goes on with its drivers.
    code = re.match(r"[A-Z]+(?:_[A-Z]+)*(?=: )", text)
    return f"its arrays cannot be read, {code.group()}" if code else text


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Readers that orbax gave up on report to nobody: neither in log lines nor when they are collected as garbage."""
    level, hook = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logging.disable(level)


def _steps(folder: Path) -> list[int]:
    """Numbers of the checkpoints that are there, increasing."""
    if not (folder / FOLDER).is_dir():
        return []
    return sorted(int(path.name) for path in (folder / FOLDER).iterdir() if path.name.isdecimal() and path.is_dir())


def _fault(folder: Path, step: int, placed: bool) -> str:
    """What is wrong with a checkpoint by its small files, "" if they are whole."""
    path = folder / FOLDER / str(step)
    item = _PLACED if placed else _STATE
    texts = ["_CHECKPOINT_METADATA", f"{item}/_METADATA"]
    texts += [f"{_INPUT}/metadata"] * placed
    texts += [f"{_METRICS}/{_METRICS}"] * (path / _METRICS).exists()
    for name in texts:
        try:
            found = parse_json((path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return f"it has no {name}"
        except (OSError, ValueError):
            return f"{name} is no JSON"
        if not isinstance(found, dict):
            return f"{name} is no JSON object"
    return ""


def _put_aside(folder: Path, step: int) -> Path:
    """Moves a checkpoint out of orbax's sight; the place it is in now."""
    number, target = 0, folder / DAMAGED / str(step)
    while target.exists():
        number += 1
        target = folder / DAMAGED / f"{step}-{number}"
    if jax.process_index() == 0:
        target.parent.mkdir(exist_ok=True)
        os.replace(folder / FOLDER / str(step), target)
    return target


def _synchronise() -> None:
    """Several processes look at the folder after what was moved is gone."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("jvidprune checkpoints")
