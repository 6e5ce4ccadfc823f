"""AOT along clips: later frames give their redundant tokens to the key frame's anchors by transport, in frame order."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.quarters import widen
from jvidprune.ops.segment import segment_ids
from jvidprune.ops.similarity import cosine_from_gram, dot_f32, squared_norms
from jvidprune.ops.transport import Projection, Rows, TransportResult, blend, cost_matrix, normalise_plan, strongest
from jvidprune.reducers.aot_intra import weigh

Distinct = Literal["pmax", "entropy", "cost", "unmatched"]

_SCORES: dict[str, Callable[[Array, TransportResult, Array], Array]] = {
    "pmax": lambda share, result, cost: share.max(-1),
    "entropy": lambda share, result, cost: (share * jnp.log(jnp.maximum(share, 1e-30))).sum(-1),
    "cost": lambda share, result, cost: -(share * cost).sum(-1),
    "unmatched": lambda share, result, cost: -result.unmatched,
}
"""How sure a token is of its place among the anchors; the least sure tokens stay distinct. The reference uses pmax."""

DISTINCT = tuple(_SCORES)


class ClipParts(NamedTuple):
    """The exchangeable parts of the stage; see `AOT`."""

    cost: Any
    marginals: Any
    solver: Any
    projection: Projection
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


class Clips(NamedTuple):
    """Which frame leads which.

    Attributes:
      key: (T,) bool, the frame whose tokens are the anchors: the first of its clip that has any (Q7), or the medoid.
      later: (T,) bool, other frames that have tokens.
      last: (T,) bool, last frame of its clip.
      merges: (T,) bool, its clip has a key frame and at least one later frame.
      lead: (T,) int32 key frame of its clip.
      end: (T,) int32 last frame of its clip.
      ids: (T,) int32 clip.
      order: (T,) int32 frames as they are merged, the key frame of every clip first, or None where that is their order.
    """

    key: Bool[Array, "T"]
    later: Bool[Array, "T"]
    last: Bool[Array, "T"]
    merges: Bool[Array, "T"]
    lead: Int[Array, "T"]
    end: Int[Array, "T"]
    ids: Int[Array, "T"]
    order: Int[Array, "T"] | None


def clip_roles(
    starts: Bool[Array, "T"], occupied: Bool[Array, "T"], likeness: Float[Array, "T T"] | None = None
) -> Clips:
    """Roles of the frames.

    Args:
      starts: first frame of every clip but the first, which starts anyway.
      occupied: frames that have tokens; others are no key frames.
      likeness: similarities of the frames; with them the key frame is the medoid of its clip, the frame of the largest
        sum over the clip, the earliest of equals.
    """
    frames = jnp.arange(starts.shape[0], dtype=jnp.int32)
    ids = segment_ids(starts[1:])
    fits = occupied
    if likeness is not None:
        together = (ids[:, None] == ids[None]) & occupied
        central = jnp.where(occupied, jnp.where(together, likeness, 0.0).sum(1), -jnp.inf)
        fits = occupied & (central == jax.ops.segment_max(central, ids, num_segments=ids.shape[0])[ids])
    before = jnp.cumsum(fits) - fits
    first = lax.cummax(jnp.where(jnp.append(True, ids[1:] != ids[:-1]), frames, 0))
    turn = before - before[first]
    key = fits & (turn == 0)
    later = occupied & ~key
    last = jnp.append(ids[1:] != ids[:-1], True)
    count = jax.ops.segment_sum(occupied.astype(jnp.int32), ids, num_segments=ids.shape[0])
    lead = jax.ops.segment_max(jnp.where(key, frames, -1), ids, num_segments=ids.shape[0])
    end = jax.ops.segment_max(frames, ids, num_segments=ids.shape[0])
    order = None if likeness is None else jnp.argsort(2 * ids + ~key, stable=True).astype(jnp.int32)
    return Clips(key, later, last, count[ids] > 1, jnp.maximum(lead[ids], 0), end[ids], ids, order)


def step(anchors: Rows, sources: Rows, parts: ClipParts) -> Step:
    """Transport of one frame's tokens onto the anchors.

    Tokens whose score is strictly below the entry of rank ceil(q (R - 1)) stay distinct, which equals the reference's
    interpolated quantile; all others are spread over all anchors with their whole normalised row.
    """
    gram = dot_f32(sources.features, anchors.features)
    cosines = cosine_from_gram(gram, squared_norms(sources.features), squared_norms(anchors.features), 1e-12)
    x = sources._replace(cosines=cosines)
    priced = cost_matrix(parts.cost, x, anchors)
    result = parts.solver(priced, *parts.marginals(x, anchors))
    share = normalise_plan(result.plan, "row")
    score = _SCORES[parts.distinct](share, result, priced)
    ranked = jnp.sort(jnp.where(x.mask, score, jnp.inf))
    threshold = ranked[jnp.clip(jnp.asarray(parts.keep)[x.mask.sum()], 0, ranked.shape[0] - 1)]
    keep = x.mask & (score < threshold)
    merged = (x.mask & ~keep)[:, None] & anchors.mask[None]
    weight = jnp.where(merged, normalise_plan(result.plan, parts.projection), 0.0)
    own, taken = blend(weight, parts.scale)
    moved = own[:, None] * anchors.features + weigh(taken.T, sources.features)
    return Step(moved, taken, 1.0 / own, keep, score, result)


class Inter(NamedTuple):
    """The stage for a whole video; n slots a frame.

    Attributes:
      keep: (T, n) bool, tokens of later frames that stay distinct.
      mix: (T, n, n) float32 final weight of each token in each anchor of its clip; the diagonal of key frames holds the
        anchors' own weights.
      score: (T, n) what keeping was decided by.
      iterations, row_error, column_error: (T,) of the solver, -1 on frames without a step.
      converged, underflow: (T,) of the solver, True and 0 on frames without a step; see `TransportResult`.
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
    plan: Float[Array, "T n n"]


def merge_clips(
    tokens: Callable[[Int[Array, ""]], Float[Array, "n D"]],
    mask: Bool[Array, "T n"],
    place: Float[Array, "T n 2"],
    saliency: Float[Array, "T n"],
    clips: Clips,
    parts: ClipParts,
) -> Inter:
    """All clips of a video by one scan over its frames, whose carry is a clip's anchors.

    Args:
      tokens: pooled tokens of a frame, so that one frame of them exists at a time.
      mask, place, saliency: of every slot.
      clips: roles of the frames.
      parts: the transport.
    """
    t, n = mask.shape
    order = jnp.arange(t, dtype=jnp.int32) if clips.order is None else clips.order

    def rows(t: Array) -> Rows:
        return Rows(tokens(t), place[t], jnp.full(n, t, jnp.float32), saliency[t], mask[t])

    def frame(carry: Rows, args: tuple) -> tuple[Rows, tuple]:
        number, key, later = args
        current = rows(number)
        done = step(carry, current, parts)
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


def output_rows(
    tokens: Callable[[Int[Array, ""]], Float[Array, "n D"]],
    mix: Float[Array, "T n n"] | None,
    starts: Bool[Array, "T"],
    source: Int[Array, "K"],
    slots: int,
    dtype: Any,
) -> Float[Array, "K D"]:
    """Output tokens, a frame at a time: its own and, behind the last frame of a clip, the clip's merged anchors.

    Args:
      tokens: pooled tokens of a frame.
      mix: final weights of the tokens in the anchors of their clip, None where nothing is merged along clips.
      starts: first frames of the clips.
      source: what each row is, ascending; see `aot_types.AOTPlan`.
      slots: n.
      dtype: of the output.
    """
    t, k, span = starts.shape[0], source.shape[0], 2 * slots
    room = max(k, span)
    frames, place = jnp.arange(t, dtype=jnp.int32), jnp.arange(span, dtype=jnp.int32)
    # A frame's rows lie in a window of the output that holds all it can have and ends inside.
    begins = jnp.minimum(jnp.searchsorted(source, frames * span).astype(jnp.int32), room - span)
    listed = jnp.append(source, jnp.full(room - k, t * span, source.dtype))[begins[:, None] + place]
    local = jnp.where(listed // span == frames[:, None], listed % span, span)
    width = jax.eval_shape(tokens, begins[0]).shape[1]

    def frame(state: tuple, args: tuple) -> tuple[tuple, None]:
        total, out = state
        number, begin, rows, start = args
        own = tokens(number)
        if mix is not None:
            total = jnp.where(start, 0.0, total) + weigh(mix[number].T, own)
        block = jnp.concatenate([own, total])[jnp.minimum(rows, span - 1)].astype(dtype)
        before = lax.dynamic_slice(out, (begin, 0), (span, width))
        block = jnp.where((rows < span)[:, None], block, before)
        return (total, lax.dynamic_update_slice(out, block, (begin, 0))), None

    state = jnp.zeros((slots, width)), jnp.zeros((room, width), dtype)
    (_, out), _ = lax.scan(frame, state, (frames, begins, local, starts))
    return out if room == k else out[:k]


def flows(
    inter: Inter | None,
    inside: Float[Array, "T P n"],
    used: Bool[Array, "T n"],
    cell: Int[Array, "T n"],
    clips: Clips,
) -> tuple[Int[Array, "M F"], Float[Array, "M F"]]:
    """Where tokens that are no output went, for drawing: their strongest anchors and the share that each took.

    A pooled token that did not stay an anchor flows to slots of its own frame, as far as its tokens before pooling have
    weight there; a token that was merged along a clip flows to anchors of the key frame.

    Args:
      inter: the stage along clips, or None.
      inside: weight of every pooled token of a frame in its slots.
      used, cell: slots in use and the pooled token of each.
      clips: roles of the frames.

    Returns:
      (T * P, F) targets as frame * P + cell, -1 for none, and their shares.
    """
    t, cells = inside.shape[:2]
    frames = jnp.arange(t, dtype=jnp.int32)[:, None]
    kept = jnp.zeros((t, cells + 1), bool).at[frames, jnp.where(used, cell, cells)].set(True)[:, :cells]
    share = jnp.where(~kept[..., None] & used[:, None], inside, 0.0)
    target, share = strongest(share, jnp.broadcast_to((frames * cells + cell)[:, None], share.shape))
    target, share = target.reshape(t * cells, -1), share.reshape(t * cells, -1)
    if inter is None:
        return target, share
    moved = used & ~inter.keep & (clips.later & clips.merges)[:, None] & (cell < cells)
    anchors = jnp.broadcast_to((clips.lead[:, None] * cells + cell[clips.lead])[:, None], inter.plan.shape)
    along, along_share = strongest(jnp.where(moved[..., None], inter.plan, 0.0), anchors)
    place = jnp.where(moved, frames * cells + cell, t * cells)
    return target.at[place].set(along, mode="drop"), share.at[place].set(along_share, mode="drop")
