"""A conversation in one cache: text that is read behind an answer, and what of an answer stays."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jvidprune.cuts.cache import Cache
from jvidprune.errors import JvidpruneError
from jvidprune.parallel import on_mesh_of


def read_on(
    model: Any, tokens: Int[np.ndarray, "L"], cache: Cache, *, padded: int
) -> tuple[Float[Array, "1 V"], Cache]:
    """Reads text behind what a cache of one row holds: logits of the next token, and the longer cache.

    Args:
      model: any model with a decoder `lm`.
      tokens: at least one id.
      cache: of one row; donated, with `padded` free slots.
      padded: slots that the text takes, so that one program serves many lengths; at least L.

    Raises:
      JvidpruneError: too small a cache, or one that is read in part or routed.
    """
    if cache.policy is not None or any(segment.route is not None for segment in cache.segments):
        raise JvidpruneError("a cache that is read in part takes no further text.")
    if any(int(segment.length) + padded > segment.capacity for segment in cache.segments):
        raise JvidpruneError(f"{padded} slots of text do not fit the cache.")
    ids = np.zeros((1, padded), np.int32)
    ids[0, : len(tokens)] = tokens
    with on_mesh_of(model):
        return _read_on(model, ids, np.arange(padded)[None] < len(tokens), cache)


@functools.partial(jax.jit, donate_argnames="cache")
def _read_on(model: Any, tokens: Array, valid: Array, cache: Cache) -> tuple[Array, Cache]:
    hidden, cache = model.lm.read_on(tokens, valid, cache)
    return model.lm.logits(hidden[jnp.arange(len(tokens)), valid.sum(axis=1) - 1]), cache


def states_of(cache: Cache) -> tuple[Any, ...] | None:
    """Copies of what layers without keys and values carry, one tree a segment; None where all layers have them."""
    if all(one.state is None for one in cache.segments):
        return None
    return tuple(jax.tree.map(jnp.copy, one.state) for one in cache.segments)


def held_back(
    cache: Cache, length: int, position: Int[np.ndarray, "1"], states: tuple[Any, ...] | None = None
) -> Cache:
    """The cache up to a slot; what stands behind it is gone.

    Args:
      cache: of one row and one segment of layers.
      length: slots that stay.
      position: of the next token.
      states: from `states_of` when the cache was so long, where layers carry any: a state forgets no token.
    """
    segments = tuple(
        dataclasses.replace(
            one,
            valid=one.valid & (jnp.arange(one.capacity) < length),
            length=jnp.int32(length),
            state=one.state if states is None else states[number],
        )
        for number, one in enumerate(cache.segments)
    )
    return Cache(segments, jnp.asarray(position, jnp.int32), cache.policy)
