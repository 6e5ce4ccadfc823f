"""Plans against brute-force numpy: order, mass, slots and sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune.ops import compact

M, K, D = 12, 9, 4


def brute_force_ascending(pick, merged, target, weight, x, capacity):
    rows = [(token, 0) for token in range(M) for _ in range(pick[token])] + [(t, 1) for t in range(M) if merged[t]]
    rows.sort()
    tokens, mass = np.zeros((capacity, D)), np.zeros(capacity, int)
    for number, (token, kind) in enumerate(rows[:capacity]):
        if kind == 0:
            tokens[number], mass[number] = x[token], 1
        for a in range(target.shape[0]):
            for j in range(M):
                if kind == 1 and target[a, j] == token:
                    tokens[number] += weight[a, j] * x[j]
                    mass[number] += 1
    return rows, tokens, mass


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), slots=st.sampled_from([1, 2]))
@pytest.mark.slow
def test_ascending_plan_and_apply_match_brute_force(seed, slots):
    rng = np.random.default_rng(seed)
    pick = rng.integers(0, 3, M) * (rng.random(M) < 0.3)
    merged = rng.random(M) < 0.3
    target = rng.integers(0, M + 1, (slots, M))
    weight = rng.normal(size=(slots, M)).astype(np.float32)
    x = rng.normal(size=(3, 4, D)).astype(np.float32)
    plan = compact.ascending_plan(jnp.asarray(pick), jnp.asarray(merged), jnp.asarray(target), jnp.asarray(weight), K)
    reduced = compact.apply(plan, jnp.asarray(x))
    rows, tokens, mass = brute_force_ascending(pick, merged, target, weight, x.reshape(M, D), K)
    assert int(plan.count) == len(rows)
    used = min(len(rows), K)
    assert np.asarray(reduced.index)[:used].tolist() == [token for token, _ in rows[:K]]
    assert (np.asarray(reduced.index)[used:] == M).all()
    np.testing.assert_allclose(reduced.tokens, tokens, atol=1e-5)
    np.testing.assert_array_equal(reduced.mass, mass)
    np.testing.assert_array_equal(reduced.valid, np.arange(K) < len(rows))


def test_slots_prefer_a_tokens_own_row_and_mark_dropped_tokens():
    pick = jnp.asarray([1, 0, 0, 0])
    merged = jnp.asarray([False, False, True, False])
    target = jnp.asarray([[2, 2, 2, 4]])
    reduced = compact.apply(compact.ascending_plan(pick, merged, target, jnp.ones((1, 4)), 3), jnp.ones((1, 4, 2)))
    assert np.asarray(reduced.slot).tolist() == [0, 1, 1, -1]
    assert np.asarray(reduced.mass).tolist() == [1, 3, 0]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_keyed_plan_sorts_by_key_and_keeps_ties_in_slot_order(seed):
    rng = np.random.default_rng(seed)
    s = 10
    key, token = rng.integers(0, 5, s), rng.permutation(M)[:s]
    present, pick = rng.random(s) < 0.6, rng.random(s) < 0.5
    target = rng.integers(0, s + 1, (1, M))
    x = rng.normal(size=(1, M, D)).astype(np.float32)
    arrays = [jnp.asarray(a) for a in (token, present, pick, target)]
    reduced = compact.apply(compact.slotted_plan(*arrays, jnp.ones((1, M)), K, key=jnp.asarray(key)), jnp.asarray(x))
    order = [i for i in np.argsort(key, kind="stable") if present[i]][:K]
    assert np.asarray(reduced.index)[: len(order)].tolist() == token[order].tolist()
    for row, slot in enumerate(order):
        expected = x[0, token[slot]] if pick[slot] else x[0][target[0] == slot].sum(0)
        np.testing.assert_allclose(reduced.tokens[row], expected, atol=1e-5)


def test_apply_is_linear_and_its_gradient_is_the_frozen_weighting():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(2, 6, D)), jnp.float32) for _ in range(2))
    plan = compact.ascending_plan(
        jnp.asarray([1, 0] * 6),
        jnp.asarray([False, True] * 6),
        jnp.asarray([[1, 1, 3, 3] * 3]),
        jnp.full((1, 12), 0.5),
        14,
    )
    both = compact.apply(plan, x + 2 * y).tokens
    np.testing.assert_allclose(both, compact.apply(plan, x).tokens + 2 * compact.apply(plan, y).tokens, atol=1e-5)
    gradient = jax.grad(lambda v: compact.apply(plan, v).tokens.sum())(x).reshape(12, D)
    expected = np.array([(1.0 if i % 2 == 0 else 0.0) + 0.5 for i in range(12)])
    np.testing.assert_allclose(gradient, np.repeat(expected[:, None], D, 1), atol=1e-6)


def test_bf16_features_are_copied_exactly_and_summed_in_float32():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, D)), jnp.bfloat16)
    plan = compact.ascending_plan(
        jnp.asarray([1, 0, 0, 0]),
        jnp.asarray([False, True, False, False]),
        jnp.asarray([[4, 1, 1, 1]]),
        jnp.full((1, 4), 1 / 3),
        3,
    )
    reduced = compact.apply(plan, x)
    assert reduced.tokens.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(reduced.tokens[0], np.float32), np.asarray(x[0, 0], np.float32))
    mean = np.asarray(x[0, 1:], np.float32).mean(0)
    np.testing.assert_allclose(np.asarray(reduced.tokens[1], np.float32), mean, rtol=2**-8)


def test_a_capacity_that_is_too_small_shows_in_the_count():
    plan = compact.selection_plan(jnp.ones(6, bool), 4)
    assert int(plan.count) == 6
    assert np.asarray(plan.ids).tolist() == [0, 1, 2, 3]
