"""Training of the routers of a mixture of depths beside a frozen model, by the answers and through the gates alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.cuts.inner import Inner
from jvidprune.evals.identity import plain
from jvidprune.evals.items import LeftOut, Task
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.prefill import read_prompt
from jvidprune.reducers.protocol import Reducer, inner_stages
from jvidprune.tokens import InnerStage
from jvidprune.training.data import PackedRows, rows_for
from jvidprune.training.inside import FirstQuestions, RowPrompt, WholeVideo, answer_logits, cross_entropy
from jvidprune.training.loss import Reader, Trainee, embed_rows, judge
from jvidprune.training.step import Params
from jvidprune.training.tuning import Tuner, Tuning
from jvidprune.weights import Weights

MODULE = "router"
"""Name of the module among the parameters."""


class Routers(nnx.Module):
    """w and b of every routed layer, zeros as p-MoD (arXiv 2412.04449) begins.

    Args:
      layers: that are routed.
      width: D.
    """

    def __init__(self, layers: tuple[int, ...], width: int):
        self.layers = layers
        self.weight = nnx.Param(jnp.zeros((len(layers), width)))
        self.bias = nnx.Param(jnp.zeros(len(layers)))

    def of_layer(self, layer: int) -> dict[str, Array]:
        """What a `RouterTopK` of this layer reads."""
        at = self.layers.index(layer)
        return {"weight": self.weight[...][at], "bias": self.bias[...][at]}

    def weights(self) -> Weights:
        """As `mod` and `videollm_mod` take them."""
        found = {(layer, name): x for layer in self.layers for name, x in self.of_layer(layer).items()}
        return Weights.of({f"layers.{layer}.{name}": np.asarray(x) for (layer, name), x in found.items()})


@dataclasses.dataclass(frozen=True)
class RoutedAnswers:
    """Cross-entropy of answers whose prompts are read with routed layers; see `loss.RowsLoss`.

    Attributes:
      prompt: what stands where.
      stages: of the method, whose weights are replaced by the ones that learn.
    """

    prompt: RowPrompt
    stages: tuple[InnerStage, ...]

    def __call__(
        self, trainee: Trainee, reader: Reader, params: Params, rows: PackedRows, key: Array, *, z: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The loss; metrics `answer`, hits and questions."""
        parts = trainee.merge(params)
        model, lm = parts["model"], parts["model"].lm
        count, clips = rows.share.shape
        found = reader(parts, rows.pixels.reshape(count * clips, *rows.pixels.shape[2:]), key)
        x, valid = embed_rows(model, found.tokens, rows), rows.segment > 0
        inner = self._inner(count, lm.config.layers)
        routes = (dataclasses.replace(one, weights=parts[MODULE].of_layer(one.layer)) for one in inner.routes)
        inner = dataclasses.replace(inner, routes=tuple(routes))
        cache = lm.empty_cache(count, inner.capacities(self.prompt.slots, 0), inner.boundaries)
        states = read_prompt(lm, x, rows.position, valid, cache, inner=inner).hidden
        logits = answer_logits(model, states, rows)
        answer = cross_entropy(logits, rows)
        hits, asked = judge(logits.argmax(-1), rows)
        return answer, {"answer": answer, "hits/all": hits, "asked/all": asked}

    def _inner(self, rows: int, layers: int) -> Inner:
        """Counts and lengths of the stages, with room for rows that fill all their slots."""
        shape = (rows, self.prompt.slots)
        visual, block = (np.broadcast_to(x, shape) for x in (self.prompt.visual, self.prompt.numbers("frame")))
        return Inner.create(self.stages, visual, np.ones(shape, bool), layers=layers, block=block)


def train_router(
    llm: VideoLLM,
    task: Task,
    folder: str | Path,
    reducer: Reducer,
    ratio: float,
    *,
    steps: int = 300,
    rate: float = 1e-2,
    rows: int = 4,
    frames: int = 8,
    seed: int = 0,
    log: int = 10,
    every: int = 50,
    report: Callable[[dict[str, float]], None] | None = None,
    stop_at: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
    strict: bool = False,
    skipped: Callable[[LeftOut], None] | None = None,
) -> Weights:
    """Trains the routers of a method; goes on where an earlier call in the same folder stopped.

    Args:
      llm: loaded in float32; stays as it is.
      task: clips, of each of which the first question is learned from.
      folder: of the run; router.safetensors in it is for the method's `router`.
      reducer: `mod` or `videollm_mod`, of the model's depth.
      ratio: that it is trained at.
      steps, rate, rows, frames, seed, log, every: as in `pruners.PrunerChoice`.
      report: called with each line of the curve.
      stop_at, note: see `loop.fit`.
      progress: called as (steps done, steps in all).
      strict, skipped: what becomes of clips that cannot be read, see `data.Pipeline` and its `report`.

    Raises:
      JvidpruneError: settings that make no run, or a folder with another one.
    """
    stages = tuple(stage for stage in inner_stages(reducer, ratio) if stage.layer < llm.loaded.config.text.layers)
    module: Any = Routers(tuple(stage.layer for stage in stages), llm.loaded.config.text.width)
    task, reader = FirstQuestions(task), WholeVideo(llm, frames)
    shape = rows_for(llm, task, frames=frames, kept=reader.kept, rows=rows, clips=1)
    tuning = Tuning(
        steps=steps,
        rates={"scorer": rate},
        shape=shape,
        frames=frames,
        warmup=min(20, steps // 10),
        z=0.0,
        seed=seed,
        log=log,
        every=every,
    )
    loss = RoutedAnswers(RowPrompt.of(llm, reader, shape), stages)
    tuner = Tuner(
        llm,
        tuning,
        reader=lambda count: reader,
        task=task,
        modules={MODULE: module},
        settings={"method": plain(reducer), "ratio": ratio},
        loss=loss,
        strict=strict,
        report=skipped,
    )
    trained = tuner.run(folder, report=report, stop_at=stop_at, progress=progress, note=note)
    return trained.modules()[MODULE].weights().write(Path(folder) / "router.safetensors")
