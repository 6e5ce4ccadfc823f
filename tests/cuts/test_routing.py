"""Routed layers: what runs, what passes by, what is cached, and which rules may stand beside each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from helpers.decoders import BLOCK, CONFIG, LAYERS, STEPS, TOKENS, VALID, VISUAL, S, top

from jvidprune.cuts.inner import Inner
from jvidprune.cuts.routers import AnyNumber, GammaThreshold, RandomRoute, RouterTopK, UniformRoute, read_norm
from jvidprune.cuts.routing import Routed, RouteRule
from jvidprune.cuts.rules import DynamicDecode, LastQueryTopK, RandomDraw, TextInBlocks
from jvidprune.models.prefill import read_prompt
from jvidprune.tokens import InnerStage, Kept
from jvidprune.weights import Weights

HALF = Kept(0.5, "floor")
ROW = 0
"""The row that single prompts are taken from; it fills its slots."""


def weights(layer=1, scale=0.3, rows=()):
    rng = np.random.default_rng(layer)
    shape = (*rows, CONFIG.width)
    return Weights.of({"weight": (scale * rng.normal(size=shape)).astype("f4"), "bias": np.float32(0.1)})


def routed(layer, rule=None, kept=HALF, **options):
    return InnerStage(layer, RouterTopK() if rule is None else rule, kept, weights=weights(layer), **options)


FRAMES = RouterTopK("softmax_2_0.5", by_frame=True, scale_skipped=True)
CASES = {
    "frames": (
        routed(1, FRAMES),
        routed(2, UniformRoute(by_frame=True)),
        routed(3, RouterTopK(), positions="renumber"),
    ),
    "behind cuts": (
        routed(0),
        InnerStage(1, RandomDraw(), Kept(0.6)),
        routed(1, RandomRoute(), seed=4),
        InnerStage(3, RandomDraw(), Kept(0.4), "renumber"),
        routed(3),
    ),
}


def stages(*made, compact=True, visual=VISUAL, valid=VALID, block=BLOCK):
    return Inner.create(made, visual, valid, layers=LAYERS, compact=compact, block=block)


@functools.partial(jax.jit, static_argnames="steps")
def read_on(decoder, embeds, inner, valid, steps=STEPS):
    """Logits of the prompt's end and of three steps, the cache, and all that was read."""
    batch, length = valid.shape
    cache = decoder.empty_cache(batch, inner.capacities(length, steps), inner.boundaries)
    slots = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    read = read_prompt(decoder, embeds, slots, valid, cache, inner=inner)

    def step(cache, tokens):
        logits, cache = decoder.decode(tokens, cache)
        return cache, logits

    cache, logits = jax.lax.scan(step, read.cache, jnp.asarray(TOKENS)[:steps, :batch])
    return jnp.concatenate([read.logits[None], logits]), cache, read


@jax.jit
def read_only(decoder, embeds, inner, valid, levels=None):
    """What was read of two prompts."""
    cache = decoder.empty_cache(len(valid), inner.capacities(valid.shape[1], 0), inner.boundaries)
    where = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    return read_prompt(decoder, embeds, where, valid, cache, inner=inner, deepstack=levels)


@pytest.mark.parametrize(("name", "pad"), [("frames", (5, 0)), ("behind cuts", (0, 3))])
@pytest.mark.slow
def test_hiding_equals_gathering_and_padding_changes_nothing(decoder, embeds, plain, name, pad):
    logits, short, read = read_on(decoder, embeds, stages(*CASES[name]), VALID)
    hidden, long, marks = read_on(decoder, embeds, stages(*CASES[name], compact=False), VALID)
    np.testing.assert_allclose(logits, hidden, atol=3e-5)
    assert np.abs(np.asarray(logits) - plain).max() > 1e-2
    for one, other in zip(read.routes, marks.routes, strict=True):
        for row in range(2):
            ran = [set(np.asarray(each.source)[row][np.asarray(each.runs)[row]].tolist()) for each in (one, other)]
            assert ran[0] == ran[1]
    held = [[part.valid.sum(axis=1).tolist() for part in cache.segments] for cache in (short, long)]
    assert held[0] == held[1]
    assert read.fits
    fill = ((0, 0), pad)
    valid, visual, block = (np.pad(part[:1], fill) for part in (VALID, VISUAL, BLOCK))
    inner = stages(*CASES[name], visual=visual, valid=valid, block=block)
    alone = read_on(decoder, np.pad(np.asarray(embeds[:1]), (*fill, (0, 0))), inner, valid)[0]
    np.testing.assert_allclose(alone, logits[:, :1], atol=3e-5)


@pytest.fixture(scope="module")
def two_layers(decoder, embeds):
    """Logits, cache and what was read where layers 1 and 3 are routed for every frame."""
    return read_on(decoder, embeds, stages(*(routed(layer, RouterTopK(by_frame=True)) for layer in (1, 3))), VALID)


def test_no_token_leaves_and_routed_layers_cache_what_ran(two_layers):
    _, cache, read = two_layers
    assert [(part.start, part.stop) for part in cache.segments] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    text = (VALID & ~VISUAL).sum(axis=1)
    half = [sum(n // 2 for n in np.bincount(BLOCK[row][VISUAL[row]])) for row in range(2)]
    whole, ran = VALID.sum(axis=1) + STEPS, text + half + STEPS
    assert [part.valid.sum(axis=1).tolist() for part in cache.segments] == [list(n) for n in (whole, ran, whole, ran)]
    # The longest prompt's own length, no slot more.
    assert [part.capacity for part in cache.segments] == [S + STEPS, ran.max(), S + STEPS, ran.max()]
    for record in read.routes:
        assert (np.asarray(record.runs) >= (VALID & ~VISUAL)).all()
        by = VALID & ~np.asarray(record.runs)
        np.testing.assert_array_equal(np.asarray(record.leaving)[by], np.asarray(record.entering)[by])


def test_a_layer_is_the_plain_layer_on_the_tokens_that_run(decoder, embeds):
    """The gate stands before the MLP branch alone; attention is among those that run, at their own positions."""
    stage = routed(2, RouterTopK("tanh_0.7_1", scale_skipped=True))
    (record,) = read_only(decoder, embeds, stages(stage), VALID).routes
    x, gate = np.asarray(record.entering)[ROW], 1.0
    held, used = stage.weights.arrays, VISUAL[ROW]
    gate = 0.7 * np.tanh(x.astype(np.float64) @ held["weight"] + held["bias"]) + 1
    there = np.flatnonzero(used)
    best = there[np.argsort(-gate[there], kind="stable")[: len(there) // 2]]
    runs = np.sort(np.concatenate([np.flatnonzero(~used), best]))
    assert np.flatnonzero(record.runs[ROW]).tolist() == runs.tolist()

    @jax.jit
    def plain_layer(x):
        step = decoder.step(runs[None], jnp.ones((1, len(runs)), bool))
        return decoder.mix(x, step, 2)[0][0], decoder.run(x, step, 2, 3)[0][0]

    between, whole = map(np.asarray, plain_layer(x[runs][None]))
    expected = np.where(used, gate, 1.0)[:, None] * x
    factor = np.where(used[runs], gate[runs], 1.0)[:, None]
    expected[runs] = between + factor * (whole - between)
    np.testing.assert_allclose(np.asarray(record.leaving)[ROW], expected, atol=2e-5)


def slots():
    return np.broadcast_to(np.arange(S), (2, S))


def test_running_all_without_a_router_is_the_plain_model(decoder, embeds, plain):
    rules = (RouterTopK(scale_skipped=True), RandomRoute(), UniformRoute(by_frame=True))
    made = [InnerStage(layer, rule, Kept(1.0)) for layer, rule in zip((0, 2, 3), rules, strict=True)]
    np.testing.assert_allclose(read_on(decoder, embeds, stages(*made), VALID)[0], plain, atol=1e-5)


def test_every_frame_runs_its_own_number(decoder, embeds):
    """Frames of 2 to 6 tokens: 0.4 of each, rounded, and their places in the frame where they are spread evenly."""
    rules = (RouterTopK(by_frame=True), UniformRoute(by_frame=True), RandomRoute(by_frame=True))
    made = [routed(layer, rule, Kept(0.4, "round")) for layer, rule in zip((0, 2, 3), rules, strict=True)]
    for rule, record in zip(rules, read_only(decoder, embeds, stages(*made), VALID).routes, strict=True):
        for row in range(2):
            for frame in np.unique(BLOCK[row][VISUAL[row]]):
                there = np.flatnonzero(VISUAL[row] & (BLOCK[row] == frame))
                ran = np.asarray(record.runs)[row][there]
                n, k = len(there), round(0.4 * len(there))
                assert ran.sum() == k
                if isinstance(rule, UniformRoute):
                    assert np.flatnonzero(ran).tolist() == [i for i in range(n) if (i + 1) * k // n > i * k // n]


def test_cutting_a_stream_behind_a_frame_changes_nothing_before(decoder, embeds, two_layers):
    """A frame's choice needs no later token: the states of three frames are those of the whole video's first three."""
    made = [routed(layer, RouterTopK(by_frame=True)) for layer in (1, 3)]
    read = two_layers[2]
    end = 18
    assert BLOCK[ROW, end - 1] != BLOCK[ROW, end]
    valid, visual, block = (part[:1, :end] for part in (VALID, VISUAL, BLOCK))
    shorter = read_only(decoder, embeds[:1, :end], stages(*made, visual=visual, valid=valid, block=block), valid)
    np.testing.assert_allclose(shorter.hidden[0], read.hidden[ROW, :end], atol=2e-5)


def test_permuting_the_tokens_of_a_frame_permutes_the_choice(decoder, embeds):
    """In the first layer, where states are the embeddings."""
    order = np.arange(S)
    frame = np.flatnonzero(VISUAL[ROW] & (BLOCK[ROW] == 2))
    order[frame] = np.random.default_rng(0).permutation(frame)
    inner = stages(routed(0, RouterTopK(by_frame=True)))
    first, second = (
        np.asarray(inner.routes[0].choose(inner.start(x, slots(), VALID))[0])[ROW] for x in (embeds, embeds[:, order])
    )
    assert second.tolist() == first[order].tolist()
    assert second.tolist() != first.tolist()


def test_one_compile_for_all_shares_and_weights(decoder, embeds):
    read_only.clear_cache()
    found = [
        read_only(decoder, embeds, stages(routed(1, kept=Kept(share)), routed(3), compact=False), VALID).logits
        for share in (0.2, 0.5, 0.9)
    ]
    other = dataclasses.replace(routed(1), weights=weights(7))
    read_only(decoder, embeds, stages(other, routed(3), compact=False), VALID)
    assert read_only._cache_size() == 1
    assert np.abs(np.asarray(found[0]) - np.asarray(found[2])).max() > 1e-3


def test_with_none_visual_states_pass_and_levels_are_added_to_all_tokens(decoder, embeds):
    levels = 0.5 * jax.random.normal(jax.random.key(4), (2, 2, S, CONFIG.width))
    made = stages(routed(1, kept=Kept(0.0)), routed(2))
    first, second = read_only(decoder, embeds, made, VALID, levels).routes
    assert not (np.asarray(first.runs) & VISUAL).any()
    np.testing.assert_array_equal(np.asarray(first.leaving)[VISUAL], np.asarray(first.entering)[VISUAL])
    assert np.abs(np.asarray(first.leaving) - np.asarray(first.entering))[VALID & ~VISUAL].max() > 1e-2
    expected = np.asarray(first.leaving + levels[1])
    np.testing.assert_allclose(np.asarray(second.entering)[VALID], expected[VALID], atol=1e-6)


def test_routers_learn_through_their_gates(decoder, embeds):
    """The derivative along a direction is that of the loss; the choice itself has none."""
    inner = stages(routed(1), routed(2, RouterTopK(scale_skipped=True)))
    weigh = np.random.default_rng(1).normal(size=(2, CONFIG.vocab))

    def loss(held, base):
        routes = zip(inner.routes, held, strict=True)
        found = (dataclasses.replace(route, weights=route.weights | {"weight": w}) for route, w in routes)
        made = dataclasses.replace(inner, routes=tuple(found))
        with jax.default_matmul_precision("highest"):
            logits = read_only(decoder, embeds, made, VALID).logits
        return jnp.sum(weigh * (logits - base)), logits

    # Differences from the logits at the start, over steps that float32 resolves: a tenth as long they are 3 % off.
    loss = jax.jit(jax.value_and_grad(loss, has_aux=True))
    held = [jnp.asarray(route.weights["weight"]) for route in inner.routes]
    (_, base), slopes = loss(held, jnp.zeros((2, CONFIG.vocab)))
    for at, slope in enumerate(slopes):
        along = slope / jnp.linalg.norm(slope)
        there, back = ([w + sign * 1e-2 * along * (i == at) for i, w in enumerate(held)] for sign in (1, -1))
        numeric = float(loss(there, base)[0][0] - loss(back, base)[0][0]) / 2e-2
        assert float(jnp.linalg.norm(slope)) == pytest.approx(numeric, rel=2e-2)
        assert numeric > 1e-2


@dataclasses.dataclass(frozen=True)
class EverySecond(RouteRule):
    """A rule of one's own, without counts of its own."""

    def choose(self, inputs, state):
        return Routed(~state.visual | (state.source % 2 == 0), state.source.astype(jnp.float32))


def test_a_rule_of_one_s_own_routes(decoder, embeds):
    inner = stages(InnerStage(2, EverySecond(), Kept(0.5)))
    read = read_only(decoder, embeds, inner, VALID)
    assert (np.asarray(read.routes[0].runs) == (VALID & (~VISUAL | (slots() % 2 == 0)))).all()
    assert read.fits
    # What it counts too low is seen, not lost silently.
    assert not read_only(decoder, embeds, stages(InnerStage(2, EverySecond(), Kept(0.2))), VALID).fits


def test_generated_tokens_pass_by_where_the_rule_says_so(decoder, embeds):
    """One that does leaves no key and is that of a model without the layer; one that runs counts on in the layer."""
    held = weights(2, 0.3, (2,))
    stage = InnerStage(1, GammaThreshold(0.3, 0.5), AnyNumber(), "renumber", weights=held)
    logits, cache, read = read_on(decoder, embeds, stages(stage), VALID)
    (record,) = read.routes
    x = np.asarray(decoder.entering(record.entering, 1)) @ held.arrays["weight"].T
    p = 1 / (1 + np.exp(x[..., 0] - x[..., 1]))
    np.testing.assert_allclose(np.asarray(record.gate), p, atol=1e-5)
    assert np.asarray(record.runs).tolist() == ((p > 0.3) & VALID).tolist()
    assert 0 < (np.asarray(record.runs) & VALID & ~VISUAL).sum() < (VALID & ~VISUAL).sum()

    @jax.jit
    def first(decoder, cache):
        x = decoder.embed_text(jnp.asarray(TOKENS[0]))[:, None]
        step = decoder.step(VALID.sum(axis=1)[:, None], jnp.ones((2, 1), bool))
        x, _ = decoder.run(x, step, 0, 1, past=cache.segments[0])
        normed = decoder.entering(x, 1)[:, 0]
        x, _ = decoder.run(x, step, 2, LAYERS, past=cache.segments[2])
        return normed, decoder.logits(x[:, 0]), decoder.logits(decoder.look_ahead(TOKENS[:1].T, cache)[:, 0])

    normed, without, ahead = map(np.asarray, first(decoder, read.cache))
    score = normed @ held.arrays["weight"].T
    runs = score[:, 1] >= score[:, 0]
    assert sorted(runs.tolist()) == [False, True]
    np.testing.assert_allclose(np.asarray(logits)[1][~runs], without[~runs], atol=2e-5)
    assert np.abs(np.asarray(logits)[1] - without)[runs].max() > 1e-2
    np.testing.assert_allclose(ahead, logits[1], atol=2e-5)
    added = np.asarray(cache.segments[1].valid)[:, S:]
    assert added[:, 0].tolist() == runs.tolist()
    assert cache.segments[0].valid[:, S:].all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ((routed(1), routed(1, RandomRoute())), r"a layer is routed by one stage, but layers \[1, 1\] are named"),
        ((routed(1, where="middle"),), "RouterTopK routes a whole layer, so its stage cannot stand inside one"),
        ((routed(1, positions="renumber_prompt"),), "keeps the positions of its layer or counts them anew"),
        ((routed(1, RouterTopK(trims=True)),), "drops no token, so that there is nothing to trim"),
        ((routed(1), top(2)), "LastQueryTopK stands at or reads layer 1, which is routed"),
        ((routed(3), InnerStage(2, LastQueryTopK(trims=True), Kept(0.5))), "needs caches of equal slots in all layers"),
        ((routed(3), InnerStage(2, DynamicDecode(), Kept(0.5))), "a decoding stage stands alone"),
        (
            (routed(3, RouterTopK(by_frame=True)), InnerStage(2, TextInBlocks(), Kept(0.5, "floor"))),
            "rules that count in frames cannot stand together",
        ),
        (
            (routed(3, RouterTopK(by_frame=True), Kept(0.5, of="prompt")),),
            "counts in every frame, which cannot be counted from the whole prompt",
        ),
    ],
)
def test_stages_that_cannot_stand_together_are_refused(made, message):
    checks.refused(lambda: stages(*made), message)


def test_gates_and_routers_that_do_not_fit_are_refused(decoder, embeds):
    for wrong in ("relu", "tanh_1", "tanh_a_1", "tanh_0.2_1_3", ""):
        checks.refused(lambda wrong=wrong: read_norm(wrong), f"the gate of a router is tanh.*got '{wrong}'")
    checks.refused(lambda: RouterTopK("relu"), "the gate of a router is")
    narrow = Weights.of({"weight": np.zeros(7, "f4"), "bias": np.float32(0)})
    made = stages(InnerStage(1, RouterTopK(), HALF, weights=narrow))
    checks.refused(lambda: read_only(decoder, embeds, made, VALID), "for states of width 7, the model's have 24")


def test_without_routes_the_program_is_that_of_a_plain_prompt(decoder, embeds):
    def program(inner):
        return read_only.lower(decoder, embeds, inner, jnp.asarray(VALID)).as_text()

    behind = stages(InnerStage(LAYERS, RouterTopK(), HALF))
    assert behind.routes == ()
    assert program(behind) == program(stages())
