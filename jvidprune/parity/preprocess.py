"""Parity of video preprocessing: resampled bytes, LLaVA pixels, Qwen patches, sampling and size tables."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.video import preprocess, resize, sampling

# Fused and unfused normalisation agree within this (specification, section 3).
_ATOL = 1e-6


def _size(config: Mapping[str, Any]) -> tuple[int, int]:
    size = config["size"]
    return (size["height"], size["width"]) if isinstance(size, dict) else (size, size)


def _is_resample(golden: Golden) -> bool:
    return golden.config.get("filter") == "bicubic" and "cases" in golden.config and golden.has("in0", "torchvision0")


def _compare_resample(golden: Golden) -> Iterable[Row]:
    for i, (_, _, height, width, kind) in enumerate(golden.config["cases"]):
        for filter in ("torchvision", "pillow"):
            key = f"{filter}{i}"
            if golden.has(key):
                planes = resize.resize_planes(golden[f"in{i}"], (height, width), filter=filter)
                yield exact(key, planes.transpose(1, 2, 0), golden[key], kind)


def _is_llava(golden: Golden) -> bool:
    pixels = golden.has("pixel_values_videos") or golden.has("pixel_values_checksum")
    return pixels and golden.has("frames_uint8") and {"size", "image_mean", "image_std"} <= set(golden.config)


def _compare_llava(golden: Golden) -> Iterable[Row]:
    config = golden.config
    resized = resize.resize_frames(golden["frames_uint8"], _size(config))
    if golden.has("resized_uint8"):
        yield exact("resized_uint8", resized, golden["resized_uint8"])
    pixels = preprocess.normalise(resized, config["image_mean"], config["image_std"])
    if golden.has("pixel_values_videos"):
        yield close("pixel_values_videos", pixels, golden["pixel_values_videos"], _ATOL)
    if golden.has("pixel_values_checksum"):
        wide = pixels.astype(np.float64)
        sums = [wide.sum(), np.abs(wide).sum()]
        yield close("pixel_values_checksum", sums, golden["pixel_values_checksum"], 0.1 * _ATOL * wide.size)


def _is_qwen(golden: Golden) -> bool:
    keys = ("frames_uint8", "patches_uint8", "pixel_values_first4", "video_grid_thw")
    return golden.has(*keys) and {"patch_size", "size", "image_mean", "image_std"} <= set(golden.config)


def _compare_qwen(golden: Golden) -> Iterable[Row]:
    config = golden.config
    # The files of both families carry the same keys; only the published patch sides tell the size rules apart.
    family = preprocess.QWEN3_VL if config["patch_size"] == 16 else preprocess.QWEN2_5_VL
    family = dataclasses.replace(
        family,
        patch=config["patch_size"],
        min_pixels=config["size"]["shortest_edge"],
        max_pixels=config["size"]["longest_edge"],
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )
    frames = golden["frames_uint8"]
    raw = preprocess.patchify(preprocess.qwen_resized(frames, family), family)
    yield exact("video_grid_thw", np.asarray(raw.grid)[None], golden["video_grid_thw"], family.rule)
    yield exact("patches_uint8", raw.values, golden["patches_uint8"])
    pixels = preprocess.qwen_patches(frames, family).values[:4]
    yield close("pixel_values_first4", pixels, golden["pixel_values_first4"], _ATOL)


def _is_tables(golden: Golden) -> bool:
    return not golden.arrays and bool({"sampling", "smart_resize", "qwen3_timestamps"} & set(golden.config))


def _compare_tables(golden: Golden) -> Iterable[Row]:
    tables = golden.config
    yield from _compare_cases(tables.get("sampling", []), _SAMPLING)
    yield from _compare_cases(tables.get("smart_resize", []), _SIZES)
    yield from _compare_cases(tables.get("qwen3_timestamps", []), _STAMPS)


def _compare_cases(
    cases: list[dict[str, Any]], columns: Mapping[str, Callable[[dict[str, Any]], Any]]
) -> Iterable[Row]:
    """One row a column: the number of cases that differ; a reference error asks for an error of ours."""
    for unknown in sorted({key for case in cases for key in case} - set(columns) - _INPUTS):
        yield Row(unknown, None, None, "not compared", "no rule of this name")
    for name, ours in columns.items():
        listed = [case for case in cases if name in case]
        if not listed:
            continue
        wrong = [i for i, case in enumerate(listed) if not _same(_or_error(ours, case), case[name])]
        note = f"{len(listed)} cases" + (f", wrong: {wrong}" if wrong else "")
        yield Row(name, float(len(wrong)), 0.0, "mismatch" if wrong else "ok", note)


def _or_error(ours: Callable[[dict[str, Any]], Any], case: dict[str, Any]) -> Any:
    try:
        return ours(case)
    except JvidpruneError:
        return "error"


def _same(ours: Any, golden: Any) -> bool:
    if isinstance(golden, str) and golden.startswith("error"):
        return ours == "error"
    if isinstance(golden, list) and any(isinstance(value, float) for value in golden):
        return len(ours) == len(golden) and bool(np.allclose(ours, golden, rtol=0, atol=1e-12))
    return ours == golden


def _sampler(rule: sampling.Rule, wish: str) -> Callable[[dict[str, Any]], list[int]]:
    """A column of the sampling table: a rule, asked for a number of frames or for a rate."""

    def sample(case: dict[str, Any]) -> list[int]:
        num_frames, fps = (None, case["target_fps"]) if wish == "fps" else (case["num_frames"], None)
        return sampling.reference_indices(case["total"], case["fps"], rule, num_frames, fps).tolist()

    return sample


def _times(part: int, *, force: bool) -> Callable[[dict[str, Any]], str]:
    return lambda case: sampling.llava_times(case["total"], case["fps"], case["num_frames"], force=force)[part]


_SAMPLING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "hf_default_num_frames": _sampler("hf_default", "num_frames"),
    "hf_default_fps": _sampler("hf_default", "fps"),
    "hf_qwen2_num_frames": _sampler("hf_qwen2", "num_frames"),
    "hf_qwen2_fps": _sampler("hf_qwen2", "fps"),
    "hf_qwen3_num_frames": _sampler("hf_qwen3", "num_frames"),
    "hf_qwen3_fps": _sampler("hf_qwen3", "fps"),
    "qwen_utils_nframes": _sampler("qwen_utils", "num_frames"),
    "qwen_utils_fps": _sampler("qwen_utils", "fps"),
    "llava_video_force": _sampler("llava_video_force", "num_frames"),
    "llava_video_force_times": _times(0, force=True),
    "llava_video_upto": _sampler("llava_video_upto", "num_frames"),
    "llava_video_upto_times": _times(0, force=False),
    "video_time": _times(1, force=True),
}


_INPUTS = {
    *("total", "fps", "num_frames", "target_fps", "frame_indices"),
    *("height", "width", "factor", "min_pixels", "max_pixels"),
}


def _limits(case: dict[str, Any]) -> dict[str, Any]:
    return {key: case[key] for key in ("factor", "min_pixels", "max_pixels")}


_SIZES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "area": lambda case: list(resize.area_size(case["height"], case["width"], **_limits(case))),
    "volume": lambda case: list(resize.volume_size(case["num_frames"], case["height"], case["width"], **_limits(case))),
    "qwen_utils": lambda case: list(resize.qwen_utils_size(case["height"], case["width"], **_limits(case))),
}


def _pair_timestamps(case: dict[str, Any]) -> list[float]:
    return sampling.pair_timestamps(case["frame_indices"], case["fps"])


_STAMPS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "timestamps": _pair_timestamps,
    "text": lambda case: [sampling.stamp(seconds) for seconds in _pair_timestamps(case)],
}


COMPARERS = [
    Comparer("preprocess", _is_resample, _compare_resample),
    Comparer("preprocess", _is_llava, _compare_llava),
    Comparer("preprocess", _is_qwen, _compare_qwen),
    Comparer("preprocess", _is_tables, _compare_tables),
]
