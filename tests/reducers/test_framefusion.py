"""FrameFusion: its calls against a plain version in exact fractions, bounds, edges, places in a prompt, refusals."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks

from jvidprune import reducers
from jvidprune.costs import flops_model
from jvidprune.cuts.framefusion import CostBudget, Fuse, FuseEmbeddings, quarters, time_similarity
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.protocol import TokenState
from jvidprune.cuts.rules import TextInBlocks
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo, shared_places
from jvidprune.llm.prompt_cuts import prompt_inner
from jvidprune.llm.prompts.slots import SlotMap
from jvidprune.reducers.framefusion import FrameFusion
from jvidprune.reducers.run import reduce
from jvidprune.synthetic import synthetic_tokens
from jvidprune.tokens import InnerStage, Layout

FRAMES, PLACES, START, LENGTH = 7, 6, 3, 50
COUNT = FRAMES * PLACES
SLOTS = np.arange(LENGTH)
VISUAL = (SLOTS >= START) & (SLOTS < START + COUNT)
BLOCK = np.where(VISUAL, (SLOTS - START) % PLACES, 0)


def plain(calls, rows, cost, *, similarity, ratio, last):
    """Walks every place through time, in fractions: (survivors, states, flags) of each call.

    Args:
      calls: states of each call; tokens that are gone are not read.
      rows: attention of each call, (S,).
      last: the call that prunes whatever comes.
    """
    budget = Fraction(round(10**4 * 28 * cost), 10**4) * COUNT
    alive, listed, merged, pruned, out = VISUAL.copy(), [], False, False, []
    for number, (given, row) in enumerate(zip(calls, rows, strict=True)):
        x = given.astype(np.float64)
        n = int(alive.sum())
        q = min(max((budget - sum(listed)) / (28 - len(listed)), 0), n)
        if not pruned and (merged or number == last):
            keep = round(q)
            best = sorted(np.flatnonzero(alive), key=lambda s: (-row[s], s))[:keep]
            alive = np.isin(SLOTS, best)
            merged = pruned = True
        elif not merged:
            found = []
            for place in range(PLACES):
                chain = [s for s in np.flatnonzero(alive) if BLOCK[s] == place]
                for a, b in itertools.pairwise(chain):
                    found.append((x[a] @ x[b] / np.linalg.norm(x[a]) / np.linalg.norm(x[b]), b))
            alike = [b for cosine, b in found if cosine >= similarity]
            if len(alike) < n - q:
                gone = set(alike)
                listed.append(n - len(alike))
                merged = Fraction(len(alike), n) < Fraction(ratio).limit_denominator(10**4)
            else:
                gone = {b for _, b in sorted(found, key=lambda pair: -pair[0])[: int(n - q)]}
                merged = pruned = True
            for place in range(PLACES):
                run = []
                for s in [s for s in np.flatnonzero(alive) if BLOCK[s] == place] + [None]:
                    if s is None or s not in gone:
                        if len(run) > 1:
                            x[run[0]] = np.mean([given[r].astype(np.float64) for r in run], axis=0)
                        run = [] if s is None else [s]
                    else:
                        run.append(s)
            alive = alive & ~np.isin(SLOTS, list(gone))
        out.append((alive.copy(), x, (merged, pruned)))
    return out


def video(seed, calls, drift, shared):
    """States of each call, more alike from call to call by a shared direction, and attention rows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1, PLACES, 8)) + rng.normal(size=(FRAMES, PLACES, 8)) * drift
    whole = rng.normal(size=(LENGTH, 8))
    whole[VISUAL] = x.reshape(COUNT, 8)
    direction = rng.normal(size=8)
    states = [(whole + i * shared * direction).astype(np.float32) for i in range(calls)]
    return states, rng.random((calls, LENGTH)).astype(np.float32)


def cuts_of(reducer, cost, **options):
    ones = np.ones((1, LENGTH), bool)
    return Inner.create(reducer.inner(cost), VISUAL[None], ones, layers=30, block=BLOCK[None], **options)


@jax.jit
def apply(cut, state, rows):
    return cut.apply(state, rows)[:2]


def run(reducer, cost, calls, rows):
    """The same by the cuts, with the states of each call put in; everything stays in its slot."""
    inner = cuts_of(reducer, cost, compact=False)
    state = inner.start(jnp.asarray(calls[0])[None], jnp.asarray(SLOTS)[None], jnp.ones((1, LENGTH), bool))
    out = []
    for cut, given, row in zip(inner.cuts, calls, rows, strict=True):
        state = state._replace(hidden=jnp.asarray(given)[None])
        state, record = apply(cut, state, jnp.asarray(row)[None, None, None])
        found = {name: np.asarray(value)[0] for name, value in record.diagnostics.items()}
        out.append((np.asarray(state.visual)[0], np.asarray(state.hidden)[0], found))
    return out


CASES = list(itertools.product(range(6), (0.05, 0.3, 0.55, 1.0), ((0.4, 0.2), (0.8, 0.6), (1.5, 0.0))))


@pytest.mark.parametrize("merge_calls", [1, 3])
def test_calls_are_those_of_the_plain_version(merge_calls):
    kinds = set()
    reducer = FrameFusion(similarity=0.7, merge_calls=merge_calls)
    for seed, cost, (drift, shared) in CASES:
        states, rows = video(seed, merge_calls + 1, drift, shared)
        expected = plain(states, rows, cost, similarity=0.7, ratio=0.1, last=merge_calls)
        for (alive, x, flags), (kept, hidden, found) in zip(expected, run(reducer, cost, states, rows), strict=True):
            np.testing.assert_array_equal(kept, alive)
            np.testing.assert_allclose(hidden[alive], x[alive], atol=1e-5)
            assert (found["merging_closed"], found["pruning_closed"]) == flags
            kinds.add((flags, bool(found.get("forced", False))))
        assert expected[-1][0].sum() <= math.ceil(cost * COUNT)
    assert kinds >= {((False, False), False), ((True, False), False), ((True, True), False), ((True, True), True)}


def test_a_budget_in_quarters_compares_as_the_budget():
    for top, bottom in itertools.product(range(60), range(1, 14)):
        budget = Fraction(top, bottom)
        told = Fraction(quarters(budget), 4)
        for halves in range(-4, 130):
            half = Fraction(halves, 2)
            assert (told < half, told == half) == (budget < half, budget == half)
    kept = CostBudget(0.3)
    assert kept.table(100).tolist() == [quarters(Fraction(84, 10) * n) for n in range(101)]
    # A video of 64 frames of 196 tokens, with room in int32.
    assert CostBudget(1.0).table(12544)[-1] == 112 * 12544
    assert CostBudget(number=50).budget(200) == 28 * 50
    assert [CostBudget(0.3, final=final).left(20, 72) for final in (False, True)] == [20, 20]
    assert CostBudget(0.3, final=True).left(72, 72) == 22


def test_rounding_of_the_tokens_that_attention_keeps():
    """Halves go to the even number, and q is what the list leaves: one frame, so that nothing can merge."""
    ones = np.ones((1, 40), bool)
    for number, cost in itertools.product(range(1, 31), (0.1, 0.25, 0.5, 0.75)):
        visual = np.arange(40)[None] < number
        inner = Inner.create(
            FrameFusion(merge_calls=1).inner(cost), visual, ones, layers=3, compact=False, block=np.arange(40)[None]
        )
        state = inner.start(jnp.ones((1, 40, 4)), jnp.arange(40)[None], jnp.asarray(ones))
        state, _ = apply(inner.cuts[0], state, None)
        state, record = apply(inner.cuts[1], state, jnp.linspace(0, 1, 40)[None, None, None])
        # The first call leaves all in layer 0, one of 28.
        q = max(Fraction(round(280000 * cost) * number, 10**4) - number, 0) / 27
        assert int(state.visual.sum()) == round(q)
        assert not record.diagnostics["forced"][0]
        assert bool(record.diagnostics["overdrawn"][0]) == (28 * Fraction(cost) < 1)


def test_ties_merge_by_place_and_time():
    states, rows = [np.ones((LENGTH, 8), np.float32)] * 2, np.ones((2, LENGTH), np.float32)
    (first, *_), (second, *_) = run(FrameFusion(merge_calls=1), 0.5, states, rows)
    later = sorted(np.flatnonzero(VISUAL)[PLACES:], key=lambda s: (BLOCK[s], s))
    assert np.flatnonzero(VISUAL & ~first).tolist() == sorted(later[: COUNT // 2])
    np.testing.assert_array_equal(first, second)
    # With the whole budget equal frames stay.
    (first, *_), _ = run(FrameFusion(merge_calls=1), 1.0, states, rows)
    np.testing.assert_array_equal(first, VISUAL)


def test_states_of_zeros_and_bfloat16():
    x = np.ones((LENGTH, 8), np.float32)
    x[START + 2 * PLACES] = 0
    found = time_similarity(jnp.asarray(x, jnp.bfloat16), jnp.asarray(BLOCK), jnp.asarray(VISUAL))
    cosine = np.asarray(found.cosine)
    assert cosine.dtype == np.float32
    none = np.flatnonzero(VISUAL & (cosine == -2)).tolist()
    assert none == [*range(START, START + PLACES), START + 2 * PLACES, START + 3 * PLACES]
    assert (cosine[~VISUAL] == -2).all()
    np.testing.assert_allclose(cosine[VISUAL & (cosine > -2)], 1.0, atol=1e-6)


def test_costs_are_data():
    """A vmap over budgets is the same as one after another."""
    states, rows = video(0, 3, 0.8, 0.6)
    reducer, costs = FrameFusion(similarity=0.7, merge_calls=2), (0.1, 0.3, 0.7)
    inners = [cuts_of(reducer, cost, compact=False) for cost in costs]
    start = inners[0].start(jnp.asarray(states[0])[None], jnp.asarray(SLOTS)[None], jnp.ones((1, LENGTH), bool))

    def survivors(cuts):
        state = start
        for cut, given, row in zip(cuts, states, rows, strict=True):
            state = state._replace(hidden=jnp.asarray(given)[None])
            state, _, _ = cut.apply(state, jnp.asarray(row)[None, None, None])
        return state.visual[0]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(inner.cuts for inner in inners))
    together = jax.jit(jax.vmap(survivors))(stacked)
    for got, cost in zip(together, costs, strict=True):
        np.testing.assert_array_equal(got, run(reducer, cost, states, rows)[-1][0])


def test_the_masked_stretch_ends_where_a_number_is_known():
    inner = cuts_of(FrameFusion(merge_calls=3), 0.3)
    least = LENGTH - COUNT + math.ceil(0.3 * COUNT)
    assert [cut.capacity for cut in inner.cuts] == [None, None, None, least]
    assert inner.boundaries == (1, 2, 3)
    assert inner.capacities(LENGTH, 4) == (LENGTH + 4,) * 3 + (least + 4,)


def test_the_last_valid_rows():
    inner = cuts_of(FrameFusion(rows=4, merge_calls=1), 0.3)
    state = inner.start(jnp.zeros((1, LENGTH, 2)), jnp.asarray(SLOTS)[None], jnp.ones((1, LENGTH), bool))
    valid = np.ones((1, LENGTH), bool)
    valid[0, [49, 47, 44]] = False
    cut = inner.cuts[1]
    assert sorted(np.asarray(inner.rows(cut, state._replace(valid=jnp.asarray(valid))))[0]) == [43, 45, 46, 48]
    few = SLOTS[None] < 2
    assert np.asarray(inner.rows(cut, state._replace(valid=jnp.asarray(few))))[0].tolist() == [1, 0, 1, 1]


def reduced(frames, grid):
    tokens = synthetic_tokens(frames=frames, grid=grid)
    method = FrameFusion()
    return ReducedVideo(EncodedVideo(tokens), reduce(method, tokens, 0.3), method, 0.3, method.inner(0.3))


def test_places_in_a_prompt():
    """Rows of two and three tokens, a newline behind each row; a second video; text between."""
    videos = [reduced(2, (2, 2)), reduced(1, (1, 3))]
    text = 4
    newline, first = text, text + 1
    run_of = [first, first + 1, newline, first + 2, first + 3, newline]
    second = [s if s == newline else s + 4 for s in run_of]
    third = [first + 8, first + 9, first + 10, newline]
    source = np.array([0, 1, *run_of, 2, *second, *third, 3])
    slots = SlotMap(source, len(source), (2, len(source) - 1))
    stages = FrameFusion(merge_calls=1).inner(0.3)
    inner = prompt_inner(stages, slots, text, newline="grid", layers=4, block=shared_places(videos, "grid"))
    assert inner is not None
    assert np.asarray(inner.visual)[0].sum() == 16
    assert np.asarray(inner.block)[0].tolist() == [0, 0, *range(6), 0, *range(6), 6, 7, 8, 9, 0]
    # A newline behind each frame is a place of its own.
    framed = np.array([0, first, first + 1, first + 2, first + 3, newline, *range(first + 4, first + 8), newline, 1])
    slots = SlotMap(framed, len(framed), (1, len(framed) - 1))
    block = shared_places(videos[:1], "frame")
    inner = prompt_inner(stages, slots, text, newline="frame", layers=4, block=block)
    assert inner is not None
    assert np.asarray(inner.block)[0].tolist() == [0, *[0, 1, 3, 4, 5] * 2, 0]
    # One behind the whole video is text.
    inner = prompt_inner(stages, slots, text, newline="one_token", layers=4, block=block)
    assert inner is not None
    assert np.asarray(inner.visual)[0].sum() == 8


def test_flops_are_those_of_what_runs():
    """Full length in the layers that can merge; behind them what the budget allows; cosines of all calls."""
    reducer = FrameFusion()
    parts = flops_model.segments(reducer.inner(0.3), 28, tokens=6300, visual=6272)
    assert [(part.start, part.stop, part.tokens) for part in parts] == [
        (0, 1, 6300),
        (1, 2, 6300),
        (2, 3, 6300),
        (3, 4, 6300),
        (4, 28, 28 + 1882),
    ]
    assert [part.unfed for part in parts] == [0, 0, 0, 6272 - 1882, 0]
    terms = reducer.flops(Layout(32, (14, 14)), 3584, 0.3)
    assert sum(terms.values()) == 4 * 2 * 6272 * 3584 * 2


def test_settings():
    stages = FrameFusion(merge_calls=2, rows=4).inner(0.3)
    assert [(stage.layer, stage.where, stage.boundary) for stage in stages] == [
        (0, "before", 0),
        (0, "middle", 1),
        (1, "middle", 2),
    ]
    assert [stage.rule for stage in stages[1:]] == [Fuse(rows=4), Fuse(rows=4, final=True)]

    def made(backbone=None, layers=None, **settings):
        reducer = reducers.get("framefusion", backbone, layers, **settings)
        assert isinstance(reducer, FrameFusion)
        return reducer

    assert (made("qwen2_5_vl").rows, made("qwen2_5_vl").similarity) == (4, 0.5)
    assert (made("llava_video").rows, made("llava_video").similarity) == (1, 0.6)
    assert made(layers=40).depth == 28
    assert made(layers=40, cost_depth="model").depth == 40
    assert made(layers=40, cost_depth="model", depth=30).depth == 30


def test_refusals():
    checks.refused(lambda: FrameFusion(merge_calls=28), "fewer than its depth")
    checks.refused(lambda: FrameFusion(similarity=1.5), "similarity")
    alone, visual = [InnerStage(1, Fuse(), CostBudget(0.3))], VISUAL[None]
    ones = np.ones((1, LENGTH), bool)
    inner = Inner.create(alone, visual, ones, layers=4)
    state = inner.start(jnp.zeros((1, LENGTH, 2)), jnp.asarray(SLOTS)[None], jnp.asarray(ones))
    assert isinstance(state, TokenState)
    checks.refused(lambda: inner.cuts[0].apply(state, jnp.zeros((1, 1, 1, LENGTH))), "FuseEmbeddings has spent")
    both = [InnerStage(0, FuseEmbeddings(), CostBudget(0.3)), InnerStage(2, TextInBlocks())]
    checks.refused(lambda: Inner.create(both, visual, ones, layers=4), "cannot stand together")
