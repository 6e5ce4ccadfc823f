"""Which patches of a frame become one token of Molmo2."""

import functools

import numpy as np
from jaxtyping import Int32


def pooled_side(side: int, pool: int) -> int:
    """Windows on a side of a frame of `side` x `side` patches."""
    return -(-side // pool)


@functools.lru_cache(maxsize=16)
def window_patches(side: int, pool: int) -> Int32[np.ndarray, "N P"]:
    """(windows, pool^2) patch of each place of each window, raster order, -1 outside the frame.

    A side that is no multiple of `pool` is filled up on both ends, an odd place more below and on the right.

    Args:
      side: patches on a side of the frame.
      pool: patches on a side of a window.
    """
    missing = -side % pool
    room = (missing // 2, missing - missing // 2)
    grid = np.pad(np.arange(side * side, dtype=np.int32).reshape(side, side), (room, room), constant_values=-1)
    count = pooled_side(side, pool)
    cut = grid.reshape(count, pool, count, pool).transpose(0, 2, 1, 3)
    return cut.reshape(count * count, pool * pool)
