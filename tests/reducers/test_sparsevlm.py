"""SparseVLM: published lists, counts with merged tokens, refusals."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks

from jvidprune import reducers
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.sparsevlm import ListCount, RankCount, clusters, recycle
from jvidprune.reducers.sparsevlm import LISTS, SparseVLM

SPANS = {192: [309, 204, 113], 128: [312, 117, 39], 96: [249, 55, 27], 64: [82, 32, 18]}
"""Visual tokens behind each cut of a list, merged ones included."""


@pytest.mark.parametrize("mean", SPANS)
def test_the_ratio_of_a_list_is_the_list(mean):
    reducer = SparseVLM()
    cuts = reducer.inner(mean / 576)[1:]
    left, found = 576, []
    for stage, number in zip(cuts, LISTS["lists"][mean], strict=True):
        assert stage.kept.count(left, 576) == number
        left = stage.kept.left(left, 576)
        found.append(left)
    assert found == SPANS[mean]
    assert [stage.layer for stage in cuts] == [3, 7, 16]
    plus = [stage.kept.left(576, 576) for stage in SparseVLM("plus").inner(mean / 576)[1:]]
    assert plus == list(LISTS["plus"][mean])


def test_a_list_is_scaled_with_the_ratio_and_never_keeps_all():
    first, second, _ = (stage.kept for stage in SparseVLM().inner(0.5)[1:])
    assert first.count(576, 576) == 450
    assert second.count(459, 576) == 300
    assert [ListCount(number=50).count(n) for n in (0, 1, 30, 51, 400)] == [0, 0, 29, 50, 50]
    assert ListCount(number=50).left(60) == 50 + clusters(10)


def test_clusters_of_dropped_tokens():
    """int(int(0.3 d + ...) + 1) as the released floats have it."""
    for dropped in range(1, 3000):
        assert clusters(dropped) == int((int(0.3 * dropped) + 1) / 10) + 1
    assert clusters(0) == 0


def test_counts_of_a_rank_have_a_bound():
    kept = RankCount(scale=13.5)
    assert kept.left(576, 576, 20) == 270 + clusters(576)
    assert kept.left(576, 576, 100) == 576
    assert kept.left(7, 7, 9) == 7
    assert RankCount(scale=1.0).left(2048, 2048, 30) == 30 + clusters(2048)
    visual = np.arange(100)[None] < 80
    inner = Inner.create(SparseVLM("video").inner(0.5), visual, np.ones((1, 100), bool), layers=9)
    assert inner.cuts[1].capacity == 20 + 20 + clusters(80)


def test_recycling_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    there = np.arange(40) < 31
    found = recycle(jnp.asarray(x), jnp.asarray(there), jnp.int32(4), jnp.arange(40))
    rows = x[:31].astype(np.float64)
    distance = np.linalg.norm(rows[:, None] - rows, axis=-1) / np.sqrt(6)
    density = np.exp(-(np.sort(distance, axis=1)[:, :4] ** 2).mean(axis=1))
    denser = density[None] > density[:, None]
    apart = np.where(denser.any(axis=1), np.where(denser, distance, np.inf).min(axis=1), distance.max())
    centres = np.argsort(-density * apart, kind="stable")[:4]
    cluster = distance[:, centres].argmin(axis=1)
    np.testing.assert_array_equal(found.centres[:4], centres)
    np.testing.assert_array_equal(found.cluster[:31], cluster)
    means = [rows[cluster == c].sum(axis=0) / ((cluster == c).sum() + 1e-6) for c in range(4)]
    np.testing.assert_allclose(found.merged[:4], means, atol=1e-5)


def test_settings():
    assert [stage.positions for stage in SparseVLM("plus").inner(0.3)[1:]] == ["keep"] * 3
    assert [stage.positions for stage in SparseVLM("rank").inner(0.3)[1:]] == ["renumber"] * 4
    assert [stage.layer for stage in SparseVLM("rank").inner(0.3)] == [0, 3, 7, 16, 20]
    assert [stage.layer for stage in SparseVLM("video").inner(0.3)] == [0, 2]
    assert reducers.get("sparsevlm", "qwen2_5_vl").inner(0.3)[1].positions == "keep"
    checks.refused(lambda: SparseVLM("rank", numbers=(3, 2, 1, 1)), "numbers belong to the flavors lists and plus")
    checks.refused(lambda: SparseVLM(numbers=(3, 2)), "one a cut, got 2 for 3")
    checks.refused(lambda: SparseVLM(cut_layers=(3, 5)), "2 cut_layers need numbers")
    checks.refused(lambda: SparseVLM(cut_layers=(5, 3, 9)), "must increase")
    checks.refused(lambda: SparseVLM("minus"), "minus")
