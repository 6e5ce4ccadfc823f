"""PruneVid: its golden files, the specification written again in numpy, and what every reducer has to keep."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens
from jvidprune.cuts.rules import text_relevance, top_in_blocks
from jvidprune.ops.runs import refine_labels
from jvidprune.ops.sink import SinkRule
from jvidprune.parity.planned import planned
from jvidprune.reducers.prunevid import PruneVid


def make_video(frames=9, grid=(6, 7), dim=6, seed=0):
    """Scenes of a few frames in which half the places hardly change."""
    rng = np.random.default_rng(seed)
    n = grid[0] * grid[1]
    scene = (rng.normal(size=(3, n, dim)) + 2 * rng.normal(size=(3, 1, dim)))[np.arange(frames) * 3 // frames]
    noise = np.where(np.arange(n) % 2 == 0, 0.2, 1.5)[None, :, None]
    features = scene + noise * rng.normal(size=(frames, n, dim))
    return VideoTokens.create(features.astype(np.float32), grid=grid)


class NearTie(Exception):
    """Two scores are closer than float32 tells apart: which comes first is not determined."""


def peaks(z, count, neighbours=7):
    """Label of each row and the centres in order of falling score."""
    d = np.linalg.norm(z[:, None] - z[None], axis=-1) / np.sqrt(z.shape[1])
    rho = np.exp(-np.mean(np.sort(d**2, axis=1)[:, :neighbours], axis=1))
    delta = np.where(rho[None] > rho[:, None], d, np.inf).min(axis=1)
    delta = np.where(np.isinf(delta), d.max(), delta)
    score = rho * delta
    order = np.argsort(-score, kind="stable")
    first = score[order[: count + 1]]
    if np.any(-np.diff(first) < 3e-6 * first[:-1]):
        raise NearTie
    centres = order[:count]
    label = d[:, centres].argmin(axis=1)
    label[centres] = np.arange(count)
    return label, centres


def refined(labels):
    """The refinement with lists and loops."""
    labels = list(labels)
    runs, at = [], 0
    for value, group in itertools.groupby(labels):
        length = len(list(group))
        runs.append((value, at, length))
        at += length
    longest = {v: max(r[2] for r in runs if r[0] == v) for v in labels}
    fixed = [None] * len(labels)
    for value, begin, length in runs:
        if longest[value] > 1 and length == longest[value]:
            fixed[begin : begin + length] = [value] * length
    t = 0
    while t < len(fixed):
        if fixed[t] is not None:
            t += 1
            continue
        end = t
        while end < len(fixed) and fixed[end] is None:
            end += 1
        left = right = 0
        while t - left > 0 and fixed[t - left - 1] == fixed[t - 1]:
            left += 1
        while end + right < len(fixed) and fixed[end + right] is not None and fixed[end + right] == fixed[end]:
            right += 1
        sides = [fixed[t - 1]] * (left > 0 and left >= right) + [fixed[end % len(fixed)]] * (right > left)
        fixed[t:end] = [sides[0] if sides else 0] * (end - t)
        t = end
    return fixed


def brute_force(reducer, video, ratio):
    """Input tokens of every output row, in order."""
    x = np.asarray(video.features, np.float64)
    frames, n, _ = x.shape
    raw, _ = peaks(x.mean(axis=1), max(1, int(frames * reducer.frame_share)))
    labels = refined(raw)
    groups, begin = [], 0
    for _, group in itertools.groupby(labels):
        w = len(list(group))
        segment = list(range(begin, begin + w))
        begin += w
        unit = x[segment] / np.linalg.norm(x[segment], axis=-1, keepdims=True)
        similarity = [((unit[:, i] @ unit[:, i].T).sum() - w) / (w * (w - 1)) for i in range(n)]
        static = [i for i in range(n) if similarity[i] > reducer.tau]
        dynamic = [i for i in range(n) if i not in static]
        beta = ratio
        if reducer.budgeting == "retention":
            beta = min(ratio * n * w / (len(static) + len(dynamic) * w) + 0.005, 1)
        sets = [(x[segment][:, static].mean(axis=0), [[t * n + i for t in segment] for i in static])]
        sets += [(x[t, dynamic], [[t * n + i] for i in dynamic]) for t in segment]
        for z, ids in sets:
            if len(ids) <= 14:
                groups += ids
                continue
            label, centres = peaks(z, int(len(ids) * beta))
            groups += [[j for i in np.flatnonzero(label == c) for j in ids[i]] for c in range(len(centres))]
    return groups


def compare(reducer, video, ratio):
    layout = video.layout()
    plan, reduced = planned(reducer, video, reducer.budget(layout, ratio), capacity=layout.total)
    groups = brute_force(reducer, video, ratio)
    flat = np.asarray(video.features, np.float64).reshape(layout.total, -1)
    count = int(plan.count)
    assert count == len(groups) <= reducer.capacity(layout, ratio)
    slot = np.asarray(reduced.slot)
    for row, group in enumerate(groups):
        assert np.flatnonzero(slot == row).tolist() == sorted(group)
    np.testing.assert_allclose(reduced.tokens[:count], [flat[group].mean(axis=0) for group in groups], atol=2e-5)
    assert reduced.mass[:count].tolist() == [len(group) for group in groups]


@pytest.mark.parametrize("budgeting", ["clusters", "retention"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(0.15, 1.0))
def test_both_versions_follow_the_specification(budgeting, seed, ratio):
    try:
        compare(PruneVid(budgeting=budgeting), make_video(seed=seed), ratio)
    except NearTie:
        reject()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_label_refinement_equals_the_loops(labels):
    found = refine_labels(jnp.asarray(labels, jnp.int32), jnp.ones(12, bool))
    assert found.tolist() == refined(labels)


def test_label_refinement_by_hand():
    every = jnp.ones(9, bool)

    def refine(labels):
        return refine_labels(jnp.asarray(labels, jnp.int32), every).tolist()

    assert refine([0, 1, 2, 3, 4, 5, 6, 7, 8]) == [0] * 9
    assert refine([0, 0, 1, 2, 2, 0, 3, 3, 3]) == [0, 0, 0, 2, 2, 3, 3, 3, 3]
    assert refine([5, 1, 1, 2, 2, 2, 1, 1, 4]) == [1, 1, 1, 2, 2, 2, 1, 1, 1]
    masked = refine_labels(jnp.asarray([0, 0, 1, 0, 0, 0], jnp.int32), jnp.arange(6) < 3)
    assert masked.tolist() == [0, 0, 0, -1, -1, -1]


def test_tables_round_like_python_floats():
    for budgeting in ("clusters", "retention"):
        for ratio in (0.1, 0.11, 0.29, 0.5, 1.0):
            budget = PruneVid(budgeting=budgeting).budget(Layout(8, (10, 10)), ratio)
            for w in range(1, 9):
                for static in range(101):
                    dynamic = 100 - static
                    beta = ratio
                    if budgeting == "retention":
                        beta = min(ratio * 100 * w / (static + dynamic * w) + 0.005, 1)
                    for table, n in ((budget.static, static), (budget.dynamic, dynamic)):
                        assert table[w, static] == (n if n <= 14 else max(int(n * beta), 1))


def test_fewer_frames_than_neighbours_and_one_frame():
    for frames in (1, 5):
        video = make_video(frames=frames)
        reduced = jvidprune.reduce(PruneVid(), video, 0.3, diagnostics=True)
        assert int(reduced.mass.sum()) == video.layout().total
        assert bool(jnp.isfinite(reduced.tokens).all())
        assert frames > 1 or not bool(reduced.diagnostics["static"].any())


def test_equal_frames_are_one_static_segment():
    one = make_video(frames=1)
    still = VideoTokens.create(jnp.tile(one.features, (8, 1, 1)), grid=one.grid)
    reduced = jvidprune.reduce(PruneVid(budgeting="clusters"), still, 0.5, diagnostics=True)
    assert int(reduced.diagnostics["segment"].max()) == 0
    assert bool(reduced.diagnostics["static"].all())
    assert int(reduced.count) == 21


@pytest.mark.slow
def test_bf16_features():
    half = VideoTokens.create(make_video().features.astype(jnp.bfloat16), grid=(6, 7))
    reduced = jvidprune.reduce(PruneVid(), half, 0.4)
    assert reduced.tokens.dtype == jnp.bfloat16
    full = VideoTokens.create(half.features.astype(jnp.float32), grid=(6, 7))
    np.testing.assert_array_equal(reduced.index, jvidprune.reduce(PruneVid(), full, 0.4).index)


@pytest.mark.slow
def test_a_sink_rule_acts_only_where_an_attention_map_is_named():
    video = make_video()
    attention = np.random.default_rng(0).random((9, 42)).astype(np.float32)
    video = VideoTokens.create(video.features, {"attention_last": attention}, grid=video.grid)
    total, rule = video.layout().total, SinkRule(mu_s=0.0, mu_t=5.0)
    plain, deaf = (PruneVid().prepare(video, capacity=total, sink=sink) for sink in (None, rule))
    np.testing.assert_array_equal(plain.static.member, deaf.static.member)
    moved = PruneVid(attention="attention_last").prepare(video, capacity=total, sink=rule)
    assert int(moved.static.member.sum()) > int(plain.static.member.sum())


def test_text_keeps_a_share_of_every_block():
    rng = np.random.default_rng(0)
    relevance = text_relevance(jnp.asarray(rng.random((2, 3, 12)), jnp.float32))
    block = np.array([0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 9, 9])
    valid = np.arange(12) < 10
    quota = jnp.asarray([int(n * 0.4) for n in range(13)], jnp.int32)
    kept = np.asarray(top_in_blocks(relevance, jnp.asarray(block), jnp.asarray(valid), quota))
    for number, size in ((0, 5), (1, 1), (2, 4)):
        inside = np.flatnonzero(block == number)
        best = inside[np.argsort(-np.asarray(relevance)[inside], kind="stable")[: int(size * 0.4)]]
        assert set(np.flatnonzero(kept[inside]) + inside[0]) == set(best)
    assert not kept[10:].any()


def test_bad_settings_are_refused_in_one_sentence():
    checks.refused(lambda: PruneVid(budgeting="tokens"), "budgeting 'tokens'")
    checks.refused(lambda: PruneVid(neighbours=0), "neighbour")
    checks.refused(lambda: PruneVid(frame_share=1.5), r"\[0, 1\]")
