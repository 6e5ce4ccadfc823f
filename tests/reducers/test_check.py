"""Input that is no number is refused by what the compiled program finds, when the caller wants it to be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvidprune
from jvidprune import JvidpruneError, VideoTokens, reducers
from jvidprune.reducers.checks import check_finite

EVS = reducers.get("evs")
RANKED = reducers.get("attention_topk")


def video(value=None, where=(1, 2, 3), dtype=np.float32):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 16, 5))
    if value is not None:
        features[where] = value
    attention = rng.random((3, 16)).astype(np.float32)
    return VideoTokens.create(jnp.asarray(features, dtype), {"attention_last": attention})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_one_bad_number_is_refused_before_the_call_returns(bad, dtype):
    shown = video(bad, dtype=dtype)
    with pytest.raises(JvidpruneError, match="features hold 1 NaN or infinite values"):
        jvidprune.reduce(EVS, shown, 0.5)
    with pytest.raises(JvidpruneError, match="features hold 1 NaN or infinite values"):
        jvidprune.sweep(EVS, shown, [0.5, 0.25])
    batch = jax.tree.map(lambda *pair: jnp.stack(pair), video(dtype=dtype), shown)
    with pytest.raises(JvidpruneError, match="features hold 1 NaN or infinite values"):
        jvidprune.reduce_batch(EVS, batch, 0.5)


def test_evidence_is_looked_at_only_where_it_is_read():
    shown = video()
    broken = shown.evidence["attention_last"].at[0, 0].set(jnp.nan)
    shown = dataclasses.replace(shown, evidence={"attention_last": broken})
    with pytest.raises(JvidpruneError, match="attention_last hold 1 NaN"):
        jvidprune.reduce(RANKED, shown, 0.5)
    assert int(jvidprune.reduce(EVS, shown, 0.5).count) > 0


def test_finite_numbers_whose_squares_are_not_are_allowed():
    reduced = jvidprune.reduce(EVS, video(1e30), 0.5)
    assert reduced.diagnostics == {}
    assert int(reduced.count) > 0


@pytest.mark.parametrize("diagnostics", [False, True])
def test_lazy_leaves_what_was_found_for_the_caller(diagnostics):
    good, bad = video(), video(np.nan)
    found = jvidprune.sweep(EVS, bad, [0.5, 0.25], check="lazy", diagnostics=diagnostics)
    np.testing.assert_array_equal(found.diagnostics["not_finite"], [[1], [1]])
    with pytest.raises(JvidpruneError, match="features hold 1 NaN"):
        check_finite(EVS, bad, found)
    clean = check_finite(EVS, good, jvidprune.reduce(EVS, good, 0.5, check="lazy", diagnostics=diagnostics))
    now = jvidprune.reduce(EVS, good, 0.5, diagnostics=diagnostics)
    assert clean.diagnostics.keys() == now.diagnostics.keys()
    jax.tree.map(np.testing.assert_array_equal, clean, now)


def test_unchecked_input_goes_through():
    reduced = jvidprune.reduce(EVS, video(np.nan), 0.5, check=False)
    assert "not_finite" not in reduced.diagnostics
    assert int(reduced.count) > 0


@pytest.mark.parametrize("check", [True, 0, None, "later"])
def test_other_words_are_refused(check):
    with pytest.raises(JvidpruneError, match="check must be 'now', 'lazy' or False"):
        jvidprune.reduce(EVS, video(), 0.5, check=check)
    with pytest.raises(JvidpruneError, match="check must be 'now', 'lazy' or False"):
        jvidprune.reduce_batch(EVS, jax.tree.map(lambda a: a[None], video()), 0.5, check=check)


def test_inside_transformations_nothing_is_looked_at():
    @jax.jit
    def inside(shown):
        return jvidprune.reduce(EVS, shown, 0.5)

    assert inside(video(np.nan)).diagnostics == {}
    jax.tree.map(np.testing.assert_array_equal, inside(video()), jvidprune.reduce(EVS, video(), 0.5))


def test_a_call_runs_one_program_and_no_other_operation():
    from jax.extend import core

    shown = video()
    jvidprune.reduce(EVS, shown, 0.5)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args, **kwargs):
            raise AssertionError("an operation outside of the compiled program")

        # A compiled call with a warm cache binds nothing; operations of jax.numpy on arrays do.
        patch.setattr(core.Primitive, "bind", refuse)
        with pytest.raises(AssertionError, match="outside"):
            jax.lax.neg(shown.features)
        reduced = jvidprune.reduce(EVS, shown, 0.5)
    assert int(reduced.count) > 0
