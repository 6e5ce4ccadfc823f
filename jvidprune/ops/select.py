"""Choosing tokens: first extrema, ranks, top-k masks with a traced k. Ties always go to the lowest index.

TPU compilers take seconds for every sort with a payload and for every scatter. On accelerators rows of up to `COMPARED`
entries are therefore ranked and counted by comparing all pairs, in fused reductions that write no pair down, of rows
filled up to whole tiles (`ops.layout`).
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.branch import on_cpu
from jvidprune.ops.layout import aligned, lengthen

COMPARED = 1024
"""Entries of a row up to which accelerators compare all pairs."""


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
    if _compares(scores.shape[-1]):
        return rank_of_order(_compared_rank(scores))
    return jnp.argsort(scores, axis=-1, stable=True).astype(jnp.int32)


def _compares(entries: int) -> bool:
    return not on_cpu() and entries <= COMPARED


def _compared_rank(scores: Array) -> Int[Array, "... N"]:
    """Ascending ranks as counts of what comes before; NaN comes last and zeros are equal, as in a sort."""
    if jnp.issubdtype(scores.dtype, jnp.floating):
        values = scores.astype(jnp.float32)
        bits = lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.int32)
        bits = jnp.where(jnp.isnan(values), 0x7FC00000, bits)
        scores = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    elif scores.dtype == bool:
        scores = scores.astype(jnp.int32)
    n = scores.shape[-1]
    scores = lengthen(scores, jnp.iinfo(scores.dtype).max)
    place = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    other, own = scores[..., None, :], scores[..., :, None]
    before = (other < own) | ((other == own) & (place[None] < place[:, None]))
    return jnp.sum(before, axis=-1, dtype=jnp.int32)[..., :n]


def order_descending(scores: Array) -> Int[Array, "... N"]:
    """Indices from the largest score to the smallest, equal scores by index."""
    return order_ascending(-scores)


def rank_of_order(order: Int[Array, "... N"]) -> Int[Array, "... N"]:
    """Inverse permutation: place of each index in `order`. A scatter, which costs a fraction of a second sort."""
    if _compares(order.shape[-1]):
        n = order.shape[-1]
        order = lengthen(order, n)
        entry = jnp.arange(order.shape[-1], dtype=jnp.int32)
        places = jnp.sum(jnp.where(order[..., None, :] == entry[:, None], entry, 0), axis=-1, dtype=jnp.int32)
        return places[..., :n]
    place = jnp.broadcast_to(jnp.arange(order.shape[-1], dtype=jnp.int32), order.shape)
    return jnp.put_along_axis(jnp.zeros(order.shape, jnp.int32), order, place, axis=-1, inplace=False)


def rank_ascending(scores: Array) -> Int[Array, "... N"]:
    """Rank of each entry, 0 = smallest, equal scores by index. Ranks do not depend on any budget: share them."""
    return _compared_rank(scores) if _compares(scores.shape[-1]) else rank_of_order(order_ascending(scores))


def rank_descending(scores: Array) -> Int[Array, "... N"]:
    """Rank of each entry, 0 = largest, equal scores by index; see `rank_ascending`."""
    return rank_ascending(-scores)


def entry_of_rank(values: Float[Array, "N"], rank: Int[Array, ""]) -> Float[Array, ""]:
    """The entry of an ascending rank, 0 for the smallest; NaN comes last."""
    if _compares(values.shape[0]):
        return jnp.sum(jnp.where(_compared_rank(values) == rank, values, 0.0))
    return jnp.sort(values)[rank]


def occurrences(index: Int[Array, "... K"], counted: Array, n: int) -> Int[Array, "... n"]:
    """How often each of `n` places is named by the entries that are `counted`, row by row.

    Args:
      index: place of each entry; those outside of 0..n-1 count nowhere.
      counted: bool, of the shape of `index` or broadcast to it.
      n: static number of places.
    """
    counted = jnp.broadcast_to(counted, index.shape)
    if _compares(max(n, index.shape[-1])):
        index, counted, places = lengthen(index, -1), lengthen(counted, False), jnp.arange(aligned(n), dtype=jnp.int32)
        named = (index[..., None, :] == places[:, None]) & counted[..., None, :]
        return jnp.sum(named, axis=-1, dtype=jnp.int32)[..., :n]
    rows = index.reshape(math.prod(index.shape[:-1]), index.shape[-1])
    row = jnp.arange(rows.shape[0], dtype=jnp.int32)[:, None]
    named = counted.reshape(rows.shape).astype(jnp.int32)
    place = jnp.where((rows >= 0) & (rows < n), rows, n)
    return jnp.zeros((rows.shape[0], n), jnp.int32).at[row, place].add(named, mode="drop").reshape(*index.shape[:-1], n)


def entries_at(values: Array, index: Int[Array, "... K"]) -> Array:
    """`values` (..., N) at places of their last axis; on accelerators, of short rows, by comparison with every place.

    Args:
      values: integers, booleans or floats.
      index: places in 0..N-1.
    """
    if not _compares(max(values.shape[-1], index.shape[-1])):
        return jnp.take_along_axis(values, index, axis=-1)
    count = index.shape[-1]
    index, values = lengthen(index, -1), lengthen(values, 0)
    named = index[..., :, None] == jnp.arange(values.shape[-1], dtype=jnp.int32)
    if values.dtype == bool:
        return jnp.any(named & values[..., None, :], axis=-1)[..., :count]
    return jnp.sum(jnp.where(named, values[..., None, :], 0), axis=-1, dtype=values.dtype)[..., :count]


def first_occurrence(index: Int[Array, "... K"], n: int) -> Int[Array, "... n"]:
    """The first entry that names each of `n` places, K where none does; indices outside of 0..n-1 name nothing."""
    count = index.shape[-1]
    if _compares(max(n, count)):
        index, places = lengthen(index, -1), jnp.arange(aligned(n), dtype=jnp.int32)
        entry = jnp.arange(index.shape[-1], dtype=jnp.int32)
        return jnp.min(jnp.where(index[..., None, :] == places[:, None], entry, count), axis=-1, initial=count)[..., :n]
    entry = jnp.arange(count, dtype=jnp.int32)
    rows = index.reshape(math.prod(index.shape[:-1]), count)
    row = jnp.arange(rows.shape[0], dtype=jnp.int32)[:, None]
    place = jnp.where(rows >= 0, rows, n)
    first = jnp.full((rows.shape[0], n), count, jnp.int32).at[row, place].min(entry, mode="drop")
    return first.reshape(*index.shape[:-1], n)


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
