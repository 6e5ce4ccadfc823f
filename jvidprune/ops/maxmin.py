"""Greedy max-min selection: every step takes the token that is farthest from what was taken before.

FlashVID's attention- and diversity-based selection (arXiv 2602.08024). The order of choice does not depend on how many
tokens are kept, so one run serves every retention ratio: a budget keeps a prefix of the order.
"""

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jvidprune.ops.branch import on_cpu
from jvidprune.ops.cluster import k_smallest
from jvidprune.ops.select import COMPARED, first_argmax
from jvidprune.ops.similarity import gram_norms

Repeat = Literal["guard", "free", "never"]


def second_extrema(values: Float[Array, "... N"]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Second smallest and second largest entry of the last axis, repeated values counted; NaN is ignored.

    Written as extremum, count and extremum of the rest: sorts and top_k stay scalar on XLA:CPU. With fewer than two
    numbers the results are +inf and -inf.
    """
    known = ~jnp.isnan(values)
    if not on_cpu() and values.shape[-1] <= COMPARED:
        # One short loop for both takes compilers less time than the six reductions below, and room for both matrices.
        both = jnp.where(known, jnp.stack([values, -values]), jnp.inf)
        small, large = k_smallest(both, 2)[..., -1]
        return small, -large

    def second(v: Array) -> Array:
        low = jnp.min(v, axis=-1, keepdims=True)
        at_low = v == low
        rest = jnp.min(jnp.where(at_low, jnp.inf, v), axis=-1)
        return jnp.where(at_low.sum(-1) > 1, low[..., 0], rest)

    return second(jnp.where(known, values, jnp.inf)), -second(jnp.where(known, -values, jnp.inf))


def maxmin_order(
    gram: Float[Array, "T N N"],
    weight: Float[Array, "T N"] | None,
    *,
    steps: int,
    weight_inside: bool = False,
    repeat: Repeat = "guard",
    eps: float = 0.0,
) -> Int[Array, "T k"]:
    """Order in which greedy max-min takes `steps` tokens of every frame.

    The distance is d_ij = 1 - cos(x_i, x_j); candidate j scores weight_j * min_i d_ij over the taken i, or
    min_i (d_ij * weight_j) with `weight_inside` (another thing where weights are negative). The first token has the
    largest second smallest entry of d_ij * weight_j over i. Ties go to the lowest index. A prefix of the order is the
    order of fewer steps. Only the Gram matrix is held: a step reads one row of it per frame.

    Args:
      gram: inner products of the tokens of each frame, float32.
      weight: of the candidates, any sign; None means 1.
      steps: static number of tokens to take, at most N.
      weight_inside: as above.
      repeat: "guard" scores taken tokens -1 before every step, as FlashVID's "div" and "attn_div" do (below any
        non-negative score, but not below every negative one); "free" leaves them, as its "attn_div_v2" does, so that a
        token can be taken again once all others score below 0; "never" excludes them.
      eps: floor of each norm; 0 reproduces the reference, where a zero token has NaN distances, which win every step:
        it is taken first and then tokens in index order (the same token for "free").

    Returns:
      (T, steps) int32 places in the frame.
    """
    frames, n, _ = gram.shape
    norm = jnp.sqrt(gram_norms(gram))
    norm = jnp.maximum(norm, eps) if eps > 0 else norm
    weight = jnp.ones((frames, n), jnp.float32) if weight is None else weight
    if steps == 0:
        return jnp.zeros((frames, 0), jnp.int32)
    places = jnp.arange(n, dtype=jnp.int32)

    def distance_to(last: Array) -> Array:
        row = jnp.take_along_axis(gram, last[:, None, None], axis=1)[:, 0]
        cosine = row / (jnp.take_along_axis(norm, last[:, None], axis=1) * norm)
        # The reference's self-distance is rounding noise of either sign; 0 keeps repeats deterministic.
        return jnp.where((places == last[:, None]) & (norm > 0), 0.0, 1.0 - cosine)

    def choose(score: Array) -> Array:
        return first_argmax(jnp.where(jnp.isnan(score), jnp.inf, score))

    first = choose(_first_scores(gram, norm, weight))

    def step(state, _):
        nearest, taken, last = state
        row = distance_to(last)
        nearest = jnp.minimum(nearest, row * weight if weight_inside else row)
        taken = taken | (places == last[:, None])
        score = nearest if weight_inside else nearest * weight
        if repeat != "free":
            score = jnp.where(jnp.isnan(score), jnp.inf, score)
            score = jnp.where(taken, -1.0 if repeat == "guard" else -jnp.inf, score)
        return (nearest, taken, choose(score)), last

    start = (jnp.full_like(weight, jnp.inf), jnp.zeros_like(weight, bool), first)
    _, order = lax.scan(step, start, length=steps)
    return order.T


def _first_scores(gram: Array, norm: Array, weight: Array) -> Array:
    """Second smallest entry of d_ij * weight_j over i, NaN where token j has no direction."""
    n = gram.shape[-1]
    if n == 1:
        return jnp.zeros_like(weight)
    itself = jnp.eye(n, dtype=bool)
    # The matrix is symmetric, and scaling a row by a number keeps or reverses its order: reduce once, scale after.
    distance = jnp.where(itself, 0.0, 1.0 - gram / (norm[:, :, None] * norm[:, None, :]))
    small, large = second_extrema(distance)
    return jnp.where(norm > 0, weight * jnp.where(weight >= 0, small, large), jnp.nan)
