"""Renewed cuts whose deep caches hold the chosen tokens alone: tokens that come in are run through the deep layers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.decoders import LAYERS, STEPS, TOKENS, VALID, VISUAL, S, create, read_and_decode, top

from jvidprune import JvidpruneError
from jvidprune.cuts.decoding import Renewal
from jvidprune.cuts.inner import Inner
from jvidprune.models.prefill import read_prompt

KEEP, LAYER = 0.3, 2
COUNTS = [math.ceil(n * KEEP) for n in VISUAL.sum(axis=1)]
NEVER, ALWAYS = math.inf, -3.0


def fill(shift, keep=KEEP, **options):
    return top(LAYER, keep, renewal=Renewal("fill", shift, **options))


@functools.partial(jax.jit, static_argnames="room")
def read(decoder, embeds, inner, mutual=None, room=STEPS):
    slots = jnp.broadcast_to(jnp.arange(S), (2, S))
    cache = decoder.empty_cache(2, inner.capacities(S, room), inner.boundaries)
    return read_prompt(decoder, embeds, slots, jnp.asarray(VALID), cache, inner=inner, bidirectional=mutual).cache


def moved(cache):
    """The state and the deep caches behind a step whose attention is largest where nothing was chosen."""
    policy, first = cache.policy, cache.segments[0]
    rng = np.random.default_rng(5)
    score = rng.random(policy.active.shape)
    score += ~np.asarray(policy.active) * 2.0
    return policy.step(jnp.asarray(score, jnp.float32)[:, None], first.valid)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.slow
def test_what_never_moves_is_the_host_pruner(decoder, embeds, compact):
    never, cache, _ = read_and_decode(decoder, embeds, create(fill(NEVER), compact=compact))
    np.testing.assert_allclose(never, read_and_decode(decoder, embeds, create(top(LAYER, KEEP)))[0], atol=3e-5)
    assert cache.segments[1].capacity == (S - 20 + COUNTS[0] if compact else S) + STEPS


def test_all_tokens_are_the_unpruned_model(decoder, embeds, plain):
    np.testing.assert_allclose(read_and_decode(decoder, embeds, create(fill(ALWAYS, 1.0)))[0], plain, atol=2e-5)


@pytest.mark.slow
def test_moving_tokens_together_changes_nothing(decoder, embeds):
    """The first token is the host's, later ones differ, and deep layers read as many tokens at every step."""
    logits, cache, _ = read_and_decode(decoder, embeds, create(fill(ALWAYS)))
    masked, _, _ = read_and_decode(decoder, embeds, create(fill(ALWAYS), compact=False))
    host, last, _ = read_and_decode(decoder, embeds, create(top(LAYER, KEEP)))
    np.testing.assert_allclose(logits, masked, atol=3e-5)
    np.testing.assert_allclose(logits[0], host[0], atol=3e-5)
    assert np.abs(np.asarray(logits - host)[1:]).max() > 1e-3
    for one in (cache, last):
        assert one.segments[1].valid.sum(axis=1).tolist() == [
            STEPS + n + k for n, k in zip((VALID & ~VISUAL).sum(axis=1), COUNTS, strict=True)
        ]
    active = np.asarray(cache.policy.active)[:, :S] & VISUAL
    assert active.sum(axis=1).tolist() == COUNTS
    # The tables of the deep caches name the tokens that are active.
    source, there = np.asarray(cache.policy.source), np.asarray(cache.segments[1].valid)
    for row in range(2):
        held = source[row][there[row]]
        assert sorted(held[held < S].tolist()) == np.flatnonzero((VALID & ~VISUAL | active)[row]).tolist()


@pytest.mark.slow
def test_a_prompt_alone_and_in_a_batch(decoder, embeds):
    inner = Inner.create([fill(ALWAYS)], VISUAL[:1], VALID[:1], layers=LAYERS)

    @jax.jit
    def answer(x, inner):
        cache = decoder.empty_cache(1, inner.capacities(S, STEPS), inner.boundaries)
        one = read_prompt(decoder, x, jnp.arange(S)[None], jnp.asarray(VALID[:1]), cache, inner=inner)

        def step(cache, token):
            logits, cache = decoder.decode(token, cache)
            return cache, logits

        return jax.lax.scan(step, one.cache, jnp.asarray(TOKENS[:, :1]))[1]

    both = read_and_decode(decoder, embeds, create(fill(ALWAYS)))[0]
    np.testing.assert_allclose(answer(embeds[:1], inner), both[1:, :1], atol=3e-5)


@pytest.mark.slow
def test_a_wholly_new_set_has_the_keys_of_recomputing(decoder, embeds):
    inner = create(fill(ALWAYS, swaps=20), compact=True)
    cache = read(decoder, embeds, inner)
    policy = moved(cache)
    before, now = (np.asarray(one.active)[:, :S] & VISUAL for one in (cache.policy, policy))
    assert not (before & now).any()
    filled = policy._filled(decoder, cache.segments[1])
    slots = jnp.broadcast_to(jnp.arange(S), (2, S))
    seen = jnp.asarray(VALID & ~VISUAL | now)
    _, whole = decoder.run(policy.hidden[:, :S], decoder.step(slots, seen), LAYER, LAYERS)
    for row in range(2):
        for token in np.flatnonzero(now[row]):
            at = int(policy.slot[row, token])
            for got, expected in ((filled.k, whole.k), (filled.v, whole.v)):
                np.testing.assert_allclose(got[:, row, at], expected[:, row, token], atol=1e-5)
        # What was not new is as it was.
        others = np.setdiff1d(np.arange(filled.capacity), np.asarray(policy.slot)[row][np.flatnonzero(now[row])])
        np.testing.assert_array_equal(filled.k[:, row, others], cache.segments[1].k[:, row, others])


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.slow
def test_tokens_of_a_chunk_are_those_run_one_by_one(decoder, embeds, mutual):
    """Each sees the text and the active tokens before it; with mutual sight all active ones of the video as well."""
    mask = jnp.asarray(VISUAL) if mutual else None
    cache = read(decoder, embeds, create(fill(ALWAYS, keep=0.6, swaps=3)), mask)
    policy = moved(cache)
    coming, there, at = (np.asarray(part) for part in policy.swap)
    assert there.all()
    assert (np.diff(coming, axis=1) > 0).all()
    filled = policy._filled(decoder, cache.segments[1])
    if mutual:
        # Tokens of the chunk see each other, so that one by one does not serve: without the others they differ.
        alone = dataclasses.replace(policy, bidirectional=None)._filled(decoder, cache.segments[1])
        assert np.abs(np.asarray(filled.k - alone.k)).max() > 1e-3
        return
    segment, source = cache.segments[1], np.asarray(cache.policy.source).copy()
    for j in range(coming.shape[1]):
        seen = np.asarray(segment.valid) & (source < coming[:, j : j + 1])
        # The slots of those that go hold nothing that is seen.
        for row in range(2):
            seen[row, at[row, j:]] = False
        hidden = policy.hidden[np.arange(2), coming[:, j]][:, None]
        step = decoder.step(jnp.asarray(coming[:, j : j + 1]), jnp.ones((2, 1), bool))
        _, fresh = decoder.run(hidden, step, LAYER, LAYERS, past=segment, past_valid=jnp.asarray(seen))
        k, v = (
            old.at[:, np.arange(2), at[:, j]].set(new[:, :, 0])
            for old, new in ((segment.k, fresh.k), (segment.v, fresh.v))
        )
        segment = dataclasses.replace(segment, k=k, v=v)
        source[np.arange(2), at[:, j]] = coming[:, j]
    np.testing.assert_allclose(filled.k, segment.k, atol=1e-5)
    np.testing.assert_allclose(filled.v, segment.v, atol=1e-5)


def test_swaps_of_one_step_are_limited_and_go_on(decoder, embeds):
    cache = read(decoder, embeds, create(fill(0.01, swaps=2)))
    policy = moved(cache)
    start, one = (np.asarray(state.active)[:, :S] & VISUAL for state in (cache.policy, policy))
    assert (start & ~one).sum(axis=1).tolist() == [2, 2]
    assert policy.pending.all()
    # The same attention again is no shift, but what was left over changes places.
    now = policy.relevance[:, None]
    for left in ([2, 2], [2, 2], [0, 0]):
        again = policy.step(now, cache.segments[0].valid)
        two = np.asarray(again.active)[:, :S] & VISUAL
        assert (one & ~two).sum(axis=1).tolist() == [min(n, 2) for n in left]
        policy, one = again, two
    best = np.argsort(-np.asarray(now)[:, 0, :S], axis=1)
    assert [set(np.flatnonzero(one[row])) for row in range(2)] == [set(best[row, : COUNTS[row]]) for row in range(2)]
    assert not policy.pending.any()


@pytest.mark.parametrize("mode", ["bank", "recompute", "fill"])
def test_an_attention_that_does_not_move_changes_nothing(decoder, embeds, mode):
    cache = read(decoder, embeds, create(top(LAYER, KEEP, renewal=Renewal(mode, 0.0001))))
    policy, written = cache.policy, cache.segments[0].valid
    # Another scale is no shift either.
    same = policy.step(3 * policy.relevance[:, None], written)
    np.testing.assert_array_equal(same.active, policy.active)
    assert (np.asarray(moved(cache).active) != np.asarray(policy.active)).any()


def test_tests_at_intervals(decoder, embeds):
    cache = read(decoder, embeds, create(top(LAYER, KEEP, renewal=Renewal("bank", ALWAYS, every=3))))
    policy, changed, rng = cache.policy, [], np.random.default_rng(0)
    for _ in range(7):
        score = jnp.asarray(rng.random((2, 1, policy.active.shape[1])), jnp.float32)
        after = policy.step(score, cache.segments[0].valid)
        changed.append(bool((after.active != policy.active).any()))
        policy = after
    assert changed == [True, False, False] * 2 + [True]


def test_refusals():
    with pytest.raises(JvidpruneError, match="Renewal's every must"):
        Renewal("fill", every=0)
    with pytest.raises(JvidpruneError, match="Renewal's swaps must"):
        Renewal("fill", swaps=0)
    with pytest.raises(JvidpruneError, match="Renewal's shift must"):
        Renewal("fill", math.nan)
