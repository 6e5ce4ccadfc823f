"""Training a video model on questions about clips: settings as data, and a run that goes on where it stopped."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jvidprune.errors import JvidpruneError
from jvidprune.evals.identity import model_identity, plain
from jvidprune.evals.items import LeftOut, Task, left_out
from jvidprune.files import write_table
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.quantised import refuse_quantised
from jvidprune.training import checkpoints, loop
from jvidprune.training.data import ExampleEncoder, PackedRows, Pipeline, Shape
from jvidprune.training.loop import METRICS, TensorBoard
from jvidprune.training.loss import Reader, RowsLoss, Trainee, rows_loss
from jvidprune.training.step import (
    RATES,
    Params,
    Placing,
    Precision,
    TrainingState,
    begin,
    computed,
    optimiser,
    rates_of_groups,
    split_batch,
    split_groups,
    stored,
    training_step,
)

ACCURACY = "eval/accuracy"
"""Share of held-out questions answered right, in curves and for the best checkpoint."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Settings of a run; equal ones give equal curves on equal machines.

    Attributes:
      steps: of the optimiser.
      rates: peak learning rate of each group of `step.GROUPS`; a group at 0 or without one stays as it is.
      shape: of the rows of a step.
      frames: of a clip.
      parts: into which a step is divided, one after the other.
      warmup: steps to the peak.
      clip: largest global norm of the gradient.
      decay: weight decay.
      z: coefficient of the softmax's auxiliary loss.
      precision: of parameters and computation.
      remat: layers are computed again in the backward pass.
      seed: of the order of clips, of new parameters and of what a step draws.
      log: steps between lines of the curve.
      every: steps between checkpoints; a multiple of `log`.
      keep: newest checkpoints that are kept, besides the best.
      measure_every: steps between measurements on held-out clips; a multiple of `every`, 0 for none.
      measure_steps: batches of held-out rows in a measurement.
      measure_frames: frames of held-out clips, with the same number of tokens kept as in training; 0 for `frames`.
    """

    steps: int
    rates: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(RATES))
    shape: Shape = dataclasses.field(default_factory=lambda: Shape(rows=4, clips=1, slots=384, answers=24))
    frames: int = 8
    parts: int = 1
    warmup: int = 200
    clip: float = 1.0
    decay: float = 0.0
    z: float = 1e-4
    precision: Precision = "float32"
    remat: bool = False
    seed: int = 0
    log: int = 10
    every: int = 50
    keep: int = 2
    measure_every: int = 0
    measure_steps: int = 8
    measure_frames: int = 0

    def check(self) -> None:
        """Refuses numbers that make no run.

        Raises:
          JvidpruneError: which one, and what is allowed.
        """
        counts = ("steps", "frames", "parts", "log", "every", "keep", "measure_steps")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise JvidpruneError(f"{low[0].replace('_', ' ')} must be at least 1, got {getattr(self, low[0])}.")
        if self.every % self.log:
            raise JvidpruneError(f"checkpoints are {self.every} steps apart, which is no multiple of log {self.log}.")
        if self.measure_every % self.every:
            raise JvidpruneError(
                f"measurements are {self.measure_every} steps apart, which is no multiple of {self.every}, the steps "
                "between checkpoints."
            )
        rates_of_groups(self.rates)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run ends with.

    Attributes:
      trainee: structure of the modules.
      params: of all modules: those of the best checkpoint where held-out clips were measured, else of the last.
      step: of that checkpoint.
      curve: lines of metrics.
      notes: sentences about damaged checkpoints that were passed over.
    """

    trainee: Trainee
    params: Params
    step: int
    curve: list[dict[str, float]]
    notes: tuple[str, ...] = ()

    def modules(self) -> dict[str, Any]:
        """The modules by name."""
        return self.trainee.merge(self.params)


class Tuner:
    """A run: modules, readers of clips, data.

    Args:
      llm: whose model is trained.
      tuning: settings.
      modules: what is trained besides the model, by name, e.g. a scorer; their parameters begin as they are.
      reader: number of frames -> how so many frames become tokens; all must keep the same number.
      task: clips and questions to learn from.
      held: clips and questions that are measured; needed with `measure_every`.
      settings: what else the run is made of, as JSON holds it; another run in its folder is refused.
      placing: where it runs.
      strict, report: what becomes of clips that cannot be read, see `data.Pipeline`.
      loss: what a step learns from; `measure_every` wants its metrics to be those of `loss.rows_loss`.
      pace: number of a step -> arrays that the loss finds among the parameters, such as a temperature that falls;
        measurements do without.

    Raises:
      JvidpruneError: settings that make no run, or rows without room for one clip.
    """

    def __init__(
        self,
        llm: VideoLLM,
        tuning: Tuning,
        *,
        reader: Callable[[int], Reader],
        task: Task,
        held: Task | None = None,
        modules: Mapping[str, nnx.Module] | None = None,
        settings: Mapping[str, Any] | None = None,
        placing: Placing | None = None,
        strict: bool = False,
        report: Callable[[LeftOut], None] | None = None,
        loss: RowsLoss = rows_loss,
        pace: Callable[[int], Params] | None = None,
    ):
        tuning.check()
        refuse_quantised(llm.loaded.config, "training")
        self._loss, self._pace = loss, pace or (lambda step: {})
        self._reading: dict[str, Any] = {"strict": strict, "report": report}
        self.tuning, self.placing = tuning, placing or Placing()
        self.placing.check(tuning.shape.rows, tuning.parts)
        if tuning.measure_every and held is None:
            raise JvidpruneError("there are no held-out clips to measure.")
        self._rates = rates_of_groups(tuning.rates)
        model = with_remat(llm.loaded.model, tuning.remat)
        self.trainee, params = Trainee.split(model=model, **(modules or {}))
        learned, frozen = split_groups(params, self._rates)
        self._learned = self.placing.state(stored(learned, tuning.precision))
        self._frozen = self.placing.state(computed(frozen, tuning.precision))
        self._reader = reader(tuning.frames)
        self._pipeline = self._rows(llm, task, tuning.frames, self._reader.kept, shuffle=True)
        self._held, self._held_reader = None, self._reader
        if held is not None and tuning.measure_every:
            frames = tuning.measure_frames or tuning.frames
            self._held_reader = reader(frames)
            if self._held_reader.kept != self._reader.kept:
                raise JvidpruneError(f"held-out clips of {frames} frames keep another number of tokens than training.")
            self._held = self._rows(llm, held, frames, self._reader.kept, shuffle=False)
        known = model_identity(llm)
        self._settings = plain(
            {
                "model": known["model"],
                "prompt": known["prompt"],
                "around": known["around"],
                "task": task.fingerprint(),
                "held": None if held is None else held.fingerprint(),
                "tuning": {k: v for k, v in dataclasses.asdict(tuning).items() if k not in ("keep", "every", "log")},
                **(settings or {}),
            }
        )

    def _rows(self, llm: VideoLLM, task: Task, frames: int, kept: int, *, shuffle: bool) -> Pipeline:
        tuning = self.tuning
        pixels = jnp.float32 if tuning.precision == "float32" else jnp.bfloat16
        encode = ExampleEncoder(llm, frames, kept, tuning.shape.slots, tuning.shape.answers, pixels)
        process = (jax.process_index(), jax.process_count())
        own = dataclasses.replace(tuning.shape, rows=tuning.shape.rows // process[1])
        options: dict[str, Any] = {"kept": kept, "shape": own, "seed": tuning.seed, "shuffle": shuffle}
        return Pipeline(task, encode, process=process, **options, **self._reading)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What could not be learned from or measured on: annotations, videos that are not there or cannot be read."""
        pipelines = [self._pipeline, *([] if self._held is None else [self._held])]
        found = dict.fromkeys(bad for pipeline in pipelines for bad in left_out(pipeline.task))
        return tuple(found | dict.fromkeys(bad for pipeline in pipelines for bad in pipeline.left_out.values()))

    def run(
        self,
        folder: str | Path,
        *,
        report: Callable[[dict[str, float]], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        tensorboard: bool = False,
        stop_at: Callable[[], bool] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> Trained:
        """Trains to the last step, going on where an earlier call in the same folder stopped.

        Args:
          folder: of checkpoints, settings, curve.jsonl, metrics.csv and TensorBoard's files.
          report: called with each line of the curve.
          progress: called as (steps done, steps in all).
          tensorboard: whether TensorBoard's files are written.
          stop_at, note: see `loop.fit`.

        Raises:
          JvidpruneError: the folder holds another run, or damaged checkpoints alone; or an unreadable clip.
        """
        folder, tuning = Path(folder), self.tuning
        tx = optimiser(self._rates, steps=tuning.steps, warmup=tuning.warmup, clip=tuning.clip, decay=tuning.decay)
        loss = functools.partial(self._loss, self.trainee, self._reader, z=tuning.z)
        step = training_step(loss, tx, precision=tuning.precision, placing=self.placing)

        def update(state: TrainingState, rows: PackedRows, number: Any) -> tuple[TrainingState, dict[str, Any]]:
            told = self._frozen | self._pace(int(number))
            state, metrics = step(state, told, self.placing.batch(split_batch(rows, tuning.parts)))
            if progress is not None:
                progress(int(number) + 1, tuning.steps)
            return state, metrics

        board: TensorBoard | None = None

        def line(values: dict[str, float]) -> None:
            nonlocal board
            write_table(folder / METRICS, loop.read_curve(folder), digits=9)
            if tensorboard:
                board = board or TensorBoard(folder / "tensorboard", int(values["step"]))
                board.write(values)
            if report:
                report(values)

        notes: list[str] = []

        def tell(sentence: str) -> None:
            notes.append(sentence)
            (note or loop.warn)(sentence)

        keeping = checkpoints.Keeping(
            tuning.every, tuning.keep, best=ACCURACY if tuning.measure_every else "", background=True
        )
        measure = loop.Measure(tuning.measure_every, self._measure()) if tuning.measure_every else None
        state = self.placing.state(begin(self._learned, tx, tuning.seed))
        options: dict[str, Any] = {"settings": self._settings, "log": tuning.log, "report": line, "stop_at": stop_at}
        options |= {"note": tell}
        try:
            state = loop.fit(
                folder, state, update, self._pipeline, tuning.steps, keeping=keeping, measure=measure, **options
            )
        finally:
            if board:
                board.close()
        at = int(state.count)
        if keeping.best:
            best, state = checkpoints.best(folder.absolute(), keeping, state, placed=True, note=tell)
            at = best or at
        curve = loop.read_curve(folder)
        return Trained(self.trainee, {**self._frozen, **state.params}, at, curve, tuple(notes))

    def _measure(self) -> Callable[[TrainingState], dict[str, float]]:
        """Accuracy and loss on held-out rows, always the same."""
        assert self._held is not None
        tuning, held = self.tuning, self._held
        loss = functools.partial(self._loss, self.trainee, self._held_reader, z=0.0)

        @self.placing.on_mesh
        @jax.jit
        def one(params: Params, frozen: Params, rows: PackedRows) -> dict[str, jax.Array]:
            return loss(computed({**frozen, **params}, tuning.precision), rows, jax.random.key(tuning.seed))[1]

        @functools.cache
        def batches() -> list[PackedRows]:
            found = held.iterate(0, None)
            return [next(found)[0] for _ in range(tuning.measure_steps)]

        def take(state: TrainingState) -> dict[str, float]:
            sums = {"hits/all": 0.0, "asked/all": 0.0, "answer": 0.0}
            for rows in batches():
                parts = self.placing.batch(split_batch(rows, 1))
                found = one(state.params, self._frozen, jax.tree.map(lambda x: x[0], parts))
                sums = {name: value + float(found[name]) for name, value in sums.items()}
            return {
                ACCURACY: sums["hits/all"] / max(sums["asked/all"], 1.0),
                "eval/answer": sums["answer"] / tuning.measure_steps,
            }

        return take


def with_remat(model: Any, remat: bool) -> Any:
    """The same model, whose layers are computed again in the backward pass where `remat`.

    Raises:
      JvidpruneError: a part whose config has no `remat`.
    """
    graph, state = nnx.split(model)
    copy = nnx.merge(graph, state)
    for part in (copy.vision, copy.lm):
        if remat and not hasattr(part.config, "remat"):
            raise JvidpruneError(f"{type(part).__name__} keeps all activations: train without remat.")
        if hasattr(part.config, "remat"):
            part.config = dataclasses.replace(part.config, remat=remat)
    return copy
