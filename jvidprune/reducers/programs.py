"""The compiled programs of a reducer: one budget or many, many questions, many videos; nothing runs outside of them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jvidprune.ops.branch import on_cpu
from jvidprune.ops.layout import row_major
from jvidprune.ops.similarity import squared_norms
from jvidprune.reducers.protocol import (
    Reducer,
    StagedReducer,
    gradient_gate,
    with_defaults,
)
from jvidprune.tokens import Budget, Plan, Reduced, VideoTokens

NOT_FINITE = "not_finite"
"""Name in the diagnostics of what a checked program found; see `check_finite`."""


def bucket_capacity(capacity: int, total: int) -> int:
    """Rounds a capacity up to an eighth of all tokens, so that nearby ratios share one compilation."""
    step = max(1, -(-total // 8))
    return max(capacity, min(-(-capacity // step) * step, total))


_STATIC = ("reducer", "capacity", "diagnostics", "single", "checked")


@functools.partial(jax.jit, static_argnames=_STATIC)
def run_budgets(
    reducer: Reducer,
    video: VideoTokens,
    budgets: Budget,
    *,
    capacity: int,
    diagnostics: bool = False,
    single: bool = False,
    checked: bool = False,
) -> Reduced:
    """`Reduced` for every entry of a stacked budget; one compilation per shape and reducer, none per ratio.

    Args:
      reducer, capacity, diagnostics: as for `reduce`.
      video: the tokens.
      budgets: stacked.
      single: `budgets` is one budget, and the result has no axis for it.
      checked: look for NaN and infinite input; `diagnostics["not_finite"]` then holds, for the features and the needed
        evidence in order of their names, how many rows hold any, see `check_finite`.
    """
    held = gradient_gate(reducer)
    if isinstance(reducer, StagedReducer):
        shared = held(reducer.prepare(video, capacity=capacity))

        def decide(budget: Budget) -> Plan:
            return reducer.decide(shared, held(budget), capacity=capacity)
    else:

        def decide(budget: Budget) -> Plan:
            return reducer.plan(held(video), held(budget), capacity=capacity)

    def one(budget: Budget) -> Reduced:
        return apply(decide(budget), video)

    def apply(plan: Plan, video: VideoTokens) -> Reduced:
        return _finish(with_defaults(reducer).apply(plan, video), diagnostics)

    if single:
        reduced = one(budgets)
    elif on_cpu() or with_defaults(reducer).wide_decisions:
        reduced = lax.map(one, budgets)
    else:
        # Decisions of all budgets side by side are small; D-wide arithmetic would make scatters and wide temporaries.
        plans = jax.vmap(decide)(budgets)
        # Rows of tokens outside of the loop and frames of them inside: else a TPU's loop holds the video in both forms.
        rows = row_major(video.features.reshape(-1, video.features.shape[-1]))
        reduced = lax.map(
            lambda plan: apply(plan, dataclasses.replace(video, features=rows.reshape(video.features.shape))), plans
        )
    if not checked:
        return reduced
    found = _suspects(reducer, video)
    return _told(reduced, found if single else jnp.broadcast_to(found, (*reduced.index.shape[:-1], *found.shape)))


@functools.partial(jax.jit, static_argnames=_STATIC)
def run_questions(
    reducer: Reducer,
    video: VideoTokens,
    asked: Any,
    budgets: Budget,
    *,
    capacity: int,
    diagnostics: bool,
    single: bool,
    checked: bool,
) -> Reduced:
    """`run_budgets` for every question of a stack, one after the other in one program."""

    def shown(asked: Any) -> VideoTokens:
        return dataclasses.replace(video, evidence=video.evidence | asked)

    def one(asked: Any) -> Reduced:
        return run_budgets(reducer, shown(asked), budgets, capacity=capacity, diagnostics=diagnostics, single=single)

    reduced = lax.map(one, asked)
    if not checked:
        return reduced
    found = _suspects(reducer, shown(asked))
    return _told(reduced, jnp.broadcast_to(found, (*reduced.index.shape[:-1], *found.shape)))


@functools.partial(jax.jit, static_argnames=("reducer", "capacity", "diagnostics", "checked"))
def run_batch(
    reducer: Reducer, videos: VideoTokens, budgets: Budget, *, capacity: int, diagnostics: bool, checked: bool
) -> Reduced:
    """`Reduced` for every video of a batch at its own budget, leading axis B; on CPU one after the other."""

    def one(video: VideoTokens, budget: Budget) -> Reduced:
        held = gradient_gate(reducer)
        plan = reducer.plan(*held((video, budget)), capacity=capacity)
        reduced = _finish(with_defaults(reducer).apply(plan, video), diagnostics)
        return _told(reduced, _suspects(reducer, video)) if checked else reduced

    if on_cpu():
        return lax.map(lambda pair: one(*pair), (videos, budgets))
    return jax.vmap(one)(videos, budgets)


def _finish(reduced: Reduced, diagnostics: bool) -> Reduced:
    return reduced if diagnostics else reduced._replace(diagnostics={})


def arrays_read(reducer: Reducer, video: VideoTokens) -> list[tuple[str, jax.Array]]:
    """The arrays that a reducer reads, by name."""
    return [("features", video.features), *((name, video.evidence[name]) for name in sorted(reducer.needs))]


def _suspects(reducer: Reducer, video: VideoTokens) -> Int[Array, "A"]:
    """How many rows of each array have no finite sum of squares: all that hold NaN or infinite numbers.

    Such sums are a pass at the speed of memory, which many methods make anyway; counting numbers takes 40 times as long
    on CPU. Rows of finite numbers beyond 1e19 are counted too: the count only tells that a closer look is due.
    """
    found = []
    for _, array in arrays_read(reducer, video):
        rows = squared_norms(array) if jnp.issubdtype(array.dtype, jnp.floating) else jnp.zeros(1)
        found.append(jnp.sum(~jnp.isfinite(rows), dtype=jnp.int32))
    return jnp.stack(found)


def _told(reduced: Reduced, found: Int[Array, "... A"]) -> Reduced:
    return reduced._replace(diagnostics=reduced.diagnostics | {NOT_FINITE: found})
