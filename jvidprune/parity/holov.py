"""HoloV's golden files: the released functions frame by frame, or on all frames as one sequence."""

from collections.abc import Iterator

import numpy as np

from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.holov import HoloV
from jvidprune.tokens import VideoTokens

SCORES = 1e-4


def is_holov(golden: Golden) -> bool:
    """Crop scores, quotas and the rows kept of each sequence."""
    return golden.has("features", "attention", "crop_scores", "quota", "indices", "keep", "num_crops")


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    config, features = golden.config, golden["features"]
    frames, tokens, _ = features.shape
    per_frame = bool(config.get("per_frame", True))
    keep, crops = int(golden["keep"]), int(golden["num_crops"])
    reducer = HoloV(
        alpha=float(config.get("alpha", 0.09)), order="official", pad_zeros=True, per_frame=per_frame, crops=crops
    )
    grid = tuple(config.get("grid", (1, tokens)))
    video = VideoTokens.create(features, {"attention_last": golden["attention"]}, grid=grid)
    length = tokens if per_frame else frames * tokens
    sequences = frames if per_frame else 1
    if config.get("variant") == "qwen2_5_vl" and config.get("ratio"):
        rule = HoloV(per_frame=per_frame).budget(video.layout(), float(config["ratio"]))
        yield exact("keep", rule.keep, keep)
        yield exact("num_crops", rule.crops, min(crops, length))

    capacity = sequences * keep
    plan, reduced = planned(reducer, video, reducer.budget_of(length, keep, crops), capacity=capacity)
    found = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    existing = golden["crop_scores"].shape[1]
    yield close("crop_scores", found["crop_scores"][:, :existing], golden["crop_scores"], 0.0, SCORES)
    if "crop_weights" in golden.arrays:
        yield close("crop_weights", found["crop_weights"][:, :existing], golden["crop_weights"], 0.0, SCORES)
    yield exact("quota", found["quota"][:, :existing], golden["quota"])

    ids = np.asarray(reduced.index).reshape(sequences, keep)
    yield exact("indices", np.where(ids == frames * tokens, -1, ids), golden["indices"])
    if "tokens" in golden.arrays:
        yield close("tokens", np.asarray(reduced.tokens).reshape(sequences, keep, -1), golden["tokens"], 0.0)


COMPARERS = [Comparer("holov", is_holov, compare)]
