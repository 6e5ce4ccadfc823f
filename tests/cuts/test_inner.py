"""Stages inside the language model: golden decoders, masking against compaction, ragged caches, DyCoke's decoding."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import untrained
from helpers.decoders import (
    CONFIG,
    LAYERS,
    SLOTS,
    STEPS,
    TOKENS,
    VALID,
    VISUAL,
    S,
    create,
    read_and_decode,
    top,
)
from helpers.prompts import one_run
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune import JvidpruneError, reducers
from jvidprune.cuts.decoding import Renewal
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.rules import (
    DynamicDecode,
    HalvingMerge,
    LastQueryTopK,
    RandomDraw,
    TextInBlocks,
    random_scores,
)
from jvidprune.llm.prompt_cuts import prompt_inner
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.generate import generate
from jvidprune.models.prefill import prefill, read_prompt
from jvidprune.tokens import InnerStage, Kept, StageRule

STAGES = {
    "merge": (InnerStage(2, HalvingMerge(causal=False), Kept(0.5, "round")),),
    "text": (InnerStage(2, TextInBlocks(trims=True), Kept(0.4, "floor")),),
    "random before the first layer": (InnerStage(0, RandomDraw(), Kept(0.4), seed=5),),
    "attention, then random": (top(1, 0.6), InnerStage(3, RandomDraw(), Kept(0.5))),
}


@pytest.mark.parametrize("name", STAGES)
def test_masking_equals_compaction(decoder, embeds, plain, name):
    compacted, short, cuts = read_and_decode(decoder, embeds, create(*STAGES[name]))
    masked, long, marks = read_and_decode(decoder, embeds, create(*STAGES[name], compact=False))
    np.testing.assert_allclose(compacted, masked, atol=2e-5)
    assert np.abs(np.asarray(compacted) - plain).max() > 1e-2
    for a, b in zip(short.segments, long.segments, strict=True):
        assert a.valid.sum(axis=1).tolist() == b.valid.sum(axis=1).tolist()
    assert [part.capacity for part in long.segments] == [S + STEPS] * len(long.segments)
    assert short.segments[-1].capacity < S
    first = np.asarray(cuts[0].survivors)
    assert (first == np.asarray(marks[0].survivors)).all()
    assert first[VALID & ~VISUAL].all()
    assert not first[~VALID].any()


@pytest.mark.parametrize(
    "stages",
    [
        (top(1, 1.0), InnerStage(3, TextInBlocks(), Kept(1.0, "floor"))),
        (InnerStage(0, RandomDraw(), Kept(1.0)), InnerStage(2, HalvingMerge(), Kept(1.0, "round"))),
        (InnerStage(2, DynamicDecode(), Kept(1.0, "floor")),),
        (top(LAYERS, 0.1),),
    ],
    ids=lambda stages: ", ".join(type(stage.rule).__name__ for stage in stages),
)
@pytest.mark.slow
def test_keeping_all_is_the_identity(decoder, embeds, plain, stages):
    np.testing.assert_allclose(read_and_decode(decoder, embeds, create(*stages))[0], plain, atol=1e-5)


def test_a_cut_by_hand(decoder, embeds):
    """One prompt, layer after layer without scans over segments; the probed row against the whole attention map."""
    inner = create(top(2, 0.3))
    logits, cache, (record,) = read_and_decode(decoder, embeds, inner)

    @functools.partial(jax.jit, static_argnums=(3, 4))
    def run(x, where, rows, start, stop):
        step = decoder.step(where, jnp.ones(where.shape, bool))
        return decoder.run(x, step, start, stop, rows=rows)

    x, out = run(embeds[:1], SLOTS[None], SLOTS[None], 0, 2)
    attention = np.asarray(out.attention)[1, 0]
    assert attention[:, 0, 1:].max() == 0
    np.testing.assert_allclose(record.score[0], attention[:, -1].mean(axis=0), atol=1e-6)
    visual = np.flatnonzero(VISUAL[0])
    best = visual[np.argsort(-attention[:, -1].mean(axis=0)[visual], kind="stable")[: math.ceil(20 * 0.3)]]
    keep = np.sort(np.concatenate([np.flatnonzero(~VISUAL[0]), best]))
    assert np.flatnonzero(record.survivors[0]).tolist() == keep.tolist()
    x, _ = run(x[:, keep], keep[None], None, 2, LAYERS)
    np.testing.assert_allclose(logits[0, 0], decoder.logits(x[0, -1]), atol=1e-5)
    assert [int(part.valid[0].sum()) for part in cache.segments] == [S + STEPS, len(keep) + STEPS]
    assert [int(part.valid[1].sum()) for part in cache.segments] == [27 + STEPS, 27 - 17 + 6 + STEPS]
    assert cache.position.tolist() == [S + STEPS, 27 + STEPS]


def test_ragged_caches_decode_what_a_longer_prompt_reads(decoder, embeds):
    """The rows of a step's logits equal those of a prompt that holds the answer already, the same tokens hidden."""
    keep = np.asarray(read_and_decode(decoder, embeds, create(top()))[2][0].survivors)[0]
    logits = read_and_decode(decoder, embeds, create(top()))[0]
    more = np.asarray(decoder.embed_text(jnp.asarray(TOKENS[:, 0])))
    x = jnp.concatenate([embeds[0], more])[None]
    slots = np.arange(S + STEPS)[None]
    ones = np.ones(slots.shape, bool)

    @jax.jit
    def whole(x, seen):
        x, _ = decoder.run(x, decoder.step(slots, jnp.asarray(ones)), 0, 2)
        x, _ = decoder.run(x, decoder.step(slots, seen), 2, LAYERS)
        return decoder.logits(x[0])

    seen = np.concatenate([keep, np.ones(STEPS, bool)])[None]
    np.testing.assert_allclose(logits[:, 0], whole(x, jnp.asarray(seen))[S - 1 :], atol=2e-5)


def test_levels_added_behind_a_cut_follow_the_kept_tokens(decoder, embeds):
    added = jax.random.normal(jax.random.key(2), (2, 2, S, CONFIG.width)) * jnp.asarray(VISUAL)[None, :, :, None]
    compacted = read_and_decode(decoder, embeds, create(top(1)), added)[0]
    masked = read_and_decode(decoder, embeds, create(top(1), compact=False), added)[0]
    np.testing.assert_allclose(compacted, masked, atol=2e-5)


def test_ratios_share_one_compilation(decoder, embeds):
    """Tables are traced: masks for three shares in one vmapped run equal three single ones."""
    masks = [create(top(2, keep), compact=False) for keep in (0.1, 0.3, 1.0)]
    traces = []

    @jax.jit
    def logits(inner):
        traces.append(None)
        return read_and_decode.__wrapped__(decoder, embeds, inner)[0]

    single = jnp.stack([logits(inner) for inner in masks])
    assert len(traces) == 1
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *masks)
    np.testing.assert_allclose(jax.vmap(logits)(stacked), single, atol=2e-5)


# --- DyCoke's decoding stage -----------------------------------------------------------------------------------------


def dynamic(layer=2, keep=0.3, threshold=0.9, mode="official"):
    return InnerStage(layer, DynamicDecode(threshold, mode), Kept(keep, "floor"))


@pytest.mark.parametrize("mode", ["official", "paper"])
@pytest.mark.slow
def test_deep_layers_read_what_the_policy_chose(decoder, embeds, plain, mode):
    """Against the same steps with the choice made in numpy; a threshold in between renews in some steps only."""
    threshold = 0.97
    logits, cache, _ = read_and_decode(decoder, embeds, create(dynamic(threshold=threshold, mode=mode)))
    before = jax.jit(lambda d, e: prefill_plain(d, e))(decoder, embeds)
    video = VISUAL & (np.cumsum(VISUAL[:, ::-1], axis=1)[:, ::-1] > 1)
    size = before.segments[0].capacity
    video = np.pad(video, ((0, 0), (0, size - S)))
    previous, kept, renewed = None, video.copy(), []

    @jax.jit
    def shallow(tokens, cache):
        x, valid = decoder.embed_text(tokens)[:, None], jnp.ones((2, 1), bool)
        step = decoder.step(cache.position[:, None], valid)
        return decoder.run(x, step, 0, 2, past=cache.segments[0], rows=jnp.zeros((2, 1), jnp.int32))

    @jax.jit
    def deep(x, out, cache, read):
        valid, part = jnp.ones((2, 1), bool), cache.segments[0]
        step = decoder.step(cache.position[:, None], valid)
        x, rest = decoder.run(x, step, 2, LAYERS, past=part, past_valid=part.valid & read)
        part = part.append(jnp.concatenate([out.k, rest.k]), jnp.concatenate([out.v, rest.v]), valid)
        return decoder.logits(x[:, 0]), dataclasses.replace(cache, segments=(part,), position=cache.position + 1)

    for i, tokens in enumerate(TOKENS):
        x, out = shallow(jnp.asarray(tokens), before)
        now = np.asarray(out.attention)[1, :, :, 0, :size].mean(axis=1) * video
        for row in range(2):
            norms = [np.linalg.norm(a) for a in (now[row], now[row] if previous is None else previous[row])]
            cosine = 0.0 if previous is None else float(now[row] @ previous[row]) / (norms[0] * norms[1])
            renewed.append(cosine < threshold)
            if cosine < threshold:
                places = np.flatnonzero(video[row])
                best = places[np.argsort(-now[row][places], kind="stable")[: int(len(places) * 0.3)]]
                kept[row] = np.isin(np.arange(size), best)
            elif mode == "official":
                kept[row] = video[row]
        previous = now
        step, before = deep(x, out, before, jnp.asarray(~video | kept))
        np.testing.assert_allclose(logits[i + 1], step, atol=2e-5)
        assert (np.abs(np.asarray(step) - plain[i + 1]).max() > 1e-4) or not renewed[-2:].count(True)
    assert (np.asarray(cache.policy.kept) == kept).all()


def prefill_plain(decoder, embeds):
    slots = jnp.broadcast_to(jnp.arange(S), (2, S))
    return read_prompt(decoder, embeds, slots, jnp.asarray(VALID), decoder.empty_cache(2, S + STEPS)).cache


# --- counts, draws, settings -----------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(keep=st.floats(0, 1), most=st.integers(0, 300))
def test_tables_count_as_python_does(keep, most):
    assert Kept(keep, "round").table(most).tolist() == [round(n * keep) for n in range(most + 1)]
    assert Kept(keep, "ceil").table(most).tolist() == [min(math.ceil(n * keep), n) for n in range(most + 1)]
    floor = Kept(keep, "floor").table(most)
    parts = np.random.default_rng(most).multinomial(most, [0.2, 0.3, 0.5])
    assert floor[parts].sum() <= floor[most]


def test_a_fixed_count_is_clipped_to_what_there_is():
    assert Kept(number=3).table(5).tolist() == [0, 1, 2, 3, 3, 3]


def test_shares_of_the_prompt_are_counted_once_and_limited_by_what_is_left():
    """PyramidDrop's int(576 * r): 288, 144, 72, though floors of floors differ for other numbers."""
    assert [Kept(r, "floor", of="prompt").table(576, 576)[-1] for r in (0.5, 0.25, 0.125)] == [288, 144, 72]
    assert Kept(0.5, "floor", of="prompt").table(9, 10).tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]


def test_a_draw_depends_on_seed_and_place_alone():
    places = jnp.arange(40)
    draw = np.asarray(random_scores(7, places))
    assert (np.asarray(random_scores(7, places[5:9])) == draw[5:9]).all()
    assert (np.asarray(random_scores(8, places)) != draw).all()


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ((top(2), InnerStage(2, RandomDraw())), "two cuts stand before one layer"),
        ((InnerStage(2, StageRule()),), "StageRule is neither a cuts.protocol.CutRule, a DecodeRule nor"),
        ((top(0),), "its layer is at least 1, not 0"),
        ((top(1), dynamic()), "a decoding stage stands alone"),
        ((top(1), InnerStage(2, RandomDraw(trims=True))), "only the first cut"),
        ((InnerStage(2, TextInBlocks(), Kept(0.5, of="prompt")),), "cannot be counted from the whole prompt"),
        ((InnerStage(2, LastQueryTopK(renewal=Renewal("bank")), positions="renumber"),), "renewed .* keeps positions"),
        ((InnerStage(2, HalvingMerge(renewal=Renewal("bank"))),), "goes by the last query's attention"),
    ],
)
def test_stages_that_cannot_run_are_refused(stages, sentence):
    with pytest.raises(JvidpruneError, match=sentence):
        create(*stages)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: InnerStage(2, "most_red"), "must be a StageRule such as those of cuts.rules, got 'most_red'"),
        (lambda: InnerStage(-1, RandomDraw()), "layer must be at least 0, got -1"),
        (lambda: InnerStage(2, RandomDraw(), positions="shuffle"), "unknown positions 'shuffle'"),
        (lambda: Kept(1.5), "must lie in"),
        (lambda: Kept(0.5, "up"), "unknown rounding 'up'"),
        (lambda: Kept(number=-1), "must be at least 0"),
        (lambda: LastQueryTopK(newlines="some"), "unknown newlines 'some'"),
        (lambda: DynamicDecode(mode="fast"), "unknown mode 'fast'"),
        (lambda: Renewal("often"), "unknown mode 'often'"),
        (lambda: Renewal("bank", math.nan), "shift must be a number"),
    ],
)
def test_stages_say_what_their_settings_may_be(make, sentence):
    with pytest.raises(JvidpruneError, match=sentence):
        make()


def test_a_cache_without_the_boundary_is_refused(decoder, embeds):
    with pytest.raises(JvidpruneError, match="no boundary at layer 2"):
        prefill_with(decoder, embeds, create(top(2)), decoder.empty_cache(2, S))
    with pytest.raises(JvidpruneError, match="a cache of one segment"):
        prefill_with(decoder, embeds, create(dynamic()), decoder.empty_cache(2, S, (1,)))
    with pytest.raises(JvidpruneError, match="does not fit a cache of 8 slots"):
        prefill_with(decoder, embeds, create(top(2)), decoder.empty_cache(2, (S, 8), (2,)))
    with pytest.raises(JvidpruneError, match=r"were made for prompts \(2, 32\)"):
        prefill_with(decoder, embeds[:, :9], create(top(2)), decoder.empty_cache(2, S, (2,)))


def prefill_with(decoder, embeds, inner, cache):
    slots = jnp.broadcast_to(jnp.arange(embeds.shape[1]), embeds.shape[:2])
    return jax.eval_shape(
        lambda e, c: read_prompt(decoder, e, slots, jnp.ones(slots.shape, bool), c, inner=inner), embeds, cache
    )


# --- from a reducer to an answer -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(untrained.write(tmp_path_factory.mktemp("model")))


def test_newlines_compete_where_the_references_let_them():
    slots = one_run(3, 4, np.array([0, 1, -1, 2, 3, -1]), max_positions=99, reserve=1)
    stages = {
        "official": top(1, 0.5),
        "protected": top(1, 0.5, newlines="never"),
        "all": top(1, 0.5, newlines="always"),
    }
    visual = {
        (name, kind): np.flatnonzero(prompt_inner([stage], slots, 7, newline=kind, layers=4).visual[0]).tolist()
        for name, stage in stages.items()
        for kind in ("frame", "one_token")
    }
    everything, content = [3, 4, 5, 6, 7, 8], [3, 4, 6, 7]
    assert visual["official", "frame"] == visual["all", "frame"] == visual["all", "one_token"] == everything
    assert visual["official", "one_token"] == visual["protected", "frame"] == content
    assert prompt_inner([top(4, 0.5)], slots, 7, newline="frame", layers=4) is None


def test_blocks_follow_their_rows():
    slots = one_run(2, 2, np.array([1, 0, -1]), max_positions=99, reserve=1)
    stage = InnerStage(1, TextInBlocks(), Kept(0.5, "floor"))
    inner = prompt_inner([stage], slots, 4, newline="one_token", layers=4, block=np.array([6, 7, -1]))
    assert inner.block[0, :5].tolist() == [0, 0, 7, 6, 0]
    assert np.flatnonzero(inner.text_queries[0]).tolist() == [5, 6]


@pytest.mark.slow
def test_an_answer_with_a_cut_equals_generation_with_the_same_tokens_hidden(llm):
    frames = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)
    reducer = reducers.get("fastv", layer=1)
    video = llm.encode(frames)
    answer = llm.ask(video, "What?", reducer=reducer, ratio=0.25, max_new_tokens=5)
    one = llm.reduce(video, reducer=reducer, ratio=0.25)
    reduced = one.reduced
    slots, text = llm.lay_out([one], "What?", 5)
    model, length = llm.loaded.model, slots.length
    table = jnp.concatenate([model.embed_text(jnp.asarray(text)), model.newline[None], reduced.tokens])
    x, where = table[slots.source[:length]][None], np.arange(length)[None]
    content = (where >= slots.visual[0]) & (where < slots.visual[1] - 1)
    inner = Inner.create(reducer.inner(0.25), content, np.ones((1, length), bool), layers=3, compact=False)
    ids = generate(model, x, where, np.ones((1, length), bool), max_new_tokens=5, inner=inner)[0].tolist()
    assert answer.token_ids == tuple(ids[: len(answer.token_ids)])
    _, cache = prefill(model, x, where, np.ones((1, length), bool), capacity=length, inner=inner)
    kept = [int(part.valid.sum()) for part in cache.segments]
    assert kept == [length, length - int(content.sum()) + round(0.25 * int(content.sum()))]


@pytest.mark.parametrize(
    "reducer",
    [
        reducers.get("prunevid", selected_layer=0),
        reducers.get("dycoke", mode="fixed", decode_layer=1),
    ],
    ids=lambda reducer: reducer.info.name,
)
@pytest.mark.slow
def test_every_method_with_an_inner_stage_answers(llm, reducer):
    frames = np.random.default_rng(1).integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)
    video = llm.encode(frames, reducer=reducer)
    answer = llm.ask(video, "What?", reducer=reducer, ratio=0.5, max_new_tokens=3)
    assert len(reducer.inner(0.25)) == 1
    assert 0 < answer.kept < answer.visual
