"""PyramidDrop: schedules for a ratio, counts by the prompt's own number, refusals."""

import numpy as np
import pytest
from helpers import reducer_checks as checks

from jvidprune import reducers
from jvidprune.cuts.inner import Inner
from jvidprune.reducers.pyramiddrop import PyramidDrop


def schedule(reducer, ratio):
    return [(stage.layer, stage.kept.share) for stage in reducer.inner(ratio)]


def test_the_released_schedule_is_the_ratio_of_its_mean():
    """Layers 8, 16, 24 of 32 with 1/2, 1/4, 1/8: 270 of 576 tokens a layer."""
    assert schedule(PyramidDrop(depth=32), 0.46875) == [(8, 0.5), (16, 0.25), (24, 0.125)]
    counts = [stage.kept.count(576, 576) for stage in PyramidDrop(depth=32).inner(0.46875)]
    assert counts == [288, 144, 72]
    assert np.mean([576, *counts]) == 270
    assert [stage.layer for stage in PyramidDrop(depth=28).inner(0.5)] == [7, 14, 21]
    assert [stage.layer for stage in PyramidDrop(depth=32, stages=3).inner(0.5)] == [10, 21]


@pytest.mark.parametrize("depth", [24, 28, 31])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8, 1.0])
def test_the_mean_share_over_layers_is_the_ratio(depth, ratio):
    layers, shares = zip(*schedule(PyramidDrop(depth=depth), ratio), strict=True)
    lengths = np.diff([0, *layers, depth])
    assert lengths @ np.array([1.0, *shares]) / depth == pytest.approx(ratio, abs=1e-9)
    assert shares[1] == pytest.approx(shares[0] ** 2)


def test_counts_are_of_the_prompt_s_own_tokens():
    """int(n0 r_i) truncated from n0: 60 % of 37 is 22, 36 % is 13, where 60 % of 22 would be 13 and of 21 be 12."""
    reducer = PyramidDrop(cut_layers=(1, 2), shares=(0.6, 0.36))
    visual = np.arange(50)[None] < np.array([[37], [11], [0]])
    inner = Inner.create(reducer.inner(0.5), visual, np.ones((3, 50), bool), layers=9)
    left = np.array([37, 11, 0])
    for cut, expected in zip(inner.cuts, ([22, 6, 0], [13, 3, 0]), strict=True):
        left = np.asarray(cut.table)[np.arange(3), left]
        assert left.tolist() == expected
    assert [cut.capacity for cut in inner.cuts] == [50, 50]


def test_a_mean_below_the_first_stretch_is_refused():
    checks.refused(lambda: PyramidDrop(depth=28).inner(0.2), "layers 7, 14, 21 of 28.*at least 0.25, got 0.2")
    assert schedule(PyramidDrop(depth=28), 0.25) == [(7, 0.0), (14, 0.0), (21, 0.0)]
    # A schedule of one's own only checks the ratio.
    assert schedule(PyramidDrop(cut_layers=(2, 9), shares=(0.3, 0.1)), 0.05) == [(2, 0.3), (9, 0.1)]


def test_settings_of_families_and_depths():
    assert reducers.get("pyramiddrop", "qwen3_vl", 36).inner(0.5)[0].positions == "keep"
    other = reducers.get("pyramiddrop", "llava_video", 24)
    assert [stage.layer for stage in other.inner(0.5)] == [6, 12, 18]
    assert other.inner(0.5)[0].positions == "renumber"
    assert reducers.get("pyramiddrop", None, 24, depth=32).depth == 32
    assert PyramidDrop(cut_positions="renumber_prompt").inner(0.5)[0].positions == "renumber_prompt"


def test_settings_that_make_no_schedule_are_refused():
    checks.refused(lambda: PyramidDrop(cut_layers=(3, 3)), "must increase, got \\(3, 3\\)")
    checks.refused(lambda: PyramidDrop(cut_layers=(3, 5), shares=(0.5,)), "one a cut, got 1 for 2")
    checks.refused(lambda: PyramidDrop(cut_layers=(3, 5), shares=(0.2, 0.5)), "must not increase")
    checks.refused(lambda: PyramidDrop(stages=0), "stages")
