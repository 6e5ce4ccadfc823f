"""VisionZip: golden files, a plain numpy version, budgets of the published table, sink rules, the CLS variant."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune import Layout, VideoTokens
from jvidprune.ops.sink import SinkRule
from jvidprune.parity.planned import planned
from jvidprune.reducers import registry
from jvidprune.reducers.visionzip import VisionZip

LOOSE = VisionZip(tower="none")


def by_hand(features, attention, keys, dominant, contextual, order):
    """One frame after another, as the method is described."""
    ids, tokens = [], []
    for t, x in enumerate(np.asarray(features, np.float64)):
        n = len(x)
        top = np.sort(np.argsort(-attention[t], kind="stable")[:dominant])
        left = np.setdiff1d(np.arange(n), top)
        step = max(1, len(left) // max(contextual, 1))
        seeds = left[::step][:contextual]
        unit = keys[t] / np.linalg.norm(keys[t], axis=1, keepdims=True)
        members = {seed: [] for seed in seeds}
        for i in np.setdiff1d(left, seeds):
            if contextual:
                members[seeds[np.argmax(unit[seeds] @ unit[i])]].append(i)
        rows = [(i, x[i]) for i in top]
        rows += [(s, x[s] + (np.mean(x[members[s]], axis=0) if members[s] else 0)) for s in seeds]
        if order == "grid":
            rows.sort(key=lambda row: row[0])
        ids += [t * n + i for i, _ in rows]
        tokens += [token for _, token in rows]
    return np.array(ids), np.array(tokens)


@settings(max_examples=12, deadline=None)
@given(spatial=st.integers(1, 20), kind=st.sampled_from([(0.0, "frame"), (27 / 32, "grid"), (1.0, "frame")]))
def test_tokens_equal_a_plain_version(spatial, kind):
    share, layout = kind
    reducer = VisionZip(layout=layout, dominant_share=share, tower="none", official_permutation=False)
    video = checks.make_video(frames=3, seed=spatial)
    budget = reducer.split(20, spatial)
    reduced = planned(reducer, video, budget, capacity=60)[1]
    evidence = [np.asarray(video.evidence[name]) for name in ("attention_last", "keys")]
    ids, tokens = by_hand(video.features, *evidence, int(budget.dominant), int(budget.contextual), layout)
    ours = checks.valid_rows(reduced)
    np.testing.assert_array_equal(ours[0], ids)
    np.testing.assert_allclose(ours[1], tokens, atol=1e-5)
    # Mass: with any contextual token every source token went somewhere, else only the dominant ones.
    assert int(reduced.mass.sum()) == (60 if budget.contextual > 0 else 3 * spatial)


def test_a_full_budget_returns_every_token_once():
    video = checks.make_video(frames=2)
    ids, tokens = checks.valid_rows(checks.reduce(LOOSE, video, 1.0))
    np.testing.assert_array_equal(np.sort(ids), np.arange(40))
    np.testing.assert_array_equal(tokens, np.asarray(video.features).reshape(40, -1)[ids])


@pytest.mark.parametrize(
    ("tower", "grid", "ratio", "kept"),
    [
        ("siglip", (14, 14), 0.10, 20),
        ("siglip", (14, 14), 0.15, 30),
        ("siglip", (13, 13), 0.10, 20),
        ("siglip", (13, 13), 1.0, 169),
        ("siglip", (14, 14), 0.3, 58),
        ("siglip", (4, 5), 0.1, 2),
        ("clip", (12, 12), 0.15, 22),
        ("none", (14, 14), 0.10, 19),
    ],
)
def test_ratios_become_the_published_counts(tower, grid, ratio, kept):
    reducer = VisionZip(tower=tower)
    budget = reducer.budget(Layout(3, grid), ratio)
    assert int(budget.spatial) == kept
    assert int(budget.dominant) == int(kept * 54 / 64)
    assert int(budget.dominant + budget.contextual) == kept
    assert reducer.capacity(Layout(3, grid), ratio) == 3 * kept


def test_a_sink_moves_seeds_and_changes_the_ranking():
    video = checks.make_video(frames=2, grid=(5, 8), seed=5)
    attention = np.full((2, 40), 0.01, np.float32)
    attention[:, :20] = 0.01 + 0.001 * np.arange(20, 0, -1)
    evidence = {**video.evidence, "attention_last": attention}
    video = VideoTokens.create(video.features, evidence, grid=(5, 8))
    reducer = VisionZip(tower="none", dominant_share=0.5)
    budget = reducer.split(40, 8)

    def numbers(sink):
        plan, reduced = planned(reducer, video, budget, capacity=16, sink=sink)
        return np.asarray(plan.diagnostics["seed_number"])[0, :4], reduced

    plain, _ = numbers(None)
    np.testing.assert_array_equal(plain, [0, 9, 18, 27])
    moved, reduced = numbers(SinkRule(mu_s=0.0, blocked=20))
    np.testing.assert_array_equal(moved, [20, 20, 20, 27])
    # Three seeds on one token: it is output three times, and the first copy alone has members.
    ids = np.asarray(reduced.index)[4:8]
    assert ids[0] == ids[1] == ids[2] == 24
    np.testing.assert_array_equal(reduced.tokens[5], np.asarray(video.features)[0, 24])
    np.testing.assert_array_equal(reduced.mass[5:7], [1, 1])
    assert int(reduced.mass[4]) > 1
    strong, _ = planned(reducer, video, budget, capacity=16, sink=SinkRule(mu_s=1.0))
    assert not np.isin(np.asarray(strong.diagnostics["attention_order"])[0, :4], np.arange(8)).any()


def test_the_cls_token_is_always_dominant():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 17, 4)).astype(np.float32)
    evidence = {"attention_last": rng.random((2, 17)), "keys": rng.normal(size=(2, 17, 3))}
    evidence["attention_last"][:, 0] = 0.0
    video = VideoTokens.create(features, evidence, grid=(1, 17))
    reducer = VisionZip(cls_token=True, tower="none")
    reduced = checks.reduce(reducer, video, 0.5)
    assert int(reduced.count) == 16
    np.testing.assert_array_equal(reduced.index[jnp.array([0, 8])], [0, 17])
    np.testing.assert_array_equal(reduced.tokens[0], features[0, 0])
    # One token a frame is the CLS token itself, whatever the share says.
    np.testing.assert_array_equal(checks.valid_rows(checks.reduce(reducer, video, 0.07))[0], [0, 17])


def test_impossible_settings_are_refused():
    checks.refused(lambda: VisionZip(layout="rows"), "layout 'rows'")
    checks.refused(lambda: VisionZip(tower="vit"), "tower 'vit'")
    checks.refused(lambda: VisionZip(dominant_share=1.5), "share must lie")
    checks.refused(lambda: LOOSE.budget(Layout(3, (4, 5)), 0.01), "no token of a frame of 20")
    checks.refused(lambda: LOOSE.split(20, 21), "1 to 20 tokens")
    checks.refused(lambda: LOOSE.split(20, 10, 3), "must be dominant, got 3")
    assert registry.get("visionzip", "llava_video").layout == "grid"
