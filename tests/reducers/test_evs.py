"""EVS: golden files, a plain numpy version, nested budgets, the first frame, positions."""

import itertools
import math

import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens
from jvidprune.parity import core
from jvidprune.parity import evs as parity
from jvidprune.reducers.evs import EVS, media_positions, prompt_positions


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), ratio=st.sampled_from([0.05, 0.3, 0.7, 1.0]), deepstack=st.booleans())
def test_kept_tokens_equal_a_plain_version(seed, ratio, deepstack):
    video = checks.make_video(frames=5, seed=seed)
    x = np.asarray(video.features, np.float64)
    if deepstack:
        x = np.concatenate([x, np.asarray(video.evidence["features_deepstack"]).reshape(5, 20, -1)], axis=-1)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    change = np.concatenate([np.full((1, 20), 255.0), 1 - (unit[1:] * unit[:-1]).sum(-1)]).reshape(-1)
    keep = max(20, int(100 * (1 - (1 - ratio))))
    expected = np.sort(np.argsort(-change, kind="stable")[:keep])
    reduced = checks.reduce(EVS(deepstack=deepstack), video, ratio)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], expected)
    checks.check_copies(video, reduced)


def test_a_larger_budget_keeps_what_a_smaller_one_kept():
    swept = jvidprune.sweep(EVS(), checks.make_video(), [0.2, 0.4, 0.6, 0.9])
    kept = [set(np.asarray(ids)[valid].tolist()) for ids, valid in zip(swept.index, swept.valid, strict=True)]
    assert all(small < large for small, large in itertools.pairwise(kept))
    assert all(set(range(20)) <= each for each in kept)


@pytest.mark.parametrize(("frames", "ratio", "kept"), [(40, 0.1, 99), (40, 0.75, 750), (1, 0.2, 25), (4, 0.1, 25)])
def test_counts_round_like_the_server(frames, ratio, kept):
    assert EVS().capacity(Layout(frames, (5, 5)), ratio) == kept


def test_one_frame_is_kept_whole():
    assert int(checks.reduce(EVS(), checks.make_video(frames=1), 0.1).count) == 20


def test_the_floor_lets_static_frames_tie_in_favour_of_the_earliest():
    frame = np.random.default_rng(3).normal(size=(1, 20, 48)).astype(np.float32)
    noise = 1 + 1e-7 * np.arange(6, dtype=np.float32)[:, None, None]
    video = VideoTokens.create(np.repeat(frame, 6, axis=0) * noise, grid=(4, 5))
    ids, _ = checks.valid_rows(checks.reduce(EVS(floor=1e-6), video, 0.5))
    np.testing.assert_array_equal(ids, np.arange(60))


def test_a_zero_token_counts_as_changed():
    features = np.ones((2, 4, 3), np.float32)
    features[1, 2] = 0.0
    ids, _ = checks.valid_rows(checks.reduce(EVS(), VideoTokens.create(features), 5 / 8))
    np.testing.assert_array_equal(ids, [0, 1, 2, 3, 6])


def test_text_can_go_on_behind_the_unpruned_video():
    media = media_positions(np.array([0, 7, 13]), (2, 3), tokens_per_second=2, second_per_grid=0.5, truncate=False)
    np.testing.assert_array_equal(media, [[0, 0, 0], [1, 0, 1], [2, 0, 1]])
    assert (media_positions(np.array([0, 13]), (2, 3), tokens_per_second=2, second_per_grid=0.5)[:, 0] == 0).all()
    positions, delta = prompt_positions(media, prefix=1, suffix=2, width=3, full_end=4)
    np.testing.assert_array_equal(positions[0], [0, 1, 2, 3, 4, 7, 8])
    assert delta == 2
    checks.refused(lambda: prompt_positions(media[:0], prefix=1, suffix=2, width=3), "at least one kept token")


@pytest.mark.parametrize("seconds", [0.75, 0.5, 1, 2.25])
def test_the_comparer_counts_fractions_of_a_second(seconds):
    video = checks.make_video(frames=6)
    ids, _ = checks.valid_rows(checks.reduce(EVS(), video, 0.5))
    mask = np.zeros(120, bool)
    mask[ids] = True
    arrays = {"features": np.asarray(video.features), "mask": mask.reshape(6, 20), "keep": np.asarray(len(ids))}
    arrays["dissimilarity"] = np.asarray(
        jvidprune.reduce(EVS(), video, 0.5, diagnostics=True).diagnostics["dissimilarity"]
    )
    time = [math.trunc(token // 20 * 2 * seconds) for token in ids.tolist()]
    arrays["kept_positions"] = np.stack([time, ids % 20 // 5, ids % 5], axis=1)
    config = {"q": 0.5, "grid": [4, 5], "tokens_per_second": 2, "second_per_grid": seconds}
    report = core.report_file("file", core.Golden(arrays, config), parity.COMPARERS)
    assert [row.what for row in report.rows if not row.passed] == []
    assert "kept_positions" in {row.what for row in report.rows}


def test_missing_deepstack_levels_are_named():
    video = VideoTokens.create(np.ones((2, 4, 3)))
    checks.refused(lambda: checks.reduce(EVS(deepstack=True), video, 0.5), "features_deepstack")
