"""DivPrune's golden files: picks in order over the video or in each frame, their distances, and what is kept."""

from collections.abc import Iterator

import numpy as np

from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import PlannedRun, grid_of
from jvidprune.parity.table import Check
from jvidprune.reducers.counts import half_even
from jvidprune.reducers.divprune import DivPrune
from jvidprune.tokens import VideoTokens

DISTANCE = 2e-6


def is_divprune(golden: Golden) -> bool:
    """Picks in order with the distance of every token to its nearest other one."""
    return "ratio" in golden.config and golden.has("features", "order", "gain", "gap", "nearest", "indices", "keep")


def _picks(run: PlannedRun) -> int:
    return half_even(run.golden["nearest"].shape[1], run.golden.config["ratio"])


def _order(run: PlannedRun) -> np.ndarray:
    groups, size = run.golden["nearest"].shape
    return run.shown["order"] + size * np.arange(groups)[:, None]


def _leads(run: PlannedRun) -> np.ndarray:
    """Lead of every pick, a place in its group, over the next candidate, from distances in float64."""
    order, features = run.shown["order"], run.golden["features"].astype(np.float64)
    groups, size = run.golden["nearest"].shape
    unit = features.reshape(groups, size, -1) / np.linalg.norm(features, axis=-1).reshape(groups, size, 1)
    leads = np.zeros(order.shape)
    for group, picks in enumerate(order):
        distance = 1.0 - unit[group] @ unit[group].T
        np.fill_diagonal(distance, np.inf)
        score = distance.min(axis=0)
        for step, pick in enumerate(picks):
            leads[group, step] = score[pick] - np.delete(score, pick).max()
            near = distance[pick].copy()
            near[pick] = -np.inf
            score = near if step == 0 else np.minimum(score, near)
            score[picks[: step + 1]] = -np.inf
    return leads


TABLE: tuple[Check[PlannedRun], ...] = (
    Check("order", _picks, theirs=lambda order, _: order.shape[1], title="k"),
    Check("keep", "count"),
    Check("order", _order),
    Check("gain", "shown.gain", DISTANCE),
    Check("nearest", "shown.nearest", DISTANCE),
    Check("gap", _leads, 2 * DISTANCE, note="in float64"),
    Check("indices", "ids"),
    Check("frame_counts", "frame_counts", optional=True),
    Check("tokens", "tokens", 0.0, optional=True),
)


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    reducer = DivPrune(scope=golden.config.get("scope", "video"))
    video = VideoTokens.create(golden["features"], grid=grid_of(golden))
    layout, ratio = video.layout(), golden.config["ratio"]
    run = PlannedRun.of(golden, reducer, video, reducer.budget(layout, ratio), capacity=reducer.capacity(layout, ratio))
    yield from table.compare(TABLE, run, golden)


COMPARERS = [Comparer("divprune", is_divprune, compare)]
