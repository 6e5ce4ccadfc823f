"""Choosing tokens: first extrema, ranks, top-k masks with a traced k. Ties always go to the lowest index."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def first_argmax(values: Float[Array, "... N"]) -> Int[Array, "..."]:
    """Index of the first maximum along the last axis.

    Equal to `jnp.argmax` on finite values, written as max + compare + min because argmax stays scalar on XLA:CPU.
    A row of NaN gives N.
    """
    n = values.shape[-1]
    top = jnp.max(values, axis=-1, keepdims=True)
    return jnp.min(jnp.where(values == top, jnp.arange(n, dtype=jnp.int32), n), axis=-1)


def first_argmin(values: Float[Array, "... N"]) -> Int[Array, "..."]:
    """Index of the first minimum along the last axis; see `first_argmax`."""
    n = values.shape[-1]
    low = jnp.min(values, axis=-1, keepdims=True)
    return jnp.min(jnp.where(values == low, jnp.arange(n, dtype=jnp.int32), n), axis=-1)


def order_ascending(scores: Array) -> Int[Array, "... N"]:
    """Indices from the smallest score to the largest, equal scores by index; `rank_of_order` gives the ranks."""
    return jnp.argsort(scores, axis=-1, stable=True).astype(jnp.int32)


def order_descending(scores: Array) -> Int[Array, "... N"]:
    """Indices from the largest score to the smallest, equal scores by index."""
    return order_ascending(-scores)


def rank_of_order(order: Int[Array, "... N"]) -> Int[Array, "... N"]:
    """Inverse permutation: place of each index in `order`. A scatter, which costs a fraction of a second sort."""
    place = jnp.broadcast_to(jnp.arange(order.shape[-1], dtype=jnp.int32), order.shape)
    return jnp.put_along_axis(jnp.zeros(order.shape, jnp.int32), order, place, axis=-1, inplace=False)


def rank_ascending(scores: Array) -> Int[Array, "... N"]:
    """Rank of each entry, 0 = smallest, equal scores by index. Ranks do not depend on any budget: share them."""
    return rank_of_order(order_ascending(scores))


def rank_descending(scores: Array) -> Int[Array, "... N"]:
    """Rank of each entry, 0 = largest, equal scores by index; see `rank_ascending`."""
    return rank_of_order(order_descending(scores))


def rank_in_group(scores: Array, group: Int[Array, "K"]) -> Int[Array, "K"]:
    """Rank of each entry among those of its group (0..K), 0 = largest, equal scores by index."""
    order = order_descending(scores)
    order = order[jnp.argsort(group[order], stable=True)]
    place = rank_of_order(order)
    size = group.shape[0]
    first = jnp.full(size + 1, size, jnp.int32).at[group].min(place)
    return place - first[group]


def keep_top(scores: Float[Array, "S"], visual: Bool[Array, "S"], keep: int | Int[Array, ""]) -> Bool[Array, "S"]:
    """Every position that is not visual, and the `keep` visual ones of the largest score, equal ones by position.

    FastV (arXiv 2403.06764) and FlashVID (arXiv 2602.08024) rank by the attention of the last query position.
    """
    rank = rank_descending(jnp.where(visual, scores.astype(jnp.float32), -jnp.inf))
    return ~visual | (rank < keep)
