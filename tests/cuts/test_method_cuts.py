"""What every method inside the language model has to keep: one table of methods, each check on all of them."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.decoders import LAYERS, SLOTS, STEPS, TOKENS, VALID, VISUAL, S, create, read_and_decode

from jvidprune import reducers
from jvidprune.cuts.inner import Inner
from jvidprune.models.prefill import read_prompt
from jvidprune.reducers.protocol import inner_stages

METHODS = {
    "dart": ("dart", {}),
    "dart-exact": ("dart", {"variant": "exact", "layer": 2}),
    "dart-renumbered": ("dart", {"pivot_order": "norm", "cut_positions": "renumber"}),
    "horizon-dart": ("information_horizon", {"host": "dart", "depth": LAYERS, "host_layer": 1, "layer": 3}),
    "horizon-dropped": ("information_horizon", {"host": "none", "then": "drop", "depth": LAYERS, "layer": 1}),
    "pyramiddrop": ("pyramiddrop", {"depth": LAYERS}),
    "pyramiddrop-text": ("pyramiddrop", {"cut_layers": (0, 2), "depth": LAYERS, "ranked_by": "text"}),
    "pyramiddrop-kept": ("pyramiddrop", {"depth": LAYERS, "cut_positions": "keep"}),
}
"""Name of a case -> (registry name, settings)."""


def stages_of(name, ratio):
    method, settings = METHODS[name]
    return inner_stages(reducers.get(method, **settings), ratio)


def kept_of(records):
    return [
        [np.asarray(record.source)[row][np.asarray(record.survivors)[row]].tolist() for row in range(2)]
        for record in records
    ]


@pytest.mark.parametrize("name", METHODS)
def test_masking_equals_compaction(decoder, embeds, plain, name):
    stages = stages_of(name, 0.5)
    logits, short, records = read_and_decode(decoder, embeds, create(*stages))
    masked, long, marks = read_and_decode(decoder, embeds, create(*stages, compact=False))
    np.testing.assert_allclose(logits, masked, atol=3e-5)
    assert kept_of(records) == kept_of(marks)
    assert np.abs(np.asarray(logits) - plain).max() > 1e-2
    for a, b in zip(short.segments, long.segments, strict=True):
        assert a.valid.sum(axis=1).tolist() == b.valid.sum(axis=1).tolist()
    assert short.segments[-1].capacity < S


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_those_of_the_stage(decoder, embeds, name):
    stages = stages_of(name, 0.5)
    records = read_and_decode(decoder, embeds, create(*stages))[2]
    for row, total in enumerate(VISUAL.sum(axis=1).tolist()):
        left = total
        for stage, record in zip(stages, records, strict=True):
            left = stage.kept.count(left, total)
            kept = np.asarray(record.source)[row][np.asarray(record.survivors)[row]]
            assert VISUAL[row][kept].sum() == left
            # All text stays.
            assert (~VISUAL[row][kept]).sum() == (VALID & ~VISUAL)[row].sum()


@pytest.mark.parametrize("name", METHODS)
def test_keeping_all_is_the_identity(decoder, embeds, plain, name):
    stages = [
        dataclasses.replace(stage, kept=dataclasses.replace(stage.kept, number=999)) for stage in stages_of(name, 1.0)
    ]
    if name.startswith("dart") and name != "dart-exact":
        # Four pivots and eight times as many as there is room for: 20 of 20, but 12 of 17.
        stages, embeds = stages[:1], embeds[:1]
        inner = Inner.create(stages, VISUAL[:1], VALID[:1], layers=LAYERS)
        np.testing.assert_allclose(answered(decoder, embeds, inner, SLOTS[None], VALID[:1]), plain[:, :1], atol=2e-5)
        return
    np.testing.assert_allclose(read_and_decode(decoder, embeds, create(*stages))[0], plain, atol=2e-5)


@jax.jit
def answered(decoder, embeds, inner, positions, valid):
    """Logits of the end of the prompts and of three steps."""
    batch, length = valid.shape
    cache = decoder.empty_cache(batch, inner.capacities(length, STEPS), inner.boundaries)
    read = read_prompt(decoder, embeds, positions, valid, cache, inner=inner)

    def step(cache, tokens):
        logits, cache = decoder.decode(tokens, cache)
        return cache, logits

    _, logits = jax.lax.scan(step, read.cache, jax.numpy.asarray(TOKENS)[:, :batch])
    return jax.numpy.concatenate([read.logits[None], logits])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("compact", [True, False])
def test_padding_on_either_side_and_batch_mates_change_nothing(decoder, embeds, name, compact):
    stages, batched = stages_of(name, 0.5), None
    batched = read_and_decode(decoder, embeds, create(*stages, compact=compact))[0][:, :1]
    for pad in ((0, 3), (5, 0)):
        fill = ((0, 0), pad)
        valid, visual = np.pad(VALID[:1], fill), np.pad(VISUAL[:1], fill)
        inner = Inner.create(stages, visual, valid, layers=LAYERS, compact=compact)
        x = np.pad(np.asarray(embeds[:1]), (*fill, (0, 0)))
        alone = answered(decoder, x, inner, np.maximum(np.cumsum(valid, axis=1) - 1, 0), valid)
        np.testing.assert_allclose(alone, batched, atol=3e-5)


@pytest.mark.parametrize("name", METHODS)
def test_one_compile_for_all_ratios(decoder, embeds, name):
    read_and_decode.clear_cache()
    found = [
        read_and_decode(decoder, embeds, create(*stages_of(name, ratio), compact=False))[0]
        for ratio in (0.45, 0.6, 0.9)
    ]
    assert read_and_decode._cache_size() == 1
    assert np.abs(np.asarray(found[0]) - np.asarray(found[2])).max() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_a_cut_behind_the_last_layer_does_nothing(decoder, embeds, plain, name):
    stages = [dataclasses.replace(stage, layer=LAYERS + i) for i, stage in enumerate(stages_of(name, 0.5))]
    np.testing.assert_allclose(read_and_decode(decoder, embeds, create(*stages))[0], plain, atol=1e-6)
