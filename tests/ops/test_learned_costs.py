"""Costs and masses with parameters: modules as parts, fitted by their gradient, saved and read as any other part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jvidprune
from jvidprune import JvidpruneError
from jvidprune.ops.transport import LearnedCost, LearnedMasses, Rows, TokenCost, Transport, Uniform, weights_of
from jvidprune.ops.transport.modules import MahalanobisCost, NetworkCost, NetworkMasses, arrays_of, module_of
from jvidprune.reducers import AOT
from jvidprune.reducers.programs import run_budgets
from jvidprune.reducers.registry import from_text
from jvidprune.reducers.serialise import SavedPruning, read_record
from jvidprune.reducers.writing import expression
from jvidprune.synthetic import synthetic_tokens

D = 64
MODULES = [
    MahalanobisCost(D, 48, rngs=nnx.Rngs(0)),
    NetworkCost(6, rngs=nnx.Rngs(1)),
    NetworkMasses(5, rngs=nnx.Rngs(2)),
]
VIDEO = synthetic_tokens(seed=0, frames=4, grid=(4, 4), dim=8, scenes=2, unpooled_grid=(8, 8))


def rows(n, seed):
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(n, D)), rng.random((n, 2)), np.full(n, float(seed)), rng.random(n)
    return Rows(*(jnp.asarray(part, jnp.float32) for part in parts), jnp.arange(n) < n - 1)


def moved(module, seed=5):
    """The module with other parameters than it begins with."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape) * 0.2, leaf.dtype), module)


@pytest.mark.slow
def test_modules_begin_as_the_parts_of_aot():
    x, y = rows(7, 0), rows(4, 1)
    theirs = TokenCost()(x, y)
    np.testing.assert_allclose(MODULES[1](x, y), theirs, atol=1e-6)
    many = [MahalanobisCost(D, 48, rngs=nnx.Rngs(seed))(x, y) for seed in range(60)]
    np.testing.assert_allclose(np.mean(many, axis=0), theirs, atol=0.12)
    for ours, equal in zip(MODULES[2](x, y), Uniform()(x, y), strict=True):
        np.testing.assert_allclose(ours, equal, atol=1e-6)


def test_a_mahalanobis_cost_is_the_distance_of_projected_unit_features():
    x, y = rows(7, 0), rows(4, 1)
    module = moved(MODULES[0])
    left, right = (np.asarray(s.features, np.float64) for s in (x, y))
    left, right = (s / np.linalg.norm(s, axis=1, keepdims=True) for s in (left, right))
    apart = (left[:, None] - right[None]) @ np.asarray(module.matrix[...], np.float64)
    place = np.linalg.norm(np.asarray(x.position)[:, None] - np.asarray(y.position)[None], axis=-1)
    np.testing.assert_allclose(
        module(x, y), 0.5 * (apart**2).sum(-1) + float(module.position[...]) * place, rtol=1e-4, atol=1e-5
    )


def test_masses_are_shares_of_what_is_no_padding():
    for share in moved(MODULES[2])(rows(7, 0), rows(4, 1)):
        assert float(share[-1]) == 0
        assert float(share.sum()) == pytest.approx(1, abs=1e-6)
        assert float(share[:-1].max() - share[:-1].min()) > 1e-3


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_a_file_is_the_module_that_was_saved(module, tmp_path):
    module = moved(module)
    path = tmp_path / "part.safetensors"
    weights_of(module).write(path)
    read = (LearnedMasses if isinstance(module, NetworkMasses) else LearnedCost)(str(path))
    sides = rows(7, 0), rows(4, 1)
    for ours, theirs in zip(jax.tree.leaves(read(*sides)), jax.tree.leaves(module(*sides)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert read == type(read)(weights_of(module))
    assert hash(read) == hash(type(read)(weights_of(module)))
    assert read != type(read)(weights_of(moved(module, 6)))
    again = module_of(arrays_of(module))
    assert jax.tree.structure(again) == jax.tree.structure(module)


def test_files_stand_in_texts_and_saved_settings_and_share_a_program(tmp_path):
    cost, masses = tmp_path / "cost.safetensors", tmp_path / "masses.safetensors"
    weights_of(moved(NetworkCost(4, rngs=nnx.Rngs(0)))).write(cost)
    weights_of(moved(NetworkMasses(3, rngs=nnx.Rngs(0)))).write(masses)
    parts = f"cost=LearnedCost(weights='{cost}'), marginals=LearnedMasses(weights='{masses}')"
    made = from_text(f"aot(window=4, clips=2, inter=False, intra_transport=Transport({parts}))")
    assert from_text(expression(made)) == made
    assert read_record(SavedPruning(made, 0.4).record()).reducer == made
    run_budgets.clear_cache()
    first = jvidprune.reduce(made, VIDEO, 0.4).tokens
    other = LearnedCost(weights_of(moved(NetworkCost(4, rngs=nnx.Rngs(3)))))
    second = jvidprune.reduce(
        dataclasses.replace(made, intra_transport=dataclasses.replace(made.intra_transport, cost=other)), VIDEO, 0.4
    ).tokens
    assert run_budgets._cache_size() == 1
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 1e-5


def test_a_step_down_the_slope_lowers_the_loss_of_a_reduction():
    target = jnp.asarray(np.random.default_rng(0).normal(size=8), jnp.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(parts):
        transport = Transport(*parts)
        made = AOT(window=4, clips=2, inter=False, intra_transport=transport, plan_gradient="through")
        return jnp.sum(jvidprune.reduce(made, VIDEO, 0.4).tokens @ target)

    parts = moved(NetworkCost(4, rngs=nnx.Rngs(0))), moved(NetworkMasses(3, rngs=nnx.Rngs(0)))
    before, slope = loss(parts)
    steepness = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(slope))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(slope))
    step = 1e-2 / steepness**0.5
    after, _ = loss(jax.tree.map(lambda leaf, down: leaf - step * down, parts, slope))
    assert float(after - before) == pytest.approx(-step * steepness, rel=0.1)


def test_what_is_no_such_file_is_said(tmp_path):
    path = tmp_path / "masses.safetensors"
    weights_of(MODULES[2]).write(path)
    with pytest.raises(JvidpruneError, match="are no MahalanobisCost or NetworkCost, got NetworkMasses"):
        LearnedCost(str(path))
    with pytest.raises(JvidpruneError, match="cannot be read as a safetensors file"):
        LearnedCost(str(tmp_path / "none.safetensors"))
    with pytest.raises(JvidpruneError, match="none of the modules"):
        weights_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
