"""Density-peak clustering with k nearest neighbours (DPC-kNN), masked, with a traced number of clusters.

Used by FlashVID (arXiv 2602.08024), FastVID (2503.11187), HoliTom (2505.21334) and PruneVid (2412.16117). The random
density noise of the originals is off unless a key is given; ties go to the lower index.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jvidprune.ops.branch import on_cpu
from jvidprune.ops.select import first_argmin, rank_descending

_FAR = jnp.inf


def k_smallest(values: Float[Array, "... N M"], k: int) -> Float[Array, "... N k"]:
    """The `k` smallest entries over the last axis, ascending, `k` small and static.

    An insertion scan that carries k running minima: it vectorises on XLA:CPU where top_k and sort do not. The minima
    are separate arrays; stacked into one they cost three times as much. On accelerators a minimum is taken k times, the
    first entry that equals it left out of the next round; TPUs run top_k as a sort of everything. It is a loop because
    compilers work a chain of such rounds out for ten seconds.
    """
    if not on_cpu():

        def smallest(rest: Array, _: None) -> tuple[Array, Array]:
            first = first_argmin(rest)[..., None]
            return jnp.where(jnp.arange(rest.shape[-1]) == first, _FAR, rest), jnp.min(rest, axis=-1)

        return jnp.moveaxis(lax.scan(smallest, values, None, length=k)[1], 0, -1)
    shape = values.shape[:-1]

    def insert(best, column):
        kept = []
        for smallest in best:
            kept.append(jnp.minimum(smallest, column))
            column = jnp.maximum(smallest, column)
        return tuple(kept), None

    start = tuple(jnp.full(shape, _FAR, values.dtype) for _ in range(k))
    best, _ = lax.scan(insert, start, jnp.moveaxis(values, -1, 0))
    return jnp.stack(best, axis=-1)


def density(
    distance: Float[Array, "N N"],
    valid: Bool[Array, "N"],
    neighbours: int | Int[Array, ""],
    *,
    max_neighbours: int,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "N"]:
    """exp(-mean of the `neighbours` smallest squared distances), the token itself included; 0 where invalid.

    Args:
      distance: scaled pairwise distances, zero diagonal.
      valid: tokens that take part.
      neighbours: traced count, at least 1; it is limited by the number of valid tokens.
      max_neighbours: static bound of `neighbours`.
      key: adds the reference's uniform noise in [0, 1e-6).
    """
    k = jnp.clip(jnp.minimum(neighbours, valid.sum()), 1, max_neighbours)
    squared = jnp.where(valid[None, :], distance * distance, _FAR)
    near = k_smallest(squared, min(max_neighbours, distance.shape[-1]))
    used = jnp.arange(near.shape[-1]) < k
    rho = jnp.exp(-jnp.sum(jnp.where(used, near, 0.0), axis=-1) / k)
    if key is not None:
        rho = rho + 1e-6 * jax.random.uniform(key, rho.shape)
    return jnp.where(valid, rho, 0.0)


def separation(
    distance: Float[Array, "N N"], valid: Bool[Array, "N"], rho: Float[Array, "N"], *, break_ties: bool
) -> Float[Array, "N"]:
    """Distance to the nearest denser token; the largest distance of the set for the densest one.

    Args:
      break_ties: count an equally dense token of lower index as denser, so that equal densities still form a strict
        order (the references break such ties by noise). False keeps the strict comparison alone.
    """
    pair = valid[:, None] & valid[None, :]
    denser = rho[None, :] > rho[:, None]
    if break_ties:
        n = rho.shape[0]
        lower = jnp.arange(n)[None, :] < jnp.arange(n)[:, None]
        denser = denser | ((rho[None, :] == rho[:, None]) & lower)
    furthest = jnp.max(jnp.where(pair, distance, 0.0))
    nearest = jnp.min(jnp.where(pair & denser, distance, _FAR), axis=-1)
    return jnp.where(jnp.isinf(nearest), furthest, nearest)


def peak_scores(
    distance: Float[Array, "N N"],
    valid: Bool[Array, "N"],
    neighbours: int | Int[Array, ""],
    *,
    max_neighbours: int,
    break_ties: bool = False,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "N"]:
    """Density times separation, -inf where invalid: cluster centres are its largest entries."""
    rho = density(distance, valid, neighbours, max_neighbours=max_neighbours, key=key)
    delta = separation(distance, valid, rho, break_ties=break_ties)
    return jnp.where(valid, rho * delta, -_FAR)


def assign_to_centres(
    distance: Float[Array, "N N"],
    centre: Bool[Array, "N"],
    *,
    rank: Int[Array, "N"] | None = None,
) -> Int[Array, "N"]:
    """Nearest centre of every token as a token index; a centre belongs to itself.

    Args:
      distance: pairwise distances.
      centre: mask of centres; with none every entry is N.
      rank: order of preference among equally near centres (lower first); by default the token index.
    """
    n = distance.shape[-1]
    masked = jnp.where(centre[None, :], distance, _FAR)
    if rank is None:
        nearest = first_argmin(masked)
    else:
        low = jnp.min(masked, axis=-1, keepdims=True)
        tied = (masked == low) & centre[None, :]
        best = jnp.min(jnp.where(tied, rank[None, :], n), axis=-1)
        nearest = jnp.min(jnp.where(tied & (rank[None, :] == best[:, None]), jnp.arange(n), n), axis=-1)
    nearest = jnp.where(centre, jnp.arange(n), nearest)
    return jnp.where(centre.any(), nearest, n).astype(jnp.int32)


def centre_mask(scores: Float[Array, "N"], count: int | Int[Array, ""]) -> tuple[Bool[Array, "N"], Int[Array, "N"]]:
    """The `count` best-scored tokens as a mask, with every token's rank; invalid ones must score -inf."""
    rank = rank_descending(scores)
    return (rank < count) & (scores > -_FAR), rank
