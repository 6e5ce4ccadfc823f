"""Schedules of the information horizon: published counts, ratios, hosts, refusals."""

import numpy as np
import pytest
from helpers import reducer_checks as checks

from jvidprune import reducers
from jvidprune.reducers.divprune import DivPrune
from jvidprune.reducers.information_horizon import SCHEDULES, InformationHorizon
from jvidprune.tokens import Layout

IMAGE = Layout(1, (24, 24))


def lengths(reducer, ratio, layout=IMAGE):
    """Visual tokens that every layer reads."""
    left, found, start = reducer.capacity(layout, ratio), [], 0
    for stage in reducer.inner(ratio):
        found += [left] * (stage.layer - start)
        left, start = stage.kept.count(left), stage.layer
    return [*found, *[left] * (reducer.depth - start)]


@pytest.mark.parametrize(("host", "then"), [(host, then) for host, then in SCHEDULES if host != "none"])
@pytest.mark.parametrize("mean", [192, 64])
def test_the_published_schedules(host, then, mean):
    """The ratio of a published schedule is its mean, and its counts are those of the scripts."""
    known = SCHEDULES[host, then][mean]
    expected = {
        ("divprune", "random"): {192: 191.75, 64: 63.75},
        ("divprune", "drop"): {192: 177.5, 64: 64.3125},
        ("dart", "random"): {192: 192.0, 64: 63.75},
        ("dart", "drop"): {192: 190.375, 64: 64.875},
    }[host, then][mean]
    before = 576 if host == "dart" else known.first
    counts = [before] * known.host_layer + [known.first] * (known.layer - known.host_layer)
    counts += [known.last] * (32 - known.layer)
    assert np.mean(counts) == expected
    assert lengths(InformationHorizon(host, then), expected / 576) == counts
    numbers = InformationHorizon(
        host, then, layer=known.layer, host_layer=known.host_layer or None, numbers=(known.first, known.last)
    )
    assert lengths(numbers, 1.0) == counts


@pytest.mark.parametrize(("host", "then"), [hosts for hosts in SCHEDULES if hosts != ("none", "drop")])
@pytest.mark.parametrize("depth", [28, 32])
def test_the_mean_share_over_layers_is_the_ratio(host, then, depth):
    layout, most = Layout(32, (14, 14)), 0.64 if then == "drop" else 1.0
    reducer = InformationHorizon(host, then, depth=depth)
    for ratio in (0.2, 0.4, 0.64, 0.9, 1.0):
        # Everything is dropped in the last part, so that the mean cannot be more; without a host it is what it is.
        if ratio > most * 0.95 or (host == "none" and ratio < 0.66):
            continue
        counts = lengths(reducer, ratio, layout)
        assert np.mean(counts) / layout.total == pytest.approx(ratio, abs=2e-3)
        assert counts == sorted(counts, reverse=True)


def test_the_host_is_divprune_itself():
    video = checks.make_video()
    found = checks.reduce(InformationHorizon(numbers=(20, 4)), video, 0.5)
    np.testing.assert_array_equal(found.index, checks.reduce(DivPrune(), video, 20 / 120).index)
    assert int(found.count) == 20
    (stage,) = InformationHorizon(numbers=(20, 4), seed=7).inner(0.5)
    assert (stage.layer, stage.positions, stage.seed, stage.kept.count(20)) == (20, "renumber", 7, 4)


def test_ratios_share_a_compilation_and_padding_changes_nothing():
    checks.check_sweep(InformationHorizon(), checks.make_video(), [0.05, 0.3, 0.6])
    checks.check_padding(InformationHorizon(), checks.make_video(), 0.3)


def test_layers_follow_the_depth_of_the_model():
    assert InformationHorizon(depth=28).inner(0.3)[0].layer == 20 * 28 // 32
    assert reducers.get("information_horizon", "qwen3_vl", 36).inner(0.3)[0].positions == "keep"
    assert reducers.get("information_horizon", "llava_video", 28).depth == 28
    assert reducers.get("information_horizon", None, 28, depth=32, layer=9).inner(0.3)[0].layer == 9


def test_settings_that_contradict_each_other_are_refused():
    checks.refused(lambda: InformationHorizon(then="drop", numbers=(30, 4)), "second of numbers is 0, got 4")
    checks.refused(lambda: InformationHorizon("dart", layer=2, host_layer=2), "must lie before the last stage's")
    checks.refused(lambda: InformationHorizon("dart", host_layer=4).inner(0.1), "layers 0 to 3 of 32.*0.125 alone")
    checks.refused(lambda: InformationHorizon("none").inner(0.5), "layers 0 to 19 of 32.*0.625 alone")
    checks.refused(lambda: InformationHorizon("fastv"), "fastv")
