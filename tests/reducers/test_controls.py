"""Controls: exact counts, nested draws, even spacing, whole frames, attention ranks with and without a sink rule."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import Layout
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers import registry
from jvidprune.reducers.controls import AttentionTopK, FrameDrop, NormTopK, Random, Uniform, spread

CONTROLS = [Random(), Random(seed=3, scope="frame"), Uniform(), FrameDrop(), AttentionTopK(), AttentionTopK("frame")]
CONTROLS += [NormTopK(), NormTopK("frame")]


@pytest.mark.parametrize("reducer", CONTROLS, ids=repr)
@pytest.mark.parametrize("ratio", [0.001, 0.125, 0.3, 1.0])
def test_counts_round_half_up_and_are_exact(reducer, ratio):
    video = checks.make_video(frames=4)
    each = {"FrameDrop": (4, 20), "Uniform": (80, 1)}.get(type(reducer).__name__)
    each = each or ((80, 1) if reducer.scope == "video" else (20, 4))
    expected = max(1, int(np.floor(each[0] * ratio + 0.5))) * each[1]
    assert int(checks.reduce(reducer, video, ratio).count) == expected


@pytest.mark.parametrize("reducer", [Random(), AttentionTopK(), AttentionTopK("frame")], ids=repr)
def test_a_larger_budget_keeps_what_a_smaller_one_kept(reducer):
    swept = jvidprune.sweep(reducer, checks.make_video(), [0.1, 0.4, 0.6, 0.9])
    kept = [set(np.asarray(ids)[valid].tolist()) for ids, valid in zip(swept.index, swept.valid, strict=True)]
    assert all(small < large for small, large in itertools.pairwise(kept))


def test_seeds_and_frames_draw_differently():
    video = checks.make_video()
    one, other = (checks.valid_rows(checks.reduce(Random(seed), video, 0.5))[0] for seed in (0, 1))
    assert not np.array_equal(one, other)
    assert len({tuple(one[one // 20 == t] % 20) for t in range(6)}) == 6


@settings(max_examples=15, deadline=None)
@given(total=st.integers(1, 60_000), share=st.floats(0.0, 1.0))
def test_places_are_spread_evenly(total, share):
    count = max(1, int(total * share))
    places = spread(total, count)
    assert len(set(places.tolist())) == count
    assert 0 <= places[0] <= places[-1] < total
    gaps = np.diff(places)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
    assert abs(int(places[0]) - (total - 1 - int(places[-1]))) <= total // count + 1


def test_whole_frames_stay():
    ids, _ = checks.valid_rows(checks.reduce(FrameDrop(), checks.make_video(frames=8), 0.25))
    np.testing.assert_array_equal(ids, [*range(40, 60), *range(120, 140)])


def test_attention_ranks_by_video_or_frame():
    video = checks.make_video()
    attention = np.asarray(video.evidence["attention_last"])
    ids, _ = checks.valid_rows(checks.reduce(AttentionTopK(), video, 0.25))
    np.testing.assert_array_equal(ids, np.sort(np.argsort(-attention.reshape(-1), kind="stable")[:30]))
    ids, _ = checks.valid_rows(checks.reduce(AttentionTopK("frame"), video, 0.25))
    best = np.argsort(-attention, axis=1, kind="stable")[:, :5] + 20 * np.arange(6)[:, None]
    np.testing.assert_array_equal(ids, np.sort(best.reshape(-1)))


def test_norms_rank_by_video_or_frame():
    video = checks.make_video()
    norms = np.linalg.norm(np.asarray(video.features, np.float64), axis=-1)
    ids, _ = checks.valid_rows(checks.reduce(NormTopK(), video, 0.25))
    np.testing.assert_array_equal(ids, np.sort(np.argsort(-norms.reshape(-1), kind="stable")[:30]))
    ids, _ = checks.valid_rows(checks.reduce(NormTopK("frame"), video, 0.25))
    best = np.argsort(-norms, axis=1, kind="stable")[:, :5] + 20 * np.arange(6)[:, None]
    np.testing.assert_array_equal(ids, np.sort(best.reshape(-1)))


def test_a_sink_rule_replaces_the_attention():
    video, reducer = checks.make_video(), AttentionTopK("frame")
    worst = int(jnp.argmax(video.evidence["attention_last"].mean(0)))
    shared = reducer.prepare(video, capacity=6, sink=SinkRule(mu_s=100.0))
    assert (np.asarray(shared.rank)[:, worst] == 19).all()


def test_scopes_and_names():
    checks.refused(lambda: Random(scope="clip"), "scope 'clip'")
    checks.refused(lambda: AttentionTopK(scope="clip"), "scope 'clip'")
    assert registry.get("random", seed=7) == Random(7)
    assert int(Uniform().budget(Layout(2, (2, 2), padded_frames=3), 0.5).keep.sum()) == 4
