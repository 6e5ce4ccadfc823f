"""EVS's golden files: selection and the rotary positions of what is kept."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import PlannedRun, grid_of
from jvidprune.parity.table import Check
from jvidprune.reducers.evs import EVS, EVSBudget, keep_count, media_positions, prompt_positions
from jvidprune.tokens import VideoTokens


def is_evs(golden: Golden) -> bool:
    """Dissimilarities to the previous frame with a pruned fraction q."""
    return "q" in golden.config and golden.has("features", "dissimilarity", "mask", "keep")


def _decided(run: PlannedRun) -> bool:
    """Whether the choice is more than the rounding of equal scores."""
    margins = run.golden.config.get("margins", 1.0)
    return margins is None or margins > 1e-6


def _order(run: PlannedRun) -> np.ndarray:
    """Order of keeping; tokens whose golden dissimilarities are closer than rounding may change places."""
    ours = np.argsort(run.shown["rank"].reshape(-1))[: int(run.budget.keep)]
    theirs, scores = np.asarray(run.golden["order"]), np.asarray(run.golden["dissimilarity"]).reshape(-1)
    if ours.shape != theirs.shape or sorted(ours) != sorted(theirs):
        return ours
    return np.where(np.abs(scores[ours] - scores[theirs]) <= 1e-6, theirs, ours)


def _media(run: PlannedRun) -> np.ndarray:
    config = run.golden.config
    return media_positions(
        run.ids,
        tuple(config["grid"]),
        tokens_per_second=config["tokens_per_second"],
        second_per_grid=config["second_per_grid"],
        truncate=False,  # The server casts before it calls the function that these files come from.
    )


def _prompt(run: PlannedRun) -> tuple[Any, Any]:
    """Positions of the whole prompt, and the delta behind it."""
    config = run.golden.config
    prefix, suffix, width = int(config["prefix"]), int(config["suffix"]), int(config["grid"][1])
    return prompt_positions(_media(run), prefix=prefix, suffix=suffix, width=width)


TABLE: tuple[Check[PlannedRun], ...] = (
    Check("keep", "budget.keep"),
    Check("dissimilarity", "shown.dissimilarity", 1e-6),
    Check(
        "keep",
        lambda run: run.frame_counts.sum(),
        when=lambda run: not _decided(run),
        title="keep (choice hangs on rounding)",
    ),
    Check("mask", "mask", when=_decided),
    Check("indices", "ids", when=_decided, optional=True),
    Check("frame_counts", "frame_counts", when=_decided, optional=True),
    Check("order", _order, when=_decided, optional=True, note="swaps closer than 1e-6 allowed"),
    Check("kept_positions", _media, when=_decided, optional=True),
    Check("prompt_positions", lambda run: _prompt(run)[0], when=_decided, optional=True),
    Check("prompt_delta", lambda run: _prompt(run)[1], when=_decided, optional=True),
)


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    frames, tokens, _ = golden["features"].shape
    keep = keep_count(frames, tokens, float(golden.config["q"]))
    video = VideoTokens.create(golden["features"], grid=grid_of(golden))
    run = PlannedRun.of(golden, EVS(), video, EVSBudget(np.int32(keep)), capacity=keep)
    yield from table.compare(TABLE, run, golden)


COMPARERS = [Comparer("evs", is_evs, compare)]
