"""Layers with a recurrent state: the rule, its masks, caches, cuts and routed layers, each against something plain."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.decoders import CONFIG, STEPS, TOKENS, VALID, VISUAL, S, read_and_decode

from jvidprune import JvidpruneError
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.routers import RandomRoute
from jvidprune.cuts.rules import LastQueryTopK, LookAhead, RandomDraw
from jvidprune.cuts.swiftvlm import Bypass, BypassCount
from jvidprune.models import delta
from jvidprune.models.decoder_config import DeltaConfig
from jvidprune.models.generate import generate
from jvidprune.models.hybrid import HybridDecoder
from jvidprune.models.lane import Lane
from jvidprune.models.prefill import prefill, read_prompt
from jvidprune.models.sampling import GREEDY
from jvidprune.tokens import InnerStage, Kept

LAYERS = 8
ATTENDING = (1, 3, 5, 7)
HYBRID = dataclasses.replace(
    CONFIG,
    layers=LAYERS,
    head_dim=8,
    qk_norm=True,
    qkv_bias=False,
    gated=True,
    centred=True,
    rope=dataclasses.replace(CONFIG.rope, partial=0.5),
    delta=DeltaConfig(ATTENDING, key_heads=2, value_heads=4, key_dim=6, value_dim=5, taps=4),
)


@pytest.fixture(scope="module")
def decoder():
    made = HybridDecoder(HYBRID, dtype=jnp.float32, rngs=nnx.Rngs(0))
    # Slower decays than fresh weights have, so that far tokens count.
    made.linear.delta.a_log[...] = made.linear.delta.a_log[...] - 3.0
    return made


@pytest.fixture(scope="module")
def embeds():
    return jax.random.normal(jax.random.key(1), (2, S, HYBRID.width))


def create(*stages, compact=True):
    return Inner.create(stages, VISUAL, VALID, layers=LAYERS, compact=compact)


# --- the rule --------------------------------------------------------------------------------------------------------


def token_by_token(q, k, v, g, beta, state):
    """The recurrence in float64, as the paper writes it."""
    state, out = state.astype(np.float64), []
    for t in range(q.shape[1]):
        state = state * np.exp(g[:, t])[..., None, None]
        held = np.einsum("bhde,bhd->bhe", state, k[:, t])
        state = state + np.einsum("bhd,bhe->bhde", k[:, t], (v[:, t] - held) * beta[:, t, :, None])
        out.append(np.einsum("bhde,bhd->bhe", state, q[:, t]))
    return np.stack(out, 1), state


@pytest.mark.parametrize("length", [1, 63, 150])
def test_chunks_are_the_recurrence(length, monkeypatch):
    """Also where equal keys follow each other, and over several rounds of chunks."""
    monkeypatch.setattr(delta, "TOGETHER", 2)
    rng = np.random.default_rng(length)
    q, k = rng.standard_normal((2, 2, length, 3, 8)).astype(np.float32)
    k[:, length // 2 :] = k[:, -1:]
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.standard_normal((2, length, 3, 5)).astype(np.float32)
    g, beta = -0.1 * rng.random((2, length, 3)).astype(np.float32), rng.random((2, length, 3)).astype(np.float32)
    state = rng.standard_normal((2, 3, 8, 5)).astype(np.float32)
    found = jax.jit(delta.delta_rule)(q, k, v, g, beta, state)
    for ours, expected in zip(found, token_by_token(q, k, v, g, beta, state), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_masked_tokens_change_nothing():
    """The layer on tokens with holes is the layer on the tokens that are there, convolution and state included."""
    module = delta.GatedDelta(HYBRID, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 100, HYBRID.width)).astype(np.float32)
    valid = rng.random((1, 100)) < 0.6
    before = jax.tree.map(
        lambda one: jnp.asarray(rng.standard_normal(one.shape), one.dtype),
        delta.empty_carried(HYBRID, (1,), jnp.float32),
    )
    run = jax.jit(lambda x, order: module(x, order, before))
    x[~valid] = 1e6
    out, after = run(x, delta.Order.of(jnp.asarray(valid), False))
    there = x[valid][None]
    alone, expected = run(there, delta.Order.of(jnp.ones(there.shape[:2], bool), True))
    np.testing.assert_allclose(out[valid], alone[0], atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- prompts and caches ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_prompt_and_steps_are_one_pass(decoder, embeds):
    """Rows padded behind, then three tokens one by one, against one pass over all of them."""
    logits, cache, _ = read_and_decode(decoder, embeds, create())
    assert cache.segments[0].k.shape[0] == len(ATTENDING)
    assert cache.segments[0].state.state.shape == (LAYERS - len(ATTENDING), 2, 4, 6, 5)
    for row in range(2):
        count = int(VALID[row].sum())
        words = decoder.embed_text(jnp.asarray(TOKENS[:, row]))
        whole = jnp.concatenate([embeds[row, :count], words])[None]
        places = jnp.arange(count + STEPS)[None]
        expected = decoder.forward(whole, places, jnp.ones(places.shape, bool)).logits[0, count - 1 :]
        np.testing.assert_allclose(logits[:, row], expected, atol=1e-4)


def test_padding_in_front_is_as_padding_behind(decoder, embeds):
    x, places = embeds[:1, :20], jnp.arange(20)[None]
    expected = decoder.forward(x, places, jnp.ones((1, 20), bool))
    wide = jnp.concatenate([jnp.full((1, 9, HYBRID.width), 7.0), x], axis=1)
    shifted = jnp.pad(places, ((0, 0), (9, 0)))
    found = decoder.forward(wide, shifted, jnp.arange(29)[None] >= 9, hidden=True)
    np.testing.assert_allclose(found.logits[:, 9:], expected.logits, atol=1e-4)


@pytest.mark.slow
def test_text_read_behind_a_cache_is_read_as_one(decoder, embeds):
    """`read_on` with filled-up slots, and what follows it."""
    cache = decoder.empty_cache(1, S + 8)
    x, places = embeds[:1, :20], jnp.arange(20)[None]
    read = read_prompt(decoder, x, places, np.ones((1, 20), bool), cache, packed=True)
    tokens = jnp.asarray([[5, 9, 2, 0, 0]])
    hidden, cache = decoder.read_on(tokens, jnp.arange(5)[None] < 3, read.cache)
    logits, _ = decoder.decode(jnp.asarray([4]), cache)
    words = decoder.embed_text(jnp.asarray([[5, 9, 2, 4]]))
    whole = jnp.concatenate([x, words], axis=1)
    expected = decoder.forward(whole, jnp.arange(24)[None], jnp.ones((1, 24), bool)).logits
    np.testing.assert_allclose(decoder.logits(hidden[:, 2]), expected[:, 22], atol=1e-4)
    np.testing.assert_allclose(logits, expected[:, 23], atol=1e-4)


class Holder(nnx.Module):
    """A model with a decoder, all that answering needs."""

    def __init__(self, lm):
        self.lm = lm


@pytest.mark.slow
def test_rows_answer_side_by_side_as_alone(decoder, embeds):
    """A prompt takes a free row while the other goes on, and one that has ended leaves nothing behind."""
    model, capacity, places = Holder(decoder), 64, jnp.arange(20)[None]
    lane = Lane(model, rows=2, capacity=capacity, vocab=50, eos_ids=())
    prompts = [embeds[:1, :20], embeds[1:, :20], embeds[:1, 5:25]]

    def put(x):
        logits, cache = prefill(model, x, places, np.ones((1, 20), bool), capacity=capacity)
        return lane.put(logits, cache, 20, 17, GREEDY, jax.random.key(0), np.zeros(50, bool))

    said = {}
    for number, x in enumerate(prompts):
        row, first = put(x)
        tokens = lane.go_on()
        said[number] = [first, *tokens[row]]
        if number == 1:
            # The first one's row is free for the third.
            lane.free(0)
    for number, x in enumerate(prompts):
        alone = generate(model, x, places, np.ones((1, 20), bool), max_new_tokens=9)[0]
        assert said[number] == alone.tolist()


# --- cuts and routed layers ------------------------------------------------------------------------------------------

STAGES = {
    "last": [InnerStage(4, LastQueryTopK(), Kept(0.3))],
    "draw": [InnerStage(3, RandomDraw(), Kept(0.4), seed=5)],
    "twice": [InnerStage(2, LastQueryTopK(), Kept(0.6)), InnerStage(5, LookAhead(), Kept(0.3))],
    "renumbered": [InnerStage(4, LastQueryTopK(), Kept(0.3), "renumber")],
    "middle": [InnerStage(3, RandomDraw(), Kept(0.4), where="middle")],
    "routed": [InnerStage(2, RandomRoute(), Kept(0.4)), InnerStage(5, RandomRoute(), Kept(0.5))],
    "restored": [
        InnerStage(1, Bypass(groups=2), BypassCount(number=8, groups=2)),
        InnerStage(5, Bypass(groups=2, final=True), BypassCount(number=5, final=True)),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_compacted_tokens_are_masked_ones(decoder, embeds, name):
    """Gathered at every cut, or left in place with states that they do not touch: logits of prompt and steps."""
    short, _, _ = read_and_decode(decoder, embeds, create(*STAGES[name]))
    long, _, _ = read_and_decode(decoder, embeds, create(*STAGES[name], compact=False))
    plain, _, _ = read_and_decode(decoder, embeds, create())
    np.testing.assert_allclose(short, long, atol=1e-4)
    assert np.abs(short - plain).max() > 1e-3


@pytest.mark.slow
def test_behind_a_cut_dropped_tokens_are_in_no_recurrence(decoder, embeds):
    """Against the deep layers run on the kept tokens alone, with fresh states, and on the answer behind them."""
    logits, _, (record,) = read_and_decode(decoder, embeds, create(*STAGES["last"]))
    for row in range(2):
        count = int(VALID[row].sum())
        words = decoder.embed_text(jnp.asarray(TOKENS[:, row]))
        whole = jnp.concatenate([embeds[row, :count], words])[None]
        places = jnp.arange(count + STEPS)[None]
        step = decoder.step(places, jnp.ones(places.shape, bool), packed=True)
        x, found = decoder.run(whole, step, 0, 4, rows=jnp.full((1, 1), count - 1))
        kept = np.flatnonzero(np.asarray(record.survivors[row])[:count])
        # The rule's own choice, from the layer that it reads.
        seen = np.asarray(found.attention[-1, 0, :, 0]).mean(axis=0)[:count]
        visual = np.flatnonzero(VISUAL[row][:count])
        best = visual[np.argsort(-seen[visual], kind="stable")[: math.ceil(len(visual) * 0.3)]]
        assert set(kept) == set(best) | (set(range(count)) - set(visual))
        stay = jnp.asarray([*kept, *range(count, count + STEPS)])
        deep = decoder.step(stay[None], jnp.ones((1, len(stay)), bool), packed=True)
        x, _ = decoder.run(x[:, stay], deep, 4, LAYERS)
        np.testing.assert_allclose(logits[:, row], decoder.logits(x[0, -STEPS - 1 :]), atol=1e-4)


@pytest.mark.slow
def test_a_routed_recurrence_passes_tokens_by(decoder, embeds):
    """Layer 2 on the tokens that run alone; the others keep their states in front of it."""
    slots = jnp.broadcast_to(jnp.arange(S), (2, S))
    inner = create(STAGES["routed"][0])
    cache = decoder.empty_cache(2, inner.capacities(S, 0), inner.boundaries)
    read = read_prompt(decoder, embeds, slots, jnp.asarray(VALID), cache, inner=inner)
    (record,) = read.routes
    runs = np.flatnonzero(np.asarray(record.runs[0]))
    assert 0 < len(runs) < S
    step = decoder.step(jnp.asarray(runs)[None], jnp.ones((1, len(runs)), bool), packed=True)
    expected, _ = decoder.run(record.entering[:1, runs], step, 2, 3)
    np.testing.assert_allclose(record.leaving[0, runs], expected[0], atol=1e-4)
    by = np.setdiff1d(np.arange(S), runs)
    np.testing.assert_array_equal(record.leaving[0, by], record.entering[0, by])


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (InnerStage(3, LastQueryTopK(), Kept(0.3)), "reads layer 2, .* nearest layer with attention is 1, which a st"),
        (InnerStage(4, LookAhead(), Kept(0.3)), "LookAhead reads layer 4, .* is 3, which a stage at layer 3 reads"),
        (InnerStage(4, LastQueryTopK(trims=True), Kept(0.3)), "takes tokens out of the layers before its cut too"),
    ],
)
def test_what_a_state_cannot_do_is_refused(decoder, embeds, stage, says):
    with pytest.raises(JvidpruneError, match=says):
        read_and_decode(decoder, embeds, create(stage))


def test_what_has_no_meaning_in_a_recurrence_is_refused(decoder):
    places, valid = jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool)
    with pytest.raises(JvidpruneError, match="no place for a bias of keys"):
        decoder.step(places, valid, bias=jnp.zeros((1, 3)))
    with pytest.raises(JvidpruneError, match="carry a state and pay no attention"):
        decoder.run(jnp.zeros((1, 3, HYBRID.width)), decoder.step(places, valid), 2, 3, rows=places[:, :1])
