"""V-CAST's golden files: curvature, weights, frame budgets, scores, and what is kept of tokens and DeepStack levels."""

from collections.abc import Iterator

from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import PlannedRun, grid_of
from jvidprune.parity.table import Check
from jvidprune.reducers.vcast import VCAST
from jvidprune.tokens import VideoTokens

WEIGHTS = 2e-6


def is_vcast(golden: Golden) -> bool:
    """Tokens and DeepStack levels kept at a ratio by one method that needs no name."""
    known = golden.has("features", "deepstack", "indices", "keep", "frame_counts", "deepstack_tokens")
    return known and "ratio" in golden.config and "method" not in golden.config


def _total(run: PlannedRun) -> int:
    return run.reducer.capacity(run.video.layout(), run.golden.config["ratio"])


def _table(total: int) -> tuple[Check[PlannedRun], ...]:
    return (
        Check("total", _total, optional=True),
        Check("curvature", "shown.curvature", 2e-5, optional=True),
        Check("weights", "shown.weights", WEIGHTS, optional=True),
        Check("outlier", "shown.outlier", 5e-6, optional=True),
        Check("score", "shown.score", 5e-6, optional=True),
        # A share of R tokens deviates by R times what its weight does.
        Check("raw", "shown.raw", WEIGHTS * max(total, 1), optional=True),
        Check("budgets", "shown.budgets", optional=True),
        Check("keep", "count"),
        Check("frame_counts", "frame_counts"),
        Check("indices", "ids"),
        Check("tokens", "tokens", 0.0, optional=True),
        Check("deepstack_tokens", PlannedRun.deepstack, 0.0),
    )


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    reducer = VCAST(least=int(golden.config.get("minimum", 1)))
    video = VideoTokens.create(golden["features"], grid=grid_of(golden))
    layout, ratio = video.layout(), golden.config["ratio"]
    total = reducer.capacity(layout, ratio)
    run = PlannedRun.of(golden, reducer, video, reducer.budget(layout, ratio), capacity=total)
    yield from table.compare(_table(total), run, golden)


COMPARERS = [Comparer("vcast", is_vcast, compare)]
