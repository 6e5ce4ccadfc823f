"""VidCom2's golden files: the authors' selection and vLLM's on the same input."""

from collections.abc import Iterator

import numpy as np

from jvidprune.ops import newline
from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import PlannedRun, grid_of
from jvidprune.parity.table import Check
from jvidprune.reducers.vidcom2 import VidCom2
from jvidprune.tokens import VideoTokens

SCORES, SHARES = 1e-5, 1e-4


def is_vidcom2(golden: Golden) -> bool:
    """Scores of both centres with the selection of at least one implementation."""
    some = golden.has("official_mask") or golden.has("vllm_mask")
    return some and golden.has("features", "video_score", "frame_score", "channels")


def _decided(run: PlannedRun) -> bool:
    """Whether the choice is more than the rounding of equal scores."""
    config = run.golden.config
    margin = config.get("margins", {}).get(run.reducer.variant, {}).get("token", 1.0)
    return not (config.get("input", {}).get("_static") and margin <= 1e-6)


def _grid_rows(run: PlannedRun) -> np.ndarray:
    plan, frames = run.plan, len(run.video.features)
    laid = newline.arrange(plan.ids, plan.valid, kind="grid", grid=run.video.grid, frames=frames, rows="after_frame")
    return np.asarray(laid.position)[: int(laid.count)]


def _choice(variant: str) -> tuple[Check[PlannedRun], ...]:
    tie = "static video: the tokens tie"
    return (
        Check(f"{variant}_keep", "count", when=lambda run: not _decided(run), note=tie),
        Check(f"{variant}_mask", "mask", when=_decided),
        Check(f"{variant}_indices", "ids", when=_decided, optional=True),
        Check(f"{variant}_keep", "count", when=_decided, optional=True),
        Check(f"{variant}_frame_counts", "frame_counts", when=_decided, optional=True),
    )


OFFICIAL: tuple[Check[PlannedRun], ...] = (
    Check("channels", "shown.channels"),
    Check("video_score", "shown.video_score", SCORES),
    Check("frame_score", "shown.frame_score", SCORES),
    Check("probs", "shown.share", SHARES, optional=True),
    Check("scales", "shown.scales", SHARES, optional=True),
    Check("budgets", "shown.frame_budgets", optional=True),
    *_choice("official"),
    Check("official_grid_rows", _grid_rows, when=_decided, optional=True),
)
VLLM: tuple[Check[PlannedRun], ...] = (
    Check("vllm_budgets", "shown.frame_budgets", optional=True),
    Check("vllm_target", "budget.target", optional=True),
    *_choice("vllm"),
)


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    config = golden.config
    ratio, temperature = float(config["ratio"]), float(config.get("temperature", 0.01))
    video = VideoTokens.create(golden["features"], grid=grid_of(golden))
    official = VidCom2(variant="official", temperature=temperature)
    vllm = VidCom2(variant="vllm", temperature=temperature)
    for reducer, checks in ((official, OFFICIAL), (vllm, VLLM)):
        if f"{reducer.variant}_mask" in golden.arrays:
            budget = reducer.budget_of(video.layout(), ratio, float(config.get("vllm_q", 1.0 - ratio)))
            run = PlannedRun.of(golden, reducer, video, budget, capacity=video.layout().total)
            yield from table.compare(checks, run, golden)


COMPARERS = [Comparer("vidcom2", is_vidcom2, compare)]
