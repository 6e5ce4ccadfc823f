"""What every method inside the language model has to keep: one table of methods, each check on all of them."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.decoders import BLOCK, LAYERS, SLOTS, STEPS, TOKENS, VALID, VISUAL, S, create, read_and_decode

from jvidprune import reducers
from jvidprune.cuts.inner import Inner
from jvidprune.models.prefill import read_prompt
from jvidprune.reducers.protocol import inner_stages

METHODS = {
    "dart": ("dart", {}),
    "dart-exact": ("dart", {"variant": "exact", "layer": 2}),
    "dart-renumbered": ("dart", {"pivot_order": "norm", "cut_positions": "renumber"}),
    "framefusion": ("framefusion", {"similarity": 0.1, "merge_calls": 2}),
    "framefusion-rows": ("framefusion", {"similarity": 0.45, "ratio_bound": 0.5, "rows": 3, "merge_calls": 2}),
    "framefusion-forced": ("framefusion", {"similarity": 0.3, "ratio_bound": 0.0, "merge_calls": 1}),
    "horizon-dart": ("information_horizon", {"host": "dart", "depth": LAYERS, "host_layer": 1, "layer": 3}),
    "horizon-dropped": ("information_horizon", {"host": "none", "then": "drop", "depth": LAYERS, "layer": 1}),
    "sparsevlm": ("sparsevlm", {"cut_layers": (1, 2, 3)}),
    "sparsevlm-plus": ("sparsevlm", {"flavor": "plus", "cut_layers": (1, 2, 3), "heads": 3}),
    "sparsevlm-rank": ("sparsevlm", {"flavor": "rank", "cut_layers": (2,), "scale": 1.5}),
    "sparsevlm-video": ("sparsevlm", {"flavor": "video"}),
    "swiftvlm": ("swiftvlm", {"cut_layers": (0, 1, 3), "depth": LAYERS}),
    "swiftvlm-after": ("swiftvlm", {"cut_layers": (0, 2), "depth": 40, "groups": 2, "rounds": 2, "place": "after"}),
    "pyramiddrop": ("pyramiddrop", {"depth": LAYERS}),
    "pyramiddrop-text": ("pyramiddrop", {"cut_layers": (0, 2), "depth": LAYERS, "ranked_by": "text"}),
    "pyramiddrop-kept": ("pyramiddrop", {"depth": LAYERS, "cut_positions": "keep"}),
}
"""Name of a case -> (registry name, settings)."""

FIRST = {method: name for name, (method, _) in reversed(METHODS.items())}.values()
"""One case of each method."""


def first(names):
    """The names as cases, of which one of each method is part of the default run; the others are longer runs."""
    return [pytest.param(name, marks=() if name in FIRST else pytest.mark.long) for name in names]


FUSIONS = ("framefusion", "framefusion-rows", "framefusion-forced")
COUNTED_ON_THE_WAY = ("sparsevlm-rank", "sparsevlm-video", *FUSIONS)


def stages_of(name, ratio):
    method, settings = METHODS[name]
    return inner_stages(reducers.get(method, **settings), ratio)


def kept_of(records):
    return [
        [np.asarray(record.source)[row][np.asarray(record.survivors)[row]].tolist() for row in range(2)]
        for record in records
    ]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
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
        left, text = total, (VALID & ~VISUAL & (np.arange(S) > np.flatnonzero(VISUAL[row])[-1]))[row].sum()
        for stage, record in zip(stages, records, strict=True):
            most = stage.kept.left(left, total, int(text))
            kept = np.asarray(record.source)[row][np.asarray(record.survivors)[row]]
            left = int(VISUAL[row][kept].sum())
            assert left <= most if name in COUNTED_ON_THE_WAY else left == most
            # All text stays.
            assert (~VISUAL[row][kept]).sum() == (VALID & ~VISUAL)[row].sum()


@pytest.mark.parametrize("name", first([name for name in METHODS if not name.startswith("sparsevlm")]))
@pytest.mark.slow
def test_keeping_all_is_the_identity(decoder, embeds, plain, name):
    stages = [
        dataclasses.replace(stage, kept=dataclasses.replace(stage.kept, number=999)) for stage in stages_of(name, 1.0)
    ]
    if "dart" in name and name != "dart-exact":
        # Four pivots and eight times as many as there is room for: 20 of 20, but 12 of 17.
        embeds = embeds[:1]
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


@pytest.mark.parametrize("compact", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", first(METHODS))
@pytest.mark.slow
def test_padding_on_either_side_and_batch_mates_change_nothing(decoder, embeds, name, compact):
    stages = stages_of(name, 0.5)
    batched = read_and_decode(decoder, embeds, create(*stages, compact=compact))[0][:, :1]
    # A draw goes by the slot of the prompt.
    for pad in ((0, 5), (5, 0)) if "horizon" not in name else ((0, 5),):
        fill = ((0, 0), pad)
        valid, visual = np.pad(VALID[:1], fill), np.pad(VISUAL[:1], fill)
        inner = Inner.create(stages, visual, valid, layers=LAYERS, compact=compact, block=np.pad(BLOCK[:1], fill))
        x = np.pad(np.asarray(embeds[:1]), (*fill, (0, 0)))
        alone = answered(decoder, x, inner, np.maximum(np.cumsum(valid, axis=1) - 1, 0), valid)
        np.testing.assert_allclose(alone, batched, atol=3e-5)


@pytest.mark.parametrize(
    "name", first([name for name in METHODS if name not in (*COUNTED_ON_THE_WAY[:2], "horizon-dropped")])
)
def test_one_compile_for_all_ratios(decoder, embeds, name):
    before = read_and_decode._cache_size()
    found = [
        read_and_decode(decoder, embeds, create(*stages_of(name, ratio), compact=False))[0]
        for ratio in (0.45, 0.6, 0.9)
    ]
    assert read_and_decode._cache_size() <= before + 1
    assert np.abs(np.asarray(found[0]) - np.asarray(found[2])).max() > 1e-3


@pytest.mark.parametrize("name", first(METHODS))
def test_a_cut_behind_the_last_layer_does_nothing(decoder, embeds, plain, name):
    stages = [dataclasses.replace(stage, layer=LAYERS + i) for i, stage in enumerate(stages_of(name, 0.5))]
    np.testing.assert_allclose(read_and_decode(decoder, embeds, create(*stages))[0], plain, atol=1e-6)


def test_a_run_without_cuts_is_the_program_of_a_plain_prompt(decoder, embeds):
    """What rules may read costs nothing where none asks: no operation more than without stages at all."""

    def program(inner):
        sizes = (S,) if inner is None else (inner.capacities(S, 0), inner.boundaries)
        cache = decoder.empty_cache(2, *sizes)
        where = np.broadcast_to(np.arange(S), (2, S))
        return jax.jit(lambda x, c: read_prompt(decoder, x, where, VALID, c, inner=inner).logits).lower(embeds, cache)

    assert program(None).as_text() == program(create()).as_text()
    ahead = program(create(*stages_of("pyramiddrop", 0.5))).as_text()
    assert ahead.count("dot_general") > program(None).as_text().count("dot_general")


def test_raters_alone_drop_nothing(decoder, embeds, plain):
    (raters, *_) = stages_of("sparsevlm", 0.5)
    logits, _, (record,) = read_and_decode(decoder, embeds, create(raters))
    np.testing.assert_allclose(logits, plain, atol=1e-5)
    for row in range(2):
        text = np.flatnonzero(VALID[row] & (np.arange(S) > np.flatnonzero(VISUAL[row])[-1]))
        x = np.asarray(embeds[row], np.float64)
        products = x[VISUAL[row]] @ x[text].T
        shares = np.exp(products - products.max(axis=1, keepdims=True))
        mean = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
        expected = text[mean > mean.mean()]
        assert np.flatnonzero(record.diagnostics["raters"][row]).tolist() == expected.tolist()
