"""Solvers against linear programs, a convex program and full-rank plans; batches equal single problems."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from jvidprune import JvidpruneError
from jvidprune.ops import transport as tr

R, A, PROBLEMS = 7, 5, 4
RNG = np.random.default_rng(0)
COST = RNG.uniform(0, 1, (PROBLEMS, R, A)).astype(np.float32)
MU = RNG.dirichlet(np.ones(R), PROBLEMS).astype(np.float32)
NU = RNG.dirichlet(np.ones(A), PROBLEMS).astype(np.float32)
EPSILONS = (0.3, 0.1, 0.03, 0.01)

SOLVERS: dict[str, Any] = {
    "log": tr.LogSinkhorn(max_iterations=4000),
    "sources last": tr.LogSinkhorn(max_iterations=4000, exact="sources"),
    "ott": tr.OttSinkhorn(threshold=1e-5, max_iterations=4000),
    "annealed": tr.OttSinkhorn(threshold=1e-5, max_iterations=4000, anneal=30.0, decay=0.9),
    "momentum": tr.OttSinkhorn(threshold=1e-5, max_iterations=4000, momentum=1.5),
    "relaxed": tr.LogSinkhorn(0.1, 0.4, 0.7),
    "one side relaxed": tr.LogSinkhorn(0.1, rho_sources=0.4),
    "partial": tr.Partial(0.3, tr.LogSinkhorn(0.05, max_iterations=4000)),
    "partial scalings": tr.Partial(0.3, tr.Sinkhorn(0.05, stop="each", threshold=1e-6, max_iterations=4000)),
    "dustbin": tr.Dustbin(tr.LogSinkhorn(0.05), 0.5, 0.3),
}


def at(solver, epsilon):
    if hasattr(solver, "solver"):
        return dataclasses.replace(solver, solver=at(solver.solver, epsilon))
    return dataclasses.replace(solver, epsilon=epsilon)


def padded(array, *more):
    return np.pad(array, [(0, 0)] * (array.ndim - len(more)) + [(0, n) for n in more])


def least_cost(cost, mu, nu, moved=None):
    """The linear program over plans that meet both masses, or move so much and meet neither by more."""
    rows, columns = cost.shape
    sums = np.vstack([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    masses = np.concatenate([mu, nu]).astype(np.float64)
    if moved is None:
        # One equation follows from the others, and in float32 not exactly.
        found = linprog(cost.ravel(), A_eq=sums[:-1], b_eq=masses[:-1])
    else:
        found = linprog(cost.ravel(), A_ub=sums, b_ub=masses, A_eq=np.ones((1, cost.size)), b_eq=[moved])
    assert found.success
    return found.fun


@pytest.mark.parametrize("name", ["log", "sources last", "ott", "annealed", "momentum"])
def test_the_cost_of_a_plan_nears_the_least_as_epsilon_falls(name):
    run = jax.jit(jax.vmap(lambda epsilon: at(SOLVERS[name], epsilon)(COST, MU, NU)))
    result = run(jnp.asarray(EPSILONS))
    least = np.array([least_cost(*problem) for problem in zip(COST, MU, NU, strict=True)])
    above = (np.asarray(result.plan, np.float64) * COST).sum((-2, -1)) - least
    assert (above > -3e-5).all()
    # Entropies differ by at most the logarithm of the number of pairs.
    assert (above <= np.array(EPSILONS)[:, None] * np.log(R * A)).all()
    assert (above[:-1] > above[1:]).all()
    assert above[-1].max() < 1e-3
    assert above[0].min() > 1e-2
    assert np.asarray(result.converged).all()
    assert np.abs(result.gap).max() < 1e-4
    assert np.abs(np.asarray(result.row_error)).max() < 1e-3


def test_annealing_and_momentum_need_fewer_updates():
    cost = COST[:1]
    plain, annealed, quick = (
        jax.jit(at(SOLVERS[name], epsilon))(cost, MU[:1], NU[:1])
        for name, epsilon in (("ott", 0.002), ("annealed", 0.002), ("momentum", 0.01))
    )
    same = jax.jit(at(SOLVERS["ott"], 0.01))(cost, MU[:1], NU[:1])
    assert int(annealed.iterations[0]) < int(plain.iterations[0])
    assert int(quick.iterations[0]) < int(same.iterations[0])
    np.testing.assert_allclose(quick.plan, same.plan, atol=2e-4)
    with pytest.raises(JvidpruneError, match="decay must be below 1 to anneal epsilon from 5 times it"):
        tr.OttSinkhorn(anneal=5.0, decay=1.0)


def test_a_partial_plan_is_the_cheapest_that_moves_its_share():
    shares = (0.1, 0.4, 0.8)
    run = jax.jit(jax.vmap(lambda share: tr.Partial(share, tr.LogSinkhorn(0.004, max_iterations=4000))(COST, MU, NU)))
    result = run(jnp.asarray(shares))
    assert np.asarray(result.converged).all()
    for number, share in enumerate(shares):
        plans = np.asarray(result.plan[number], np.float64)
        np.testing.assert_allclose(plans.sum((1, 2)), 1 - share, atol=2e-4)
        np.testing.assert_allclose(result.unmatched[number] + plans.sum(2), MU, atol=2e-4)
        assert (plans.sum(1) <= NU + 2e-4).all()
        least = [least_cost(*problem, 1 - share) for problem in zip(COST, MU, NU, strict=True)]
        above = (plans * COST).sum((1, 2)) - least
        assert (np.abs(above) < 2e-3).all()
        # What stays is what it would cost most to move: each source moves all or, but for a few, nothing.
        if share == 0.8:
            assert (np.minimum(result.unmatched[number], plans.sum(2)) > 1e-3).sum(1).max() <= 3
    assert np.asarray(result.underflow).max() == 0
    cool = jax.jit(tr.Partial(0.3, tr.Sinkhorn(0.03, threshold=1e-6, max_iterations=3000)))(COST, MU, NU)
    # The kernel between the dummies is 0, and counts for nothing.
    assert np.asarray(cool.underflow).max() == 0
    np.testing.assert_allclose(cool.plan.sum((1, 2)), 0.7, atol=1e-4)
    for inner in (tr.LogSinkhorn(rho_anchors=1.0), tr.Sinkhorn(tau_sources=0.5), tr.OttSinkhorn(tau_anchors=0.9)):
        with pytest.raises(JvidpruneError, match="Partial's solver must be balanced"):
            tr.Partial(0.3, inner)


def objective(plan, cost, mu, nu, epsilon, rhos):
    """What `LogSinkhorn` says that it minimises, in float64."""

    def divergence(x, y):
        return (x * np.log(np.maximum(x, 1e-300) / y) - x + y).sum()

    value = (plan * cost).sum() + epsilon * divergence(plan, mu[:, None] * nu)
    return value + sum(
        rho * divergence(plan.sum(axis), mass) for rho, axis, mass in zip(rhos, (1, 0), (mu, nu), strict=True)
    )


@pytest.mark.parametrize("rhos", [(0.4, 0.7), (2.0, 0.1)])
def test_a_relaxed_plan_solves_the_convex_program(rhos):
    epsilon = 0.1
    result = jax.jit(tr.LogSinkhorn(epsilon, *rhos, threshold=1e-6))(COST, MU, NU)
    assert np.asarray(result.converged).all()
    assert np.abs(result.gap).max() < 1e-6
    for number, (cost, mu, nu) in enumerate(zip(*(a.astype(np.float64) for a in (COST, MU, NU)), strict=True)):
        # Over logarithms of the entries, so that they stay positive.
        def value(logs, cost=cost, mu=mu, nu=nu):
            plan = np.exp(logs.reshape(R, A))
            slope = cost + epsilon * np.log(plan / (mu[:, None] * nu))
            slope += rhos[0] * np.log(plan.sum(1) / mu)[:, None] + rhos[1] * np.log(plan.sum(0) / nu)
            return objective(plan, cost, mu, nu, epsilon, rhos), (plan * slope).ravel()

        start = np.log(mu[:, None] * nu).ravel()
        best = minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15})
        ours = np.asarray(result.plan[number], np.float64)
        assert objective(ours, cost, mu, nu, epsilon, rhos) <= best.fun + 1e-6
        np.testing.assert_allclose(ours, np.exp(best.x).reshape(R, A), atol=2e-3)


def test_a_large_weight_holds_a_side_and_a_small_one_lets_it_go():
    def error(rho):
        return jax.jit(tr.LogSinkhorn(0.1, rho, rho, max_iterations=3000))(COST, MU, NU)

    balanced = jax.jit(tr.LogSinkhorn(0.1))(COST, MU, NU)
    np.testing.assert_allclose(error(1e3).plan, balanced.plan, atol=2e-3)
    errors = [float(np.mean(error(rho).row_error)) for rho in (1e3, 1.0, 0.1)]
    assert errors[0] < 2e-3 < errors[1] < errors[2]
    # Where nothing is worth its cost, nothing moves.
    assert float(np.max(jax.jit(tr.LogSinkhorn(0.01, 0.05, 0.05))(COST + 1, MU, NU).plan.sum((1, 2)))) < 1e-3


@pytest.mark.parametrize(("taus", "steps"), [((0.8, None), 3), ((0.7, 0.9), 2), ((0.7, 0.9), 200), ((1.0, 0.8), 3)])
def test_the_gap_of_relaxed_sides_is_what_a_plan_costs_above_its_dual_value(taus, steps):
    epsilon, cost, mu, nu = 0.1, COST[0], MU[0], NU[0]
    solver = tr.Sinkhorn(epsilon, *taus, max_iterations=steps, stop="never")
    factors, result = jax.jit(lambda *p: solver.on_kernel(solver.kernel(p[0]), *p[1:]))(cost, mu, nu)
    f, g = (epsilon * np.log(np.asarray(side, np.float64)) for side in (factors.left, factors.right))
    plan = np.exp((f[:, None] + g - cost) / epsilon)
    primal, dual = (plan * cost + epsilon * plan * (np.log(plan) - 1)).sum(), -epsilon * plan.sum()
    for moved, mass, potential, tau in ((plan.sum(1), mu, f, taus[0]), (plan.sum(0), nu, g, taus[1])):
        if tau in (None, 1.0):
            dual += (potential * mass).sum()
            continue
        rho = epsilon * tau / (1 - tau)
        primal += rho * (moved * np.log(moved / mass) - moved + mass).sum()
        dual += rho * (mass * (1 - np.exp(-potential / rho))).sum()
    assert float(result.gap) == pytest.approx(primal - dual, abs=2e-6)
    assert abs(primal - dual) < 1e-5 if steps == 200 else abs(primal - dual) > 1e-4


def test_a_plan_of_enough_latent_anchors_costs_what_the_full_plan_costs():
    full = jax.jit(tr.LogSinkhorn(0.01, max_iterations=4000))(COST, MU, NU).plan
    paid = (np.asarray(full) * COST).sum((1, 2))
    costs = {}
    for rank in (1, 3, 10):
        result = jax.jit(tr.LowRank(rank, threshold=1e-5, iterations=300))(COST, MU, NU)
        costs[rank] = (np.asarray(result.plan) * COST).sum((1, 2))
        assert np.max(result.row_error) < 1e-3
        assert np.max(result.column_error) < 1e-3
        singular = np.linalg.svd(np.asarray(result.plan), compute_uv=False)
        assert singular[:, rank:].max(initial=0.0) < 1e-5
    np.testing.assert_allclose(costs[1], (COST * MU[:, :, None] * NU[:, None]).sum((1, 2)), atol=2e-3)
    assert (costs[3] < costs[1] - 0.05).all()
    assert (np.abs(costs[10] - paid) < 5e-3).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_one_batch_over_costs_and_epsilons_equals_single_problems_and_padding_is_nothing(name):
    epsilons = (0.2, 0.05)
    batch = jax.jit(jax.vmap(lambda epsilon, *p: at(SOLVERS[name], epsilon)(*p), (0, None, None, None)))
    cost, mu, nu = padded(COST, 3, 2), padded(MU, 3), padded(NU, 2)
    mu[-1], nu[-1] = 0, 0
    many = batch(jnp.asarray(epsilons), jnp.where(cost == 0, 7.0, cost), mu, nu)
    single = jax.jit(lambda epsilon, *p: at(SOLVERS[name], epsilon)(*p))
    for place, epsilon in enumerate(epsilons):
        for number in range(PROBLEMS - 1):
            one = single(jnp.float32(epsilon), COST[number], MU[number], NU[number])
            for field, value in one._asdict().items():
                theirs = getattr(many, field)[place, number]
                if field in ("plan", "unmatched"):
                    theirs = theirs[:R, :A] if field == "plan" else theirs[:R]
                if field == "iterations":
                    # Sums in another order, and ott looks every 10 iterations.
                    assert abs(int(value) - int(theirs)) <= 10
                    continue
                np.testing.assert_allclose(theirs, value, atol=2e-4, err_msg=field)
    for field, value in many._asdict().items():
        assert field == "gap" or np.isfinite(value).all(), field
    assert np.asarray(many.plan)[:, :, R:].max() == 0
    assert np.asarray(many.plan)[..., A:].max() == 0
    assert np.asarray(many.plan)[:, -1].max() == 0
    assert np.asarray(many.converged)[:, -1].all()


@pytest.mark.slow
def test_a_batch_of_low_ranks_equals_single_ones_and_padding_is_nothing():
    # A problem that is not convex amplifies rounding: few iterations, all of them made.
    def run(epsilon, *problem):
        return tr.LowRank(3, epsilon, threshold=0.0, iterations=20)(*problem)

    epsilons = (0.0, 0.02)
    batch = jax.jit(jax.vmap(run, (0, None, None, None)))
    many, single = batch(jnp.asarray(epsilons), COST, MU, NU), jax.jit(run)
    for place, epsilon in enumerate(epsilons):
        for number in range(PROBLEMS):
            one = single(jnp.float32(epsilon), COST[number], MU[number], NU[number])
            np.testing.assert_allclose(many.plan[place, number], one.plan, atol=5e-4)
            assert int(many.iterations[place, number]) == int(one.iterations) == 20
    assert np.abs(many.plan[0] - many.plan[1]).max() > 1e-3
    cost, mu, nu = padded(COST, 3, 2), padded(MU, 3), padded(NU, 2)
    mu[-1], nu[-1] = 0, 0
    beside = batch(jnp.asarray(epsilons), np.where(cost == 0, 7.0, cost).astype(np.float32), mu, nu)
    np.testing.assert_allclose(beside.plan[0, :-1, :R, :A], many.plan[0, :-1], atol=5e-4)
    turned = batch(jnp.asarray(epsilons), *(np.roll(array, 2, 1) for array in (cost, mu)), nu)
    np.testing.assert_allclose(np.roll(turned.plan, -2, 2)[0, :-1, :R, :A], many.plan[0, :-1], atol=5e-4)
    plans = np.asarray(beside.plan)
    assert np.isfinite(plans).all()
    assert plans[:, :, R:].max() == plans[..., A:].max() == plans[:, -1].max() == 0
    assert np.asarray(beside.converged)[:, -1].all()


def test_a_solver_without_derivatives_refuses_them_in_one_sentence():
    def loss(solver, cost):
        places = (jnp.zeros((R, 2)), jnp.zeros((A, 2))) if isinstance(solver, tr.GromovWasserstein) else ()
        return jnp.sum(solver(cost, MU[0], NU[0], *places).plan ** 2)

    few = tr.LowRank(2, iterations=10), tr.GromovWasserstein(max_iterations=2, inner_iterations=10)
    for solver in (*few, tr.Partial(0.2, few[0])):
        assert not tr.differentiable(solver)
        with pytest.raises(JvidpruneError, match="plan has no derivatives: for plan_gradient='through' take Sinkhorn"):
            jax.eval_shape(jax.grad(lambda cost, solver=solver: loss(solver, cost)), COST[0])
        held = jax.grad(lambda cost, solver=solver: jax.lax.stop_gradient(loss(solver, cost)))
        assert jax.eval_shape(held, COST[0]).shape == (R, A)


def test_low_rank_plans_of_long_videos_need_little_beside_costs_and_plans():
    frames, tokens, anchors, rank = 128, 729, 126, 16
    cost = jax.ShapeDtypeStruct((frames, tokens, anchors), jnp.float32)
    masses = jax.ShapeDtypeStruct((frames, tokens), jnp.float32), jax.ShapeDtypeStruct((frames, anchors), jnp.float32)
    stats = jax.jit(tr.LowRank(rank)).lower(cost, *masses).compile().memory_analysis()
    one = 4 * tokens * anchors
    assert stats.output_size_in_bytes < 1.1 * frames * one
    # A few costs and factors of one frame, and the results of all.
    assert stats.temp_size_in_bytes < frames * one + 12 * one + 40 * 4 * rank * (tokens + anchors)
