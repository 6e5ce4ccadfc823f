"""Controls on grids: golden files, plain numpy cells, target grids by search, draws, padding, and equal counts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks

from jvidprune import Layout, VideoTokens, reducers
from jvidprune.parity import grids as parity
from jvidprune.reducers.grids import (
    PoolSpace,
    PoolSpaceTime,
    PoolTime,
    SampleRandomCell,
    SampleSpace,
    SampleSpaceTime,
    SampleTime,
    target_grid,
)

POOLS = [
    PoolSpace(),
    PoolSpace("partition"),
    PoolTime(),
    PoolTime("adaptive"),
    PoolSpaceTime(),
    PoolSpaceTime("partition"),
]
SAMPLES = [SampleSpace(), SampleTime(), SampleSpaceTime(), SampleRandomCell(), SampleRandomCell(seed=3)]
RATIOS = [0.01, 0.1, 0.3, 0.55, 0.75, 1.0]


@pytest.mark.parametrize("path", checks.golden_files("grids"), ids=lambda path: path.stem)
def test_golden_files_match(path):
    checks.check_golden(path, parity.COMPARERS)


def test_no_other_methods_files_are_taken():
    checks.check_others_refused("grids", parity.COMPARERS)


def cells(count, places, kind):
    """The places of each cell, as the specification has them."""
    stop = (lambda i: -(-(i + 1) * places // count)) if kind == "adaptive" else (lambda i: (i + 1) * places // count)
    return [range(i * places // count, stop(i)) for i in range(count)]


def kinds(reducer):
    """Kinds of cells of frames and of the grid."""
    return (reducer.cells if reducer.axes == "time" else "partition"), reducer.cells


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("reducer", POOLS, ids=repr)
@pytest.mark.slow
def test_rows_are_means_of_the_cells(reducer, ratio):
    video = checks.make_video(frames=7, seed=5)
    (height, width), x = video.grid, np.asarray(video.features, np.float64)
    grid = x.reshape(7, height, width, -1)
    frames, h, w = reducer.cells_for(video.layout(), ratio)
    time, space = kinds(reducer)
    reduced = checks.reduce(reducer, video, ratio)
    assert int(reduced.count) == frames * h * w
    boxes = itertools.product(cells(frames, 7, time), cells(h, height, space), cells(w, width, space))
    members = np.zeros(7 * height * width, int)
    for row, (t, i, j) in enumerate(boxes):
        mean = grid[t.start : t.stop, i.start : i.stop, j.start : j.stop].reshape(-1, grid.shape[-1]).mean(0)
        np.testing.assert_allclose(reduced.tokens[row], mean, atol=2e-6)
        assert int(reduced.index[row]) == (t.start * height + i.start) * width + j.start
        assert int(reduced.mass[row]) == len(t) * len(i) * len(j)
        for place in itertools.product(t, i, j):
            members[np.ravel_multi_index(place, (7, height, width))] += 1
    assert (members >= 1).all()
    assert (np.asarray(reduced.slot) >= 0).all()
    if "adaptive" not in (time, space):
        assert (members == 1).all()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("reducer", [SampleSpace(), SampleTime(), SampleSpaceTime()], ids=repr)
def test_samples_are_the_first_of_their_cells(reducer, ratio):
    video = checks.make_video(frames=7, seed=5)
    height, width = video.grid
    frames, h, w = reducer.cells_for(video.layout(), ratio)
    reduced = checks.reduce(reducer, video, ratio)
    boxes = itertools.product(
        cells(frames, 7, "partition"), cells(h, height, "partition"), cells(w, width, "partition")
    )
    expected = [(t.start * height + i.start) * width + j.start for t, i, j in boxes]
    np.testing.assert_array_equal(np.asarray(reduced.index)[: int(reduced.count)], expected)
    checks.check_copies(video, reduced)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.55])
@pytest.mark.slow
def test_a_random_token_of_every_cell_is_drawn_alike_often(ratio):
    video = checks.make_video(frames=15)
    height, width = video.grid
    _, h, w = SampleRandomCell().cells_for(video.layout(), ratio)
    rows, columns = cells(h, height, "partition"), cells(w, width, "partition")
    drawn = np.zeros((height, width), int)
    for seed in range(12):
        reduced = checks.reduce(SampleRandomCell(seed=seed), video, ratio)
        ids = np.asarray(reduced.index)[: int(reduced.count)]
        checks.check_copies(video, reduced)
        for t in range(15):
            places = ids[ids // (height * width) == t] % (height * width)
            here = np.zeros((height, width), int)
            here.reshape(-1)[places] = 1
            drawn += here
            for i, j in itertools.product(rows, columns):
                assert here[i.start : i.stop, j.start : j.stop].sum() == 1
    for i, j in itertools.product(rows, columns):
        size, box = len(i) * len(j), drawn[i.start : i.stop, j.start : j.stop]
        # 180 draws a cell: six standard deviations about their mean.
        assert np.abs(box - 180 / size).max() <= 6 * np.sqrt(180 / size)


@pytest.mark.parametrize("reducer", [*POOLS, *SAMPLES], ids=repr)
@pytest.mark.slow
def test_sweeps_padding_and_halves(reducer):
    video = checks.make_video()
    checks.check_sweep(reducer, video, [0.05, 0.3, 0.75, 1.0])
    checks.check_padding(reducer, video, 0.3)
    checks.check_bf16(reducer, video, 0.4)
    whole = checks.reduce(reducer, video, 1.0)
    np.testing.assert_array_equal(whole.tokens, np.asarray(video.features).reshape(-1, video.features.shape[-1]))


@pytest.mark.parametrize("reducer", POOLS, ids=repr)
@pytest.mark.slow
def test_gradients_reach_every_token(reducer):
    video = checks.make_video()

    def loss(features):
        return checks.reduce(reducer, dataclasses.replace(video, features=features), 0.3).tokens.sum()

    weight = jax.grad(loss)(video.features)
    np.testing.assert_allclose(weight.sum() / weight.shape[-1], checks.reduce(reducer, video, 0.3).count, rtol=1e-5)
    assert (weight > 0).all()


def searched(height, width, tokens):
    """The largest grid by trying all."""
    best = [((1, 1), (1, 0, -1))] if tokens < 1 else []
    for h, w in itertools.product(range(1, height + 1), range(1, width + 1)):
        distortion = max(h * width, w * height) / min(h * width, w * height)
        if h * w <= tokens and distortion <= 2:
            best.append(((h, w), (h * w, -distortion, -h)))
    return max(best, key=lambda one: one[1])[0] if best else (1, 1)


@pytest.mark.parametrize("grid", [(14, 14), (13, 13), (27, 27), (9, 16), (1, 12), (12, 1), (3, 40), (1, 1)])
def test_the_target_grid_is_the_largest_that_keeps_the_shape(grid):
    for tokens in range(1, grid[0] * grid[1] + 3):
        assert target_grid(*grid, tokens) == searched(*grid, tokens)


def test_grids_of_the_specification():
    assert [target_grid(14, 14, k) for k in (20, 19, 49, 2)] == [(4, 5), (3, 6), (7, 7), (1, 2)]
    assert target_grid(13, 13, 17) == (4, 4)


def test_positions_of_videos_of_other_lengths_in_one_batch():
    """Cells of frames follow the real frames of each video."""
    video = checks.make_video(frames=6)
    features = jnp.stack([video.features, video.features])
    mask = jnp.asarray([[True] * 6, [True] * 4 + [False] * 2])
    videos = VideoTokens(features, {}, mask, video.grid, video.unpooled_grid)
    batch = reducers.reduce_batch(PoolTime(), videos, 0.5)
    tokens = video.features.shape[1]
    assert batch.count.tolist() == [3 * tokens, 2 * tokens]
    assert np.unique(np.asarray(batch.index[1])[: 2 * tokens] // tokens).tolist() == [0, 2]


def test_shares_of_frames_and_grid():
    layout = Layout(32, (14, 14))
    assert PoolSpaceTime().cells_for(layout, 0.1) == (10, *target_grid(14, 14, 63))
    assert PoolTime().cells_for(layout, 0.1) == (3, 14, 14)
    assert SampleSpace().tokens_per_frame(layout, 0.1) == 20
    assert SampleTime().tokens_per_frame is None
