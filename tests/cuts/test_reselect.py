"""Hooks of the decoder: cuts renewed while decoding, and rules of one's own that put states aside and restore them."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.decoders import (
    CONFIG,
    LAYERS,
    STEPS,
    TOKENS,
    VALID,
    VISUAL,
    S,
    create,
    read_and_decode,
    top,
)

from jvidprune import JvidpruneError
from jvidprune.cuts.decoding import Renewal
from jvidprune.cuts.protocol import Chosen, CutRule
from jvidprune.reducers.fastv import FastV
from jvidprune.tokens import InnerStage

KEEP = 0.3


@pytest.fixture(scope="module")
def by_hand(decoder, embeds):
    """FastV's original: no cache, the whole sequence again for every token, chosen by its newest row."""
    slots = jnp.broadcast_to(jnp.arange(S + STEPS), (2, S + STEPS))
    visual = np.pad(VISUAL, ((0, 0), (0, STEPS)))
    # The second prompt is shorter: its answer follows slots of padding, its positions do not.
    positions = np.where(slots < S, slots, slots - S + VALID.sum(axis=1, keepdims=True))

    @jax.jit
    def shallow(x, valid, row):
        x, out = decoder.run(x, decoder.step(positions, valid), 0, 2, rows=row)
        return x, out.attention[1, :, :, 0].mean(axis=1)

    @jax.jit
    def deep(x, seen):
        x, _ = decoder.run(x, decoder.step(positions, seen), 2, LAYERS)
        return decoder.logits(x)

    logits, choices = [], []
    x = jnp.concatenate([embeds, jnp.zeros((2, STEPS, CONFIG.width))], axis=1)
    for step in range(STEPS + 1):
        valid = np.concatenate([VALID, np.arange(STEPS)[None].repeat(2, 0) < step], axis=1)
        if step:
            x = x.at[:, S + step - 1].set(decoder.embed_text(jnp.asarray(TOKENS[step - 1])))
        last = np.where(valid, np.arange(S + STEPS), 0).max(axis=1)
        hidden, score = shallow(x, jnp.asarray(valid), jnp.asarray(last)[:, None])
        seen = valid & ~visual
        for row in range(2):
            places = np.flatnonzero(visual[row])
            order = np.argsort(-np.asarray(score)[row][places], kind="stable")
            seen[row, places[order[: math.ceil(len(places) * KEEP)]]] = True
        logits.append(np.asarray(deep(hidden, jnp.asarray(seen)))[np.arange(2), last])
        choices.append(seen[:, :S])
    return np.stack(logits), choices


@pytest.mark.slow
def test_recomputing_gives_the_numbers_of_a_model_without_a_cache(decoder, embeds, by_hand):
    logits, _, _ = read_and_decode(decoder, embeds, create(top(2, KEEP, renewal=Renewal("recompute"))))
    expected, choices = by_hand
    np.testing.assert_allclose(logits, expected, atol=3e-5)
    assert any((a != b).any() for a, b in itertools.pairwise(choices))


def test_a_bank_that_is_always_renewed_chooses_alike_and_reads_what_it_chose(decoder, embeds, by_hand):
    stage = top(2, KEEP, renewal=Renewal("bank", -1.0))
    logits, cache, _ = read_and_decode(decoder, embeds, create(stage))
    active = np.asarray(cache.policy.active)[:, :S]
    assert (active[VALID] == by_hand[1][-1][VALID]).all()
    np.testing.assert_allclose(logits[0], by_hand[0][0], atol=3e-5)
    assert np.abs(np.asarray(logits)[1:] - by_hand[0][1:]).max() > 1e-4


def test_a_bank_that_never_moves_is_the_host_pruner(decoder, embeds):
    """With an infinite threshold of the shift, cached keys of dropped tokens are there and never read."""
    never = read_and_decode(decoder, embeds, create(top(2, KEEP, renewal=Renewal("bank", math.inf))))[0]
    host = read_and_decode(decoder, embeds, create(top(2, KEEP)))[0]
    np.testing.assert_allclose(never, host, atol=3e-5)


@dataclasses.dataclass(frozen=True)
class Aside(CutRule):
    """Drops the visual tokens in odd slots and keeps their states."""

    stays: bool = False

    keeps_roles = True

    def choose(self, inputs, state):
        low = state.visual & (state.source % 2 == 1)
        survivors = state.valid if self.stays else state.valid & ~low
        return Chosen(state.hidden, survivors, state.hidden[:, 0], {"hidden": state.hidden, "low": low})


@dataclasses.dataclass(frozen=True)
class Back(CutRule):
    """Puts the states back into their slots as they were."""

    keeps_roles = True
    brings_back = True

    def choose(self, inputs, state):
        hidden = jnp.where(state.side["low"][:, None], state.side["hidden"], state.hidden)
        return Chosen(hidden, state.valid | state.side["low"], state.hidden[:, 0])


class Moved(Back):
    """SwiftVLM with a group for each token: restored with the change of its own merged token."""

    def choose(self, inputs, state):
        change = state.hidden - state.side["hidden"]
        hidden = jnp.where(state.side["low"][:, None], state.side["hidden"] + change, state.hidden)
        return Chosen(hidden, state.valid, state.hidden[:, 0])


def test_tokens_put_aside_come_back_as_they_were(decoder, embeds):
    stages = (InnerStage(1, Aside()), InnerStage(3, Back()))
    logits = read_and_decode(decoder, embeds, create(*stages))[0]
    low = VISUAL & (np.arange(S) % 2 == 1)
    slots = jnp.broadcast_to(jnp.arange(S), (2, S))

    @jax.jit
    def whole(x):
        everything, thinned = (decoder.step(slots, jnp.asarray(mask)) for mask in (VALID, VALID & ~low))
        first, _ = decoder.run(x, everything, 0, 1)
        x, _ = decoder.run(first, thinned, 1, 3)
        x, _ = decoder.run(jnp.where(low[..., None], first, x), everything, 3, LAYERS)
        return decoder.logits(x)

    np.testing.assert_allclose(logits[0], np.asarray(whole(embeds))[np.arange(2), VALID.sum(axis=1) - 1], atol=3e-5)


def test_restoring_each_token_by_its_own_change_is_the_identity(decoder, embeds, plain):
    stages = (InnerStage(1, Aside(stays=True)), InnerStage(3, Moved()))
    np.testing.assert_allclose(read_and_decode(decoder, embeds, create(*stages))[0], plain, atol=3e-5)


def test_stages_that_cannot_be_renewed_are_refused():
    with pytest.raises(JvidpruneError, match="renewed while decoding stands alone"):
        create(top(1, renewal=Renewal("bank")), top(2))
    with pytest.raises(JvidpruneError, match="unknown reselect 'often'"):
        FastV(reselect="often")


def test_fastv_renews_where_its_original_has_no_cache():
    def way(**settings):
        renewal = FastV(**settings).inner(0.5)[0].rule.renewal
        return renewal and renewal.mode

    assert [way(), way(variant="lmms"), way(variant="mask", count=3), way(variant="inplace", count=3)] == [
        None,
        None,
        "recompute",
        "recompute",
    ]
    assert way(variant="mask", count=3, reselect="never") is None
    assert way(reselect="bank", shift=0.1) == "bank"
