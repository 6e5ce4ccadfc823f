"""Bicubic resampling with antialiasing in float32, as torch's kernel for floats computes it on a CPU.

Two separable passes, width first, nothing rounded in between. qwen-vl-utils resizes bytes so: floats, clipped to
0..255 and rounded once. A rounded sum depends on the order of its terms where it lies beside a half, so sums near one
are taken again in the kernel's own order: four products at a time, added one by one, the rest of each output multiplied
and added in one rounding. All bytes are the reference's (torch 2.13, x86 with AVX2); on processors where its compiler
chose another order, a few bytes in 10,000 differ by one level.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from jvidprune.video.bands import Band, blocks, make_bands, product

# Products that the kernel adds without fusing; what remains of an output is fused.
_UNFUSED = 4
# Sums this close to a half are taken again: several times what the order of float32 terms can change.
_NEAR = 2e-3
# Terms of these sums that are held at a time.
_TERMS = 1 << 22


class _Axis(NamedTuple):
    """One axis of a resampling.

    Attributes:
      first: (n_out,) int64 first input of each output.
      count: (n_out,) int64 inputs of each output.
      weights: (n_out, taps) float32, zeros behind `count`.
      bands: the same as a matrix; none where the size stays.
    """

    first: np.ndarray
    count: np.ndarray
    weights: np.ndarray
    bands: tuple[Band, ...]


@functools.lru_cache(maxsize=64)
def _axis(n_in: int, n_out: int) -> _Axis:
    if n_in == n_out:
        return _Axis(np.arange(n_in), np.ones(n_in, np.int64), np.ones((n_in, 1), np.float32), ())
    # Which operations are in double and which are fused is the kernel's: its weights are these to the last bit.
    scale = np.float32(n_in) / np.float32(n_out)
    widen = max(scale, np.float32(1))
    narrow = np.float32(1.0 / float(widen))
    support = np.float32(2.0 * float(widen))
    centre = (float(scale) * (np.arange(n_out) + 0.5)).astype(np.float32)
    lo = np.maximum(((centre - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    count = np.minimum(((centre + support).astype(np.float64) + 0.5).astype(np.int64), n_in) - lo
    taps = np.arange(int(count.max()))
    away = ((lo[:, None] + taps).astype(np.float32) - centre[:, None]).astype(np.float64) + 0.5
    x = np.abs((away * float(narrow)).astype(np.float32))
    near = _fused(_fused(x, 1.5, -2.5) * x, x, 1.0)
    far = _fused(_fused(_fused(x, -0.5, 2.5), x, -4.0), x, 2.0)
    weights = np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))
    weights[taps >= count[:, None]] = 0
    # numpy's own sum of a row may take another order than one by one.
    weights = weights / np.cumsum(weights, axis=1, dtype=np.float32)[:, -1:]
    return _Axis(lo, count, weights, tuple(make_bands(lo, weights, n_in)))


def _fused(x: np.ndarray, weight: Any, added: Any) -> np.ndarray:
    """x * weight + added of float32 numbers, rounded once."""
    return (x * np.asarray(weight, np.float64) + added).astype(np.float32)


def resize_float(planes: np.ndarray, size: tuple[int, int]) -> Float32[np.ndarray, "... out_height out_width"]:
    """(..., height, width) values resampled without rounding and clipping; those of bytes may leave 0..255 slightly.

    This is what a Qwen processor does to frames that qwen-vl-utils resized before.

    Args:
      planes: uint8 or float32.
      size: target height and width in pixels; an axis whose size stays is left alone.
    """
    values = planes
    if values.shape[-1] != size[1]:
        values = _resample_last(values, size[1])
    if values.shape[-2] != size[0]:
        values = _resample_last(values.swapaxes(-1, -2), size[0]).swapaxes(-1, -2)
    return np.ascontiguousarray(values, np.float32)


def _resample_last(planes: np.ndarray, n_out: int) -> np.ndarray:
    *lead, n_in = planes.shape
    bands = _axis(n_in, n_out).bands
    result = np.empty((*lead, n_out), np.float32)
    for part, out in blocks(planes, result, bands):
        out[:] = product(part.astype(np.float32, copy=False), bands, n_out)
    return result


def resize_rounded(
    planes: UInt8[np.ndarray, "channels height width"], size: tuple[int, int]
) -> UInt8[np.ndarray, "channels out_height out_width"]:
    """Bytes resampled to `size` (height, width) in floats, then clipped and rounded (half to even)."""
    if planes.shape[-2:] == size:
        return np.ascontiguousarray(planes)
    values = np.clip(resize_float(planes, size), 0, 255)
    rounded = np.rint(values)
    places = np.argwhere(np.abs(np.abs(values - rounded) - 0.5) < _NEAR)
    down, across = _axis(planes.shape[1], size[0]), _axis(planes.shape[2], size[1])
    step = max(1, _TERMS // (down.weights.shape[1] * across.weights.shape[1]))
    for start in range(0, len(places), step):
        channel, row, column = places[start : start + step].T
        rows = np.minimum(down.first[row, None] + np.arange(down.weights.shape[1]), planes.shape[1] - 1)
        columns = np.minimum(across.first[column, None] + np.arange(across.weights.shape[1]), planes.shape[2] - 1)
        around = planes[channel[:, None, None], rows[:, :, None], columns[:, None, :]].astype(np.float32)
        lines = _ordered_sum(around, across.weights[column][:, None], across.count[column][:, None])
        exact = _ordered_sum(lines, down.weights[row], down.count[row])
        rounded[channel, row, column] = np.rint(np.clip(exact, 0, 255))
    return rounded.astype(np.uint8)


def _ordered_sum(values: np.ndarray, weights: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(..., taps) values and weights to (...) sums over the first `count` taps, in the kernel's order."""
    total = values[..., 0] * weights[..., 0]
    fused_from = 1 + (count - 1) // _UNFUSED * _UNFUSED
    for tap in range(1, values.shape[-1]):
        value, weight = values[..., tap], weights[..., tap]
        fused = _fused(value, weight, total)
        total = np.where(tap >= count, total, np.where(tap >= fused_from, fused, total + value * weight))
    return total
