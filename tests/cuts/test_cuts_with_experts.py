"""Cuts in a decoder whose layers have experts: against masking, against a routed layer by hand, and while decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.decoders import CONFIG, LAYERS, SLOTS, VALID, VISUAL, S, create, read_and_decode, top

from jvidprune.cuts.rules import TextInBlocks
from jvidprune.models.decoder import Decoder
from jvidprune.tokens import InnerStage, Kept

EXPERTS = dataclasses.replace(CONFIG, mlp=2 * 12, experts=5, active=2, qk_norm=True, qkv_bias=False)


@pytest.fixture(scope="module")
def decoder():
    return Decoder(EXPERTS, dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def embeds():
    return jax.random.normal(jax.random.key(1), (2, S, EXPERTS.width))


@pytest.mark.parametrize(
    "stages",
    [(top(1, 0.6), top(3, 0.3)), (InnerStage(2, TextInBlocks(trims=True), Kept(0.4, "floor")),)],
    ids=["attention twice", "text"],
)
@pytest.mark.slow
def test_masking_equals_compaction(decoder, embeds, stages):
    """Behind a cut a token passes no expert; those that stay pass the same ones, in the prompt and while decoding."""
    compacted, short, cuts = read_and_decode(decoder, embeds, create(*stages))
    masked, long, marks = read_and_decode(decoder, embeds, create(*stages, compact=False))
    plain, *_ = read_and_decode(decoder, embeds, create(top(LAYERS, 0.1)))
    np.testing.assert_allclose(compacted, masked, atol=2e-5)
    assert np.abs(np.asarray(compacted) - plain).max() > 1e-2
    assert short.segments[-1].capacity < long.segments[-1].capacity
    first = np.asarray(cuts[0].survivors)
    assert (first == np.asarray(marks[0].survivors)).all()
    assert first[VALID & ~VISUAL].all()


def test_the_mlp_of_a_layer_is_that_of_each_tokens_experts(decoder, embeds):
    """One layer's MLP by itself, gated as routed layers (`mod`) gate it, against a loop over tokens."""
    x = embeds[:1]
    gate = jnp.asarray(np.where(SLOTS % 3 == 0, 0.0, 0.5), jnp.float32)[None]
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda x, gate: decoder.feed(x, 2, gate))(x, gate)
    layer = decoder._layer(2)
    scale = np.asarray(layer.norm2.scale[...], np.float64)
    router, gate_up, down = (
        np.asarray(part[...], np.float64) for part in (layer.mlp.router.kernel, layer.mlp.gate_up, layer.mlp.down)
    )
    rows = np.asarray(x[0], np.float64)
    expected = rows.copy()
    for token, row in enumerate(rows):
        entering = row / np.sqrt((row**2).mean() + EXPERTS.eps) * scale
        logits = entering @ router
        chosen = np.argsort(-logits, kind="stable")[:2]
        share = np.exp(logits[chosen] - logits[chosen].max())
        for weight, expert in zip(share / share.sum(), chosen, strict=True):
            one, other = np.split(entering @ gate_up[expert], 2)
            expected[token] += float(gate[0, token]) * weight * ((one / (1 + np.exp(-one)) * other) @ down[expert])
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
