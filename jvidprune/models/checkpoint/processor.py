"""What a checkpoint folder says about pixels, read from the file that transformers would read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.checkpoint.folder import read_json
from jvidprune.video.preprocess import HALF, Channels, QwenPixels

BILINEAR, BICUBIC = 2, 3
"""Filters as Pillow numbers them, which is how `resample` names one."""

_FILTERS = {BILINEAR: "bilinear", BICUBIC: "bicubic"}

_NESTED, _VIDEO, _IMAGE = "processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"


def video_processor(folder: Path) -> dict[str, Any]:
    """The settings of a folder's video processor; empty where it has none.

    In the order of transformers: the `video_processor` part of processor_config.json, video_preprocessor_config.json,
    preprocessor_config.json (that of images, which the published Qwen2.5-VL and LLaVA-OneVision folders use for both).

    Raises:
      JvidpruneError: a file that is no JSON object.
    """
    return _first_settings(folder, "video_processor", (_VIDEO, _IMAGE))


def image_processor(folder: Path) -> dict[str, Any]:
    """The settings of a folder's processor of still pictures; empty where it has none.

    In the order of transformers: the `image_processor` part of processor_config.json, preprocessor_config.json.

    Raises:
      JvidpruneError: a file that is no JSON object.
    """
    return _first_settings(folder, "image_processor", (_IMAGE,))


def _first_settings(folder: Path, part: str, files: tuple[str, ...]) -> dict[str, Any]:
    """A part of processor_config.json where that is one, else the first of the files that is there."""
    if (folder / _NESTED).exists():
        nested = read_json(folder / _NESTED).get(part)
        if isinstance(nested, dict):
            return nested
    return next((read_json(folder / name) for name in files if (folder / name).exists()), {})


def qwen_limits(given: Mapping[str, Any], family: QwenPixels) -> QwenPixels:
    """A Qwen family's pixels with what a video processor's settings change.

    `min_pixels` and `max_pixels` go before `size`, whose keys are `shortest_edge` and `longest_edge`; both are areas,
    of a frame (Qwen2.5-VL) or of the whole video (Qwen3-VL), as the family's rule has it.

    Raises:
      JvidpruneError: limits that are no positive numbers in order, or sizes of patches that are not the model's.
    """
    size = given.get("size") or {}
    if not isinstance(size, dict):
        raise JvidpruneError(f"the folder's video processor has size {quoted(size)}; it must hold two areas.")
    low = _first(given.get("min_pixels"), size.get("shortest_edge"), size.get("min_pixels"), family.min_pixels)
    high = _first(given.get("max_pixels"), size.get("longest_edge"), size.get("max_pixels"), family.max_pixels)
    if not all(isinstance(limit, int) and 0 < limit < 1 << 31 for limit in (low, high)) or low > high:
        raise JvidpruneError(
            f"the folder's video processor limits pixels to {quoted(low)}..{quoted(high)}, which is no range."
        )
    model = {"patch_size": family.patch, "merge_size": family.merge, "temporal_patch_size": family.pair}
    if wrong := [name for name, value in model.items() if given.get(name, value) != value]:
        raise JvidpruneError(
            f"the folder's video processor has {wrong[0]} {quoted(given[wrong[0]])}, but the model was built for "
            f"{model[wrong[0]]}."
        )
    mean, std = channels(given, family.mean, family.std)
    changed: dict[str, Any] = {"min_pixels": low, "max_pixels": high, "do_resize": resizes(given)}
    changed["cap_pixels_per_frame"] = _flag(given, "cap_pixels_per_frame", family.cap_pixels_per_frame)
    return dataclasses.replace(family, **changed, mean=mean, std=std)


def resizes(given: Mapping[str, Any], resample: int = BICUBIC) -> bool:
    """Whether a processor resizes frames (`do_resize`).

    Args:
      given: its settings.
      resample: the one filter that the family's frames are resized with, numbered as in Pillow.

    Raises:
      JvidpruneError: another filter, a centre crop, or flags that are none.
    """
    found = given.get("resample")
    if found is not None and (isinstance(found, bool) or found != resample):
        raise JvidpruneError(
            f"the folder's video processor has resample {quoted(found)}, but frames of this family are resized with "
            f"{resample} ({_FILTERS[resample]}) alone."
        )
    if _flag(given, "do_center_crop", False):
        raise JvidpruneError("the folder's video processor has do_center_crop true, which is not supported.")
    return _flag(given, "do_resize", True)


def channels(given: Mapping[str, Any], mean: Channels = HALF, std: Channels = HALF) -> tuple[Channels, Channels]:
    """What a processor subtracts from levels and divides them by, in units of the full range.

    That is `image_mean` and `image_std`, those of the family where it has none, for a `rescale_factor` of 1/255;
    another factor, no rescaling (`do_rescale`) and no normalising (`do_normalize`) come to other numbers of the same
    arithmetic.

    Raises:
      JvidpruneError: not three numbers, a deviation or a factor that is not positive, or flags that are none.
    """
    factor = given.get("rescale_factor")
    factor = 1 / 255 if factor is None else factor
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e6:
        raise JvidpruneError(f"the folder's video processor has rescale_factor {quoted(factor)}; it must be above 0.")
    if not _flag(given, "do_rescale", True):
        factor = 1.0
    if not _flag(given, "do_normalize", True):
        width = 1 / (255 * factor)
        return (0.0, 0.0, 0.0), (width, width, width)
    found = []
    for name, default in (("image_mean", mean), ("image_std", std)):
        value = given.get(name) or default
        numbers = isinstance(value, list | tuple) and all(
            isinstance(part, int | float) and abs(part) < 1e6 for part in value
        )
        if not numbers or len(value) != 3 or (name == "image_std" and min(value) <= 0):
            raise JvidpruneError(
                f"the folder's video processor has {name} {quoted(value)}; it must hold three numbers."
            )
        first, second, third = (float(part) / (255 * factor) for part in value)
        found.append((first, second, third))
    return found[0], found[1]


def _flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise JvidpruneError(f"the folder's video processor has {name} {quoted(value)}; it must be true or false.")
    return value


def sampling_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a video processor's settings say about the frames of a video, as fields of `FamilySettings`.

    `num_frames` and `fps` are what it samples, `min_frames`, `max_frames` and `max_fps` the limits. A processor that
    does not sample (`do_sample_frames` false) leaves all of this to whoever calls it.

    Returns:
      frames, fps, fewest, most and fastest, as far as the settings have them; samples, whether it says that it samples.

    Raises:
      JvidpruneError: values of another kind, a number of frames and a rate, limits that are no range, or a mode of
        sampling that is not Molmo2's released one, or not InternVL's.
    """
    samples = given.get("do_sample_frames")
    if samples not in (None, True, False) or isinstance(samples, int) != isinstance(samples, bool):
        raise JvidpruneError(
            f"the folder's video processor has do_sample_frames {quoted(samples)}; it must be true or false."
        )
    if samples is False:
        return {"samples": False}
    names = {"num_frames": "frames", "fps": "fps", "min_frames": "fewest", "max_frames": "most", "max_fps": "fastest"}
    found: dict[str, Any] = {}
    for key, field in names.items():
        value = given.get(key)
        if value is None:
            continue
        kind, text = ((int, float), "a number above 0") if "fps" in key else (int, "a whole number above 0")
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 1 << 31:
            raise JvidpruneError(f"the folder's video processor has {key} {quoted(value)}; it must be {text}.")
        found[field] = value
    if {"frames", "fps"} <= found.keys():
        raise JvidpruneError(
            f"the folder's video processor has num_frames {found['frames']} and fps {found['fps']}; it can sample by "
            "one of them alone."
        )
    if found.get("fewest", 1) > found.get("most", found.get("fewest", 1)):
        raise JvidpruneError(
            f"the folder's video processor has min_frames {found['fewest']} above max_frames {found['most']}."
        )
    shift = given.get("initial_shift")
    if shift is not None and shift is not True:
        raise JvidpruneError(
            f"the folder's video processor has initial_shift {quoted(shift)}; only true is known, the middles of "
            "stretches."
        )
    mode = given.get("frame_sample_mode")
    if mode not in (None, "uniform_last_frame"):
        raise JvidpruneError(
            f"the folder's video processor has frame_sample_mode {quoted(mode)}; only 'uniform_last_frame' is known."
        )
    return found | {"samples": bool(samples)}


def square(given: Mapping[str, Any], side: int) -> int:
    """The side that LLaVA frames are squashed to, which must be the tower's.

    Raises:
      JvidpruneError: another size than the tower's.
    """
    size = given.get("size") or side
    sides = [size.get(key, side) for key in ("height", "width")] if isinstance(size, dict) else [size]
    if any(found != side for found in sides):
        raise JvidpruneError(
            f"the folder's video processor makes frames of {quoted(size)}, but the tower reads {side} pixels."
        )
    return side


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
