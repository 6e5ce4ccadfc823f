"""The model in training: its parameters, and the linear heads of the auxiliary losses that are thrown away."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from experiments.tiny.targets import SEEN, STORY
from jvidprune.errors import JvidpruneError
from jvidprune.models.fused import AttentionKind
from jvidprune.models.llava_onevision import LlavaOnevision, LlavaOnevisionConfig

MIDDLE = 4
"""Layers of the language model below the dense heads."""


class Heads(nnx.Module):
    """Linear readouts that only losses use."""

    def __init__(self, config: LlavaOnevisionConfig, *, rngs: nnx.Rngs):
        tower, width = config.vision.width, config.text.width
        self.patch = nnx.Linear(tower, SEEN["colour"] + SEEN["shape"], rngs=rngs)
        self.mask = nnx.Linear(tower, config.vision.patch_size**2 + 2, rngs=rngs)
        self.frame = nnx.Linear(tower, SEEN["colour"] + SEEN["shape"] - 2, rngs=rngs)
        # Two directions of a cell's colour and shape are rows of the word embedding; these are the rest.
        self.nothing = nnx.Param(jnp.zeros(2))
        self.sharpness = nnx.Param(jnp.full(2, 1.0))
        self.cell = nnx.Linear(width, SEEN["role"] + 2 + sum(config.grid), rngs=rngs)
        self.story = nnx.Linear(width, sum(STORY.values()), rngs=rngs)
        self.content = nnx.Linear(width, 2 * width, rngs=rngs)
        self.truth = nnx.Linear(width, 1, rngs=rngs)


class Network(NamedTuple):
    """What a loss needs besides the parameters.

    Attributes:
      graph: structure of (model, heads).
      config: of the model.
    """

    graph: Any
    config: LlavaOnevisionConfig

    def merge(self, params: Any) -> tuple[LlavaOnevision, Heads]:
        """Model and heads with the given parameters."""
        return nnx.merge(self.graph, params)


def create(
    raw: dict[str, Any],
    seed: int,
    word_pairs: list[tuple[int, int]],
    heads_of: type[Heads] = Heads,
    attention: AttentionKind = "auto",
) -> tuple[Network, Any]:
    """A network with seeded parameters in float32, and the parameters.

    Args:
      raw: config.json of the model, with tied embedding.
      seed: of the initial values.
      word_pairs: ids of a word without and with a space before it; both rows of the embedding begin equal.
      heads_of: which heads losses use.
      attention: which code computes attention.

    Raises:
      JvidpruneError: an embedding that is not tied.
    """
    config = LlavaOnevisionConfig.from_hf(raw).with_tensors(["vision_tower.vision_model.head.probe"])
    if not config.text.tied:
        raise JvidpruneError("training needs a language model with a tied embedding.")
    parts = (dataclasses.replace(part, attention=attention) for part in (config.vision, config.text))
    config = dataclasses.replace(config, **dict(zip(("vision", "text"), parts, strict=True)))
    model = LlavaOnevision(config, dtype=jnp.float32, rngs=nnx.Rngs(seed))
    heads = heads_of(config, rngs=nnx.Rngs(seed + 1))
    key = jax.random.split(jax.random.key(seed + 2), 3)
    vision, text = config.vision, config.text
    model.vision.pos_embed[...] = _waves(vision.side, vision.width)
    if model.vision.head is not None:
        model.vision.head.probe[...] = 0.5 * jax.random.normal(key[0], (1, 1, vision.width))
    model.image_newline[...] = 0.3 * jax.random.normal(key[1], (text.width,))
    table = 0.3 * jax.random.normal(key[2], (text.vocab, text.width))
    bare, spaced = (jnp.asarray(ids) for ids in zip(*word_pairs, strict=True))
    model.lm.embed.embedding[...] = table.at[spaced].set(table[bare])
    # Logits of a tied embedding begin near zero.
    model.lm.norm.scale[...] = jnp.full(text.width, 0.15)
    _begin_by_copying(model.lm, (2 * text.layers) ** -0.5)
    graph, params = nnx.split((model, heads))
    # Weakly typed arrays would make the first step compile twice.
    return Network(graph, config), jax.tree.map(lambda x: lax.convert_element_type(x, x.dtype), params)


def _begin_by_copying(lm: Any, share: float) -> None:
    """Attention begins by looking for tokens like the query's own and adding a share of what they hold.

    Queries begin as the keys' projection and outputs as the transposed values', each with half as much noise (as in
    mimetic initialisation, arXiv 2305.09828); all residual branches begin small.
    """
    attn, config = lm.layers.attn, lm.config
    groups, dim = config.heads // config.kv_heads, config.head_dim

    def by_query_head(kernel: jax.Array) -> jax.Array:
        layers, width, _ = kernel.shape
        heads = kernel.reshape(layers, width, config.kv_heads, 1, dim)
        return jnp.broadcast_to(heads, (layers, width, config.kv_heads, groups, dim)).reshape(layers, width, -1)

    attn.q.kernel[...] = by_query_head(attn.k.kernel[...]) + 0.5 * attn.q.kernel[...]
    values = jnp.swapaxes(by_query_head(attn.v.kernel[...]), 1, 2)
    attn.o.kernel[...] = share * (values + 0.5 * attn.o.kernel[...])
    lm.layers.mlp.down.kernel[...] = share * lm.layers.mlp.down.kernel[...]


def _waves(side: int, width: int, height: float = 0.5) -> jax.Array:
    """(side^2, width) sines and cosines of row and column: learned positions begin where neighbours look alike."""
    quarter = width // 4
    rates = jnp.pi * 2.0 ** -jnp.linspace(0.0, 3.5, quarter)
    wave = jnp.arange(side)[:, None] * rates
    axis = jnp.concatenate([jnp.sin(wave), jnp.cos(wave)], -1)
    rows, columns = jnp.repeat(axis, side, axis=0), jnp.tile(axis, (side, 1))
    table = height * jnp.concatenate([rows, columns], -1)
    return jnp.pad(table, ((0, 0), (0, width - table.shape[-1])))
