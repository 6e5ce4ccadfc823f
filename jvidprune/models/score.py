"""How likely given tokens are behind a prompt that has been read."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import Cache
from jvidprune.parallel import on_every_device, on_mesh_of


def score(
    model: Any, logits: Float[Array, "B V"], cache: Cache, tokens: Int[Array | np.ndarray, "B L"]
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Log-likelihood of one continuation a row.

    All tokens of a continuation are read at once and nothing is written into the cache, which can be used again. With
    a decoding stage (DyCoke), whose choice depends on every step, they are read one after the other.

    Args:
      model: any model with a decoder `lm`.
      logits: from `prefill`.
      cache: from `prefill`; with a decoding stage it needs L - 1 free slots.
      tokens: (B, L) ids, negative behind a row's end.

    Returns:
      (B,) float32 sum of the natural-log probabilities of each row's tokens, and (B,) whether each token is the most
      probable one, lowest id among equals.
    """
    read = _one_by_one if cache.policy is not None else _at_once
    with on_mesh_of(model):
        return read(model, logits, cache, jnp.asarray(tokens))


@jax.jit
def _at_once(model: Any, logits: Array, cache: Cache, tokens: Array) -> tuple[Array, Array]:
    first = _judge(logits, tokens[:, 0])
    if tokens.shape[1] == 1:
        return on_every_device(first)
    hidden = model.lm.look_ahead(jnp.maximum(tokens[:, :-1], 0), cache)

    # One place at a time: the logits of all places would be (B, L, V).
    def place(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        x, token = pair
        return _judge(model.lm.logits(x), token)

    rest, best = lax.map(place, (jnp.moveaxis(hidden, 1, 0), tokens[:, 1:].T))
    return on_every_device((first[0] + rest.sum(axis=0), first[1] & best.all(axis=0)))


@jax.jit
def _one_by_one(model: Any, logits: Array, cache: Cache, tokens: Array) -> tuple[Array, Array]:
    def step(carry: tuple[Array, Cache], token: Array) -> tuple[tuple[Array, Cache], tuple[Array, Array]]:
        logits, cache = carry
        return model.lm.decode(jnp.maximum(token, 0), cache), _judge(logits, token)

    # The last token is judged, not read.
    (logits, _), (sums, best) = lax.scan(step, (logits, cache), tokens[:, :-1].T)
    last = _judge(logits, tokens[:, -1])
    return on_every_device((sums.sum(axis=0) + last[0], best.all(axis=0) & last[1]))


def _judge(logits: Float[Array, "B V"], token: Int[Array, "B"]) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Log-probability of a token a row, and whether it is the most probable; 0 and True where there is none."""
    there = token >= 0
    at = jnp.maximum(token, 0)[:, None]
    found = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), at, axis=-1)[:, 0]
    return jnp.where(there, found, 0.0), ~there | (jnp.argmax(logits, axis=-1) == token)
