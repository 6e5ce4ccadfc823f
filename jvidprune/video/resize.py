"""Resampling of 8-bit images as torchvision (CPU) and Pillow 11 compute it: bicubic with antialiasing, and
torchvision's bilinear filter without it.

Bicubic of bytes: two separable passes, width first, each rounded and clipped to 8 bits: the clipping in between counts.
Weights are fixed-point integers, so every sum is exact in whatever order it is taken: a pass is a product with a narrow
band of a matrix, in float32 where the sums fit 24 bits and in float64 otherwise. All bytes are the references'.

Bicubic in floats, which qwen-vl-utils takes, stands in `resize_float`.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64, UInt8

from jvidprune.errors import JvidpruneError
from jvidprune.video.bands import Band, blocks, make_bands, product
from jvidprune.video.resize_float import resize_rounded

Filter = Literal["torchvision", "pillow", "torchvision_float", "bilinear"]

_PILLOW_BITS = 22
_T = TypeVar("_T")
_R = TypeVar("_R")


class _Axis(NamedTuple):
    """One axis of a resampling of bytes, ready to be applied.

    Attributes:
      bands: blocks of the integer weight matrix, in order of the outputs.
      offset: (n_out,) what is added to a sum over pixels - 128 so that truncation after scaling rounds.
      scale: 2^-q.
      dtype: float type in which every partial sum is an exact integer.
    """

    bands: tuple[Band, ...]
    offset: np.ndarray
    scale: float
    dtype: type


def bicubic_weights(n_in: int, n_out: int) -> tuple[np.ndarray, Float64[np.ndarray, "n_out taps"]]:
    """First input index and normalised weights of every output of one axis; rows are padded with zeros.

    The Keys kernel with a = -1/2, widened by n_in / n_out when that is above 1.

    Returns:
      lo (n_out,) int64 and weights (n_out, taps) float64.
    """
    scale = n_in / n_out
    widen = max(scale, 1.0)
    support = 2.0 * widen
    centre = (np.arange(n_out) + 0.5) * scale
    lo = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    hi = np.minimum((centre + support + 0.5).astype(np.int64), n_in)
    taps = lo[:, None] + np.arange(int((hi - lo).max()))
    x = np.abs((taps - centre[:, None] + 0.5) * (1.0 / widen))
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    weights[taps >= hi[:, None]] = 0.0
    return lo, weights / weights.sum(1, keepdims=True)


def fixed_point_weights(n_in: int, n_out: int, filter: Filter) -> tuple[np.ndarray, np.ndarray, int]:
    """`bicubic_weights` as integers of q fractional bits: lo (n_out,), weights (n_out, taps) int64 and q."""
    lo, weights = bicubic_weights(n_in, n_out)
    bits = _PILLOW_BITS
    if filter == "torchvision":
        top = float(weights.max())
        bits = next((q for q in range(_PILLOW_BITS) if int(0.5 + top * 2.0 ** (q + 1)) >= 1 << 15), _PILLOW_BITS)
    return lo, np.trunc(weights * 2.0**bits + np.copysign(0.5, weights)).astype(np.int64), bits


@functools.lru_cache(maxsize=64)
def _axis(n_in: int, n_out: int, filter: Filter) -> _Axis:
    lo, weights, bits = fixed_point_weights(n_in, n_out, filter)
    offset = 128 * weights.sum(1) + (1 << (bits - 1))
    # Sums over pixels - 128 that stay below 2^24 are exact in float32. Adding the offset may pass 2^24, but only where
    # the result is clipped to 255 anyway: such a sum is at least 256 units of 2^q, as q <= 16 follows from the bound.
    largest = int(np.maximum(128 * np.abs(weights).sum(1), offset).max())
    dtype = np.float32 if largest < 1 << 24 else np.float64
    return _Axis(tuple(make_bands(lo, weights.astype(dtype), n_in)), offset.astype(dtype), 2.0**-bits, dtype)


def _resample_last(planes: np.ndarray, n_out: int, filter: Filter) -> np.ndarray:
    """(..., n_in) uint8 -> (..., n_out) uint8."""
    *lead, n_in = planes.shape
    axis = _axis(n_in, n_out, filter)
    result = np.empty((*lead, n_out), np.uint8)
    for part, out in blocks(planes, result, axis.bands):
        pixels = np.subtract(part, 128, dtype=axis.dtype)
        sums = product(pixels, axis.bands, n_out)
        sums += axis.offset
        sums *= axis.scale
        np.clip(sums, 0, 255, out=sums)
        np.copyto(out, sums, casting="unsafe")
    return result


def resize_planes(
    frame: UInt8[np.ndarray, "height width channels"], size: tuple[int, int], *, filter: Filter = "torchvision"
) -> UInt8[np.ndarray, "channels out_height out_width"]:
    """One image resampled to `size` (height, width), channels first; an axis whose size stays is left alone."""
    planes = frame.transpose(2, 0, 1)
    if filter == "bilinear":
        return _bilinear(planes, size)
    if filter == "torchvision_float":
        return resize_rounded(planes, size)
    if planes.shape[2] != size[1]:
        planes = _resample_last(planes, size[1], filter)
    if planes.shape[1] != size[0]:
        planes = _resample_last(planes.swapaxes(1, 2), size[0], filter).swapaxes(1, 2)
    return np.ascontiguousarray(planes)


def resize_frames(
    frames: UInt8[np.ndarray, "frames height width channels"] | Sequence[np.ndarray],
    size: tuple[int, int],
    *,
    filter: Filter = "torchvision",
    workers: int | None = None,
) -> UInt8[np.ndarray, "frames channels out_height out_width"]:
    """Frames resampled to `size` (height, width), channels first.

    Args:
      frames: uint8 RGB frames.
      size: target height and width in pixels.
      filter: bicubic with antialiasing as "torchvision" (the processors of transformers) or "pillow" (version 11; the
        lmms-lab code), which differ by one level in less than 0.5 % of the bytes, or "torchvision_float", in floats
        that are clipped and rounded once (qwen-vl-utils; a level apart in 10 to 20 % of the bytes); or "bilinear",
        from the four nearest pixels whatever the scale (Molmo2).
      workers: threads; by default one a core, at most one a frame.

    Raises:
      JvidpruneError: a target side below 1, or frames that are no uint8 (frames, height, width, channels).
    """
    check_frames(frames)
    if min(size) < 1:
        raise JvidpruneError(f"frames cannot be resized to {size[0]} x {size[1]} pixels.")
    return np.stack(map_frames(lambda frame: resize_planes(frame, size, filter=filter), frames, workers))


def _bilinear(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, H, W) uint8 to (C, *size) from the four nearest pixels, in the reference's order of float32 operations.

    The reference multiplies and adds in one rounding where the processor can, which decides rounding ties.
    """
    (top, bottom, upper, lower), (left, right, near, far) = (
        _bilinear_axis(n_in, n_out) for n_in, n_out in zip(planes.shape[1:], size, strict=True)
    )
    wide = planes.astype(np.float32)
    first, last = (_fused(wide[:, at][:, :, left], near, wide[:, at][:, :, right] * far) for at in (top, bottom))
    mixed = _fused(first, upper[:, None], last * lower[:, None])
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _bilinear_axis(n_in: int, n_out: int) -> tuple[np.ndarray, ...]:
    """Both neighbours of every output of an axis and their float32 weights; pixel centres lie at halves."""
    scale, half = np.float32(n_in) / np.float32(n_out), np.float32(0.5)
    place = np.maximum(_fused(np.arange(n_out, dtype=np.float32) + half, scale, -half), np.float32(0))
    first = np.minimum(place.astype(np.int64), n_in - 1)
    far = np.clip(place - first.astype(np.float32), np.float32(0), np.float32(1))
    return first, np.minimum(first + 1, n_in - 1), np.float32(1) - far, far


def _fused(x: np.ndarray, weight: Any, added: Any) -> np.ndarray:
    """x * weight + added of float32 numbers, rounded once."""
    return (x * np.asarray(weight, np.float64) + added).astype(np.float32)


def map_frames(work: Callable[[_T], _R], frames: Iterable[_T], workers: int | None = None) -> list[_R]:
    """`[work(frame) for frame in frames]` on a pool of threads; numpy releases the interpreter lock in its loops."""
    frames = list(frames)
    workers = min(workers or os.cpu_count() or 1, len(frames))
    if workers <= 1:
        return [work(frame) for frame in frames]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, frames))


def check_frames(frames: np.ndarray | Sequence[np.ndarray]) -> None:
    """Refuses anything but uint8 RGB frames of one size.

    Raises:
      JvidpruneError: no frames, another dtype, or other shapes than (height, width, 3).
    """
    if not len(frames):
        raise JvidpruneError("there are no frames.")
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise JvidpruneError(
                f"frames must be uint8 of shape (height, width, 3), but there are {frame.dtype} ones of {frame.shape}."
            )
        if frame.shape != frames[0].shape:
            raise JvidpruneError(f"frames must have one size, but there are {frames[0].shape} and {frame.shape}.")


def area_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """Target size of Qwen2-VL and Qwen2.5-VL: multiples of `factor` whose area lies within the limits of a frame.

    Raises:
      JvidpruneError: an aspect ratio above 200.
    """
    _check_aspect(height, width)
    tall, wide = factor * round(height / factor), factor * round(width / factor)
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif tall * wide < min_pixels:
        tall, wide = _grown(height, width, math.sqrt(min_pixels / (height * width)), factor)
    return tall, wide


def qwen_utils_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """Target size of qwen-vl-utils: as `area_size`, but a side may shrink to 0 in extreme shapes (a reference quirk).

    Raises:
      JvidpruneError: an aspect ratio above 200.
    """
    _check_aspect(height, width)
    tall, wide = max(factor, factor * round(height / factor)), max(factor, factor * round(width / factor))
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall, wide = math.floor(height / shrink / factor) * factor, math.floor(width / shrink / factor) * factor
    elif tall * wide < min_pixels:
        tall, wide = _grown(height, width, math.sqrt(min_pixels / (height * width)), factor)
    return tall, wide


def volume_size(
    frames: int, height: int, width: int, *, factor: int, min_pixels: int, max_pixels: float
) -> tuple[int, int]:
    """Target size of Qwen3-VL: the limits hold for the pixels of the whole video, counted over an even frame count.

    Raises:
      JvidpruneError: fewer than two frames, or an aspect ratio above 200.
    """
    if frames < 2:
        raise JvidpruneError(f"Qwen3-VL needs at least 2 frames, not {frames}.")
    if height < factor or width < factor:
        grow = max(factor / height, factor / width)
        height, width = int(height * grow), int(width * grow)
    _check_aspect(height, width)
    tall, wide = factor * round(height / factor), factor * round(width / factor)
    volume = 2 * round(frames / 2) * tall * wide
    # The comparison counts an even number of frames, the root the real number: as in the reference.
    if volume > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < min_pixels:
        tall, wide = _grown(height, width, math.sqrt(min_pixels / (frames * height * width)), factor)
    return tall, wide


def _grown(height: int, width: int, grow: float, factor: int) -> tuple[int, int]:
    return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor


def _check_aspect(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > 200:
        raise JvidpruneError(f"a frame of {height} x {width} pixels is more than 200 times longer than wide.")


def capped_area(frames: int, *, factor: int, min_pixels: int, max_pixels: int) -> int:
    """Largest area of a frame under `cap_pixels_per_frame` of Qwen2.5-VL's processor: a budget shared by all frames."""
    return max(min(max_pixels, int(0.9 * 128_000 * factor**2) * 2 // frames), int(1.05 * min_pixels))


def capped_volume(frames: int, *, factor: int, min_pixels: int, max_pixels: int) -> int:
    """Largest volume of a video under `cap_pixels_per_frame` of Qwen3-VL's processor."""
    return frames * max(min(768 * factor**2, max_pixels // frames), int(1.05 * min_pixels))


def qwen_utils_limits(
    frames: int,
    *,
    factor: int,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    total_pixels: float | None = None,
) -> tuple[int, float]:
    """Smallest and largest area of a frame in qwen-vl-utils; a wanted `max_pixels` cannot pass its own.

    The area of a frame is also limited to the share of `frames` pairs in `total_pixels`, 90 % of 128,000 blocks.
    """
    low = 128 * factor**2 if min_pixels is None else min_pixels
    total = 0.9 * 128_000 * factor**2 if total_pixels is None else total_pixels
    high = max(min(768 * factor**2, total / frames * 2), int(1.05 * low))
    return low, high if max_pixels is None else min(max_pixels, high)
