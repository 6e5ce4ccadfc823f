"""OTT-Vid: golden files, a plain numpy version, Sinkhorn against ott-jax, budgets, invariants of its counts."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout
from jvidprune.errors import JvidpruneWarning
from jvidprune.ops.facility import facility_order
from jvidprune.ops.sink import SinkRule
from jvidprune.ops.transport import FixedSinkhorn, LeaveOneOut, Sinkhorn, Transport, Uniform
from jvidprune.ops.transport.fixed import sinkhorn_log, sinkhorn_scaling
from jvidprune.reducers import registry
from jvidprune.reducers.ottvid import OTTVid
from jvidprune.reducers.ottvid_pairs import split_removals

FAST = Transport(solver=FixedSinkhorn(iterations=40))
PAPER = OTTVid(transport=FAST)


def problem(seed, n=7, m=7, pairs=3, padded=0):
    rng = np.random.default_rng(seed)
    cost = rng.random((pairs, n, m)).astype(np.float32)
    a, b = rng.random((pairs, n)) + 0.05, rng.random((pairs, m)) + 0.05
    if padded:
        a[:, -padded:], b[:, -padded:] = 0, 0
    return cost, (a / a.sum(-1, keepdims=True)).astype(np.float32), (b / b.sum(-1, keepdims=True)).astype(np.float32)


def float64_plan(cost, a, b, epsilon, iterations):
    """v from the columns, then u from the rows, entry by entry as written in the specification."""
    kernel = -np.float64(cost) / epsilon

    def lse(values, axis):
        top = values.max(axis, keepdims=True)
        return np.log(np.exp(values - top).sum(axis)) + top.squeeze(axis)

    u = np.zeros(a.shape)
    for _ in range(iterations):
        v = np.log(np.float64(b)) - lse(u[..., :, None] + kernel, -2)
        u = np.log(np.float64(a)) - lse(v[..., None, :] + kernel, -1)
    return np.exp(u[..., :, None] + v[..., None, :] + kernel)


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.01, 203), (0.03, 37), (0.002, 60)])
@pytest.mark.slow
def test_log_domain_equals_float64_and_ott(epsilon, iterations):
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    cost, a, b = problem(1)
    ours = jax.jit(sinkhorn_log, static_argnums=(3, 4))(cost, a, b, epsilon, iterations)
    np.testing.assert_allclose(ours, float64_plan(cost, a, b, epsilon, iterations), atol=2e-6)
    solver = Sinkhorn(
        lse_mode=True,
        threshold=-1.0,
        inner_iterations=iterations,
        min_iterations=iterations,
        max_iterations=iterations,
    )

    def theirs(cost, a, b):
        return solver(LinearProblem(Geometry(cost_matrix=cost, epsilon=epsilon), a=a, b=b)).matrix

    np.testing.assert_allclose(ours, jax.vmap(theirs)(cost, a, b), atol=5e-6)


def test_scalings_equal_float64_and_rows_are_exact():
    cost, a, b = problem(2)
    ours = np.asarray(sinkhorn_scaling(cost, a, b, 0.1, 50))
    np.testing.assert_allclose(ours, float64_plan(cost, a, b, 0.1, 50), atol=1e-6)
    np.testing.assert_allclose(ours.sum(-1), a, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.01, 0.1])
def test_padding_of_a_transport_problem_is_exactly_zero(epsilon):
    solve = sinkhorn_log if epsilon < 0.05 else sinkhorn_scaling
    cost, a, b = problem(3, padded=2)
    padded = np.asarray(solve(cost, a, b, epsilon, 45))
    assert (padded[:, -2:] == 0).all()
    assert (padded[:, :, -2:] == 0).all()
    alone = solve(cost[:, :-2, :-2], a[:, :-2], b[:, :-2], epsilon, 45)
    np.testing.assert_allclose(padded[:, :-2, :-2], alone, atol=2e-6)


def test_a_traced_iteration_count_gives_the_same_plan():
    cost, a, b = problem(4)
    traced = jax.jit(sinkhorn_log, static_argnums=3)(cost, a, b, 0.02, jnp.int32(33))
    np.testing.assert_allclose(traced, sinkhorn_log(cost, a, b, 0.02, 33), atol=1e-6)


def test_jumps_beyond_the_scalings_fall_back_to_the_log_domain():
    rng = np.random.default_rng(5)
    cost = (rng.random((2, 6, 6)) * 40).astype(np.float32)
    _, a, b = problem(5, 6, 6, 2)
    ours = sinkhorn_log(cost, a, b, 0.01, 41)
    np.testing.assert_allclose(np.asarray(ours).sum(-1), a, atol=2e-3)
    np.testing.assert_allclose(ours, float64_plan(cost, a, b, 0.01, 41), atol=2e-3)


def greedy(cosine, weight, steps):
    order, covered = [], np.zeros(len(weight))
    for _ in range(steps):
        gain = [
            -np.inf if j in order else (weight * np.maximum(cosine[:, j] - covered, 0)).sum()
            for j in range(len(weight))
        ]
        order.append(int(np.argmax(gain)))
        covered = np.maximum(covered, cosine[:, order[-1]])
    return order


def test_facility_order_is_greedy_and_nested():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(3, 12, 5))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    cosine, weight = x @ x.swapaxes(1, 2), rng.random((3, 12))
    ours = np.asarray(facility_order(jnp.float32(cosine), jnp.float32(weight), 12))
    for t in range(3):
        assert ours[t].tolist() == greedy(cosine[t], weight[t], 12)
    np.testing.assert_array_equal(facility_order(jnp.float32(cosine), jnp.float32(weight), 4), ours[:, :4])
    same = np.asarray(facility_order(jnp.ones((1, 5, 5)), jnp.ones((1, 5)), 3))
    assert same.tolist() == [[0, 1, 2]]


def split_by_hand(difficulty, active, removals, cap, temperature):
    given, active, left = np.zeros(len(difficulty), int), active.copy(), removals
    while left > 0 and active.any():
        z = np.exp(-(difficulty - difficulty[active].min()) / temperature) * active
        share = z / z.sum() * left
        quota = np.floor(share).astype(int)
        rest = left - quota.sum()
        fraction = np.where(active, share - quota, -1)
        quota[np.argsort(-fraction, kind="stable")[: max(rest, 0)]] += 1
        give = np.where(active, np.minimum(quota, cap - given), 0)
        given, left = given + give, int((quota - give).sum())
        active &= given < cap
        if give.sum() == 0:
            break
    return given


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(0, 9))
def test_removals_are_split_as_by_hand(seed, removals, cap):
    rng = np.random.default_rng(seed)
    difficulty, active = rng.random(6).astype(np.float32), np.arange(6) < rng.integers(1, 7)
    ours = np.asarray(split_removals(difficulty, active, jnp.int32(removals), jnp.int32(cap), 0.3))
    np.testing.assert_array_equal(ours, split_by_hand(difficulty.astype(float), active, removals, cap, 0.3))
    assert ours.sum() == min(removals, cap * active.sum())
    assert (ours <= cap).all()


@pytest.mark.parametrize(
    "reducer", [PAPER, OTTVid(transport=FAST, variant="llava", cost_threshold=None)], ids=["qwen", "llava"]
)
@pytest.mark.slow
def test_counts_ids_and_mass(reducer):
    video = checks.make_video(frames=6, grid=(4, 5))
    for ratio in (0.1, 0.3, 1.0):
        out = jvidprune.reduce(reducer, video, ratio, capacity=120)
        count, ids = int(out.count), np.asarray(out.index)
        assert count == reducer.capacity(video.layout(), ratio)
        ids = ids[:count]
        assert (np.diff(ids) > 0).all()
        assert set(ids // 20) == set(range(6)), "every frame keeps a token"
        kept = int(reducer.budget(video.layout(), ratio).per_frame)
        assert (ids < 20).sum() == kept, "frame 0 is never absorbed"
        mass, slot = np.asarray(out.mass)[:count], np.asarray(out.slot)
        np.testing.assert_array_equal(np.bincount(slot[slot >= 0], minlength=count), mass)
        if reducer.cost_threshold is None:
            assert mass.sum() == 6 * kept
        x = np.asarray(video.features).reshape(120, -1)
        means = np.stack([x[slot == row].mean(0) for row in range(count)])
        np.testing.assert_allclose(np.asarray(out.tokens)[:count], means, atol=2e-6)


@pytest.mark.slow
def test_the_threshold_changes_tokens_but_not_the_count():
    video = checks.make_video(seed=3)
    strict = jvidprune.reduce(OTTVid(transport=FAST, cost_threshold=0.05), video, 0.2, capacity=60)
    loose = jvidprune.reduce(OTTVid(transport=FAST, cost_threshold=None), video, 0.2, capacity=60)
    np.testing.assert_array_equal(strict.index, loose.index)
    assert np.asarray(strict.mass).sum() < np.asarray(loose.mass).sum()


def test_budgets_round_as_each_backbone_does():
    for ratio, share in [(0.01, 0.0398), (0.1, 0.1995), (0.25, 0.3789)]:
        layout = Layout(16, (14, 14))
        assert int(OTTVid().budget(layout, ratio).per_frame) == int(196 * share)
        assert int(OTTVid(variant="llava").budget(layout, ratio).per_frame) == round(196 * share)
    budget = OTTVid().budget(Layout(16, (8, 8)), 0.01)
    assert (int(budget.per_frame), int(budget.removals)) == (2, 22)
    assert OTTVid().capacity(Layout(16, (8, 8)), 0.01) == 17
    assert tuple(OTTVid().budget(Layout(1, (8, 8)), 0.2)) == (20, 0, None)
    assert tuple(OTTVid(temporal=False).budget(Layout(8, (8, 8)), 0.2)) == (20, 0, None)
    assert int(OTTVid(temporal_share=None).budget(Layout(8, (8, 8)), 0.2).per_frame) == 64
    assert int(OTTVid(spatial_retention=0.5).budget(Layout(8, (8, 8)), 0.2).per_frame) == 32


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 200), st.floats(0.005, 1.0), st.sampled_from(["qwen", "llava"]))
def test_a_capacity_always_leaves_room_for_its_own_budget(frames, tokens, ratio, variant):
    reducer = OTTVid(variant=variant)
    for real in {1, frames}:
        layout = Layout(real, (1, tokens), None, frames)
        kept = int(reducer.budget(layout, ratio).per_frame)
        assert reducer._largest_kept(frames, tokens, reducer.capacity(layout, ratio)) >= kept
        exact = reducer._count(real, tokens, ratio)
        assert exact <= reducer.capacity(layout, ratio)


def test_too_small_a_capacity_shows_in_the_count():
    video = checks.make_video()
    budget = PAPER.budget(video.layout(), 0.5)
    plan = jax.jit(lambda v: PAPER.plan(v, budget, capacity=10))(video)
    assert int(plan.count) > 10


@pytest.mark.slow
def test_a_transport_sized_to_the_budget_equals_one_of_the_whole_capacity():
    video = checks.make_video(frames=3, grid=(10, 10))
    reducer = OTTVid(transport=Transport(solver=FixedSinkhorn(iterations=12)))
    ratio, capacity = 0.2, reducer.capacity(video.layout(), 0.6)
    kept = int(reducer.budget(video.layout(), ratio).per_frame)
    steps = reducer._largest_kept(3, 100, capacity)
    assert steps >= 64 > steps // 2 > kept, "the case this test is about"
    sized = jvidprune.reduce(reducer, video, ratio, capacity=capacity, diagnostics=True)
    tight = jvidprune.reduce(reducer, video, ratio, capacity=reducer.capacity(video.layout(), ratio))
    count = int(tight.count)
    assert int(sized.count) == count
    np.testing.assert_array_equal(sized.index[:count], tight.index[:count])
    np.testing.assert_allclose(sized.tokens[:count], tight.tokens[:count], atol=2e-6)
    plan = np.asarray(sized.diagnostics["transport_plan"])
    assert plan.shape == (2, steps, steps)
    np.testing.assert_allclose(plan[:, :kept, :kept].sum((1, 2)), 1.0, atol=1e-4)
    assert not plan[:, kept:].any()


def test_matches_follow_the_plan_under_its_projection():
    video = checks.make_video(frames=4, grid=(4, 5))
    reducer = OTTVid(transport=Transport(solver=FAST.solver, projection="column"))
    shown = jvidprune.reduce(reducer, video, 0.2, diagnostics=True).diagnostics
    kept = int(shown["kept_per_frame"])
    plan = np.asarray(shown["transport_plan"])[:, :kept, :kept]
    share = (plan / plan.sum(1, keepdims=True)).max(1)
    rank = np.argsort(np.argsort(-share, axis=1, kind="stable"), axis=1)
    np.testing.assert_array_equal(np.asarray(shown["match_rank"])[:, :kept], rank)
    assert (rank != np.argsort(np.argsort(-plan.max(1), axis=1), axis=1)).any(), "the case this test is about"


def test_a_kernel_that_underflowed_is_said_to_have():
    video = checks.make_video(frames=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", JvidpruneWarning)
        jvidprune.reduce(PAPER, video, 0.3, diagnostics=True)
    cold = OTTVid(transport=Transport(solver=Sinkhorn(epsilon=1e-3)))
    with pytest.warns(JvidpruneWarning, match=r"OTT-Vid's solver did not meet .*at epsilon 0\.001.*larger epsilon"):
        jvidprune.reduce(cold, video, 0.3, diagnostics=True)


def test_one_frame_and_one_token():
    video = checks.make_video(frames=1)
    out = jvidprune.reduce(PAPER, video, 0.2)
    assert int(out.count) == int(PAPER.budget(video.layout(), 0.2).per_frame)
    tiny = checks.make_video(frames=3, grid=(1, 1))
    out = jvidprune.reduce(PAPER, tiny, 0.1)
    assert np.asarray(out.index)[:3].tolist() == [0, 1, 2]


def test_everything_kept_without_a_spatial_stage():
    video = checks.make_video(frames=3)
    out = jvidprune.reduce(OTTVid(temporal_share=None, transport=FAST), video, 1.0)
    assert int(out.count) == 60
    np.testing.assert_allclose(np.asarray(out.tokens)[:60], np.asarray(video.features).reshape(60, -1), atol=1e-6)


def test_a_sink_rule_lowers_the_weight_of_sinks():
    video = checks.make_video(seed=7)
    attention = np.array(video.evidence["attention_last"]) * 0.01
    attention[:, 3] = 1.0
    video = jvidprune.VideoTokens.create(video.features, {"attention_last": attention}, grid=video.grid)
    shared = jax.jit(lambda v: PAPER.prepare(v, capacity=30, sink=SinkRule(mu_s=1.0)))(video)
    assert np.asarray(shared.attention)[:, 3].max() < 0.01
    assert (np.asarray(shared.attention) >= 0).all()


def test_presets_and_refusals():
    assert registry.get("ottvid", "llava_onevision").centroid_grid == (13, 13)
    assert registry.get("ottvid", "qwen2_5_vl").variant == "qwen"
    library = OTTVid.library_defaults()
    assert library.transport.solver == FixedSinkhorn(0.1, 50, "scaling")
    assert library.transport.marginals == Uniform()
    assert OTTVid(transport=Transport(marginals=LeaveOneOut(0.1))).transport.solver == FixedSinkhorn(0.01, 200)
    for settings_, words in [
        ({"variant": "clip"}, "variant"),
        ({"transport": "Transport:solver=(FixedSinkhorn:iterations=0)"}, "iterations must lie in"),
        ({"transport": FixedSinkhorn()}, "transport must be a Transport"),
        ({"temporal_share": 1.5}, "temporal_share"),
        ({"spatial_retention": -1.0}, "spatial_retention"),
    ]:
        checks.refused(lambda settings_=settings_: OTTVid(**settings_), words)
    checks.refused(lambda: OTTVid().budget(Layout(4, (4, 4)), 0.0), "ratio")


@pytest.mark.slow
def test_a_pair_weight_in_the_dtype_of_the_model_takes_bf16_features():
    video = checks.make_video(frames=4)
    half = dataclasses.replace(video, features=video.features.astype(jnp.bfloat16))
    reduced = jvidprune.reduce(OTTVid(transport=FAST, model_dtype_pair_weight=True), half, 0.3)
    assert reduced.tokens.dtype == jnp.bfloat16
    assert int(reduced.count) == int(jvidprune.reduce(PAPER, video, 0.3).count)
    assert bool(jnp.isfinite(reduced.tokens.astype(jnp.float32)).all())
