"""SToP: golden files of every base, the gated variant, users' reducers, and the Qwen wrapper against plain numpy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout, VideoTokens
from jvidprune.ops import compact
from jvidprune.ops.sink import SinkRule, sink_scores
from jvidprune.parity import core
from jvidprune.parity import stop as parity
from jvidprune.reducers import registry
from jvidprune.reducers.aot import AOT
from jvidprune.reducers.controls import AttentionTopK
from jvidprune.reducers.evs import EVS
from jvidprune.reducers.fastvid import FastVID
from jvidprune.reducers.flashvid import FlashVID
from jvidprune.reducers.holitom import HoliTom
from jvidprune.reducers.protocol import inner_stages
from jvidprune.reducers.stop import SToP, base_reducer
from jvidprune.reducers.stop_qwen import VisionZipQwen
from jvidprune.reducers.visionzip import VisionZip

ZIP = VisionZip(tower="none")
EDGES = json.loads(str(np.load(checks.GOLDEN / "stop" / "edges.npz")["cases"]))


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.slow
def test_edge_cases_match(case):
    golden = core.load_golden(checks.GOLDEN / "stop" / "edges.npz")
    arrays = {key: value for key, value in golden.arrays.items() if key.startswith(case)}
    rows = list(parity._compare_runs(core.Golden(arrays | {"cases": np.array(json.dumps([case]))}, {})))
    assert rows
    assert [row for row in rows if row.verdict != "ok"] == []


def test_arrays_of_the_same_names_that_hold_something_else_are_another_methods():
    for value in (np.arange(3), np.asarray("no json"), np.asarray("[1, 2]")):
        golden = core.Golden({"cases": value, "runs": value}, {})
        assert not any(comparer.recognises(golden) for comparer in parity.COMPARERS)


def test_strengths_in_units_of_the_mean_are_those_of_maps_of_any_scale():
    rng = np.random.default_rng(0)
    attention, groups, mask = rng.random((6, 9)).astype(np.float32), jnp.zeros(6, jnp.int32), np.arange(6) < 5
    mean = attention[:5].astype(float).mean()
    relative, absolute = SinkRule(2.0, of_mean=True), SinkRule(2.0 * mean)
    ours = relative.adjust(attention, groups, mask).attention
    np.testing.assert_allclose(ours, absolute.adjust(attention, groups, mask).attention, rtol=1e-5)
    np.testing.assert_allclose(relative.adjust(attention / 729, groups, mask).attention, ours / 729, atol=1e-8)
    video = checks.make_video(frames=3, seed=1)
    one, other = (
        dataclasses.replace(video, evidence={"attention_last": s * video.evidence["attention_last"]}) for s in (1, 7)
    )
    kept = [
        [np.asarray(jvidprune.reduce(SToP(AttentionTopK(), 3.0, units=units), v, 0.3).index) for v in (one, other)]
        for units in ("mean", "absolute")
    ]
    np.testing.assert_array_equal(kept[0][0], kept[0][1])
    assert (kept[1][0] != kept[1][1]).any()
    assert (kept[0][0] != np.asarray(jvidprune.reduce(AttentionTopK(), one, 0.3).index)).any()
    assert registry.from_text("stop(base=fastvid, mu_s=20, units=mean)").rule.of_mean
    checks.refused(lambda: SToP(ZIP, units="mean"), "mu_s must be given with units='mean'")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 2.0))
def test_sink_scores_are_those_of_the_formula(seed, gamma):
    rng = np.random.default_rng(seed)
    attention = rng.random((6, 9)).astype(np.float32)
    groups, mask = np.array([0, 0, 1, 1, 1, 2]), np.arange(6) < 5
    ours = np.asarray(sink_scores(attention, groups, mask, gamma))
    for group in (0, 1):
        frames = (groups == group) & mask
        power = attention[frames].astype(float).mean(0) ** gamma
        score = (power - power.min()) / (power.max() - power.min() + 1e-12)
        np.testing.assert_allclose(ours[frames], np.broadcast_to(score, ours[frames].shape), atol=1e-5)


def test_constant_maps_have_no_sinks():
    flat = sink_scores(jnp.full((3, 7), 0.0013), jnp.zeros(3, jnp.int32), jnp.ones(3, bool))
    assert (np.asarray(flat) == 0).all()


def video_for(seed=0, frames=6):
    video = checks.make_video(frames=frames, grid=(5, 5), seed=seed)
    rng = np.random.default_rng(seed + 100)
    attention = np.asarray(video.evidence["attention_last"]) * 25 / 729
    attention[:, 7] += 0.2
    evidence = dict(video.evidence) | {
        "attention_last": jnp.asarray(attention),
        "frame_embedding": jnp.asarray(rng.normal(size=(frames, 5)) + 3, jnp.float32),
    }
    return VideoTokens.create(video.features, evidence, grid=(5, 5))


@pytest.mark.parametrize(
    "base",
    [ZIP, FastVID(attention="attention_last"), FlashVID(), HoliTom(tau=0.65)],
    ids=["visionzip", "fastvid", "flashvid", "holitom"],
)
@pytest.mark.slow
def test_without_weights_the_gated_variant_is_the_base(base):
    video = video_for()
    plain = jvidprune.reduce(base, video, 0.3, capacity=100)
    gated = jvidprune.reduce(SToP(base, mu_s=0.0, mu_t=0.0, gated=True), video, 0.3, capacity=100)
    np.testing.assert_array_equal(plain.index, gated.index)
    np.testing.assert_array_equal(plain.tokens, gated.tokens)


def test_ungated_extras_act_without_weights():
    assert SToP(ZIP, mu_s=0.0).rule.blocked == 20
    assert SToP(ZIP, mu_s=0.0, gated=True).rule.blocked == 0
    assert SToP(HoliTom(), mu_s=0.0, mu_t=0.0).rule.kappa == 0.3
    assert SToP(HoliTom(tau=0.65)).rule.static_threshold == 0.8
    assert SToP(HoliTom(tau=0.65), gated=True).rule.static_threshold is None
    assert SToP(FastVID(), mu_s=0.0).rule.kappa == 0.0
    assert SToP(FastVID()).rule.kappa == 0.3
    assert (SToP(FlashVID()).rule.kappa, SToP(FlashVID()).rule.blocked) == (0.0, 0)
    video = video_for(3)
    free = jvidprune.reduce(ZIP, video, 0.4, capacity=80)
    blocked = jvidprune.reduce(SToP(ZIP, mu_s=0.0), video, 0.4, capacity=80)
    assert (np.asarray(free.index) != np.asarray(blocked.index)).any()


def test_a_sink_is_kept_by_the_base_and_not_with_stop():
    video = video_for(1)
    base = AttentionTopK(scope="frame")
    sinks = np.arange(6) * 25 + 7
    plain = jvidprune.reduce(base, video, 0.2)
    adjusted = jvidprune.reduce(SToP(base, mu_s=0.5), video, 0.2)
    assert set(sinks) <= set(np.asarray(plain.index))
    assert not set(sinks) & set(np.asarray(adjusted.index))


@dataclasses.dataclass(frozen=True)
class Mine:
    """A user's reducer without stages or hooks: the most attended tokens."""

    needs = frozenset({"attention_last"})

    def budget(self, layout, ratio):
        return np.int32(max(1, int(layout.total * ratio)))

    def capacity(self, layout, ratio):
        return int(self.budget(layout, ratio))

    def plan(self, video, budget, *, capacity):
        flat = video.evidence["attention_last"].reshape(-1)
        rank = jnp.argsort(jnp.argsort(-flat, stable=True), stable=True)
        return compact.selection_plan(rank < budget, capacity)


def test_a_users_reducer_without_the_hook_gets_adjusted_attention():
    video = video_for(2)
    wrapped = SToP(Mine(), mu_s=0.5)
    out = jvidprune.sweep(wrapped, video, [0.1, 0.3])
    attention = np.asarray(video.evidence["attention_last"])
    score = np.asarray(sink_scores(attention, np.zeros(6, int), np.ones(6, bool), 1.1))
    order = np.argsort(-(attention - 0.5 * score).reshape(-1), kind="stable")
    for i, count in enumerate([15, 45]):
        assert set(np.asarray(out.index[i])[:count]) == set(order[:count])


def test_every_kind_of_base_runs():
    video = video_for(4)
    unpooled = np.random.default_rng(0).normal(size=(6, 81, 8)).astype(np.float32)
    maps = np.random.default_rng(1).random((2, 6, 81)).astype(np.float32)
    evidence = dict(video.evidence) | {
        "features_unpooled": unpooled,
        "attention_shallow": maps[0],
        "attention_deep": maps[1],
    }
    video = VideoTokens.create(video.features, evidence, grid=(5, 5), unpooled_grid=(9, 9))
    unwrapped = jvidprune.reduce(EVS(), video, 0.4)
    wrapped = jvidprune.reduce(SToP(EVS()), video, 0.4)
    np.testing.assert_array_equal(unwrapped.index, wrapped.index)
    assert SToP(AOT()).needs == AOT().needs
    assert SToP(AOT()).tokens_from == "evidence"
    assert SToP(ZIP).tokens_from == "features"


def test_defaults_presets_and_refusals():
    assert (SToP(HoliTom()).rule.mu_s, SToP(HoliTom()).rule.mu_t) == (0.04, 0.07)
    assert SToP(FlashVID()).rule.mu_s == 0.02
    assert registry.get("stop", "llava_video").base.layout == "grid"
    assert registry.get("stop", "qwen2_5_vl").rule.mu_s == 3.7
    flash = SToP("flashvid", backbone="llava_onevision")
    assert (flash.inner(0.1), flash.base.min_segments, flash.base.method) == ((), 8, "attn_div_v2")
    assert SToP(FlashVID(), keep_inner=True).inner(0.1) == FlashVID().inner(0.1)
    # FastV's cut follows the ratio.
    assert inner_stages(SToP("fastv", keep_inner=True), 0.1) == inner_stages(registry.get("fastv"), 0.1)
    assert inner_stages(SToP("fastv"), 0.1) == ()
    assert SToP("fastvid", backbone="qwen2_5_vl").rule.mu_s == 0.0
    assert SToP("flashvid", backbone="qwen3_vl").prompt.vision_markers == "drop"
    assert base_reducer("fastvid").attention == "attention_last"
    layout = Layout(8, (14, 14))
    assert SToP(HoliTom(tau=0.65)).capacity(layout, 0.1) == layout.total
    assert SToP(HoliTom()).capacity(layout, 0.1) == HoliTom().capacity(layout, 0.1)
    assert SToP(ZIP).tokens_per_frame(layout, 0.25) == 49
    checks.refused(lambda: SToP(3), "reducer")
    checks.refused(lambda: SToP(SToP()), "cannot wrap")
    checks.refused(lambda: SToP(ZIP, mu_s=float("nan")), "mu_s")
    checks.refused(lambda: SToP(ZIP, gamma=0.0), "gamma")
    with pytest.raises(jvidprune.JvidpruneError, match="Did you mean 'visionzip'"):
        SToP("visionsip")


def qwen_by_hand(x, ratio, mu_s=3.7, gamma=1.1, tau=0.8):
    """Windows by exhaustive search, then set after set, in float64."""
    x = np.asarray(x, np.float64)
    frames, n, _ = x.shape

    def cosine(a, b):
        return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-16)

    same = cosine(x[:-1], x[1:]) > tau
    best, start = [0], []
    for end in range(frames):
        gains = [(best[s] + (end - s) * same[s:end].all(0).sum() * (end > s), s) for s in range(end + 1)]
        top = max(gain for gain, _ in gains)
        best.append(top)
        start.append(max(s for gain, s in gains if gain == top))
    windows, end = [], frames - 1
    while end >= 0:
        windows.insert(0, (start[end], end))
        end = start[end] - 1
    total = frames * n
    share = min(ratio / max((total - best[-1]) / total, 0.1), 1.0)
    out = []

    def spatial(tokens, names):
        if not len(tokens):
            return
        norm = np.linalg.norm(tokens, axis=-1)
        u = norm * (1 + cosine(tokens, tokens.mean(0)))
        power = u**gamma
        spread = power.max() - power.min()
        s = (power - power.min()) / (spread + 1e-12) if spread > 1e-6 * power.max() else 0 * power
        kept = np.sort(np.argsort(-(u - mu_s * s), kind="stable")[: max(1, round(len(tokens) * share))])
        unit = tokens / np.maximum(norm, 1e-12)[:, None]
        nearest = kept[np.argmax(unit @ unit[kept].T, axis=1)]
        for k in kept:
            members = [i for i in range(len(tokens)) if i not in kept and nearest[i] == k]
            out.append((names[k], (tokens[k] + tokens[members].mean(0)) / 2 if members else tokens[k]))

    for first, last in windows:
        static = same[first:last].all(0) if last > first else np.zeros(n, bool)
        spatial(x[first : last + 1].mean(0)[static], first * n + np.flatnonzero(static))
        for t in range(first, last + 1):
            spatial(x[t][~static], t * n + np.flatnonzero(~static))
    return [name for name, _ in out], np.array([token for _, token in out])


@pytest.mark.parametrize(("seed", "ratio"), [(0, 0.3), (1, 0.1), (2, 0.9)])
def test_qwen_wrapper_equals_plain_numpy(seed, ratio):
    video = checks.make_video(frames=7, grid=(4, 5), dim=16, seed=seed)
    out = jvidprune.reduce(VisionZipQwen(), video, ratio, capacity=140)
    ids, tokens = checks.valid_rows(out)
    names, values = qwen_by_hand(video.features, ratio)
    assert ids.tolist() == names
    np.testing.assert_allclose(tokens, values, atol=1e-4)
    slot = np.asarray(out.slot)
    assert np.bincount(slot[slot >= 0], minlength=len(ids)).tolist() == np.asarray(out.mass)[: len(ids)].tolist()


def test_qwen_wrapper_takes_one_frame_and_a_still_video():
    reducer = VisionZipQwen()
    one = checks.make_video(frames=1, dim=16)
    assert int(jvidprune.reduce(reducer, one, 0.25).count) == 5
    still = VideoTokens.create(jnp.repeat(one.features, 6, axis=0), {}, grid=one.grid)
    out = jvidprune.reduce(reducer, still, 0.1)
    assert int(out.count) == round(20 * min(0.1 / max(1 / 6, 0.1), 1.0))
    assert int(np.asarray(out.mass).sum()) == 120
    checks.refused(lambda: VisionZipQwen(max_window=0), "window")


def test_a_rule_given_to_the_qwen_wrapper_replaces_its_weights():
    video = checks.make_video(frames=4, dim=16)
    budget = VisionZipQwen().budget(video.layout(), 0.3)

    @jax.jit
    def ranks(rule_weight):
        rule = SinkRule(mu_s=rule_weight)
        return VisionZipQwen(mu_s=0.0).prepare(video, capacity=80, sink=rule).rank

    plain = jax.jit(lambda v: VisionZipQwen().prepare(v, capacity=80).rank)(video)
    np.testing.assert_array_equal(ranks(3.7), plain)
    assert budget.share.dtype == np.int32
