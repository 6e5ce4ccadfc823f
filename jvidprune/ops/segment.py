"""Segments of a video as ids, never as lists: a cut flag after frame t starts a new segment at frame t + 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.branch import on_cpu
from jvidprune.ops.select import rank_ascending


def threshold_cuts(similarity: Float[Array, "T-1"], threshold: float | Array) -> Bool[Array, "T-1"]:
    """Cuts wherever neighbouring frames are less similar than `threshold` (strict)."""
    return similarity < threshold


def smallest_cuts(similarity: Float[Array, "T-1"], count: int | Array) -> Bool[Array, "T-1"]:
    """Cuts at the `count` smallest similarities, equal ones from the left."""
    return rank_ascending(similarity) < count


def complementary_cuts(
    similarity: Float[Array, "T-1"], cuts: Bool[Array, "T-1"], minimum: int | Array
) -> Bool[Array, "T-1"]:
    """Adds cuts until there are `minimum` segments (FlashVID section 4; arXiv 2602.08024).

    Transitions that are cut already count as similarity 1, as in the reference; it can therefore choose one of them
    again where too few others are left, which the union of masks makes harmless.
    """
    need = jnp.maximum(minimum - 1 - cuts.sum(), 0)
    return cuts | (rank_ascending(jnp.where(cuts, 1.0, similarity)) < need)


def segment_ids(cuts: Bool[Array, "T-1"]) -> Int[Array, "T"]:
    """Segment id of each frame, starting at 0."""
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(cuts.astype(jnp.int32))])


def mask_cuts(cuts: Bool[Array, "T-1"], frame_mask: Bool[Array, "T"]) -> Bool[Array, "T-1"]:
    """Cuts of a padded video: none between or into padding frames except one that separates the padding."""
    return jnp.where(frame_mask[1:], cuts, frame_mask[:-1])


def per_segment_sum(values: Array, ids: Int[Array, "T"]) -> Array:
    """Sum of `values` (T, ...) over the frames of each segment, T slots (unused ones are 0)."""
    return jax.ops.segment_sum(values, ids, num_segments=ids.shape[0])


def segment_total(values: Array, ids: Int[Array, "T"]) -> Array:
    """Per-frame view of `per_segment_sum`: every frame gets the sum over its own segment."""
    if on_cpu() or values.ndim > 2:
        return per_segment_sum(values, ids)[ids]
    # Few frames: all pairs of them in one reduction, neither scatter nor gather.
    same = (ids[:, None] == ids[None]).reshape(*ids.shape, *ids.shape, *(1,) * (values.ndim - 1))
    return jnp.sum(jnp.where(same, values[None], 0), axis=1, dtype=values.dtype)


def segment_lengths(ids: Int[Array, "T"]) -> Int[Array, "T"]:
    """Number of frames of the segment that each frame lies in."""
    return segment_total(jnp.ones_like(ids), ids)


def segment_starts(ids: Int[Array, "T"]) -> Bool[Array, "T"]:
    """True on the first frame of each segment."""
    return jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])


def position_in_segment(ids: Int[Array, "T"]) -> Int[Array, "T"]:
    """0 for the first frame of a segment, then 1, 2, ..."""
    frames = jnp.arange(ids.shape[0], dtype=jnp.int32)
    first = jax.lax.cummax(jnp.where(segment_starts(ids), frames, 0))
    return frames - first
