"""Golden files of the controls on grids: target grids, means of cells, and sampled tokens."""

from collections.abc import Iterator

import numpy as np

from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.grids import (
    GridBudget,
    PoolSpace,
    PoolSpaceTime,
    PoolTime,
    SampleSpace,
    SampleSpaceTime,
    target_grid,
)
from jvidprune.tokens import VideoTokens

TOKENS = 2e-6


def is_grids(golden: Golden) -> bool:
    """Target grids of cases (h, w, k)."""
    return golden.config.get("kind") == "grids" and golden.has("cases", "grid")


def is_pool(golden: Golden) -> bool:
    """Means over the cells of a grid and of frames."""
    return golden.config.get("kind") == "pool" and golden.has("features", "pool_space", "pool_time", "sample_space")


def compare_grids(golden: Golden) -> Iterator[Row]:
    """Rows of a file of target grids."""
    yield exact("grid", [target_grid(*map(int, case)) for case in golden["cases"]], golden["grid"])


def compare_pool(golden: Golden) -> Iterator[Row]:
    """Rows of a file of pooled and sampled tokens."""
    config, features = golden.config, golden["features"]
    frames, (height, width), (to_height, to_width) = len(features), config["grid"], config["to"]
    video = VideoTokens.create(features, grid=(height, width))
    fewer = int(config["frames"])
    sizes = {
        "space": (frames, to_height, to_width),
        "time": (fewer, height, width),
        "spacetime": (fewer, to_height, to_width),
    }
    pools = {"space": PoolSpace(config["cells"]), "time": PoolTime(), "spacetime": PoolSpaceTime(config["cells"])}
    samples = {"space": SampleSpace(), "spacetime": SampleSpaceTime()}
    for name, (t, h, w) in sizes.items():
        budget = GridBudget(*(np.int32(side) for side in (t, h, w, frames)))  # type: ignore[arg-type]
        _, reduced = planned(pools[name], video, budget, capacity=t * h * w)
        means = np.asarray(reduced.tokens).reshape(t, h * w, -1)
        yield close(f"pool_{name}", means, golden[f"pool_{name}"], TOKENS)
        if name in samples:
            plan, _ = planned(samples[name], video, budget, capacity=t * h * w)
            yield exact(f"sample_{name}", np.asarray(plan.ids)[: int(plan.count)], golden[f"sample_{name}"])


COMPARERS = [Comparer("target grids", is_grids, compare_grids), Comparer("pooling", is_pool, compare_pool)]
