"""The second recipe as data: a tower that learns from language, a language model that reads whatever is left of a clip.

No oracle says which tokens matter: tokens are left out and averaged by draws (`variety`), the same for all methods, and
in half of the clips what is left is counted without gaps. 16 frames of 64 tokens, 256 before pooling: 1,024 visual
tokens a clip.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.tiny import optimiser, variety
from experiments.tiny.batches import KINDS, Prompts, Thinning, clip_batch
from experiments.tiny.captions import caption_batch
from experiments.tiny.network import Network, create
from experiments.tiny.recipe import LONGEST, ModelSizes, all_words, config_json, word_pairs, write_tokenizer
from experiments.tiny.regime_losses import AnswerBatch, RegimeHeads, answer_loss, look_loss
from experiments.tiny.variety import Shown
from jvidprune.models.tokenizer import Tokenizer
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.world import COLOURS, SHAPES
from jvidprune.training import loop

EYES = ("0.vision", "0.projector", "0.lm", "1.")
MIND = ("0.projector", "0.image_newline", "0.lm", "1.")
ALL = ("0.", "1.")

SIZES = ModelSizes(vision=(64, 192, 6, 4, 112, 7), text=(128, 256, 8, 4, 2))
"""Sixteen patches a side, eight tokens behind the pooling; about 3 MB in bfloat16."""

TASK = Procedural("train", clips=1 << 30, frames=16, side=112)
"""An object is 19 to 29 pixels wide, 14 a token: it shows in 3.5 tokens of a frame in the mean, 4 in the median."""


@dataclasses.dataclass(frozen=True)
class RegimeStage:
    """One stage.

    Attributes:
      name: of its folder.
      kind: "look" (`regime_losses.look_loss`) or "answer" (`regime_losses.answer_loss`).
      steps: to train.
      clips: in a batch.
      rate: peak learning rate.
      trained: prefixes of the parameters that learn; the model is 0, the heads are 1. The tower learns from answers
        where they name it.
      first: number of the first clip, so that stages see different ones.
      warmup: steps.
      anneal: whether the rate falls along a cosine; a stage without may be ended at any step.
      frames: of a clip, of "look".
      dense: weight of the dense losses at the first step, of a "look" that is a warm-up; it falls to 0 in a line.
      asked, longest, kinds, categories: as of `recipe.RecipeStage`.
      all_tokens: share of the steps of "answer" in which all tokens are read.
    """

    name: str
    kind: str
    steps: int
    clips: int
    rate: float
    trained: tuple[str, ...]
    first: int = 0
    warmup: int = 50
    anneal: bool = False
    frames: int = 2
    dense: float = 0.0
    asked: int = 8
    longest: int = LONGEST
    kinds: tuple[str, ...] = KINDS
    categories: tuple[str, ...] | None = None
    all_tokens: float = 0.4


@dataclasses.dataclass(frozen=True)
class Regime:
    """A whole run."""

    stages: tuple[RegimeStage, ...]
    sizes: ModelSizes = SIZES
    task: Procedural = TASK
    seed: int = 0
    precision: str = "float32"

    def scaled(self, batch: float) -> "Regime":
        """The same with so many times the clips of every batch and as many fewer steps."""
        stages = []
        for stage in self.stages:
            clips = max(1, round(stage.clips * batch))
            steps = max(1, round(stage.steps * stage.clips / clips))
            stages.append(dataclasses.replace(stage, clips=clips, steps=steps))
        return dataclasses.replace(self, stages=tuple(stages))


REGIME = Regime(
    stages=(
        RegimeStage("warm", "look", steps=800, clips=16, rate=2e-3, trained=EYES, dense=1.0),
        RegimeStage("captions", "look", steps=2400, clips=24, rate=2e-3, trained=EYES, first=1 << 20),
        RegimeStage(
            "words",
            "answer",
            steps=1200,
            clips=4,
            rate=2e-3,
            trained=MIND,
            first=1 << 22,
            longest=22,
            kinds=("short", "yes_no"),
            categories=("attribute", "hallucination"),
        ),
        RegimeStage("questions", "answer", steps=3000, clips=4, rate=1.5e-3, trained=MIND, first=1 << 24),
        RegimeStage("through", "answer", steps=2400, clips=4, rate=5e-4, trained=ALL, first=1 << 26, warmup=100),
        RegimeStage("settle", "answer", steps=800, clips=4, rate=5e-4, trained=ALL, first=1 << 28, anneal=True),
    )
)
"""Chosen by held-out unpruned accuracy and by what attention and norms do (`statistics`), never by how methods rank."""


def answer_batch(
    task: Procedural, step: int, stage: RegimeStage, prompts: Prompts, side: int, seed: int
) -> AnswerBatch:
    """Clips with questions, all read in one number of rows that is drawn for the step, each in a way of its own.

    Args:
      task: clips.
      step: of the run, counted from the stage's first clip.
      stage: for the numbers.
      prompts: encode questions.
      side: of a frame's grid of tokens.
      seed: of the draws.
    """
    clips = clip_batch(
        task, step, stage.clips, prompts, asked=stage.asked, cells=side, plan=Thinning(), seed=seed, kinds=stage.kinds
    )
    counts = variety.row_counts(task.frames, side)
    rng = np.random.default_rng([seed, step, 2])
    rows = counts[0] if rng.random() < stage.all_tokens else counts[1 + int(rng.integers(len(counts) - 1))]
    shown = [variety.draw(rng, task.frames, side, rows) for _ in range(stage.clips)]
    # What tokens show stays behind: no loss can use it.
    nothing = np.zeros((stage.clips, 0), np.int8)
    bare = clips._replace(story=nothing, kept=nothing, positions=nothing)
    return AnswerBatch(bare, Shown(*(np.stack(column) for column in zip(*shown, strict=True))))


def train_regime(
    regime: Regime,
    folder: str | Path,
    *,
    every: int = 200,
    log: int = 20,
    report: Callable[[str, dict[str, float]], None] | None = None,
) -> tuple[Network, Any, Tokenizer]:
    """Runs or resumes every stage below `folder`; see `recipe.train`.

    Args:
      regime: what to train.
      folder: of the run, one folder a stage below it.
      every: steps between checkpoints.
      log: steps between lines of the learning curves.
      report: called with the stage's name and each line of its curve.

    Returns:
      the network, its parameters (model and heads), the tokenizer.
    """
    folder = Path(folder)
    inner, tokenizer = write_tokenizer(folder)
    pairs = word_pairs(tokenizer, all_words())
    network, params = create(config_json(regime.sizes, inner), regime.seed, pairs, RegimeHeads)
    tables = (("colour", COLOURS), ("shape", SHAPES))
    words = {name: jnp.asarray(word_pairs(tokenizer, table)) for name, table in tables}
    history: list[Any] = [dataclasses.asdict(regime.sizes), regime.seed, regime.precision, regime.task.fingerprint()]
    for stage in regime.stages:
        own = dataclasses.asdict(stage) | ({} if stage.anneal or stage.dense else {"steps": None})
        tx = optimiser.adamw(
            params, stage.trained, rate=stage.rate, warmup=stage.warmup, steps=stage.steps, anneal=stage.anneal
        )
        state = loop.fit(
            folder / stage.name,
            optimiser.OptimiserState(params, tx.init(params)),
            optimiser.training_step(_loss(network, stage, words, tokenizer, regime.precision), tx),
            _batches(network, stage, regime, tokenizer),
            stage.steps,
            settings={"history": [*history, own]},
            every=every,
            log=log,
            report=None if report is None else lambda line, name=stage.name: report(name, line),
        )
        params = state.params
        history.append(dataclasses.asdict(stage))
    return network, params, tokenizer


def _loss(
    network: Network, stage: RegimeStage, words: dict[str, Any], tokenizer: Tokenizer, precision: str
) -> optimiser.Loss:
    before = jnp.asarray(Prompts(tokenizer, LONGEST).before)
    tower = any(prefix.startswith("0.vision") or prefix == "0." for prefix in stage.trained)

    def look(params: Any, batch: Any) -> Any:
        return look_loss(network, params, batch, words, dense=stage.dense > 0, precision=jnp.dtype(precision))

    def answer(params: Any, batch: Any) -> Any:
        return answer_loss(network, params, batch, before, tower=tower, precision=jnp.dtype(precision))

    return {"look": look, "answer": answer}[stage.kind]


def _batches(network: Network, stage: RegimeStage, regime: Regime, tokenizer: Tokenizer) -> Callable[[int], Any]:
    sides = network.config.vision.side, network.config.grid[0]
    skip, prompts = stage.first // stage.clips, Prompts(tokenizer, stage.longest)
    task = regime.task
    if stage.categories is not None:
        task = dataclasses.replace(task, categories=stage.categories)

    def look(step: int) -> Any:
        dense = stage.dense * (1 - step / stage.steps)
        return caption_batch(
            task, skip + step, stage.clips, stage.frames, sides, tokenizer, dense=dense, seed=regime.seed
        )

    def answer(step: int) -> Any:
        return answer_batch(task, skip + step, stage, prompts, sides[1], regime.seed)

    return {"look": look, "answer": answer}[stage.kind]
