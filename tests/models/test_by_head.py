"""Attention with heads in front: what the plain code gives, with its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvidprune.models.attention import Keys, Past, attend, attend_all


def _drawn(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(("length", "causal", "cached"), [(7, True, 0), (600, True, 0), (9, True, 5), (9, False, 5)])
def test_a_decoder_reads_the_same(length, causal, cached):
    q, k, v, weight = _drawn(length, (2, length, 4, 8), (2, length, 2, 8), (2, length, 2, 8), (2, length, 4, 8))
    valid = jnp.arange(length) < jnp.asarray([length, length - 3])[:, None]
    old_k, old_v = _drawn(1, (2, max(1, cached), 2, 8), (2, max(1, cached), 2, 8))
    past = Past(old_k, old_v, jnp.asarray([[True] * cached, [False] + [True] * (cached - 1)])) if cached else None

    def given(kind):
        def weighed(q, k, v):
            out = attend(q, Keys(k, v, valid), past, causal=causal, kind=kind)
            # Rows of padding hold garbage.
            return (out * weight * valid[:, :, None, None]).sum(), out

        (_, out), slopes = jax.jit(jax.value_and_grad(weighed, (0, 1, 2), has_aux=True))(q, k, v)
        return [out * valid[:, :, None, None], *slopes]

    for one, other in zip(given("plain"), given("by_head"), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_tower_reads_the_same():
    q, k, v = _drawn(3, *[(3, 16, 4, 8)] * 3)
    valid = jnp.arange(16) < jnp.asarray([16, 9, 4])[:, None]
    for mask in (None, valid):
        one, other = (attend_all(q, k, v, valid=mask, kind=kind)[0] for kind in ("plain", "by_head"))
        rows = np.ones((3, 16), bool) if mask is None else np.asarray(mask)
        np.testing.assert_allclose(one[rows], other[rows], atol=2e-6)
    # Where maps are wanted the plain code gives them.
    assert attend_all(q, k, v, received=True, kind="by_head")[1].shape == (3, 4, 16)
