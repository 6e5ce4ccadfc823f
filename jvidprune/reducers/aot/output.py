"""AOT's step 5: the order of the output and what follows from it: ids, masses, tokens, where each token went."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops import compact
from jvidprune.ops.select import first_argmax
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
    inside: Float[Array, "T P n"],
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
      inside: weight of every pooled token of a frame in its slots.
      capacity: rows of the output.
      inter: whether clips are merged.
    """
    (t, n), cells = own.shape, inside.shape[1]
    slots = jnp.stack([own, merged], axis=1)
    source, valid, count = compact.compact(slots.reshape(-1), capacity)
    before = (jnp.cumsum(slots.reshape(-1)) - slots.reshape(-1)).reshape(t, 2, n)
    frame, plane, slot = jnp.minimum(source // (2 * n), t - 1), (source // n) % 2, source % n
    origin = jnp.where(plane == 1, clips.lead[frame], frame)
    ids = jnp.where(valid, origin * cells + cell[origin, slot], t * cells).astype(jnp.int32)

    given = used & ~own & ~clips.key[:, None]
    share = jnp.where(clips.key[:, None, None], jnp.eye(n), mix)
    best = jnp.minimum(first_argmax(share), n - 1)
    goes = used & ~newline & merged[clips.end].any(1, keepdims=True) & (given | clips.key[:, None]) & inter
    place = before[clips.end, 1][jnp.arange(t)[:, None], best]
    row = jnp.where(goes, jnp.minimum(place, capacity), capacity)
    amount = jnp.where(goes, jnp.take_along_axis(mix, best[..., None], axis=2)[..., 0], 0.0)
    target = jnp.where(used & ~newline, jnp.arange(t)[:, None] * cells + cell, t * cells)

    # All other tokens of a frame are transported into its slots, and with these on into the anchors of the clip.
    onward = jnp.where(goes[..., None], mix, 0.0)
    along = jnp.einsum("tps,tsa->tpa", inside, onward, precision=lax.Precision.HIGHEST)
    weights = jnp.concatenate([jnp.where(own[:, None], inside, 0.0), along], axis=2)
    largest = jnp.minimum(first_argmax(weights), 2 * n - 1)
    places = jnp.concatenate([before[:, 0], before[clips.end, 1]], axis=1)
    most = jnp.take_along_axis(weights, largest[..., None], axis=2)[..., 0]
    into = jnp.where(most > 0, jnp.minimum(jnp.take_along_axis(places, largest, axis=1), capacity), capacity)
    rows, taken = (jnp.append(array.reshape(-1), 0) for array in (into, jnp.where(into < capacity, most, 0.0)))
    return {
        "ids": ids,
        "valid": valid,
        "count": count,
        "is_pick": valid & (plane == 0) & ~newline[frame, slot],
        "row": rows.astype(jnp.int32).at[target].set(row.astype(jnp.int32))[None, :-1],
        "weight": taken.at[target].set(amount)[None, :-1],
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
