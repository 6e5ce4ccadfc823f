"""VidCom2's golden files: the authors' selection and vLLM's on the same input."""

from collections.abc import Iterator

import numpy as np

from jvidprune.ops import newline
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.vidcom2 import VidCom2
from jvidprune.tokens import Plan, VideoTokens

SCORES, SHARES = 1e-5, 1e-4


def is_vidcom2(golden: Golden) -> bool:
    """Scores of both centres with the selection of at least one implementation."""
    some = golden.has("official_mask") or golden.has("vllm_mask")
    return some and golden.has("features", "video_score", "frame_score", "channels")


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    for variant in ("official", "vllm"):
        if f"{variant}_mask" in golden.arrays:
            yield from _variant(golden, "official" if variant == "official" else "vllm")


def _variant(golden: Golden, variant: str) -> Iterator[Row]:
    config, features = golden.config, golden["features"]
    frames, tokens, _ = features.shape
    video = VideoTokens.create(features, grid=tuple(config.get("grid", (1, tokens))))
    temperature = float(config.get("temperature", 0.01))
    reducer = VidCom2(variant="vllm" if variant == "vllm" else "official", temperature=temperature)
    ratio = float(config["ratio"])
    budget = reducer.budget_of(video.layout(), ratio, float(config.get("vllm_q", 1.0 - ratio)))
    capacity = frames * tokens
    plan, _ = planned(reducer, video, budget, capacity=capacity)
    found = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    ids = np.asarray(plan.ids)[: int(plan.count)]
    counts = np.bincount(ids // tokens, minlength=frames)

    if variant == "official":
        yield exact("channels", found["channels"], golden["channels"])
        yield close("video_score", found["video_score"], golden["video_score"], SCORES)
        yield close("frame_score", found["frame_score"], golden["frame_score"], SCORES)
        for name, ours in (("probs", "share"), ("scales", "scales")):
            if name in golden.arrays:
                yield close(name, found[ours], golden[name], SHARES)
    budgets = "budgets" if variant == "official" else "vllm_budgets"
    if budgets in golden.arrays:
        yield exact(budgets, found["frame_budgets"], golden[budgets])
    if variant == "vllm" and "vllm_target" in golden.arrays:
        yield exact("vllm_target", budget.target, golden["vllm_target"])
    if config.get("input", {}).get("_static") and config.get("margins", {}).get(variant, {}).get("token", 1.0) <= 1e-6:
        yield exact(f"{variant}_keep", plan.count, golden[f"{variant}_keep"], "static video: the tokens tie")
        return
    mask = np.zeros(capacity, bool)
    mask[ids] = True
    yield exact(f"{variant}_mask", mask.reshape(frames, tokens), golden[f"{variant}_mask"])
    for name, ours in (("indices", ids), ("keep", plan.count), ("frame_counts", counts)):
        if f"{variant}_{name}" in golden.arrays:
            yield exact(f"{variant}_{name}", ours, golden[f"{variant}_{name}"])
    if variant == "official" and "official_grid_rows" in golden.arrays:
        yield _grid_rows(golden, plan, video)


def _grid_rows(golden: Golden, plan: Plan, video: VideoTokens) -> Row:
    frames = video.features.shape[0]
    laid = newline.arrange(plan.ids, plan.valid, kind="grid", grid=video.grid, frames=frames, rows="after_frame")
    rows = np.asarray(laid.position)[: int(laid.count)]
    return exact("official_grid_rows", rows, golden["official_grid_rows"])


COMPARERS = [Comparer("vidcom2", is_vidcom2, compare)]
