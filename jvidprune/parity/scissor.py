"""LLaVA-Scissor's golden files: components in frames and over the video, the assignment, and the merged tokens."""

from collections.abc import Iterator

import numpy as np

from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import PlannedRun, grid_of
from jvidprune.parity.table import Check
from jvidprune.reducers.scissor import Scissor
from jvidprune.tokens import VideoTokens

TOKENS = 2e-5


def is_scissor(golden: Golden) -> bool:
    """Components of frames and of the video under a threshold tau."""
    return "tau" in golden.config and golden.has("features", "label", "temporal_label", "closest", "counts", "tokens")


def _components(run: PlannedRun) -> np.ndarray:
    return run.shown["label"].max(axis=1) + 1


def _temporal(run: PlannedRun) -> np.ndarray:
    listed = run.shown["temporal_label"]
    return listed[listed >= 0]


def _lost(run: PlannedRun) -> int:
    """Members that the released search leaves out of their mean."""
    return _components(run).sum() - np.bincount(_temporal(run), minlength=run.count).sum()


def _smallest_gap(run: PlannedRun) -> float:
    """Smallest lead of a token's most similar centre over the next, from the labels of both steps; inf for one."""
    label, temporal = run.shown["label"], _temporal(run)
    x = run.golden["features"].astype(np.float64)
    means = [
        frame[mine == part].mean(0) for frame, mine in zip(x, label, strict=True) for part in range(mine.max() + 1)
    ]
    centres = np.stack([np.stack(means)[temporal == part].mean(0) for part in range(temporal.max() + 1)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    flat = x.reshape(-1, x.shape[-1])
    cosine = np.sort(flat / np.linalg.norm(flat, axis=1, keepdims=True) @ centres.T, axis=1)
    return float((cosine[:, -1] - cosine[:, -2]).min()) if len(centres) > 1 else float("inf")


TABLE: tuple[Check[PlannedRun], ...] = (
    Check("keep", "count"),
    Check("label", "shown.label"),
    Check("frame_components", _components),
    Check("first_step", lambda run: _components(run).sum()),
    Check("temporal_label", _temporal),
    Check("closest", "shown.closest"),
    Check("counts", lambda run: run.shown["counts"][: run.count]),
    Check("tokens", "tokens", TOKENS),
    Check("lost", _lost, optional=True),
    Check("similarity_gap", _smallest_gap, TOKENS, optional=True, note="in float64"),
)


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    reducer = Scissor(tau=float(golden.config["tau"]))
    video = VideoTokens.create(golden["features"], grid=grid_of(golden))
    total = video.layout().total
    run = PlannedRun.of(golden, reducer, video, reducer.budget_of(total, reducer.tau), capacity=total)
    yield from table.compare(TABLE, run, golden)


COMPARERS = [Comparer("scissor", is_scissor, compare)]
