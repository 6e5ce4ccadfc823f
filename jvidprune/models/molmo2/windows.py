"""Which patches of a frame become one token of Molmo2."""

import functools

import numpy as np
from jaxtyping import Int32


def pooled_side(side: int, pool: int) -> int:
    """Windows on a side of a frame of `side` x `side` patches."""
    return -(-side // pool)


@functools.lru_cache(maxsize=16)
def window_patches(side: int, pool: int) -> Int32[np.ndarray, "N P"]:
    """(windows, pool^2) patches of the windows of a frame of `side` x `side` patches, see `grid_windows`."""
    return grid_windows(np.arange(side * side, dtype=np.int32).reshape(side, side), (pool, pool))


def grid_windows(grid: Int32[np.ndarray, "h w"], pool: tuple[int, int]) -> Int32[np.ndarray, "N P"]:
    """(windows, places) of a grid of patches, raster order, -1 outside the grid.

    A side that is no multiple of the window's is filled up on both ends, an odd place more below and on the right.

    Args:
      grid: number of each patch.
      pool: rows and columns of a window.
    """
    missing = [-side % step for side, step in zip(grid.shape, pool, strict=True)]
    filled = np.pad(grid, [(one // 2, one - one // 2) for one in missing], constant_values=-1)
    rows, columns = (side // step for side, step in zip(filled.shape, pool, strict=True))
    cut = filled.reshape(rows, pool[0], columns, pool[1]).transpose(0, 2, 1, 3)
    return cut.reshape(rows * columns, pool[0] * pool[1])
