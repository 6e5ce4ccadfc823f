"""A model of published size with random weights: tower, prefill behind each reducer, decoding."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jvidprune.costs import flops_model
from jvidprune.cuts.inner import Inner
from jvidprune.errors import JvidpruneError
from jvidprune.models import family as families
from jvidprune.models.checkpoint.load import family_of
from jvidprune.models.checkpoint.published import PUBLISHED, published
from jvidprune.models.prefill import read_prompt
from jvidprune.reducers.protocol import inner_stages
from jvidprune.reducers.registry import for_model
from jvidprune.tokens import Layout

from .measure import Rates, measure

TEXT = 32
"""Text tokens of the prompt, behind the video."""
STEPS = 16


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model and what its cells share."""

    name: str
    model: Any
    config: Any
    frames: int
    dtype: Any
    rates: Rates
    repeats: int
    seconds: float

    @property
    def layout(self) -> Layout:
        """Of the video."""
        config = self.config
        return Layout(self.frames, config.grid, config.unpooled_grid)


def abstract_model(name: str, dtype: Any) -> tuple[Any, Any, Any]:
    """A published LLaVA without weights: graph and state of its shapes for `nnx.merge`, and its config.

    Raises:
      JvidpruneError: an unknown name or another family: this suite feeds (T, 3, S, S) pixels.
    """
    config = published(name)
    family = family_of(PUBLISHED[name.lower()])
    if not family.startswith("llava"):
        raise JvidpruneError(f"the suite measures LLaVA models, {name} is a {family}.")
    model = families.get(family).model
    return *nnx.split(nnx.eval_shape(lambda: model(config, dtype=dtype, rngs=nnx.Rngs(0)))), config


def random_model(name: str, dtype: Any) -> tuple[Any, Any]:
    """A published LLaVA with random weights, made on the device without another copy, and its config."""
    graph, state, config = abstract_model(name, dtype)
    leaves, tree = jax.tree.flatten(state)

    @jax.jit
    def fill(key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, len(leaves))
        return [
            (0.02 * jax.random.normal(k, leaf.shape, leaf.dtype)).astype(leaf.dtype)
            for k, leaf in zip(keys, leaves, strict=True)
        ]

    return nnx.merge(graph, jax.tree.unflatten(tree, fill(jax.random.key(0)))), config


def _row(timing: Any, flops: float, moved: float, rates: Rates) -> dict[str, Any]:
    return dataclasses.asdict(timing) | {"flops": flops, "moved": moved, "floor_ms": rates.floor(flops, moved)}


def _weight_bytes(module: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(module)))


@jax.jit
def encode(model: Any, pixels: jax.Array) -> jax.Array:
    """Pooled tokens (T, N, D), with the last block's attention, which most methods read."""
    return model.encode(pixels, frozenset({"attention_last"})).features


def run_tower(bench: Bench) -> dict[str, Any]:
    """Pixels to pooled tokens; see `encode`."""
    vision = bench.config.vision
    pixels = jnp.zeros((bench.frames, 3, vision.image_size, vision.image_size), bench.dtype)
    timing = measure(encode, [(bench.model, pixels)], {}, repeats=bench.repeats, seconds=bench.seconds)
    tower, projector = flops_model.vision_terms(bench.config, bench.layout)
    flops = sum(tower.values()) + sum(projector.values())
    return _row(timing, flops, _weight_bytes(bench.model.vision), bench.rates)


def kept_tokens(bench: Bench, method: str, ratio: float) -> tuple[int, Any]:
    """The rows that a method hands on (its bound where the count depends on the video), and its stages inside.

    Settings are those of the model's family and depth, as `jvidprune ask` takes them.

    Raises:
      JvidpruneError: a ratio that the method cannot have.
    """
    reducer = for_model(method, bench.config)
    return min(reducer.capacity(bench.layout, ratio), bench.layout.total), inner_stages(reducer, ratio)


@partial(jax.jit, static_argnames="packed")
def prefill(model: Any, embeds: Any, positions: Any, valid: Any, cache: Any, inner: Any, *, packed: bool) -> Any:
    """Logits and cache of a prompt."""
    return read_prompt(model.lm, embeds, positions, valid, cache, inner=inner, packed=packed)[:2]


@partial(jax.jit, static_argnames="steps")
def _decode(model: Any, token: jax.Array, cache: Any, *, steps: int) -> Any:
    def step(_: Any, state: tuple) -> tuple:
        logits, cache = model.lm.decode(*state)
        return jnp.argmax(logits, -1).astype(jnp.int32), cache

    return lax.fori_loop(0, steps, step, (token, cache))[0]


def run_prefill(bench: Bench, visual: int, stages: Any) -> dict[str, Any]:
    """A prompt of so many visual tokens and a little text."""
    text = bench.config.text
    length = visual + TEXT
    embeds = jnp.full((1, length, text.width), 0.01, bench.dtype)
    positions, valid = jnp.arange(length)[None], np.ones((1, length), bool)
    inner, capacity, boundaries = None, length, ()
    if any(stage.layer < text.layers for stage in stages):
        inner = Inner.create(stages, np.arange(length)[None] < visual, valid, layers=text.layers)
        capacity, boundaries = inner.capacities(length, 0), inner.boundaries
    cache = bench.model.lm.empty_cache(1, capacity, boundaries=boundaries)
    args = (bench.model, embeds, positions, jnp.asarray(valid), cache, inner)
    timing = measure(prefill, [args], {"packed": True}, repeats=bench.repeats, seconds=bench.seconds)
    parts = flops_model.segments(stages, text.layers, tokens=length, visual=visual)
    flops = sum(sum(terms.values()) for terms in flops_model.prefill(text, parts))
    return _row(timing, flops, _weight_bytes(bench.model.lm), bench.rates) | {"visual": visual}


def run_decode(bench: Bench, visual: int) -> dict[str, Any]:
    """One token behind a prompt, from a loop of `STEPS`; its floor is reading the weights and the cache once."""
    text = bench.config.text
    length = visual + TEXT
    cache = bench.model.lm.empty_cache(1, length + STEPS)
    changed = {"valid": jnp.arange(length + STEPS)[None] < length, "length": jnp.int32(length)}
    filled = tuple(dataclasses.replace(segment, **changed) for segment in cache.segments)
    cache = dataclasses.replace(cache, segments=filled, position=jnp.full(1, length, jnp.int32))
    args = (bench.model, jnp.zeros(1, jnp.int32), cache)
    timing = measure(_decode, [args], {"steps": STEPS}, repeats=bench.repeats, seconds=bench.seconds)
    times = {name: getattr(timing, name) / STEPS for name in ("median_ms", "best_ms", "cpu_ms")}
    timing = dataclasses.replace(timing, **times)
    parts = flops_model.segments((), text.layers, tokens=length, visual=visual)
    flops = sum(flops_model.decode(text, parts, STEPS + 1).values()) / STEPS
    item = jnp.dtype(bench.dtype).itemsize
    held = 2 * text.layers * (length + STEPS) * text.kv_heads * text.head_dim * item
    # The embedding is read where it is the head too, else one row of it.
    weights = _weight_bytes(bench.model.lm.layers) + text.vocab * text.width * item
    return _row(timing, flops, weights + held, bench.rates) | {"visual": visual}
