"""Chance-driven variety of what the language model reads of a clip: all tokens, subsets, averages, fewer frames.

Nothing here sees the clip: what is kept and merged follows from a draw and from the shape alone, so that no token can
count for more because of what it shows.
"""

from typing import Any, NamedTuple

import numpy as np

KINDS = ("subset", "space", "time", "frames")


class Shown(NamedTuple):
    """What is read of a clip of M = T * N tokens, in K rows; of a batch, with a leading axis.

    Attributes:
      rows: (M,) int32 row that each token is averaged into, K for none.
      positions: (K + 1,) int32 rotary positions of the rows and of the newline behind them, counted from the first
        token's: each row has that of its first token and the newline that of the token behind the last, or all are
        counted anew without gaps.
    """

    rows: Any
    positions: Any


def row_counts(frames: int, side: int) -> tuple[int, ...]:
    """Numbers of rows that every kind can make: all tokens, and a half, a quarter and an eighth of them."""
    return tuple(frames * side * side // part for part in (1, 2, 4, 8))


def draw(rng: np.random.Generator, frames: int, side: int, rows: int) -> Shown:
    """One way of reading a clip in a number of rows.

    Args:
      rng: of the draw.
      frames, side: T, and the side of a frame's grid, N = side * side; frames and side are divisible by 8 and 4.
      rows: one of `row_counts`.
    """
    total = frames * side * side
    part, token = total // rows, np.arange(total)
    frame, row, column = token // side**2, token // side % side, token % side
    kind = KINDS[int(rng.integers(len(KINDS)))] if part > 1 else "all"
    first = np.zeros(total, np.int64)
    if kind == "all":
        group = token
    elif kind == "subset":
        kept = np.sort(rng.permutation(total)[:rows])
        group = np.full(total, -1)
        group[kept] = kept
    elif kind == "frames":
        # Evenly spaced, from a frame that is drawn.
        kept_frames = frame % part == int(rng.integers(part))
        group = np.where(kept_frames, token, -1)
    elif kind == "time":
        group = frame // part * part * side**2 + token % side**2
    else:
        # 2 x 2 of four; a half is two neighbours in a direction that is drawn, an eighth both of it.
        high, wide = {2: (1, 2), 4: (2, 2), 8: (2, 4)}[part]
        if rng.random() < 0.5:
            high, wide = wide, high
        group = frame * side**2 + row // high * high * side + column // wide * wide
    names, index = np.unique(group[group >= 0], return_inverse=True)
    rows_of = np.full(total, rows, np.int32)
    rows_of[group >= 0] = index
    first = names if rng.random() < 0.5 else np.arange(rows)
    last = total if first is names else rows
    return Shown(rows_of, np.append(first, last).astype(np.int32))
