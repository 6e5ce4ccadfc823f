"""Sampling, resampling and preprocessing against the golden files and against brute force."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.places import GOLDEN
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jvidprune.errors import JvidpruneError
from jvidprune.parity.core import run_folder
from jvidprune.parity.preprocess import COMPARERS
from jvidprune.video import bands, preprocess, resize, sampling
from jvidprune.video import resize_float as floats
from jvidprune.video.resize_float import resize_float

GOLDEN = GOLDEN / "preprocess"


def pixels(height, width, frames=1, seed=0):
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.golden
def test_golden_files_match_to_the_byte():
    reports = list(run_folder(GOLDEN, COMPARERS))
    assert {report.file for report in reports} == {path.name for path in GOLDEN.iterdir()}
    for report in reports:
        assert report.passed, (report.file, report.rows)
    exact = [row for report in reports for row in report.rows if row.limit == 0.0]
    assert len(exact) >= 12 + 2 * len(list(GOLDEN.glob("qwen*.npz"))) + 18
    assert all(row.deviation == 0 for row in exact)


def test_parity_notices_a_wrong_table_and_passes_over_other_json(tmp_path):
    tables = json.loads((GOLDEN / "tables.json").read_text())
    tables["sampling"][3]["hf_qwen2_fps"][5] += 1
    tables["sampling"][5]["qwen_utils_nframes"] = [0, 1, 2, 3]
    tables["smart_resize"][0]["volume"][0] += 28
    tables["smart_resize"][1]["square"] = [1, 1]
    (tmp_path / "tables.json").write_text(json.dumps(tables))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (report,) = run_folder(tmp_path, COMPARERS)
    assert {row.what for row in report.rows if not row.passed} == {
        "hf_qwen2_fps",
        "qwen_utils_nframes",
        "volume",
        "square",
    }
    (tmp_path / "tables.json").unlink()
    with pytest.raises(JvidpruneError, match=r"no golden \.npz"):
        list(run_folder(tmp_path, COMPARERS))


def keys_kernel(x):
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def slow_axis(line, n_out, filter):
    """One axis of one image with Python integers, from the text of the specification."""
    n_in = len(line)
    if n_in == n_out:
        return line
    scale = n_in / n_out
    fs = max(scale, 1)
    rows = []
    for i in range(n_out):
        c = (i + 0.5) * scale
        lo, hi = max(int(c - 2 * fs + 0.5), 0), min(int(c + 2 * fs + 0.5), n_in)
        w = [keys_kernel((j - c + 0.5) / fs) for j in range(lo, hi)]
        rows.append((lo, [v / sum(w) for v in w]))
    q = 22
    if filter == "torchvision":
        top = max(max(w) for _, w in rows)
        q = 0
        while q < 22 and int(0.5 + top * 2 ** (q + 1)) < 2**15:
            q += 1
    out = []
    for lo, w in rows:
        total = sum(int(v * 2**q + math.copysign(0.5, v)) * line[lo + j].astype(np.int64) for j, v in enumerate(w))
        out.append(np.clip((total + (1 << (q - 1))) >> q, 0, 255).astype(np.uint8))
    return np.stack(out)


sides = st.integers(1, 40)


@settings(max_examples=15, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from(["torchvision", "pillow"]), st.integers(0, 99))
def test_resampling_equals_integer_brute_force(height, width, tall, wide, filter, seed):
    frame = pixels(height, width, seed=seed)[0]
    frame[seed % height :] = (frame[seed % height :] > 127) * 255
    rows = slow_axis(frame.swapaxes(0, 1), wide, filter).swapaxes(0, 1)
    expected = slow_axis(rows, tall, filter)
    assert np.array_equal(resize.resize_planes(frame, (tall, wide), filter=filter), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("filter", ["torchvision", "pillow"])
def test_resampling_is_exact_at_real_ratios(filter):
    """Sums close to 2^24: hard edges at the ratios of 720p and 1080p to 384, where float32 is about to give way."""
    for n_in in (1280, 1920, 97):
        line = np.where(pixels(6, n_in, seed=n_in)[0] > 90, 255, 0).astype(np.uint8)
        expected = slow_axis(line.swapaxes(0, 1), 384, filter).swapaxes(0, 1)
        assert np.array_equal(resize.resize_planes(line, (6, 384), filter=filter), expected.transpose(2, 0, 1))


def test_threads_and_blocks_change_nothing(monkeypatch):
    frames = pixels(90, 70, frames=3)
    expected = resize.resize_frames(frames, (33, 51), workers=1)
    monkeypatch.setattr(bands, "_BLOCK_VALUES", 1000)
    monkeypatch.setattr(bands, "_SERIAL_PRODUCT", 5000)
    assert np.array_equal(resize.resize_frames(frames, (33, 51), workers=3), expected)


def test_float_resampling_agrees_with_bytes_and_keeps_fitting_frames():
    smooth = np.cumsum(pixels(40, 60) % 5, axis=2, dtype=np.int64).astype(np.uint8).transpose(0, 3, 1, 2)
    values = smooth.astype(np.float32)
    assert np.array_equal(resize_float(values, (40, 60)), values)
    fine = resize_float(values, (25, 90))
    coarse = resize.resize_planes(smooth[0].transpose(1, 2, 0), (25, 90))
    inside = (fine[0] > 1) & (fine[0] < 254)
    assert fine.dtype == np.float32
    assert np.abs(fine[0] - coarse)[inside].max() <= 2.0


def slow_float_axis(line, n_out):
    """One axis of one image as torch's kernel for floats takes it: which operations are in double is its own."""
    n_in, one = len(line), np.float32
    if n_in == n_out:
        return line.astype(np.float32)

    def fused(x, y, z):
        return one(float(x) * float(y) + float(z))

    def kernel(x):
        if x < 1:
            return fused(fused(x, one(1.5), -2.5) * x, x, 1)
        return fused(fused(fused(x, one(-0.5), 2.5), x, -4), x, 2) if x < 2 else one(0)

    scale = one(n_in) / one(n_out)
    widen = max(scale, one(1))
    support, narrow = one(2 * float(widen)), one(1 / float(widen))
    out = []
    for i in range(n_out):
        centre = one(float(scale) * (i + 0.5))
        lo = max(int(float(centre - support) + 0.5), 0)
        hi = min(int(float(centre + support) + 0.5), n_in)
        weights = [kernel(abs(one((float(one(j) - centre) + 0.5) * float(narrow)))) for j in range(lo, hi)]
        total = one(0)
        for weight in weights:
            total += weight
        weights = [weight / total for weight in weights]
        terms = [line[j].astype(np.float32) for j in range(lo, hi)]
        value = terms[0] * weights[0]
        plain = 1 + (len(terms) - 1) // 4 * 4
        for number, (term, weight) in enumerate(zip(terms[1:], weights[1:], strict=True), 1):
            product = term * weight if number < plain else term.astype(np.float64) * float(weight)
            value = (value + product).astype(np.float32)
        out.append(value)
    return np.stack(out)


@settings(max_examples=15, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 99))
def test_float_resampling_is_rounded_once_and_equals_brute_force(height, width, tall, wide, seed):
    """The road of qwen-vl-utils; hard edges and few levels give many sums of exactly a half."""
    frame = pixels(height, width, seed=seed)[0]
    frame[seed % height :] = frame[seed % height :] // 64 * 64
    rows = slow_float_axis(frame.swapaxes(0, 1), wide).swapaxes(0, 1)
    expected = np.rint(np.clip(slow_float_axis(rows, tall), 0, 255))
    found = resize.resize_planes(frame, (tall, wide), filter="torchvision_float")
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected.transpose(2, 0, 1))
    free = resize_float(frame.transpose(2, 0, 1), (tall, wide))
    np.testing.assert_allclose(free, slow_float_axis(rows, tall).transpose(2, 0, 1), atol=1e-3)


def test_many_halves_are_taken_in_parts(monkeypatch):
    frame = np.where(pixels(40, 60)[0] > 127, 255, 0).astype(np.uint8)
    whole = resize.resize_planes(frame, (20, 30), filter="torchvision_float")
    monkeypatch.setattr(floats, "_TERMS", 500)
    assert np.array_equal(resize.resize_planes(frame, (20, 30), filter="torchvision_float"), whole)


def test_normalising_equals_rescale_then_normalise():
    frames = pixels(5, 7).transpose(0, 3, 1, 2)
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (preprocess.CLIP_MEAN, preprocess.CLIP_STD))
    ours = preprocess.normalise(frames, preprocess.CLIP_MEAN, preprocess.CLIP_STD)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, (frames / 255 - mean) / std, atol=1e-6)


def test_llava_squashes_to_a_square_by_either_filter():
    frames = pixels(50, 81, frames=2)
    values = preprocess.llava_pixels(frames, size=42)
    assert values.shape == (2, 3, 42, 42)
    resized = resize.resize_frames(frames, (42, 42))
    np.testing.assert_allclose(values, resized / 127.5 - 1, atol=1e-6)
    other = preprocess.llava_pixels(frames, size=42, filter="pillow")
    steps = np.abs(values - other) * 127.5
    assert 0 < steps.max() <= 2.01
    assert (steps > 0.5).mean() < 0.01


def test_patches_stand_in_block_order():
    family = preprocess.QwenPixels(2, "area", 16, 10**6)
    frames = np.arange(3 * 3 * 8 * 12).reshape(3, 3, 8, 12)
    cut = preprocess.patchify(frames, family)
    values = cut.values
    assert cut.grid == (2, 4, 6)
    assert values.shape == (2 * 4 * 6, 3 * 2 * 2 * 2)
    # Patch 5 of the first grid frame: second block, its patch (0, 1), so rows 0-1 and columns 6-7.
    expected = [frames[t, c, y, x] for c in range(3) for t in (0, 1) for y in (0, 1) for x in (6, 7)]
    assert values[5].tolist() == expected
    # The last frame stands in for the missing one.
    assert np.array_equal(values[24:].reshape(24, 3, 2, 4)[:, :, 0], values[24:].reshape(24, 3, 2, 4)[:, :, 1])


@pytest.mark.parametrize("family", [preprocess.QWEN2_5_VL, preprocess.QWEN3_VL])
def test_qwen_patches_of_both_roads(family):
    frames = pixels(60, 90, frames=3)
    cut = preprocess.qwen_patches(frames, family)
    assert cut.values.dtype == np.float32
    assert cut.values.shape == (np.prod(cut.grid), 6 * family.patch**2)
    small = preprocess.QwenUtils(min_pixels=family.factor**2, max_pixels=6 * family.factor**2)
    tall, wide = small.size(3, 60, 90, family.factor)
    assert tall * wide <= 6 * family.factor**2
    resized = preprocess.qwen_resized(frames, family, utils=small)
    assert resized.shape[2:] == family.size(3, tall, wide)
    once = dataclasses.replace(family, min_pixels=1 << 22, max_pixels=1 << 23, do_resize=False)
    resized = preprocess.qwen_resized(frames, once, utils=small)
    assert resized.shape[2:] == (tall, wide)
    expected = resize.resize_frames(frames, (tall, wide), filter="torchvision_float")
    assert np.array_equal(resized, expected)
    assert once.size(3, tall, wide) == (tall, wide)
    with pytest.raises(JvidpruneError, match="do_resize false, but the sides of frames of 60 x 91 pixels are no"):
        once.size(3, 60, 91)
    tight = dataclasses.replace(family, min_pixels=1, max_pixels=2 * 3 * family.factor**2)
    assert preprocess.qwen_resized(frames, tight, utils=preprocess.QwenUtils()).dtype == np.float32


def test_caps_follow_the_specification():
    capped = dataclasses.replace(preprocess.QWEN2_5_VL, cap_pixels_per_frame=True)
    assert capped.size(64, 4000, 4000) == resize.area_size(
        4000, 4000, factor=28, min_pixels=3136, max_pixels=int(0.9 * 128000 * 784) * 2 // 64
    )
    assert resize.capped_area(10**9, factor=28, min_pixels=3136, max_pixels=12845056) == int(1.05 * 3136)
    assert resize.capped_volume(4, factor=32, min_pixels=4096, max_pixels=25165824) == 4 * 768 * 1024
    three = dataclasses.replace(preprocess.QWEN3_VL, cap_pixels_per_frame=True)
    assert math.prod(three.size(4, 2160, 3840)) <= 768 * 1024 * 1.01
    assert resize.qwen_utils_limits(32, factor=28) == (100352, 602112)
    assert resize.qwen_utils_limits(768, factor=28)[1] == pytest.approx(0.9 * 128000 * 784 / 768 * 2)
    assert resize.qwen_utils_limits(32, factor=28, min_pixels=200704, max_pixels=1605632) == (200704, 602112)


@settings(max_examples=15, deadline=None)
@given(st.integers(20, 3000), st.integers(20, 3000), st.integers(2, 100))
def test_target_sizes_are_multiples_within_the_limits(height, width, frames):
    limits = {"factor": 28, "min_pixels": 3136, "max_pixels": 602112}
    for tall, wide, count in (
        (*resize.area_size(height, width, **limits), 1),
        (*resize.volume_size(frames, height, width, **limits), frames),
    ):
        assert tall % 28 == wide % 28 == 0
        floor_reached = min(tall, wide) == 28
        assert 2 * count * tall * wide >= 3136 * 0.9
        assert floor_reached or 2 * (count // 2) * tall * wide <= 602112 * 1.001


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: resize.area_size(10, 2010, factor=28, min_pixels=1, max_pixels=9999), "200 times"),
        (lambda: resize.volume_size(1, 64, 64, factor=32, min_pixels=1, max_pixels=9999), "at least 2 frames"),
        (lambda: preprocess.llava_pixels(np.zeros((1, 4, 4, 3), np.float32)), "uint8"),
        (lambda: preprocess.llava_pixels(np.zeros((0, 4, 4, 3), np.uint8)), "no frames"),
        (lambda: preprocess.llava_pixels([pixels(4, 4)[0], pixels(4, 5)[0]]), "one size"),
        (lambda: preprocess.llava_pixels(pixels(4, 4), size=0), "cannot be resized"),
        (lambda: sampling.sample_indices(0, 30.0, num_frames=2), "without frames"),
        (lambda: sampling.sample_indices(9, 30.0, num_frames=0), "at least one frame"),
        (lambda: sampling.sample_indices(9, 30.0, fps=-1.0), "above 0"),
        (lambda: sampling.sample_indices(9, float("nan"), fps=1.0), "frame rate"),
        (lambda: sampling.sample_indices(9, 30.0), "exactly one"),
        (lambda: sampling.sample_indices(9, 30.0, num_frames=2, indices=[1]), "exactly one"),
        (lambda: sampling.sample_indices(9, 30.0, indices=[2, 9]), "frame 9 is outside"),
        (lambda: sampling.sample_indices(9, 30.0, indices=[-1]), "frame -1 is outside"),
        (lambda: sampling.sample_indices(9, 30.0, indices=[0.5]), "whole numbers"),
        (lambda: sampling.sample_indices(9, 30.0, indices=[]), "is empty"),
        (lambda: sampling.sample_indices(9, 30.0, indices=[1], rule="hf_qwen2"), "nothing to sample"),
        (lambda: sampling.sample_indices(9, 30.0, num_frames=2, rule="random"), "no sampling rule 'random'"),
        (lambda: sampling.sample_indices(9, 30.0, fps=2.0, rule="llava_video_force"), "not by a rate"),
        (lambda: sampling.sample_indices(9, 30.0, num_frames=2, rule="fps"), "by a rate"),
        (lambda: sampling.sample_indices(9, 0.3, num_frames=2, rule="llava_video_upto"), "a frame a second"),
        (lambda: sampling.sample_indices(1, 30.0, fps=1.0, rule="hf_qwen2"), "cannot take 0 frames"),
        (lambda: sampling.sample_indices(9, 30.0, num_frames=1, rule="hf_qwen2"), "cannot take 0 frames"),
        (lambda: sampling.sample_indices(9, 30.0, num_frames=10, rule="qwen_utils"), "cannot take 10 frames"),
    ],
)
def test_bad_input_ends_in_a_sentence(call, sentence):
    with pytest.raises(JvidpruneError, match=sentence):
        call()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5000), st.floats(1, 120), st.integers(1, 200), st.sampled_from(sampling.RULES))
def test_sampled_frames_rise_and_lie_in_the_video(total, rate, wanted, rule):
    wish = {"fps": wanted / 10} if rule == "fps" else {"num_frames": wanted}
    if rule in ("hf_default", "hf_qwen2", "qwen_utils") and not 2 <= 2 * round(wanted / 2) <= total >= wanted:
        assume(rule != "hf_default" or wanted > total)
        with pytest.raises(JvidpruneError, match="cannot take"):
            sampling.sample_indices(total, rate, rule=rule, **wish)
        return
    if rule == "fps":
        assume(total / rate * wanted / 10 < total)
    indices = sampling.sample_indices(total, rate, rule=rule, **wish)
    assert indices.dtype == np.int64
    assert 0 <= indices.min() <= indices.max() < total
    assert (np.diff(indices) >= 0).all()
    if rule in ("uniform", "hf_qwen3", "llava_video_force"):
        assert len(indices) == wanted
        assert indices[-1] == (total - 1 if wanted > 1 else 0)


def test_defaults_are_the_evaluation_rules():
    assert sampling.sample_indices(300, 30.0, num_frames=8).tolist() == [0, 42, 85, 128, 170, 213, 256, 299]
    assert sampling.sample_indices(300, 30.0, fps=1.0).tolist() == list(range(0, 300, 30))
    assert sampling.sample_indices(300, 30.0, indices=[7, 3, 3]).tolist() == [7, 3, 3]
    assert sampling.sample_indices(1, 30.0, num_frames=1).tolist() == [0]


def test_one_frame_makes_one_stamp():
    assert sampling.pair_timestamps(np.asarray([3])) == [3 / 24]
    assert sampling.pair_timestamps(np.asarray([], np.int64)) == []


def test_the_index_that_rounding_appends_is_left_out():
    """300 / (300 / 14) is above 14 in floats, so the reference's range has a 15th value, which is no frame."""
    listed = sampling.reference_indices(300, 30.0, "hf_qwen2", 14, None)
    assert listed.tolist() == [300 * i // 14 for i in range(15)]
    assert sampling.sample_indices(300, 30.0, rule="hf_qwen2", num_frames=14).tolist() == listed[:-1].tolist()
