"""Derivatives of plans: against finite differences in float64, finite on padding, without stored iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvidprune.ops import transport as tr
from jvidprune.ops.similarity import cosine_from_gram, normalise, squared_norms

R, A, D = 9, 4, 6
SOLVERS = {
    "joint": tr.Sinkhorn(0.2, threshold=1e-3),
    "each": tr.Sinkhorn(0.2, threshold=1e-3, stop="each", exact="sources"),
    "never": tr.Sinkhorn(0.2, max_iterations=13, stop="never"),
    "relaxed": tr.Sinkhorn(0.2, 0.8, 0.9, max_iterations=7, stop="never"),
    "log": tr.FixedSinkhorn(0.05, 23),
    "anchors": tr.FixedSinkhorn(0.05, 6, exact="anchors"),
    "scaling": tr.FixedSinkhorn(0.2, 11, "scaling"),
    "dustbin": tr.Dustbin(tr.Sinkhorn(0.2, max_iterations=9, stop="never"), 0.5, 0.3),
    "log domain": tr.LogSinkhorn(0.1, threshold=1e-3),
    "log domain relaxed": tr.LogSinkhorn(0.1, 0.5, 0.3, threshold=1e-3, exact="sources"),
    "one side relaxed": tr.LogSinkhorn(0.1, 0.5, threshold=1e-3),
    "partial": tr.Partial(0.3, tr.LogSinkhorn(0.2, threshold=1e-3)),
    "ott": tr.OttSinkhorn(0.2, threshold=1e-10),
    "ott annealed": tr.OttSinkhorn(0.2, threshold=1e-10, anneal=20.0, momentum=1.2),
    "ott unrolled": tr.OttSinkhorn(0.2, 12, unrolled=True),
}


def problem(seed: int, empty: bool = False) -> tuple:
    """Two problems with padding on both sides; with `empty` the second one has nothing but padding."""
    rng = np.random.default_rng(seed)
    cost, mu, nu = rng.uniform(0, 1, (2, R, A)), rng.dirichlet(np.ones(R), 2), rng.dirichlet(np.ones(A), 2)
    mu[:, -2:], nu[:, -1:] = 0, 0
    if empty:
        mu[1], nu[1] = 0, 0
    total = np.maximum(mu.sum(-1, keepdims=True), 1e-30), np.maximum(nu.sum(-1, keepdims=True), 1e-30)
    return cost, mu / total[0], nu / total[1]


def with_epsilon(solver, epsilon):
    leaves, tree = jax.tree_util.tree_flatten_with_path(solver)
    return jax.tree.unflatten(tree, [epsilon if path[-1].name == "epsilon" else leaf for path, leaf in leaves])


def value(solver, weights, cost, mu, nu, epsilon):
    """A smooth function of the plan; the masses are normalised, as a step in them must keep their sums."""
    totals = (m.sum(-1, keepdims=True) for m in (mu, nu))
    mu, nu = (m / jnp.where(total > 0, total, 1.0) for m, total in zip((mu, nu), totals, strict=True))
    return jnp.sum(weights * jnp.sqrt(with_epsilon(solver, epsilon)(cost, mu, nu).plan + 0.01))


@pytest.mark.parametrize("name", SOLVERS)
def test_plans_have_the_derivatives_of_finite_differences_in_float64(name):
    with jax.enable_x64(True):
        weights = np.random.default_rng(1).normal(size=(2, R, A))
        args = tuple(map(jnp.asarray, (*problem(0), 0.2)))
        run = jax.jit(lambda *given: value(SOLVERS[name], weights, *given))
        grads = jax.jit(jax.grad(run, argnums=(0, 1, 2, 3)))(*args)
        rng = np.random.default_rng(2)
        for at, (arg, grad) in enumerate(zip(args, grads, strict=True)):
            assert np.isfinite(grad).all()
            # Padding stays padding.
            way = rng.normal(size=arg.shape) * np.where(np.asarray(arg) > 0, 1.0, 0.0)
            way = way * np.minimum(1.0, arg) if at in (1, 2) else way
            step = 1e-6
            ends = [run(*args[:at], arg + sign * step * way, *args[at + 1 :]) for sign in (1, -1)]
            difference = float(ends[0] - ends[1]) / (2 * step)
            assert float((grad * way).sum()) == pytest.approx(difference, rel=2e-5, abs=1e-8), (name, at)
            assert abs(difference) > 1e-4


@pytest.mark.parametrize("name", SOLVERS)
def test_derivatives_are_finite_and_zero_on_padding_and_of_nothing(name):
    cost, mu, nu = (jnp.asarray(part, jnp.float32) for part in problem(3, empty=True))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=cost.shape), jnp.float32)
    grads = jax.jit(jax.grad(lambda *given: value(SOLVERS[name], weights, *given), argnums=(0, 1, 2, 3)))(
        cost, mu, nu, jnp.float32(0.2)
    )
    for grad in grads:
        assert np.isfinite(grad).all()
        assert np.abs(grad).max() > 0
    padded = np.asarray((mu == 0)[:, :, None] | (nu == 0)[:, None])
    np.testing.assert_array_equal(np.asarray(grads[0])[padded], 0)


@pytest.mark.slow
def test_the_backward_pass_stores_no_iteration():
    rows, columns = 96, 24
    cost = jax.ShapeDtypeStruct((rows, columns), jnp.float32)
    masses = jax.ShapeDtypeStruct((rows,), jnp.float32), jax.ShapeDtypeStruct((columns,), jnp.float32)
    plan = 4 * rows * columns

    def held(solver):
        loss = jax.grad(lambda *given: jnp.sum(solver(*given).plan ** 2), argnums=(0, 1, 2))
        return jax.jit(loss).lower(cost, *masses).compile().memory_analysis().temp_size_in_bytes

    for make in (
        lambda n: tr.Sinkhorn(max_iterations=n),
        lambda n: tr.Sinkhorn(max_iterations=n, stop="never"),
        lambda n: tr.FixedSinkhorn(0.01, n),
        lambda n: tr.LogSinkhorn(0.01, 0.5, max_iterations=n),
    ):
        few, many = held(make(16)), held(make(400))
        # 384 iterations more, stored as plans they would take 384 plans; 2 (20 - 4) pairs of vectors are kept instead.
        assert many - few <= 2 * 16 * 4 * (rows + columns) + plan
        assert many < 12 * plan


def test_cosines_of_zero_rows_have_derivatives():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32).at[2].set(0.0)

    def cosines(x):
        return cosine_from_gram(x @ x.T, squared_norms(x), squared_norms(x), 1e-8)

    there = jnp.arange(5) != 2
    grad = jax.grad(lambda x: jnp.sum(jnp.where(there[:, None] & there, cosines(x), 0.0) ** 2))(x)
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[2], 0)
    assert np.isfinite(jax.grad(lambda x: normalise(x, 1e-12)[0].sum())(x)).all()
    assert np.isnan(cosines(x.at[1, 1].set(jnp.nan))[1]).all()


def test_masses_of_a_side_without_tokens_have_derivatives():
    mask = jnp.zeros(A, bool)
    for marginals in (tr.Saliency(), tr.LeaveOneOut(), tr.Uniform()):

        def mass(saliency, marginals=marginals):
            side = tr.Rows(jnp.ones((A, D)), jnp.zeros((A, 2)), jnp.zeros(A), saliency, mask)
            return marginals(side, side)[0].sum()

        amount, grad = jax.value_and_grad(mass)(jnp.arange(1.0, A + 1))
        assert float(amount) == 0
        np.testing.assert_array_equal(grad, 0)
