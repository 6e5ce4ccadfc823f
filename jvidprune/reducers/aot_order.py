"""AOT's output order and what follows from it: ids, masses, where each token went."""

import jax
import jax.numpy as jnp
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
    cells: int,
    capacity: int,
    inter: bool,
) -> dict[str, Array]:
    """Output order and the fields of the plan that follow from it.

    Slots lie as (frame, plane, slot), the second plane holding a clip's merged anchors on its last frame: their flat
    order is the order of the output, so that nothing is sorted.
    """
    t, n = own.shape
    slots = jnp.stack([own, merged], axis=1)
    source, valid, count = compact.compact(slots.reshape(-1), capacity)
    before = (jnp.cumsum(slots.reshape(-1)) - slots.reshape(-1)).reshape(t, 2, n)
    frame, plane, slot = jnp.minimum(source // (2 * n), t - 1), (source // n) % 2, source % n
    origin = jnp.where(plane == 1, clips.lead[frame], frame)
    ids = jnp.where(valid, origin * cells + cell[origin, slot], t * cells).astype(jnp.int32)

    given = used & ~own & ~clips.key[:, None]
    received = jax.ops.segment_sum(given.sum(1), clips.ids, num_segments=t)[clips.ids]
    mass = jnp.where(valid, jnp.where(plane == 1, 1 + received[frame], 1), 0).astype(jnp.int32)

    share = jnp.where(clips.key[:, None, None], jnp.eye(n), mix)
    best = jnp.minimum(first_argmax(share), n - 1)
    goes = used & ~newline & merged[clips.end].any(1, keepdims=True) & (given | clips.key[:, None]) & inter
    place = before[clips.end, 1][jnp.arange(t)[:, None], best]
    row = jnp.where(goes, jnp.minimum(place, capacity), capacity)
    amount = jnp.where(goes, jnp.take_along_axis(mix, best[..., None], axis=2)[..., 0], 0.0)
    target = jnp.where(used & ~newline, jnp.arange(t)[:, None] * cells + cell, t * cells)
    return {
        "ids": ids,
        "valid": valid,
        "count": count,
        "is_pick": valid & (plane == 0) & ~newline[frame, slot],
        "row": jnp.full(t * cells + 1, capacity, jnp.int32).at[target].set(row.astype(jnp.int32))[None, :-1],
        "weight": jnp.zeros(t * cells + 1).at[target].set(amount)[None, :-1],
        "mass": mass,
        "source": source,
    }
