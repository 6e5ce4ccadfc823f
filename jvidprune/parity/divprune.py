"""DivPrune's golden files: picks in order over the video or in each frame, their distances, and what is kept."""

from collections.abc import Iterator

import numpy as np

from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.divprune import DivPrune, keep_count
from jvidprune.tokens import VideoTokens

DISTANCE = 2e-6


def is_divprune(golden: Golden) -> bool:
    """Picks in order with the distance of every token to its nearest other one."""
    return "ratio" in golden.config and golden.has("features", "order", "gain", "gap", "nearest", "indices", "keep")


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    features, order = golden["features"], golden["order"]
    frames, tokens, _ = features.shape
    config = golden.config
    reducer = DivPrune(scope=config.get("scope", "video"))
    grid = (config.get("H", 1), config.get("W", tokens))
    video = VideoTokens.create(features, grid=grid)
    budget = reducer.budget(video.layout(), config["ratio"])
    groups, size = golden["nearest"].shape
    yield exact("k", keep_count(size, config["ratio"]), order.shape[1])
    capacity = reducer.capacity(video.layout(), config["ratio"])
    plan, reduced = planned(reducer, video, budget, capacity=capacity)
    count = int(plan.count)
    ids, found = np.asarray(plan.ids)[:count], {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    yield exact("keep", count, golden["keep"])
    yield exact("order", found["order"] + size * np.arange(groups)[:, None], order)
    yield close("gain", found["gain"], golden["gain"], DISTANCE)
    yield close("nearest", found["nearest"], golden["nearest"], DISTANCE)
    yield close("gap", _leads(golden, found["order"]), golden["gap"], 2 * DISTANCE, note="in float64")
    yield exact("indices", ids, golden["indices"])
    if "frame_counts" in golden.arrays:
        yield exact("frame_counts", np.bincount(ids // tokens, minlength=frames), golden["frame_counts"])
    if "tokens" in golden.arrays:
        yield close("tokens", np.asarray(reduced.tokens)[:count], golden["tokens"], 0.0)


def _leads(golden: Golden, order: np.ndarray) -> np.ndarray:
    """Lead of every pick of `order`, places in its group, over the next candidate, from distances in float64."""
    features = golden["features"].astype(np.float64)
    groups, size = golden["nearest"].shape
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


COMPARERS = [Comparer("divprune", is_divprune, compare)]
