"""FastVID: its golden files, the specification written again in numpy, and what every reducer has to keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens, reducers
from jvidprune.ops.sink import SinkRule
from jvidprune.parity.planned import planned
from jvidprune.reducers.fastvid import FastVID

VARIANTS = ("llava_onevision", "llava_video", "qwen2_5_vl")


def make_video(frames=9, grid=(4, 5), dim=6, seed=0, dtype=np.float32):
    video = checks.make_video(frames, grid, dim, seed, dtype)
    rng = np.random.default_rng(seed + 100)
    steps = rng.normal(size=(frames, 7)) * rng.choice([0.02, 0.15, 1.0], size=(frames, 1))
    embedding = (1.0 + np.cumsum(steps, axis=0)).astype(np.float32)
    attention = video.evidence["attention_last"]
    evidence = {"attention_pooling_head": attention, "frame_embedding": embedding}
    return VideoTokens.create(video.features, evidence, grid=grid)


def reducer_of(variant, **settings):
    return FastVID(**({"variant": variant, "segments": 3, "interval": 2} | settings))


def brute_force(reducer, video, ratio):
    """ids, merged flags and tokens by loops over segments and frames, in float64, from the paper's steps."""
    x = np.asarray(video.features, np.float64)
    a = np.asarray(video.evidence[reducer.attention], np.float64)
    g = np.asarray(video.evidence["frame_embedding"], np.float64)
    frames, n, dim = x.shape
    g = g / np.linalg.norm(g, axis=1, keepdims=True)
    s = (g[:-1] * g[1:]).sum(1)
    cuts = set(np.argsort(s, kind="stable")[: reducer.segments - 1]) | set(np.flatnonzero(s < reducer.tau))
    segments = np.split(np.arange(frames), [t + 1 for t in sorted(cuts)])
    r = int(n * ratio)
    rows = {}
    for segment in segments:
        length, share = len(segment), reducer.context_share
        valid = list(segment)
        if reducer.variant == "qwen2_5_vl":
            valid = [t for t in segment if t == segment[-1] or s[t] < reducer.ignore]
        from_end = valid[::-1] if reducer.count_from == "end" else valid
        anchors = from_end[:: reducer.interval]
        if reducer.variant == "llava_onevision":
            context = int(r * share)
            salient = dict.fromkeys(valid, r - context)
            peaks = dict.fromkeys(anchors, context * length // len(anchors))
        else:
            context = int(r * length * share)
            if reducer.variant == "qwen2_5_vl":
                context = max(context, 1)
            rest = r * length - context
            salient = {t: rest // len(valid) + (i < rest % len(valid)) for i, t in enumerate(valid)}
            peaks = {t: context // len(anchors) + (i < context % len(anchors)) for i, t in enumerate(anchors)}
            if reducer.variant == "qwen2_5_vl" and length > 1:
                peaks = {t: min(k, n // 2) for t, k in peaks.items()}
                salient = {t: min(k, n - peaks.get(t, 0)) for t, k in salient.items()}
        chosen = {t: set(np.argsort(-a[t], kind="stable")[: salient.get(t, 0)]) for t in segment}
        free = {t: [i for i in range(n) if i not in chosen[t]] for t in segment}
        for t in segment:
            rows |= {(t, i): (False, x[t, i]) for i in chosen[t]}
        for f in anchors:
            points, count = x[f, free[f]], min(peaks[f], len(free[f]))
            d = np.linalg.norm(points[:, None] - points[None], axis=-1) / np.sqrt(dim)
            rho = np.exp(-np.mean(np.sort(d**2, axis=1)[:, : reducer.neighbours], axis=1))
            delta = np.where(rho[None] > rho[:, None], d, np.inf).min(axis=1, initial=np.inf)
            delta = np.where(np.isinf(delta), d.max(initial=0.0), delta)
            peak = [free[f][i] for i in np.argsort(-rho * delta, kind="stable")[:count]]
            onevision = reducer.variant == "llava_onevision"
            alone = onevision and peaks[f] == int(r * share)
            pool = [(t, i) for t in segment for i in free[t] if not (alone and t != f)]
            if not onevision:
                pool = [p for p in pool if not (p[0] == f and p[1] in peak)]
            members = {i: [] for i in peak}
            for t, i in pool if peak else []:
                # NaN wins, as in torch: that of a zero token, or of a peak that is zero.
                with np.errstate(invalid="ignore"):
                    cosine = [x[t, i] @ x[f, j] / np.linalg.norm(x[t, i]) / np.linalg.norm(x[f, j]) for j in peak]
                members[peak[int(np.argmax(cosine))]].append(x[t, i])
            for j in peak:
                w = max(1 / (len(members[j]) + 1), reducer.beta)
                mean = np.mean(members[j], axis=0) if members[j] else 0.0
                rows[(f, j)] = (True, w * x[f, j] + (1 - w) * mean)
    keys = sorted(rows)
    return np.array([t * n + i for t, i in keys]), np.array([rows[k][0] for k in keys]), [rows[k][1] for k in keys]


def compare(reducer, video, ratio):
    layout = video.layout()
    plan, reduced = planned(reducer, video, reducer.budget(layout, ratio), capacity=layout.total)
    ids, merged, tokens = brute_force(reducer, video, ratio)
    count = int(plan.count)
    assert count <= reducer.capacity(layout, ratio)
    np.testing.assert_array_equal(plan.ids[:count], ids)
    np.testing.assert_array_equal(~np.asarray(plan.is_pick[:count]), merged)
    np.testing.assert_allclose(reduced.tokens[:count], tokens, atol=2e-5)
    return plan


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(0.06, 0.6))
@pytest.mark.slow
def test_every_variant_follows_the_specification(variant, seed, ratio):
    compare(reducer_of(variant), make_video(seed=seed), ratio)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), zeros=st.integers(1, 60), ratio=st.sampled_from([0.15, 0.3, 0.45]))
def test_zero_tokens_join_the_best_scored_peak(variant, seed, zeros, ratio):
    video = make_video(seed=seed)
    blank = np.random.default_rng(seed).choice(180, size=zeros, replace=False)
    features = np.asarray(video.features).reshape(180, -1).copy()
    features[blank] = 0.0
    compare(reducer_of(variant), VideoTokens.create(features.reshape(9, 20, -1), video.evidence, grid=(4, 5)), ratio)


def test_a_zero_peak_takes_the_tokens_of_its_segment():
    video = make_video(frames=1, seed=4)
    features, blank = np.asarray(video.features).copy(), [3, 7, 11, 15]
    features[0, blank] = 0.0
    # The zero tokens are the least attended ones, so they are free, densest and furthest: the best-scored peaks.
    attention = np.asarray(video.evidence["attention_pooling_head"]).copy()
    attention[0, blank] = 0.0
    evidence = dict(video.evidence) | {"attention_pooling_head": attention}
    reducer = reducer_of("llava_onevision", segments=1, context_share=0.8)
    video = VideoTokens.create(features, evidence, grid=(4, 5))
    compare(reducer, video, 0.4)
    tokens = np.asarray(jvidprune.reduce(reducer, video, 0.4).tokens)
    ids = np.asarray(jvidprune.reduce(reducer, video, 0.4).index)
    free = np.setdiff1d(np.arange(20), np.argsort(-attention[0], kind="stable")[:2])
    np.testing.assert_allclose(tokens[list(ids).index(3)], 0.4 * features[0, free].sum(0) / len(free), atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.slow
def test_other_settings_follow_the_specification(variant):
    reducer = reducer_of(variant, context_share=0.7, beta=0.0, tau=-2.0, ignore=0.999, count_from="start")
    plan = compare(reducer, make_video(seed=3), 0.3)
    assert int(plan.diagnostics["segment"].max()) == 2


def test_anchor_frames_each_frame_merge_inside_it_in_the_onevision_copy():
    reducer = reducer_of("llava_onevision", interval=1)
    compare(reducer, make_video(seed=5), 0.3)


def test_one_frame():
    reducer, video = reducer_of("qwen2_5_vl", segments=8), make_video(frames=1)
    plan, _ = planned(reducer, video, reducer.budget(video.layout(), 0.25), capacity=20)
    assert int(plan.count) == 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_ratios_beyond_the_references_reach_keep_what_there_is(variant):
    reducer, video = reducer_of(variant), make_video(seed=6)
    plan, reduced = planned(reducer, video, reducer.budget(video.layout(), 1.0), capacity=video.layout().total)
    count = int(plan.count)
    assert len(set(np.asarray(plan.ids[:count]).tolist())) == count <= video.layout().total
    assert bool(jnp.isfinite(reduced.tokens).all())


def test_a_video_of_equal_frames_stays_finite_and_exact():
    one = make_video(frames=1)
    video = VideoTokens.create(
        jnp.tile(one.features, (9, 1, 1)),
        {name: jnp.tile(value, (9, 1)) for name, value in one.evidence.items()},
        grid=one.grid,
    )
    reducer = reducer_of("llava_video")
    plan, reduced = planned(reducer, video, reducer.budget(video.layout(), 0.25), capacity=video.layout().total)
    assert int(plan.count) == 9 * 5
    assert bool(jnp.isfinite(reduced.tokens).all())


def test_budgets_round_like_python_floats():
    layout = Layout(4, (10, 10))
    assert int(FastVID(variant="llava_video").budget(layout, 0.29).tokens) == 28
    budget = FastVID().budget(layout, 0.19)
    assert [int(c) for c in budget.context] == [0, 7, 14, 21, 28]
    budget = FastVID(variant="llava_video").budget(Layout(5, (13, 13)), 0.10)
    assert int(budget.tokens) == 16
    assert [int(c) for c in budget.context[4:]] == [25, 32]


def test_bf16_features():
    reducer, half = reducer_of("llava_onevision"), make_video(dtype=jnp.bfloat16)
    plan, reduced = planned(reducer, half, reducer.budget(half.layout(), 0.3), capacity=half.layout().total)
    full = VideoTokens.create(half.features.astype(jnp.float32), half.evidence, grid=half.grid)
    expected = planned(reducer, full, reducer.budget(full.layout(), 0.3), capacity=full.layout().total)
    np.testing.assert_array_equal(plan.ids, expected[0].ids)
    assert reduced.tokens.dtype == jnp.bfloat16
    np.testing.assert_array_equal(reduced.tokens, expected[1].tokens.astype(jnp.bfloat16))


@pytest.mark.slow
def test_a_sink_rule_moves_salient_tokens_and_counts_twice_in_longer_segments():
    video = make_video(seed=8)
    reducer = reducer_of("llava_onevision", context_share=0.5)
    budget, total = reducer.budget(video.layout(), 0.3), video.layout().total

    @jax.jit
    def plan(rule):
        shared = reducer.prepare(video, capacity=total, sink=rule)
        return reducer.decide(shared, budget, capacity=total), shared.penalty

    plain = reducer.plan(video, budget, capacity=total)
    np.testing.assert_array_equal(plan(SinkRule(mu_s=0.0))[0].ids, plain.ids)
    # A strength far above any attention or peak score leaves the order of the sink score alone.
    sunk, penalty = plan(SinkRule(mu_s=100.0, kappa=1e4))
    score = np.asarray(penalty[0])
    ids, merged = (np.asarray(value)[: int(sunk.count)] for value in (sunk.ids, ~sunk.is_pick))
    for t in range(9):
        assert set(ids[(ids // 20 == t) & ~merged] % 20) == set(np.argsort(score, kind="stable")[:3])


def test_the_anchor_penalty_counts_once_in_a_frame_alone_and_twice_elsewhere():
    video = make_video(seed=8)
    # Six segments of nine frames: some have one frame, some more.
    reducer, total = reducer_of("llava_onevision", segments=6, tau=-2.0, context_share=0.5), video.layout().total
    budget = reducer.budget(video.layout(), 0.3)
    shared = jax.jit(lambda: reducer.prepare(video, capacity=total))()
    penalty = jnp.broadcast_to(jnp.linspace(0.0, 0.5, 20), (9, 20))
    counts = reducer._counts(shared, budget)
    free = np.asarray(shared.rank >= counts.salient[:, None])
    found = np.asarray(reducer._peaks(shared._replace(penalty=penalty), counts, jnp.asarray(free))[0])
    assert {True, False} <= set(np.asarray(shared.length == 1).tolist())
    for t in np.flatnonzero(counts.peaks):
        distance, inside = np.asarray(shared.distance[t], np.float64), np.flatnonzero(free[t])
        d = distance[np.ix_(inside, inside)]
        rho = np.exp(-np.mean(np.sort(d**2, axis=1)[:, :4], axis=1))
        delta = np.where(rho[None] > rho[:, None], d, np.inf).min(axis=1)
        delta = np.where(np.isinf(delta), d.max(), delta)
        times = 1 if shared.length[t] == 1 else 2
        score = rho * delta - times * np.asarray(penalty[t])[inside]
        expected = inside[np.argsort(-score, kind="stable")[: int(counts.peaks[t])]]
        assert set(np.flatnonzero(found[t])) == set(expected)


def test_bad_settings_are_refused_in_one_sentence():
    checks.refused(lambda: FastVID(variant="llava"), "variant 'llava'")
    checks.refused(lambda: FastVID(count_from="middle"), "middle")
    checks.refused(lambda: FastVID(interval=0), "at least 1")
    checks.refused(lambda: FastVID(context_share=1.2), r"\[0, 1\]")
    checks.refused(lambda: FastVID().budget(Layout(4, (4, 4)), 0.05), "keeps no token")
    assert reducers.get("fastvid", backbone="qwen2_5_vl").needs == {"attention_mean_query", "frame_embedding"}
