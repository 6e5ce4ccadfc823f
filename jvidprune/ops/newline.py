"""Newline layouts: where the LLaVA models put their newline vector between reduced tokens.

The layouts are those of LLaVA-NeXT's `mm_newline_position`: `grid` closes every row of every frame, `frame` every
frame, `one_token` the whole video, `no_token` nothing.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jvidprune.errors import JvidpruneError

NewlineKind = Literal["one_token", "frame", "grid", "no_token"]
NewlineRows = Literal["all", "nonempty", "after_frame"]

KINDS: tuple[NewlineKind, ...] = ("one_token", "frame", "grid", "no_token")
ROWS: tuple[NewlineRows, ...] = ("all", "nonempty", "after_frame")

_LAST = jnp.iinfo(jnp.int32).max


class Arrangement(NamedTuple):
    """The sequence that a language model reads, as references to reduced rows; C is its static capacity.

    Attributes:
      source: (C,) int32 row of the reduced tokens, K (their number of rows) on newlines and padding, so that
        `concatenate([tokens, newline[None]])[source]` is the sequence up to its padding.
      is_newline: (C,) bool.
      valid: (C,) bool, a prefix mask.
      position: (C,) int32 place in the sequence of the same layout without any reduction, 0 on padding.
      count: () int32 entries asked for, not clipped to C.
    """

    source: Int[Array, "C"]
    is_newline: Bool[Array, "C"]
    valid: Bool[Array, "C"]
    position: Int[Array, "C"]
    count: Int[Array, ""]


def newline_count(kind: NewlineKind, grid: tuple[int, int], frames: int) -> int:
    """Largest number of newlines a layout adds to `frames` frames.

    Raises:
      JvidpruneError: unknown layout.
    """
    counts = {"one_token": 1, "frame": frames, "grid": frames * grid[0], "no_token": 0}
    if kind not in counts:
        raise JvidpruneError(f"unknown newline layout {kind!r}; known: {', '.join(KINDS)}.")
    return counts[kind]


def full_length(kind: NewlineKind, grid: tuple[int, int], frames: int) -> int:
    """Length of the layout without any reduction."""
    return frames * grid[0] * grid[1] + newline_count(kind, grid, frames)


def unreduced_places(ids: Int[np.ndarray, "K"], kind: NewlineKind, grid: tuple[int, int]) -> Int[np.ndarray, "K"]:
    """Place of each token, frame * N + token, in the layout without any reduction: what `Arrangement.position` says."""
    size = grid[0] * grid[1]
    return ids + {"frame": ids // size, "grid": ids // grid[1]}.get(kind, 0)


def arrange(
    ids: Int[Array, "K"],
    valid: Bool[Array, "K"],
    *,
    kind: NewlineKind,
    grid: tuple[int, int],
    frames: int,
    rows: NewlineRows = "all",
    capacity: int | None = None,
    real_frames: int | Int[Array, ""] | None = None,
) -> Arrangement:
    """Puts newlines between reduced tokens.

    `one_token` and `no_token` keep the order of the rows. `frame` sorts them stably by frame, `grid` stably by id,
    which changes nothing for rows in that order already.

    Args:
      ids: place of each row, frame * N + token. A method that files a token under another place passes that place.
      valid: rows in use.
      kind: the layout.
      grid: (h, w) tokens of a frame.
      frames: number of frames of the arrays, padding included; static.
      rows: only for `grid`: newlines of `all` rows (VisionZip, arXiv 2412.04467), of `nonempty` rows alone (HoliTom
        2505.21334, FastVID 2503.11187, OTT-Vid), or all of them behind the tokens of their frame (`after_frame`,
        VidCom2 2505.14454 on LLaVA-Video).
      capacity: static length C; by default K plus all newlines the layout can add.
      real_frames: number of frames that are no padding, traced or not; only these get newlines.

    Raises:
      JvidpruneError: unknown layout or row rule.
    """
    k, (h, w) = ids.shape[0], grid
    extra = newline_count(kind, grid, frames)
    if rows not in ROWS:
        raise JvidpruneError(f"unknown rule for newline rows {rows!r}; known: {', '.join(ROWS)}.")
    capacity = k + extra if capacity is None else capacity
    real = jnp.asarray(frames if real_frames is None else real_frames, jnp.int32)
    n = h * w
    ids = jnp.where(valid, ids, 0).astype(jnp.int32)
    frame, cell = ids // n, ids % n
    slots = jnp.arange(extra, dtype=jnp.int32)

    if kind == "no_token":
        token_key, token_position = jnp.arange(k, dtype=jnp.int32), ids
        new_key = new_position = slots
        present = slots < 0
    elif kind == "one_token":
        token_key, token_position = jnp.arange(k, dtype=jnp.int32), ids
        new_key, new_position = slots + k, slots + real * n
        present = slots < 1
    elif kind == "frame":
        token_key, token_position = 2 * frame, ids + frame
        new_key, new_position = 2 * slots + 1, slots * (n + 1) + n
        present = slots < real
    else:
        line = frame * h + cell // w
        token_key, token_position = 2 * ids, ids + line
        ends = (slots // h + 1) * n if rows == "after_frame" else (slots + 1) * w
        new_key, new_position = 2 * ends - 1, slots * (w + 1) + w
        present = slots < real * h
        if rows == "nonempty":
            used = jnp.zeros(extra + 1, bool).at[jnp.where(valid, line, extra)].set(True, mode="drop")
            present = present & used[:extra]

    keys = jnp.concatenate([jnp.where(valid, token_key, _LAST), jnp.where(present, new_key, _LAST)])
    order = jnp.argsort(keys, stable=True).astype(jnp.int32)
    count = valid.sum(dtype=jnp.int32) + present.sum(dtype=jnp.int32)
    places = jnp.arange(capacity, dtype=jnp.int32)
    inside = (places < count) & (places < k + extra)
    entry = order[jnp.minimum(places, k + extra - 1)]
    position = jnp.concatenate([token_position, new_position]).astype(jnp.int32)
    is_newline = inside & (entry >= k)
    source = jnp.where(inside & ~is_newline, entry, k)
    return Arrangement(source, is_newline, inside, jnp.where(inside, position[entry], 0), count)


def sequence(arrangement: Arrangement, tokens: Array, newline: Array) -> Array:
    """(C, D) embeddings in the order of the arrangement, zeros on padding, in the dtype of the tokens.

    Args:
      arrangement: from `arrange`.
      tokens: (K, D) reduced tokens.
      newline: (D,) newline vector of the model.
    """
    table = jnp.concatenate([tokens, newline.astype(tokens.dtype)[None]])
    return jnp.where(arrangement.valid[:, None], table[arrangement.source], 0)
