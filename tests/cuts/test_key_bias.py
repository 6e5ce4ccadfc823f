"""A bias on keys, and arrays of a cut's own beside the model: nothing, pruning, and all that lies between."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers import reducer_checks as checks
from helpers.decoders import LAYERS, STEPS, VALID, VISUAL, S, create, read_and_decode

from jvidprune.cuts.decoding import Renewal
from jvidprune.cuts.protocol import Chosen, CutRule
from jvidprune.cuts.routers import UniformRoute
from jvidprune.cuts.rules import RandomDraw, Told, random_scores
from jvidprune.models.attention import Keys, Past, attend
from jvidprune.ops.select import keep_top
from jvidprune.tokens import InnerStage, Kept
from jvidprune.weights import Weights


def weights(value):
    return Weights.of({"bias": np.asarray(value, "f4")})


@dataclasses.dataclass(frozen=True)
class Weighed(CutRule):
    """Nothing goes; keys of all visual tokens but those of a draw get a bias that the stage's weights name."""

    def choose(self, inputs, state):
        score = random_scores(inputs.seed, state.source)
        stays = keep_top(score, state.visual, inputs.kept)
        return Chosen(state.hidden, state.valid, score, bias=jnp.where(stays, 0.0, inputs.weights["bias"]))


def weighed(value, layer=2, keep=0.3, rule=None, **options):
    return InnerStage(layer, rule or Weighed(), Told(keep), weights=weights(value), **options)


def test_no_bias_is_the_model_itself_and_a_low_one_is_pruning(decoder, embeds, plain):
    nothing, cache, _ = read_and_decode(decoder, embeds, create(weighed(0.0)))
    np.testing.assert_allclose(nothing, plain, atol=1e-5)
    assert all(part.valid.sum() == VALID.sum() + 2 * STEPS for part in cache.segments)
    low, cache, _ = read_and_decode(decoder, embeds, create(weighed(-60.0)))
    pruned, *_ = read_and_decode(decoder, embeds, create(InnerStage(2, RandomDraw(), Kept(0.3))))
    np.testing.assert_allclose(low, pruned, atol=2e-5)
    assert np.abs(np.asarray(low) - plain).max() > 1e-2
    # What is held of the prompt goes on to count in the answer; what is written then has no bias.
    bias = np.asarray(cache.segments[-1].bias)
    assert set(np.unique(bias)) == {-60.0, 0.0}
    assert not bias[:, S:].any()
    assert ((bias[:, :S] < 0) <= VISUAL).all()


def test_a_bias_holds_until_another_one_is_given(decoder, embeds, plain):
    """Layer 2 alone: neither the unpruned model nor the one in which layer 3 has it too."""
    one = create(weighed(-60.0, 2), weighed(0.0, 3))
    logits, cache, _ = read_and_decode(decoder, embeds, one)
    assert [None if part.bias is None else bool((part.bias < 0).any()) for part in cache.segments] == [
        None,
        True,
        False,
    ]
    both, *_ = read_and_decode(decoder, embeds, create(weighed(-60.0, 2), weighed(-60.0, 3)))
    np.testing.assert_allclose(both, read_and_decode(decoder, embeds, create(weighed(-60.0, 2)))[0], atol=2e-5)
    assert np.abs(np.asarray(logits) - np.asarray(both)).max() > 1e-3
    assert np.abs(np.asarray(logits) - plain).max() > 1e-3


def test_it_goes_with_its_tokens_through_cuts_and_routed_layers(decoder, embeds):
    stages = (
        weighed(-1.5, 0),
        InnerStage(1, RandomDraw(), Kept(0.6), seed=3),
        InnerStage(2, UniformRoute(), Kept(0.5)),
    )
    short, cache, _ = read_and_decode(decoder, embeds, create(*stages))
    long, *_ = read_and_decode(decoder, embeds, create(*stages, compact=False))
    np.testing.assert_allclose(short, long, atol=3e-5)
    assert [part.bias.shape[1] for part in cache.segments] == [part.capacity for part in cache.segments]
    unbiased, *_ = read_and_decode(decoder, embeds, create(weighed(0.0, 0), *stages[1:]))
    assert np.abs(np.asarray(short) - np.asarray(unbiased)).max() > 1e-3


def test_a_bias_and_its_weights_have_gradients(decoder, embeds):
    inner = create(weighed(-1.0))

    def logit(value):
        cut = dataclasses.replace(inner.cuts[0], weights={"bias": value})
        return read_and_decode(decoder, embeds, dataclasses.replace(inner, cuts=(cut,)))[0][:, 0, 7].sum()

    value, slope = jnp.float32(-1.0), jax.jit(jax.grad(logit))
    step = 1e-2
    measured = (logit(value + step) - logit(value - step)) / (2 * step)
    np.testing.assert_allclose(slope(value), measured, rtol=2e-2)
    assert abs(float(measured)) > 1e-4


def test_scores_get_it_by_hand_and_no_fused_kernel_is_asked():
    """Past keys without one beside fresh keys with one, against a softmax in numpy; two heads share a key head."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype("f4")

    q, bias = draw(2, 5, 4, 8), draw(2, 5)
    k, v = (draw(2, 5, 2, 8) for _ in "kv")
    old_k, old_v = (draw(2, 3, 2, 8) for _ in "kv")
    valid: Any = np.ones((2, 5), bool)
    old: Any = np.ones((2, 3), bool)
    found = attend(jnp.asarray(q), Keys(k, v, valid, True, bias=jnp.asarray(bias)), Past(old_k, old_v, old), kind="xla")
    keys, values = np.concatenate([old_k, k], 1).repeat(2, 2), np.concatenate([old_v, v], 1).repeat(2, 2)
    scores = np.einsum("bqhd,bshd->bhqs", q, keys) / np.sqrt(8) + np.pad(bias, ((0, 0), (3, 0)))[:, None, None]
    scores = np.where(np.arange(8) <= np.arange(5)[:, None] + 3, scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum("bhqs,bshd->bqhd", shares, values), atol=1e-5)
    fresh = Keys(k, v, valid, True, bias=jnp.asarray(bias))
    one, other = (attend(jnp.asarray(q), fresh, kind=kind) for kind in ("xla", "plain"))
    np.testing.assert_array_equal(one, other)
    assert np.abs(np.asarray(one - attend(jnp.asarray(q), Keys(k, v, valid, True)))).max() > 1e-3


def test_a_choice_that_is_renewed_has_none(decoder, embeds):
    @dataclasses.dataclass(frozen=True)
    class Renewed(Weighed):
        probe = "last"
        renewable = True

    stage = weighed(-1.0, 2, rule=Renewed(renewal=Renewal(mode="bank")))
    inner = create(stage)
    checks.refused(lambda: read_and_decode(decoder, embeds, inner), "Renewed gives keys a bias.*cannot be renewed")


def test_without_a_bias_nothing_is_computed_of_it(decoder, embeds):
    """The program of a cut does not know of biases; one that has them does."""

    def program(stage):
        inner = create(stage)
        return str(jax.make_jaxpr(lambda x: read_and_decode(decoder, x, inner)[0])(embeds))

    plainly = program(InnerStage(LAYERS - 1, RandomDraw(), Kept(0.3)))
    biased = program(weighed(-1.0, LAYERS - 1, keep=0.3))
    assert biased.count("add") > plainly.count("add")
