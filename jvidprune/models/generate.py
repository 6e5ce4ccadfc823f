"""Autoregressive text: decoding, and the sum of prefill and decoding, greedy or with temperature and top-p."""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import Cache
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, NotNegative, Ratio, checked
from jvidprune.models.prefill import PromptParts, prefill
from jvidprune.parallel import on_every_device, on_mesh_of

NO_TOKEN = -1
"""What stands in the output behind a row's end of sequence."""


def top_p_logits(logits: Float[Array, "... V"], top_p: Any) -> Float[Array, "... V"]:
    """-inf on all but the smallest set of most probable tokens whose probabilities reach `top_p`.

    A token stays if the tokens before it, in decreasing order, sum to less than `top_p`; the first always stays; equal
    logits go by the lowest id.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    keep_sorted = (before < top_p).at[..., 0].set(True)
    keep = jnp.take_along_axis(keep_sorted, jnp.argsort(order, axis=-1, stable=True), axis=-1)
    return jnp.where(keep, logits, -jnp.inf)


def sample(logits: Float[Array, "B V"], key: Array, temperature: Any, top_p: Any, *, greedy: bool) -> Int[Array, "B"]:
    """One token a row: the most probable one (lowest id among equals), or a draw after temperature and top-p.

    `key` is one key for all rows, or (B,) keys, with which a row's draw does not depend on the rows beside it.
    """
    if greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = top_p_logits(logits.astype(jnp.float32) / temperature, top_p)
    draw = jax.vmap(jax.random.categorical) if key.ndim else jax.random.categorical
    return draw(key, kept).astype(jnp.int32)


def _step_key(key: Array, step: Any) -> Array:
    if key.ndim:
        return jax.vmap(lambda one: jax.random.fold_in(one, step))(key)
    return jax.random.fold_in(key, step)


@functools.partial(jax.jit, static_argnames=("steps", "greedy"), donate_argnames="cache")
def _decode(
    model: Any,
    logits: Array,
    cache: Cache,
    key: Array,
    temperature: Any,
    top_p: Any,
    eos_ids: Array,
    *,
    steps: int,
    greedy: bool,
) -> tuple[Array, Cache]:
    def pick(i: Any, logits: Array, done: Array) -> tuple[Array, Array]:
        token = sample(logits, _step_key(key, i), temperature, top_p, greedy=greedy)
        return token, done | (token[:, None] == eos_ids).any(axis=1)

    rows = logits.shape[0]
    first, done = pick(0, logits, jnp.zeros(rows, bool))
    tokens = jnp.full((rows, steps), NO_TOKEN, jnp.int32).at[:, 0].set(first)

    def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
        i, token, done, tokens, cache = state
        logits, cache = model.lm.decode(token, cache)
        token, now_done = pick(i, logits, done)
        tokens = tokens.at[:, i].set(jnp.where(done, NO_TOKEN, token))
        return i + 1, token, now_done, tokens, cache

    def running(state: tuple[Any, ...]) -> Array:
        return (state[0] < steps) & ~state[2].all()

    *_, tokens, cache = lax.while_loop(running, body, (jnp.int32(1), first, done, tokens, cache))
    # Every process of a mesh reads all answers.
    return on_every_device(tokens), cache


def decode(
    model: Any,
    logits: Float[Array, "B V"],
    cache: Cache,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: Array | None = None,
    eos_ids: tuple[int, ...] = (),
) -> tuple[Int[Array, "B max_new_tokens"], Cache]:
    """The jitted second stage: a loop that stops when every row has ended or `max_new_tokens` are out.

    Args:
      model: any model with a decoder `lm`.
      logits: from `prefill`.
      cache: from `prefill`; donated, with max_new_tokens - 1 free slots.
      max_new_tokens: at least 1.
      temperature: 0 takes the most probable token; above, logits are divided by it.
      top_p: share of probability to draw from, in (0, 1].
      key: jax.random key, or (B,) keys, one a row; needed unless temperature is 0.
      eos_ids: ids that end a row.

    Returns:
      (B, max_new_tokens) int32, the end-of-sequence id included and -1 behind it, and the cache.

    Raises:
      JvidpruneError: settings out of range, or too small a cache.
    """
    check_sampling(max_new_tokens, temperature, top_p)
    if temperature > 0 and key is None:
        raise JvidpruneError(f"temperature {temperature} needs a random key.")
    for segment in cache.segments:
        taken = int(segment.length)
        if taken + max_new_tokens - 1 > segment.capacity:
            raise JvidpruneError(
                f"{max_new_tokens} new tokens do not fit: {taken} of {segment.capacity} slots are taken."
            )
    with on_mesh_of(model):
        return _decode(
            model,
            logits,
            cache,
            jax.random.key(0) if key is None else key,
            temperature,
            top_p,
            jnp.asarray(eos_ids, jnp.int32),
            steps=max_new_tokens,
            greedy=temperature == 0,
        )


def lower_decode(
    model: Any, logits: Float[Array, "B V"], cache: Cache, *, max_new_tokens: int, eos_ids: tuple[int, ...] = ()
) -> Any:
    """The program that `decode` runs greedily on these arguments, as JAX lowers it; nothing is run or donated.

    Behind a call of `decode` its `compile()` costs nothing.
    """
    ids = jnp.asarray(eos_ids, jnp.int32)
    with on_mesh_of(model):
        return _decode.lower(model, logits, cache, jax.random.key(0), 0.0, 1.0, ids, steps=max_new_tokens, greedy=True)


def generate(
    model: Any,
    embeds: Float[Array | np.ndarray, "B S D"],
    positions: Int[Array | np.ndarray, "... B S"],
    valid: Bool[Array | np.ndarray, "B S"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: Array | None = None,
    eos_ids: tuple[int, ...] = (),
    **parts: Unpack[PromptParts],
) -> Int[Array, "B max_new_tokens"]:
    """Prefill and decode: (B, max_new_tokens) int32 token ids, -1 behind each row's end of sequence.

    Raises:
      JvidpruneError: prompt and answer together exceed the model's positions, or settings out of range.
    """
    check_sampling(max_new_tokens, temperature, top_p)
    capacity = embeds.shape[1] + max_new_tokens - 1
    model.lm.check_length(capacity)
    logits, cache = prefill(model, embeds, positions, valid, capacity=capacity, **parts)
    return decode(
        model,
        logits,
        cache,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        key=key,
        eos_ids=eos_ids,
    )[0]


def check_sampling(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """JvidpruneError for settings out of range."""
    checked(max_new_tokens, Count, "max_new_tokens")
    checked(temperature, NotNegative, "temperature")
    checked(top_p, Ratio, "top_p")
