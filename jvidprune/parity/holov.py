"""HoloV's golden files: the released functions frame by frame, or on all frames as one sequence."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import Run, grid_of
from jvidprune.parity.table import Check
from jvidprune.reducers.holov import HoloV
from jvidprune.tokens import VideoTokens

SCORES = 1e-4


def is_holov(golden: Golden) -> bool:
    """Crop scores, quotas and the rows kept of each sequence."""
    return golden.has("features", "attention", "crop_scores", "quota", "indices", "keep", "num_crops")


def _from_ratio(run: Run) -> bool:
    """Whether the file's counts come from a ratio by the rule of its model."""
    return run.golden.config.get("variant") == "qwen2_5_vl" and bool(run.golden.config.get("ratio"))


def _rule(run: Run) -> Any:
    rule = HoloV(per_frame=run.reducer.per_frame)
    return rule.budget(run.video.layout(), float(run.golden.config["ratio"]))


def _length(run: Run) -> int:
    frames, tokens, _ = run.video.features.shape
    return tokens if run.reducer.per_frame else frames * tokens


def _of_crops(name: str) -> Any:
    """A diagnostic of the crops that the file has."""
    return lambda run: run.shown[name][:, : run.golden["crop_scores"].shape[1]]


def _indices(run: Run) -> np.ndarray:
    places = np.asarray(run.reduced.index).reshape(-1, int(run.golden["keep"]))
    return np.where(places == run.video.layout().total, -1, places)


def _tokens(run: Run) -> np.ndarray:
    out = np.asarray(run.reduced.tokens)
    return out.reshape(-1, int(run.golden["keep"]), out.shape[-1])


TABLE: tuple[Check[Run], ...] = (
    Check("keep", lambda run: _rule(run).keep, when=_from_ratio),
    Check(
        "num_crops",
        lambda run: _rule(run).crops,
        theirs=lambda crops, run: np.minimum(crops, _length(run)),
        when=_from_ratio,
    ),
    Check("crop_scores", _of_crops("crop_scores"), rtol=SCORES),
    Check("crop_weights", _of_crops("crop_weights"), rtol=SCORES, optional=True),
    Check("quota", _of_crops("quota")),
    Check("indices", _indices),
    Check("tokens", _tokens, 0.0, optional=True),
)


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    config = golden.config
    frames, tokens, _ = golden["features"].shape
    per_frame, alpha = bool(config.get("per_frame", True)), float(config.get("alpha", 0.09))
    keep, crops = int(golden["keep"]), int(golden["num_crops"])
    reducer = HoloV(alpha=alpha, order="official", pad_zeros=True, per_frame=per_frame, crops=crops)
    video = VideoTokens.create(golden["features"], {"attention_last": golden["attention"]}, grid=grid_of(golden))
    length, sequences = (tokens, frames) if per_frame else (frames * tokens, 1)
    run = Run.of(golden, reducer, video, reducer.budget_of(length, keep, crops), capacity=sequences * keep)
    yield from table.compare(TABLE, run, golden)


COMPARERS = [Comparer("holov", is_holov, compare)]
