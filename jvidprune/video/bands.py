"""Weighted sums along the last axis as products with narrow bands of a matrix: what one pass of a resampling is."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# Outputs a band covers: few enough that the band holds little but weights, enough for an efficient product.
_BAND = 32
# Largest product, in multiply-adds, that BLAS leaves to the calling thread: the threads here are those of the frames,
# and a second pool below them would only fight over the cores.
_SERIAL_PRODUCT = 1 << 18
# Pixels of an image that are held as floats at a time.
_BLOCK_VALUES = 1 << 18


class Band(NamedTuple):
    """Some outputs of an axis.

    Attributes:
      outputs: which.
      inputs: what they are sums of.
      weights: (inputs, outputs).
    """

    outputs: slice
    inputs: slice
    weights: np.ndarray


def make_bands(lo: np.ndarray, weights: np.ndarray, n_in: int) -> Iterable[Band]:
    """The bands of a matrix that is given by the first input (n_out,) and the weights (n_out, taps) of each output."""
    taps = np.arange(weights.shape[1])
    for start in range(0, len(lo), _BAND):
        rows = slice(start, min(start + _BAND, len(lo)))
        first, last = int(lo[rows.start]), min(int(lo[rows.stop - 1]) + len(taps), n_in)
        band = np.zeros((last - first + len(taps), rows.stop - rows.start), weights.dtype)
        band[lo[rows, None] - first + taps, np.arange(band.shape[1])[:, None]] = weights[rows]
        yield Band(rows, slice(first, last), np.ascontiguousarray(band[: last - first]))


def blocks(planes: np.ndarray, result: np.ndarray, bands: Sequence[Band]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """(lines, n_in) of (..., n_in) planes with (lines, n_out) of the result, whole tiles of `product` at a time."""
    n_in, n_out = planes.shape[-1], result.shape[-1]
    lines, outputs, tile = planes.reshape(-1, n_in), result.reshape(-1, n_out), _tile(bands)
    block = tile * max(1, _BLOCK_VALUES // (tile * max(n_in, n_out)))
    for start in range(0, len(lines), block):
        yield lines[start : start + block], outputs[start : start + block]


def product(pixels: np.ndarray, bands: Sequence[Band], n_out: int) -> np.ndarray:
    """(lines, n_in) to (lines, n_out) weighted sums, in the float type of the pixels."""
    lines, n_in = pixels.shape
    tile = _tile(bands)
    missing = -lines % tile
    tiles = (np.pad(pixels, ((0, missing), (0, 0))) if missing else pixels).reshape(-1, tile, n_in)
    sums = np.empty((len(tiles), tile, n_out), pixels.dtype)
    for band in bands:
        np.matmul(tiles[:, :, band.inputs], band.weights, out=sums[:, :, band.outputs])
    return sums.reshape(-1, n_out)[:lines]


def _tile(bands: Sequence[Band]) -> int:
    """Lines of a product that stays with the calling thread."""
    return max(1, _SERIAL_PRODUCT // max(band.weights.size for band in bands))
