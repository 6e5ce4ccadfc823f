"""Training of a transport's cost and masses beside a frozen model (`jvidprune train cost`).

A step takes a few clips, each at a few retention ratios of its own; prepare, both transports and the loss of all pairs
are one vmapped program. Clips are encoded once and kept. What is learned from:

- reconstruction: dropped tokens rebuilt as the nearest output token, see `ops.rebuilt`;
- answer: cross-entropy of the right answers, given the reduced video;
- kl: KL of what the model says of the unpruned video from what it says of the reduced one.

The draws of a step are a function of its number, so that a run that was killed goes on to the same bits.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.evals.identity import model_identity, plain
from jvidprune.evals.items import Item, Task
from jvidprune.fields import Count, Index, Positive, Ratio, Seed, check_fields
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.quantised import refuse_quantised
from jvidprune.ops.rebuilt import dropped_tokens, reconstruction_error
from jvidprune.ops.transport.modules import MahalanobisCost, NetworkCost, NetworkMasses, arrays_of
from jvidprune.parallel import replicated
from jvidprune.reducers.aot import AOT
from jvidprune.reducers.aot.sizes import clip_lengths
from jvidprune.tokens import Layout, Reduced, VideoTokens, stack_budgets
from jvidprune.training import loop
from jvidprune.training.data import PackedRows
from jvidprune.training.inside import cross_entropy
from jvidprune.training.loss import judge
from jvidprune.training.reduced_rows import ReducedPrompts, divergence, fill_rows, said
from jvidprune.training.transport_parts import Parts, saved_parts, trainable, with_parts

Objective = Literal["reconstruction", "answer", "kl"]
Stage = Literal["intra", "inter", "both"]
CostKind = Literal["network", "mahalanobis", "own"]


@dataclasses.dataclass(frozen=True)
class CostChoice:
    """What is learned and how.

    Attributes:
      objective: what a step learns from.
      cost: `NetworkCost`, `MahalanobisCost`, or "own" to leave the method its costs and learn masses alone.
      masses: also learn `NetworkMasses`.
      stage: which transports of AOT get learned parts.
      ratios: lowest and highest retention ratio that is drawn.
      draws: ratios of each clip in a step.
      clips: of a step.
      steps: of the optimiser.
      rate: peak learning rate of Adam, after a tenth of the steps; it ends at a tenth of it along a cosine. By default
        0.01, and 0.001 of a Mahalanobis distance, whose costs grow with the square of its matrix.
      hidden: width of a network's hidden layer.
      rank: of a Mahalanobis distance.
      seed: of first weights and of draws.
      log, every: steps between lines of the curve, and between checkpoints; the first divides the second.
      measure: steps between measurements on held-out clips; 0 for none.

    Raises:
      JvidpruneError: a value out of range, an empty range of ratios, or nothing that learns.
    """

    objective: Objective = "reconstruction"
    cost: CostKind = "network"
    masses: bool = False
    stage: Stage = "both"
    ratios: tuple[Ratio, Ratio] = (0.05, 0.25)
    draws: Count = 2
    clips: Count = 4
    steps: Count = 100
    rate: Positive | None = None
    hidden: Count = 16
    rank: Count = 32
    seed: Seed = 0
    log: Count = 10
    every: Count = 20
    measure: Index = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.ratios[0] > self.ratios[1]:
            raise JvidpruneError(f"ratios go from the lowest to the highest, got {self.ratios[0]}, {self.ratios[1]}.")
        if self.cost == "own" and not self.masses:
            raise JvidpruneError("nothing learns: choose the cost network or mahalanobis, or learn masses.")
        if self.every % self.log or self.measure % self.log:
            raise JvidpruneError(f"log must divide every and measure, but {self.log} does not.")

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return self.rate or (1e-3 if self.cost == "mahalanobis" else 1e-2)

    def begin(self, width: int, method: AOT, frames: int) -> Parts:
        """The parts before the first step.

        Args:
          width: of the features.
          method: whose stages get them.
          frames: of a clip.
        """
        rngs, parts = nnx.Rngs(self.seed), {}
        for stage in self.stages(method, frames):
            if self.cost == "network":
                parts[f"{stage}_cost"] = arrays_of(NetworkCost(self.hidden, rngs=rngs))
            elif self.cost == "mahalanobis":
                parts[f"{stage}_cost"] = arrays_of(MahalanobisCost(width, self.rank, rngs=rngs))
            if self.masses:
                parts[f"{stage}_masses"] = arrays_of(NetworkMasses(self.hidden, rngs=rngs))
        return parts

    def stages(self, method: AOT, frames: int) -> tuple[str, ...]:
        """Transports that get learned parts: "both" is that inside frames alone where nothing moves along clips.

        Raises:
          JvidpruneError: the transport along clips of a method that has none, or whose clips have one frame each.
        """
        moves = method.inter and (method.clips == "dyseg" or max(clip_lengths(method.clips, frames)) > 1)
        if self.stage == "inter" and not moves:
            why = f"its clips of {frames} frames have one frame each (clips=)" if method.inter else "inter=False"
            raise JvidpruneError(f"this AOT moves nothing along clips, {why}: learn the transport inside frames.")
        return ("intra", "inter") if self.stage == "both" and moves else (self.stage.replace("both", "intra"),)


class CostBatch(NamedTuple):
    """What a step reads; C clips, R ratios each.

    Attributes:
      videos: tokens with evidence, each array with a leading axis C.
      budgets: of AOT without the numbers of its transports, with leading axes (C, R).
      rows: questions with room for K reduced tokens, one row a clip; None without answers.
      whole: the same with room for all tokens; None unless the unpruned model is asked.
    """

    videos: VideoTokens
    budgets: Any
    rows: PackedRows | None = None
    whole: PackedRows | None = None


class CostState(NamedTuple):
    """Parts, moments of the optimiser."""

    parts: Parts
    moments: Any


def reductions(method: AOT, video: VideoTokens, budgets: Any, *, capacity: int) -> Reduced:
    """One video at every budget of a stack, whose transports are those of the method itself."""
    shared = method.prepare(video, capacity=capacity)
    numbers = method.intra_transport.numbers(), method.inter_transport.numbers()

    def one(budget: Any) -> Reduced:
        whole = budget._replace(intra=numbers[0], inter=numbers[1])
        made = method.apply(method.decide(shared, whole, capacity=capacity), video)
        return made._replace(diagnostics={})

    return jax.vmap(one)(budgets)


@dataclasses.dataclass(frozen=True)
class CostLoss:
    """The loss of a batch, and what is measured beside it.

    Attributes:
      method: AOT with plan_gradient "through".
      objective: what the loss is.
      capacity: K, rows of a reduction.
      original: whether kept tokens keep the positions of the unpruned prompt.
      merge: parameters of the model to the model; None without answers.
    """

    method: AOT
    objective: Objective
    capacity: int
    original: bool = False
    merge: Callable[[Any], Any] | None = None

    def __call__(self, parts: Parts, model: Any, batch: CostBatch) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss and metrics: `reconstruction`, `tokens`, and of answers `answer`, `apart` (the KL), hits and asked.

        Args:
          parts: that learn.
          model: parameters of the frozen model, None without answers.
          batch: clips with their budgets.
        """
        method = with_parts(self.method, parts)

        def clip(video: VideoTokens, budgets: Any) -> tuple[Reduced, Array]:
            made = reductions(method, video, budgets, capacity=self.capacity)
            tokens = video.features.reshape(-1, video.features.shape[-1])
            there = jnp.repeat(video.frame_mask, video.features.shape[1])

            def error(kept: Array, index: Array, valid: Array) -> Array:
                return reconstruction_error(tokens, kept, valid, dropped_tokens(index, valid, there))

            return made, jax.vmap(error)(made.tokens, made.index, made.valid)

        made, errors = jax.vmap(clip)(batch.videos, batch.budgets)
        metrics = {"reconstruction": errors.mean(), "tokens": made.valid.sum(-1).mean()}
        if batch.rows is None or self.merge is None:
            return metrics["reconstruction"], metrics
        clips, draws = made.valid.shape[:2]
        tokens, index, valid = (
            leaf.reshape(clips * draws, *leaf.shape[2:]) for leaf in (made.tokens, made.index, made.valid)
        )
        frozen, whole = self.merge(model), batch.videos.features.shape[1] * batch.videos.features.shape[2]
        rows = jax.tree.map(lambda leaf: jnp.repeat(leaf, draws, axis=0), batch.rows)
        rows = rows._replace(weight=rows.weight / draws)
        logits = said(frozen, tokens, fill_rows(rows, index, valid, whole, original=self.original))
        hits, asked = judge(logits.argmax(-1), rows)
        metrics |= {"answer": cross_entropy(logits, rows), "hits/all": hits, "asked/all": asked}
        if batch.whole is not None:
            full = said(frozen, batch.videos.features.reshape(clips, whole, -1), batch.whole)
            full = jnp.repeat(jax.lax.stop_gradient(full), draws, axis=0)
            metrics["apart"] = divergence(full, logits, rows)
        return metrics["apart" if self.objective == "kl" else "answer"], metrics


def cost_optimiser(steps: int, rate: float) -> Any:
    """Adam on gradients of norm 1 at most, with a warm-up and a cosine."""
    import optax

    pace = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), max(2, steps), 0.1 * rate)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(pace))


def cost_step(loss: CostLoss, tx: Any) -> Callable[..., tuple[CostState, dict[str, Array]]]:
    """The jitted step: (state, parameters of the model, batch) -> (state, metrics)."""
    import optax

    @jax.jit
    def step(state: CostState, model: Any, batch: CostBatch) -> tuple[CostState, dict[str, Array]]:
        (value, metrics), slopes = jax.value_and_grad(loss, has_aux=True)(state.parts, model, batch)
        change, moments = tx.update(slopes, state.moments, state.parts)
        metrics |= {"loss": value, "slope": optax.global_norm(slopes)}
        parts: Any = optax.apply_updates(state.parts, change)
        return CostState(parts, moments), metrics

    return step


def stacked_budgets(method: AOT, layout: Layout, ratios: Sequence[float]) -> Any:
    """Budgets of ratios without the numbers of transports, with a leading axis."""
    return stack_budgets([method.budget(layout, ratio)._replace(intra=(), inter=()) for ratio in ratios])


def _replicated(model: Any) -> jax.sharding.Sharding:
    """The sharding of what every device of a model holds."""
    place: Any = jax.tree.leaves(model)[0].sharding
    return replicated(place.mesh) if hasattr(place, "mesh") else place


class CostTrainer:
    """A run: method, clips, loss.

    Args:
      llm: stays as it is.
      method: AOT, see `trainable`.
      choice: settings.
      task: clips to learn from, with questions unless the objective is reconstruction; all are encoded once and kept.
      held: clips to measure on.
      frames: of a clip; others are refused.

    Raises:
      JvidpruneError: a method, clips or a family that the objective cannot do with.
    """

    def __init__(
        self, llm: VideoLLM, method: Any, choice: CostChoice, task: Task, held: Task | None = None, *, frames: int = 8
    ):
        refuse_quantised(llm.loaded.config, "learning a cost")
        self.llm, self.choice, self.method = llm, choice, trainable(method)
        if len(task) < choice.clips:
            raise JvidpruneError(f"a step takes {choice.clips} clips, but there are {len(task)} to learn from.")
        if choice.measure and held is None:
            raise JvidpruneError("there are no held-out clips to measure.")
        self._task, self._held, self._frames = task, held, frames
        self._known: dict[tuple[bool, int], VideoTokens] = {}
        first = self._video(False, 0)
        self._layout = first.layout()
        self.capacity = self.method.capacity(self._layout, choice.ratios[1])
        self._width = first.features.shape[-1]
        self._parts = choice.begin(self._width, self.method, self._layout.frames)
        self._prompts: ReducedPrompts | None = None
        merge: Callable[[Any], Any] | None = None
        self._model = None
        if choice.objective != "reconstruction":
            items = [task[number] for number in range(len(task))]
            items += [] if held is None else [held[number] for number in range(len(held))]
            self._prompts = ReducedPrompts.of(llm, items, self.method, frames, self.capacity)
            graph, self._model = nnx.split(llm.loaded.model)

            def merged(state: Any) -> Any:
                return nnx.merge(graph, state)

            merge = merged

        original = self._prompts is not None and self._prompts.original
        self.loss = CostLoss(self.method, choice.objective, self.capacity, original, merge)
        known = model_identity(llm)
        beside = ("log", "every", "measure")
        self._settings = plain(
            {
                "model": known["model"],
                "prompt": known["prompt"],
                "around": known["around"],
                "task": task.fingerprint(),
                "held": None if held is None else held.fingerprint(),
                "method": plain(self.method),
                "choice": {k: v for k, v in dataclasses.asdict(choice).items() if k not in beside},
                "frames": frames,
            }
        )

    def with_seed(self, seed: int) -> "CostTrainer":
        """The run of another seed: other first weights and draws, the same compiled step and encoded clips."""
        _ = self._compiled  # Goes along.
        other = copy.copy(self)
        other.choice = dataclasses.replace(self.choice, seed=seed)
        other._parts = other.choice.begin(self._width, self.method, self._layout.frames)
        other._settings = self._settings | {"choice": self._settings["choice"] | {"seed": seed}}
        return other

    def batch(self, step: int) -> CostBatch:
        """What a step learns from: clips that differ, and ratios drawn evenly, by the seed and the step."""
        choice = self.choice
        rng = np.random.default_rng([choice.seed, step])
        numbers = rng.choice(len(self._task), choice.clips, replace=False)
        ratios = rng.uniform(*choice.ratios, (choice.clips, choice.draws))
        return self._made([(False, int(number)) for number in numbers], ratios)

    def run(
        self,
        folder: str | Path,
        *,
        report: Callable[[dict[str, float]], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        stop_at: Callable[[], bool] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> AOT:
        """Trains to the last step, going on where an earlier call in the same folder stopped.

        Args:
          folder: of checkpoints, settings and curve; the learned parts lie in it as safetensors files.
          report: called with each line of the curve.
          progress: called as (steps done, steps in all).
          stop_at, note: see `loop.fit`.

        Returns:
          The method with the learned parts, as it is used.

        Raises:
          JvidpruneError: the folder holds another run, or damaged checkpoints alone; or a loss or a derivative that is
            no number, with the step by which it came. Checkpoints before that stay.
        """
        choice, folder = self.choice, Path(folder)
        tx, step = self._compiled

        def checked(line: dict[str, float]) -> None:
            if not np.isfinite([line["loss"], line["slope"]]).all():
                raise JvidpruneError(
                    f"by step {int(line['step'])} the loss or its derivative is no number, as where costs have "
                    "outgrown the temperature of a solver that forms exp(-cost / epsilon): learn at a lower rate, or "
                    "through a solver in the log domain, aot(intra_transport=Transport(solver=LogSinkhorn(0.1)))."
                )
            if report is not None:
                report(line)

        def update(state: CostState, batch: CostBatch, number: Any) -> tuple[CostState, dict[str, Any]]:
            state, metrics = step(state, self._model, batch)
            if progress is not None:
                progress(int(number) + 1, choice.steps)
            return state, metrics

        measure = loop.Measure(choice.measure, self._measure()) if choice.measure else None
        options: dict[str, Any] = {"settings": self._settings, "every": choice.every, "log": choice.log}
        options |= {"report": checked, "stop_at": stop_at, "note": note, "measure": measure}
        state = CostState(self._parts, tx.init(self._parts))
        if self._model is not None:
            # On the model's devices, where the first step leaves it: the second would compile the program again.
            state = jax.device_put(state, _replicated(self._model))
        state = loop.fit(folder, state, update, self.batch, choice.steps, **options)
        return saved_parts(self.method, state.parts, folder)

    @functools.cached_property
    def _compiled(self) -> tuple[Any, Callable[..., tuple[CostState, dict[str, Array]]]]:
        tx = cost_optimiser(self.choice.steps, self.choice.peak)
        return tx, cost_step(self.loss, tx)

    def _measure(self) -> Callable[[CostState], dict[str, float]]:
        """Means over held-out clips at the lowest, the middle and the highest ratio."""
        assert self._held is not None
        low, high = self.choice.ratios
        ratios = np.tile([low, (low + high) / 2, high], (1, 1))
        batches = [self._made([(True, number)], ratios) for number in range(len(self._held))]
        loss = jax.jit(lambda parts, model, batch: self.loss(parts, model, batch)[1])

        def take(state: CostState) -> dict[str, float]:
            found = [jax.device_get(loss(state.parts, self._model, batch)) for batch in batches]
            names = [name for name in found[0] if not name.startswith(("hits/", "asked/"))]
            means = {f"held/{name}": float(np.mean([one[name] for one in found])) for name in names}
            asked = sum(float(one.get("asked/all", 0.0)) for one in found)
            if asked:
                means["held/accuracy"] = sum(float(one["hits/all"]) for one in found) / asked
            return means

        return take

    def _made(self, numbers: Sequence[tuple[bool, int]], ratios: Float[np.ndarray, "C R"]) -> CostBatch:
        videos = jax.tree.map(lambda *leaves: np.stack(leaves), *(self._video(*number) for number in numbers))
        budgets = stack_budgets([stacked_budgets(self.method, self._layout, list(row)) for row in ratios])
        if self._prompts is None:
            return CostBatch(videos, budgets)
        items = [(self._held if held else self._task)[number] for held, number in numbers]  # pyright: ignore[reportOptionalSubscript]
        rows, whole = self._prompts.rows(items), None
        if self.choice.objective == "kl":
            whole = self._prompts.unpruned(self._layout.total).rows(items)
        return CostBatch(videos, budgets, rows, whole)

    def _video(self, held: bool, number: int) -> VideoTokens:
        """The tokens of a clip on the host, encoded once."""
        if (held, number) not in self._known:
            item: Item = (self._held if held else self._task)[number]  # pyright: ignore[reportOptionalSubscript]
            clip = item.load()
            if len(clip.frames) != self._frames:
                raise JvidpruneError(
                    f"the clip {item.id} has {len(clip.frames)} frames, but training reads {self._frames}."
                )
            tokens = self.llm.encode(clip, needs=self.method.needs).tokens
            self._known[held, number] = jax.device_get(tokens)
        return self._known[held, number]
