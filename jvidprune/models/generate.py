"""Autoregressive text: decoding whole or piece by piece, and the sum of prefill and decoding."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import Cache
from jvidprune.errors import JvidpruneError
from jvidprune.models.prefill import PromptParts, prefill
from jvidprune.models.sampling import GREEDY, Numbers, Sampling, check_sampling, penalised, sample, step_key
from jvidprune.parallel import on_every_device, on_mesh_of

NO_TOKEN = -1
"""What stands in the output behind a row's end of sequence."""

PIECE = 8
"""Tokens that are decoded before the host looks at them, where it does."""


class Going(NamedTuple):
    """Rows in the middle of an answer.

    Attributes:
      token: (B,) int32 taken last; the cache does not hold it yet.
      done: (B,) rows that have ended.
      seen: (B, V) ids of the prompt's text and the answer, or None where no penalty reads them.
      step: () or (B,) int32 number of the next token of each answer.
    """

    token: Int[Array, "B"]
    done: Bool[Array, "B"]
    seen: Bool[Array, "B V"] | None
    step: Array


class How(NamedTuple):
    """How tokens are taken: settings, keys and the ids that end a row."""

    numbers: Numbers
    key: Array
    eos_ids: Array


def _take(logits: Array, going: Going, how: How, greedy: bool) -> Going:
    """The next token of each row."""
    n = how.numbers
    if going.seen is not None:
        logits = penalised(logits, going.seen, n.repetition_penalty)
    key = step_key(how.key, going.step)
    token = sample(logits, key, n.temperature, n.top_p, n.top_k, n.min_p, greedy=greedy)
    done = going.done | (token[:, None] == how.eos_ids).any(axis=1)
    seen = going.seen
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return Going(token, done, seen, going.step + 1)


def start_rows(logits: Array, seen: Array | None, how: How, greedy: bool) -> Going:
    rows = logits.shape[0]
    return _take(logits, Going(jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool), seen, jnp.int32(0)), how, greedy)


def _run(
    model: Any, going: Going, cache: Cache, how: How, most: Any, *, steps: int, greedy: bool
) -> tuple[Array, Going, Cache]:
    """(B, steps) further tokens, at most `most` of them."""
    tokens = jnp.full((going.token.shape[0], steps), NO_TOKEN, jnp.int32)
    if steps == 0:
        return tokens, going, cache

    def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
        i, going, tokens, cache = state
        logits, cache = model.lm.decode(going.token, cache)
        then = _take(logits, going, how, greedy)
        return i + 1, then, tokens.at[:, i].set(jnp.where(going.done, NO_TOKEN, then.token)), cache

    def running(state: tuple[Any, ...]) -> Array:
        return (state[0] < most) & ~state[1].done.all()

    _, going, tokens, cache = lax.while_loop(running, body, (jnp.int32(0), going, tokens, cache))
    return tokens, going, cache


@functools.partial(jax.jit, static_argnames=("steps", "greedy"), donate_argnames="cache")
def _decode(
    model: Any, logits: Array, cache: Cache, seen: Array | None, how: How, *, steps: int, greedy: bool
) -> tuple[Array, Cache]:
    going = start_rows(logits, seen, how, greedy)
    first = going.token[:, None]
    rest, _, cache = _run(model, going, cache, how, steps - 1, steps=steps - 1, greedy=greedy)
    # Every process of a mesh reads all answers.
    return on_every_device(jnp.concatenate([first, rest], axis=1)), cache


@functools.partial(jax.jit, static_argnames="greedy")
def _begin(logits: Array, seen: Array | None, how: How, *, greedy: bool) -> tuple[Array, Array, Going]:
    going = start_rows(logits, seen, how, greedy)
    return *on_every_device((going.token[:, None], going.done)), going


@functools.partial(jax.jit, static_argnames=("steps", "greedy"), donate_argnames=("going", "cache"))
def go_on_rows(
    model: Any, going: Going, cache: Cache, how: How, most: Any, *, steps: int, greedy: bool
) -> tuple[Array, Array, Going, Cache]:
    tokens, going, cache = _run(model, going, cache, how, most, steps=steps, greedy=greedy)
    return *on_every_device((tokens, going.done)), going, cache


def decode(
    model: Any,
    logits: Float[Array, "B V"],
    cache: Cache,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    key: Array | None = None,
    eos_ids: tuple[int, ...] = (),
    seen: Bool[Array | np.ndarray, "B V"] | None = None,
) -> tuple[Int[Array, "B max_new_tokens"], Cache]:
    """The jitted second stage: a loop that stops when every row has ended or `max_new_tokens` are out.

    Args:
      model: any model with a decoder `lm`.
      logits: from `prefill`.
      cache: from `prefill`; donated, with max_new_tokens - 1 free slots.
      max_new_tokens: at least 1.
      sampling: how tokens are taken.
      key: jax.random key, or (B,) keys, one a row; needed unless answers are greedy.
      eos_ids: ids that end a row.
      seen: ids that a repetition penalty acts on from the start, those of the prompt's text; by default none.

    Returns:
      (B, max_new_tokens) int32, the end-of-sequence id included and -1 behind it, and the cache.

    Raises:
      JvidpruneError: too small a cache, or no key where one is needed.
    """
    how, seen = _how(logits, cache, max_new_tokens, sampling, key, eos_ids, seen)
    with on_mesh_of(model):
        return _decode(model, logits, cache, seen, how, steps=max_new_tokens, greedy=sampling.greedy)


def decode_pieces(
    model: Any,
    logits: Float[Array, "B V"],
    cache: Cache,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    key: Array | None = None,
    eos_ids: tuple[int, ...] = (),
    seen: Bool[Array | np.ndarray, "B V"] | None = None,
    piece: int = PIECE,
) -> Iterator[tuple[Int[np.ndarray, "B P"], Cache]]:
    """`decode` in pieces that come as they are ready: the first token, then `piece` at a time, together the same ids.

    One program serves all lengths. The cache beside each piece is good until the next one is asked for; it holds the
    prompt and all tokens but the last.

    Args:
      model, logits, cache, max_new_tokens, sampling, key, eos_ids, seen: see `decode`.
      piece: tokens that are decoded at a time.

    Raises:
      JvidpruneError: see `decode`; with the first piece.
    """
    how, seen = _how(logits, cache, max_new_tokens, sampling, key, eos_ids, seen)
    with on_mesh_of(model):
        first, done, going = _begin(logits, seen, how, greedy=sampling.greedy)
    yield np.asarray(first), cache
    out = 1
    while out < max_new_tokens and not np.asarray(done).all():
        most = min(piece, max_new_tokens - out)
        with on_mesh_of(model):
            tokens, done, going, cache = go_on_rows(
                model, going, cache, how, jnp.int32(most), steps=piece, greedy=sampling.greedy
            )
        yield np.asarray(tokens)[:, :most], cache
        out += most


def _how(
    logits: Array,
    cache: Cache,
    max_new_tokens: int,
    sampling: Sampling,
    key: Array | None,
    eos_ids: tuple[int, ...],
    seen: Any,
) -> tuple[How, Array | None]:
    """What the programs are given besides model, logits and cache; checked."""
    check_sampling(max_new_tokens, sampling.temperature, sampling.top_p)
    if not sampling.greedy and key is None:
        raise JvidpruneError(f"temperature {sampling.temperature} needs a random key.")
    for segment in cache.segments:
        taken = int(segment.length)
        if taken + max_new_tokens - 1 > segment.capacity:
            raise JvidpruneError(
                f"{max_new_tokens} new tokens do not fit: {taken} of {segment.capacity} slots are taken."
            )
    if sampling.repetition_penalty == 1:
        seen = None
    else:
        seen = jnp.zeros(logits.shape, bool) if seen is None else jnp.asarray(seen)
    key = jax.random.key(0) if key is None else key
    return How(sampling.numbers, key, jnp.asarray(eos_ids, jnp.int32)), seen


def lower_decode(
    model: Any, logits: Float[Array, "B V"], cache: Cache, *, max_new_tokens: int, eos_ids: tuple[int, ...] = ()
) -> Any:
    """The program that `decode` runs greedily on these arguments, as JAX lowers it; nothing is run or donated.

    Behind a call of `decode` its `compile()` costs nothing.
    """
    how = How(GREEDY.numbers, jax.random.key(0), jnp.asarray(eos_ids, jnp.int32))
    with on_mesh_of(model):
        return _decode.lower(model, logits, cache, None, how, steps=max_new_tokens, greedy=True)


def generate(
    model: Any,
    embeds: Float[Array | np.ndarray, "B S D"],
    positions: Int[Array | np.ndarray, "... B S"],
    valid: Bool[Array | np.ndarray, "B S"],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    key: Array | None = None,
    eos_ids: tuple[int, ...] = (),
    **parts: Unpack[PromptParts],
) -> Int[Array, "B max_new_tokens"]:
    """Prefill and decode: (B, max_new_tokens) int32 token ids, -1 behind each row's end of sequence.

    Raises:
      JvidpruneError: prompt and answer together exceed the model's positions, or settings out of range.
    """
    check_sampling(max_new_tokens, sampling.temperature, sampling.top_p)
    capacity = embeds.shape[1] + max_new_tokens - 1
    model.lm.check_length(capacity)
    logits, cache = prefill(model, embeds, positions, valid, capacity=capacity, **parts)
    how = {"sampling": sampling, "key": key, "eos_ids": eos_ids}
    return decode(model, logits, cache, max_new_tokens=max_new_tokens, **how)[0]
