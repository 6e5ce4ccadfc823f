"""DART: a plain numpy version with Python's own sets, counts, short prompts, the exact variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks

from jvidprune.cuts.dart import KeyNormPivots, PivotCount, hash_order
from jvidprune.cuts.inner import Inner
from jvidprune.reducers.dart import DART
from jvidprune.tokens import InnerStage

LENGTH, START, VISUAL = 90, 9, 64


@pytest.mark.parametrize("pivots", [1, 4, 5, 8, 15, 18])
def test_the_order_of_a_hash_table_is_that_of_python_s_sets(pivots):
    rng, there = np.random.default_rng(pivots), np.ones(pivots, bool)
    in_order = jax.jit(hash_order)
    for _ in range(50):
        values = rng.choice(rng.integers(pivots, 4000), pivots, replace=False).tolist()
        # A set is filled value by value; a set made of a list may have another size.
        seen = set()
        for value in values:
            seen.add(value)
        order = np.asarray(in_order(np.asarray(values, np.int32), there))
        assert [values[i] for i in order] == list(seen)


def test_values_that_are_not_there_come_last():
    there = np.array([True, True, True, True, True, True, False, False])
    order = np.asarray(hash_order(jnp.asarray([40, 8, 72, 3, 104, 9, 0, 1]), jnp.asarray(there)))
    assert sorted(order[:6].tolist()) == [0, 1, 2, 3, 4, 5]
    seen = set()
    for value in (40, 8, 72, 3, 104, 9):
        seen.add(value)
    assert [[40, 8, 72, 3, 104, 9][i] for i in order[:6]] == list(seen)


def inputs(seed=0, tail=17):
    rng = np.random.default_rng(seed)
    length = START + VISUAL + tail
    return (rng.normal(size=(length, n)).astype(np.float32) for n in (12, 12)), rng.normal(size=(length, 2, 6)).astype(
        np.float32
    )


def run(reducer, ratio, tail=17, visual=VISUAL, seed=0):
    """Kept visual places of one prompt, with the arrays that were read."""
    (hidden, normed), keys = inputs(seed, tail)
    length = START + visual + tail
    hidden, normed, keys = hidden[:length], normed[:length], keys[:length]
    slots, ones = np.arange(length)[None], np.ones((1, length), bool)
    mask = (slots >= START) & (slots < START + visual)
    inner = Inner.create(reducer.inner(ratio), mask, ones, layers=9)
    state = inner.start(jnp.asarray(hidden)[None], jnp.asarray(slots), jnp.asarray(ones))
    state, record, _ = inner.cuts[0].apply(state, None, jnp.asarray(keys)[None], jnp.asarray(normed)[None])
    kept = np.asarray(state.source)[0][np.asarray(state.valid)[0]]
    return [place for place in kept.tolist() if START <= place < START + visual], (hidden, normed, keys), record


def by_hand(states, keys, q, *, behind, ordered, total=None):
    """The method in numpy: (states, keys) of the prompt, q a pivot, first place of the text that may give pivots."""
    norm = np.abs(keys.astype(np.float64)).sum(axis=(1, 2))
    span = range(START, START + VISUAL)
    image = sorted(span, key=lambda place: -norm[place])[:4]
    text = sorted(behind, key=lambda place: -norm[place])[:4]
    unit = states.astype(np.float64) / np.linalg.norm(states, axis=1, keepdims=True)
    pivots = [*image, *text]
    if not ordered:
        seen = set()
        for place in pivots:
            seen.add(place)
        pivots = list(seen)
    kept, free = list(image), [place for place in span if place not in image]
    for pivot in pivots:
        room = q if total is None else min(q, total - len(kept))
        taken = sorted(free, key=lambda place: unit[pivot] @ unit[place])[:room]
        kept += taken
        free = [place for place in free if place not in taken]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", ["hash", "norm"])
def test_the_choice_is_that_of_a_plain_version(seed, order):
    kept, (_, normed, keys), _ = run(DART(pivot_order=order), 0.5, seed=seed)
    text = range(START + VISUAL, LENGTH)
    assert kept == by_hand(normed, keys, int(VISUAL * 0.5 / 8), behind=text, ordered=order == "norm")
    assert len(kept) == 4 + 8 * 4


@pytest.mark.parametrize("ratio", [0.2, 0.33, 0.5, 1.0])
def test_the_exact_variant_keeps_exactly_the_share(ratio):
    kept, (hidden, _, keys), _ = run(DART(variant="exact"), ratio)
    total = round(VISUAL * ratio)
    text = [*range(START), *range(START + VISUAL, LENGTH)]
    assert kept == by_hand(hidden, keys, -(-(total - 4) // 8), behind=text, ordered=True, total=total)
    assert len(kept) == total


def test_counts():
    count = PivotCount(1.0, number=128).count
    assert [PivotCount(number=m).count(576) for m in (192, 128, 64)] == [196, 132, 68]
    assert PivotCount(0.1).count(1000) == 4 + 8 * 12
    assert PivotCount(1 - 0.778).count(1000) == 4 + 8 * int(1000 * (1 - 0.778) / 8)
    # Never more than there are, and all of fewer than the pivots.
    assert [count(n) for n in (0, 3, 4, 11, 12, 20)] == [0, 3, 4, 4, 12, 20]
    assert PivotCount(number=7).count(576) == 4
    assert PivotCount(0.3, image=10, text=5).count(900) == 10 + 15 * 18
    assert [PivotCount(share, whole=True).count(576) for share in (0.1, 0.5, 1.0)] == [58, 288, 576]


@pytest.mark.parametrize("tail", [1, 3])
@pytest.mark.slow
def test_a_short_question_gives_the_pivots_that_it_has(tail):
    kept, _, record = run(DART(), 0.5, tail=tail)
    assert int(np.asarray(record.diagnostics["there"]).sum()) == 4 + tail
    assert len(kept) == 4 + (4 + tail) * 4


def test_fewer_tokens_than_pivots_all_stay():
    assert run(DART(), 0.5, visual=3)[0] == [START, START + 1, START + 2]


def test_rules_and_settings():
    (stage,) = DART().inner(0.3)
    assert (stage.layer, stage.positions, stage.rule.probe) == (2, "keep", "keys")
    assert [DART(**s).inner(0.3)[0].layer for s in ({"variant": "exact"}, {"layer": 5})] == [1, 5]
    assert DART(dropped=0.778).inner(1.0)[0].kept.share == 1 - 0.778
    assert isinstance(stage, InnerStage)
    checks.refused(lambda: DART(layer=0), "layer is at least 1, got 0")
    checks.refused(lambda: KeyNormPivots(image=10, text=9), "up to 18 pivots, got 10 and 9")
    checks.refused(lambda: DART(pivot_order="first"), "first")
    assert KeyNormPivots(image=10, text=9, order="norm").image == 10
