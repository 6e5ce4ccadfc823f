"""OTT-Vid's steps between neighbouring frames, apart from the transport itself (arXiv 2605.11803)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops import similarity
from jvidprune.ops.loops import bounded_while
from jvidprune.ops.select import rank_descending


def pair_weights(x: Float[Array, "T N D"], norms: Float[Array, "T N"], *, rounded: bool) -> Float[Array, "P"]:
    """alpha in [0.5, 1]: how much the feature term weighs against the distance, larger the less neighbours agree."""
    frames = x.shape[0]
    if frames < 2:
        return jnp.zeros(0, jnp.float32)

    def step(value):
        return value.astype(x.dtype).astype(jnp.float32) if rounded else value

    cosine = step(similarity.same_position_inner(x) / jnp.maximum(norms[:-1] * norms[1:], 1e-8))
    change = step(jnp.clip(step(1.0 - step(cosine.mean(-1))), 0.0, 1.0))
    return step(0.5 + step(0.5 * change))


def split_removals(
    difficulty: Float[Array, "P"],
    active: Bool[Array, "P"],
    removals: Int[Array, ""],
    cap: Int[Array, ""],
    temperature: float,
) -> Int[Array, "P"]:
    """Splits the removals over frame pairs, cheap ones first: softmax shares by largest remainder, in rounds.

    Args:
      difficulty: transport cost of each pair.
      active: pairs of real frames.
      removals: tokens to remove in all; what fits nowhere is given up.
      cap: most removals of one pair.
      temperature: of the softmax.
    """

    def hand_out(state):
        given, active, left, _ = state
        share = jax.nn.softmax(jnp.where(active, -difficulty / temperature, -jnp.inf)) * left
        share = jnp.where(active, share, 0.0)
        whole = jnp.floor(share)
        rest = left - whole.sum().astype(jnp.int32)
        extra = active & (rank_descending(jnp.where(active, share - whole, -1.0)) < rest)
        quota = whole.astype(jnp.int32) + extra
        give = jnp.where(active, jnp.minimum(quota, cap - given), 0)
        given = given + give
        # A negative remainder (float rounding) may hand out more than is left; the reference lets it.
        left = jnp.sum(quota - give)
        return given, active & (given < cap), left, give.sum()

    def more(state):
        _, active, left, moved = state
        return (left > 0) & active.any() & (moved > 0)

    zeros = jnp.zeros(difficulty.shape, jnp.int32)
    start = (zeros, active, jnp.asarray(removals, jnp.int32), jnp.int32(1))
    # A round that leaves anything to hand out has filled a pair.
    return bounded_while(more, hand_out, start, rounds=difficulty.shape[0])[0]


def cross_cosine(x: Float[Array, "T N D"], order: Int[Array, "T K"], norms: Float[Array, "T N"]) -> Array:
    """(T-1, K, K) cosine of chosen token i of frame t with chosen token j of frame t + 1."""
    frames, steps = order.shape
    if frames < 2:
        return jnp.zeros((0, steps, steps), jnp.float32)
    chosen = jnp.take_along_axis(x, order[:, :, None], axis=1)
    size = jnp.take_along_axis(norms, order, axis=1)
    gram = jnp.swapaxes(similarity.neighbour_gram(chosen), -1, -2)
    return gram / (size[:-1, :, None] * size[1:, None, :])


def centroids(tokens: int, grid: tuple[int, int]) -> Float[Array, "N 2"]:
    """Row and column of each token on a grid, from 0 to 1 where it has that many tokens."""
    rows, columns = np.divmod(np.arange(tokens), grid[1])
    places = np.stack([rows / max(1, grid[0] - 1), columns / max(1, grid[1] - 1)], axis=-1)
    return jnp.asarray(places.astype(np.float32))


def pair_distances(places: Float[Array, "T K 2"]) -> Float[Array, "P K K"]:
    """Distance in the frame between tokens of neighbouring frames."""
    gap = places[:-1, :, None] - places[1:, None, :]
    return jnp.sqrt(jnp.sum(gap * gap, axis=-1))


def roots(
    self_id: Int[Array, "T K"], matched: Bool[Array, "P K"], parent: Int[Array, "P K"], absorbed: Bool[Array, "P K"]
) -> tuple[Int[Array, "T K"], Bool[Array, "T K"]]:
    """Global id at the end of each token's parent chain, and whether that end is a dropped child."""

    def frame(before, now):
        own, matched, parent, absorbed = now
        root, dropped = before
        after = jnp.where(absorbed, root[parent], own), jnp.where(absorbed, dropped[parent], matched)
        return after, after

    first = self_id[0], jnp.zeros(self_id.shape[1], bool)
    _, later = lax.scan(frame, first, (self_id[1:], matched, parent, absorbed))
    root, dropped = (jnp.concatenate([start[None], rest]) for start, rest in zip(first, later, strict=True))
    return root, dropped
