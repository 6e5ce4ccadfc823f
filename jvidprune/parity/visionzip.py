"""VisionZip's golden files: the video version, its baseline inside SToP, the original for images, and the pooling."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvidprune.ops import newline
from jvidprune.ops.pool import pool_tokens
from jvidprune.ops.sink import SinkRule
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.visionzip import VisionZip
from jvidprune.tokens import Plan, Reduced, VideoTokens

TOKENS = 1e-5


def is_video(golden: Golden) -> bool:
    """The per-frame video version, SToP's baseline with sink weight 0 included."""
    return golden.config.get("variant") in ("video", "stop") and golden.has(
        "features", "attention", "metric", "budget", "topk_index", "target_position", "center_index", "sequence"
    )


def is_image(golden: Golden) -> bool:
    """The original for images with a CLS token."""
    return golden.config.get("variant") == "image" and golden.has("hidden", "cls_attention", "metric", "center_index")


def is_pooling(golden: Golden) -> bool:
    """Features and attention pooled by both operators."""
    return golden.has("features", "attention", "features_bilinear", "features_average")


def run(
    reducer: VisionZip, golden: Golden, features: np.ndarray, attention: np.ndarray, dominant: int, contextual: int
) -> tuple[Plan, Reduced, VideoTokens]:
    """Plan and tokens for counts that a golden file states."""
    grid = None if round(features.shape[1] ** 0.5) ** 2 == features.shape[1] else (1, features.shape[1])
    generator = golden.config.get("generator", {})
    if generator.get("H", 0) * generator.get("W", 0) == features.shape[1]:
        grid = (generator["H"], generator["W"])
    video = VideoTokens.create(features, {"attention_last": attention, "keys": golden["metric"]}, grid=grid)
    spatial = dominant + contextual
    budget = reducer.split(features.shape[1], spatial, dominant)
    capacity = features.shape[0] * spatial
    sink = None
    if golden.config.get("variant") == "stop":
        sink = SinkRule(mu_s=golden.config["mu_s"], gamma=golden.config["gamma"], blocked=20)
    return *planned(reducer, video, budget, capacity=capacity, sink=sink), video


def choices(plan: Plan, golden: Golden, tokens: int, dominant: int, contextual: int, *, local: bool) -> Iterator[Row]:
    """Rows of everything discrete; `local` for places inside a frame instead of global ids."""
    diagnostics = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    order = diagnostics["attention_order"]
    base = np.zeros((len(order), 1), int) if local else np.arange(len(order))[:, None] * tokens
    top = order[:, :dominant]
    if "topk_index" in golden.arrays:
        yield exact("topk_index", base + top, golden["topk_index"])
    if "dominant_index" in golden.arrays:
        yield exact("dominant_index", base + np.sort(top, axis=1), golden["dominant_index"])
    if "target_position" in golden.arrays:
        numbers = np.unique(diagnostics["seed_number"][:, :contextual], axis=0)
        yield exact("target_position", numbers[0] if len(numbers) == 1 else numbers, golden["target_position"])
    if "center_index" in golden.arrays:
        yield exact("center_index", base + diagnostics["seed_place"][:, :contextual], golden["center_index"])
    joined = diagnostics["joined"]
    if "member_index" in golden.arrays:
        merged = [base[t] + np.flatnonzero(row >= 0) for t, row in enumerate(joined)]
        yield exact("member_index", np.stack(merged), golden["member_index"])
    if "assign" in golden.arrays:
        yield exact("assign", np.stack([row[row >= 0] for row in joined]), golden["assign"])
    if "count" in golden.arrays:
        yield exact("count", diagnostics["members"][:, :contextual], golden["count"])


def compare_video(golden: Golden) -> Iterator[Row]:
    """Rows of a video file."""
    config: dict[str, Any] = dict(golden.config)
    features = golden["features"]
    frames, tokens, _ = features.shape
    spatial, dominant, contextual, _ = (int(v) for v in golden["budget"])
    share = float(config["dominant_ratio"])
    reducer = VisionZip(layout="one_token", dominant_share=share)
    yield exact("budget", reducer.split(tokens, spatial), golden["budget"])
    plan, reduced, video = run(reducer, golden, features, golden["attention"], dominant, contextual)
    yield from choices(plan, golden, tokens, dominant, contextual, local=False)
    out = np.asarray(reduced.tokens).reshape(frames, spatial, -1)
    if "dominant_tokens" in golden.arrays:
        yield close("dominant_tokens", out[:, :dominant], golden["dominant_tokens"], 0.0)
    if "contextual_tokens" in golden.arrays:
        yield close("contextual_tokens", out[:, dominant:], golden["contextual_tokens"], TOKENS)

    kind = config["newline"]
    places = reduced.index
    if kind == "grid":
        reducer = VisionZip(layout="grid", dominant_share=share)
        plan, reduced, _ = run(reducer, golden, features, golden["attention"], dominant, contextual)
        places = plan.diagnostics["place"]
        base = np.arange(frames)[:, None] * tokens
        if "sorted_position" in golden.arrays:
            yield exact("sorted_position", np.asarray(places).reshape(frames, -1) - base, golden["sorted_position"])
        if "sorted_source_index" in golden.arrays:
            source = np.asarray(reduced.index).reshape(frames, -1)
            yield exact("sorted_source_index", source, golden["sorted_source_index"])
    laid = newline.arrange(places, reduced.valid, kind=kind, grid=video.grid, frames=frames, rows="all")
    ours = np.asarray(newline.sequence(laid, reduced.tokens, jnp.asarray(golden["image_newline"])))[: int(laid.count)]
    yield close("sequence", ours, golden["sequence"], TOKENS)


def compare_image(golden: Golden) -> Iterator[Row]:
    """Rows of an image file."""
    hidden = golden["hidden"]
    batch, tokens, _ = hidden.shape
    dominant, contextual = int(golden.config["dominant"]), int(golden.config["contextual"])
    share = dominant / (dominant + contextual)
    reducer = VisionZip(layout="one_token", dominant_share=min(share, 0.999) * 0.999, tower="none", cls_token=True)
    if "budget" in golden.arrays:
        counts = reducer.split(tokens, dominant + contextual, dominant)
        yield exact("budget", [counts.dominant - 1, counts.contextual, counts.step], golden["budget"])
    attention = np.pad(golden["cls_attention"].sum(axis=1), ((0, 0), (1, 0)))
    plan, reduced, _ = run(reducer, golden, hidden, attention, dominant, contextual)
    yield from choices(plan, golden, tokens, dominant, contextual, local=True)
    if "tokens" in golden.arrays:
        out = np.asarray(reduced.tokens).reshape(batch, dominant + contextual, -1)
        yield close("tokens", out, golden["tokens"], TOKENS)


def compare_pooling(golden: Golden) -> Iterator[Row]:
    """Rows of the pooling file."""
    side = int(golden.config.get("side", round(golden["attention"].shape[1] ** 0.5)))
    for kind in ("bilinear", "average"):
        for name in ("features", "attention"):
            if f"{name}_{kind}" in golden.arrays:
                ours = pool_tokens(jnp.asarray(golden[name]), (side, side), kind)
                yield close(f"{name}_{kind}", ours, golden[f"{name}_{kind}"], 1e-5)


COMPARERS = [
    Comparer("visionzip", is_video, compare_video),
    Comparer("visionzip", is_image, compare_image),
    Comparer("visionzip", is_pooling, compare_pooling),
]
