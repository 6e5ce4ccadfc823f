"""AOT: golden files, a plain numpy version of both stages, sweeps, padding, batches, ratio rule and calibration."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.reducer_checks import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import JvidpruneError, Layout, VideoTokens, reducers
from jvidprune.errors import JvidpruneWarning
from jvidprune.ops.pool import pooling_matrix
from jvidprune.ops.sink import SinkRule
from jvidprune.ops.transport import FixedSinkhorn, Sinkhorn, TokenCost, Transport
from jvidprune.parity import aot as parity
from jvidprune.parity.core import load_golden
from jvidprune.reducers.aot import AOT, anchors, calibrate, clips, sizes
from jvidprune.reducers.programs import run_budgets
from jvidprune.synthetic import synthetic_tokens
from jvidprune.tokens import stack_budgets

UNPOOLED, GRID, FRAMES, DIM = (9, 8), (5, 4), 6, 10
REDUCER = AOT(window=3, clips=3)
VIDEO = synthetic_tokens(1, FRAMES, GRID, DIM, 2, unpooled_grid=UNPOOLED)
FULL = AOT(window=3, clips=3, keep_ratio=1.0).capacity_of(VIDEO.layout(), UNPOOLED[0] * UNPOOLED[1])


@functools.partial(jax.jit, static_argnames=("reducer", "capacity"))
def run(reducer, video, budget, capacity=FULL):
    plan = reducer.plan(video, budget, capacity=capacity)
    return reducer.apply(plan, video)


def budget(visual_tokens, keep_ratio=0.3, video=VIDEO, **settings):
    """A budget of another V and q: both are data, so that one compilation serves all."""
    return dataclasses.replace(REDUCER, keep_ratio=keep_ratio, **settings).budget_of(video.layout(), visual_tokens)


def rows(reduced):
    count = int(reduced.count)
    return np.asarray(reduced.index)[:count], np.asarray(reduced.tokens)[:count]


def pad(video, extra):
    def tail(array):
        return jnp.concatenate([array, jnp.full((extra, *array.shape[1:]), 9.0, array.dtype)])

    evidence = {k: v if k in ("text", "newline") else tail(v) for k, v in video.evidence.items()}
    mask = np.arange(video.features.shape[0] + extra) < video.features.shape[0]
    return VideoTokens.create(
        tail(video.features), evidence, grid=video.grid, frame_mask=mask, unpooled_grid=video.unpooled_grid
    )


# ---------------------------------------------------------------------------------------------- golden files


@pytest.mark.golden
def test_golden_pipelines_of_five_budgets_in_one_compilation():
    golden = load_golden(GOLDEN / "aot" / "pipeline.npz")
    cases = golden.config
    video = parity._video(golden, "in", cases["v20"], "bilinear")
    made = [
        AOT(visual_tokens=c["visual_token_num"], keep_ratio=c["keep_ratio"], window=7, clips=4) for c in cases.values()
    ]
    capacity = AOT(window=7, clips=4, keep_ratio=1.0).capacity_of(video.layout(), 196)
    run_budgets.clear_cache()
    budgets = stack_budgets([reducer.budget(video.layout(), 0.5) for reducer in made])
    swept = run_budgets(AOT(window=7, clips=4), video, budgets, capacity=capacity)
    assert run_budgets._cache_size() == 1
    for number, name in enumerate(cases):
        ids, tokens = rows(jax.tree.map(lambda leaf, i=number: leaf[i], swept))
        np.testing.assert_array_equal(ids, golden[f"{name}_out_ids"])
        np.testing.assert_allclose(tokens, golden[f"{name}_out_tokens"], atol=1e-5)


# ---------------------------------------------------------------------------------------------- plain numpy


def sinkhorn(cost, mu, nu):
    kernel, r, c = np.exp(-cost / 0.1), np.ones(mu.shape), np.ones(nu.shape)
    for _ in range(100):
        old = r
        r = mu / np.einsum("tra,ta->tr", kernel, c)
        c = nu / np.einsum("tra,tr->ta", kernel, r)
        if np.abs(r - old).mean() < 1e-2:
            break
    return r[..., None] * kernel * c[:, None]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def plain(video, visual_tokens, keep_ratio, clip):
    """AOT as its description reads, frame by frame, with lists."""
    x = np.asarray(video.evidence["features_unpooled"], np.float64)
    shallow, deep = (np.asarray(video.evidence[f"attention_{k}"]) for k in ("shallow", "deep"))
    (h, w), n = video.unpooled_grid, x.shape[1]
    windows = [
        [y * w + z for y in range(3 * i, 3 * i + 3) for z in range(3 * j, 3 * j + 3)]
        for i in range(h // 3)
        for j in range(w // 3)
    ]
    local_total = int(visual_tokens * 0.5)
    k, spread = (0, n) if visual_tokens == n else (local_total // len(windows), visual_tokens - local_total)
    place = np.array([(c / (w - 1), r / (h - 1)) for r in range(h) for c in range(w)])
    chosen = []
    for t in range(x.shape[0]):
        local = [i for win in windows for i in sorted(win, key=lambda i, t=t: (-shallow[t, i], i))[:k]]
        rest = sorted((i for i in range(n) if i not in local), key=lambda i, t=t: (-deep[t, i], i))
        chosen.append(sorted(local + rest[:spread]))
    merged = x.copy()
    if len(chosen[0]) < n:
        pruned = [[i for i in range(n) if i not in c] for c in chosen]
        cosines = np.stack(
            [unit(x[t][p]) @ unit(x[t][c]).T for t, (p, c) in enumerate(zip(pruned, chosen, strict=True))]
        )
        far = np.stack(
            [np.linalg.norm(place[p][:, None] - place[c][None], axis=-1) for p, c in zip(pruned, chosen, strict=True)]
        )
        shape = cosines.shape
        mass = np.full(shape[:2], 1 / shape[1]), np.full((shape[0], shape[2]), 1 / shape[2])
        plans = sinkhorn(1 - cosines + 0.5 * far, *mass)
        for t, (p, c) in enumerate(zip(pruned, chosen, strict=True)):
            nearest = cosines[t].argmax(1)
            for j, a in enumerate(c):
                moved = (x[t, a] + plans[t][:, j] @ x[t][p]) / (1 + plans[t][:, j].sum())
                members = [i for i, near in zip(p, nearest, strict=True) if near == j]
                merged[t, a] = 0.9 * moved + 0.1 * x[t][[a, *members]].mean(0)
    weights = np.kron(pooling_matrix(h, "bilinear"), pooling_matrix(w, "bilinear")).astype(np.float64)
    flags = np.zeros((x.shape[0], n))
    for t, c in enumerate(chosen):
        flags[t, c] = 1
    slots = [np.flatnonzero(weights @ f >= 0.5 - 1e-6) for f in flags]
    pooled = np.einsum("pn,tnd->tpd", weights, merged)
    ids, tokens = [], []
    for start in range(0, x.shape[0], clip):
        frames = [t for t in range(start, min(start + clip, x.shape[0])) if len(slots[t])]
        if not frames:
            continue
        key = frames[0]
        anchors = pooled[key][slots[key]]
        ids += [key * weights.shape[0] + i for i in slots[key]]
        tokens += list(anchors)
        for t in frames[1:]:
            z = pooled[t][slots[t]]
            cost = 1 - np.clip(unit(z) @ unit(anchors).T, -1 + 1e-6, 1 - 1e-6)
            cost = (cost - cost.min()) * (1 - np.exp(-((t - key) ** 2) / (2 * 1.5**2 + 1e-9)))
            r, a = cost.shape
            share = sinkhorn(cost[None], np.full((1, r), 1 / r), np.full((1, a), 1 / a))[0]
            share = share / share.sum(1, keepdims=True)
            best = share.max(1)
            keep = best < np.quantile(best, keep_ratio)
            ids += [t * weights.shape[0] + i for i in slots[t][keep]]
            tokens += list(z[keep])
            share = share[~keep]
            anchors = (anchors + share.T @ z[~keep]) / (1 + share.sum(0))[:, None]
        if len(frames) > 1:
            ids += [key * weights.shape[0] + i for i in slots[key]]
            tokens += list(anchors)
    return np.array(ids, int), np.array(tokens).reshape(-1, x.shape[-1])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 50),
    visual_tokens=st.one_of(st.integers(2, 71), st.just(72)),
    keep_ratio=st.sampled_from([0.0, 0.1, 0.35, 0.9, 1.0]),
)
def test_equals_a_plain_numpy_version(seed, visual_tokens, keep_ratio):
    video = synthetic_tokens(seed, FRAMES, GRID, DIM, 1 + seed % 4, unpooled_grid=UNPOOLED)
    ids, tokens = rows(run(REDUCER, video, budget(visual_tokens, keep_ratio)))
    expected_ids, expected = plain(video, visual_tokens, keep_ratio, 3)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(tokens, expected, atol=2e-5)


def test_narrow_candidates_give_what_all_tokens_as_candidates_give():
    reducer = AOT(window=3, clips=3, visual_tokens=14)
    narrow = reducer.capacity(VIDEO.layout(), 0.5)
    limit = sizes.limits(narrow, reducer.geometry(GRID, UNPOOLED), reducer.rules, FRAMES)
    assert limit.visual_tokens >= 14
    assert limit.candidates < UNPOOLED[0] * UNPOOLED[1]
    plan = jax.jit(REDUCER.plan, static_argnames="capacity")
    few = jax.jit(REDUCER.apply)(plan(VIDEO, budget(14), capacity=narrow), VIDEO)
    whole = run(REDUCER, VIDEO, budget(14))
    np.testing.assert_array_equal(rows(few)[0], rows(whole)[0])
    np.testing.assert_allclose(rows(few)[1], rows(whole)[1], atol=2e-6)
    # A V beyond what the capacity allows for shows in the count instead of vanishing.
    assert int(plan(VIDEO, budget(70), capacity=narrow).count) > narrow


# ---------------------------------------------------------------------------------------------- contract


@pytest.mark.slow
def test_sweep_equals_single_runs_in_one_compilation():
    run_budgets.clear_cache()
    ratios = [0.1, 0.3, 0.6, 1.0]
    swept = jvidprune.sweep(REDUCER, VIDEO, ratios, capacity=FULL)
    jvidprune.sweep(REDUCER, VIDEO, ratios[::-1], capacity=FULL)
    assert run_budgets._cache_size() == 1
    budgets = stack_budgets([REDUCER.budget(VIDEO.layout(), ratio) for ratio in ratios])
    many = jax.vmap(lambda b: run(REDUCER, VIDEO, b))(budgets)
    counts = []
    for i, ratio in enumerate(ratios):
        single = run(REDUCER, VIDEO, REDUCER.budget(VIDEO.layout(), ratio))
        for stacked in (swept, many):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
            np.testing.assert_array_equal(one.index, single.index)
            np.testing.assert_allclose(one.tokens, single.tokens, atol=2e-6)
        counts.append(int(single.count))
        assert counts[-1] <= REDUCER.capacity(VIDEO.layout(), ratio)
    assert counts == sorted(counts)
    assert counts[0] > 0


def whole_weights(reducer, made):
    """(K, T * P) weight of every pooled token in every row: `apply` is linear, so it is read off one-hot features."""
    plan = jax.jit(reducer.plan, static_argnames="capacity")(VIDEO, made, capacity=FULL)
    tokens = FRAMES * UNPOOLED[0] * UNPOOLED[1]
    ones = jnp.eye(tokens, dtype=jnp.float32).reshape(FRAMES, -1, tokens)
    evidence = VIDEO.evidence | {"features_unpooled": ones}
    wide = dataclasses.replace(VIDEO, evidence=evidence, features=jnp.zeros((FRAMES, 20, tokens)))
    table = np.kron(pooling_matrix(UNPOOLED[0], "bilinear"), pooling_matrix(UNPOOLED[1], "bilinear"))
    per_frame = np.asarray(reducer.apply(plan, wide).tokens, np.float64).reshape(FULL, FRAMES, -1)
    return np.einsum("ktn,pn->ktp", per_frame, table / table.sum(0)).reshape(FULL, -1)


@pytest.mark.parametrize(
    "settings", [{}, {"inter": False}, {"drop_original": True}, {"keep_ratio": 0.9}], ids=lambda s: "".join(s) or "aot"
)
@pytest.mark.slow
def test_a_transported_token_is_merged_into_the_row_with_most_of_its_weight(settings):
    reducer = dataclasses.replace(REDUCER, **settings)
    made = reducer.budget_of(VIDEO.layout(), 24)
    reduced = run(reducer, VIDEO, made)
    count, slot = int(reduced.count), np.asarray(reduced.slot)
    index = np.asarray(reduced.index)[:count]
    weights = whole_weights(reducer, made)[:count]
    assert (slot >= 0).all(), "every token of this video is transported somewhere"
    kept = np.flatnonzero(np.isin(np.arange(FRAMES * 20), index))
    np.testing.assert_array_equal(index[slot[kept]], kept)
    # Pooled cells that were tokens of their own and were merged along a clip go where their row does, weighed as one.
    masks = np.asarray(reduced.diagnostics["slot_mask"]).reshape(-1)
    gone = np.setdiff1d(np.flatnonzero(~masks), kept)
    assert len(gone) > 20
    np.testing.assert_allclose(weights[slot[gone], gone], weights[:, gone].max(0), atol=1e-6)
    # The counts are those of the tokens that are listed with a row, and the token that the row stands for.
    members = np.bincount(slot, minlength=count)
    np.testing.assert_array_equal(np.asarray(reduced.mass)[:count], members + (slot[index] != np.arange(count)))
    assert (np.asarray(reduced.mass)[count:] == 0).all()
    assert (np.asarray(reduced.index)[count:] == FRAMES * 20).all()


def test_a_token_merged_along_its_clip_goes_to_the_anchor_that_takes_most_of_it():
    reduced = run(REDUCER, VIDEO, budget(40))
    slot, plan = np.asarray(reduced.slot), np.asarray(reduced.diagnostics["inter_plan"])
    index, chosen = np.asarray(reduced.index), np.asarray(reduced.diagnostics["slots"])
    keep = np.asarray(reduced.diagnostics["inter_keep"])
    checked = 0
    for t in range(FRAMES):
        for s in np.flatnonzero((chosen[t] < 20) & ~keep[t]) if t % 3 else ():
            anchors = t // 3 * 60 + chosen[t // 3 * 3]
            assert index[slot[20 * t + chosen[t, s]]] == anchors[np.argmax(plan[t, s])]
            checked += 1
    assert checked > 5


def test_merged_anchors_are_means_of_tokens():
    # With every feature equal to one constant vector, every kind of output is that vector: weights sum to 1.
    constant = dataclasses.replace(
        VIDEO, evidence=VIDEO.evidence | {"features_unpooled": jnp.full_like(VIDEO.evidence["features_unpooled"], 2.5)}
    )
    ids, tokens = rows(run(REDUCER, constant, budget(40)))
    assert len(ids) > 10
    np.testing.assert_allclose(tokens, 2.5, atol=1e-5)


def test_padding_frames_change_nothing():
    padded = pad(VIDEO, 2)
    layout = padded.layout(FRAMES)
    alone, behind = (
        run(REDUCER, VIDEO, budget(40)),
        run(REDUCER, padded, REDUCER.budget_of(layout, 40), REDUCER.capacity_of(layout, 72)),
    )
    np.testing.assert_array_equal(rows(alone)[0], rows(behind)[0])
    np.testing.assert_allclose(rows(alone)[1], rows(behind)[1], atol=2e-6)
    assert not np.asarray(behind.slot)[FRAMES * 20 :].max() >= 0


def test_batch_of_videos_of_different_lengths():
    short = pad(synthetic_tokens(4, 4, GRID, DIM, 1, unpooled_grid=UNPOOLED), 2)
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), VIDEO, short)
    reduced = jvidprune.reduce_batch(REDUCER, batch, 0.4, capacity=FULL)
    for i, (video, frames) in enumerate(((VIDEO, FRAMES), (short, 4))):
        ids, tokens = rows(jax.tree.map(lambda leaf, i=i: leaf[i], reduced))
        single = rows(run(REDUCER, video, REDUCER.budget(video.layout(frames), 0.4)))
        np.testing.assert_array_equal(ids, single[0])
        np.testing.assert_allclose(tokens, single[1], atol=2e-6)
        assert ids.max() < frames * 20


def test_one_frame_is_emitted_once():
    video = synthetic_tokens(2, 1, GRID, DIM, 1, unpooled_grid=UNPOOLED)
    reduced = jvidprune.reduce(AOT(window=3), video, 0.5)
    ids = rows(reduced)[0]
    assert len(ids) > 3
    assert (np.diff(ids) > 0).all()


def test_gradients_reach_the_features_before_pooling():
    def loss(x):
        video = dataclasses.replace(VIDEO, evidence=VIDEO.evidence | {"features_unpooled": x})
        made = REDUCER.plan(jax.lax.stop_gradient(video), budget(40), capacity=FULL)
        return (REDUCER.apply(made, video).tokens ** 2).sum()

    x = VIDEO.evidence["features_unpooled"]
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    assert bool(jnp.isfinite(gradient).all())
    # The output is linear in the features once the plan is fixed: the loss is quadratic.
    assert float((gradient * x).sum()) == pytest.approx(2 * float(value), rel=1e-3)


def test_cost_weights_and_epsilon_vary_inside_one_compilation():
    far, warm = Transport(TokenCost(w_pos=3.0)), Transport(solver=Sinkhorn(0.5))
    settings = [{}, {"intra_transport": far}, {"intra_transport": warm, "inter_transport": warm}, {"nearest": 1.0}]
    run_budgets.clear_cache()
    stacked = stack_budgets([budget(40, **options) for options in settings])
    swept = run_budgets(REDUCER, VIDEO, stacked, capacity=FULL)
    assert run_budgets._cache_size() == 1
    first = np.asarray(swept.tokens[0])
    for i in (1, 2, 3):
        assert np.abs(np.asarray(swept.tokens[i]) - first).max() > 1e-4
    alone = run(REDUCER, VIDEO, budget(40, intra_transport=far))
    np.testing.assert_allclose(swept.tokens[1], alone.tokens, atol=2e-6)


def test_options_leave_out_originals_and_dilution_and_bf16_stays_bf16():
    half = dataclasses.replace(
        VIDEO,
        features=VIDEO.features.astype(jnp.bfloat16),
        evidence=VIDEO.evidence | {"features_unpooled": VIDEO.evidence["features_unpooled"].astype(jnp.bfloat16)},
    )
    whole = run(REDUCER, VIDEO, budget(40))
    clean = run(AOT(window=3, clips=3, drop_original=True, anchors_only=True), half, budget(40))
    kept = np.bincount(rows(clean)[0], minlength=FRAMES * 20)
    assert kept.max() == 1
    np.testing.assert_array_equal(np.unique(rows(whole)[0] // 60), np.unique(rows(clean)[0] // 60))
    assert int(clean.count) < int(whole.count)
    assert clean.tokens.dtype == jnp.bfloat16
    assert bool(jnp.isfinite(clean.tokens.astype(jnp.float32)).all())


def test_dynamic_clips_cut_where_the_scene_changes():
    assert "frame_embedding" in AOT(window=3, clips="dyseg").needs
    angle = np.deg2rad(np.cumsum([0, 1, 2, 50, 3, 4, 5, 6, 7, 8, 0.5, 9]))
    embedding = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], 1) * 3, jnp.float32)
    mask = jnp.arange(12) < 11
    # The seven largest turns among the eleven real frames start clips, and so does the padding behind them.
    turns = np.array([0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 0, 1], bool)
    turns[[0, 4]] = True
    np.testing.assert_array_equal(clips.dynamic_starts(embedding, mask), turns)
    assert bool(clips.dynamic_starts(jnp.eye(12), jnp.ones(12, bool)).all())


@pytest.mark.slow
def test_a_medoid_key_frame_is_the_frame_nearest_to_its_clip_and_merges_like_one_that_comes_first():
    # Without a temporal term the order of the other frames is the one that a video with the medoid in front has.
    settings = {"window": 3, "clips": 3, "inter_transport": Transport(TokenCost(w_pos=0.0))}
    medoid, first = AOT(key_frame="medoid", **settings), AOT(**settings)

    def turn(video, order):
        evidence = {k: video.evidence[k][np.array(order)] for k in first.needs}
        return dataclasses.replace(video, features=video.features[np.array(order)], evidence=evidence)

    video = turn(VIDEO, [1, 0, 2, 4, 5, 3])
    means = np.asarray(video.evidence["features_unpooled"]).mean(1)
    means = means / np.linalg.norm(means, axis=1, keepdims=True)
    order = []
    for clip in (np.arange(3), np.arange(3, 6)):
        best = clip[np.argmax((means[clip] @ means[clip].T).sum(1))]
        order += [best, *clip[clip != best]]
    assert order[0] != 0, "the case this test is about"
    assert order[3] != 3, "the case this test is about"
    ids, tokens = rows(run(medoid, video, medoid.budget_of(VIDEO.layout(), 40)))
    other, expected = rows(run(first, turn(video, order), first.budget_of(VIDEO.layout(), 40)))
    other = np.array(order)[other // 20] * 20 + other % 20
    assert len(ids) > 10
    np.testing.assert_array_equal(np.sort(ids), np.sort(other))
    tokens, expected = (t[np.lexsort((t[:, 0], i))] for i, t in ((ids, tokens), (other, expected)))
    np.testing.assert_allclose(tokens, expected, atol=2e-6)


def test_flows_name_the_strongest_targets_of_tokens_that_are_no_output():
    out = run(REDUCER, VIDEO, budget(40))
    flow, share = np.asarray(out.diagnostics["flow"]), np.asarray(out.diagnostics["flow_share"])
    ids = np.unique(rows(out)[0])
    assert not (flow[ids] >= 0).any()
    gone = np.setdiff1d(np.arange(FRAMES * 20), ids)
    assert (flow[gone, 0] >= 0).all()
    # What goes to a token of its frame goes on from there if that one is merged along its clip.
    along = np.asarray(out.diagnostics["slot_mask"]).reshape(-1)
    assert (np.isin(flow[gone, 0], ids) | along[flow[gone, 0]]).all()
    assert (np.diff(share, axis=1) <= 0).all()
    assert ((share.sum(1)[gone] > 0.3) & (share.sum(1)[gone] < 1 + 1e-5)).all()
    # Tokens merged along a clip go to its key frame, all others stay in their frame.
    merged = along[gone]
    assert merged.any()
    assert not merged.all()
    np.testing.assert_array_equal(flow[gone, 0] // 20, np.where(merged, gone // 60 * 3, gone // 20))


def test_sinks_lose_their_place_among_the_anchors():
    made = budget(20)

    @jax.jit
    def chosen(rule):
        shared = REDUCER.prepare(VIDEO, capacity=FULL, sink=rule)
        return anchors.anchor_mask(shared.selection, made.local, made.global_anchors, shared.frame_mask)

    before, after = np.asarray(chosen(SinkRule(mu_s=0.0))), np.asarray(chosen(SinkRule(mu_s=5.0)))
    np.testing.assert_array_equal(before, run(REDUCER, VIDEO, made).diagnostics["anchors"])
    persistent = np.argsort(-np.asarray(VIDEO.evidence["attention_deep"]).mean(0))[:3]
    assert before[:, persistent].mean() > 0.9
    assert after[:, persistent].mean() < 0.5
    np.testing.assert_array_equal(after.sum(1), before.sum(1))


# ---------------------------------------------------------------------------------------------- host arithmetic


def test_anchor_counts_truncate_as_the_reference():
    geometry = AOT().geometry((14, 14), (27, 27))
    totals = {v: sizes.anchor_counts(v, geometry, 0.5) for v in (100, 108, 126, 180, 17, 729)}
    assert {v: c.total for v, c in totals.items()} == {100: 95, 108: 108, 126: 126, 180: 180, 17: 9, 729: 729}
    # int(90 * (1 - 0.9)) is 8 in float64.
    assert sizes.anchor_counts(90, geometry, 0.9) == (0, 82, 82)


def test_ratio_rule_gives_the_published_rows_and_inverts_the_measured_table():
    one, video = Layout(32, (14, 14), (27, 27)), Layout(64, (13, 13), (27, 27))
    assert reducers.get("aot", "llava_onevision").budget(one, 0.10).visual_tokens == 108
    assert reducers.get("aot", "llava_video").budget(video, 0.25).visual_tokens == 180
    table = {(0.1, 0.079): 108, (0.3, 0.116): 126, (0.2, 0.151): 180, (0.5, 0.325): 288, (0.4, 0.050): 54}
    for (q, ratio), expected in table.items():
        found = int(AOT(keep_ratio=q).budget(one, ratio).visual_tokens)
        assert abs(found - expected) <= 3, (q, ratio, found)
    assert int(AOT(visual_tokens=50).budget(one, 0.9).visual_tokens) == 50


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 40),
    keep_ratio=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    cuts=st.sampled_from(["fixed", "dyseg", 1, 4]),
    visual_tokens=st.integers(1, 72),
    drop=st.booleans(),
)
def test_capacity_implies_at_least_its_own_visual_tokens(frames, keep_ratio, cuts, visual_tokens, drop):
    reducer = AOT(window=3, keep_ratio=keep_ratio, clips=cuts, drop_original=drop, visual_tokens=visual_tokens)
    layout = Layout(frames, GRID, UNPOOLED)
    capacity = reducer.capacity(layout, 0.5)
    geometry = reducer.geometry(GRID, UNPOOLED)
    limit = sizes.limits(capacity, geometry, reducer.rules, frames)
    made = reducer.budget(layout, 0.5)
    assert limit.visual_tokens >= visual_tokens
    assert (limit.local, limit.global_anchors) >= (int(made.local), 0)
    assert limit.global_anchors >= int(made.global_anchors)
    assert sum(sizes.clip_lengths(cuts, frames)) == frames


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_pooled_anchors_never_exceed_their_bound(data):
    grid = data.draw(st.sampled_from([(9, 9), (7, 5), (8, 8), (9, 8), (3, 3), (27, 27)]))
    kind = data.draw(st.sampled_from(["bilinear", "average"]))
    anchors = data.draw(st.integers(0, grid[0] * grid[1]))
    weights = np.kron(pooling_matrix(grid[0], kind), pooling_matrix(grid[1], kind)).astype(np.float64)
    # The worst masks are greedy: the heaviest tokens of the cheapest cells first.
    order = np.argsort(-weights.max(0) + 0.01 * np.random.default_rng(anchors).random(weights.shape[1]))
    mask = np.zeros(weights.shape[1])
    mask[order[:anchors]] = 1
    geometry = sizes.Geometry(grid, (-(-grid[0] // 2), -(-grid[1] // 2)), kind, (0, 0), 0)
    if kind == "average":
        geometry = geometry._replace(pooled=(grid[0] // 2, grid[1] // 2))
    assert (weights @ mask >= 0.5 - 1e-7).sum() <= sizes.pooled_bound(anchors, geometry)


def test_calibration_reaches_the_ratio_of_given_videos():
    videos = [synthetic_tokens(s, FRAMES, GRID, DIM, 2, unpooled_grid=UNPOOLED) for s in (11, 12)]
    found = calibrate(REDUCER, videos, 0.45)
    assert abs(found.achieved - 0.45) < 0.06
    assert found.reducer.visual_tokens == found.visual_tokens
    counts = [int(run(REDUCER, v, budget(found.visual_tokens)).count) / (FRAMES * 20) for v in videos]
    assert found.achieved == pytest.approx(np.mean(counts), abs=1e-6)


def test_errors_are_sentences():
    layout = VIDEO.layout()
    for reducer, ratio, words in (
        (AOT(visual_tokens=90), 0.5, "between 1 and the 72 tokens"),
        (AOT(clips=(2, 2)), 0.5, "sum to the 6 frames"),
        (AOT(pooling="average"), 0.5, "into 4x4, but the video has 5x4"),
        (AOT(), 1.5, r"must lie in \(0, 1\]"),
    ):
        with pytest.raises(JvidpruneError, match=words):
            reducer.budget(layout, ratio)
    with pytest.raises(JvidpruneError, match="needs its unpooled_grid"):
        AOT().budget(Layout(4, (5, 5)), 0.5)
    with pytest.raises(JvidpruneError, match="keep_ratio must lie"):
        AOT(keep_ratio=1.5)
    with pytest.raises(JvidpruneError, match="unknown distinct 'mood' of AOT"):
        AOT(distinct="mood")
    with pytest.raises(JvidpruneError, match="clips must be"):
        AOT(clips="sometimes")
    with pytest.raises(JvidpruneError, match="no pooling turns"):
        AOT().budget(Layout(4, (7, 7), (27, 27)), 0.5)
    with pytest.raises(JvidpruneError, match="at least one sample video"):
        calibrate(AOT(), [], 0.3)


@pytest.mark.slow
def test_a_kernel_that_underflowed_is_said_to_have():
    with warnings.catch_warnings():
        warnings.simplefilter("error", JvidpruneWarning)
        jvidprune.reduce(REDUCER, VIDEO, 0.4, diagnostics=True)
    cold = dataclasses.replace(REDUCER, intra_transport=Transport(solver=Sinkhorn(epsilon=2e-3)))
    with pytest.warns(JvidpruneWarning, match=r"AOT's solver inside frames .*at epsilon 0\.002.*larger epsilon"):
        reduced = jvidprune.reduce(cold, VIDEO, 0.4, diagnostics=True)
    assert float(reduced.diagnostics["intra_underflow"].max()) > 0
    assert not bool(reduced.diagnostics["intra_converged"].all())
    log = dataclasses.replace(REDUCER, intra_transport=Transport(solver=FixedSinkhorn(2e-3, 100, exact="anchors")))
    assert log.warning(jvidprune.reduce(log, VIDEO, 0.4, diagnostics=True).diagnostics) is None
