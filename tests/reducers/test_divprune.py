"""DivPrune: golden files, a plain numpy version, one order for all ratios, repeats, zero tokens, large videos."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens, reducers
from jvidprune.reducers.counts import half_even
from jvidprune.reducers.divprune import DivPrune, farthest_first


def plain_order(x, count):
    """Greedy max-min, every distance to every pick read again at every step."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    picks = [int(np.argmax(np.sort(distance, axis=0)[1]))]
    while len(picks) < count:
        score = distance[picks].min(axis=0)
        score[picks] = -1
        picks.append(int(np.argmax(score)))
    return picks


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 999),
    ratio=st.sampled_from([0.01, 0.1, 0.35, 0.8, 1.0]),
    scope=st.sampled_from(["video", "frame"]),
)
def test_kept_tokens_equal_a_plain_version(seed, ratio, scope):
    video = checks.make_video(frames=4, seed=seed)
    x = np.asarray(video.features, np.float64)
    if scope == "video":
        expected = sorted(plain_order(x.reshape(80, -1), max(1, round(ratio * 80))))
    else:
        count = max(1, round(ratio * 20))
        expected = [20 * t + place for t in range(4) for place in sorted(plain_order(x[t], count))]
    reduced = checks.reduce(DivPrune(scope=scope), video, ratio)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], expected)
    checks.check_copies(video, reduced)


@pytest.mark.parametrize("scope", ["video", "frame"])
@pytest.mark.parametrize("distinct", [True, False])
def test_a_larger_budget_keeps_what_a_smaller_one_kept(scope, distinct):
    video = checks.make_video()
    swept = jvidprune.sweep(DivPrune(scope, distinct), video, [0.1, 0.2, 0.4, 1.0])
    kept = [set(np.asarray(ids)[valid].tolist()) for ids, valid in zip(swept.index, swept.valid, strict=True)]
    assert kept[0] < kept[1] < kept[2] < kept[3] == set(range(120))


def test_equal_frames_are_repeated_only_if_asked_for():
    frame = np.random.default_rng(5).normal(size=(1, 20, 48)).astype(np.float32)
    video = VideoTokens.create(np.repeat(frame, 4, axis=0), grid=(4, 5))
    distinct = checks.reduce(DivPrune(), video, 0.5)
    assert len(set(checks.valid_rows(distinct)[0].tolist())) == int(distinct.count) == 40
    repeated = checks.reduce(DivPrune(distinct=False), video, 0.5)
    ids, tokens = checks.valid_rows(repeated)
    assert int(repeated.count) == 40
    assert len(set(ids.tolist())) < 40
    np.testing.assert_array_equal(ids, np.sort(ids))
    np.testing.assert_array_equal(tokens, np.asarray(video.features).reshape(80, -1)[ids])
    # Until equal tokens are left alone, both choose the same 20 directions.
    assert {i % 20 for i in ids.tolist()} == set(range(20))


def test_without_equal_tokens_both_settings_agree():
    video = checks.make_video(seed=4)
    for ratio in (0.2, 0.9):
        one, other = (checks.reduce(DivPrune(distinct=flag), video, ratio) for flag in (True, False))
        np.testing.assert_array_equal(one.index, other.index)


@pytest.mark.parametrize("zeros", [[7], [3, 11]])
def test_zero_tokens_leave_the_choice_of_the_others_alone(zeros):
    features = np.array(checks.make_video(frames=1).features)
    features[0, zeros] = 0.0
    reduced = checks.reduce(DivPrune(), VideoTokens.create(features, grid=(4, 5)), 1.0)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], np.arange(20))
    assert bool(jnp.isfinite(reduced.tokens).all())


def test_rows_made_again_at_every_step_give_the_same_order():
    video = checks.make_video(frames=20, grid=(4, 5))
    x, real = video.features.reshape(1, 400, -1), jnp.arange(400)[None] < 390
    held = farthest_first(x, real, steps=60)
    again = farthest_first(x, real, steps=60, held=0)
    np.testing.assert_array_equal(held[0], again[0])
    for one, other in zip(held[1:], again[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.asarray(held[0]).max() < 390


def test_ties_go_to_the_lowest_index():
    axes = np.eye(6, dtype=np.float32)[None]
    reduced = checks.reduce(DivPrune(), VideoTokens.create(axes, grid=(2, 3)), 0.5)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], [0, 1, 2])


@pytest.mark.parametrize(("total", "ratio", "kept"), [(50, 0.25, 12), (50, 0.27, 14), (576, 0.098, 56), (4, 0.1, 1)])
def test_counts_round_half_to_even_and_are_at_least_one(total, ratio, kept):
    assert half_even(total, ratio) == kept
    assert DivPrune().capacity(Layout(1, (1, total)), ratio) == kept


@pytest.mark.slow
def test_frames_keep_equal_counts_and_can_be_chained():
    chain = reducers.registry.from_text("divprune:scope=frame+flashvid")
    assert chain.first.tokens_per_frame(Layout(3, (4, 5)), 0.25) == 5
    assert int(checks.reduce(chain, checks.make_video(), 0.1).count) > 0
    checks.refused(lambda: reducers.registry.from_text("divprune+flashvid"), "cannot be the first stage")


def test_a_sink_rule_changes_nothing():
    video = checks.make_video()
    plain, wrapped = (checks.reduce(r, video, 0.3) for r in (DivPrune(), reducers.get("stop", base="divprune")))
    np.testing.assert_array_equal(plain.index, wrapped.index)


def test_impossible_settings_are_refused():
    checks.refused(lambda: DivPrune(scope="clip"), "clip")
    checks.refused(lambda: checks.reduce(DivPrune(), checks.make_video(), 0.0), r"lie in \(0, 1\]")
