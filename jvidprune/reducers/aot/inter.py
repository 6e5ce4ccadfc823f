"""AOT's step 4: along clips later frames give their redundant tokens to the key frame's tokens, in frame order."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.layout import one_by_one
from jvidprune.ops.quarters import widen
from jvidprune.ops.select import entry_of_rank
from jvidprune.ops.similarity import cosine_from_gram, dot_f32, squared_norms
from jvidprune.ops.transport import Rows, Transport, TransportResult, blend, normalise_plan
from jvidprune.reducers.aot.clips import Clips
from jvidprune.reducers.aot.pooling import weigh

Distinct = Literal["pmax", "entropy", "cost", "unmatched"]

_SCORES: dict[str, Callable[[Array, TransportResult, Array], Array]] = {
    "pmax": lambda share, result, cost: share.max(-1),
    "entropy": lambda share, result, cost: (share * jnp.log(jnp.maximum(share, 1e-30))).sum(-1),
    "cost": lambda share, result, cost: -(share * cost).sum(-1),
    "unmatched": lambda share, result, cost: -result.unmatched,
}
"""How sure a token is of its place among the anchors; the least sure tokens stay distinct. The reference uses pmax."""


class ClipRules(NamedTuple):
    """How later frames are merged; see `AOT`.

    Attributes:
      transport: of their tokens onto the key frame's.
      distinct: what decides which of them stay distinct.
      scale: s, weight of what anchors receive.
      keep: (R + 1,) int32, how many stay distinct by the number of tokens.
    """

    transport: Transport
    distinct: Distinct
    scale: float | Array
    keep: Int[Array, "R"]


class Step(NamedTuple):
    """One frame onto the anchors of its clip; shapes: R source slots, A anchor slots.

    Attributes:
      anchors: (A, D) float32 anchors afterwards.
      weight: (R, A) coefficient of each merged token in each new anchor.
      divisor: (A,) what anchors were divided by.
      keep: (R,) bool, tokens that stay distinct.
      score: (R,) float32 what they were judged by.
      result: plan (R, A) and diagnostics.
    """

    anchors: Float[Array, "A D"]
    weight: Float[Array, "R A"]
    divisor: Float[Array, "A"]
    keep: Bool[Array, "R"]
    score: Float[Array, "R"]
    result: TransportResult


def step(anchors: Rows, sources: Rows, rules: ClipRules) -> Step:
    """Transport of one frame's tokens onto the anchors.

    Tokens whose score is strictly below the entry of rank ceil(q (R - 1)) stay distinct, which equals the reference's
    interpolated quantile; all others are spread over all anchors with their whole normalised row.
    """
    gram = one_by_one(dot_f32, sources.features, anchors.features)
    cosines = cosine_from_gram(gram, squared_norms(sources.features), squared_norms(anchors.features), 1e-12)
    x = sources._replace(cosines=cosines)
    problem = rules.transport.problem(x, anchors)
    result = rules.transport.solver(*problem, *rules.transport.places(x, anchors))
    share = normalise_plan(result.plan, "row")
    score = _SCORES[rules.distinct](share, result, problem.cost)
    ranked = jnp.where(x.mask, score, jnp.inf)
    threshold = entry_of_rank(ranked, jnp.clip(jnp.asarray(rules.keep)[x.mask.sum()], 0, ranked.shape[0] - 1))
    keep = x.mask & (score < threshold)
    merged = (x.mask & ~keep)[:, None] & anchors.mask[None]
    weight = jnp.where(merged, rules.transport.weights(result.plan), 0.0)
    own, taken = blend(weight, rules.scale)
    moved = own[:, None] * anchors.features + one_by_one(weigh, taken.T, sources.features)
    return Step(moved, taken, 1.0 / own, keep, score, result)


class Inter(NamedTuple):
    """The stage for a whole video; n slots a frame.

    Attributes:
      keep: (T, n) bool, tokens of later frames that stay distinct.
      mix: (T, n, n) float32 final weight of each token in each anchor of its clip; the diagonal of key frames holds the
        anchors' own weights.
      score: (T, n) what keeping was decided by.
      iterations, row_error, column_error: (T,) of the solver, -1 on frames without a step.
      converged, underflow, gap: (T,) of the solver, True and 0 on frames without a step; see `TransportResult`.
      plan: (T, n, n) transport plans.
    """

    keep: Bool[Array, "T n"]
    mix: Float[Array, "T n n"]
    score: Float[Array, "T n"]
    iterations: Int[Array, "T"]
    row_error: Float[Array, "T"]
    column_error: Float[Array, "T"]
    converged: Bool[Array, "T"]
    underflow: Float[Array, "T"]
    gap: Float[Array, "T"]
    plan: Float[Array, "T n n"]


def merge_clips(
    tokens: Callable[[Int[Array, ""]], Float[Array, "n D"]],
    mask: Bool[Array, "T n"],
    place: Float[Array, "T n 2"],
    saliency: Float[Array, "T n"],
    clips: Clips,
    rules: ClipRules,
) -> Inter:
    """All clips of a video by one scan over its frames, whose carry is a clip's anchors.

    Args:
      tokens: pooled tokens of a frame, so that one frame of them exists at a time.
      mask, place, saliency: of every slot.
      clips: roles of the frames.
      rules: of the merging.
    """
    t, n = mask.shape
    order = jnp.arange(t, dtype=jnp.int32) if clips.order is None else clips.order

    def rows(t: Array) -> Rows:
        return Rows(tokens(t), place[t], jnp.full(n, t, jnp.float32), saliency[t], mask[t])

    def frame(carry: Rows, args: tuple) -> tuple[Rows, tuple]:
        number, key, later = args
        current = rows(number)
        done = step(carry, current, rules)
        features = jnp.where(key, current.features, jnp.where(later, done.anchors, carry.features))
        following = jax.tree.map(lambda new, old: jnp.where(key, new, old), current, carry)
        out = (
            done.keep & later,
            jnp.where(later, done.weight, 0.0),
            jnp.where(later, done.divisor, 1.0),
            jnp.where(later & current.mask, done.score, jnp.nan),
            jnp.where(later, done.result.iterations, -1),
            jnp.where(later, done.result.row_error, -1.0),
            jnp.where(later, done.result.column_error, -1.0),
            done.result.converged | ~later,
            jnp.where(later, done.result.underflow, 0.0),
            jnp.where(later, done.result.gap, 0.0),
            jnp.where(later, done.result.plan, 0.0),
        )
        return following._replace(features=features), out

    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(rows, order[0]))
    turned = order, clips.key[order], clips.later[order]
    _, (keep, weight, divisor, score, *solved) = lax.scan(frame, start, turned)

    def backwards(growth: Array, args: tuple) -> tuple[Array, Array]:
        weight, divisor, key, last = args
        growth = jnp.where(last, jnp.ones(n), growth)
        final = jnp.where(key, jnp.diag(growth), weight * growth[None])
        return growth / divisor, final

    # The place of a clip's last frame is the last in the order of merging too.
    inputs = weight, divisor, turned[1], clips.last
    _, mix = lax.scan(backwards, jnp.ones(n), inputs, reverse=True)
    done = Inter(keep, mix, score, *solved)
    if clips.order is not None:
        done = jax.tree.map(lambda leaf: leaf[jnp.argsort(order)], done)
    return done._replace(mix=jnp.where(mask[..., None], done.mix, 0.0))


def widen_slots(inter: Inter, slots: int) -> Inter:
    """A stage on fewer slots a frame as one on `slots`, the others unused."""
    return inter._replace(
        keep=widen(inter.keep, slots, (1,), False),
        mix=widen(inter.mix, slots, (1, 2)),
        score=widen(inter.score, slots, (1,), jnp.nan),
        plan=widen(inter.plan, slots, (1, 2)),
    )
