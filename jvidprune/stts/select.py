"""Which windows stay: those with the best scores of each whole video, without any quota per frame."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError

FIRST_FRAME = 100.0
"""Score of the windows of a video's first frame in the selection, as in the released code."""


class Examples(NamedTuple):
    """Which frames on the flat axis belong together, and how much of each example goes.

    Attributes:
      owner: (F,) int32 example of each frame, -1 for padding; the frames of an example are consecutive, and examples
        are numbered in order.
      remove: (E,) int32 windows to remove of each, 0 for images and for what is left whole; may be traced.
    """

    owner: Int[Array, "F"]
    remove: Int[Array, "E"]

    @property
    def there(self) -> Bool[Array, "F"]:
        """Frames that are no padding."""
        return jnp.asarray(self.owner) >= 0

    @property
    def prunable(self) -> Bool[Array, "F"]:
        """Frames of examples of which anything is removed."""
        remove = jnp.asarray(self.remove)
        return self.there & (remove[jnp.maximum(self.owner, 0)] > 0)

    @property
    def first(self) -> Bool[Array, "F"]:
        """The first frame of each example."""
        owner = jnp.asarray(self.owner)
        before = jnp.concatenate([jnp.full(1, -1, owner.dtype), owner[:-1]])
        return self.there & (owner != before)


def one_video(frames: int, remove: Int[Array, ""] | int, mask: Bool[Array, "F"] | None = None) -> Examples:
    """The examples of a flat axis that holds one video; `mask` is False on padding frames behind it."""
    owner = jnp.zeros(frames, jnp.int32)
    return Examples(owner if mask is None else jnp.where(mask, owner, -1), jnp.asarray(remove, jnp.int32)[None])


def packed_examples(frames: Int[np.ndarray, "B K"], remove: Int[np.ndarray, "B K"], slots: int) -> Examples:
    """The examples of B rows of frame slots that hold several examples each.

    Args:
      frames: (B, K) frames of each example, negative or 0 where there is none.
      remove: (B, K) windows to remove of each.
      slots: T, frame slots of a row; those behind the last example are padding.

    Raises:
      JvidpruneError: a row with more frames than slots.
    """
    frames = np.maximum(np.asarray(frames), 0)
    owner = np.full((len(frames), slots), -1, np.int32)
    for row, counts in enumerate(frames):
        if counts.sum() > slots:
            raise JvidpruneError(f"a row of {slots} frame slots cannot hold {counts.sum()} frames.")
        owner[row, : counts.sum()] = row * frames.shape[1] + np.repeat(np.arange(len(counts)), counts)
    return Examples(jnp.asarray(owner.ravel()), jnp.asarray(np.asarray(remove, np.int32).ravel()))


def keep_windows(scores: Float[Array, "F P"], examples: Examples, *, protect_first: bool = True) -> Bool[Array, "F P"]:
    """Windows that stay: all but the `remove` lowest of each video.

    The first frame of a video counts as 100, so it goes last, unless `protect_first` is False. Equal scores go in order
    of frame and window; the released code leaves that open. Examples without a budget keep everything, padding frames
    nothing.

    Args:
      scores: (F, P), compared in float32.
      examples: of the flat axis; `remove` may be traced, so that shares are vmapped over.
      protect_first: of the scorer; False for other rankings.
    """
    scores = scores.astype(jnp.float32)
    if protect_first:
        scores = jnp.where(examples.first[:, None], FIRST_FRAME, scores)
    frames, windows = scores.shape
    remove = jnp.asarray(examples.remove)
    # Ranks within each example: sorted by owner first, a place counts from where its owner begins.
    owner = jnp.repeat(jnp.where(examples.there, examples.owner, remove.shape[0]), windows)
    order = jnp.lexsort((scores.reshape(-1), owner))
    place = jnp.zeros(frames * windows, jnp.int32).at[order].set(jnp.arange(frames * windows, dtype=jnp.int32))
    begin = jnp.searchsorted(owner[order], jnp.arange(remove.shape[0] + 1)).astype(jnp.int32)
    rank = place - begin[owner]
    limit = jnp.append(remove, frames * windows)[owner]
    return (rank >= limit).reshape(frames, windows)
