"""What every output row of a reducer is made of: weights in the tokens of a video, at all ratios in one program."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.ops.pool import find_pooling, pool_tokens
from jvidprune.reducers.checks import check_needs
from jvidprune.reducers.programs import bucket_capacity
from jvidprune.reducers.protocol import (
    Reducer,
    StagedReducer,
    check_ratio,
    check_weighs_features,
    title_of,
    with_defaults,
)
from jvidprune.tokens import Budget, Plan, Reduced, VideoTokens, stack_budgets

LINEAR = 0.02
"""Largest relative error that bfloat16 may leave between a row and the weighted sum that it is said to be."""


class Composition(NamedTuple):
    """A reduction and the weights of its rows.

    Attributes:
      reduced: as from `sweep`, with a leading axis R of ratios.
      weights: (R, K, S) float32 weight of every source in every row, zeros on padding.
      grid: (h, w) of the sources of a frame, S = T * h * w: the tokens, or the cells before pooling for a method that
        makes its tokens of these (AOT).
      error: () float32, the largest distance between a row and its weighted sum, over the largest row.
    """

    reduced: Reduced
    weights: Float[Array, "R K S"]
    grid: tuple[int, int]
    error: Float[Array, ""]


def compositions(reducer: Reducer, video: VideoTokens, ratios: Sequence[float]) -> Composition:
    """Reduces a video to several ratios and tells what each row is made of.

    The rows of any plan are linear in the features, so that the plan which was made on the features is applied to unit
    vectors as well.

    Args:
      reducer: any whose tokens are weighted sums.
      video: features and the evidence that the reducer needs.
      ratios: any number of ratios in (0, 1].

    Raises:
      JvidpruneError: no ratio or an impossible one, missing evidence, or a method whose tokens are no weighted sums of
        the video's.
    """
    if not len(ratios):
        raise JvidpruneError("a composition needs at least one retention ratio, got none.")
    check_weighs_features(reducer, "weights cannot be told of")
    check_needs(reducer, video)
    layout = video.layout()
    budgets = stack_budgets([reducer.budget(layout, check_ratio(ratio)) for ratio in ratios])
    capacity = bucket_capacity(max(reducer.capacity(layout, float(ratio)) for ratio in ratios), layout.total)
    grid = video.grid
    if "features_unpooled" in reducer.needs and video.unpooled_grid is not None:
        grid = video.unpooled_grid
    reduced, weights, error = _run(
        with_defaults(reducer).without_numbers(), video, budgets, capacity=capacity, grid=grid
    )
    if not float(error) <= LINEAR:
        raise JvidpruneError(f"{title_of(reducer)} makes tokens that are no weighted sums of the video's.")
    return Composition(reduced, weights, grid, error)


@functools.partial(jax.jit, static_argnames=("reducer", "capacity", "grid"))
def _run(
    reducer: Reducer, video: VideoTokens, budgets: Budget, *, capacity: int, grid: tuple[int, int]
) -> tuple[Reduced, Array, Array]:
    own, units, source = with_defaults(reducer), _units(video, grid), _sources(video, grid)
    shared = reducer.prepare(video, capacity=capacity) if isinstance(reducer, StagedReducer) else None

    def decide(budget: Budget) -> Plan:
        if isinstance(reducer, StagedReducer):
            return reducer.decide(shared, budget, capacity=capacity)
        return reducer.plan(video, budget, capacity=capacity)

    def one(budget: Budget) -> tuple[Reduced, Array, Array]:
        plan = decide(budget)
        reduced = own.apply(plan, video)._replace(diagnostics={})
        weights = own.apply(plan, units).tokens.astype(jnp.float32)
        rows = reduced.tokens.astype(jnp.float32)
        made = jnp.matmul(weights, source, precision=lax.Precision.HIGHEST)
        apart, size = jnp.linalg.norm(made - rows, axis=-1), jnp.linalg.norm(rows, axis=-1)
        return reduced, weights, jnp.max(apart) / jnp.maximum(jnp.max(size), 1e-9)

    reduced, weights, errors = lax.map(one, budgets)
    return reduced, weights, jnp.max(errors)


def _sources(video: VideoTokens, grid: tuple[int, int]) -> Float[Array, "S D"]:
    array = video.features if grid == video.grid else video.evidence["features_unpooled"]
    return array.reshape(-1, array.shape[-1]).astype(jnp.float32)


def _units(video: VideoTokens, grid: tuple[int, int]) -> VideoTokens:
    """The video with a unit vector for every source in place of its features; newline vectors are no source."""
    frames, cells = video.features.shape[0], grid[0] * grid[1]
    width = frames * cells
    unit = jnp.eye(width, dtype=jnp.float32).reshape(frames, cells, width)
    known: dict[str, Any] = dict(video.evidence)
    if "newline" in known:
        known["newline"] = jnp.zeros(width, jnp.float32)
    if grid == video.grid:
        return dataclasses.replace(video, features=unit, evidence=known)
    pooled = pool_tokens(unit, grid, find_pooling(grid, video.grid))
    return dataclasses.replace(video, features=pooled, evidence=known | {"features_unpooled": unit})
