"""The second recipe as data: a tower that learns from language, a language model that reads whatever is left of a clip.

No oracle says which tokens matter: tokens are left out and averaged by draws (`variety`), the same for all methods, and
in half of the clips what is left is counted without gaps. 16 frames of 64 tokens, 256 before pooling: 1,024 visual
tokens a clip.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.tiny import optimiser
from experiments.tiny.batches import KINDS, Prompts, frame_batch
from experiments.tiny.captions import caption_batch
from experiments.tiny.features import Pool, pool
from experiments.tiny.losses import frame_loss, pixels
from experiments.tiny.network import Network, create
from experiments.tiny.recipe import LONGEST, ModelSizes, all_words, config_json, word_pairs, write_tokenizer
from experiments.tiny.regime_batches import answer_batch, held_batches
from experiments.tiny.regime_losses import RegimeHeads, answer_loss, look_loss
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.tokenizer import Tokenizer
from jvidprune.parallel import make_mesh, replicated, shard_batch
from jvidprune.procedural.benchmark import Procedural, detailed
from jvidprune.procedural.world import COLOURS, SHAPES
from jvidprune.training import loop

WARM = ("0.vision", "0.projector", "0.lm.embed", "1.")
EYES = ("0.vision", "0.projector", "0.image_newline", "0.lm", "1.")
MIND = ("0.image_newline", "0.lm", "1.")
ALL = ("0.", "1.")
SIZES = ModelSizes(vision=(64, 192, 6, 4, 112, 7), text=(128, 256, 6, 4, 2))
"""Sixteen patches a side, eight tokens behind the pooling; about 2.5 MB in bfloat16."""

TASK = detailed("train", 1 << 30)
"""A main object shows in 4.5 of a frame's 64 tokens in the mean, 4 in the median; a small one in 1.1."""


@dataclasses.dataclass(frozen=True)
class RegimeStage:
    """One stage.

    Attributes:
      name: of its folder.
      kind: "frames" (`losses.frame_loss`, dense alone), "look" (`regime_losses.look_loss`) or "answer"
        (`regime_losses.answer_loss`).
      steps: to train.
      clips: in a batch; of "answer" on cached features the fewest (`regime_batches.PACKED`).
      rate: peak learning rate.
      trained: prefixes of the parameters that learn; the model is 0, the heads are 1. "answer" sees frames where the
        tower is among them, and a pool's cached tokens where neither it nor the projector is.
      first: number of the first clip, so that stages see different ones.
      warmup: steps.
      anneal: whether the rate falls along a cosine; a stage without may be ended at any step.
      frames: of a clip, of "frames" and "look".
      dense: weight of the dense losses at the first step of a "look"; it falls in a line and is 0 from half way on.
      level: weight of `regime_losses.unevenness` of "answer": captions make tokens of objects long, and a label of it.
      named: weight of what becomes of named objects (`losses.question_loss`), a warm-up of "answer".
      placed: of `asked`, most that are easier questions of training alone (`places`).
      asked, longest, kinds, categories: as of `recipe.RecipeStage`.
      shares: of the steps of "answer" in which all tokens are read, a half, a quarter and an eighth of them.
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
    level: float = 0.0
    named: float = 0.0
    asked: int = 8
    placed: int = 0
    longest: int = LONGEST
    kinds: tuple[str, ...] = KINDS
    categories: tuple[str, ...] | None = None
    shares: tuple[float, float, float, float] = (0.4, 0.2, 0.2, 0.2)

    @property
    def tower(self) -> bool:
        """Whether the tower learns."""
        return any("0.vision".startswith(prefix) for prefix in self.trained)


@dataclasses.dataclass(frozen=True)
class Regime:
    """A whole run.

    Attributes:
      stages: in order.
      sizes: of the model.
      task: clips.
      seed: of everything that is drawn.
      precision: of forward passes.
      pool: clips whose visual tokens are cached, numbered from `POOLED` on, again whenever the tower has learnt.
      held: clips of the validation split that accuracies are measured on.
      measure: steps between measurements of "answer".
    """

    stages: tuple[RegimeStage, ...]
    sizes: ModelSizes = SIZES
    task: Procedural = TASK
    seed: int = 0
    precision: str = "float32"
    pool: int = 4000
    held: int = 48
    measure: int = 400

    def scaled(self, batch: float) -> "Regime":
        """The same with so many times the clips of every batch and as many fewer steps."""
        stages = []
        for stage in self.stages:
            clips = max(1, round(stage.clips * batch))
            steps = max(1, round(stage.steps * stage.clips / clips))
            stages.append(dataclasses.replace(stage, clips=clips, steps=steps))
        return dataclasses.replace(self, stages=tuple(stages))


POOLED = 1 << 24
"""Number of the pool's first clip."""

WORDS = RegimeStage(
    "words",
    "answer",
    steps=700,
    clips=4,
    rate=3e-3,
    trained=MIND,
    longest=28,
    kinds=("short", "yes_no"),
    shares=(0.0, 0.0, 0.3, 0.7),
)
"""Short questions on few tokens."""

PLACES = dataclasses.replace(WORDS, name="places", steps=400, rate=2e-3, placed=3, named=1.0)

SETTLED = (0.25, 0.2, 0.25, 0.3)
"""Shares of the last stage."""

REGIME = Regime(
    stages=(
        # What single frames show, without language: colours come first, shapes take longest.
        RegimeStage("warm", "frames", steps=1000, clips=8, rate=3e-3, trained=WARM),
        # Captions, beside which the dense losses fade.
        RegimeStage("captions", "look", steps=450, clips=12, rate=1e-3, trained=EYES, first=1 << 20, dense=1.0),
        WORDS,
        # Sides and ways in easier questions, beside all others: alone they would undo how objects are found by name.
        PLACES,
        # At a faster rate, without which they stay at chance.
        dataclasses.replace(PLACES, name="sides", steps=300, rate=8e-3),
        # All questions, mostly on few tokens: a step on all of them takes twice as long and has a quarter of the clips.
        RegimeStage(
            "questions",
            "answer",
            steps=1600,
            clips=4,
            rate=8e-3,
            trained=MIND,
            placed=2,
            named=0.5,
            shares=(0.0, 0.1, 0.3, 0.6),
        ),
        # Tower and language model together.
        RegimeStage("through", "answer", steps=160, clips=4, rate=1e-3, trained=ALL, first=1 << 26, level=1.0),
        # The language model again, on tokens of the tower that learnt from answers, while the rate falls.
        RegimeStage("settle", "answer", steps=700, clips=4, rate=3e-3, trained=MIND, shares=SETTLED, anneal=True),
    )
)
"""Chosen by held-out unpruned accuracy and by what attention and norms do (`statistics`), never by how methods rank."""

_STEPS = {"warm": 300, "captions": 100, "words": 100, "places": 50, "sides": 50, "questions": 200, "through": 20}
PILOT = dataclasses.replace(
    REGIME,
    stages=tuple(
        dataclasses.replace(stage, steps=_STEPS[stage.name]) for stage in REGIME.stages if stage.name in _STEPS
    ),
    pool=240,
    held=32,
    measure=50,
)
"""A tenth of it, to see that it learns."""


def train_regime(
    regime: Regime,
    folder: str | Path,
    *,
    every: int = 200,
    log: int = 20,
    report: Callable[[str, dict[str, float]], None] | None = None,
    after: Callable[[RegimeStage, Network, Any], None] | None = None,
    weights: Path | None = None,
) -> tuple[Network, Any, Tokenizer]:
    """Runs or resumes every stage below `folder`; see `recipe.train`.

    Args:
      regime: what to train.
      folder: of the run, one folder a stage below it, and of cached features.
      every: steps between checkpoints.
      log: steps between lines of the learning curves.
      report: called with the stage's name and each line of its curve.
      after: called behind every stage with it, the network and the parameters.
      weights: folder of a model to begin from, written by an earlier stage; the heads of losses begin anew.

    Returns:
      the network, its parameters (model and heads), the tokenizer.
    """
    folder = Path(folder)
    network, params, tokenizer, words = begin(regime, folder)
    if weights is not None:
        params = begun(network, params, weights)
    history: list[Any] = [dataclasses.asdict(regime.sizes), regime.seed, regime.precision, regime.task.fingerprint()]
    if weights is not None:
        history.append({"weights": hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()})
    take, pooled = held_accuracy(network, regime, tokenizer), None
    for stage in regime.stages:
        told = None if report is None else lambda line, name=stage.name: report(name, line)
        if stage.tower:
            pooled = None
        elif pooled is None:
            history.append({"pool": regime.pool})
            pooled = _pool(regime, folder / f"features-{stage.name}", network, params, history, report)
        own = dataclasses.asdict(stage) | ({} if stage.anneal or stage.dense else {"steps": None})
        tx = optimiser.muon(
            params, stage.trained, rate=stage.rate, warmup=stage.warmup, steps=stage.steps, anneal=stage.anneal
        )
        state = loop.fit(
            folder / stage.name,
            optimiser.OptimiserState(params, tx.init(params)),
            optimiser.training_step(stage_loss(network, stage, words, tokenizer, regime.precision), tx),
            stage_batches(network, stage, regime, tokenizer, pooled),
            stage.steps,
            settings={"history": [*history, own]},
            every=every,
            log=log,
            report=told,
            measure=loop.Measure(regime.measure, take) if stage.kind == "answer" and regime.held else None,
        )
        params = state.params
        history.append(dataclasses.asdict(stage))
        if after is not None:
            after(stage, network, params)
    return network, params, tokenizer


def spread(batch: Any) -> Any:
    """A batch whose clips or frames lie on all devices."""
    return shard_batch(batch, make_mesh()) if len(jax.devices()) > 1 else batch


def begin(regime: Regime, folder: Path) -> tuple[Network, Any, Tokenizer, dict[str, Any]]:
    """The network with its initial parameters, the tokenizer, and ids of the words of colours and shapes."""
    inner, tokenizer = write_tokenizer(folder, detail=True)
    pairs = word_pairs(tokenizer, all_words(detail=True))
    network, params = create(config_json(regime.sizes, inner), regime.seed, pairs, RegimeHeads, "by_head")
    if len(jax.devices()) > 1:
        params = jax.device_put(params, replicated(make_mesh()))
    tables = (("colour", COLOURS), ("shape", SHAPES))
    return network, params, tokenizer, {name: jnp.asarray(word_pairs(tokenizer, table)) for name, table in tables}


def begun(network: Network, params: Any, folder: Path) -> Any:
    """Parameters with those of a written model in float32; the heads of losses stay.

    Args:
      network: structure.
      params: initial parameters.
      folder: of the model.
    """
    model, heads = network.merge(params)
    nnx.update(model, nnx.state(VideoLLM.load(folder, dtype="float32").loaded.model))
    params = nnx.split((model, heads))[1]
    return jax.device_put(params, replicated(make_mesh())) if len(jax.devices()) > 1 else params


def stage_loss(
    network: Network, stage: RegimeStage, words: dict[str, Any], tokenizer: Tokenizer, precision: str
) -> optimiser.Loss:
    """The loss of a stage as a function of parameters and batch."""
    before = jnp.asarray(Prompts(tokenizer, LONGEST).before)

    def look(params: Any, batch: Any) -> Any:
        return look_loss(network, params, batch, words, before, dense=stage.dense > 0, precision=jnp.dtype(precision))

    def answer(params: Any, batch: Any) -> Any:
        weights = {"level": stage.level, "named": stage.named}
        return answer_loss(network, params, batch, before, **weights, precision=jnp.dtype(precision))

    def frames(params: Any, batch: Any) -> Any:
        # The pooling head learns from captions alone: what it attends to is evidence of methods, and no label.
        return frame_loss(network, params, batch, words, head=False)

    return {"frames": frames, "look": look, "answer": answer}[stage.kind]


def stage_batches(
    network: Network, stage: RegimeStage, regime: Regime, tokenizer: Tokenizer, pooled: Pool | None
) -> Callable[[int], Any]:
    """The batches of a stage as a function of its step; `pooled` is read where the tower stays."""
    sides = network.config.vision.side, network.config.grid[0]
    skip, prompts = stage.first // stage.clips, Prompts(tokenizer, stage.longest)
    task = regime.task
    if stage.categories is not None:
        task = dataclasses.replace(task, categories=stage.categories)

    def look(step: int) -> Any:
        dense = stage.dense * max(0.0, 1 - 2 * step / stage.steps)
        return caption_batch(
            task, skip + step, stage.clips, stage.frames, sides, tokenizer, dense=dense, seed=regime.seed
        )

    def frames(step: int) -> Any:
        return frame_batch(task, skip + step, stage.clips, stage.frames, sides, regime.seed)

    def answer(step: int) -> Any:
        source = None if stage.tower else pooled
        return answer_batch(task, skip + step, stage, prompts, sides[1], regime.seed, source)

    make = {"frames": frames, "look": look, "answer": answer}[stage.kind]
    return lambda step: spread(make(step))


def _pool(
    regime: Regime,
    folder: Path,
    network: Network,
    params: Any,
    history: list[Any],
    report: Callable[[str, dict[str, float]], None] | None,
) -> Pool:
    see = see_with(network, regime.precision)
    shape = pooled_shape(network, regime.task)
    settings = {"history": history}
    told = None if report is None else lambda line: report("pool", line)
    # Devices take turns: a clip is one program.
    devices = itertools.cycle([jax.device_put(params, device) for device in jax.devices()])
    return pool(folder, regime.task, POOLED, regime.pool, shape, lambda x: see(next(devices), x), settings, told)


def pooled_shape(network: Network, task: Procedural) -> tuple[int, int, int]:
    """(T, N, D) of a clip's visual tokens."""
    rows, columns = network.config.grid
    return task.frames, rows * columns, network.config.text.width


def see_with(network: Network, precision: str) -> Callable[[Any, Any], Any]:
    """(parameters, uint8 frames of a clip) to its visual tokens (T, N, D) behind projector and pooling, in float16."""

    @jax.jit
    def see(params: Any, frames: Any) -> Any:
        model, _ = network.merge(jax.tree.map(lambda x: x.astype(precision), params))
        return model.pool(model.projector(model.vision(pixels(frames).astype(precision))[0])).astype(jnp.float16)

    return see


def held_accuracy(network: Network, regime: Regime, tokenizer: Tokenizer) -> Callable[[Any], dict[str, float]]:
    """State to accuracies on held-out clips of which all tokens are read, by category; all questions are asked."""
    before, prompts = jnp.asarray(Prompts(tokenizer, LONGEST).before), Prompts(tokenizer, LONGEST)
    task = dataclasses.replace(regime.task, split="validation")
    side = network.config.grid[0]

    @jax.jit
    def ask(params: Any, batch: Any) -> Any:
        return answer_loss(network, params, batch, before, precision=jnp.dtype(regime.precision))[1]

    def take(state: Any) -> dict[str, float]:
        sums: dict[str, float] = {}
        for batch in held_batches(task, regime.held, prompts, side):
            for name, value in ask(state.params, spread(batch)).items():
                if name.startswith(("hits/", "asked/")):
                    sums[name] = sums.get(name, 0.0) + float(value)
        names = [name.removeprefix("asked/") for name, value in sums.items() if name.startswith("asked/") and value]
        return {f"held/{name}": sums[f"hits/{name}"] / sums[f"asked/{name}"] for name in names}

    return take
