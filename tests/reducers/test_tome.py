"""ToMe: golden files, a plain numpy version, exact means and counts, short clips, both orders of rows."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens, reducers
from jvidprune.reducers.counts import half_even
from jvidprune.reducers.tome import ToMe


def plain(tokens, target, heads=1):
    """Rounds of one clip: the groups of source tokens in the released order of rows."""
    groups = [[i] for i in range(len(tokens))]
    while len(groups) > target:
        count = min(len(groups) - target, len(groups) // 2)
        means = np.stack([tokens[group].mean(0) for group in groups])
        metric = means.reshape(len(means), heads, -1).mean(1)
        unit = metric / np.linalg.norm(metric, axis=1, keepdims=True)
        similarity = unit[0::2] @ unit[1::2].T
        best, into = similarity.max(1), similarity.argmax(1)
        order = np.argsort(-best, kind="stable")
        odd = [list(group) for group in groups[1::2]]
        for a in order[:count]:
            odd[into[a]] += groups[2 * a]
        groups = [groups[2 * a] for a in order[count:]] + odd
    return groups


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 999),
    ratio=st.sampled_from([0.02, 0.1, 0.3, 0.5, 0.7, 1.0]),
    setting=st.sampled_from([(1, 1), (2, 4), (None, 1)]),
)
@pytest.mark.slow
def test_rows_equal_a_plain_version(seed, ratio, setting):
    clip, heads = setting
    video = checks.make_video(frames=4, seed=seed)
    x = np.asarray(video.features, np.float64).reshape(80, -1)
    size = 20 * (clip or 4)
    reduced = checks.reduce(ToMe(clip, heads), video, ratio)
    slot, row = np.asarray(reduced.slot), 0
    for start in range(0, 80, size):
        kept = max(1, round(20 * ratio)) * (clip or 4)
        for group in plain(x[start : start + size], kept, heads):
            ids = np.sort(np.asarray(group)) + start
            assert int(reduced.index[row]) == ids[0]
            assert int(reduced.mass[row]) == len(ids)
            np.testing.assert_array_equal(np.flatnonzero(slot == row), ids)
            np.testing.assert_allclose(reduced.tokens[row], x[ids].mean(0), atol=1e-5)
            row += 1
    assert row == int(reduced.count)


@pytest.mark.slow
def test_a_clip_that_ends_early_keeps_its_share():
    video = checks.make_video(frames=6)
    reduced = checks.reduce(ToMe(clip=4), video, 0.25)
    frames = np.asarray(reduced.index)[: int(reduced.count)] // 20
    assert int(reduced.count) == 30
    assert ((frames < 4).sum(), (frames >= 4).sum()) == (20, 10)
    tail = VideoTokens.create(video.features[4:], grid=video.grid)
    alone = checks.reduce(ToMe(clip=4), tail, 0.25)
    np.testing.assert_array_equal(np.asarray(reduced.index)[20:30] - 80, np.asarray(alone.index)[:10])
    np.testing.assert_allclose(reduced.tokens[20:30], alone.tokens[:10], atol=1e-6)


def test_rows_can_come_in_the_order_of_the_video():
    video = checks.make_video()
    released, sorted_rows = (checks.reduce(ToMe(order=order), video, 0.7) for order in ("released", "position"))
    ids, tokens = checks.valid_rows(sorted_rows)
    np.testing.assert_array_equal(ids, np.sort(ids))
    other, others = checks.valid_rows(released)
    assert not np.array_equal(ids, other)
    np.testing.assert_allclose(tokens, others[np.argsort(other)], atol=1e-6)


def test_a_ratio_of_one_changes_nothing():
    video = checks.make_video()
    reduced = checks.reduce(ToMe(), video, 1.0)
    np.testing.assert_array_equal(reduced.index, np.arange(120))
    np.testing.assert_array_equal(reduced.tokens, np.asarray(video.features).reshape(120, -1))


def test_equal_and_zero_tokens_tie_by_index_and_stay_finite():
    same = np.ones((1, 9, 4), np.float32)
    reduced = checks.reduce(ToMe(), VideoTokens.create(same), 5 / 9)
    # Four of the even tokens 0, 2, 4, 6, 8 go into the first odd one; 8 is left.
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], [8, 0, 3, 5, 7])
    same[0, [2, 3]] = 0.0
    reduced = checks.reduce(ToMe(), VideoTokens.create(same), 0.3)
    assert int(reduced.count) == 3
    assert bool(jnp.isfinite(reduced.tokens).all())
    one = VideoTokens.create(np.ones((2, 1, 4), np.float32))
    assert int(checks.reduce(ToMe(), one, 0.1).count) == 2


@pytest.mark.slow
def test_counts_round_half_to_even_and_frames_can_be_chained():
    assert [half_even(10, ratio) for ratio in (0.25, 0.35, 0.01)] == [2, 4, 1]
    assert ToMe(clip=4).capacity(Layout(6, (4, 5)), 0.25) == 30
    chain = reducers.registry.from_text("tome+flashvid")
    assert int(checks.reduce(chain, checks.make_video(), 0.1).count) > 0
    checks.refused(lambda: reducers.registry.from_text("tome:clip=2+flashvid"), "cannot be the first stage")


def test_impossible_settings_are_refused():
    checks.refused(lambda: ToMe(clip=0), "clip.*got 0")
    checks.refused(lambda: ToMe(heads=0), "heads.*got 0")
    checks.refused(lambda: ToMe(order="raster"), "raster")
    checks.refused(
        lambda: jvidprune.reduce(ToMe(heads=3), checks.make_video(), 0.5), "divide the width of the tokens, 8"
    )
