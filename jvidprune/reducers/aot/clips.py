"""AOT's clips: where they begin, which frame leads each, which frames follow it (arXiv 2603.01400)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.segment import mask_cuts, segment_ids, smallest_cuts
from jvidprune.ops.similarity import normalise


def dynamic_starts(embedding: Float[Array, "T E"], frame_mask: Bool[Array, "T"]) -> Bool[Array, "T"]:
    """Clip starts of the paper's dynamic variant, from the disabled lines of the reference: c = 8, tau = 0.8."""
    frames = normalise(embedding, 1e-12)
    similarity = jnp.sum(frames[1:] * frames[:-1], axis=-1)
    similarity = jnp.where(frame_mask[1:], similarity, jnp.inf)
    cuts = mask_cuts(smallest_cuts(similarity, 7) | (similarity < 0.8), frame_mask)
    return jnp.append(True, cuts)


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
    starts: Bool[Array, "T"], occupied: Bool[Array, "T"], similarity: Float[Array, "T T"] | None = None
) -> Clips:
    """Roles of the frames.

    Args:
      starts: first frame of every clip but the first, which starts anyway.
      occupied: frames that have tokens; others are no key frames.
      similarity: of the frames with each other; with it the key frame is the medoid of its clip, the frame of the
        largest sum over the clip, the earliest of equals.
    """
    frames = jnp.arange(starts.shape[0], dtype=jnp.int32)
    ids = segment_ids(starts[1:])
    # All pairs of the few frames, rather than scatters by clip.
    joined = ids[:, None] == ids[None]
    fits = occupied
    if similarity is not None:
        central = jnp.where(occupied, jnp.where(joined & occupied, similarity, 0.0).sum(1), -jnp.inf)
        fits = occupied & (central == jnp.where(joined, central, -jnp.inf).max(1))
    before = jnp.cumsum(fits) - fits
    first = lax.cummax(jnp.where(jnp.append(True, ids[1:] != ids[:-1]), frames, 0))
    turn = before - before[first]
    key = fits & (turn == 0)
    later = occupied & ~key
    last = jnp.append(ids[1:] != ids[:-1], True)
    count = jnp.sum(joined & occupied, axis=1, dtype=jnp.int32)
    lead = jnp.max(jnp.where(joined & key, frames, 0), axis=1)
    end = jnp.max(jnp.where(joined, frames, 0), axis=1)
    order = None if similarity is None else jnp.argsort(2 * ids + ~key, stable=True).astype(jnp.int32)
    return Clips(key, later, last, count > 1, lead, end, ids, order)
