"""VisionZip, FastVID and HoliTom by norms: golden files, a plain numpy version of the first, places, counts."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens, reducers
from jvidprune.reducers import qwen_norm
from jvidprune.reducers.fastvid import FastVID
from jvidprune.reducers.holitom import HoliTom
from jvidprune.reducers.qwen_norm import QwenNorm

METHODS = ("visionzip", "fastvid", "holitom")


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 999),
    ratio=st.sampled_from([0.02, 0.1, 0.35, 0.6, 0.95, 1.0]),
    share=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    neighbours=st.sampled_from([1, 5]),
)
@pytest.mark.slow
def test_visionzip_equals_a_plain_version(seed, ratio, share, neighbours):
    video = checks.make_video(frames=3, seed=seed)
    kept = max(1, int(20 * ratio))
    dominant = max(1, int(kept * share))
    ids, rows = [], []
    for t, x in enumerate(np.asarray(video.features, np.float64)):
        order = np.argsort(-np.linalg.norm(x, axis=1), kind="stable")
        top, rest = np.sort(order[:dominant]), np.sort(order[dominant:])
        found = {int(i): x[i] for i in top}
        if kept > dominant:
            unit = x[rest] / np.linalg.norm(x[rest], axis=1, keepdims=True)
            cosine = unit @ unit.T
            nearest = -np.sort(-cosine, axis=1)[:, 1 : min(neighbours + 1, len(rest))]
            density = nearest.mean(1) if nearest.shape[1] else np.zeros(len(rest))
            seeds = np.sort(np.argsort(-density, kind="stable")[: kept - dominant])
            joined = cosine[:, seeds].argmax(1)
            for k, seed_place in enumerate(seeds):
                members = rest[joined == k]
                found[int(rest[seed_place])] = x[members].mean(0) if len(members) else x[rest[seed_place]]
        ids += [20 * t + i for i in sorted(found)]
        rows += [found[i] for i in sorted(found)]
    reducer = QwenNorm(dominant_share=share, neighbours=neighbours)
    reduced = checks.reduce(reducer, video, ratio)
    found_ids, tokens = checks.valid_rows(reduced)
    np.testing.assert_array_equal(found_ids, ids)
    np.testing.assert_allclose(tokens, np.stack(rows), atol=1e-5)
    assert (np.asarray(reduced.slot) >= 0).all() or kept == dominant


@pytest.mark.parametrize("method", ["fastvid", "holitom"])
@pytest.mark.slow
def test_the_methods_themselves_run_on_norms(method):
    video = checks.make_video(frames=9, seed=3)
    x = np.asarray(video.features)
    evidence = {"attention_last": np.linalg.norm(x, axis=-1), "frame_embedding": x.mean(1)}
    shown = VideoTokens.create(x, evidence, grid=video.grid)
    own = {
        "fastvid": FastVID(
            "qwen3_norm", attention="attention_last", tau=0.84, ignore=0.99, context_share=0.5, beta=0.5
        ),
        "holitom": HoliTom(),
    }[method]
    for ratio in (0.2, 0.5):
        ours = checks.reduce(QwenNorm(method=method, spread=False), video, ratio)
        theirs = checks.reduce(own, shown, ratio)
        np.testing.assert_array_equal(ours.index, theirs.index)
        np.testing.assert_allclose(ours.tokens, theirs.tokens, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), ratio=st.sampled_from([0.05, 0.2, 0.5, 1.0]))
@pytest.mark.slow
def test_rows_of_holitom_are_spread_over_the_video(seed, ratio):
    video = checks.make_video(seed=seed)
    spread, own = (checks.reduce(QwenNorm("holitom", spread=flag), video, ratio) for flag in (True, False))
    places, tokens = checks.valid_rows(spread)
    count = len(places)
    expected = [i * 119 // max(count - 1, 1) for i in range(count)]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(tokens, checks.valid_rows(own)[1], atol=1e-6)
    np.testing.assert_array_equal(spread.slot, own.slot)
    np.testing.assert_array_equal(spread.mass, own.mass)
    shown = jvidprune.reduce(QwenNorm("holitom"), video, ratio, capacity=120, diagnostics=True)
    np.testing.assert_array_equal(np.asarray(shown.diagnostics["source"])[:count], checks.valid_rows(own)[0])


def test_one_row_stands_at_the_first_place():
    video = VideoTokens.create(np.ones((1, 4, 3), np.float32), grid=(2, 2))
    np.testing.assert_array_equal(checks.valid_rows(checks.reduce(QwenNorm("holitom"), video, 0.25))[0], [0])


def test_counts_are_those_of_the_released_code():
    layout = Layout(4, (6, 6))
    assert QwenNorm().budget(layout, 0.25) == (5, 4)
    assert QwenNorm().budget(layout, 0.01) == (1, 0)
    assert QwenNorm().capacity(layout, 0.25) == 36
    budget = QwenNorm("fastvid").budget(layout, 0.01)
    assert (int(budget.tokens), budget.context.tolist()) == (1, [0, 0, 1, 1, 2])
    assert QwenNorm().tokens_per_frame(layout, 0.25) == 9
    assert QwenNorm("holitom").tokens_per_frame is None


def test_seeds_that_lose_themselves_to_an_equal_one_stay_as_they_are():
    features = np.zeros((1, 6, 3), np.float32)
    features[0, 0] = [9, 0, 0]
    features[0, 1:] = [0, 1, 0]
    reduced = checks.reduce(QwenNorm(dominant_share=0.3), VideoTokens.create(features, grid=(2, 3)), 0.5)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], [0, 1, 2])
    np.testing.assert_array_equal(reduced.mass[:3], [1, 5, 1])


def patched(frames=4, seed=0):
    """A video with attention of its patches, four a token, which padding repeats."""
    video = checks.make_video(frames=frames, seed=seed)
    columns = np.random.default_rng(seed).random((frames, 80)).astype(np.float32)
    return VideoTokens.create(video.features, {"attention_columns": columns}, grid=(4, 5))


def test_the_first_version_pools_patches_as_if_they_came_row_by_row():
    columns = np.random.default_rng(0).random((2, 80)).astype(np.float32)
    scaled = (columns - columns.min()) / np.ptp(columns)
    expected = [
        [
            scaled[t, [(2 * i + a) * 10 + 2 * j + b for a in (0, 1) for b in (0, 1)]].mean()
            for i in range(4)
            for j in range(5)
        ]
        for t in range(2)
    ]
    found = qwen_norm.misplaced_scores(jnp.asarray(columns), (4, 5), jnp.ones(2, bool))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    flat = qwen_norm.misplaced_scores(jnp.full((2, 80), 3.0), (4, 5), jnp.ones(2, bool))
    np.testing.assert_array_equal(flat, np.ones((2, 20)))


@pytest.mark.parametrize("method", ["visionzip", "holitom"])
@pytest.mark.slow
def test_rows_of_the_first_version_stand_at_other_places(method):
    reducer = QwenNorm(method, "first")
    video = patched()
    reduced = jvidprune.reduce(reducer, video, 0.25, capacity=80, diagnostics=True)
    count = int(reduced.count)
    places = np.asarray(reduced.index)[:count]
    source, levels = (np.asarray(reduced.diagnostics[name])[:count] for name in ("source", "level_place"))
    if method == "holitom":
        np.testing.assert_array_equal(places, np.arange(count))
        np.testing.assert_array_equal(levels, [i * 79 // (count - 1) for i in range(count)])
    else:
        assert count == 20
        np.testing.assert_array_equal(places, np.sort(source))
        np.testing.assert_array_equal(levels, source)
        score = np.asarray(reduced.diagnostics["norm"]).reshape(-1)
        np.testing.assert_array_equal(source[:12], np.sort(np.argsort(-score, kind="stable")[:12]))
        np.testing.assert_array_equal(reduced.tokens[:12], np.asarray(video.features).reshape(80, -1)[source[:12]])
    checks.check_padding(reducer, video, 0.4)


@pytest.mark.slow
def test_chains_stop_and_refusals():
    chain = reducers.registry.from_text("qwen_norm+divprune")
    assert int(checks.reduce(chain, checks.make_video(), 0.1).count) == 12
    assert int(checks.reduce(reducers.get("stop", base="qwen_norm"), checks.make_video(), 0.3).count) == 36
    checks.refused(lambda: QwenNorm("dycoke"), "dycoke")
    checks.refused(lambda: QwenNorm("fastvid", "first"), "visionzip and holitom, got fastvid")
    checks.refused(lambda: QwenNorm(version="last"), "last")
    checks.refused(lambda: QwenNorm(dominant_share=2.0), r"lie in \[0, 1\], got 2")
    checks.refused(lambda: QwenNorm(neighbours=0), "at least 1, got 0")
    checks.refused(lambda: QwenNorm(interval=0), "at least 1")
