"""A training run as data: the model's sizes, and stages that each go on from the one before."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from experiments.tiny import losses, optimiser
from experiments.tiny.batches import KINDS, TEMPLATE, Prompts, Thinning, clip_batch, frame_batch
from experiments.tiny.network import Network, create
from experiments.tiny.vocabulary import word_tokenizer
from jvidprune.models.tokenizer import Tokenizer, load_tokenizer
from jvidprune.procedural.benchmark import Procedural, vocabulary
from jvidprune.procedural.world import COLOURS, SHAPES
from jvidprune.training import loop

LONGEST = 44
"""Most tokens of a question with its answer."""


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """Sizes of the model.

    Attributes:
      vision: width, mlp, blocks, heads, image side, patch.
      text: width, mlp, layers, heads, key/value heads.
      rope_theta: base of the rotary angles.
    """

    vision: tuple[int, int, int, int, int, int] = (64, 192, 4, 4, 84, 7)
    text: tuple[int, int, int, int, int] = (128, 192, 8, 4, 2)
    rope_theta: float = 1000000.0


@dataclasses.dataclass(frozen=True)
class RecipeStage:
    """One stage of a run.

    Attributes:
      name: of its folder.
      kind: "frames" (`losses.frame_loss`), "clips" (`losses.clip_loss`), or "both": their weighted sum, in which the
        tower learns from frames alone.
      steps: to train.
      clips: in a batch.
      rate: peak learning rate.
      trained: prefixes of the parameters that learn; the model is 0, the auxiliary heads are 1.
      first: number of the first clip, so that stages see different ones.
      warmup: steps.
      anneal: whether the rate falls along a cosine; a stage without may be ended at any step.
      frames: of a clip, in the batch of single frames.
      asked: questions of a clip.
      longest: tokens of a question with its answer.
      kinds: of questions.
      categories: of clips and questions; None for all.
      plan: how visual tokens are thinned out.
      dense: weight of the dense targets beside the answers.
      see: weight of the loss of single frames beside that of clips.
    """

    name: str
    kind: str
    steps: int
    clips: int
    rate: float
    trained: tuple[str, ...]
    first: int = 0
    warmup: int = 50
    anneal: bool = True
    frames: int = 2
    asked: int = 8
    longest: int = LONGEST
    kinds: tuple[str, ...] = KINDS
    categories: tuple[str, ...] | None = None
    plan: Thinning = dataclasses.field(default_factory=Thinning)
    dense: float = 0.3
    see: float = 0.3


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole run; equal recipes give equal weights on equal machines."""

    stages: tuple[RecipeStage, ...]
    sizes: ModelSizes = dataclasses.field(default_factory=ModelSizes)
    seed: int = 0
    task: Procedural = dataclasses.field(default_factory=lambda: Procedural("train", clips=1 << 30))


def all_words(detail: bool = False) -> tuple[str, ...]:
    """The benchmark's words, with `detail` those of all its categories, and those of the prompt template, sorted."""
    around = re.sub(r"<\|\w+\|>", " ", TEMPLATE.before + TEMPLATE.after.replace("{question}", ""))
    return tuple(sorted({*vocabulary(detail), *re.findall(r"\w+|[^\w\s]", around)}))


def word_pairs(tokenizer: Tokenizer, words: Any) -> list[tuple[int, int]]:
    """Ids of each word without and with a space before it."""
    pairs = [tuple(tokenizer.encode(text) for text in (word, f" {word}")) for word in words]
    return [(bare[0], spaced[0]) for bare, spaced in pairs if len(bare) == len(spaced) == 1]


def config_json(sizes: ModelSizes, tokenizer: Any) -> dict[str, Any]:
    """config.json of the model, in the published llava-hf layout.

    Args:
      sizes: of the model.
      tokenizer: a tokenizers.Tokenizer.
    """
    width, mlp, blocks, heads, image, patch = sizes.vision
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
        "vision_use_head": True,
    }
    width, mlp, layers, heads, kv_heads = sizes.text
    text = {
        "model_type": "qwen2",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": tokenizer.get_vocab_size(),
        "rope_theta": sizes.rope_theta,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "torch_dtype": "float32",
        "text_config": text,
        "vision_config": vision,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_token_index": tokenizer.token_to_id("<image>"),
        "video_token_index": tokenizer.token_to_id("<video>"),
    }


def write_tokenizer(folder: Path, detail: bool = False) -> tuple[Any, Tokenizer]:
    """Writes tokenizer.json for `all_words`; returns it as tokenizers' and as the package's own type."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = word_tokenizer(all_words(detail))
    inner.save(str(folder / "tokenizer.json"))
    return inner, load_tokenizer(folder)


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    every: int = 200,
    log: int = 20,
    report: Callable[[str, dict[str, float]], None] | None = None,
    stop_at: Callable[[str], bool] | None = None,
) -> tuple[Network, Any, Tokenizer]:
    """Runs or resumes every stage of a recipe below `folder`.

    Args:
      recipe: what to train.
      folder: of the run, one folder a stage below it.
      every: steps between checkpoints.
      log: steps between lines of the learning curves.
      report: called with the stage's name and each line of its curve.
      stop_at: asked at checkpoints with the stage's name; True goes on to the next stage.

    Returns:
      the network, its parameters (model and auxiliary heads), the tokenizer.
    """
    folder = Path(folder)
    inner, tokenizer = write_tokenizer(folder)
    words = {
        name: jnp.asarray(word_pairs(tokenizer, table)) for name, table in (("colour", COLOURS), ("shape", SHAPES))
    }
    network, params = create(config_json(recipe.sizes, inner), recipe.seed, word_pairs(tokenizer, all_words()))
    history: list[Any] = [dataclasses.asdict(recipe.sizes), recipe.seed, recipe.task.fingerprint()]
    for stage in recipe.stages:
        # Where the rate stays, the number of steps changes nothing before the last one: such a stage may be prolonged.
        own = dataclasses.asdict(stage) | ({} if stage.anneal else {"steps": None})
        loss, batch = _loss(network, stage, words, tokenizer), _batches(network, stage, recipe, tokenizer)
        tx = optimiser.adamw(
            params, stage.trained, rate=stage.rate, warmup=stage.warmup, steps=stage.steps, anneal=stage.anneal
        )
        state = loop.fit(
            folder / stage.name,
            optimiser.OptimiserState(params, tx.init(params)),
            optimiser.training_step(loss, tx),
            batch,
            stage.steps,
            settings={"history": [*history, own]},
            every=every,
            log=log,
            report=None if report is None else lambda line, name=stage.name: report(name, line),
            stop_at=None if stop_at is None else lambda name=stage.name: stop_at(name),
        )
        params = state.params
        history.append(dataclasses.asdict(stage))
    return network, params, tokenizer


def _loss(network: Network, stage: RecipeStage, words: dict[str, Any], tokenizer: Tokenizer) -> optimiser.Loss:
    before = jnp.asarray(Prompts(tokenizer, LONGEST).before)
    tower = stage.kind == "clips" and any(prefix.startswith("0.vision") for prefix in stage.trained)

    def frames(params: Any, batch: Any) -> Any:
        return losses.frame_loss(network, params, batch, words)

    def clips(params: Any, batch: Any) -> Any:
        return losses.clip_loss(network, params, batch, before, dense=stage.dense, tower=tower)

    def both(params: Any, batch: Any) -> Any:
        asked, told = clips(params, batch[0])
        seen, shown = frames(params, batch[1])
        return asked + stage.see * seen, {**shown, **told, "see": seen}

    return {"frames": frames, "clips": clips, "both": both}[stage.kind]


def _batches(network: Network, stage: RecipeStage, recipe: Recipe, tokenizer: Tokenizer) -> Callable[[int], Any]:
    side, cells = network.config.vision.side, network.config.grid[0]
    skip = stage.first // stage.clips
    prompts = Prompts(tokenizer, stage.longest)
    task = recipe.task if stage.categories is None else dataclasses.replace(recipe.task, categories=stage.categories)

    def frames(step: int) -> Any:
        return frame_batch(task, skip + step, stage.clips, stage.frames, (side, cells), recipe.seed)

    def clips(step: int) -> Any:
        options = {"asked": stage.asked, "cells": cells, "plan": stage.plan, "seed": recipe.seed, "kinds": stage.kinds}
        return clip_batch(task, skip + step, stage.clips, prompts, **options)

    return {"frames": frames, "clips": clips, "both": lambda step: (clips(step), frames(step))}[stage.kind]
