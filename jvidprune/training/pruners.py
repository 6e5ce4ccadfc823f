"""Training of CoViPAL's module beside a frozen model: first by a deep layer's attention, then by the answers.

1. Guidance: the attention that the last position of the unpruned prompt pays to each visual token in a deep layer, mean
   over heads, is the label; the loss is KL(label || softmax(S)) and the language model has no gradient at all.
2. Answers: the loss is the cross-entropy of the answer and a share of KL(unpruned || pruned), of the prompt as the hard
   choice hides it; its gradient is that of the same loss where keys are biased by the soft choice
   (`covipal.rules.SoftTopK`).

Both are ordinary runs of `tuning.Tuner`: packed rows, checkpoints, curves, and a resume that is bit-equal.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.covipal.module import PPM, module_weights
from jvidprune.covipal.rules import SoftTopK, slots_of
from jvidprune.cuts.cut import Cut
from jvidprune.cuts.inner import Inner
from jvidprune.errors import JvidpruneError
from jvidprune.evals.identity import plain
from jvidprune.evals.items import LeftOut, Task
from jvidprune.fields import Count, Index, NotNegative, Positive, Ratio, Seed, check_fields
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.prefill import read_prompt
from jvidprune.reducers.counts import half_even
from jvidprune.training.data import PackedRows, Shape, rows_for
from jvidprune.training.inside import FirstQuestions, RowPrompt, WholeVideo, answer_logits, cross_entropy
from jvidprune.training.loss import Reader, Trainee, embed_rows, judge
from jvidprune.training.step import Params
from jvidprune.training.tuning import Trained, Tuner, Tuning
from jvidprune.weights import Weights

MODULE, PACE = "pruner", "pace.temperature"
"""Name of the module among the parameters, and of the temperature of a step."""

RECALLED = 0.25
"""Share of the visual tokens whose overlap with the guidance's own is a metric."""


@dataclasses.dataclass(frozen=True)
class PrunerChoice:
    """What to train and how; all but the two stages and the shares is ours, since the paper's settings are not public.

    Attributes:
      place: layer that the module acts in front of, 0 for the input of the language model.
      guidance: layer whose attention is imitated, deeper than `place`; None takes round(0.6 layers).
      steps: of the two stages; the second may have none.
      rates: peak learning rates of the two stages.
      shares: of visual tokens that stay, one drawn for every step of the second stage.
      distilled: factor of KL(unpruned || pruned).
      temperatures: of the soft choice, at the first step of the second stage and at its last.
      width, blocks, hidden, heads, grid: of the module, see `covipal.module.PPM`.
      rows: questions of a step.
      seed: of the order of clips, of the module and of the shares.
      log, every: steps between lines of the curve, and between checkpoints.

    Raises:
      JvidpruneError: a value out of range.
    """

    place: Index = 0
    guidance: Count | None = None
    steps: tuple[Count, Index] = (300, 200)
    rates: tuple[Positive, Positive] = (1e-3, 1e-4)
    shares: tuple[Ratio, ...] = (0.1, 0.25, 0.5)
    distilled: NotNegative = 0.1
    temperatures: tuple[Positive, Positive] = (1.0, 0.1)
    width: Count = 256
    blocks: Count = 2
    hidden: Count = 1024
    heads: Count = 4
    grid: bool = True
    rows: Count = 4
    seed: Seed = 0
    log: Count = 10
    every: Count = 50

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Guided:
    """Loss of the first stage; see `loss.RowsLoss`.

    Attributes:
      prompt: what stands where.
      place: layer that the module acts in front of.
      layer: whose attention is the label.
    """

    prompt: RowPrompt
    place: int
    layer: int

    def __call__(
        self, trainee: Trainee, reader: Reader, params: Params, rows: PackedRows, key: Array, *, z: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """KL of the softmax of the scores to the label; metrics `uniform`, that of equal scores, and `recall`."""
        parts = trainee.merge(params)
        module, lm = parts[MODULE], parts["model"].lm
        x, visual = _entering(parts, reader, rows, key), rows.visual >= 0
        step = lm.step(rows.position, rows.segment > 0)
        if self.place > 0:
            x, _ = lm.run(x, step, 0, self.place)
        asked = self.prompt.asked(rows, template=self.place > 0)
        places = jnp.broadcast_to(self.prompt.places(), (*visual.shape, 3))
        score = module(jax.lax.stop_gradient(x), visual, asked, places)
        x, _ = lm.run(x, step, self.place, self.layer)
        _, outputs = lm.run(x, step, self.layer, self.layer + 1, rows=rows.slot[:, :1])
        paid = jnp.where(visual, outputs.attention[0, :, :, 0].mean(axis=1), 0.0)
        label = jax.lax.stop_gradient(paid / jnp.maximum(paid.sum(axis=1, keepdims=True), 1e-20))
        said = jax.nn.log_softmax(jnp.where(visual, score, -1e30), axis=1)
        surprise = jnp.where(label > 0, label * jnp.log(jnp.maximum(label, 1e-30)), 0.0).sum(axis=1)
        loss = surprise - jnp.where(visual, label * said, 0.0).sum(axis=1)
        uniform = surprise + jnp.log(visual.sum(axis=1))
        best, taken = (jax.lax.top_k(jnp.where(visual, value, -jnp.inf), self._recalled)[1] for value in (label, score))
        recall = (best[:, :, None] == taken[:, None, :]).any(axis=-1).mean(axis=1)
        share = jnp.asarray(rows.share)[:, 0]
        metrics = {"uniform": (share * uniform).sum(), "recall": (share * recall).sum()}
        return (share * loss).sum(), metrics

    @property
    def _recalled(self) -> int:
        return max(1, round(RECALLED * self.prompt.kept))


@dataclasses.dataclass(frozen=True)
class SoftlyPruned:
    """Loss of the second stage; see `loss.RowsLoss`.

    Attributes:
      prompt: what stands where.
      place: layer that the module acts in front of.
      shares: of visual tokens that stay.
      distilled: factor of KL(unpruned || pruned).
      heads, grid: of the module.
    """

    prompt: RowPrompt
    place: int
    shares: tuple[float, ...]
    distilled: float
    heads: int
    grid: bool

    def __call__(
        self, trainee: Trainee, reader: Reader, params: Params, rows: PackedRows, key: Array, *, z: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Answers of the softly pruned prompt; metrics `answer`, `unpruned`, `soft`, `apart` (the KL), hits."""
        parts = trainee.merge(params)
        model, lm = parts["model"], parts["model"].lm
        x, valid = _entering(parts, reader, rows, key), rows.segment > 0
        whole = answer_logits(model, lm.run(x, lm.step(rows.position, valid), 0, lm.config.layers)[0], rows)
        own = {name.removeprefix(f"{MODULE}."): value for name, value in params.items() if name.startswith(MODULE)}
        keep = jax.random.choice(key, jnp.asarray(self._kept))
        table = jnp.full(self.prompt.slots + 1, keep, jnp.int32)
        temperature = params.get(PACE, jnp.float32(1.0))
        block = jnp.broadcast_to(self.prompt.numbers("place"), valid.shape)
        asked = self.prompt.asked(rows, template=self.place > 0)
        right = jax.nn.log_softmax(jax.lax.stop_gradient(whole), axis=-1)

        def read(own: Params, hard: bool) -> tuple[Array, Array, Array, Array]:
            rule, weights = SoftTopK(self.heads, self.grid, hard=hard), slots_of(own, temperature)
            cut = Cut(table, jnp.zeros((), jnp.int32), self.place, rule, None, weights=weights)
            inner = Inner((cut,), rows.visual >= 0, asked, block, layers=lm.config.layers)
            cache = lm.empty_cache(valid.shape[0], inner.capacities(valid.shape[1], 0), inner.boundaries)
            states = read_prompt(lm, x, rows.position, valid, cache, inner=inner).hidden
            logits = answer_logits(model, states, rows)
            said = jax.nn.log_softmax(logits, axis=-1)
            apart = (rows.weight * (jnp.exp(right) * (right - said)).sum(axis=-1)).sum()
            answer = cross_entropy(logits, rows)
            return answer + self.distilled * apart, answer, apart, logits

        loss, answer, apart, logits = read(jax.lax.stop_gradient(own), True)
        soft, *_ = read(own, False)
        hits, asked_of = judge(logits.argmax(-1), rows)
        metrics = {"answer": answer, "apart": apart, "soft": soft, "unpruned": cross_entropy(whole, rows)}
        # The value of the hard choice, with the slopes of the soft one.
        loss = loss + (soft - jax.lax.stop_gradient(soft))
        return loss, metrics | {"hits/all": hits, "asked/all": asked_of}

    @property
    def _kept(self) -> np.ndarray:
        """Tokens that stay, for each share."""
        return np.asarray([half_even(self.prompt.kept, share) for share in self.shares], np.int32)


def _entering(parts: Any, reader: Reader, rows: PackedRows, key: Array) -> Float[Array, "R S D"]:
    """What enters the language model."""
    count, clips = rows.share.shape
    found = reader(parts, rows.pixels.reshape(count * clips, *rows.pixels.shape[2:]), key)
    return embed_rows(parts["model"], found.tokens, rows)


def guidance_layer(place: int, layers: int, asked: int | None) -> int:
    """The layer whose attention is imitated.

    Raises:
      JvidpruneError: one that is not deeper than the module's place, or that the model lacks.
    """
    layer = max(round(0.6 * layers), place + 1) if asked is None else asked
    if not place < layer < layers:
        raise JvidpruneError(
            f"the guidance comes from a layer behind the module's place, {place}, and before {layers}, the number of "
            f"layers; got {layer}."
        )
    return layer


def train_pruner(
    llm: VideoLLM,
    task: Task,
    folder: str | Path,
    choice: PrunerChoice | None = None,
    *,
    frames: int = 8,
    report: Callable[[dict[str, float]], None] | None = None,
    stop_at: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
    strict: bool = False,
    skipped: Callable[[LeftOut], None] | None = None,
) -> tuple[Weights, Weights]:
    """Trains a module in both stages; goes on where an earlier call in the same folder stopped.

    Args:
      llm: loaded in float32; stays as it is.
      task: clips, of each of which the first question is learned from.
      folder: of both runs, below it in guided/ and answers/; guided.safetensors and pruner.safetensors are the modules
        behind each stage, for `CoViPAL(module=...)`.
      choice: settings.
      frames: of a clip.
      report: called with each line of the curves.
      stop_at, note: see `loop.fit`.
      progress: called as (steps done, steps in all), of each stage.
      strict, skipped: what becomes of clips that cannot be read, see `data.Pipeline` and its `report`.

    Returns:
      The modules behind the first and the second stage.

    Raises:
      JvidpruneError: settings that make no run, or a folder with another one.
    """
    choice, folder = choice or PrunerChoice(), Path(folder)
    layers = llm.loaded.config.text.layers
    layer = guidance_layer(choice.place, layers, choice.guidance)
    task, reader = FirstQuestions(task), WholeVideo(llm, frames)
    shape = rows_for(llm, task, frames=frames, kept=reader.kept, rows=choice.rows, clips=1)
    prompt = RowPrompt.of(llm, reader, shape)
    sizes: dict[str, Any] = {name: getattr(choice, name) for name in ("width", "blocks", "hidden", "heads", "grid")}
    module = PPM(llm.loaded.config.text.width, **sizes, rngs=nnx.Rngs(choice.seed))
    losses = (
        Guided(prompt, choice.place, layer),
        SoftlyPruned(prompt, choice.place, choice.shares, choice.distilled, choice.heads, choice.grid),
    )
    first, last = choice.temperatures

    def pace(step: int) -> Params:
        part = step / max(choice.steps[1] - 1, 1)
        return {PACE: jnp.float32(first * (last / first) ** part)}

    def pace_of(stage: int) -> Any:
        return plain(choice.temperatures) if stage else None

    found: list[Weights] = []
    for stage, name in enumerate(("guided", "answers")):
        if choice.steps[stage] > 0:
            starts = module_weights(module, choice.place).digest
            tuner = Tuner(
                llm,
                _tuning(choice, stage, shape, frames),
                reader=lambda count: reader,
                task=task,
                modules={MODULE: module},
                settings={"loss": plain(losses[stage]), "starts": starts, "pace": pace_of(stage)},
                loss=losses[stage],
                pace=pace if stage else None,
                strict=strict,
                report=skipped,
            )
            trained = tuner.run(folder / name, report=report, stop_at=stop_at, progress=progress, note=note)
            module = trained.modules()[MODULE]
            if _stopped(trained, choice.steps[stage]):
                return module_weights(module, choice.place), module_weights(module, choice.place)
        file = folder / ("pruner.safetensors" if stage else "guided.safetensors")
        found.append(module_weights(module, choice.place).write(file))
    return found[0], found[1]


def _stopped(trained: Trained, steps: int) -> bool:
    return trained.step < steps


def _tuning(choice: PrunerChoice, stage: int, shape: Shape, frames: int) -> Tuning:
    steps = choice.steps[stage]
    return Tuning(
        steps=steps,
        rates={"scorer": choice.rates[stage]},
        shape=shape,
        frames=frames,
        warmup=min(20, steps // 10),
        z=0.0,
        seed=choice.seed + stage,
        log=choice.log,
        every=choice.every,
    )
