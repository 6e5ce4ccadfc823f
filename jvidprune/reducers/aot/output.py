"""AOT's step 5: the order of the output and what follows from it: ids, masses, tokens, where each token went."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops import compact
from jvidprune.ops.branch import on_cpu
from jvidprune.ops.layout import one_by_one
from jvidprune.ops.select import entries_at, first_argmax, first_occurrence
from jvidprune.ops.transport import strongest
from jvidprune.reducers.aot.clips import Clips
from jvidprune.reducers.aot.inter import Inter
from jvidprune.reducers.aot.pooling import weigh


def arrange(
    own: Bool[Array, "T n"],
    merged: Bool[Array, "T n"],
    used: Bool[Array, "T n"],
    mix: Float[Array, "T n n"],
    clips: Clips,
    cell: Int[Array, "T n"],
    newline: Bool[Array, "T n"],
    inside: Callable[[Int[Array, ""]], Float[Array, "P n"]],
    cells: int,
    capacity: int,
    inter: bool,
) -> dict[str, Array]:
    """Output order and the fields of the plan that follow from it.

    Slots lie as (frame, plane, slot), the second plane holding a clip's merged anchors on its last frame: their flat
    order is the order of the output, so that nothing is sorted.

    Args:
      own: slots that are output as they are.
      merged: anchors of a clip that are output behind its last frame.
      used: slots that hold a token.
      mix: final weights of slots in the anchors of their clip.
      clips: roles of the frames.
      cell: pooled token of each slot, P where there is none.
      newline: slots that hold a newline.
      inside: weights of the pooled tokens of a frame in its slots, from its number.
      cells: P.
      capacity: rows of the output.
      inter: whether clips are merged.
    """
    mix = lax.stop_gradient(mix)
    t, n = own.shape
    slots = jnp.stack([own, merged], axis=1)
    source, valid, count = compact.compact(slots.reshape(-1), capacity)
    before = (jnp.cumsum(slots.reshape(-1)) - slots.reshape(-1)).reshape(t, 2, n)
    listed = jnp.minimum(source, 2 * n * t - 1)
    frame = lax.div(listed, jnp.int32(2 * n))
    slot = listed - 2 * n * frame
    plane = (slot >= n).astype(jnp.int32)
    slot = slot - n * plane
    origin = jnp.where(plane == 1, clips.lead[frame], frame)
    ids = jnp.where(valid, origin * cells + cell[origin, slot], t * cells).astype(jnp.int32)

    given = used & ~own & ~clips.key[:, None]
    goes = used & ~newline & merged[clips.end].any(1, keepdims=True) & (given | clips.key[:, None]) & inter

    # All other tokens of a frame are transported into its slots, and with these on into the anchors of the clip.
    def most_of(args: tuple) -> tuple[Array, ...]:
        number, own, mix, goes, key = args
        best = jnp.minimum(first_argmax(jnp.where(key, jnp.eye(n), mix)), n - 1)
        amount = jnp.where(goes, entries_at(mix, best[:, None])[:, 0], 0.0)
        within = lax.stop_gradient(inside(number))
        along = one_by_one(weigh, within, jnp.where(goes[:, None], mix, 0.0))
        weights = jnp.concatenate([jnp.where(own, within, 0.0), along], axis=1)
        return best, amount, jnp.minimum(first_argmax(weights), 2 * n - 1), jnp.max(weights, axis=1)

    # A frame at a time on any machine: only numbers of tokens then exist for all frames.
    numbers = jnp.arange(t, dtype=jnp.int32)
    best, amount, largest, most = lax.map(most_of, (numbers, own, mix, goes, clips.key))
    row = jnp.where(goes, jnp.minimum(entries_at(before[clips.end, 1], best), capacity), capacity)
    places = jnp.concatenate([before[:, 0], before[clips.end, 1]], axis=1)
    into = jnp.where(most > 0, jnp.minimum(entries_at(places, largest), capacity), capacity)
    taken = jnp.where(into < capacity, most, 0.0)
    # A token that holds a slot goes where the slot does.
    slot_of = first_occurrence(jnp.where(used & ~newline, cell, cells), cells)
    held, slot_of = slot_of < n, jnp.minimum(slot_of, n - 1)
    rows = jnp.where(held, entries_at(row, slot_of), into).astype(jnp.int32)
    taken = jnp.where(held, entries_at(amount, slot_of), taken)
    return {
        "ids": ids,
        "valid": valid,
        "count": count,
        "is_pick": valid & (plane == 0) & ~newline[frame, slot],
        "row": rows.reshape(1, -1),
        "weight": taken.reshape(1, -1),
        "source": source,
    }


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
      source: what each row is, ascending; see `types.AOTPlan`.
      slots: n.
      dtype: of the output.
    """
    t, k, span = starts.shape[0], source.shape[0], 2 * slots
    room = max(k, span)
    frames = jnp.arange(t, dtype=jnp.int32)
    # A frame's rows lie in a window of the output that holds all it can have and ends inside.
    begins = jnp.searchsorted(source, frames * span, method="scan" if on_cpu() else "compare_all")
    begins = jnp.minimum(begins.astype(jnp.int32), room - span)
    listed = jnp.append(source, jnp.full(room - k, t * span, source.dtype))
    width = jax.eval_shape(tokens, begins[0]).shape[1]

    def frame(state: tuple, args: tuple) -> tuple[tuple, None]:
        total, out = state
        number, begin, start = args
        rows = lax.dynamic_slice(listed, (begin,), (span,))
        rows = rows - number * span
        rows = jnp.where((rows >= 0) & (rows < span), rows, span)
        own = tokens(number)
        if mix is not None:
            total = jnp.where(start, 0.0, total) + weigh(mix[number].T, own)
        block = jnp.concatenate([own, total])[jnp.minimum(rows, span - 1)].astype(dtype)
        before = lax.dynamic_slice(out, (begin, zero), (span, width))
        block = jnp.where((rows < span)[:, None], block, before)
        return (total, lax.dynamic_update_slice(out, block, (begin, zero))), None

    zero = jnp.zeros((), begins.dtype)
    state = jnp.zeros((slots, width)), jnp.zeros((room, width), dtype)
    (_, out), _ = lax.scan(frame, state, (frames, begins, starts))
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
