"""HoloV: golden files, a plain numpy version, overflow, the paper's options, one sequence."""

import dataclasses

import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune import Layout, VideoTokens
from jvidprune.ops.sink import SinkRule
from jvidprune.parity.planned import planned
from jvidprune.reducers.holov import HoloV

OFFICIAL = HoloV(order="official", pad_zeros=True)


def by_hand(x, a, keep, crops, alpha=0.09, holistic=False):
    """Ids of one sequence in the code's order, bands as array_split cuts them; and what overflowed."""
    scores, ranks = [], []
    bands = np.array_split(np.arange(len(x)), min(crops, len(x)))
    for band in bands:
        m = len(band)
        h = a[band].astype(np.float64)
        if m > 1:
            z = x[band] / (np.linalg.norm(x[band], axis=1, keepdims=True) + 1e-6)
            s = z @ z.T
            np.fill_diagonal(s, 0.0)
            mean = s.sum(1) / (m - 1)
            v = ((s - mean[:, None]) ** 2).sum(1) / (m - 1)
            h = 1000 * h
            h = h + alpha * v * np.abs(h).mean() / (np.abs(v).mean() + 1e-6)
        scores.append(h.mean())
        ranks.append(h if holistic else a[band])
    w = np.array(scores) / (np.sum(scores) + 1e-6)
    quota = np.floor(w * keep).astype(int)
    quota[np.argsort(-w, kind="stable")[: keep - quota.sum()]] += 1
    out = []
    for band, q, r in zip(bands, quota, ranks, strict=True):
        out += list(band if q >= len(band) else band[np.argsort(-r, kind="stable")[:q]])
    return out, quota, bands


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 99), keep=st.sampled_from([1, 3, 9, 20]), crops=st.sampled_from([1, 3, 7, 20, 31]))
def test_kept_tokens_equal_a_plain_version(seed, keep, crops):
    video = checks.make_video(frames=2, seed=seed)
    x, a = np.asarray(video.features, np.float64), np.asarray(video.evidence["attention_last"])
    for reducer in (OFFICIAL, HoloV(alpha=1.0, rank_by="holistic", order="official", pad_zeros=True)):
        budget = reducer.budget_of(20, keep, crops)
        reduced = planned(reducer, video, budget, capacity=40)[1]
        ids, tokens = checks.valid_rows(reduced)
        ids, tokens = ids.reshape(2, keep), tokens.reshape(2, keep, -1)
        for t in range(2):
            expected, _, _ = by_hand(x[t], a[t], keep, crops, reducer.alpha, reducer.rank_by == "holistic")
            np.testing.assert_array_equal(ids[t, : len(expected)], 20 * t + np.array(expected))
            assert (ids[t, len(expected) :] == 40).all()
            assert (tokens[t, len(expected) :] == 0).all()


def test_one_frame():
    video = checks.make_video(frames=1)
    reduced = checks.reduce(HoloV(), video, 0.3)
    checks.check_copies(video, reduced)
    assert np.all(np.diff(checks.valid_rows(reduced)[0]) > 0)


def focused(frames=3):
    """Attention concentrated on three neighbours, so that one band gets more than it holds."""
    video = checks.make_video(frames=frames)
    attention = np.full((frames, 20), 1e-4, np.float32)
    attention[:, 8:11] = 1.0 + 0.1 * np.arange(3)
    return VideoTokens.create(video.features, {"attention_last": attention}, grid=(4, 5))


def test_quota_beyond_a_band_is_lost_or_handed_on():
    video = focused()
    lost = checks.reduce(HoloV(crops=5), video, 0.5)
    assert int(lost.count) < 30
    padded = checks.reduce(dataclasses.replace(OFFICIAL, crops=5), video, 0.5)
    assert int(padded.count) == 30
    assert int((padded.mass > 0).sum()) == int(lost.count)
    handed_on = checks.reduce(HoloV(crops=5, redistribute=True), video, 0.5)
    assert int(handed_on.count) == 30
    assert set(checks.valid_rows(lost)[0]) <= set(checks.valid_rows(handed_on)[0])
    checks.check_copies(video, handed_on)


def test_zero_attention_keeps_one_token_a_band_or_all_of_the_budget():
    video = VideoTokens.create(checks.make_video().features, {"attention_last": np.zeros((6, 20))}, grid=(4, 5))
    assert int(checks.reduce(HoloV(crops=3), video, 0.5).count) == 18
    assert int(checks.reduce(HoloV(crops=3, redistribute=True), video, 0.5).count) == 60


def test_the_diversity_term_cancels_out_of_the_quotas():
    for seed in range(4):
        video = checks.make_video(seed=seed, dim=16)
        full = checks.reduce(HoloV(), video, 0.3)
        np.testing.assert_array_equal(full.index, checks.reduce(HoloV(diversity=False), video, 0.3).index)


@pytest.mark.parametrize(("length", "ratio", "crops"), [(196, 0.5, 3), (169, 1 / 3, 5), (169, 0.1, 18), (196, 0.9, 1)])
def test_the_number_of_bands_follows_the_rule(length, ratio, crops):
    assert int(HoloV().budget(Layout(2, (1, length)), ratio).crops) == crops


def test_a_sink_loses_its_place():
    video = focused()
    plain = set(checks.valid_rows(checks.reduce(HoloV(crops=1), video, 0.15))[0])
    assert {8, 9, 10} <= plain
    reducer = HoloV(crops=1)
    budget, sink = reducer.budget(video.layout(), 0.15), SinkRule(mu_s=5.0)
    plan, _ = planned(reducer, video, budget, capacity=9, sink=sink)
    assert not {8, 9, 10} & set(np.asarray(plan.ids).tolist())


def test_impossible_settings_are_refused():
    checks.refused(lambda: HoloV(rank_by="x"), "rank_by 'x'")
    checks.refused(lambda: HoloV(order="x"), "order 'x'")
    checks.refused(lambda: HoloV(crops=0), "crops must be at least 1")
    checks.refused(lambda: HoloV(pad_zeros=True), "official order")
    checks.refused(lambda: HoloV(diversity=False, rank_by="holistic"), "similarity term")
    checks.refused(lambda: HoloV().budget(Layout(2, (4, 5)), 0.04), "no token of a sequence of 20")
    checks.refused(lambda: HoloV(per_frame=False).budget(Layout(300, (14, 14)), 0.1), "up to 46340")
