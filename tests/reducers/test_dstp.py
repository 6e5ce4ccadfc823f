"""DSTP-like re-selection, a reconstruction: its hosts, what they choose, and what is said of others."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import reducer_checks as checks
from helpers.decoders import CONFIG, LAYERS, STEPS, VALID, VISUAL, S, create, read_and_decode

from jvidprune import reducers
from jvidprune.costs import flops_model
from jvidprune.cuts.decoding import Renewal
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.rules import LastQueryTopK, Marked
from jvidprune.models.decoder import Decoder
from jvidprune.reducers.dstp import DSTP
from jvidprune.reducers.fastv import FastV
from jvidprune.reducers.flashvid import FlashVID
from jvidprune.reducers.registry import title
from jvidprune.reducers.run import reduce, sweep
from jvidprune.synthetic import synthetic_tokens
from jvidprune.tokens import Kept

NEVER = 9.0
"""1 - cosine is 2 at most."""


def test_a_host_inside_the_model_keeps_its_cut():
    (stage,) = DSTP(host=FastV(layer=3), shift=0.2, every=2, serve="fill", swaps=5).inner(0.3)
    assert (stage.layer, stage.kept) == (3, Kept(0.3, "round"))
    assert stage.rule == LastQueryTopK(renewal=Renewal("fill", 0.2, 2, 5))
    # FlashVID's tokens enter as it makes them.
    flash, video = reducers.get("flashvid", "llava_video"), synthetic_tokens(frames=4, grid=(4, 4))
    assert isinstance(flash, FlashVID)
    ours = DSTP(host=flash)
    one, other = (reduce(method, video, 0.3) for method in (ours, flash))
    np.testing.assert_array_equal(one.index, other.index)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert ours.prompt == flash.prompt
    assert ours.inner(0.3)[0].layer == flash.inner(0.3)[0].layer


@pytest.mark.parametrize("host", ["divprune", "uniform", "zspaprune", "holov"])
@pytest.mark.slow
def test_a_host_before_the_model_marks_what_it_keeps(host):
    video = synthetic_tokens(frames=4, grid=(4, 4))
    question = np.ones((3, video.features.shape[-1]), np.float32)
    reads = question if host == "zspaprune" else None
    ratios = (0.25, 0.5)
    ours = sweep(DSTP(host=host), video, ratios, diagnostics=True, text=reads)
    for number, ratio in enumerate(ratios):
        one = jax.tree.map(operator.itemgetter(number), ours)
        kept = reduce(host, video, ratio, text=reads)
        assert int(one.count) == 64
        np.testing.assert_array_equal(one.index, np.arange(64))
        marked = np.flatnonzero(np.asarray(one.diagnostics["block"]) == 1)
        assert marked.tolist() == sorted(np.asarray(kept.index)[np.asarray(kept.valid)].tolist())


@pytest.fixture(scope="module")
def decoder():
    return Decoder(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(3))


@pytest.mark.slow
def test_marked_tokens_are_the_choice_of_the_prompt(decoder):
    """Of two videos of a prompt the second one's blocks go on at 2."""
    embeds = 3 * np.random.default_rng(0).normal(size=(2, S, CONFIG.width)).astype(np.float32)
    marked = VISUAL & (np.arange(S) % 3 == 0)
    block = np.where(VISUAL, marked + 2 * (np.arange(S) > 15), 0)
    (stage,) = DSTP(host="random", shift=NEVER).inner(0.4)
    assert isinstance(stage.rule, Marked)
    inner = Inner.create([stage], VISUAL, VALID, layers=LAYERS, block=block)
    logits, cache, (record,) = read_and_decode(decoder, embeds, inner)
    np.testing.assert_array_equal(np.asarray(record.survivors) & VISUAL, marked & VALID)
    slots = jnp.broadcast_to(jnp.arange(S), (2, S))
    x, _ = decoder.run(jnp.asarray(embeds), decoder.step(slots, jnp.asarray(VALID)), 0, 2)
    x, _ = decoder.run(x, decoder.step(slots, jnp.asarray(VALID & ~VISUAL | marked)), 2, LAYERS)
    last = VALID.sum(axis=1) - 1
    np.testing.assert_allclose(logits[0], decoder.logits(x[np.arange(2), last]), atol=3e-5)
    (always,) = DSTP(host="random", shift=-3.0).inner(0.4)
    inner = Inner.create([always], VISUAL, VALID, layers=LAYERS, block=block)
    moved, cache, _ = read_and_decode(decoder, embeds, inner)
    np.testing.assert_allclose(moved[0], logits[0], atol=1e-6)
    assert np.abs(np.asarray(moved - logits)[1:]).max() > 1e-3
    active = np.asarray(cache.policy.active)[:, :S] & VISUAL
    assert active.sum(axis=1).tolist() == (marked & VISUAL).sum(axis=1).tolist()


@pytest.mark.slow
def test_never_renewed_it_is_its_host(decoder):
    embeds = 3 * np.random.default_rng(0).normal(size=(2, S, CONFIG.width)).astype(np.float32)
    host = read_and_decode(decoder, embeds, create(*FastV().inner(0.4)))[0]
    for serve in ("bank", "fill"):
        ours = read_and_decode(decoder, embeds, create(*DSTP(serve=serve, shift=NEVER).inner(0.4)))[0]
        np.testing.assert_allclose(ours, host, atol=3e-5)
    always = read_and_decode(decoder, embeds, create(*DSTP(serve="recompute", shift=-3.0).inner(0.4)))[0]
    mask = FastV(reselect="recompute")
    np.testing.assert_array_equal(always, read_and_decode(decoder, embeds, create(*mask.inner(0.4)))[0])
    assert STEPS > 1


def test_costs_are_those_of_what_runs():
    """A bank is a prompt that nothing leaves; filled caches are as short as the host's."""

    def lengths(reducer):
        return [part.tokens for part in flops_model.segments(reducer.inner(0.25), 28, tokens=120, visual=100)]

    assert lengths(DSTP()) == [120, 120]
    assert lengths(DSTP(serve="fill")) == [120, 45] == lengths(FastV())
    assert lengths(DSTP(host="divprune", serve="fill")) == [120, 120]
    assert lengths(FastV(reselect="bank")) == [120, 120]
    # A step that computes anew is a prompt of the layers behind the cut, one token longer each time.
    parts = [
        flops_model.segments(DSTP(serve=serve).inner(0.25), LAYERS, tokens=120, visual=100)
        for serve in ("bank", "recompute")
    ]
    bank, anew = (flops_model.decode(CONFIG, part, 3) for part in parts)
    more = 2 * 2 * CONFIG.layer_weights * (121 + 122 - 2)
    assert anew["matrices"] - bank["matrices"] == more
    wide = 4 * CONFIG.heads * CONFIG.head_dim
    assert anew["attention"] - bank["attention"] == 2 * wide * (121**2 + 122**2 - 121 - 122)
    assert anew["head"] == bank["head"]


def test_hosts_that_cannot_be_renewed_are_refused():
    checks.refused(lambda: DSTP(host="tome"), "choice of ToMe, which merges tokens")
    for host in ("dart", "pyramiddrop", "swiftvlm", "inner_random"):
        checks.refused(lambda host=host: DSTP(host=host), "inside the language model: it wants one cut")
    checks.refused(lambda: DSTP(host="fastvv"), "DSTP's host: .*fastv")
    checks.refused(lambda: reducers.get("dstp", shift="x"), "shift")


def test_it_is_marked_wherever_it_is_named():
    assert reducers.info("dstp").label == "DSTP-like (reconstruction)"
    assert title("dstp(host=divprune)") == "DSTP-like (reconstruction) (host=divprune)"
    assert reducers.expression(DSTP(host="divprune")) == "dstp(host=divprune)"
