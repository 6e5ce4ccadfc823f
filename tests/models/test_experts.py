"""Experts of a decoder layer: routing and grouped products against plain loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jvidprune.models.experts import Experts, grouped_dot, route
from jvidprune.ops.branch import using

SIZES = [((2, 37), 7, 3), ((1, 1), 7, 3), ((1, 300), 4, 2), ((3, 1), 24, 8)]


def plain(x, router, gate_up, down, active):
    """Token by token, expert by expert, in float64."""
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    out = np.zeros_like(flat)
    for token, row in enumerate(flat):
        logits = row @ router
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        chosen = np.argsort(-chances, kind="stable")[:active]
        for expert in chosen:
            gate, up = np.split(row @ gate_up[expert], 2)
            out[token] += chances[expert] / chances[chosen].sum() * (gate / (1 + np.exp(-gate)) * up) @ down[expert]
    return out.reshape(x.shape)


def made(experts, active):
    module = Experts(6, 5, experts, active, dtype=jnp.float32, rngs=nnx.Rngs(0))
    arrays = (np.asarray(part[...], np.float64) for part in (module.router.kernel, module.gate_up, module.down))
    return module, tuple(arrays)


run = jax.jit(lambda module, x: module(x))


@pytest.mark.parametrize("branch", ["cpu", "tpu"])
@pytest.mark.parametrize(("shape", "experts", "active"), SIZES)
def test_every_token_passes_its_experts(shape, experts, active, branch):
    """Both formulations of grouped products; fewer rows than experts, and rows that fill several tiles."""
    module, arrays = made(experts, active)
    x = np.random.default_rng(0).normal(size=(*shape, 6)).astype(np.float32)
    with using(branch), jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(run(module, x), plain(x, *arrays, active), atol=5e-6)


def test_ties_go_to_the_first_experts_and_weights_sum_to_one():
    weights, chosen = route(jnp.zeros((3, 5)), 2)
    np.testing.assert_array_equal(chosen, [[0, 1]] * 3)
    np.testing.assert_allclose(weights, 0.5)
    weights, chosen = route(jnp.asarray([[0.0, np.log(3.0), -9.0]]), 2)
    np.testing.assert_array_equal(chosen, [[1, 0]])
    np.testing.assert_allclose(weights, [[0.75, 0.25]], rtol=1e-6)
    assert route(jnp.zeros((1, 4), jnp.bfloat16), 2)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("sizes", [[0, 0, 0], [300, 0, 0], [0, 1, 299], [130, 128, 42], [3, 200, 0]])
@pytest.mark.parametrize("ragged", [False, True])
def test_groups_of_any_size(sizes, ragged):
    """Empty groups, groups of several tiles, and rows behind the last group, whose results mean nothing."""
    rng, counts = np.random.default_rng(1), np.asarray(sizes)
    rows, matrices = rng.normal(size=(300, 4)).astype(np.float32), rng.normal(size=(3, 4, 2)).astype(np.float32)
    group = np.repeat(np.arange(3), counts)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(grouped_dot, static_argnames="ragged")(rows, matrices, jnp.asarray(counts), ragged=ragged)
    expected = np.einsum("rn,rnm->rm", rows[: len(group)], matrices[group])
    np.testing.assert_allclose(found[: len(group)], expected, atol=1e-5)


@pytest.mark.slow
def test_a_gradient_goes_through_rows_and_matrices():
    module, _ = made(7, 3)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 20, 6)), jnp.float32)

    def loss(module, x, branch):
        with using(branch):
            return (module(x) ** 2).sum()

    found = [jax.grad(loss, argnums=(0, 1))(module, x, branch) for branch in ("cpu", "tpu")]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert np.abs(np.asarray(one)).max() > 1e-3
