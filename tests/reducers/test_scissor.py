"""LLaVA-Scissor: golden files, a plain union-find version, thresholds found for a ratio, padding, zero tokens."""

import numpy as np
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens, reducers
from jvidprune.parity.planned import planned
from jvidprune.reducers import scissor
from jvidprune.reducers.scissor import Scissor, tau_for


def components(z, tau):
    """Components of cos > tau in the order of their best-connected members, which are returned too."""
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    edges = unit @ unit.T > tau
    parent = list(range(len(z)))

    def find(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in zip(*np.nonzero(edges), strict=True):
        parent[find(int(i))] = find(int(j))
    groups = {}
    for i in range(len(z)):
        groups.setdefault(find(i), []).append(i)
    best = {min(g, key=lambda i: (-edges[i].sum(), i)): g for g in groups.values()}
    return [best[i] for i in sorted(best)], sorted(best)


def plain(features, tau):
    """Output rows and the ids that they are named after, in float64."""
    x = np.asarray(features, np.float64)
    listed, names = [], []
    for t, frame in enumerate(x):
        found, best = components(frame, tau)
        listed += [frame[group].mean(0) for group in found]
        names += [t * x.shape[1] + i for i in best]
    found, best = components(np.stack(listed), tau)
    centres = np.stack([np.stack(listed)[group].mean(0) for group in found])
    flat = x.reshape(-1, x.shape[-1])
    cosine = flat @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    closest = cosine.argmax(1)
    rows = [(c + flat[closest == k].sum(0)) / (1 + (closest == k).sum()) for k, c in enumerate(centres)]
    return np.stack(rows), [names[i] for i in best]


def clusters(seed, frames=6, grid=(4, 5), kinds=8, noise=0.5, dim=32):
    """Tokens around a few directions, by which thresholds between 0.5 and 0.99 make many kinds of components."""
    rng = np.random.default_rng(seed)
    n = grid[0] * grid[1]
    centre = rng.normal(size=(kinds, dim))
    spread = noise * rng.random((frames, n, 1)) * rng.normal(size=(frames, n, dim))
    return VideoTokens.create((centre[rng.integers(kinds, size=(frames, n))] + spread).astype(np.float32), grid=grid)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), tau=st.sampled_from([0.3, 0.7, 0.9, 0.97]))
def test_rows_equal_a_plain_version(seed, tau):
    video = clusters(seed)
    reducer = Scissor(tau=0.5)
    # One program for all thresholds: the budget holds them.
    _, reduced = planned(reducer, video, reducer.budget_of(120, tau), capacity=120)
    rows, names = plain(video.features, tau)
    ids, tokens = checks.valid_rows(reduced)
    np.testing.assert_array_equal(ids, names)
    np.testing.assert_allclose(tokens, rows, atol=2e-5)


def test_lists_longer_than_a_tile_and_merging_tokens_everywhere():
    video = clusters(3, frames=20, kinds=60, noise=1.0)
    for tau in (0.75, 0.93, 0.999):
        reducer = Scissor(tau=0.5)
        plan, reduced = planned(reducer, video, reducer.budget_of(400, tau), capacity=400)
        rows, names = plain(video.features, tau)
        ids, tokens = checks.valid_rows(reduced)
        np.testing.assert_array_equal(ids, names)
        np.testing.assert_allclose(tokens, rows, atol=2e-5)
    assert int(plan.count) > scissor.TILE


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), ratio=st.sampled_from([0.02, 0.1, 0.3, 0.6, 1.0]))
def test_tau_is_the_largest_that_fits_the_ratio(seed, ratio):
    video = clusters(seed)
    most = max(1, int(120 * ratio + 0.5))
    reduced = jvidprune.reduce(Scissor(), video, ratio, capacity=120, diagnostics=True)
    tau = float(reduced.diagnostics["tau"])
    rows, names = plain(video.features, tau)
    assert len(rows) == int(reduced.count) <= most
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], names)
    if len(rows) < most and tau < 1:
        above = [len(plain(video.features, tau + step)[0]) for step in (4e-5, 1e-4, 1e-3)]
        assert max(above) > most


def test_every_token_goes_into_a_row_and_weights_of_a_row_add_up_to_one():
    video = clusters(1)
    reducer = Scissor(tau=0.9)
    plan, reduced = planned(reducer, video, reducer.budget_of(120, 0.9), capacity=120)
    assert (np.asarray(reduced.slot) >= 0).all()
    total = np.zeros(121)
    np.add.at(total, np.asarray(plan.row), np.asarray(plan.weight))
    np.testing.assert_allclose(total[: int(plan.count)], 1.0, atol=1e-5)
    counts = np.asarray(plan.diagnostics["counts"])
    assert counts.sum() == 120
    np.testing.assert_array_equal(np.bincount(np.asarray(reduced.slot), minlength=120), counts)


def test_ratio_one_keeps_all_tokens_and_the_lowest_tau_one():
    video = clusters(2)
    reduced = checks.reduce(Scissor(), video, 1.0)
    np.testing.assert_allclose(reduced.tokens, np.asarray(video.features).reshape(120, -1), atol=1e-5)
    assert int(checks.reduce(Scissor(tau=-1.5), video, 0.5).count) == 1
    assert int(checks.reduce(Scissor(), video, 0.001).count) == 1


def test_a_zero_token_has_no_edges():
    features = np.array(clusters(4).features)
    features[2, 3] = 0.0
    video = VideoTokens.create(features, grid=(4, 5))
    reduced = checks.reduce(Scissor(tau=0.9), video, 0.5)
    ids, tokens = checks.valid_rows(reduced)
    assert 43 in ids
    assert np.isfinite(tokens).all()
    assert int(checks.reduce(Scissor(), video, 0.1).count) <= 12


def test_too_small_a_capacity_is_told_by_the_count():
    video = clusters(0)
    reducer = Scissor(tau=0.97)
    whole, _ = planned(reducer, video, reducer.budget_of(120, 0.97), capacity=120)
    short, _ = planned(reducer, video, reducer.budget_of(120, 0.97), capacity=8)
    assert int(short.count) == int(whole.count) > 8
    np.testing.assert_array_equal(short.ids, whole.ids[:8])


def test_thresholds_are_told_and_ranges_refused():
    video = clusters(5)
    tau = tau_for(video, 0.2)
    assert int(checks.reduce(Scissor(tau=tau), video, 0.5).count) <= 24
    assert Scissor(tau=0.9).capacity(Layout(3, (4, 5)), 0.1) == 60
    checks.refused(lambda: Scissor(tau=3.0), "tau.*got 3")
    checks.refused(lambda: Scissor(tau=float("nan")), "got nan")
    wrapped = checks.reduce(reducers.get("stop", base="scissor"), video, 0.3)
    np.testing.assert_array_equal(wrapped.index, checks.reduce(Scissor(), video, 0.3).index)
