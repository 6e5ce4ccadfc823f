"""FlashVID: golden files, a plain numpy version, options, budgets, the cut inside the model, the invariants."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens
from jvidprune.cuts.rules import LastQueryTopK
from jvidprune.models.checkpoint.published import PUBLISHED, published
from jvidprune.ops.sink import SinkRule
from jvidprune.parity import core, flashvid_cut, flashvid_hooks
from jvidprune.parity import flashvid as parity
from jvidprune.parity.planned import planned
from jvidprune.reducers import registry
from jvidprune.reducers.flashvid import FlashVID, inner_retention
from jvidprune.tokens import InnerStage, Kept

COMPARERS = [*parity.COMPARERS, *flashvid_hooks.COMPARERS]
CUT_FILES = ("fastv_prune", "llm_qwen2")
FRAMES, GRID, DIM = 7, (4, 5), 8
TOKENS = GRID[0] * GRID[1]


def files():
    return [path for path in checks.golden_files("flashvid") if path.stem not in CUT_FILES]


@pytest.mark.slow
def test_a_wrong_golden_value_is_noticed():
    golden = core.load_golden(next(path for path in files() if path.stem == "low_r03"))
    arrays = dict(golden.arrays)
    arrays["adts_indices"] = arrays["adts_indices"] + 1
    arrays["num_clusters"] = arrays["num_clusters"] + 1
    rows = core.report_file("x", core.Golden(arrays, golden.config), COMPARERS).rows
    assert {row.what for row in rows if not row.passed} >= {"adts_indices", "num_clusters"}


def test_files_of_the_cut_are_taken_by_its_own_comparers():
    for stem in CUT_FILES:
        golden = core.load_golden(checks.GOLDEN / "flashvid" / f"{stem}.npz")
        assert not any(comparer.recognises(golden) for comparer in COMPARERS)
        assert any(comparer.recognises(golden) for comparer in flashvid_cut.COMPARERS)


# --- a plain version


def order_of(x, weight, steps, method):
    """Greedy max-min selection of one frame, all rows gathered again at every step."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, 0)
    chosen = [int(np.argmax(np.sort(distance * weight, axis=0)[1]))] if steps else []
    while len(chosen) < steps:
        score = (distance[chosen] * weight).min(0)
        if method != "attn_div_v2":
            score[chosen] = -1
        chosen.append(int(np.argmax(score)))
    return chosen


def by_hand(reducer, video, ratio):
    """FlashVID up to the trees, with lists and loops: segments, selections, links, candidates, cluster counts."""
    x = np.asarray(video.features, np.float64)
    attention = np.asarray(video.evidence["attention_last"], np.float64)
    frames, n, _ = x.shape
    budget = min(math.ceil(n * ratio * reducer.expansion), n)
    select = min(math.ceil(budget * reducer.alpha), n)
    merge = budget - select
    means = x.mean(1)
    unit_means = means / np.linalg.norm(means, axis=1, keepdims=True)
    transition = (unit_means[:-1] * unit_means[1:]).sum(1)
    cuts = set(np.flatnonzero(transition < reducer.segment_threshold))
    need = max(reducer.min_segments - 1 - len(cuts), 0)
    again = np.where(np.isin(np.arange(frames - 1), list(cuts)), 1.0, transition)
    cuts |= set(np.argsort(again, kind="stable")[:need])
    segments = np.cumsum([0] + [t in cuts for t in range(frames - 1)])

    picks, linked, parent = np.zeros((frames, n), int), np.zeros((frames, n), bool), np.zeros((frames, n), int)
    candidate, clusters = np.zeros((frames, n), bool), np.zeros(frames, int)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    for s in range(segments[-1] + 1):
        rows = np.flatnonzero(segments == s)
        relevance = x[rows] @ means[rows].mean(0)
        for t, e in zip(rows, relevance, strict=True):
            weight = 1e6 * attention[t] * (e if reducer.method == "attn_div_v2" else 1.0)
            np.add.at(picks[t], order_of(x[t], weight, select, reducer.method), 1)
        taken = picks > 0
        best = np.full((len(rows), n), -1.0)
        for f, t in enumerate(rows[1:], start=1):
            cosine = np.where(taken[t - 1], -1.0, unit[t] @ unit[t - 1].T)
            best[f] = np.where(taken[t], -1.0, cosine.max(1))
            parent[t] = cosine.argmax(1)
        links = best > reducer.temporal_threshold
        if merge and len(rows) > 1:
            if (~links).sum() < budget * len(rows):
                k = len(rows) * (n - budget)
                links = best > max(np.sort(best, axis=None)[::-1][k - 1], -1 + 1e-6) if k else np.zeros_like(links)
            linked[rows] = links
        single = len(rows) == 1 and not reducer.exclude_selected_single
        candidate[rows] = ~linked[rows] & (single | ~taken[rows]) & (merge > 0)
        total = candidate[rows].sum()
        for t in rows:
            share = merge * len(rows) / total if total else 1.0
            count = candidate[t].sum()
            clusters[t] = count if share >= 1 else math.ceil(count * share)
    return picks, segments, linked, parent, candidate, clusters


def tree_tokens(reducer, video, linked, parent):
    """Value of every token as a root."""
    total = np.asarray(video.features, np.float64).copy()
    direct, members = np.zeros(total.shape[:2]), np.ones(total.shape[:2])
    for t in range(len(total) - 1, 0, -1):
        for i in np.flatnonzero(linked[t]):
            total[t - 1, parent[t, i]] += total[t, i]
            direct[t - 1, parent[t, i]] += 1
            members[t - 1, parent[t, i]] += members[t, i]
    return total / (members if reducer.tree_value == "mean" else 1 + direct)[..., None]


def near_video(seed, frames=FRAMES):
    """Frames alike enough to be linked, with a hard cut after the third."""
    rng = np.random.default_rng(seed)
    still = rng.normal(size=(2, 1, TOKENS, DIM)) + 0.5
    scene = np.where(np.arange(frames)[:, None, None] < 3, still[0], still[1])
    features = scene + 0.3 * rng.normal(size=(frames, TOKENS, DIM))
    attention = rng.random((frames, TOKENS)) ** 3 + 1e-3
    return VideoTokens.create(features.astype(np.float32), {"attention_last": attention.astype(np.float32)}, grid=GRID)


PLAIN = {
    "official": FlashVID(min_segments=3),
    "mean": FlashVID(
        min_segments=2, method="attn_div", tree_value="mean", exclude_selected_single=True, alpha=0.4, eps=1e-6
    ),
}


def shown(reducer, video, ratio):
    return jax.tree.map(
        np.asarray, jvidprune.reduce(reducer, video, ratio, capacity=FRAMES * (TOKENS + 1), diagnostics=True)
    )


@pytest.mark.parametrize("kind", PLAIN)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 1.0]))
def test_decisions_and_tokens_equal_a_plain_version(kind, seed, ratio):
    reducer, video = PLAIN[kind], near_video(seed)
    picks, segments, linked, parent, candidate, clusters = by_hand(reducer, video, ratio)
    reduced = shown(reducer, video, ratio)
    found = reduced.diagnostics
    np.testing.assert_array_equal(found["segments"], segments)
    np.testing.assert_array_equal(found["selected"], picks)
    np.testing.assert_array_equal(found["parent"] >= 0, linked)
    np.testing.assert_array_equal(found["parent"][linked] % TOKENS, parent[linked])
    np.testing.assert_array_equal(found["candidate"], candidate)
    np.testing.assert_array_equal(found["clusters"], clusters)

    # Rows: picked tokens unchanged, clusters the plain mean of their trees' tokens, by id, picks first.
    flat = np.asarray(video.features, np.float64).reshape(-1, DIM)
    values = tree_tokens(reducer, video, linked, parent)
    centre = found["cluster_centre"]
    assert ((centre >= 0) == candidate).all()
    rows = [(i, 0, flat[i]) for i in np.repeat(np.arange(FRAMES * TOKENS), picks.reshape(-1))]
    for t in range(FRAMES):
        for c in np.unique(centre[t][centre[t] >= 0]):
            assert centre[t, c] == c
            rows.append((t * TOKENS + c, 1, values[t][centre[t] == c].mean(0)))
    rows.sort(key=lambda row: row[:2])
    count = int(reduced.count)
    assert reduced.index[:count].tolist() == [row[0] for row in rows]
    expected = np.array([row[2] for row in rows])
    np.testing.assert_allclose(reduced.tokens[:count], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.bincount(centre[centre >= 0], minlength=1).sum(), candidate.sum())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(0.01, 1.0))
def test_counts_and_trees_keep_their_bounds(seed, ratio):
    reducer, video = PLAIN["mean"], near_video(seed)
    reduced = shown(reducer, video, ratio)
    budget = reducer.budget(video.layout(), ratio)
    per_frame = int(budget.n_select + budget.n_merge)
    count = int(reduced.count)
    assert FRAMES * per_frame <= count <= FRAMES * (per_frame + 1)
    assert count <= reducer.capacity(video.layout(), ratio)
    assert (np.diff(reduced.index[:count]) >= 0).all()
    np.testing.assert_array_equal(reduced.tokens[count:], 0)
    found = reduced.diagnostics
    parent, selected = found["parent"], found["selected"] > 0
    assert (parent[selected] == -1).all()
    child = np.flatnonzero(parent.reshape(-1) >= 0)
    above = parent.reshape(-1)[child]
    assert not selected.reshape(-1)[above].any()
    np.testing.assert_array_equal(child // TOKENS - 1, above // TOKENS)
    np.testing.assert_array_equal(found["segments"][child // TOKENS], found["segments"][above // TOKENS])
    # Averages of averages stay inside the box of what went into the segment.
    for s in np.unique(found["segments"]):
        inside = np.asarray(video.features)[found["segments"] == s].reshape(-1, DIM)
        tokens = reduced.tokens[:count][found["segments"][reduced.index[:count] // TOKENS] == s]
        assert (tokens >= inside.min(0) - 1e-5).all()
        assert (tokens <= inside.max(0) + 1e-5).all()


# --- options


def test_selection_repeats_only_without_the_distinct_option():
    rng = np.random.default_rng(5)
    features = rng.normal(size=(3, TOKENS, DIM)).astype(np.float32)
    attention = rng.random((3, TOKENS)).astype(np.float32) + 0.1
    video = VideoTokens.create(features, {"attention_last": attention}, grid=GRID)
    means = features.mean(1)
    positive = (np.einsum("tnd,td->tn", features, means) > 0).sum(1)
    reducer = FlashVID(alpha=1.0, expansion=1.0, min_segments=3)
    official = jvidprune.reduce(reducer, video, 0.9, diagnostics=True)
    distinct = jvidprune.reduce(dataclasses.replace(reducer, distinct=True), video, 0.9, diagnostics=True)
    wanted = math.ceil(0.9 * TOKENS)
    assert (positive < wanted).any()
    kinds = (np.asarray(official.diagnostics["selected"]) > 0).sum(1)
    np.testing.assert_array_equal(kinds, np.minimum(positive, wanted))
    np.testing.assert_array_equal(np.asarray(distinct.diagnostics["selected"]), distinct.diagnostics["selected"] > 0)
    assert int(official.count) == int(distinct.count) == 3 * wanted
    # Nothing is merged: rows are selected tokens.
    flat = features.reshape(-1, DIM)
    ids, tokens = checks.valid_rows(distinct)
    np.testing.assert_array_equal(tokens, flat[ids])


def test_without_temporal_merging_candidates_are_the_unselected_tokens():
    reduced = jvidprune.reduce(FlashVID(temporal_threshold=1.0, min_segments=2), near_video(1), 0.3, diagnostics=True)
    found = reduced.diagnostics
    assert (np.asarray(found["parent"]) == -1).all()
    several = np.bincount(found["segments"])[np.asarray(found["segments"])] > 1
    assert several.any()
    np.testing.assert_array_equal(found["candidate"][several], ~(np.asarray(found["selected"])[several] > 0))


def test_noise_chooses_the_centre_of_single_clusters():
    video = checks.make_video(frames=4, grid=GRID, dim=DIM)
    reducer = FlashVID(alpha=0.5, expansion=1.0, noise_seed=0)
    centre = jvidprune.reduce(reducer, video, 0.1, diagnostics=True).diagnostics["cluster_centre"]
    # One cluster a frame; without noise its centre is the lowest index.
    assert all(len(set(row)) == 1 for row in np.asarray(centre).tolist())
    assert len(set(np.asarray(centre)[:, 0].tolist())) > 1


def test_diversity_alone_needs_no_attention_and_zero_tokens_stay_finite():
    features = np.random.default_rng(0).normal(size=(3, TOKENS, DIM)).astype(np.float32)
    features[1, 4] = 0
    video = VideoTokens.create(features, grid=GRID)
    reduced = jvidprune.reduce(FlashVID(method="div"), video, 0.3, diagnostics=True)
    assert bool(jnp.isfinite(reduced.tokens).all())
    # The zero token is as far from everything as can be: it is taken, and index order follows.
    assert np.flatnonzero(reduced.diagnostics["selected"][1]).tolist() == [0, 1, 2, 3, 4, 5]
    assert int(reduced.count) >= 3 * math.ceil(TOKENS * 0.3 * 1.25)
    assert FlashVID(method="div").needs == frozenset()
    checks.refused(lambda: jvidprune.reduce(FlashVID(), video, 0.3), "attention_last")


@pytest.mark.slow
def test_a_sink_rule_lowers_the_attention_that_selection_uses():
    video = near_video(3)
    reducer = PLAIN["official"]
    budget = reducer.budget(video.layout(), 0.2)
    plain, _ = planned(reducer, video, budget, capacity=FRAMES * TOKENS)
    sink = SinkRule(mu_s=0.9)
    adjusted, _ = planned(reducer, video, budget, capacity=FRAMES * TOKENS, sink=sink)
    segments = plain.diagnostics["segments"]
    attention = sink.adjust(video.evidence["attention_last"], segments, video.frame_mask).attention
    assert float(attention.min()) < 0
    by_input = VideoTokens.create(video.features, {"attention_last": attention}, grid=GRID)
    same, _ = planned(reducer, by_input, budget, capacity=FRAMES * TOKENS)
    np.testing.assert_array_equal(adjusted.ids, same.ids)
    assert np.asarray(adjusted.ids).tolist() != np.asarray(plain.ids).tolist()


# --- budgets, presets, the cut inside the model


def test_budgets_are_those_of_the_published_settings():
    expected = {196: [(18, 7), (26, 11), (35, 14), (44, 18)], 169: [(16, 6), (23, 9), (31, 12), (38, 15)]}
    for n, pairs in expected.items():
        side = round(n**0.5)
        found = [tuple(map(int, FlashVID().budget(Layout(32, (side, side)), r))) for r in (0.1, 0.15, 0.2, 0.25)]
        assert found == pairs
    # One token more than exact arithmetic: float64 from left to right is part of the definition.
    for ratio in (0.05, 0.1, 0.2, 0.4):
        budget = FlashVID().budget(Layout(1, (24, 32)), ratio)
        assert int(budget.n_select + budget.n_merge) == round(768 * ratio * 1.25) + 1
    full = FlashVID().budget(Layout(4, (2, 3)), 1.0)
    assert (int(full.n_select), int(full.n_merge)) == (5, 1)
    assert all(isinstance(value, np.int32) for value in full)
    checks.refused(lambda: FlashVID().budget(Layout(4, (2, 3)), 1.5), "1.5")


def test_the_share_kept_at_the_cut_makes_up_for_the_expansion():
    assert inner_retention(28, 20) == pytest.approx(0.3)
    assert inner_retention(36, 28) == pytest.approx(0.1)
    assert inner_retention(36, 24) == pytest.approx(0.4)
    checks.refused(lambda: inner_retention(28, 28), "28")
    checks.refused(lambda: inner_retention(28, 25), "25")
    for backbone, (layer, keep) in {
        "llava_onevision": (20, 0.3),
        "llava_video": (20, 0.3),
        "qwen2_5_vl": (20, 0.3),
        "qwen3_vl": (28, 0.1),
    }.items():
        (stage,) = registry.get("flashvid", backbone=backbone).inner(0.1)
        assert stage == InnerStage(layer, LastQueryTopK(), Kept(keep))
        assert hash(stage) is not None
    assert FlashVID(pruning_layer=None).inner(0.1) == ()


def mean_share(reducer, layers):
    """Visual tokens that a decoder's layer reads on average, as a share of the ratio."""
    keep, cut = (
        (1.0, layers) if not reducer.inner(0.1) else (reducer.inner(0.1)[0].kept.share, reducer.inner(0.1)[0].layer)
    )
    return reducer.expansion * (cut + keep * (layers - cut)) / layers


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_the_ratio_is_the_mean_over_the_layers_of_every_model(model):
    config = published(model)
    assert mean_share(registry.for_model("flashvid", config), config.text.layers) == pytest.approx(1.0)


def test_published_depths_have_the_published_settings_exactly():
    for model, backbone in (
        ("llava-onevision-7b", "llava_onevision"),
        ("llava-video-7b", "llava_video"),
        ("qwen2.5-vl-7b", "qwen2_5_vl"),
        ("qwen3-vl-8b", "qwen3_vl"),
    ):
        assert registry.for_model("flashvid", published(model)) == registry.get("flashvid", backbone)


def test_a_cut_is_moved_only_where_it_is_the_presets():
    # 24 layers end too early for a cut before layer 20 to make up for 1.25: the cut stays, the expansion shrinks.
    small = registry.get("flashvid", "llava_onevision", layers=24)
    assert (small.pruning_layer, small.llm_retention_ratio) == (20, 0.3)
    assert small.expansion == pytest.approx(24 / 21.2)
    assert registry.get("flashvid", "llava_onevision", layers=24, expansion=1.1).llm_retention_ratio == pytest.approx(
        (24 - 22) / (1.1 * 4)
    )
    # No layer is behind the cut of a decoder of 8 layers.
    tiny = registry.get("flashvid", layers=8)
    assert (tiny.pruning_layer, tiny.expansion) == (None, 1.0)
    assert registry.get("flashvid", layers=8, expansion=1.3).expansion == 1.3
    for own in ({"llm_retention_ratio": 0.5}, {"pruning_layer": 4}, {"pruning_layer": None}):
        assert registry.get("flashvid", layers=8, **own) == FlashVID(**own)
    assert registry.get("flashvid", layers=28, expansion=1.5).llm_retention_ratio == 0.3, "nothing makes up for 1.5"
    checks.refused(lambda: registry.get("flashvid", layers=28, expansion=0.0), "expansion must be positive")
    for text in ("visionzip+flashvid", "sequential:first=visionzip,second=flashvid"):
        assert registry.from_text(text, "llava_onevision", 8).second == registry.get("flashvid", layers=8)
    # SToP's runs make no cut at any depth and keep the expansion.
    assert registry.from_text("stop:base=flashvid", "llava_onevision", 8).base.expansion == 1.25


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"method": "best"}, "attn_div_v2"),
        ({"alpha": 1.2}, "alpha"),
        ({"tree_value": "sum"}, "official, mean"),
        ({"expansion": 0.0}, "expansion"),
        ({"temporal_threshold": -2.0}, "temporal_threshold"),
        ({"eps": -1.0}, "eps"),
        ({"llm_retention_ratio": 0.0}, "llm_retention_ratio"),
        ({"pruning_layer": 0}, "pruning_layer"),
    ],
)
def test_settings_out_of_range_are_refused(settings_, words):
    checks.refused(lambda: FlashVID(**settings_), words)


# --- what every reducer has to pass


def test_too_small_a_capacity_shows_in_the_count():
    video = near_video(6)
    budget = PLAIN["official"].budget(video.layout(), 0.5)
    plan, _ = planned(PLAIN["official"], video, budget, capacity=30)
    assert int(plan.count) >= FRAMES * int(budget.n_select + budget.n_merge) > 30
    assert bool(plan.valid.all())
