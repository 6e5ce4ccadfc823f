"""Stage comparisons of LLaVA-Video: one tower, and a prompt in every layout of pooling and newlines."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import LoadedModel
from jvidprune.models.generate import generate
from jvidprune.ops.newline import arrange, full_length, sequence
from jvidprune.ops.pool import pool_tokens, pooled_side
from jvidprune.parity.core import Golden
from jvidprune.parity.model_stages import ATTENTION, LOGITS, VISION, ModelStage, Stages, lead

_EVERY = 3
"""Stage arrays of the first frame hold every third patch."""


class _Run(NamedTuple):
    """Tokens of one layout, logits of prompt and answer without padding, and the generated ids."""

    tokens: np.ndarray
    logits: np.ndarray
    ids: np.ndarray


def llava_video_stages(loaded: LoadedModel, golden: Golden) -> tuple[Stages, frozenset[str]]:
    """Comparisons of an io file; its config lists the layouts.

    All prompts are padded to one length, so that one compilation serves every layout.
    """
    if not golden.has("frames_uint8", "input_ids") or "layouts" not in golden.config:
        raise JvidpruneError("an io file of llava_video needs frames_uint8, input_ids and the layouts in its config.")
    model, side = loaded.model, loaded.config.vision.side
    pixels = _pixels(golden["frames_uint8"], loaded.config.vision.image_size)
    needs = frozenset({"attention_last", "features_unpooled"})
    video = functools.cache(lambda: jax.device_get(jax.jit(lambda m, x: m.encode(x, needs))(model, pixels)))
    first = functools.cache(lambda: _tower_of_one(model, pixels[:1]))
    received = functools.cache(lambda: jax.device_get(_received(model, pixels)))
    stages = {
        "embeddings_frame0": ModelStage(lambda: first()[0][0][::_EVERY], VISION),
        "vision_features_frame0": ModelStage(lambda: first()[1][0][::_EVERY], VISION),
        "projector_frame0": ModelStage(lambda: video().evidence["features_unpooled"][0][::_EVERY], VISION),
        "vision_attention_received": ModelStage(received, ATTENTION),
        "saliency": ModelStage(lambda: received()[-1], ATTENTION),
    }
    for kind in ("average", "bilinear", "max"):
        pooled = functools.partial(lambda kind: pool_tokens(jnp.asarray(received()[-1]), (side, side), kind), kind)
        stages[f"saliency_pooled_{kind}"] = ModelStage(pooled, ATTENTION)
    layouts = [tuple(layout) for layout in golden.config["layouts"]]
    longest = max(_length(layout, side, len(pixels)) for layout in layouts)
    for layout in layouts:
        run = functools.cache(lambda layout=layout: _run(loaded, video(), golden, layout, longest))
        stages |= _layout_stages("_".join(layout), run, golden)
    # The model's own pooling, against the same array as the layout of its config.
    own = f"video_tokens_{loaded.config.pool}_{loaded.config.newline}"
    if golden.has(own):
        layout = (loaded.config.pool, loaded.config.newline)
        stages[own] = ModelStage(lambda: _arranged(video().features, side, layout, model), VISION)
    return stages, frozenset({"frames_uint8", "input_ids"})


def _pixels(frames: np.ndarray, size: int) -> np.ndarray:
    """Stored frames, every pixel repeated to the tower's size, normalised."""
    factor = size // frames.shape[-1]
    return (frames.repeat(factor, -2).repeat(factor, -1).astype(np.float32) / np.float32(255) - 0.5) / 0.5


@jax.jit
def _received(model: Any, pixels: Any) -> Any:
    embedded = model.vision.patches(pixels) + model.vision.pos_embed[...]
    return model.vision.run(embedded, 0, model.vision.config.layers, tap=True)[1].received.mean(axis=2)


@jax.jit
def _tower_of_one(model: Any, pixels: Any) -> tuple[Any, Any]:
    return model.vision.patches(pixels) + model.vision.pos_embed[...], model.vision(pixels)[0]


def _length(layout: tuple[Any, Any], side: int, frames: int) -> int:
    small = pooled_side(side, layout[0])
    return full_length(layout[1], (small, small), frames)


def _arranged(features: np.ndarray, side: int, layout: tuple[Any, Any], model: Any) -> np.ndarray:
    """(V, D) tokens and newlines of an unreduced video."""
    frames, tokens, width = features.shape
    small = pooled_side(side, layout[0])
    ids = jnp.arange(frames * tokens)
    laid = arrange(ids, jnp.ones(ids.shape, bool), kind=layout[1], grid=(small, small), frames=frames)
    rows = sequence(laid, jnp.asarray(features.reshape(-1, width)), model.newline)
    return np.asarray(rows)[: int(laid.count)]


@jax.jit
def _logits(model: Any, embeds: Any, positions: Any, valid: Any) -> Any:
    return model.lm.forward(embeds, positions, valid).logits


def _run(loaded: LoadedModel, video: Any, golden: Golden, layout: tuple[Any, Any], longest: int) -> _Run:
    model, side = loaded.model, loaded.config.vision.side
    features = pool_tokens(jnp.asarray(video.evidence["features_unpooled"]), (side, side), layout[0])
    tokens = _arranged(np.asarray(features), side, layout, model)
    ids = golden["input_ids"][0]
    start = int(np.flatnonzero(ids == loaded.config.video_token)[0])
    answer = golden["greedy_ids_" + "_".join(layout)]
    text = np.asarray(model.embed_text(jnp.asarray(np.concatenate([ids, answer]))))
    prompt = np.concatenate([text[:start], tokens, text[start + 1 : len(ids)]])
    whole = np.concatenate([prompt, text[len(ids) :]])
    size = longest + len(ids) - 1 + len(answer)
    x = np.pad(whole, ((0, size - len(whole)), (0, 0)))[None]
    slots = np.arange(size)[None]
    logits = np.asarray(_logits(model, x, slots, slots < len(whole)))[0, : len(whole)]
    generated = generate(model, x, slots, slots < len(prompt), max_new_tokens=len(answer))
    return _Run(tokens, logits[: len(prompt) + len(answer)], np.asarray(generated[0]))


def _layout_stages(name: str, run: Callable[[], _Run], golden: Golden) -> Stages:
    """Comparisons of one layout; the answer's rows of a forward pass check cached decoding independently."""

    def prompt() -> int:
        return len(run().logits) - len(golden[f"greedy_ids_{name}"])

    def tail() -> np.ndarray:
        return run().logits[None, prompt() - golden[f"logits_tail_{name}"].shape[1] : prompt()]

    def summed() -> np.ndarray:
        return run().tokens.astype(np.float64).sum(axis=1)

    return {
        f"num_tokens_{name}": ModelStage(lambda: [len(run().tokens)]),
        f"video_tokens_sum_{name}": ModelStage(summed, VISION, "sums over the width"),
        f"video_tokens_{name}": ModelStage(lambda: run().tokens, VISION),
        f"logits_tail_{name}": ModelStage(tail, LOGITS),
        f"greedy_ids_{name}": ModelStage(lambda: run().ids),
        f"greedy_margin_{name}": ModelStage(lambda: lead(run().logits[prompt() - 1 : -1]), 2 * LOGITS),
    }
