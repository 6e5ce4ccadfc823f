"""Trees of tokens over time: links to the previous frame, roots, and sums that run down a tree.

FlashVID's tree-based spatiotemporal token merging (TSTM, arXiv 2602.08024 section 3). Parents are chosen from the
unmerged features, so links, roots and counts have no sequential dependence; only merged values do.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.branch import on_cpu
from jvidprune.ops.layout import one_by_one
from jvidprune.ops.segment import segment_total
from jvidprune.ops.select import first_argmax, occurrences
from jvidprune.ops.similarity import dot_f32

NO_LINK = -1.0
"""Similarity of a token that cannot have a parent: the first frame of a segment, and tokens outside the trees."""


def best_previous(
    cosine: Float[Array, "T-1 N N"], outside: Bool[Array, "T N"], starts: Bool[Array, "T"]
) -> tuple[Float[Array, "T N"], Int[Array, "T N"]]:
    """The most similar token of the previous frame, for every token.

    Args:
      cosine: [t, n, m] between token n of frame t + 1 and token m of frame t.
      outside: tokens that are no tree nodes; rows and columns of the matrix become -1.
      starts: first frames of the segments.

    Returns:
      similarity (T, N), `NO_LINK` where there is no parent to look for, and the parent's place in the previous frame.
    """
    frames, n = outside.shape

    def best(cosine: Array, outside: Array) -> tuple[Array, Array]:
        columns = jnp.where(outside[..., None, :], NO_LINK, cosine)
        return jnp.max(columns, axis=-1, initial=-jnp.inf), jnp.minimum(first_argmax(columns), n - 1)

    if frames == 1:
        similarity, parent = jnp.zeros((0, n)), jnp.zeros((0, n), jnp.int32)
    elif on_cpu():
        similarity, parent = best(cosine, outside[:-1])
    else:
        # Reductions of many ratios' (T, N, N) comparisons take compilers four times as long as those of a frame.
        similarity, parent = lax.map(lambda pair: best(*pair), (cosine, outside[:-1]))
    closed = outside[1:] | starts[1:, None]
    similarity = jnp.where(closed, NO_LINK, similarity)
    head = jnp.full((1, n), NO_LINK, similarity.dtype)
    return (
        jnp.concatenate([head, similarity]),
        jnp.concatenate([jnp.zeros((1, n), jnp.int32), jnp.where(closed, 0, parent).astype(jnp.int32)]),
    )


def kth_largest(values: Float[Array, "T N"], k: Int[Array, "T"], ids: Int[Array, "T"]) -> Float[Array, "T"]:
    """The k-th largest value over all frames of a segment, exactly, without sorting.

    The order-preserving integer of a float is built from its top bit down: a bit stays if at least k values are that
    large. 32 counting passes are a tenth of the cost of a sort on CPU.

    Args:
      values: float32; NaN counts as the largest.
      k: 1-based rank in the segment of each frame; where it is below 1 or above the number of values the result has no
        meaning.
      ids: (T,) segment id of each frame, in 0..T-1.

    Returns:
      (T,) for the segment of each frame.
    """
    top = jnp.uint32(1 << 31)
    # Equal floats need equal keys: -0.0 becomes 0.0, and NaN of either sign becomes the positive one.
    bits = lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values.astype(jnp.float32)), jnp.uint32)
    bits = jnp.where(jnp.isnan(values), jnp.uint32(0x7FC00000), bits)
    keys = jnp.where(bits >= top, ~bits, bits | top)

    def bit(i, found):
        candidate = found | (top >> i.astype(jnp.uint32))
        reached = (keys >= candidate[:, None]).sum(-1, dtype=jnp.int32)
        return jnp.where(segment_total(reached, ids) >= k, candidate, found)

    found = lax.fori_loop(0, 32, bit, jnp.zeros(ids.shape[0], jnp.uint32))
    return lax.bitcast_convert_type(jnp.where(found >= top, found ^ top, ~found), jnp.float32)


def bounded_links(
    similarity: Float[Array, "T N"],
    threshold: float | Array,
    ids: Int[Array, "T"],
    lengths: Int[Array, "T"],
    floor: int | Int[Array, ""],
) -> tuple[Bool[Array, "T N"], Float[Array, "T"]]:
    """Links above a threshold, raised where a segment would keep too few roots (FlashVID's soft lower bound).

    A segment of F frames keeps at least F * floor roots, every unlinked token counted, selected ones too. Where the
    plain threshold leaves fewer, it becomes the k-th largest similarity of the segment, k = F * (N - floor), at least
    -1 + 1e-6; the comparison stays strict, so without ties one root more than the bound is left.

    Args:
      similarity: from `best_previous`.
      threshold: a link needs more than this.
      ids: segment id of each frame, in 0..T-1.
      lengths: frames of the segment that each frame lies in.
      floor: roots per frame.

    Returns:
      linked (T, N), and (T,) the raised threshold of each frame's segment, NaN where it was not raised.
    """
    n = similarity.shape[1]
    linked = similarity > threshold
    short = segment_total((~linked).sum(-1, dtype=jnp.int32), ids) < floor * lengths
    allowed = jnp.maximum(lengths * (n - floor), 0)
    raised = jnp.maximum(kth_largest(similarity, allowed, ids), -1.0 + 1e-6)
    # No allowance at all (the budget covers every token) means no links; the reference fails there.
    raised = jnp.where(allowed > 0, raised, jnp.inf)
    linked = jnp.where(short[:, None], similarity > raised[:, None], linked)
    return linked, jnp.where(short, raised, jnp.nan)


def tree_roots(linked: Bool[Array, "T N"], parent: Int[Array, "T N"]) -> Int[Array, "M"]:
    """Global id frame * N + place of the root of every token, by pointer doubling."""
    frames, n = linked.shape
    own = jnp.arange(frames * n, dtype=jnp.int32).reshape(frames, n)
    above = jnp.arange(-1, frames - 1, dtype=jnp.int32)[:, None] * n + parent
    root = jnp.where(linked, above, own).reshape(-1)
    # A loop, not unrolled: XLA would fuse the chain of gathers into exponentially many.
    return lax.fori_loop(0, max(frames - 1, 1).bit_length(), lambda _, up: up[up], root)


def child_counts(linked: Bool[Array, "T N"], parent: Int[Array, "T N"]) -> Int[Array, "T N"]:
    """Number of direct children of every token."""
    frames, n = linked.shape
    if not on_cpu():
        counts = occurrences(parent[1:], linked[1:], n)
        return jnp.concatenate([counts, jnp.zeros((1, n), jnp.int32)])
    target = jnp.where(linked, jnp.arange(frames, dtype=jnp.int32)[:, None] * n - n + parent, frames * n)
    counts = jnp.zeros(frames * n + 1, jnp.int32).at[target.reshape(-1)].add(1)
    return counts[:-1].reshape(frames, n)


def tree_sizes(root: Int[Array, "M"]) -> Int[Array, "M"]:
    """Number of tokens of the tree rooted at each token, 0 where the token is no root."""
    return jnp.zeros(root.shape[0], jnp.int32).at[root].add(1)


def tree_values(x: Float[Array, "M D"], root: Int[Array, "M"], divisor: Array) -> Float[Array, "M D"]:
    """Sum over each tree divided by `divisor` of its root, float32; zeros where the token is no root."""
    total = jnp.zeros(x.shape, jnp.float32).at[root].add(x.astype(jnp.float32))
    return total / divisor.reshape(-1, 1)


def merged_grams(
    x: Float[Array, "T N D"],
    gram: Float[Array, "T N N"],
    linked: Bool[Array, "T N"],
    parent: Int[Array, "T N"],
    wanted: Bool[Array, "T N"],
) -> Float[Array, "T N N"]:
    """Inner products of the undivided tree sums inside each frame, last frame first.

    A linked token hands its whole sum to its parent. The carry of the scan is one (N, D) frame; a frame whose tokens
    have no children keeps its raw Gram matrix, which spares a product. The product is taken of the wanted
    tokens alone where they fill at most a half or a quarter of the frame.

    Args:
      x: tokens.
      gram: their inner products, from `frame_gram`.
      linked, parent: links to the previous frame.
      wanted: tokens whose rows and columns will be read; elsewhere the result has no meaning.
    """
    frames, n, width = x.shape
    nothing = jnp.zeros((1, n), bool)
    incoming = jnp.concatenate([linked[1:], nothing])
    target = jnp.where(incoming, jnp.concatenate([parent[1:], parent[:1]]), n)
    sizes = (n // 4, n // 2, n) if n >= 16 else (n,)
    count = wanted.sum(-1)
    # Branch 0 keeps the raw matrix, branch i takes the product of sizes[i - 1] rows.
    branch = 1 + sum((count > size).astype(jnp.int32) for size in sizes[:-1])
    branch = jnp.where(incoming.any(-1) & (count > 0), branch, 0)

    def frame(below: Array, inputs):
        t, to, want, which, summed, hands_up = inputs

        def add() -> Array:
            plain = lax.dynamic_index_in_dim(x, t, keepdims=False).astype(jnp.float32)
            return lax.cond(summed, lambda: plain.at[to].add(below, mode="drop"), lambda: plain)

        # The sums of a frame matter only to its own product and to the frame before it.
        total = lax.cond((which > 0) | hands_up, add, lambda: below)

        def raw() -> Array:
            return lax.dynamic_index_in_dim(gram, t, keepdims=False)

        products = [functools.partial(_gram_of, total, want, size) for size in sizes]
        return total, lax.switch(which, [raw, *products])

    inputs = (jnp.arange(frames), target, wanted, branch, incoming.any(-1), linked.any(-1))
    _, grams = lax.scan(frame, jnp.zeros((n, width), jnp.float32), inputs, reverse=True)
    return grams


def over_merged(
    finish: Callable[..., Any],
    x: Float[Array, "T N D"],
    gram: Float[Array, "T N N"],
    linked: Bool[Array, "T N"],
    parent: Int[Array, "T N"],
    *arrays: Array,
) -> Any:
    """`finish` of every frame's Gram matrix of undivided tree sums and its part of other arrays, for accelerators.

    What `merged_grams` holds for all frames exists here for one: many budgets side by side, under vmap, then read the
    tokens once. A frame's sums are handed up as a product with the matrix of its links, and nothing branches.

    Args:
      finish: (N, N) matrix and parts to any result.
      x, gram, linked, parent: as in `merged_grams`.
      arrays: (T, ...) further arguments.
    """
    _, n, width = x.shape
    places = jnp.arange(n, dtype=jnp.int32)
    incoming = jnp.concatenate([linked[1:], jnp.zeros((1, n), bool)])
    target = jnp.where(incoming, jnp.roll(parent, -1, axis=0), n)

    def frame(below: Array, inputs: tuple) -> tuple[Array, Any]:
        tokens, own, to, *parts = inputs
        rises = (to < n)[:, None]
        handed = jnp.matmul(
            (places[:, None] == to).astype(jnp.float32), jnp.where(rises, below, 0.0), precision=lax.Precision.HIGHEST
        )
        total = tokens.astype(jnp.float32) + handed
        # Frames without children keep their matrix, as they do on CPU.
        return total, finish(jnp.where(rises.any(), one_by_one(dot_f32, total, total), own), *parts)

    _, results = lax.scan(frame, jnp.zeros((n, width), jnp.float32), (x, gram, target, *arrays), reverse=True)
    return results


def _gram_of(rows: Float[Array, "N D"], wanted: Bool[Array, "N"], size: int) -> Float[Array, "N N"]:
    """Inner products of the wanted rows, at most `size` of them, in their places."""
    if size == rows.shape[0]:
        return dot_f32(rows, rows)
    n = rows.shape[0]
    place = jnp.cumsum(wanted) - 1
    source = jnp.zeros(size, jnp.int32).at[jnp.where(wanted, place, size)].set(jnp.arange(n), mode="drop")
    few = rows[source]
    product = dot_f32(few, few)
    place = jnp.clip(place, 0, size - 1)
    return product[place[:, None], place[None, :]]
