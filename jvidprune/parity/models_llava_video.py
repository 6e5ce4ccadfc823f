"""Stage comparisons of LLaVA-Video: one tower, and a prompt in every layout of pooling and newlines."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import LoadedModel
from jvidprune.models.generate import generate
from jvidprune.ops.newline import arrange, full_length, sequence
from jvidprune.ops.pool import pool_tokens, pooled_side
from jvidprune.parity.core import Golden, Row, close, exact
from jvidprune.parity.models import ATTENTION, LOGITS, VISION, Stages

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
    stages: Stages = {}
    for key in _FIRST_FRAME:
        stages[key] = lambda key=key: _first_frame(key, model, pixels, video().evidence["features_unpooled"], golden)
    received = functools.cache(lambda: jax.device_get(_received(model, pixels)))
    values = {"vision_attention_received": lambda: received(), "saliency": lambda: received()[-1]}
    for key, value in values.items():
        stages[key] = lambda key=key, value=value: close(key, value(), golden[key], ATTENTION)
    for kind in ("average", "bilinear", "max"):
        stages[f"saliency_pooled_{kind}"] = lambda kind=kind: close(
            f"saliency_pooled_{kind}",
            pool_tokens(jnp.asarray(received()[-1]), (side, side), kind),
            golden[f"saliency_pooled_{kind}"],
            ATTENTION,
        )
    layouts = [tuple(layout) for layout in golden.config["layouts"]]
    longest = max(_length(layout, side, len(pixels)) for layout in layouts)
    for layout in layouts:
        run = functools.cache(lambda layout=layout: _run(loaded, video(), golden, layout, longest))
        stages |= _layout_stages("_".join(layout), run, golden)
    # The model's own pooling, against the same array as the layout of its config.
    own = f"video_tokens_{loaded.config.pool}_{loaded.config.newline}"
    if golden.has(own):
        tokens = functools.cache(
            lambda: _arranged(video().features, side, (loaded.config.pool, loaded.config.newline), model)
        )
        stages[own] = lambda: close(own, tokens(), golden[own], VISION)
    return stages, frozenset({"frames_uint8", "input_ids"})


_FIRST_FRAME = ("embeddings_frame0", "vision_features_frame0", "projector_frame0")


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


def _first_frame(key: str, model: Any, pixels: np.ndarray, projected: np.ndarray, golden: Golden) -> Row:
    if key == "projector_frame0":
        ours = projected[0]
    else:
        embedded, hidden = _tower_of_one(model, pixels[:1])
        ours = (embedded if key == "embeddings_frame0" else hidden)[0]
    return close(key, np.asarray(ours)[::_EVERY], golden[key], VISION)


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


def _layout_stages(name: str, run: Any, golden: Golden) -> Stages:
    """Comparisons of one layout; the answer's rows of a forward pass check cached decoding independently."""

    def prompt() -> int:
        return len(run().logits) - len(golden[f"greedy_ids_{name}"])

    def tail() -> Row:
        expected = golden[f"logits_tail_{name}"]
        ours = run().logits[None, prompt() - expected.shape[1] : prompt()]
        return close(f"logits_tail_{name}", ours, expected, LOGITS)

    def margin() -> Row:
        best = np.sort(run().logits[prompt() - 1 : -1], axis=-1)[:, -2:]
        return close(f"greedy_margin_{name}", best[:, 1] - best[:, 0], golden[f"greedy_margin_{name}"], 2 * LOGITS)

    def summed() -> Row:
        key = f"video_tokens_sum_{name}"
        ours = run().tokens.astype(np.float64).sum(axis=1)
        return close(key, ours, golden[key], VISION, note="sums over the width")

    return {
        f"num_tokens_{name}": lambda: exact(f"num_tokens_{name}", [len(run().tokens)], golden[f"num_tokens_{name}"]),
        f"video_tokens_sum_{name}": summed,
        f"video_tokens_{name}": lambda: close(
            f"video_tokens_{name}", run().tokens, golden[f"video_tokens_{name}"], VISION
        ),
        f"logits_tail_{name}": tail,
        f"greedy_ids_{name}": lambda: exact(f"greedy_ids_{name}", run().ids, golden[f"greedy_ids_{name}"]),
        f"greedy_margin_{name}": margin,
    }
