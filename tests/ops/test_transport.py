"""Transport in parts: native solvers against ott-jax and numpy, unbalanced, dustbin, low rank, gradients, sweeps."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.geometry import costs, geometry

import jvidprune
from jvidprune import JvidpruneError
from jvidprune.errors import JvidpruneWarning
from jvidprune.ops import transport as tr
from jvidprune.ops.branch import using
from jvidprune.reducers.aot import AOT
from jvidprune.reducers.aot.intra import problems
from jvidprune.reducers.ottvid import OTTVid
from jvidprune.synthetic import synthetic_tokens

R, A, D = 14, 5, 8
RNG = np.random.default_rng(3)
COST = RNG.uniform(0, 1.2, (3, R, A)).astype(np.float32)
MU = RNG.dirichlet(np.ones(R), 3).astype(np.float32)
NU = RNG.dirichlet(np.ones(A), 3).astype(np.float32)


def rows(n: int, seed: int, time: float = 0.0, mask: np.ndarray | None = None) -> tr.Rows:
    rng = np.random.default_rng(seed)
    return tr.Rows(
        jnp.asarray(rng.normal(size=(n, D)) + 0.5, jnp.float32),
        jnp.asarray(rng.random((n, 2)), jnp.float32),
        jnp.full(n, time),
        jnp.asarray(rng.random(n), jnp.float32),
        jnp.ones(n, bool) if mask is None else jnp.asarray(mask),
    )


def scalings(cost, mu, nu, epsilon, iterations, tau=(1.0, 1.0)):
    kernel = np.exp(-cost.astype(np.float64) / epsilon)
    c = np.ones(nu.shape)
    for _ in range(iterations):
        r = (mu / np.einsum("bra,ba->br", kernel, c)) ** tau[0]
        c = (nu / np.einsum("bra,br->ba", kernel, r)) ** tau[1]
    return r[..., None] * kernel * c[:, None]


@pytest.mark.parametrize(
    "settings", [{}, {"stop": "each", "tau_sources": 0.7}, {"stop": "never", "max_iterations": 4, "exact": "sources"}]
)
@pytest.mark.parametrize("branch", ["cpu", "accelerator"])
def test_kernels_formed_one_by_one_solve_what_all_kernels_solve(branch, settings):
    solver = tr.Sinkhorn(0.1, **settings)
    with using(branch):
        left, right, result = jax.jit(lambda c, *masses: solver.on_kernels(solver.kernel, (c,), *masses))(COST, MU, NU)
    whole = jax.jit(solver)(COST, MU, NU)
    for field, ours in result._asdict().items():
        theirs = getattr(whole, field)
        np.testing.assert_allclose(ours, np.broadcast_to(theirs, np.shape(ours)), atol=2e-6, err_msg=field)
    np.testing.assert_allclose(left[..., None] * np.exp(-COST / 0.1) * right[:, None], whole.plan, rtol=2e-5)


@pytest.mark.parametrize("stop", ["joint", "each"])
def test_stop_counts_the_mean_change_of_the_row_scaling(stop):
    result = jax.jit(tr.Sinkhorn(0.08, stop=stop, threshold=3e-3))(COST, MU, NU)
    kernel = np.exp(-COST.astype(np.float64) / 0.08)
    groups = [[0, 1, 2]] if stop == "joint" else [[0], [1], [2]]
    for group in groups:
        r, c, steps, change = np.ones((len(group), R)), np.ones((len(group), A)), 0, np.inf
        while change >= 3e-3:
            old = r
            r = MU[group] / np.einsum("bra,ba->br", kernel[group], c)
            c = NU[group] / np.einsum("bra,br->ba", kernel[group], r)
            change, steps = np.abs(r - old).mean(), steps + 1
        np.testing.assert_array_equal(np.asarray(result.iterations)[group], steps)
        np.testing.assert_allclose(
            np.asarray(result.plan)[group], r[..., None] * kernel[group] * c[:, None], rtol=1e-4, atol=1e-9
        )
    held = np.maximum(result.row_error, result.column_error) <= tr.HELD
    np.testing.assert_array_equal(result.converged, held)


@pytest.mark.parametrize("iterations", [1, 6])
def test_native_scalings_equal_ott_and_numpy_after_the_same_number_of_updates(iterations):
    native = jax.jit(tr.Sinkhorn(0.1, max_iterations=iterations, stop="never"))(COST, MU, NU)
    np.testing.assert_allclose(native.plan, scalings(COST, MU, NU, 0.1, iterations), rtol=2e-5)
    for lse_mode in (True, False):
        ott = jax.jit(tr.OttSinkhorn(0.1, iterations, lse_mode=lse_mode, unrolled=True))(COST, MU, NU)
        np.testing.assert_allclose(native.plan, ott.plan, rtol=1e-5)
        np.testing.assert_array_equal(ott.iterations, iterations)
    np.testing.assert_allclose(native.column_error, 0, atol=1e-6)
    np.testing.assert_allclose(native.row_error, np.abs(np.asarray(native.plan).sum(-1) - MU).sum(-1), rtol=1e-5)


def test_exact_side_is_the_one_updated_last():
    sources = jax.jit(tr.Sinkhorn(0.1, max_iterations=3, stop="never", exact="sources"))(COST, MU, NU)
    np.testing.assert_allclose(sources.row_error, 0, atol=1e-6)
    assert float(sources.column_error.max()) > 1e-3
    swapped = jax.jit(tr.OttSinkhorn(0.1, 3, exact="sources", unrolled=True))(COST, MU, NU)
    np.testing.assert_allclose(sources.plan, swapped.plan, rtol=1e-5)


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.01, 60), (0.1, 20)])
def test_ottvids_solver_equals_its_ott_call(epsilon, iterations):
    native = jax.jit(tr.FixedSinkhorn.ottvid(epsilon, iterations))(COST, MU, NU)
    ott = jax.jit(tr.OttSinkhorn(epsilon, iterations, unrolled=True, exact="sources"))(COST, MU, NU)
    np.testing.assert_allclose(native.plan, ott.plan, atol=2e-6)
    np.testing.assert_allclose(native.row_error, 0, atol=1e-5)


def test_zero_marginals_are_padding():
    mu, nu = MU.copy(), NU.copy()
    mu[:, 9:], nu[:, 3:] = 0, 0
    mu, nu = mu / mu.sum(-1, keepdims=True), nu / nu.sum(-1, keepdims=True)
    small = COST[:, :9, :3], mu[:, :9], nu[:, :3]
    for solver in map(jax.jit, (tr.Sinkhorn(), tr.FixedSinkhorn(0.05, 30), tr.OttSinkhorn(0.1, 6, unrolled=True))):
        padded, plain = solver(COST, mu, nu), solver(*small)
        np.testing.assert_array_equal(padded.iterations, plain.iterations)
        np.testing.assert_allclose(np.asarray(padded.plan)[:, :9, :3], plain.plan, rtol=1e-5, atol=1e-8)
        assert float(np.abs(np.asarray(padded.plan)[:, 9:]).max()) == 0
        assert float(np.abs(np.asarray(padded.plan)[:, :, 3:]).max()) == 0


def test_unbalanced_tau_is_traced_and_equals_the_kernel_step_of_ott():
    solve = jax.jit(
        jax.vmap(lambda tau: tr.Sinkhorn(0.1, tau_sources=tau, max_iterations=50, stop="never")(COST, MU, NU).plan)
    )
    plans = solve(jnp.array([0.5, 0.9]))
    for plan, tau in zip(plans, (0.5, 0.9), strict=True):
        ott = jax.jit(tr.OttSinkhorn(0.1, 50, tau_sources=tau, lse_mode=False, unrolled=True))(COST, MU, NU)
        np.testing.assert_allclose(plan, ott.plan, rtol=2e-5)
    sent = np.asarray(plans).sum(-1)
    assert np.abs(sent[0] - MU).sum() > np.abs(sent[1] - MU).sum() > 0


def test_dustbin_takes_its_share_from_the_sources_that_match_worst():
    cost = COST[0].copy()
    cost[:4] += 3.0
    result = jax.vmap(lambda s: tr.Dustbin(tr.Sinkhorn(threshold=1e-5), mass=s)(cost, MU[0], NU[0]))(
        jnp.array([0.1, 0.3])
    )
    np.testing.assert_allclose(result.unmatched.sum(-1), [0.1, 0.3], rtol=1e-4)
    share = np.asarray(result.unmatched[0]) / MU[0]
    assert share[:4].min() > 3 * share[4:].max()
    np.testing.assert_allclose(np.asarray(result.plan).sum((1, 2)), [0.9, 0.7], rtol=1e-4)


def test_low_rank_plan_meets_both_marginals_through_few_anchors():
    result = jax.jit(tr.LowRank(rank=2, iterations=400))(COST[:1], MU[:1], NU[:1])
    assert float(result.row_error[0]) < 5e-3
    assert float(result.column_error[0]) < 5e-3
    assert np.linalg.svd(np.asarray(result.plan[0]), compute_uv=False)[2] < 1e-5


def test_costs_are_what_they_say():
    x, y = rows(R, 0, 2.0), rows(A, 1, 0.0)
    unit = [np.asarray(v.features) / np.linalg.norm(v.features, axis=1, keepdims=True) for v in (x, y)]
    cosines = unit[0] @ unit[1].T
    apart = np.linalg.norm(np.asarray(x.position)[:, None] - np.asarray(y.position)[None], axis=-1)
    late = 1 - np.exp(-4 / (2 * 1.5**2))
    cost = tr.TokenCost(1.0, 0.5, 0.3)
    np.testing.assert_allclose(tr.cost_matrix(cost, x, y), 1 - cosines + 0.5 * apart + 0.3 * late, atol=2e-6)
    clip = (cosines.max() - cosines) * late
    np.testing.assert_allclose(tr.cost_matrix(tr.ClipCost(), x, y), clip, atol=2e-6)
    masked = x._replace(mask=jnp.arange(R) != int(np.unravel_index(cosines.argmax(), cosines.shape)[0]))
    assert float(tr.cost_matrix(tr.ClipCost(), masked, y)[masked.mask].min()) == pytest.approx(0, abs=1e-7)


def test_ott_costs_and_geometries_work_as_they_are():
    x, y = rows(R, 0), rows(A, 1)
    np.testing.assert_allclose(tr.cost_matrix(costs.Cosine(), x, y), 1 - np.asarray(tr.cosine(x, y)), atol=1e-6)
    whole = [np.concatenate([r.features, r.position[:, ::-1], r.time[:, None]], 1) for r in (x, y)]
    squared = ((whole[0][:, None] - whole[1][None]) ** 2).sum(-1)
    np.testing.assert_allclose(tr.cost_matrix(tr.OnRows(costs.SqEuclidean()), x, y), squared, rtol=1e-4)
    matrix = jnp.asarray(COST[0])
    made = tr.cost_matrix(lambda a, b: geometry.Geometry(cost_matrix=matrix), x, y)
    np.testing.assert_array_equal(made, matrix)
    result = jax.jit(tr.OttSinkhorn(threshold=1e-5))(COST[:1], MU[:1], NU[:1])
    assert float(result.row_error[0]) < 1e-4
    np.testing.assert_allclose(result.plan, scalings(COST[:1], MU[:1], NU[:1], 0.1, 400), atol=1e-4)


def test_marginals_mask_and_normalise():
    mask = np.arange(R) < 10
    x, y = rows(R, 0, mask=mask), rows(A, 1)
    for marginals in (tr.Uniform(), tr.Saliency(2.0, -1.0), tr.LeaveOneOut(0.5)):
        mu, nu = marginals(x, y)
        assert float(mu.sum()) == pytest.approx(1, abs=1e-6)
        assert float(nu.sum()) == pytest.approx(1, abs=1e-6)
        np.testing.assert_array_equal(np.asarray(mu) > 0, mask)
    salient = np.asarray(x.saliency) ** 2 * mask
    np.testing.assert_allclose(tr.Saliency(2.0, 0.0)(x, y)[0], salient / salient.sum(), rtol=1e-5)


def test_projections_normalise_as_named():
    plan = tr.Sinkhorn()(COST[0], MU[0], NU[0]).plan
    assert tr.normalise_plan(plan, "mass") is plan
    np.testing.assert_allclose(tr.normalise_plan(plan, "row").sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(tr.normalise_plan(plan, "column").sum(-2), 1, rtol=1e-5)
    hard = np.asarray(tr.normalise_plan(plan, "hard"))
    np.testing.assert_array_equal(hard.argmax(-1), np.asarray(plan).argmax(-1))
    np.testing.assert_array_equal(hard.sum(-1), 1)
    np.testing.assert_array_equal(tr.normalise_plan(plan, lambda p: 2 * p), 2 * plan)
    with pytest.raises(JvidpruneError, match="unknown projection 'soft'"):
        tr.normalise_plan(plan, "soft")
    with pytest.raises(JvidpruneError, match="unknown stop 'sometimes' of Sinkhorn"):
        tr.Sinkhorn(stop="sometimes")


def taken(features, anchors, position, parts):
    """Features after transport of the tokens that are no anchors onto the anchors, and the plan."""
    n = features.shape[0]
    x = tr.Rows(features, position, jnp.zeros(n), jnp.ones(n), ~anchors)
    plan = parts.solver(*parts.problem(x, x._replace(mask=anchors))).plan
    own, weights = tr.blend(parts.weights(plan))
    return jnp.where(anchors[:, None], own[:, None] * features + weights.T @ features, features), plan


INSIDE = tr.Transport(tr.TokenCost(), tr.Uniform(), tr.Sinkhorn(), "mass")


def test_a_transport_is_the_blend_of_its_parts():
    x = rows(R, 5)
    anchors = np.arange(R) % 3 == 0
    moved, plan = taken(x.features, jnp.asarray(anchors), x.position, INSIDE)
    features, plan = np.asarray(x.features), np.asarray(plan)
    assert np.abs(plan[anchors]).max() == 0
    assert np.abs(plan[:, ~anchors]).max() == 0
    expected = features.copy()
    for a in np.flatnonzero(anchors):
        expected[a] = (features[a] + plan[:, a] @ features) / (1 + plan[:, a].sum())
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    # Anchor loads are exact: every anchor receives the same mass, as uniform marginals ask.
    np.testing.assert_allclose(plan.sum(0)[anchors], 1 / anchors.sum(), rtol=1e-5)


def test_gradients_reach_cost_weights_epsilon_and_features():
    x, anchors = rows(R, 7), jnp.arange(R) < A

    def loss(weight, epsilon, features):
        solver = tr.Sinkhorn(epsilon, max_iterations=8, stop="never")
        parts = dataclasses.replace(INSIDE, cost=tr.TokenCost(w_pos=weight), solver=solver)
        return jnp.sum(taken(features, anchors, x.position, parts)[0] ** 2)

    value = (jnp.float32(0.5), jnp.float32(0.1), x.features)
    loss = jax.jit(loss)
    grads = jax.grad(loss, argnums=(0, 1, 2))(*value)
    for gradient in grads:
        assert bool(jnp.isfinite(gradient).all())
        assert float(jnp.abs(gradient).max()) > 0
    step = 1e-2
    difference = (loss(0.5 + step, *value[1:]) - loss(0.5 - step, *value[1:])) / (2 * step)
    assert float(grads[0]) == pytest.approx(float(difference), rel=0.05)


def test_the_numbers_of_a_transport_vmap_in_one_compilation():
    x, anchors = rows(R, 8), jnp.arange(R) < A

    @jax.jit
    def run(numbers):
        return jax.vmap(lambda own: taken(x.features, anchors, x.position, INSIDE.with_numbers(own))[0])(numbers)

    def stack(many):
        return jax.tree.map(lambda *v: jnp.stack(v), *(parts.numbers() for parts in many))

    settings = [(tr.TokenCost(w_pos=p), tr.Sinkhorn(e)) for p, e in ((0.0, 0.1), (0.5, 0.2), (2.0, 0.05))]
    many = [dataclasses.replace(INSIDE, cost=cost, solver=solver) for cost, solver in settings]
    outs = run(stack(many))
    run(stack([dataclasses.replace(one, cost=tr.TokenCost(w_feat=0.5)) for one in many]))
    assert run._cache_size() == 1
    for out, parts in zip(outs, many, strict=True):
        one, _ = taken(x.features, anchors, x.position, parts)
        np.testing.assert_allclose(out, one, atol=2e-6)
    assert INSIDE.numbers()[1] is None
    assert tr.numeric_leaves(lambda x, y: x) is None


def test_a_transport_takes_the_parts_that_it_lacks_from_another():
    mine = tr.Transport(cost=tr.ClipCost(), projection="row")
    assert mine.over(INSIDE) == tr.Transport(tr.ClipCost(), tr.Uniform(), tr.Sinkhorn(), "row")
    assert INSIDE.over(mine) is INSIDE
    with pytest.raises(JvidpruneError, match="Transport's marginals must be one of Uniform, Saliency, LeaveOneOut"):
        tr.Transport(marginals=tr.TokenCost())


def test_ottvids_cost_and_masses_are_what_they_say():
    x, y = rows(R, 0, 1.0), rows(A, 1)
    cosines, apart = np.asarray(tr.cosine(x, y)), np.asarray(tr.distance(x, y))
    known = x._replace(feature_weight=jnp.float32(0.8))
    for side, alpha in ((x, 0.5), (known, 0.8)):
        expected = alpha * (1 - np.maximum(cosines, 0)) + (1 - alpha) * apart / np.sqrt(2)
        np.testing.assert_allclose(tr.cost_matrix(tr.LocalityCost(), side, y), expected, atol=2e-6)
    coverage = jnp.asarray(RNG.random(R), jnp.float32)
    mu, nu = tr.LeaveOneOut(0.2)(x._replace(coverage=coverage, mask=jnp.arange(R) < 9), y)
    for mass, needed in ((mu, np.asarray(coverage)[:9]), (nu, np.asarray(y.saliency))):
        small = np.exp(-needed / (needed.max() + 1e-8) / 0.2)
        np.testing.assert_allclose(mass[: len(needed)], small / small.sum(), rtol=1e-5)
    assert not np.asarray(mu)[9:].any()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SaliencyCost:
    """A cost of a user: features, places, and how much two tokens differ in saliency."""

    w_pos: float = 0.5
    w_saliency: float = 1.0

    def __call__(self, x, y):
        apart = jnp.abs(jnp.log1p(x.saliency)[:, None] - jnp.log1p(y.saliency)[None])
        return 1 - tr.cosine(x, y) + self.w_pos * tr.distance(x, y) + self.w_saliency * apart


def by_hand(x, y, places, salient):
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
    far = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
    return 1 - unit[0] @ unit[1].T + 0.5 * far + np.abs(np.log1p(salient[0])[:, None] - np.log1p(salient[1])[None])


def grid_places(grid):
    y, x = np.meshgrid(*(np.linspace(0, 1, side) for side in grid), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1)


@pytest.mark.slow
def test_one_cost_of_a_user_prices_the_transports_of_aot_and_of_ottvid():
    video = synthetic_tokens(1, 4, (5, 4), D, 2, unpooled_grid=(9, 8))
    parts = tr.Transport(SaliencyCost())
    aot = AOT(window=3, clips=2, intra_transport=parts, inter_transport=parts)
    reduced = jvidprune.reduce(aot, video, 0.4, diagnostics=True)
    for plain in (AOT(window=3, clips=2, inter_transport=parts), AOT(window=3, clips=2, intra_transport=parts)):
        other = jvidprune.reduce(plain, video, 0.4)
        assert float(jnp.abs(other.tokens - reduced.tokens).max()) > 1e-4
    shared = jax.jit(aot.prepare, static_argnames="capacity")(video, capacity=60)
    chosen = jnp.asarray(reduced.diagnostics["anchors"])
    priced = problems(shared, chosen, ~chosen, aot.intra_transport).priced[2]
    deep = np.asarray(video.evidence["attention_deep"][2])
    x, columns = np.asarray(video.evidence["features_unpooled"][2]), np.asarray(shared.selection.candidates[2])
    columns, places = columns[columns < 72], grid_places((9, 8))
    expected = by_hand(x, x[columns], (places, places[columns]), (deep, deep[columns]))
    np.testing.assert_allclose(priced[:, : len(columns)], expected, atol=2e-5)

    out = jvidprune.reduce(OTTVid(transport=parts), video, 0.3, diagnostics=True).diagnostics
    kept, features = int(out["kept_per_frame"]), np.asarray(video.features)
    attention, places = np.asarray(video.evidence["attention_last"]), grid_places((5, 4))
    for pair in range(3):
        a, b = (np.asarray(out["position"][t, :kept]) for t in (pair, pair + 1))
        sides = features[pair][a], features[pair + 1][b], (places[a], places[b])
        expected = by_hand(*sides, (attention[pair][a], attention[pair + 1][b]))
        np.testing.assert_allclose(out["transport_cost"][pair, :kept, :kept], expected, atol=2e-5)


def float64_plan(cost, mu, nu, epsilon, iterations=4000):
    """Sinkhorn in the log domain in float64, to convergence."""
    cost, log_mu, log_nu = (
        cost.astype(np.float64) / epsilon,
        np.log(mu.astype(np.float64)),
        np.log(nu.astype(np.float64)),
    )
    f, g = np.zeros(len(mu)), np.zeros(len(nu))
    for _ in range(iterations):
        f = log_mu - np.logaddexp.reduce(g[None] - cost, axis=1)
        g = log_nu - np.logaddexp.reduce(f[:, None] - cost, axis=0)
        plan = np.exp(f[:, None] + g[None] - cost)
        if np.abs(plan.sum(1) - mu).sum() < 1e-10:
            break
    return plan


def true_errors(plan, mu, nu):
    plan = np.asarray(plan, np.float64)
    return np.abs(plan.sum(-1) - mu).sum(-1), np.abs(plan.sum(-2) - nu).sum(-1)


EPSILONS = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.5, 1.0, 3.0, 10.0]
SCALES = [1e-3, 1.0, 30.0, 1e4]


@pytest.mark.filterwarnings("ignore::jvidprune.errors.JvidpruneWarning")
@pytest.mark.parametrize("solver", ["aot", "long", "never", "sources"])
def test_converged_says_that_the_marginals_hold(solver):
    settings = {
        "aot": {},
        "long": {"threshold": 1e-7, "max_iterations": 2000},
        "never": {"stop": "never", "max_iterations": 300},
        "sources": {"exact": "sources", "threshold": 1e-5, "max_iterations": 500},
    }[solver]
    run = jax.jit(jax.vmap(lambda epsilon, cost: tr.Sinkhorn(epsilon, **settings)(cost, MU[0], NU[0]), (0, None)))
    seen = set()
    for scale in SCALES:
        cost = (scale * COST[0]).astype(np.float32)
        results = run(jnp.asarray(EPSILONS, jnp.float32), cost)
        for number, epsilon in enumerate(EPSILONS):
            result = jax.tree.map(lambda leaf, i=number: leaf[i], results)
            rows, columns = true_errors(result.plan, MU[0], NU[0])
            np.testing.assert_allclose([result.row_error, result.column_error], [rows, columns], atol=2e-5)
            converged, worst = bool(result.converged), max(rows, columns)
            seen.add(converged)
            if abs(worst - tr.HELD) > 1e-4:
                assert converged == (worst <= tr.HELD), (scale, epsilon, worst)
            if solver == "long" and converged and worst < 1e-5:
                np.testing.assert_allclose(result.plan, float64_plan(cost, MU[0], NU[0], epsilon), atol=2e-4)
            lost = np.exp(-cost.astype(np.float64) / np.float64(np.float32(epsilon))) < 2.0**-126
            assert float(result.underflow) == pytest.approx(lost.mean(), abs=0.02)
            if not converged and lost.any():
                assert "larger epsilon" in result.warning()
            elif not lost.any():
                assert result.warning() is None
    assert seen == {True, False}


def test_a_plan_of_nothing_is_said_not_to_have_converged():
    cost = np.full((R, A), 5.0, np.float32)
    with pytest.warns(JvidpruneWarning, match=r"up to 100% of the pairs at epsilon 0\.01.*log domain"):
        result = tr.Sinkhorn(0.01, threshold=1e-2)(cost, MU[0], NU[0])
    assert not bool(result.converged)
    assert float(result.underflow) == 1.0
    # The loop itself stops at once: nothing changes any more.
    assert int(result.iterations) < 100
    for solver in (tr.FixedSinkhorn(0.01, 50), tr.OttSinkhorn(0.01)):
        with warnings.catch_warnings():
            warnings.simplefilter("error", JvidpruneWarning)
            assert bool(solver(cost, MU[0], NU[0]).converged)
    for solver in (tr.FixedSinkhorn(0.01, 50, domain="scaling"), tr.OttSinkhorn(0.01, lse_mode=False)):
        with pytest.warns(JvidpruneWarning, match="larger epsilon"):
            assert not bool(solver(cost, MU[0], NU[0]).converged)


def test_the_early_stop_of_aot_is_not_called_convergence():
    result = tr.Sinkhorn()(COST, MU, NU)
    rows, _ = true_errors(result.plan, MU, NU)
    assert int(result.iterations.max()) < 20
    np.testing.assert_array_equal(result.converged, rows <= tr.HELD)
    assert not bool(tr.Sinkhorn(threshold=0.5)(COST, MU, NU).converged.any())


def test_a_relaxed_side_converges_to_its_own_fixed_point():
    far = tr.Sinkhorn(0.1, tau_sources=0.5, threshold=0, max_iterations=400)(COST, MU, NU)
    near = tr.Sinkhorn(0.1, tau_sources=0.5, stop="never", max_iterations=1)(COST, MU, NU)
    assert bool(far.converged.all())
    assert not bool(near.converged.any())
    assert float(far.row_error.min()) > 0.05
    assert bool(tr.OttSinkhorn(0.1, tau_sources=0.5)(COST, MU, NU).converged.all())


def test_frames_without_mass_have_nothing_to_converge_to():
    mu, nu = MU.copy(), NU.copy()
    mu[1], nu[1], mu[2] = 0, 0, 0
    result = jax.jit(tr.Sinkhorn(threshold=1e-6, max_iterations=1000))(COST, mu, nu)
    assert result.converged.tolist() == [True, True, True]
    assert result.underflow.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda n: tr.Sinkhorn(0.2, max_iterations=n, stop="never"),
        lambda n: tr.Sinkhorn(0.2, max_iterations=n, stop="never", exact="sources"),
        lambda n: tr.FixedSinkhorn(0.2, n),
        lambda n: tr.FixedSinkhorn(0.2, n, "scaling", exact="anchors"),
        lambda n: tr.OttSinkhorn(0.2, n),
        lambda n: tr.OttSinkhorn(0.2, n, exact="sources", lse_mode=False),
    ],
)
def test_the_gap_is_what_a_plan_costs_above_its_dual_value(make):
    mu, nu = MU.copy(), NU.copy()
    mu[:, 9:], nu[:, 4:] = 0, 0
    mu, nu = mu / mu.sum(-1, keepdims=True), nu / nu.sum(-1, keepdims=True)
    gaps = []
    for iterations in (1, 3, 60):
        result = jax.jit(make(iterations))(COST, mu, nu)
        plan = np.asarray(result.plan, np.float64)[:, :9, :4]
        cost, log_plan = COST[:, :9, :4].astype(np.float64), np.log(plan)
        # f + g = cost + epsilon log plan; the free constant is that f begins with 0.
        sums = cost + 0.2 * log_plan
        g = sums[:, 0]
        f = sums[:, :, 0] - g[:, :1]
        paid = (plan * cost + 0.2 * plan * (log_plan - 1)).sum((1, 2))
        dual = (f * mu[:, :9]).sum(1) + (g * nu[:, :4]).sum(1) - 0.2 * plan.sum((1, 2))
        np.testing.assert_allclose(result.gap, paid - dual, atol=3e-6)
        gaps.append(np.abs(result.gap).max())
    assert gaps[0] > 1e-3
    assert gaps[1] < gaps[0]
    assert gaps[2] < 1e-5


@pytest.mark.slow
def test_a_low_rank_has_no_gap_and_reductions_tell_theirs():
    assert np.isnan(jax.jit(tr.LowRank(3, iterations=10))(COST, MU, NU).gap).all()
    video = synthetic_tokens(seed=0, frames=4, grid=(4, 4), dim=8, scenes=2, unpooled_grid=(8, 8))
    aot = jvidprune.reduce(AOT(window=4, clips=2), video, 0.4, diagnostics=True).diagnostics
    pairs = jvidprune.reduce(OTTVid(), video, 0.4, diagnostics=True).diagnostics
    for shown, stage, count in ((aot, "intra", 4), (aot, "inter", 4), (pairs, "transport", 3)):
        for name in ("iterations", "row_error", "column_error", "converged", "underflow", "gap"):
            assert shown[f"{stage}_{name}"].shape in ((count,), ())
        assert np.isfinite(shown[f"{stage}_gap"]).all()
        assert np.abs(shown[f"{stage}_gap"]).max() > 0
