"""Frames into the pixels a backbone reads: target size, resampling, normalisation and, for Qwen, the patch layout."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from jvidprune.errors import JvidpruneError
from jvidprune.video import resize
from jvidprune.video.resize import Filter, check_frames, map_frames, resize_planes
from jvidprune.video.resize_float import resize_float

Channels = tuple[float, float, float]

HALF: Channels = (0.5, 0.5, 0.5)
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


def normalise(values: np.ndarray, mean: Channels = HALF, std: Channels = HALF, axis: int = -3) -> np.ndarray:
    """Grey levels 0..255 to float32 (x - 255 mean) / (255 std), rescaling and normalising in one step.

    Args:
      values: uint8 or float32 with three channels on `axis`.
      mean: per channel, in units of the full range.
      std: per channel, in units of the full range.
      axis: the channel axis, negative.

    Returns:
      float32 of the same shape.
    """
    shape = (3,) + (1,) * (-axis - 1)
    low = (np.asarray(mean, np.float32) * np.float32(255)).reshape(shape)
    width = (np.asarray(std, np.float32) * np.float32(255)).reshape(shape)
    result = np.subtract(values, low, dtype=np.float32)
    result /= width
    return result


def llava_pixels(
    frames: UInt8[np.ndarray, "frames height width 3"],
    *,
    size: int = 384,
    mean: Channels = HALF,
    std: Channels = HALF,
    filter: Filter = "torchvision",
    do_resize: bool = True,
    workers: int | None = None,
) -> Float32[np.ndarray, "frames 3 size size"]:
    """What LLaVA, Molmo2 and InternVL read: frames squashed to a square (aspect ratio not kept) and normalised.

    Args:
      frames: uint8 RGB.
      size: side of the square in pixels.
      mean: per channel, in units of the full range.
      std: per channel, in units of the full range.
      filter: "torchvision" as the llava-hf processor, "pillow" as the lmms-lab code, "bilinear" as Molmo2's processor
        (`resize.resize_frames`).
      do_resize: False takes frames of this size alone.
      workers: threads; by default one a core.

    Raises:
      JvidpruneError: frames that are no uint8 (frames, height, width, 3), a size below 1, or frames of another size
        that may not be resized.
    """
    check_frames(frames)
    if size < 1:
        raise JvidpruneError(f"frames cannot be resized to {size} x {size} pixels.")
    height, width = frames[0].shape[:2]
    if not do_resize and (height, width) != (size, size):
        raise JvidpruneError(
            f"the folder's video processor says do_resize false, but frames of {height} x {width} pixels are not the "
            f"{size} x {size} that the tower reads."
        )
    work: Callable[[np.ndarray], np.ndarray] = lambda frame: normalise(  # noqa: E731
        resize_planes(frame, (size, size), filter=filter), mean, std
    )
    return np.stack(map_frames(work, frames, workers))


@dataclasses.dataclass(frozen=True)
class QwenPixels:
    """How a Qwen processor makes patches of a video.

    Attributes:
      patch: side of a patch in pixels; target sides are multiples of `patch * merge`.
      rule: "area" limits the pixels of a frame (Qwen2.5-VL), "volume" those of the whole video (Qwen3-VL); "share"
        takes the lower limit of a frame and for the upper one its equal share in that of the video (VideoLLaMA3).
      min_pixels: lower limit of the rule.
      max_pixels: upper limit of the rule.
      mean: per channel, in units of the full range.
      std: per channel, in units of the full range.
      merge: patches on a side of the block that becomes one token.
      pair: frames in a grid frame; an incomplete last one repeats the last frame.
      cap_pixels_per_frame: the option of transformers 5.23 that limits frames as qwen-vl-utils does.
      do_resize: False leaves frames as they come.
    """

    patch: int
    rule: Literal["area", "volume", "share"]
    min_pixels: int
    max_pixels: int
    mean: Channels = HALF
    std: Channels = HALF
    merge: int = 2
    pair: int = 2
    cap_pixels_per_frame: bool = False
    do_resize: bool = True

    @property
    def factor(self) -> int:
        """What target sides are multiples of."""
        return self.patch * self.merge

    def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Target height and width in pixels of a video of this size.

        Raises:
          JvidpruneError: a shape the rule refuses, or one that may not be resized and cannot be cut into tokens.
        """
        if not self.do_resize:
            if height % self.factor or width % self.factor:
                raise JvidpruneError(
                    f"the folder's video processor says do_resize false, but the sides of frames of {height} x {width} "
                    f"pixels are no multiples of {self.factor}."
                )
            return height, width
        limits: dict[str, Any] = {"factor": self.factor, "min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        if self.rule == "share":
            # The upper limit goes before the lower one, in a long video below it.
            return resize.area_size(height, width, **(limits | {"max_pixels": max(self.max_pixels // frames, 1)}))
        if self.rule == "area":
            if self.cap_pixels_per_frame:
                limits["max_pixels"] = resize.capped_area(frames, **limits)
            return resize.area_size(height, width, **limits)
        if self.cap_pixels_per_frame:
            limits["max_pixels"] = resize.capped_volume(frames, **limits)
        return resize.volume_size(frames, height, width, **limits)


@dataclasses.dataclass(frozen=True)
class PictureUtils:
    """The resizing of a still picture by qwen-vl-utils, which runs before a processor; None takes its own limits.

    Attributes:
      min_pixels: smallest area; default 4 blocks of `factor` x `factor` pixels.
      max_pixels: largest area; default 16,384 blocks.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None

    def size(self, height: int, width: int, factor: int) -> tuple[int, int]:
        """Target height and width in pixels."""
        low = 4 * factor**2 if self.min_pixels is None else self.min_pixels
        high = 16_384 * factor**2 if self.max_pixels is None else self.max_pixels
        return resize.qwen_utils_size(height, width, factor=factor, min_pixels=low, max_pixels=high)


# Limits of the published preprocessor_config files.
QWEN2_5_VL = QwenPixels(14, "area", 3136, 12_845_056, CLIP_MEAN, CLIP_STD)
QWEN3_VL = QwenPixels(16, "volume", 4096, 25_165_824)

# Those of still pictures, for folders that name none.
QWEN2_5_VL_PICTURE = QwenPixels(14, "area", 3136, 12_845_056, CLIP_MEAN, CLIP_STD)
QWEN3_VL_PICTURE = QwenPixels(16, "area", 65_536, 16_777_216)

# The defaults of transformers' class; every patch is a token.
VIDEO_LLAMA_3_PICTURE = QwenPixels(14, "area", 56**2, 28**2 * 1280, merge=1, pair=1)

# 16 tokens a frame to 16,384 a video, for folders that name no limits.
VIDEO_LLAMA_3 = QwenPixels(14, "share", 16 * 28**2, 16_384 * 28**2, pair=1)


@dataclasses.dataclass(frozen=True)
class QwenUtils:
    """The resizing of qwen-vl-utils, which runs before a processor; limits are pixels of a frame, None its own.

    Attributes:
      min_pixels: smallest area; default 128 blocks of `factor` x `factor` pixels.
      max_pixels: largest area; clamped to 768 blocks and to the share of a frame in `total_pixels`.
      total_pixels: of the whole video; default 90 % of 128,000 blocks.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: float | None = None

    def size(self, frames: int, height: int, width: int, factor: int) -> tuple[int, int]:
        """Target height and width in pixels."""
        low, high = resize.qwen_utils_limits(
            frames,
            factor=factor,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            total_pixels=self.total_pixels,
        )
        return resize.qwen_utils_size(height, width, factor=factor, min_pixels=low, max_pixels=high)


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """A video as a Qwen vision tower reads it; to JAX a tree of one array, `grid` is static (`models.qwen.model`).

    Attributes:
      values: (patches, 3 * pair * patch * patch), rows by (grid frame, block row, block column, row, column in block),
        columns by (channel, frame in pair, row, column).
      grid: grid frames, patch rows, patch columns.
    """

    values: Any
    grid: tuple[int, int, int]


def qwen_resized(
    frames: UInt8[np.ndarray, "frames height width 3"],
    family: QwenPixels,
    *,
    utils: QwenUtils | None = None,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Frames at the target size of a Qwen processor, before normalising: (frames, 3, h, w) uint8.

    With `utils` the frames take the road of the reference pipeline: resized to the size of qwen-vl-utils with its own
    filter (`resize_float.resize_rounded`), and once more as floats if the processor resizes (`family.do_resize`) and
    its rule asks for another size; the result is float32 then. A `size` is taken in place of all rules, and reached at
    once.

    Raises:
      JvidpruneError: frames that are no uint8 (frames, height, width, 3), or a shape the rule refuses.
    """
    check_frames(frames)
    count, (height, width) = len(frames), frames[0].shape[:2]
    if size is not None:
        # With the filter that comes first: the processor is told to leave the frames alone.
        own: Filter = "torchvision" if utils is None else "torchvision_float"
        return resize.resize_frames(frames, size, filter=own, workers=workers)
    if utils is None:
        return resize.resize_frames(frames, family.size(count, height, width), workers=workers)
    wanted = utils.size(count, height, width, family.factor)
    result = resize.resize_frames(frames, wanted, filter="torchvision_float", workers=workers)
    if (final := family.size(count, *wanted)) != wanted:
        return np.stack(map_frames(lambda frame: resize_float(frame, final), result, workers))
    return result


def patchify(frames: np.ndarray, family: QwenPixels) -> Patches:
    """(frames, 3, h, w) of any dtype into rows of patches; sides are multiples of `family.factor`."""
    missing = -len(frames) % family.pair
    frames = np.concatenate([frames, *[frames[-1:]] * missing]) if missing else frames
    count, channels, height, width = frames.shape
    rows, columns = height // family.patch, width // family.patch
    merge, patch = family.merge, family.patch
    steps = count // family.pair
    blocks = frames.reshape(
        steps, family.pair, channels, rows // merge, merge, patch, columns // merge, merge, patch
    ).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return Patches(
        blocks.reshape(steps * rows * columns, channels * family.pair * patch * patch),
        (steps, rows, columns),
    )


def qwen_patches(
    frames: UInt8[np.ndarray, "frames height width 3"],
    family: QwenPixels,
    *,
    utils: QwenUtils | None = None,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
) -> Patches:
    """What Qwen2.5-VL, Qwen3-VL and VideoLLaMA3 read: resized, normalised frames cut into patches, float32.

    Args:
      frames: uint8 RGB; where two make a grid frame, an odd number repeats the last.
      family: `QWEN2_5_VL`, `QWEN3_VL`, `VIDEO_LLAMA_3` or one with other limits (`dataclasses.replace`).
      utils: resize as qwen-vl-utils does first.
      size: height and width in pixels to resize to whatever the rules ask for, multiples of `family.factor`.
      workers: threads; by default one a core.

    Raises:
      JvidpruneError: frames that are no uint8 (frames, height, width, 3), or a shape the rule refuses.
    """
    resized = qwen_resized(frames, family, utils=utils, size=size, workers=workers)
    # Cut first: bytes move four times faster than floats, and a row of a patch vector is one run of a channel.
    cut = patchify(resized, family)
    values = normalise(cut.values.reshape(len(cut.values), 3, -1), family.mean, family.std, axis=-2)
    return Patches(values.reshape(cut.values.shape), cut.grid)


def qwen_picture(
    picture: UInt8[np.ndarray, "height width 3"], family: QwenPixels, *, utils: PictureUtils | None = None
) -> Patches:
    """What Qwen2.5-VL, Qwen3-VL and VideoLLaMA3 read of a still picture: resized, normalised, cut into patches.

    Args:
      picture: uint8 RGB; it fills all frames of its one grid frame.
      family: `QWEN2_5_VL_PICTURE`, `QWEN3_VL_PICTURE`, `VIDEO_LLAMA_3_PICTURE` or one with other limits.
      utils: resize as qwen-vl-utils does first, by Pillow's bicubic filter; the processor then resizes the bytes again
        where it resizes (`family.do_resize`) and asks for another size.

    Raises:
      JvidpruneError: no uint8 (height, width, 3), or a shape that the rule refuses.
    """
    check_frames(picture[None])
    if utils is not None:
        height, width = utils.size(picture.shape[0], picture.shape[1], family.factor)
        picture = resize_planes(picture, (height, width), filter="pillow").transpose(1, 2, 0)
    planes = resize_planes(picture, family.size(1, picture.shape[0], picture.shape[1]))
    cut = patchify(planes[None], family)
    values = normalise(cut.values.reshape(len(cut.values), 3, -1), family.mean, family.std, axis=-2)
    return Patches(values.reshape(cut.values.shape), cut.grid)


def qwen_picture_size(height: int, width: int, family: QwenPixels, *, utils: PictureUtils | None) -> tuple[int, int]:
    """Height and width in pixels that `qwen_picture` resizes to."""
    if utils is not None:
        height, width = utils.size(height, width, family.factor)
    return family.size(1, height, width)
