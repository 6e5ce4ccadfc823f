"""FastV and the random cut: golden files, counts of the four implementations, what a ratio means."""

import numpy as np
import pytest
from helpers import reducer_checks as checks

import jvidprune as jv
from jvidprune import JvidpruneError, reducers
from jvidprune.cuts.inner import Inner
from jvidprune.reducers.fastv import FastV
from jvidprune.reducers.flashvid import FlashVID
from jvidprune.reducers.protocol import inner_stages


def kept(reducer, ratio, tokens):
    """Tokens that stay of a prompt with nothing but visual tokens and one of text."""
    visual = np.arange(tokens + 1)[None] < tokens
    return int(Inner.create(inner_stages(reducer, ratio), visual, visual | True, layers=32).cuts[0].table[tokens])


def test_the_four_implementations_count_differently():
    assert [kept(FastV(dropped=0.5), 1.0, n) for n in (45, 47, 576)] == [22, 24, 288]
    assert [kept(FastV(variant="lmms"), 0.5, n) for n in (45, 47, 576)] == [22, 23, 288]
    assert [kept(FastV(variant="mask", count=30), 0.1, n) for n in (20, 576)] == [20, 30]
    assert [stage.layer for r in (FastV(), FastV(variant="lmms"), FastV(layer=5)) for stage in r.inner(0.5)] == [
        2,
        3,
        5,
    ]


@pytest.mark.parametrize("name", ["fastv", "inner_random"])
def test_a_ratio_is_the_share_behind_the_cut(name):
    reducer = reducers.get(name)
    assert [kept(reducer, ratio, 6272) for ratio in (0.1, 0.25, 1.0)] == [627, 1568, 6272]
    video = checks.make_video()
    reduced = jv.reduce(reducer, video, 0.25)
    assert int(reduced.count) == video.layout().total
    np.testing.assert_array_equal(reduced.tokens, video.features.reshape(-1, video.features.shape[-1]))


def test_a_reducer_with_a_cut_of_its_own_share_ignores_the_ratio():
    assert inner_stages(FlashVID(), 0.1) == inner_stages(FlashVID(), 0.25) == FlashVID().inner(0.5)
    assert inner_stages(reducers.get("visionzip"), 0.1) == ()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"variant": "fast"}, "unknown variant 'fast'"),
        ({"layer": 0}, "before layer 1 at the earliest"),
        ({"dropped": 1.2}, "must lie in"),
        ({"variant": "mask"}, "need a count"),
        ({"count": 3}, "need a count"),
    ],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(JvidpruneError, match=sentence):
        FastV(**settings)
