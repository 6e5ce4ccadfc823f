"""DyCoke: golden files, plain numpy versions of both modes, frame roles, the decoding policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune import Layout
from jvidprune.cuts.decoding import DecodePolicy
from jvidprune.parity.planned import planned
from jvidprune.reducers.dycoke import DyCoke

FIXED = DyCoke(mode="fixed")


def by_hand(x, keep, fixed):
    """The two passes over the frames, as the method is described."""
    frames, n, _ = x.shape
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)

    def least_similar(late, early):
        order = np.argsort((unit[late] * unit[early]).sum(-1), kind="stable")[:keep]
        return late * n + (np.sort(order) if fixed else order)

    out = {}
    for i in range(0, frames - 1, 2):
        out[i], out[i + 1] = i * n + np.arange(n), least_similar(i + 1, i)
    if fixed and frames % 2:
        out[frames - 1] = (frames - 1) * n + np.arange(n)
    last = frames - 4 if not fixed else frames - 3 if frames % 2 == 0 else frames - 4
    for i in range(0, max(last, 0), 4):
        out[i + 2] = least_similar(i + 2, i)
    return np.concatenate([out[t] for t in sorted(out)])


@settings(max_examples=15, deadline=None)
@given(frames=st.sampled_from([5, 6, 7, 8, 11]), keep=st.integers(0, 20), fixed=st.booleans())
def test_kept_tokens_equal_a_plain_version(frames, keep, fixed):
    video = checks.make_video(frames=frames, seed=keep)
    reducer = FIXED if fixed else DyCoke()
    budget = reducer.budget_of(video.layout(), 0.5)._replace(keep=np.int32(keep))
    # Padded to one length, so that all examples of a mode share a compilation.
    plan, reduced = planned(reducer, checks.pad(video, 11 - frames), budget, capacity=220)
    expected = by_hand(np.asarray(video.features, np.float64), keep, fixed)
    assert int(plan.count) == len(expected) == reducer.count(video.layout(), keep)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], expected)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_the_fixed_mode_takes_short_videos(frames):
    video = checks.make_video(frames=frames)
    assert int(checks.reduce(FIXED, video, 0.25).count) == {1: 20, 2: 20, 3: 40, 4: 20}[frames]
    np.testing.assert_array_equal(checks.valid_rows(checks.reduce(FIXED, video, 1.0))[0], np.arange(20 * frames))


def test_published_settings_give_the_published_counts():
    layout = Layout(32, (14, 14))
    assert DyCoke().capacity(layout, 0.475) == 3098
    kept = [int(DyCoke().budget(layout, ratio).keep) for ratio in (0.775, 0.625, 0.475, 0.325, 0.25)]
    assert kept == [int((1 - k) * 196) for k in (0.3, 0.5, 0.7, 0.9, 1.0)]
    assert int(DyCoke().budget(Layout(32, (10, 10)), 0.775).keep) == 70


def policy_of(**settings):
    """The state before the first step, visual tokens in slots 2 to 10 of 12: the last of them counts as text."""
    visual = np.isin(np.arange(12), np.arange(2, 11))
    (stage,) = DyCoke(decode_layer=3, **settings).inner(0.5)
    return stage.rule.policy(stage, visual[None])


def test_decoding_reads_less_only_where_attention_moved():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 1, 2, 12)).astype(np.float32)
    second[..., 2:10] = second[..., 2:10][..., ::-1] * np.array([9, 1, 1, 1, 1, 1, 1, 9])
    policy = policy_of(decode_dropped=0.75)
    step = jax.jit(DecodePolicy.step)
    assert float(policy.choose(first).similarity[0]) == 0.0
    policy, read = step(policy, first)
    best = 2 + np.argsort(-first.mean((0, 1))[2:10], kind="stable")[:2]
    np.testing.assert_array_equal(np.flatnonzero(read[0]), sorted([0, 1, *best, 10, 11]))
    assert float(policy.choose(first * 1.01).similarity[0]) > 0.9
    policy, read = step(policy, first * 1.01)
    np.testing.assert_array_equal(read[0], np.ones(12, bool))
    assert float(policy.choose(second).similarity[0]) < 0.9
    _, read = step(policy, second)
    assert int(read.sum()) == 6


def test_the_papers_policy_keeps_the_previous_set():
    attention = jnp.asarray(np.random.default_rng(1).random((1, 2, 12)), jnp.float32)
    policy, read = policy_of(decode_dropped=0.5, decode_mode="paper").step(attention)
    _, again = policy.step(attention)
    np.testing.assert_array_equal(again, read)
    assert int(read.sum()) == 4 + 4


def test_impossible_settings_are_refused():
    checks.refused(lambda: DyCoke(mode="x"), "mode 'x'")
    checks.refused(lambda: DyCoke().budget(Layout(4, (4, 5)), 0.5), "needs 5 frames, got 4")
    checks.refused(lambda: DyCoke().budget(Layout(8, (4, 5)), 0.2), "at least 0.25, got 0.2")
    checks.refused(lambda: DyCoke(decode_mode="x"), "decode_mode 'x'")
    checks.refused(lambda: DyCoke(decode_dropped=2.0), "decode_dropped must lie")
