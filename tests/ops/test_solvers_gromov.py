"""Gromov-Wasserstein between places: isometries, brute force over permutations, stationarity, batches, padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvidprune import JvidpruneError
from jvidprune.ops import transport as tr

N = 5
RNG = np.random.default_rng(4)


def distances(places):
    places = np.asarray(places, np.float64)
    return np.linalg.norm(places[..., :, None, :] - places[..., None, :, :], axis=-1)


def distortion(plan, x, y):
    """sum_ijkl (|x_i - x_k| - |y_j - y_l|)^2 P_ij P_kl by all four sums."""
    plan = np.asarray(plan, np.float64)
    apart = (distances(x)[:, None, :, None] - distances(y)[None, :, None, :]) ** 2
    return np.einsum("ijkl,ij,kl->", apart, plan, plan)


def moved(places, turn, order):
    """The same points turned and shifted, in another order."""
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return places[order] @ rotation.T + 0.3


PLACES = RNG.random((6, N, 2))
ORDERS = np.stack([RNG.permutation(N) for _ in PLACES])
TURNED = np.stack([moved(*args) for args in zip(PLACES, RNG.uniform(0, 6, 6), ORDERS, strict=True)])
MASS = np.full(N, 1 / N, np.float32)
COST = RNG.uniform(0, 1, (6, N, N)).astype(np.float32)


@pytest.fixture(scope="module")
def solve():
    """Plans by structure and epsilon of all six problems, in one program."""
    run = jax.jit(
        jax.vmap(
            lambda structure, epsilon, y: tr.GromovWasserstein(structure, epsilon)(COST, MASS, MASS, PLACES, y),
            (0, 0, None),
        )
    )
    return lambda structures, epsilons, y: run(jnp.asarray(structures), jnp.asarray(epsilons), jnp.asarray(y))


def test_layouts_alone_match_the_points_of_an_isometry(solve):
    result = solve((1.0, 1.0), (0.1, 0.002), TURNED)
    for plan, x, y, order in zip(result.plan[1], PLACES, TURNED, ORDERS, strict=True):
        np.testing.assert_array_equal(np.asarray(plan).argmax(0), order)
        assert distortion(plan, x, y) < 1e-3
    assert np.asarray(result.converged).all()
    # The product of the masses is far from that.
    assert min(distortion(np.outer(MASS, MASS), x, y) for x, y in zip(PLACES, TURNED, strict=True)) > 0.05


def test_the_objective_is_that_of_the_best_permutation(solve):
    other = PLACES[::-1] + RNG.normal(0, 0.02, PLACES.shape)
    y = np.stack([0.7 * one[order] + 0.3 * two for one, two, order in zip(PLACES, other, ORDERS, strict=True)])
    result = solve((0.6, 0.6), (0.1, 0.002), y)
    found = []
    for plan, cost, x, places in zip(np.asarray(result.plan[1], np.float64), COST, PLACES, y, strict=True):

        def value(plan, cost=cost, x=x, places=places):
            return 0.4 * (plan * cost).sum() + 0.6 * distortion(plan, x, places)

        best = min(value(np.eye(N)[list(order)] / N) for order in itertools.permutations(range(N)))
        found.append(value(plan) - best)
    # A plan may split mass where no permutation can; entropy and a stationary point that is not the least cost more.
    assert max(found) < 0.03
    assert np.median(np.abs(found)) < 2e-3


@pytest.mark.parametrize("structure", [0.3, 1.0])
def test_a_plan_is_stationary_where_its_gap_is_0(solve, structure):
    epsilon = 0.05
    result = solve((structure, 0.5), (epsilon, 0.3), TURNED)
    assert np.abs(result.gap).max() < 1e-4
    for plan, cost, x, y in zip(np.asarray(result.plan[0], np.float64), COST, PLACES, TURNED, strict=True):
        apart = (distances(x)[:, None, :, None] - distances(y)[None, :, None, :]) ** 2
        slope = (1 - structure) * cost + 2 * structure * np.einsum("ijkl,kl->ij", apart, plan) + epsilon * np.log(plan)
        # At a stationary point the derivative of what is minimised is f_i + g_j.
        centred = slope - slope.mean(0) - slope.mean(1, keepdims=True) + slope.mean()
        assert np.abs(centred).max() < 0.02
    loose = jax.jit(tr.GromovWasserstein(structure, epsilon, max_iterations=1))(COST, MASS, MASS, PLACES, TURNED)
    assert np.abs(loose.gap).max() > 10 * np.abs(result.gap[0]).max()


def test_without_structure_the_plan_is_that_of_the_costs(solve):
    result = solve((0.0, 0.0), (0.1, 0.02), TURNED)
    for plans, epsilon in zip(result.plan, (0.1, 0.02), strict=True):
        linear = jax.jit(tr.LogSinkhorn(epsilon))(COST, MASS, MASS)
        np.testing.assert_allclose(plans, linear.plan, atol=1e-3)


def test_a_pan_of_the_camera_costs_nothing(solve):
    still, pan = (solve((0.5, 0.5), (0.02, 0.05), y) for y in (PLACES, PLACES + np.array([0.4, -0.1])))
    np.testing.assert_allclose(still.plan, pan.plan, atol=1e-3)


def test_padding_and_nothing_are_finite_and_single_problems_equal_the_batch(solve):
    many = solve((1.0, 0.5), (0.1, 0.02), TURNED)
    cost, x, y = (
        np.pad(a, [(0, 0), (0, 2), (0, n)], constant_values=5.0) for a, n in ((COST, 1), (PLACES, 0), (TURNED, 0))
    )
    mu, nu = np.pad(MASS, (0, 2)), np.pad(MASS, (0, 1))
    mu, nu = np.tile(mu, (6, 1)), np.tile(nu, (6, 1))
    mu[-1] = 0
    result = jax.jit(tr.GromovWasserstein(0.5, 0.02))(cost, mu, nu, x, y[:, : N + 1])
    single = jax.jit(tr.GromovWasserstein(0.5, 0.02))
    for number in range(5):
        one = single(COST[number], MASS, MASS, PLACES[number], TURNED[number])
        np.testing.assert_allclose(many.plan[1, number], one.plan, atol=2e-4)
        np.testing.assert_allclose(result.plan[number, :N, :N], one.plan, atol=2e-4)
        assert abs(int(one.iterations) - int(many.iterations[1, number])) <= 1
    assert np.abs(result.plan[:, N:]).max() == np.abs(result.plan[..., N:]).max() == np.abs(result.plan[-1]).max() == 0
    assert all(np.isfinite(value).all() for value in result)
    assert np.asarray(result.converged).all()


def test_places_are_needed_and_cannot_be_those_of_a_dummy():
    with pytest.raises(JvidpruneError, match=r"call it as solver\(cost, mu, nu, sources, anchors\)"):
        tr.GromovWasserstein()(COST, MASS, MASS)
    for made in (tr.Partial, tr.Dustbin):
        with pytest.raises(JvidpruneError, match="a point without a place, and GromovWasserstein needs places"):
            made(solver=tr.GromovWasserstein())
