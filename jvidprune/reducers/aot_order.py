"""AOT's output order and what follows from it: ids, and where each token went."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops import compact
from jvidprune.ops.select import first_argmax
from jvidprune.reducers import aot_inter


def arrange(
    own: Bool[Array, "T n"],
    merged: Bool[Array, "T n"],
    used: Bool[Array, "T n"],
    mix: Float[Array, "T n n"],
    clips: aot_inter.Clips,
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
