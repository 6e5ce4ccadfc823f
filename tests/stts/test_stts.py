"""STTS: its golden files, and selection, budgets, windows, packing and settings against plain loops."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune.ops.pool import pool_tokens
from jvidprune.parity import stts as parity
from jvidprune.parity.core import load_golden
from jvidprune.stts import (
    Scorer,
    ScorerSizes,
    STTSConfig,
    budgets,
    keep_windows,
    merged_windows,
    one_video,
    packed_examples,
    pooled_windows,
    raster_windows,
    shorten,
    windows_to_remove,
)
from jvidprune.stts.baselines import keep_unlike, random_keep, reference_scores, similarity_keep
from jvidprune.stts.bias import key_bias
from jvidprune.stts.loss import auxiliary_loss
from jvidprune.stts.packing import first_fit, flat_slots, refill_alone
from jvidprune.stts.saved import TrainedSTTS, read_stts, write_stts

SMALL = [path for path in checks.golden_files("stts") if not path.stem.startswith("tower")]


def test_budgets_truncate_in_float32():
    assert windows_to_remove(100, 81, 0.95) == 7694 != int(81 * 0.95 * 100 + 1e-9)
    assert windows_to_remove(330, 81, 0.3) == 8018
    assert windows_to_remove(1, 9, 0.05) == 0
    assert windows_to_remove(2, 9, 0.5, prune_from_frame=3) == 0
    assert budgets([4, 2, 3], 4, 0.5, video=[True, False, True]).tolist() == [8, 0, 6]


def kept_by_loops(scores, owner, remove):
    """What `keep_windows` says, one video at a time."""
    keep = np.zeros(scores.shape, bool)
    for example, count in enumerate(remove):
        frames = np.flatnonzero(owner == example)
        if len(frames) == 0:
            continue
        inside = scores[frames].copy()
        inside[0] = 100.0
        left = np.ones(inside.size, bool)
        left[np.argsort(inside.ravel(), kind="stable")[:count]] = False
        keep[frames] = left.reshape(inside.shape)
    return keep


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_selection_is_global_in_each_video_and_ties_go_in_order(seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 4, size=(2, 3))
    examples = packed_examples(frames, rng.integers(0, 12, size=(2, 3)), 10)
    scores = (rng.integers(0, 5, size=(20, 4)) / 8).astype(np.float32)
    found = _keep(scores, examples)
    wanted = kept_by_loops(scores, np.asarray(examples.owner), np.asarray(examples.remove))
    np.testing.assert_array_equal(found, wanted)


_keep = jax.jit(keep_windows)


def test_budgets_may_be_traced():
    scores = jnp.asarray(np.random.default_rng(0).random((5, 9)), jnp.float32)
    remove = jnp.asarray([0, 7, 22, 44], jnp.int32)
    kept = jax.jit(jax.vmap(lambda n: keep_windows(scores, one_video(5, n))))(remove)
    np.testing.assert_array_equal(kept.sum(axis=(1, 2)), 45 - remove)
    assert bool(kept[2, 0].all())
    assert not bool(kept[3, 0].all())


@pytest.mark.parametrize(("side", "kind"), [(6, "average"), (7, "bilinear"), (7, "average"), (5, "none")])
def test_windows_follow_the_pooling(side, kind):
    windows = pooled_windows(side, kind)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, side**2, 3)), jnp.float32)
    wanted = pool_tokens(x, (side, side), kind)
    tokens = jnp.arange(windows.token_count)
    for frame in range(2):
        found = windows.pool(x[frame][windows.token_patches], tokens)
        np.testing.assert_allclose(found, wanted[frame], atol=1e-6)
    # A patch stays if and only if a window that reads it does.
    mask = np.random.default_rng(1).random((2, windows.count)) < 0.4
    spread = np.zeros((2, side**2), bool)
    for frame, window in np.argwhere(mask):
        spread[frame, windows.patches[window]] = True
    np.testing.assert_array_equal(windows.spread_mask(jnp.asarray(mask)), spread)
    assert spread.sum() <= windows.active_bound(int(mask.sum()), 2)


def test_larger_windows_and_merge_blocks():
    windows = pooled_windows(8, "average", 2)
    assert (windows.grid, windows.count, windows.patches.shape, windows.tokens_each) == ((2, 2), 4, (4, 16), 4)
    assert windows.of_token.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    merged = merged_windows(2, 4, 4, 2)
    assert merged.patches[1].tolist() == [*range(8, 16), *range(24, 32)]
    checks.refused(lambda: pooled_windows(6, "average", 2), "2x2 tokens do not divide a grid of 3x3")
    checks.refused(lambda: raster_windows(7), "7x7 patches")


def first_fit_by_loops(counts, size):
    rows, fill, begin = np.full(len(counts), -1), [], np.zeros(len(counts), int)
    for frame in np.argsort(-counts, kind="stable"):
        if counts[frame] == 0:
            continue
        fitting = [r for r, used in enumerate(fill) if used + counts[frame] <= size]
        if not fitting:
            fill.append(0)
            fitting = [len(fill) - 1]
        rows[frame], begin[frame] = fitting[0], fill[fitting[0]]
        fill[fitting[0]] += counts[frame]
    return rows, begin, len(fill)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 16), min_size=9, max_size=9))
def test_first_fit_equals_the_loops(counts):
    counts = np.asarray(counts, np.int32)
    packed = _fit(counts, 16, 9)
    row, begin, used = first_fit_by_loops(counts, 16)
    np.testing.assert_array_equal(packed.row, row)
    np.testing.assert_array_equal(packed.begin, begin)
    assert int(packed.used) == used <= 2 * counts.sum() // 16 + 1
    assert not bool(packed.overflow)


_fit = jax.jit(first_fit, static_argnums=(1, 2))


def test_rows_that_run_out_are_told():
    packed = _fit(np.full(9, 10, np.int32), 16, 4)
    assert bool(packed.overflow)
    assert int((packed.row >= 0).sum()) == 4


def test_one_empty_frame_comes_back_and_two_do_not():
    keep = np.zeros((4, 9), bool)
    keep[0], keep[1, :5], keep[2, :4] = True, True, True
    _, back = jax.jit(refill_alone)(keep)
    assert back.sum(axis=1).tolist() == [0, 0, 0, 9]
    keep[2] = False
    _, back = jax.jit(refill_alone)(keep)
    assert back.sum(axis=1).tolist() == [0, 4, 0, 0]


def test_flat_slots_keep_groups_of_a_frame_together():
    active = np.random.default_rng(0).random((3, 6)) < 0.6
    groups = np.array([0, 1, 0, 1, 2, 2])
    slots = flat_slots(jnp.asarray(active), 18, np.argsort(groups, kind="stable"))
    source, segment = np.asarray(slots.source[0]), np.asarray(slots.segment[0])
    used = source < 18
    assert sorted(source[used]) == np.flatnonzero(active.ravel()).tolist()
    assert used.tolist() == sorted(used, reverse=True)
    order = segment[used] * 3 + groups[source[used] % 6]
    assert order.tolist() == sorted(order)
    assert set(segment[~used]) <= {3}


def test_bias_leaves_first_frames_and_whole_examples_alone():
    windows = raster_windows(9)
    scores = jnp.asarray(np.random.default_rng(0).random((6, 9)), jnp.float32)
    examples = packed_examples([[3, 2]], [[5, 0]], 6)
    by_row = np.asarray(key_bias(scores, windows, examples, floor=0.1)).reshape(6, 9, 9)
    assert not by_row[[0, 3, 4, 5]].any()
    np.testing.assert_allclose(by_row[1:3].max(axis=2), 0.0, atol=1e-4)
    np.testing.assert_allclose(by_row[1:3].min(axis=2), np.log(0.1), atol=1e-4)
    whole = np.asarray(key_bias(scores, windows, examples, floor=0.1, rescale="frame")).reshape(6, 9, 9)
    np.testing.assert_allclose(whole[1:3].min(axis=(1, 2)), np.log(0.1), atol=1e-4)
    assert (whole[1:3].max(axis=2) < -1e-3).any()


def test_the_loss_may_leave_other_videos_and_its_target_alone():
    windows = raster_windows(6)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 36, 4)), jnp.float32)
    scores = jnp.asarray(rng.random((5, 4)), jnp.float32)
    examples = packed_examples([[3, 2]], [[5, 3]], 5)

    @functools.partial(jax.jit, static_argnames=("detach", "within"))
    def run(scores, x, *, detach=False, within=False):
        options = {"detach_target": detach, "within_examples": within}
        value = functools.partial(auxiliary_loss, windows=windows, examples=examples, coefficient=0.5, **options)
        return jax.value_and_grad(lambda s, x: value(s, x), argnums=(0, 1))(scores, x)

    _, (to_scores, to_x) = run(scores, x)
    assert np.flatnonzero(np.abs(to_scores).sum(axis=1)).tolist() == [1, 2, 3, 4]
    assert bool((to_x != 0).any())
    value, (to_scores, to_x) = run(scores, x, detach=True, within=True)
    assert np.flatnonzero(np.abs(to_scores).sum(axis=1)).tolist() == [1, 2, 4]
    assert not bool(to_x.any())
    parts = np.asarray(x)[:, windows.patches].reshape(5, 4, -1)
    unit = parts / np.linalg.norm(parts, axis=-1, keepdims=True)
    miss = np.asarray(scores)[1:] - (1 - (unit[1:] * unit[:-1]).sum(axis=-1))
    np.testing.assert_allclose(value, 0.5 * (miss[[0, 1, 3]] ** 2).mean(), rtol=1e-5)


def test_a_static_video_has_a_finite_loss_and_gradient():
    windows = raster_windows(3)
    x = jnp.zeros((3, 9, 4))

    def loss(x):
        return auxiliary_loss(jnp.full((3, 1), 0.5), x, windows, one_video(3, 1), coefficient=1.0)

    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    assert float(value) == 0.25
    assert not bool(gradient.any())


def test_retries_lower_the_threshold_until_new_windows_stay():
    rng = np.random.default_rng(3)
    windows = raster_windows(6)
    x = jnp.asarray(rng.normal(size=(1, 36, 8)) + 0.55 * rng.normal(size=(6, 36, 8)), jnp.float32)
    examples = one_video(6, 14)

    def by_loops(retry):
        left = jnp.ones((6, 4), bool)
        for number in range(6):
            scores = reference_scores(x, windows, examples, 0.85 - 0.05 * number, method="easy")
            left, fine = keep_unlike(scores, examples, left if retry == "official" else None)
            if bool(fine[0]):
                break
        return np.asarray(left), number

    run = jax.jit(similarity_keep, static_argnums=1, static_argnames=("method", "threshold", "retry"))
    for retry in ("restart", "official"):
        found = run(x, windows, examples, method="easy", threshold=0.85, retry=retry)
        wanted, number = by_loops(retry)
        assert number > 0
        np.testing.assert_array_equal(found, wanted)
        assert (found.sum() == 24 - 14) == (retry == "restart")


def test_random_windows_are_exact_in_number():
    examples = packed_examples([[3, 2]], [[5, 0]], 6)
    keep = random_keep(jax.random.key(0), raster_windows(6), examples)
    assert keep.sum(axis=1).tolist()[3:] == [4, 4, 0]
    assert int(keep[:3].sum()) == 12 - 5
    assert not bool((keep == random_keep(jax.random.key(1), raster_windows(6), examples)).all())


def test_placeholders_of_pruned_tokens_leave_the_sequence():
    # t V V V t V V V t, then padding
    visual = np.array([0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0], bool)
    keep, real = jnp.asarray([True, False, True, False, False, False]), jnp.arange(11) < 9
    short = shorten(jnp.asarray(visual), keep, 6, real=real)
    assert short.source.tolist() == [0, 1, 3, 4, 8, 11]
    assert short.positions.tolist()[:5] == [0, 1, 2, 3, 4]
    assert int(short.next_position) == 5
    assert short.take(jnp.arange(10, 21), -1).tolist() == [10, 11, 13, 14, 18, -1]
    kept = shorten(jnp.asarray(visual), keep, 6, real=real, keep_positions=True)
    assert kept.positions.tolist()[:5] == [0, 1, 3, 4, 8]
    assert int(kept.next_position) == 9


def test_bad_settings_are_refused_in_one_sentence():
    checks.refused(lambda: STTSConfig(removed=1.0), r"\[0, 1\)")
    checks.refused(lambda: STTSConfig(removed="half"), "'half'")
    checks.refused(lambda: STTSConfig(method="best"), "method 'best'")
    checks.refused(lambda: STTSConfig(packing="tight"), "packing 'tight'")
    checks.refused(lambda: STTSConfig(min_bias_scale=0.0), r"\(0, 1\]")
    checks.refused(lambda: STTSConfig(prune_at=3).check_layers(4), "prune_at 3 is too deep for a tower of 4")
    dataclasses.replace(STTSConfig(prune_at=3), method="easy").check_layers(4)


def test_a_scorers_files_are_read_as_written_and_broken_settings_refused_in_one_sentence(tmp_path, monkeypatch):
    scorer = Scorer(ScorerSizes(8, 2, 12))
    written = TrainedSTTS(STTSConfig(prune_at=1, removed=0.25, bias=False), scorer)
    assert read_stts(tmp_path, heads=2) is None
    write_stts(tmp_path, written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stts.json", "stts.safetensors"]
    found = read_stts(tmp_path, heads=2)
    assert found is not None
    assert found.config == written.config
    kept = (tmp_path / "stts.json").read_bytes(), (tmp_path / "stts.safetensors").read_bytes()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        write_stts(tmp_path, TrainedSTTS(STTSConfig(), scorer))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stts.json", "stts.safetensors"]
    assert kept == ((tmp_path / "stts.json").read_bytes(), (tmp_path / "stts.safetensors").read_bytes())
    for text, says in {
        '{"prune_at": "3"}': "prune_at must be a whole number of at least 0, got '3'",
        '{"window": 2.5}': "window must be a whole number of at least 1, got 2.5",
        '{"prune_from_frame": true}': "prune_from_frame must be a whole number of at least 0, got True",
        '{"removed": "0.5"}': r"removed must be a number in \[0, 1\), got '0.5'",
        '{"coefficient": NaN}': "coefficient must be a finite number, got nan",
        '{"threshold": [0.85]}': r"threshold must be a finite number, got \[0.85\]",
        '{"bias": "no"}': "bias must be True or False, got 'no'",
        '{"method": ["scorer"]}': r"unknown method \['scorer'\]",
        '{"blocks": 3}': "unknown setting blocks",
    }.items():
        (tmp_path / "stts.json").write_text(text)
        checks.refused(functools.partial(read_stts, tmp_path, heads=2), r"stts\.json.*" + says)


def baselines_by_loops(features, windows, remove, threshold, easy):
    """Kept windows and flag of a heuristic on frames that are all real, frame by frame and window by window."""
    parts = features[:, windows.patches].reshape(len(features), windows.count, -1).astype(np.float64)
    unit = parts / np.linalg.norm(parts, axis=-1, keepdims=True)
    reference, scores = unit[0].copy(), np.full(parts.shape[:2], -1.0)
    for t in range(1, len(unit)):
        alike = (reference * unit[t]).sum(-1)
        if alike.mean() < threshold:
            reference = unit[t].copy()
            continue
        scores[t] = alike
        changed = np.ones(len(alike), bool) if easy else alike < threshold
        reference[changed] = unit[t][changed]
    keep = np.ones(scores.size, bool)
    keep[np.argsort(-scores.ravel(), kind="stable")[:remove]] = False
    keep = keep.reshape(scores.shape)
    return keep, not (scores[~keep] == -1.0).any()


def test_the_comparer_of_the_baselines_leaves_padding_frames_out():
    path = next(path for path in SMALL if path.stem.startswith("baselines"))
    golden = load_golden(path)
    windows, arrays = raster_windows(golden.config["side"]), dict(golden.arrays)
    features = arrays["features"].copy()
    # Padding that repeats a real frame would be pruned first if it took part.
    features[5:] = features[4]
    parts = features[:, windows.patches].reshape(len(features) * windows.count, -1)
    unit = parts / np.linalg.norm(parts, axis=-1, keepdims=True)
    arrays |= {"features": features, "cosine": unit @ unit.T}
    for threshold in golden.config["thresholds"]:
        for remove in golden.config["num_pruned"]:
            for name in ("reference", "easy"):
                key = f"{name}_n{remove}_t{round(100 * threshold)}_"
                keep, flag = baselines_by_loops(features[:5], windows, min(remove, 20), threshold, name == "easy")
                arrays[f"{key}keep_window"] = np.concatenate([keep, np.ones((3, windows.count), bool)])
                arrays[f"{key}flag"] = np.asarray(flag)

    def verdicts(file):
        return {row.verdict for row in parity.compare_baselines(file)}

    assert verdicts(dataclasses.replace(golden, arrays=arrays | {"first_padding": np.int64(5)})) == {"ok"}
    config = dict(golden.config) | {"first_padding": 5}
    assert verdicts(dataclasses.replace(golden, arrays=arrays, config=config)) == {"ok"}
    assert "mismatch" in verdicts(dataclasses.replace(golden, arrays=arrays))
    wrong = dataclasses.replace(golden, config=config | {"first_padding": 9})
    checks.refused(lambda: list(parity.compare_baselines(wrong)), "at most 8, got 9")
