"""Choosing visual tokens at a cut inside the language model: counts made on the host, scores, survivors."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.ops.select import rank_descending

Rounding = Literal["ceil", "round", "floor"]

_ROUNDINGS = {"ceil": math.ceil, "round": round, "floor": int}


def kept_table(most: int, keep: float, rounding: Rounding = "ceil", count: int | None = None) -> np.ndarray:
    """(most + 1,) int32: how many of n tokens stay, for every n, in Python's float64.

    Args:
      most: largest n.
      keep: share that stays.
      rounding: of n * keep; `round` takes halves to the even number, as Python does.
      count: a fixed number that stays instead, where there are as many.

    Raises:
      JvidpruneError: an unknown rounding, or a count or share out of range.
    """
    if rounding not in _ROUNDINGS:
        raise JvidpruneError(f"unknown rounding {rounding!r}; known: {', '.join(_ROUNDINGS)}.")
    if not 0.0 <= keep <= 1.0:
        raise JvidpruneError(f"the share kept inside the language model must lie in [0, 1], got {keep:g}.")
    if count is not None and count < 0:
        raise JvidpruneError(f"the number of tokens kept inside the language model must not be negative, got {count}.")
    sizes = range(most + 1)
    kept = [_ROUNDINGS[rounding](n * keep) if count is None else count for n in sizes]
    return np.minimum(np.asarray(kept, np.int64), np.arange(most + 1)).astype(np.int32)


def keep_top(scores: Float[Array, "S"], visual: Bool[Array, "S"], keep: int | Int[Array, ""]) -> Bool[Array, "S"]:
    """Every position that is not visual, and the `keep` visual ones of the largest score, equal ones by position.

    FastV (arXiv 2403.06764) and FlashVID (arXiv 2602.08024) rank by the attention of the last query position.
    """
    rank = rank_descending(jnp.where(visual, scores.astype(jnp.float32), -jnp.inf))
    return ~visual | (rank < keep)


def random_scores(seed: int | Int[Array, ""], source: Int[Array, "S"]) -> Float[Array, "S"]:
    """A uniform draw for each token, by its place in the prompt: padding and earlier cuts change nothing."""
    key = jax.random.key(seed)
    return jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place)))(source)
