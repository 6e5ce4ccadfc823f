"""Runs of equal labels along time, and PruneVid's refinement of frame clusters into segments (arXiv 2412.16117)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jvidprune.ops.segment import segment_ids, segment_lengths


def run_lengths(labels: Int[Array, "T"]) -> Int[Array, "T"]:
    """Length of the maximal run of equal labels that each frame lies in."""
    return segment_lengths(segment_ids(labels[1:] != labels[:-1]))


def refine_labels(labels: Int[Array, "T"], frame_mask: Bool[Array, "T"]) -> Int[Array, "T"]:
    """Makes frame labels contiguous: short runs are dissolved into their longer neighbour.

    A label's runs shorter than its longest one become open, all of them if the longest has one frame; runs that tie
    for the longest all stay. Open stretches are filled from left to right with the label of the longer side, the left
    one on a tie; frames filled earlier count on the left. Without any side the label is 0.

    Args:
      labels: (T,) int32 in 0..T-1.
      frame_mask: padding frames keep the label -1 and are no neighbour.
    """
    frames = labels.shape[0]
    labels = jnp.where(frame_mask, labels, -1)
    length = run_lengths(labels)
    longest = jnp.zeros(frames, jnp.int32).at[jnp.maximum(labels, 0)].max(jnp.where(frame_mask, length, 0))
    own_longest = longest[jnp.maximum(labels, 0)]
    is_open = frame_mask & ((own_longest == 1) | (length < own_longest))
    closed = frame_mask & ~is_open

    def look_right(right, inputs):
        label, size, is_closed = inputs
        right = (jnp.where(is_closed, label, right[0]), jnp.where(is_closed, size, right[1]))
        return right, right

    nothing = (jnp.int32(0), jnp.int32(0))
    _, (right_label, right_size) = lax.scan(look_right, nothing, (labels, length, closed), reverse=True)

    def fill(state, inputs):
        left, size, stretch, inside = state
        label, is_open, right, right_size = inputs
        choice = jnp.where(size >= right_size, left, right)
        choice = jnp.where((size == 0) & (right_size == 0), 0, choice)
        stretch = jnp.where(inside, stretch, choice)
        label = jnp.where(is_open, stretch, label)
        size = jnp.where(label == left, size, 0) + 1
        return (label, size, stretch, is_open), label

    # The label -2 equals none, and a side of size 0 does not exist.
    start = (jnp.int32(-2), jnp.int32(0), jnp.int32(0), jnp.bool_(False))
    _, refined = lax.scan(fill, start, (labels, is_open, right_label, right_size))
    return refined
