"""Programs for accelerators, run on this CPU, decide what programs for CPUs decide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvidprune
from jvidprune import reducers
from jvidprune.ops import branch, compact, layout
from jvidprune.ops.branch import on_cpu, using
from jvidprune.synthetic import synthetic_tokens

RATIOS = (0.26, 0.4, 0.7)


@pytest.fixture(scope="module")
def video():
    return synthetic_tokens(frames=8, grid=(6, 6), dim=32, unpooled_grid=(12, 12))


@pytest.mark.parametrize("name", reducers.names())
@pytest.mark.slow
def test_both_branches_decide_alike(video, name):
    reducer = reducers.get(name)
    swept = {}
    for which in ("cpu", "accelerator"):
        with using(which):
            swept[which] = jax.device_get(jvidprune.sweep(reducer, video, RATIOS, diagnostics=True))
    cpu, accelerator = swept["cpu"], swept["accelerator"]
    assert jax.tree.structure(cpu) == jax.tree.structure(accelerator)
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(cpu), jax.tree.leaves(accelerator), strict=True):
        if ours.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5, err_msg=str(path))
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=str(path))


def test_the_branch_is_a_setting_and_part_of_the_jit_key():
    traced = []

    @jax.jit
    def which(x):
        traced.append(branch.branch())
        return x

    which(1.0)
    for asked in ("accelerator", "cpu", "accelerator", None):
        with using(asked):
            which(1.0)
    # Unsaid is a key of its own, which on a CPU means the same as saying so.
    assert traced == ["cpu", "accelerator", "cpu"]
    assert on_cpu()


def test_one_by_one_is_the_same_in_turn():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 4, 4))
    kept = jnp.arange(3) > 0

    def product(a, b, kept):
        return jnp.where(kept, a @ b, 0.0)

    def loss(product, a):
        return (jax.vmap(product, (0, None, 0))(a, b[0], kept) ** 2).sum()

    def in_turn(*args):
        return layout.one_by_one(product, *args)

    with using("tpu"):
        assert "scan" in str(jax.make_jaxpr(lambda a: loss(in_turn, a))(a))
        value, slope = jax.value_and_grad(lambda a: loss(in_turn, a))(a)
    assert "scan" not in str(jax.make_jaxpr(lambda a: loss(in_turn, a))(a))
    wanted = jax.value_and_grad(lambda a: loss(product, a))(a)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(slope, wanted[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "tokens", "slots"), [(64, 100, 1), (13, 50, 3), (392, 784, 2), (130, 200, 1), (1, 3, 1)]
)
def test_blocks_of_rows_sum_what_a_scatter_sums(rows, tokens, slots):
    rng = np.random.default_rng(rows)
    row = rng.integers(0, 2 * rows, (slots, tokens)).astype(np.int32)
    weight = rng.random((slots, tokens)).astype(np.float32)
    picked = rng.permutation(rows)[: rows // 2]
    pick = np.full(rows, tokens, np.int32)
    pick[picked] = rng.integers(0, tokens, rows // 2)
    row[np.isin(row, picked)] = rows
    x = rng.standard_normal((tokens, 24)).astype(np.float32)
    wanted = np.zeros((rows, 24))
    for slot in range(slots):
        for token in np.flatnonzero(row[slot] < rows):
            wanted[row[slot, token]] += weight[slot, token] * x[token].astype(np.float64)
    wanted[picked] = x[pick[picked]]
    with using("accelerator"):
        ours = jax.jit(compact.row_sums)(row, weight, pick, x)
        stacked = jax.jit(jax.vmap(compact.row_sums, (0, None, None, None)))(row[None], weight, pick, x)[0]
        halves = jax.jit(compact.row_sums)(row, weight, pick, jnp.asarray(x, jnp.bfloat16))
        floats = jax.jit(compact.float_sums)(row, weight, pick, jnp.asarray(x, jnp.bfloat16))
    np.testing.assert_allclose(ours, wanted, atol=2e-5)
    np.testing.assert_allclose(stacked, wanted, atol=2e-5)
    assert halves.dtype == jnp.bfloat16
    np.testing.assert_allclose(halves.astype(np.float32), wanted, rtol=0.01, atol=0.05)
    rounded = jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(floats, jax.jit(compact.row_sums)(row, weight, pick, rounded), atol=2e-5)
    assert floats.dtype == jnp.float32
