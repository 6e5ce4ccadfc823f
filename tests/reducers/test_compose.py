"""Chains of reducers: one plan over the original tokens that equals running the stages by hand."""

import jax
import numpy as np
import pytest

import jvidprune as jv
from jvidprune.ops.transport import FixedSinkhorn, Transport
from jvidprune.reducers.compose import Sequential, chain
from jvidprune.reducers.controls import AttentionTopK, Random
from jvidprune.reducers.ottvid import OTTVid
from jvidprune.reducers.programs import run_budgets
from jvidprune.reducers.protocol import inner_stages
from jvidprune.reducers.stop import SToP
from jvidprune.reducers.visionzip import VisionZip
from jvidprune.tokens import stack_budgets

T, N, D = 4, 16, 6
TOP = AttentionTopK(scope="frame")
ZIP = VisionZip(tower="none", dominant_share=0.5)
OTT = OTTVid(transport=Transport(solver=FixedSinkhorn(iterations=20)))


def make_video(seed=0):
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.normal(size=(1, N, D)), T, 0) + 0.4 * rng.normal(size=(T, N, D))
    evidence = {"attention_last": rng.random((T, N)), "keys": rng.normal(size=(T, N, 5))}
    arrays = {name: value.astype(np.float32) for name, value in evidence.items()}
    return jv.VideoTokens.create(x.astype(np.float32), arrays)


def rows(reduced):
    k = int(reduced.count)
    return np.asarray(reduced.tokens)[:k], np.asarray(reduced.index)[:k], np.asarray(reduced.mass)[:k]


def by_hand(first, kept, first_budget, second, ratio, video):
    """Runs both stages through the public calls and maps ids, masses and slots back with numpy."""
    budgets = stack_budgets([first_budget])
    one = jax.tree.map(lambda leaf: leaf[0], run_budgets(first, video, budgets, capacity=T * kept))
    ids = np.asarray(one.index)

    def gather(a):
        return np.asarray(a).reshape(T * N, -1)[ids].reshape(T, kept, *a.shape[2:])

    evidence = {name: gather(value) for name, value in video.evidence.items()}
    inner = jv.VideoTokens.create(np.asarray(one.tokens).reshape(T, kept, D), evidence, grid=(1, kept))
    two = jv.reduce(second, inner, ratio)
    tokens, index, _ = rows(two)
    mass = np.zeros(len(tokens), int)
    first_slot, second_slot = np.asarray(one.slot), np.asarray(two.slot)
    slot = np.where(first_slot >= 0, second_slot[np.maximum(first_slot, 0)], -1)
    for source in slot[slot >= 0]:
        mass[source] += 1
    return tokens, ids[index], mass, slot


@pytest.mark.parametrize(
    ("first", "second"),
    [(TOP, OTT), (ZIP, AttentionTopK()), (ZIP, ZIP)],
    ids=["selects-transports", "merges-selects", "merges-merges"],
)
@pytest.mark.slow
def test_equals_running_the_stages_by_hand(first, second):
    video = make_video()
    both = Sequential(first, second, ladder=(0.5,))
    out = jv.reduce(both, video, 0.25)
    kept = first.tokens_per_frame(video.layout(), 0.5)
    tokens, index, mass, slot = by_hand(first, kept, first.budget(video.layout(), 0.5), second, 0.25 * N / kept, video)
    ours, ids, weights = rows(out)
    np.testing.assert_array_equal(ids, index)
    np.testing.assert_allclose(ours, tokens, atol=2e-6)
    np.testing.assert_array_equal(weights, mass)
    np.testing.assert_array_equal(np.asarray(out.slot), slot)


@pytest.mark.slow
def test_mass_counts_every_source_that_was_not_dropped():
    out = jv.reduce(Sequential(ZIP, ZIP), make_video(3), 0.2)
    slot = np.asarray(out.slot)
    assert (slot >= 0).all(), "VisionZip drops nothing, so a chain of two of them must not either"
    np.testing.assert_array_equal(np.asarray(out.mass)[: int(out.count)].sum(), T * N)


@pytest.mark.slow
def test_counts_hold_and_the_first_stage_takes_the_nearest_usable_rung():
    video = make_video()
    both = Sequential(TOP, AttentionTopK(), split=0.5)
    for ratio, handed in [(0.9, N), (0.25, N // 2), (0.1, N // 4), (0.02, N // 8)]:
        out = jv.reduce(both, video, ratio, diagnostics=True)
        assert int(out.diagnostics["handed_over_per_frame"]) == handed
        assert int(out.count) == max(1, int(ratio * T * N + 0.5))
    all_first = Sequential(TOP, AttentionTopK(), split=1.0, ladder=(0.25, 1.0))
    out = jv.reduce(all_first, video, 0.25)
    np.testing.assert_array_equal(np.sort(out.index[: int(out.count)]), np.sort(jv.reduce(TOP, video, 0.25).index[:16]))


@pytest.mark.slow
def test_three_stages_and_shares():
    video = make_video(7)
    three = chain(TOP, TOP, AttentionTopK(), shares=(1, 1, 2), ladder=(0.5, 1.0))
    assert isinstance(three, Sequential)
    assert three.split == pytest.approx(0.25)
    assert three.second.split == pytest.approx(1 / 3)
    assert int(jv.reduce(three, video, 0.125).count) == round(0.125 * T * N)
    assert chain(TOP) is TOP
    nested = Sequential(Sequential(TOP, TOP, ladder=(0.5,)), Random(), ladder=(0.5,))
    assert int(jv.reduce(nested, video, 0.125).count) == round(0.125 * T * N)


@pytest.mark.slow
def test_stop_around_a_stage_and_around_the_chain():
    video = make_video(8)
    inside = jv.reduce(Sequential(SToP(ZIP, mu_s=0.5), TOP, ladder=(0.5,)), video, 0.2)
    around = jv.reduce(SToP(Sequential(ZIP, TOP, ladder=(0.5,)), mu_s=0.0, gated=True), video, 0.2)
    plain = jv.reduce(Sequential(ZIP, TOP, ladder=(0.5,)), video, 0.2)
    np.testing.assert_array_equal(around.index, plain.index)
    assert int(inside.count) > 0


def test_what_cannot_be_chained_is_refused_in_one_sentence():
    with pytest.raises(jv.JvidpruneError, match="cannot be the first stage"):
        Sequential(OTT, ZIP)
    with pytest.raises(jv.JvidpruneError, match="cannot be the first stage"):
        Sequential(AttentionTopK(), ZIP)
    with pytest.raises(jv.JvidpruneError, match="second must be a reducer"):
        Sequential(TOP, 3)
    with pytest.raises(jv.JvidpruneError, match="Did you mean 'flashvid'"):
        Sequential(TOP, "flashvit")
    with pytest.raises(jv.JvidpruneError, match="cannot be the first stage"):
        Sequential(Sequential(TOP, OTT), ZIP)
    with pytest.raises(jv.JvidpruneError, match="FastV cannot be a later stage of Sequential: its cut"):
        Sequential(TOP, "fastv")
    assert inner_stages(Sequential(TOP, "fastv:dropped=0.75"), 0.1)[0].kept.share == 0.25
    with pytest.raises(jv.JvidpruneError, match="split"):
        Sequential(TOP, ZIP, split=1.5)
    with pytest.raises(jv.JvidpruneError, match="ladder"):
        Sequential(TOP, ZIP, ladder=())
    with pytest.raises(jv.JvidpruneError, match="shares"):
        chain(TOP, ZIP, shares=(1,))
