"""ZSPAPrune, a reconstruction: a plain version, and the properties that must hold of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import VideoTokens, reducers
from jvidprune.costs import flops
from jvidprune.models.checkpoint.published import published
from jvidprune.ops.maxmin import maxmin_order
from jvidprune.ops.similarity import frame_gram
from jvidprune.reducers.zspaprune import BLOCK, ZSPAPrune
from jvidprune.tokens import Layout


def asked(seed=0, frames=4, grid=(4, 5), dim=24, rows=5):
    """Random tokens with a random question: no ties."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(1, grid[0] * grid[1], dim)) + 0.7 * rng.normal(size=(frames, grid[0] * grid[1], dim))
    return VideoTokens.create(
        features.astype(np.float32), {"text": rng.normal(size=(rows, dim)).astype(np.float32)}, grid=grid
    )


def unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(norm > 0, x / np.where(norm > 0, norm, 1), 0)


def plain(tokens, text, core, keep, rule="max-min", vector="mean"):
    """Picks in order, written as the description goes."""
    v = unit(np.asarray(tokens, np.float64))
    rows = np.asarray(text, np.float64)
    relevance = v @ unit((unit(rows) if vector == "normed mean" else rows).mean(axis=0))
    taken = [int(i) for i in np.argsort(-relevance, kind="stable")[:core]]
    while len(taken) < keep:
        cosine = v @ v[taken].T
        near = cosine.max(axis=1) if rule == "max-min" else cosine.min(axis=1)
        near[taken] = np.inf
        taken.append(int(near.argmin()))
    return taken


def picks(reducer, video, ratio, **given):
    """Ids in the order in which they were taken, of one list."""
    reduced = jvidprune.reduce(reducer, video, ratio, diagnostics=True, **given)
    turn = np.asarray(reduced.diagnostics["turn"]).reshape(-1)
    return np.argsort(turn, kind="stable")[: int(reduced.count)].tolist()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999),
    ratio=st.sampled_from([0.02, 0.1, 0.35, 0.8]),
    core=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    rule=st.sampled_from(["max-min", "min-min"]),
    vector=st.sampled_from(["mean", "normed mean"]),
)
@pytest.mark.slow
def test_the_whole_video_equals_the_plain_version(seed, ratio, core, rule, vector):
    video = asked(seed)
    reducer = ZSPAPrune(core=core, rule=rule, vector=vector)
    keep = max(1, round(80 * ratio))
    tokens, text = np.asarray(video.features).reshape(80, -1), video.evidence["text"]
    expected = plain(tokens, text, max(1, int(core * keep)), keep, rule, vector)
    assert picks(reducer, video, ratio, capacity=80) == expected
    reduced = checks.reduce(reducer, video, ratio)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], sorted(expected))
    checks.check_copies(video, reduced)


@pytest.mark.parametrize("rule", ["max-min", "min-min"])
def test_every_frame_by_itself_equals_the_plain_version(rule):
    video = asked(5)
    for ratio, keep in ((0.05, 1), (0.3, 6), (0.9, 18)):
        ids, _ = checks.valid_rows(checks.reduce(ZSPAPrune(scope="frame", rule=rule), video, ratio))
        frames = [plain(frame, video.evidence["text"], max(1, int(0.6 * keep)), keep, rule) for frame in video.features]
        np.testing.assert_array_equal(ids, [20 * t + i for t, taken in enumerate(frames) for i in sorted(taken)])
    tokens = ZSPAPrune(scope="frame").tokens_per_frame
    assert tokens is not None
    assert tokens(video.layout(), 0.3) == 6


@pytest.mark.slow
def test_cores_of_many_blocks_equal_the_plain_version():
    """The core is compared block by block; budgets end before, at and behind the ends of blocks."""
    video = asked(3, frames=5, grid=(7, 8))
    tokens, text = np.asarray(video.features).reshape(280, -1), video.evidence["text"]
    cores = (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5)
    for core in cores:
        reducer = ZSPAPrune(core_tokens=core)
        assert picks(reducer, video, 210 / 280, capacity=280) == plain(tokens, text, core, 210)
    swept = jvidprune.sweep(ZSPAPrune(core=0.8), video, [0.05, 0.3, 0.5, 0.95])
    for row, ratio in enumerate((0.05, 0.3, 0.5, 0.95)):
        keep = round(280 * ratio)
        ids = np.asarray(swept.index[row])[np.asarray(swept.valid[row])]
        np.testing.assert_array_equal(ids, sorted(plain(tokens, text, int(0.8 * keep), keep)))


def test_the_ends_of_both_settings():
    video = asked(1)
    x, question = unit(np.asarray(video.features).reshape(80, -1)), unit(np.asarray(video.evidence["text"]).mean(0))
    by_relevance = np.argsort(-(x @ question), kind="stable")
    assert picks(ZSPAPrune(core=1.0), video, 0.25) == by_relevance[:20].tolist()
    assert picks(ZSPAPrune(), video, 0.001) == [by_relevance[0]]
    np.testing.assert_array_equal(checks.reduce(ZSPAPrune(), video, 1.0).index, np.arange(80))
    # From the token that the common operation starts with, the order without a core is the common operation's.
    gram = frame_gram(video.features.reshape(1, 80, -1))
    order = np.asarray(maxmin_order(gram, None, steps=30, repeat="never"))[0].tolist()
    forced = dataclasses.replace(video, evidence={"text": video.features.reshape(80, -1)[order[0]][None]})
    assert picks(ZSPAPrune(core=0.0), forced, 30 / 80) == order


@pytest.mark.parametrize("rule", ["max-min", "min-min"])
def test_a_core_of_a_fixed_number_nests_the_sets(rule):
    swept = jvidprune.sweep(ZSPAPrune(core_tokens=9, rule=rule), asked(2), [0.05, 0.1, 0.2, 0.5, 1.0])
    kept = [set(np.asarray(ids)[valid].tolist()) for ids, valid in zip(swept.index, swept.valid, strict=True)]
    assert kept[0] < kept[1] < kept[2] < kept[3] < kept[4] == set(range(80))


def test_lengths_of_tokens_and_of_the_question_change_nothing():
    video = asked(6)
    scale = 2.0 ** np.random.default_rng(0).integers(-3, 4, (4, 20, 1))
    longer = dataclasses.replace(video, features=video.features * scale.astype(np.float32))
    longer = longer.with_text(video.evidence["text"] * 8.0)
    for reducer in (ZSPAPrune(), ZSPAPrune(rule="min-min", scope="frame")):
        np.testing.assert_array_equal(
            checks.reduce(reducer, longer, 0.4).index, checks.reduce(reducer, video, 0.4).index
        )


def test_other_places_of_the_tokens_only_move_the_choice():
    video = asked(7)
    order = np.random.default_rng(1).permutation(80)
    moved = VideoTokens.create(video.features.reshape(80, -1)[order].reshape(4, 20, -1), video.evidence, grid=(4, 5))
    assert order[picks(ZSPAPrune(), moved, 0.4)].tolist() == picks(ZSPAPrune(), video, 0.4)


def test_copies_come_last_and_zero_tokens_and_a_still_video_are_chosen_from():
    video = asked(8)
    features = np.array(video.features).reshape(80, -1)
    features[40:] = features[:40] * 3.0
    copied = VideoTokens.create(features.reshape(4, 20, -1), video.evidence, grid=(4, 5))
    taken = picks(ZSPAPrune(core=0.0), copied, 60 / 80)
    assert set(np.asarray(taken[:40]) % 40) == set(range(40))
    assert taken[40:] == sorted(taken[40:])
    still = VideoTokens.create(np.ones((3, 4, 8), np.float32), {"text": np.ones((2, 8), np.float32)}, grid=(2, 2))
    np.testing.assert_array_equal(checks.valid_rows(checks.reduce(ZSPAPrune(), still, 0.5))[0], np.arange(6))
    nothing = VideoTokens.create(np.zeros((3, 4, 8), np.float32), {"text": np.zeros((2, 8), np.float32)}, grid=(2, 2))
    reduced = checks.reduce(ZSPAPrune(), nothing, 0.5)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], np.arange(6))


@pytest.mark.slow
def test_questions_of_different_lengths_in_a_batch_equal_single_ones():
    text = np.random.default_rng(4).normal(size=(3, 6, 24)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0]], bool)
    spoilt = np.where(mask[..., None], text, np.nan)
    videos = [asked(seed) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *videos)
    for reducer in (ZSPAPrune(), ZSPAPrune(vector="normed mean", scope="frame")):
        batched = jvidprune.reduce_batch(reducer, batch, 0.3, text=spoilt, text_mask=mask)
        many = jvidprune.reduce(reducer, videos[0], 0.3, text=text, text_mask=mask)
        for number, video in enumerate(videos):
            alone = jvidprune.reduce(reducer, video, 0.3, text=text[number][mask[number]])
            np.testing.assert_array_equal(batched.index[number], alone.index)
            first = jvidprune.reduce(reducer, videos[0], 0.3, text=text[number][mask[number]])
            np.testing.assert_array_equal(many.index[number], first.index)


def test_it_is_wrapped_and_chained_and_named_a_reconstruction():
    video = asked(9)
    wrapped = checks.reduce(reducers.get("stop", base="zspaprune"), video, 0.3)
    np.testing.assert_array_equal(wrapped.index, checks.reduce(ZSPAPrune(), video, 0.3).index)
    assert int(checks.reduce(reducers.from_text("zspaprune(scope='frame') + zspaprune"), video, 0.1).count) == 8
    assert reducers.info("zspaprune").label == "ZSPAPrune (reconstruction)"
    assert reducers.registry.title("stop(base=zspaprune)") == "SToP (base=zspaprune (reconstruction))"


def test_its_flops_grow_with_what_is_kept_and_never_with_all_pairs():
    report = flops.count_ratio(
        published("llava-onevision-7b"), Layout(32, (14, 14), (27, 27)), reducer=ZSPAPrune(), ratio=0.1
    )
    assert report.method == "ZSPAPrune (reconstruction)"
    # 2 M k D, and the core's last block twice.
    terms = ZSPAPrune().flops(Layout(32, (14, 14)), 3584, 0.1)
    assert sum(terms.values()) == pytest.approx(2 * 6272 * 627 * 3584, rel=0.15)


def test_impossible_settings_and_missing_questions_are_refused():
    checks.refused(lambda: ZSPAPrune(core=1.5), r"lie in \[0, 1\], got 1.5")
    checks.refused(lambda: ZSPAPrune(core_tokens=0), "core_tokens must be")
    checks.refused(lambda: reducers.get("zspaprune", rule="minmax"), "minmax")
    checks.refused(lambda: reducers.get("zspaprune", text="prompt"), "prompt")
    checks.refused(lambda: checks.reduce(ZSPAPrune(), checks.make_video(), 0.5), "needs the evidence text")
    empty = dataclasses.replace(asked(), evidence={"text": jnp.zeros((0, 24))})
    checks.refused(lambda: checks.reduce(ZSPAPrune(), empty, 0.5), "which has no tokens here")
