"""Rules that shrink the visual tokens inside the language model: HoliTom's halving merge, PruneVid's text selection.

Pure functions of the hidden states and a few attention rows of one layer; where they sit in the decoder, and what that
does to its caches and position ids, is not decided here.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.select import order_descending, rank_of_order
from jvidprune.ops.similarity import dot_f32, squared_norms


def rank_in_group(scores: Array, group: Int[Array, "K"]) -> Int[Array, "K"]:
    """Rank of each entry among those of its group (0..K), 0 = largest, equal scores by index."""
    order = order_descending(scores)
    order = order[jnp.argsort(group[order], stable=True)]
    place = rank_of_order(order)
    size = group.shape[0]
    first = jnp.full(size + 1, size, jnp.int32).at[group].min(place)
    return place - first[group]


def halving_merge(
    hidden: Float[Array, "L D"],
    attention: Float[Array, "L"],
    visual: Bool[Array, "L"],
    keep: int | Int[Array, ""],
) -> tuple[Float[Array, "L D"], Bool[Array, "L"]]:
    """Keeps the most attended visual tokens and halves every other one into its most similar kept token.

    HoliTom's merging inside the language model (arXiv 2505.21334) as released: the dropped tokens are taken in
    ascending order and each replaces its centre h_c by (h_c + h_o) / 2, so the last of M members weighs 1/2 and the
    centre 2^-M, where the paper describes a plain similarity merge. Similarities are taken before any merging; of
    equally similar centres the one with more attention wins.

    Args:
      hidden: (L, D) hidden states after the probed layer.
      attention: (L,) attention of the last query row, mean over heads.
      visual: (L,) the visual tokens, newline vectors included.
      keep: visual tokens to keep, round(n * (1 - R)) with ties to even; traced or not. With 0 all are dropped.

    Returns:
      merged: (L, D) in the dtype of `hidden`, unchanged but for the centres; survivors: (L,) bool.
    """
    length = hidden.shape[0]
    index = jnp.arange(length, dtype=jnp.int32)
    order = order_descending(jnp.where(visual, attention.astype(jnp.float32), -jnp.inf))
    centre = visual & (rank_of_order(order) < keep)
    other = visual & ~centre
    norm = jnp.sqrt(squared_norms(hidden))
    # The norm of the row cannot change which centre is nearest; leaving it out gives all-zero tokens a defined one.
    cosine = dot_f32(hidden, hidden) / jnp.where(norm > 0, norm, 1.0)[None, :]
    by_rank = jnp.where(centre[order][None, :], cosine[:, order], -jnp.inf)
    first = jnp.min(jnp.where(by_rank == by_rank.max(axis=-1, keepdims=True), index, length), axis=-1)
    target = jnp.where(other & centre.any(), order[jnp.minimum(first, length - 1)], length)
    members = jnp.zeros(length + 1, jnp.int32).at[target].add(1)[:length]
    from_end = rank_in_group(index, target).astype(jnp.float32)
    states = hidden.astype(jnp.float32)
    shares = jnp.exp2(-(from_end + 1.0))[:, None] * states
    total = jnp.zeros((length + 1, hidden.shape[1]), jnp.float32).at[target].add(shares)[:length]
    merged = jnp.where(centre[:, None], states * jnp.exp2(-members.astype(jnp.float32))[:, None] + total, states)
    return merged.astype(hidden.dtype), ~other


def text_relevance(attention: Float[Array, "heads queries K"]) -> Float[Array, "K"]:
    """Largest attention that any text token pays to each visual token in any head (PruneVid, arXiv 2412.16117)."""
    return attention.astype(jnp.float32).max(axis=(0, 1))


def top_in_blocks(
    relevance: Float[Array, "K"], block: Int[Array, "K"], valid: Bool[Array, "K"], quota: Int[Array, "Q"]
) -> Bool[Array, "K"]:
    """The most relevant tokens of every block, as PruneVid's second stage keeps them.

    The paper keeps one global share of all tokens; the released code keeps a share of every block, a block being the
    static tokens of a segment or the dynamic tokens of one frame.

    Args:
      relevance: (K,) score of each visual token.
      block: (K,) block id of each token, in 0..K-1.
      valid: (K,) tokens that exist.
      quota: quota[n] tokens are kept of a block of n, int(n * share) from the host; Q > K.
    """
    size = relevance.shape[0]
    group = jnp.where(valid, block, size)
    count = jnp.zeros(size + 1, jnp.int32).at[group].add(1)
    return valid & (rank_in_group(relevance, group) < quota[count[group]])
