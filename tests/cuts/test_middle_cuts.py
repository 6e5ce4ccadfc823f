"""Cuts inside a layer, between its attention branch and its MLP: by hand, masked, with DeepStack levels, refusals."""

import jax
import numpy as np
import pytest
from helpers.decoders import CONFIG, LAYERS, SLOTS, STEPS, VISUAL, S, create, read_and_decode

from jvidprune import JvidpruneError
from jvidprune.costs import flops_model
from jvidprune.cuts.rules import HalvingMerge, LastQueryTopK, LookAhead, RandomDraw
from jvidprune.tokens import InnerStage, Kept


def inside(layer, keep=0.4, rule=None, **options):
    return InnerStage(layer, rule or LastQueryTopK(), Kept(keep), where="middle", **options)


SCHEDULES = {
    "first layer": (inside(0),),
    "merging": (inside(1, rule=HalvingMerge()),),
    "counted anew": (inside(1, positions="renumber"),),
    "both kinds": (
        InnerStage(0, RandomDraw(), Kept(0.9)),
        inside(0, 0.8),
        inside(1, 0.6),
        InnerStage(3, LastQueryTopK(), Kept(0.5)),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_masking_equals_compaction(decoder, embeds, plain, name):
    logits, short, records = read_and_decode(decoder, embeds, create(*SCHEDULES[name]))
    masked, long, marks = read_and_decode(decoder, embeds, create(*SCHEDULES[name], compact=False))
    np.testing.assert_allclose(logits, masked, atol=3e-5)
    assert np.abs(np.asarray(logits) - plain).max() > 1e-2
    for a, b in zip(short.segments, long.segments, strict=True):
        assert a.valid.sum(axis=1).tolist() == b.valid.sum(axis=1).tolist()
    assert len(records) == len(marks) == len(SCHEDULES[name])


@pytest.mark.parametrize("levels", [0, 3])
def test_a_cut_inside_a_layer_by_hand(decoder, embeds, levels):
    """The layer attends to all tokens and caches them; its MLP and what is added behind it see those that stay."""
    added = None if not levels else jax.random.normal(jax.random.key(5), (levels, 2, S, CONFIG.width))
    logits, cache, (record,) = read_and_decode(decoder, embeds, create(inside(1)), added)
    step = decoder.step(SLOTS[None], np.ones((1, S), bool))
    x, _ = decoder.run(embeds[:1], step, 0, 1, deepstack=None if added is None else added[:1, :1])
    whole, outputs = decoder.run(x, step, 1, 2, rows=np.full((1, 1), S - 1))
    score = np.asarray(outputs.attention)[0, 0, :, 0].mean(axis=0)
    np.testing.assert_allclose(record.score[0], score, atol=1e-6)
    best = np.flatnonzero(VISUAL[0])[np.argsort(-score[VISUAL[0]], kind="stable")[:8]]
    kept = np.sort([*np.flatnonzero(~VISUAL[0]), *best])
    assert np.flatnonzero(record.survivors[0]).tolist() == kept.tolist()
    # Nothing is merged, so that the MLP of the whole layer gives the same rows.
    x = whole[:, kept] if added is None else whole[:, kept] + added[1][:1, kept]
    less = decoder.step(kept[None], np.ones((1, len(kept)), bool))
    x, _ = decoder.run(x, less, 2, 3, deepstack=None if added is None else added[2:, :1, kept])
    x, _ = decoder.run(x, less, 3, LAYERS)
    np.testing.assert_allclose(logits[0, 0], decoder.logits(x[0, -1]), atol=3e-5)
    assert [int(part.valid[0].sum()) for part in cache.segments] == [S + STEPS, len(kept) + STEPS]
    assert [(part.start, part.stop) for part in cache.segments] == [(0, 2), (2, LAYERS)]


def test_merged_states_go_through_the_mlp(decoder, embeds):
    """Where tokens are merged the cut in the middle is another one than the cut behind the layer."""
    middle = read_and_decode(decoder, embeds, create(inside(1, rule=HalvingMerge())))[0]
    behind = read_and_decode(decoder, embeds, create(InnerStage(2, HalvingMerge(), Kept(0.4))))[0]
    assert np.abs(np.asarray(middle) - behind).max() > 1e-3


def test_keeping_all_and_cutting_inside_the_last_layer_change_nothing(decoder, embeds, plain):
    for stage in (inside(1, 1.0), inside(LAYERS - 1, 0.2)):
        np.testing.assert_allclose(read_and_decode(decoder, embeds, create(stage))[0], plain, atol=1e-5)


def test_counts_share_one_compilation(decoder, embeds):
    read_and_decode.clear_cache()
    for keep in (0.2, 0.5, 0.9):
        read_and_decode(decoder, embeds, create(inside(1, keep), compact=False))
    assert read_and_decode._cache_size() == 1


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((inside(1, rule=LookAhead()),), "LookAhead reads the layer behind its cut"),
        ((inside(1), InnerStage(2, RandomDraw(), Kept(0.5))), "two cuts stand before one layer"),
    ],
)
def test_what_cannot_stand_inside_a_layer_is_refused(stages, words):
    with pytest.raises(JvidpruneError, match=words):
        create(*stages)


def test_a_name_that_is_no_place_is_refused():
    with pytest.raises(JvidpruneError, match="unknown where 'behind'"):
        InnerStage(1, RandomDraw(), where="behind")


def test_flops_leave_out_the_mlp_of_what_is_dropped():
    middle, before = (
        flops_model.prefill(CONFIG, flops_model.segments([stage], LAYERS, tokens=S, visual=20))
        for stage in (inside(1, 0.4), InnerStage(2, LastQueryTopK(), Kept(0.4)))
    )
    assert before[0]["matrices"] - middle[0]["matrices"] == 2 * 3 * CONFIG.width * CONFIG.mlp * 12
    assert before[1] == middle[1]
