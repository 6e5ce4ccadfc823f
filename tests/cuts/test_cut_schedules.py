"""Several cuts in one decoder, positions kept or counted anew, and what a rule of one's own may read and return."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jvidprune import JvidpruneError
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.protocol import Chosen, CutRule, Probe
from jvidprune.cuts.rules import HalvingMerge, LastQueryTopK, RandomDraw
from jvidprune.models.base import VideoModel
from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.positions import VideoBlock, prompt_positions
from jvidprune.models.prefill import prefill, read_prompt
from jvidprune.models.rope import RopeConfig, Yarn
from jvidprune.ops.select import keep_top
from jvidprune.reducers.swiftvlm import SwiftVLM
from jvidprune.tokens import InnerStage, Kept

S, LAYERS, STEPS, WIDTH = 28, 5, 2, 24
SLOTS = np.arange(S)
# Row 0 fills its slots; row 1 is shorter, padded behind.
VALID = np.stack([SLOTS < S, SLOTS < 25])
VISUAL = np.broadcast_to((SLOTS >= 3) & (SLOTS < 21), (2, S))
TOKENS = np.array([[7, 9], [11, 3]])

CONFIGS = {
    "qwen2": {},
    "qwen3": {"qkv_bias": False, "qk_norm": True},
    "olmo": {
        "qkv_bias": False,
        "qk_norm": True,
        "qk_norm_whole": True,
        "norm_after": True,
        "yarn_layers": (1, 3),
        "rope": RopeConfig(yarn=Yarn(4.0, 16)),
    },
    "qwen2_5_vl": {"rope": RopeConfig(sections=(1, 1, 1))},
    "qwen3_vl": {"qkv_bias": False, "qk_norm": True, "rope": RopeConfig(sections=(1, 1, 1), interleaved=True)},
}
THREE_AXES = ("qwen2_5_vl", "qwen3_vl")


@dataclasses.dataclass(frozen=True)
class Ahead(CutRule):
    """PyramidDrop's rule: the attention that the layer behind the cut would pay."""

    probe: ClassVar[Probe] = "ahead"

    def choose(self, inputs, state):
        score = inputs.attention[:, 0].mean(axis=0)
        return Chosen(state.hidden, keep_top(score, state.visual, inputs.kept), score)


@dataclasses.dataclass(frozen=True)
class KeyNorm(CutRule):
    """DART's pivots: the largest L1 norms of keys, heads together."""

    probe: ClassVar[Probe] = "keys"

    def choose(self, inputs, state):
        score = jnp.abs(inputs.keys).sum(axis=(1, 2))
        return Chosen(state.hidden, keep_top(score, state.visual, inputs.kept), score)


@dataclasses.dataclass(frozen=True)
class MeanBehind(CutRule):
    """Keeps one token fewer and puts the mean of the others behind the kept ones, in the last one's role."""

    probe: ClassVar[Probe] = "last"

    def choose(self, inputs, state):
        size = state.visual.shape[0]
        score = inputs.attention[:, 0].mean(axis=0)
        kept = keep_top(score, state.visual, inputs.kept - 1) & state.visual
        rest = state.visual & ~kept
        first, last = jnp.argmax(state.visual), size - 1 - jnp.argmax(state.visual[::-1])
        # In front of the video, kept, merged (from the last token that is not kept), dropped, behind it.
        merged = size - 1 - jnp.argmax(rest[::-1])
        place = jnp.arange(size)
        kind = jnp.where(place < first, 0, jnp.where(place > last, 4, jnp.where(kept, 1, 3)))
        kind = kind.at[merged].set(2)
        order = jnp.argsort(kind, stable=True).astype(jnp.int32)
        mean = jnp.where(rest[:, None], state.hidden, 0).sum(axis=0) / jnp.maximum(rest.sum(), 1)
        hidden = jnp.where((kind == 2)[:, None], mean, state.hidden)[order]
        return Chosen(hidden, (kind != 3)[order], score[order], order=order)


@functools.cache
def decoder_of(name):
    sizes = {"vocab": 40, "width": WIDTH, "mlp": 32, "layers": LAYERS, "heads": 4, "kv_heads": 2, "head_dim": 6}
    return Decoder(
        DecoderConfig(**sizes | {"rope": RopeConfig(), "max_positions": 64} | CONFIGS[name]),
        dtype=jnp.float32,
        rngs=nnx.Rngs(3),
    )


@pytest.fixture(scope="module")
def embeds():
    return 3 * jax.random.normal(jax.random.key(1), (2, S, WIDTH))


def positions_of(name):
    """(2, S), or (3, 2, S) with a video of 2 x 3 x 3 tokens."""
    if name not in THREE_AXES:
        return np.broadcast_to(SLOTS, (2, S))
    ids = prompt_positions([3, VideoBlock(2, 3, 3), S - 21]).ids
    return np.stack([ids, ids], axis=1)


@jax.jit
def run(decoder, embeds, positions, valid, inner, added=None):
    """Logits of the prompt and of the steps, the cache, and what the cuts did."""
    cache = decoder.empty_cache(embeds.shape[0], inner.capacities(embeds.shape[1], STEPS), inner.boundaries)
    read = read_prompt(decoder, embeds, positions, valid, cache, inner=inner, deepstack=added)

    def step(cache, tokens):
        logits, cache = decoder.decode(tokens, cache)
        return cache, logits

    cache, logits = jax.lax.scan(step, read.cache, jnp.asarray(TOKENS)[:, : embeds.shape[0]])
    return jnp.concatenate([read.logits[None], logits]), cache, read.cuts


def create(stages, **options):
    return Inner.create(stages, VISUAL, VALID, layers=LAYERS, **options)


def schedule(positions, cuts=3):
    """Three cuts, or the last two of them: before all layers, looking ahead, and merging."""
    stages = (
        InnerStage(0, RandomDraw(), Kept(0.8, "floor"), positions, seed=4),
        InnerStage(2, Ahead(), Kept(0.6, "floor", of="prompt"), positions),
        InnerStage(4, HalvingMerge(), Kept(0.5, "round"), positions),
    )
    return stages[3 - cuts :]


CASES = [
    ("qwen2", 2, "keep"),
    *((name, 3, "keep") for name in CONFIGS if name != "qwen3"),
    *((name, 3, "renumber") for name in CONFIGS if name not in (*THREE_AXES, "qwen3")),
    *(pytest.param(name, 2, "keep", marks=pytest.mark.long) for name in CONFIGS if name != "qwen2"),
    *(pytest.param("qwen3", 3, positions, marks=pytest.mark.long) for positions in ("keep", "renumber")),
]


@pytest.mark.parametrize(("name", "cuts", "positions"), CASES)
@pytest.mark.slow
def test_masking_equals_compaction(embeds, name, cuts, positions):
    stages, decoder, where = schedule(positions, cuts), decoder_of(name), positions_of(name)
    logits, short, records = run(decoder, embeds, where, VALID, create(stages))
    masked, long, marks = run(decoder, embeds, where, VALID, create(stages, compact=False))
    np.testing.assert_allclose(logits, masked, atol=3e-5)
    lengths = [part.valid.sum(axis=1).tolist() for part in short.segments]
    assert lengths == [part.valid.sum(axis=1).tolist() for part in long.segments]
    # 18 visual tokens: int(14.4), then int(0.6 * 18) of the prompt's number, then round(5.0).
    visual = [18, 14, 10, 5][-len(lengths) :] if cuts == 3 else [18, 10, 5]
    assert lengths == [[STEPS + 10 + n, STEPS + 7 + n] for n in visual]
    for record, mark in zip(records, marks, strict=True):
        for row in range(2):
            kept, also = (np.asarray(one.source)[row][np.asarray(one.survivors)[row]] for one in (record, mark))
            assert kept.tolist() == also.tolist()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in THREE_AXES])
@pytest.mark.slow
def test_renumbered_layers_count_what_they_hold(embeds, name):
    """By hand, without a cache: each stretch of layers reads its tokens and the answer at positions 0, 1, 2, ..."""
    decoder = decoder_of(name)
    stages = (
        InnerStage(1, LastQueryTopK(), Kept(0.6), "renumber"),
        InnerStage(2, RandomDraw(), Kept(0.5)),
        InnerStage(4, KeyNorm(), Kept(0.5), "renumber"),
    )
    logits, cache, records = run(decoder, embeds, positions_of(name), VALID, create(stages))
    answer = decoder.embed_text(jnp.asarray(TOKENS[:, 0]))
    x, at, positions = jnp.concatenate([embeds[0], answer]), np.arange(S + STEPS), np.arange(S + STEPS)
    for (start, stop), record in zip([(0, 1), (1, 2), (2, 4), (4, LAYERS)], [None, *records], strict=True):
        if record is not None:
            kept = np.asarray(record.source)[0][np.asarray(record.survivors)[0]]
            stay = np.isin(at, [*kept, *range(S, S + STEPS)])
            x, at, positions = x[stay], at[stay], positions[stay]
            # The cut before layer 2 keeps the positions that the one before it gave.
            positions = positions if start == 2 else np.arange(len(at))
        step = decoder.step(positions[None], jnp.ones((1, len(at)), bool))
        x = decoder.run(x[None], step, start, stop)[0][0]
    np.testing.assert_allclose(logits[:, 0], decoder.logits(x)[-STEPS - 1 :], atol=3e-5)
    assert cache.segments[0].shift is None
    for part in (cache.segments[1], cache.segments[3]):
        # A new token stands behind what its layer holds.
        assert (cache.position - part.shift).tolist() == part.valid.sum(axis=1).tolist()
    assert cache.segments[2].shift.tolist() == cache.segments[1].shift.tolist()


def test_positions_of_three_axes_are_not_counted_anew(embeds):
    with pytest.raises(JvidpruneError, match="time, height and width cannot be counted anew"):
        run(decoder_of("qwen3_vl"), embeds, positions_of("qwen3_vl"), VALID, create(schedule("renumber")))


@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.slow
def test_schedules_that_keep_everything_change_nothing(embeds, positions):
    decoder, where = decoder_of("qwen2"), positions_of("qwen2")
    stages = [dataclasses.replace(stage, kept=Kept(1.0)) for stage in schedule(positions)]
    whole = run(decoder, embeds, where, VALID, create([]))[0]
    np.testing.assert_allclose(run(decoder, embeds, where, VALID, create(stages))[0], whole, atol=2e-5)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.slow
def test_padding_on_either_side_changes_nothing(embeds, compact):
    """The shorter prompt padded in front and behind: draws go by the place in the prompt, so none is in this one."""
    decoder, stages = decoder_of("qwen2"), schedule("renumber", 2)
    logits = []
    for pad in ((0, 3), (3, 0)):
        fill = ((0, 0), pad)
        valid = np.pad(np.ones((1, 25), bool), fill)
        inner = Inner.create(stages, np.pad(VISUAL[1:, :25], fill), valid, layers=LAYERS, compact=compact)
        x = jnp.pad(embeds[1:, :25], (*fill, (0, 0)))
        logits.append(run(decoder, x, np.maximum(np.cumsum(valid, axis=1) - 1, 0), valid, inner)[0])
    np.testing.assert_allclose(*logits, atol=3e-5)


def test_counts_of_a_schedule_share_one_compilation(embeds):
    decoder, where = decoder_of("qwen2"), positions_of("qwen2")

    def told(share):
        kept = Kept(share, "floor", of="prompt")
        return create([dataclasses.replace(stage, kept=kept) for stage in schedule("renumber")], compact=False)

    before = run._cache_size()
    found = [run(decoder, embeds, where, VALID, told(share))[0] for share in (0.2, 0.5, 0.9)]
    assert run._cache_size() - before == 1
    assert np.abs(np.asarray(found[0]) - np.asarray(found[2])).max() > 1e-2


def test_a_step_makes_one_table_of_angles_unless_positions_shift(embeds):
    """Nothing is paid for cuts that keep positions."""
    decoder, where = decoder_of("qwen2"), positions_of("qwen2")

    def tables(positions):
        inner = create(schedule(positions))
        cache = jax.eval_shape(run, decoder, embeds, where, VALID, inner)[1]
        return str(jax.make_jaxpr(Decoder.decode)(decoder, jnp.zeros(2, jnp.int32), cache)).count(" cos ")

    assert tables("keep") == 1
    assert tables("renumber") == 3


# --- what a rule may read and return ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2", "olmo", "qwen3_vl"])
@pytest.mark.parametrize("layer", [0, 1, 4])
@pytest.mark.slow
def test_looking_ahead_is_the_attention_of_the_next_layer(embeds, name, layer):
    decoder, where = decoder_of(name), jnp.asarray(positions_of(name))
    record = run(decoder, embeds, where, VALID, create([InnerStage(layer, Ahead(), Kept(0.5))]))[2][0]
    last = VALID.sum(axis=1) - 1
    whole = jax.jit(Decoder.forward)(decoder, embeds, where, jnp.asarray(VALID), rows=last[:, None])
    np.testing.assert_allclose(record.score, whole.attention[layer, :, :, 0].mean(axis=1), atol=1e-6)


def test_keys_are_those_of_the_layer_before(embeds):
    decoder, where = decoder_of("qwen2"), jnp.asarray(positions_of("qwen2"))
    record = run(decoder, embeds, where, VALID, create([InnerStage(3, KeyNorm(), Kept(0.5))]))[2][0]
    _, outputs = decoder.run(embeds, decoder.step(where, VALID), 0, 3)
    np.testing.assert_allclose(record.score, jnp.abs(outputs.k[2]).sum(axis=(2, 3)), rtol=1e-5)


@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.slow
def test_merged_tokens_stand_where_the_rule_says(embeds, positions):
    """Masked, compacted, and by hand: kept tokens, their merged companion, then the text; DeepStack levels follow."""
    decoder, where = decoder_of("qwen2"), positions_of("qwen2")
    added = jax.random.normal(jax.random.key(2), (3, 2, S, WIDTH)) * VISUAL[None, :, :, None]
    stages = (InnerStage(2, MeanBehind(), Kept(0.4), positions), InnerStage(3, LastQueryTopK(), Kept(0.5), positions))
    logits, _, (record, _) = run(decoder, embeds, where, VALID, create(stages), added)
    masked = run(decoder, embeds, where, VALID, create(stages, compact=False), added)[0]
    np.testing.assert_allclose(logits, masked, atol=3e-5)
    alone = run(decoder, embeds, where, VALID, create(stages[:1]), added)[0]
    source = np.asarray(record.source)[0][np.asarray(record.survivors)[0]]
    kept = np.sort(source[3:10])
    assert source[3:10].tolist() == kept.tolist()
    assert source[:3].tolist() == [0, 1, 2]
    assert source[11:].tolist() == list(range(21, S))
    step = decoder.step(where[:1], jnp.ones((1, S), bool))
    x = decoder.run(embeds[:1], step, 0, 2, deepstack=added[:2, :1])[0][0]
    rest = np.setdiff1d(np.arange(3, 21), kept)
    assert source[10] == rest[-1]
    x = x[source].at[10].set(x[rest].mean(axis=0))[None]
    step = decoder.step((np.arange(len(source)) if positions == "renumber" else source)[None], jnp.ones((1, 18), bool))
    x = decoder.run(x, step, 2, 3, deepstack=added[2:, :1, source])[0]
    x = decoder.run(x, step, 3, LAYERS)[0]
    np.testing.assert_allclose(alone[0, 0], decoder.logits(x[0, -1]), atol=3e-5)


def test_tokens_that_move_cannot_be_cut_from_earlier_caches(embeds):
    inner = create([InnerStage(2, MeanBehind(trims=True), Kept(0.5))])
    with pytest.raises(JvidpruneError, match="change their slots"):
        run(decoder_of("qwen2"), embeds, positions_of("qwen2"), VALID, inner)


@dataclasses.dataclass(frozen=True)
class Greedy(CutRule):
    """Keeps everything, whatever its stage counts."""

    def choose(self, inputs, state):
        return Chosen(state.hidden, state.valid, state.hidden[:, 0])


def test_a_rule_that_keeps_too_much_is_refused_instead_of_losing_the_question(embeds):
    model, where = VideoModel(), positions_of("qwen2")
    model.lm = decoder_of("qwen2")
    stages = [InnerStage(1, Greedy(), Kept(0.5))]
    with pytest.raises(JvidpruneError, match="kept more tokens than its stage counts"):
        prefill(model, embeds, where, VALID, capacity=S, inner=create(stages))
    whole = prefill(model, embeds, where, VALID, capacity=S)[0]
    for told in (create(stages, compact=False), create([InnerStage(1, Greedy(), Kept(1.0))])):
        np.testing.assert_allclose(prefill(model, embeds, where, VALID, capacity=S, inner=told)[0], whole, atol=2e-5)


@dataclasses.dataclass(frozen=True)
class Bypass(CutRule):
    """SwiftVLM: the less attended tokens rest, their states put aside."""

    probe: ClassVar[Probe] = "last"
    keeps_roles: ClassVar[bool] = True

    def choose(self, inputs, state):
        score = inputs.attention[:, 0].mean(axis=0)
        survivors = keep_top(score, state.visual, inputs.kept)
        resting = state.visual & ~survivors
        return Chosen(state.hidden, survivors, score, {"hidden": state.hidden, "resting": resting})


@dataclasses.dataclass(frozen=True)
class RestoreAhead(CutRule):
    """All rested tokens come back before they are ranked by the next layer."""

    probe: ClassVar[Probe] = "ahead"
    brings_back: ClassVar[bool] = True

    def restore(self, state):
        hidden = jnp.where(state.side["resting"][:, None], state.side["hidden"], state.hidden)
        return state._replace(hidden=hidden, valid=state.valid | state.side["resting"])

    def choose(self, inputs, state):
        score = inputs.attention[:, 0].mean(axis=0)
        return Chosen(state.hidden, state.valid & keep_top(score, state.visual, inputs.kept), score)


def test_tokens_are_restored_before_they_are_ranked(embeds):
    decoder, where = decoder_of("qwen2"), positions_of("qwen2")
    stages = (InnerStage(1, Bypass(), Kept(number=6)), InnerStage(3, RestoreAhead(), Kept(number=9)))
    logits, cache, (first, second) = run(decoder, embeds, where, VALID, create(stages))
    assert [part.capacity for part in cache.segments] == [STEPS + n for n in (S, S - 12, S - 9)]
    resting = VISUAL[0] & ~np.asarray(first.survivors)[0]
    step, thin = (decoder.step(where[:1], jnp.asarray(mask)[None]) for mask in (VALID[0], VALID[0] & ~resting))
    before, _ = decoder.run(embeds[:1], step, 0, 1)
    x, _ = decoder.run(before, thin, 1, 3)
    x = jnp.where(resting[None, :, None], before, x)
    _, outputs = decoder.run(x, step, 3, 4, rows=jnp.full((1, 1), S - 1))
    score = np.asarray(outputs.attention)[0, 0, :, 0].mean(axis=0)
    np.testing.assert_allclose(second.score[0], score, atol=1e-6)
    best = np.flatnonzero(VISUAL[0])[np.argsort(-score[VISUAL[0]], kind="stable")[:9]]
    kept = np.asarray(second.survivors)[0]
    assert np.flatnonzero(kept & VISUAL[0]).tolist() == sorted(best.tolist())
    assert (kept & resting).any()
    x, _ = decoder.run(x, decoder.step(where[:1], jnp.asarray(kept)[None]), 3, LAYERS)
    np.testing.assert_allclose(logits[0, 0], decoder.logits(x[0, -1]), atol=3e-5)
    assert [int(part.valid[0].sum()) for part in cache.segments] == [STEPS + n for n in (S, S - 12, S - 9)]


@pytest.mark.parametrize("name", ["olmo", "qwen3_vl"])
@pytest.mark.slow
def test_tokens_come_back_to_their_slots(embeds, name):
    """Moved together or not between the cuts, with levels that are added to them in their own slots."""
    decoder, where = decoder_of(name), positions_of(name)
    added = jax.random.normal(jax.random.key(2), (3, 2, S, WIDTH)) if name == "qwen3_vl" else None
    stages = (
        InnerStage(0, RandomDraw(), Kept(0.9), seed=1),
        *SwiftVLM(cut_layers=(1, 2, 4), numbers=(5, 6, 3), groups=2, depth=LAYERS).inner(0.5),
    )
    logits, short, records = run(decoder, embeds, where, VALID, create(stages), added)
    masked, _, marks = run(decoder, embeds, where, VALID, create(stages, compact=False), added)
    np.testing.assert_allclose(logits, masked, atol=3e-5)
    assert [part.capacity - STEPS - 10 for part in short.segments] == [17, 7, 8, 3]
    for record, mark in zip(records, marks, strict=True):
        for row in range(2):
            kept, also = (np.asarray(one.source)[row][np.asarray(one.survivors)[row]] for one in (record, mark))
            assert kept.tolist() == also.tolist()
    # Some tokens were dropped at one cut and chosen at a later one.
    first, second, _ = (np.asarray(mark.diagnostics["keep"])[0] for mark in marks[1:])
    assert (second & ~first).any()


def test_cuts_between_which_tokens_rest():
    def refused(*stages):
        with pytest.raises(JvidpruneError) as caught:
            create(stages)
        return str(caught.value)

    first, last = InnerStage(1, Bypass(), Kept(number=6)), InnerStage(3, RestoreAhead(), Kept(number=9))
    assert "keep their roles" in refused(first, InnerStage(2, RandomDraw(), Kept(0.5)), last)
    assert "all of them keep positions" in refused(dataclasses.replace(first, positions="renumber"), last)

    class Back(RestoreAhead):
        probe = "keys"

    assert "cannot read that layer" in refused(first, InnerStage(3, Back(), Kept(number=9)))
    # In front of them and behind them others may stand.
    create((InnerStage(0, RandomDraw(), Kept(0.5)), first, last, InnerStage(4, RandomDraw(), Kept(0.5), "renumber")))
