"""V-CAST: golden files, a plain numpy version, frame budgets, leftovers, still videos, single frames, DeepStack."""

import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens, reducers
from jvidprune.reducers.vcast import VCAST


def plain_weights(x):
    g = x.mean(1)
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    c = np.ones(len(g))
    for t in range(1, len(g) - 1):
        before, after = g[t] - g[t - 1], g[t + 1] - g[t]
        c[t] = 1 - before @ after / (np.linalg.norm(before) * np.linalg.norm(after))
    p = np.exp(c / 0.7)
    return g, p / p.sum()


def plain_counts(p, tokens, total, least, spread):
    counts = [least + min(int(np.floor(share * (total - len(p) * least))), tokens - least) for share in p]
    fraction = [share * (total - len(p) * least) % 1 for share in p]
    while sum(counts) < total:
        room = [t for t in range(len(p)) if counts[t] < tokens]
        for t in sorted(room, key=lambda t: (-fraction[t], t)):
            more = min(total - sum(counts), 1 if spread else tokens - counts[t])
            counts[t] += more
    return counts


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    ratio=st.sampled_from([0.02, 0.15, 0.4, 0.85, 0.97, 1.0]),
    least=st.sampled_from([0, 1, 3]),
    leftover=st.sampled_from(["first", "spread"]),
)
def test_kept_tokens_equal_a_plain_version(seed, ratio, least, leftover):
    video = checks.make_video(seed=seed)
    x = np.asarray(video.features, np.float64)
    g, p = plain_weights(x)
    total = max(round(120 * ratio), 1, 6 * least)
    counts = plain_counts(p, 20, total, least, leftover == "spread")
    norm = np.linalg.norm(x, axis=-1)
    low, high = norm.min(1, keepdims=True), norm.max(1, keepdims=True)
    score = 1 - np.einsum("tnd,td->tn", x, g) / norm + (norm - low) / (high - low + 1e-6)
    expected = [20 * t + i for t in range(6) for i in sorted(np.argsort(-score[t], kind="stable")[: counts[t]])]
    reduced = checks.reduce(VCAST(least=least, leftover=leftover), video, ratio)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], expected)
    assert int(reduced.count) == total
    checks.check_copies(video, reduced)


@pytest.mark.parametrize("frames", [1, 2])
def test_padding_frames_behind_one_or_two_change_nothing(frames):
    checks.check_padding(VCAST(), checks.make_video(frames=frames), 0.4)


def test_a_still_video_has_equal_weights_and_leftovers_go_to_its_first_frame():
    frame = np.asarray(checks.make_video(frames=1).features)
    video = VideoTokens.create(np.repeat(frame, 8, axis=0), grid=(4, 5))
    reduced = jvidprune.reduce(VCAST(), video, 0.3, diagnostics=True)
    np.testing.assert_array_equal(reduced.diagnostics["curvature"], np.ones(8))
    np.testing.assert_array_equal(reduced.diagnostics["budgets"], [6] * 8)
    for leftover, counts in (("first", [10, 6, 6, 6, 6, 6, 6, 6]), ("spread", [7, 7, 7, 7, 6, 6, 6, 6])):
        reduced = jvidprune.reduce(VCAST(leftover=leftover), video, 52 / 160, diagnostics=True)
        np.testing.assert_array_equal(reduced.diagnostics["budgets"], counts)


def test_a_turn_back_gets_more_than_a_straight_way():
    rng = np.random.default_rng(0)
    way = np.array([0.0, 1.0, 2.0, 3.0, 2.0, 1.0])
    centre = np.array([10.0, 0, 0, 0]) + way[:, None] * np.array([0, 0.1, 0, 0])
    spread = rng.normal(size=(1, 20, 4))
    video = VideoTokens.create((centre[:, None] + spread).astype(np.float32), grid=(4, 5))
    # At a fifth of the tokens no frame is full, so that none hands its share on.
    reduced = jvidprune.reduce(VCAST(), video, 0.2, diagnostics=True)
    curvature = np.asarray(reduced.diagnostics["curvature"])
    assert curvature.argmax() == 3
    assert curvature[3] > 1.9
    assert (curvature[[1, 2, 4]] < 0.1).all()
    assert np.asarray(reduced.diagnostics["budgets"]).argmax() == 3


def test_one_frame_passes_and_every_frame_keeps_its_least():
    assert int(checks.reduce(VCAST(), checks.make_video(frames=1), 0.1).count) == 20
    reduced = checks.reduce(VCAST(), checks.make_video(), 0.001)
    np.testing.assert_array_equal(np.asarray(reduced.index)[:6] // 20, np.arange(6))
    assert VCAST().capacity(Layout(6, (4, 5)), 0.01) == 6
    assert VCAST(least=50).capacity(Layout(6, (4, 5)), 0.01) == 120


def test_deepstack_levels_follow_the_kept_tokens():
    video = checks.make_video()
    reduced = checks.reduce(reducers.get("vcast", "qwen3_vl"), video, 0.3)
    other = VideoTokens.create(video.features, grid=video.grid)
    np.testing.assert_array_equal(reduced.index, checks.reduce(VCAST(), other, 0.3).index)


def test_zero_tokens_and_frames_stay_finite():
    features = np.array(checks.make_video().features)
    features[2] = 0.0
    features[4, 3] = 0.0
    reduced = jvidprune.reduce(VCAST(), VideoTokens.create(features, grid=(4, 5)), 0.4, diagnostics=True)
    assert int(reduced.count) == 48
    assert np.isfinite(np.asarray(reduced.diagnostics["score"])).all()


def test_impossible_settings_are_refused():
    checks.refused(lambda: VCAST(temperature=0.0), "temperature.*got 0")
    checks.refused(lambda: VCAST(least=-1), "least.*got -1")
    checks.refused(lambda: VCAST(leftover="all"), "all")
