"""SwiftVLM, a reconstruction: counts, the choice of layers, its rule by hand, and what its specification demands."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import reducer_checks as checks
from helpers.decoders import CONFIG, LAYERS, STEPS, S, create, read_and_decode

from jvidprune import reducers
from jvidprune.costs import flops_model
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.protocol import CutInputs, TokenState
from jvidprune.cuts.swiftvlm import Bypass, BypassCount, group_low
from jvidprune.models.decoder import Decoder
from jvidprune.models.prefill import read_prompt
from jvidprune.reducers.pyramiddrop import PyramidDrop
from jvidprune.reducers.swiftvlm import SwiftVLM, chosen_layers
from jvidprune.tokens import Layout

START, COUNT = 4, 20
SLOTS = np.arange(S)
VISUAL = (SLOTS >= START) & (SLOTS < START + COUNT)
ONES = np.ones((1, S), bool)
STEPS_AND_TEXT = STEPS + S - COUNT


@pytest.fixture(scope="module")
def decoder():
    return Decoder(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def embeds():
    return 3 * jax.random.normal(jax.random.key(1), (2, S, CONFIG.width))


def test_the_count_of_the_paper_s_budget():
    """192 of 576 on average with 18 merged tokens: 159 at each cut of LLaVA-1.5-7B."""
    stages = SwiftVLM().inner(192 / 576)
    assert [stage.layer for stage in stages] == [2, 10, 14]
    assert [stage.kept.count(576) for stage in stages] == [159] * 3
    assert [stage.kept.left(576) for stage in stages] == [177, 177, 159]


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("groups", [None, 7])
def test_the_mean_over_layers_is_the_ratio(place, groups):
    for depth, total, ratio in itertools.product((24, 28, 36), (50, 576, 6272), (0.25, 0.5, 0.9, 0.99, 1.0)):
        reducer = SwiftVLM(depth=depth, place=place, groups=groups)
        parts = flops_model.segments(reducer.inner(ratio), depth, tokens=total + 9, visual=total)
        mean = sum((part.stop - part.start) * part.visual for part in parts) / depth
        # Half a token at each layer behind the first cut is what rounding can do.
        assert mean == pytest.approx(ratio * total, abs=0.5)
        assert all(part.keys_ahead == (total + 9) * (place == "before") for part in parts[1:])
    assert [stage.kept.count(total) for stage in SwiftVLM().inner(1.0)] == [total] * 3


def test_layers_in_proportion_to_the_depth():
    def places(*args, **settings):
        made = reducers.get("swiftvlm", *args, **settings)
        assert isinstance(made, SwiftVLM)
        return [stage.layer for stage in made.inner(0.9)]

    assert places("llava_video", 28) == [2, 9, 12]
    assert places("qwen3_vl", 36) == [2, 11, 16]
    assert places(None, 28, depth=32) == [2, 10, 14]
    assert places(None, None, cut_layers=(3, 40), depth=32) == [3]
    assert places(None, None, place="after") == [3, 10, 11, 14, 15]


def test_layers_of_a_profile_are_the_best_of_all():
    rng = np.random.default_rng(0)
    for depth, cuts in itertools.product((6, 9, 12), (1, 2, 3)):
        profile = np.sort(rng.random(depth)) if depth == 6 else rng.random(depth) + np.arange(depth) / 20
        values = {}
        for layers in itertools.combinations(range(2, depth), cuts):
            x = profile[list(layers)]
            if (np.diff(x) > 0).all():
                values[layers] = float(x @ np.diff([*layers, depth - 1]))
        assert values[chosen_layers(profile, cuts)] == pytest.approx(max(values.values()))
    assert chosen_layers([9, 9, 0.5, 0.4, 0.4, 0.7, 0.9, 0.2], 2) == (2, 5)
    checks.refused(lambda: chosen_layers(np.arange(9)[::-1], 2), "no 2 layers behind the second of 9")
    checks.refused(lambda: chosen_layers([0, 0, np.nan, 1]), "one finite number for each layer")


def by_hand(decoder, x, kept, groups):
    """The prompt as lists of tokens: the logits of its end, and how many visual tokens each stretch read."""
    x, places, lengths, aside = np.asarray(x)[None], SLOTS, [], None
    cuts = (1, 2, 3)

    def run(x, places, start, stop, **options):
        ones = jnp.ones(x.shape[:2], bool)
        return decoder.run(jnp.asarray(x), decoder.step(jnp.asarray(places)[None], ones), start, stop, **options)

    x, _ = run(x, places, 0, 1)
    for number, layer in enumerate(cuts):
        x = np.asarray(x)
        if aside is not None:
            states, members, then = aside
            full = np.zeros((1, S, CONFIG.width), np.float32)
            full[:, places] = x
            for (seed, group), before in zip(members.items(), then, strict=True):
                change = x[0, places.tolist().index(seed)] - before
                for token in group:
                    full[0, token] = states[token] + change
            x, places = full, SLOTS
        _, out = run(x, places, layer, layer + 1, rows=jnp.full((1, 1), S - 1))
        score = np.asarray(out.attention)[0, 0, :, 0].mean(axis=0)
        order = sorted(np.flatnonzero(VISUAL).tolist(), key=lambda s: (-score[s], s))
        stay = set(order[: kept[number]]) | set(np.flatnonzero(~VISUAL).tolist())
        if number < len(cuts) - 1:
            low = sorted(set(order[kept[number] :]))
            seeds = [low[(2 * j + 1) * len(low) // (2 * groups)] for j in range(groups)]
            unit = x[0] / np.linalg.norm(x[0], axis=1, keepdims=True)
            members = {seed: [] for seed in seeds}
            for token in low:
                members[token if token in seeds else max(seeds, key=lambda s: unit[token] @ unit[s])].append(token)
            then = [x[0, group].mean(axis=0) for group in members.values()]
            aside = x[0].copy(), members, then
            x = x.copy()
            x[0, seeds] = then
            stay |= set(seeds)
        places = np.asarray(sorted(stay))
        lengths.append(len(places) - (~VISUAL).sum())
        x, _ = run(x[:, places], places, layer, cuts[number + 1] if number < 2 else LAYERS)
    return decoder.logits(x[0, -1]), lengths


@pytest.mark.slow
def test_tokens_as_lists(decoder, embeds):
    reducer = SwiftVLM(cut_layers=(1, 2, 3), numbers=(5, 7, 4), groups=3, depth=LAYERS)
    logits, cache, _ = read_and_decode(decoder, embeds, create(*reducer.inner(0.5)))
    expected, lengths = by_hand(decoder, embeds[0], (5, 7, 4), 3)
    np.testing.assert_allclose(logits[0, 0], expected, atol=3e-5)
    assert lengths == [8, 10, 4]
    assert [part.capacity - STEPS_AND_TEXT for part in cache.segments] == [COUNT, *lengths]


@pytest.mark.slow
def test_a_group_for_each_token_is_one_cut_at_the_last_layer(decoder, embeds):
    """Restored states are then the unpruned ones."""
    alone = SwiftVLM(cut_layers=(1, 2, 3), numbers=(5, 7, 6), groups=COUNT, depth=LAYERS)
    once = PyramidDrop(cut_layers=(3,), shares=(0.3,), depth=LAYERS, cut_positions="keep")
    one, other = (read_and_decode(decoder, embeds[:, :], create(*method.inner(0.5))) for method in (alone, once))
    # The second prompt has 17 visual tokens, of which PyramidDrop keeps int(5.1).
    np.testing.assert_allclose(one[0][0, 0], other[0][0, 0], atol=3e-5)
    assert one[2][-1].survivors[0].tolist() == other[2][-1].survivors[0].tolist()
    # Decoding reads the caches of layers that bypassed tokens never ran, and so differs.
    assert np.abs(np.asarray(one[0][1:, 0] - other[0][1:, 0])).max() < 1


def state_of(hidden, side=None):
    ones, size = jnp.ones(len(hidden), bool), len(hidden)
    visual = jnp.arange(size) < size - 1
    none = jnp.zeros(size, jnp.int32)
    return TokenState(jnp.asarray(hidden), jnp.arange(size), ones, visual, jnp.arange(size), ~ones, none, side)


def chosen(rule, state, kept):
    size = len(state.hidden)
    attention = jnp.linspace(1, 0, size)[None, None]
    return rule.choose(CutInputs(jnp.int32(kept), jnp.zeros(1), jnp.int32(0), attention), state)


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_group_s_mean_comes_back_as_its_token_is_now(rounds):
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(40, 6)).astype(np.float32)
    rule = Bypass(groups=4, rounds=rounds)
    out = chosen(rule, state_of(hidden), 9)
    group, seeds = np.asarray(out.side["group"]), np.asarray(out.side["seeds"])
    assert (group[9:39] < 4).all()
    assert (group[[*range(9), 39]] == 4).all()
    assert int(out.survivors.sum()) == 9 + 1 + 4
    later = rng.normal(size=(40, 6)).astype(np.float32)
    back = rule.restore(state_of(later, out.side)._replace(valid=out.survivors))
    assert back.valid.all()
    for number, seed in enumerate(seeds):
        members = np.flatnonzero(group == number)
        assert seed in members
        np.testing.assert_allclose(out.hidden[seed], hidden[members].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(back.hidden[members].mean(axis=0), later[seed], atol=1e-5)
    np.testing.assert_array_equal(back.hidden[:9], later[:9])
    # Names of groups mean nothing.
    order = np.array([2, 0, 3, 1])
    renamed = {"group": np.append(np.argsort(order), 4)[group].astype(np.int32), "bypassed": out.side["bypassed"]}
    renamed |= {name: out.side[name][order] for name in ("merged", "seeds")}
    again = rule.restore(state_of(later, jax.tree.map(jnp.asarray, renamed))._replace(valid=out.survivors))
    np.testing.assert_array_equal(again.hidden, back.hidden)


def test_grouping_of_few_tokens_and_of_zeros():
    hidden = np.eye(6, dtype=np.float32)[[0, 0, 1, 1, 2, 2]]
    low = np.array([True, True, True, True, False, False])
    found = group_low(jnp.asarray(hidden), jnp.asarray(low), jnp.int32(2), most=3)
    # Numbers floor(0.5 * 2) and floor(1.5 * 2) of four.
    assert found.seeds[:2].tolist() == [1, 3]
    assert found.group.tolist() == [0, 0, 1, 1, 3, 3]
    nothing = group_low(jnp.asarray(hidden), jnp.zeros(6, bool), jnp.int32(0), most=3)
    assert (nothing.group == 3).all()
    assert not nothing.there.any()
    zeros = group_low(jnp.zeros((6, 6), jnp.bfloat16), jnp.asarray(low), jnp.int32(2), most=3)
    assert np.isfinite(zeros.mean).all()
    # A token that is like neither seed goes with the first.
    assert zeros.group.tolist() == [0, 0, 0, 1, 3, 3]


@pytest.mark.slow
def test_gradients_reach_all_tokens(decoder, embeds):
    reducer = SwiftVLM(cut_layers=(1, 2, 3), numbers=(5, 7, 4), groups=3, depth=LAYERS)
    inner = Inner.create(reducer.inner(0.5), VISUAL[None], ONES, layers=LAYERS)

    def end(x):
        cache = decoder.empty_cache(1, inner.capacities(S, 0), inner.boundaries)
        return read_prompt(decoder, x, SLOTS[None], ONES, cache, inner=inner).logits.sum()

    found = np.asarray(jax.jit(jax.grad(end))(embeds[:1]))
    assert np.isfinite(found).all()
    assert (np.abs(found).max(axis=-1) > 0).all()


def test_flops():
    """Of 6,272 tokens 196 are seeds; two of three cuts group."""
    reducer = SwiftVLM(depth=28)
    low = 6272 - reducer.inner(0.3)[0].kept.count(6272)
    terms = reducer.flops(Layout(32, (14, 14)), 3584, 0.3)
    assert sum(terms.values()) == 2 * (2 * low * 196 * 3584 + 3 * 2 * low * 3584)
    assert sum(SwiftVLM(depth=28, cut_layers=(2,)).flops(Layout(32, (14, 14)), 3584, 0.3).values()) == 0


def test_refusals():
    checks.refused(lambda: SwiftVLM(cut_layers=(3, 3)), "increase by at least 1, got \\(3, 3\\)")
    checks.refused(lambda: SwiftVLM(cut_layers=(3, 4), place="after"), "at least 2")
    checks.refused(lambda: SwiftVLM(numbers=(3, 4)), "one a cut, got 2 for layers 2, 10, 14")
    checks.refused(lambda: SwiftVLM(depth=28).inner(0.08), "layers 2, 9, 12 of 28 reads a mean share of 0.0826 alone")
    assert SwiftVLM(numbers=(3, 4, 5)).inner(0.01)[2].kept == BypassCount(
        0.01, number=5, whole=2, between=12, behind=18, final=True
    )
