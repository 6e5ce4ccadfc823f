"""LLaVA-Scissor's golden files: components in frames and over the video, the assignment, and the merged tokens."""

from collections.abc import Iterator

import numpy as np

from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.scissor import Scissor
from jvidprune.tokens import VideoTokens

TOKENS = 2e-5


def is_scissor(golden: Golden) -> bool:
    """Components of frames and of the video under a threshold tau."""
    return "tau" in golden.config and golden.has("features", "label", "temporal_label", "closest", "counts", "tokens")


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    features, config = golden["features"], golden.config
    frames, tokens, _ = features.shape
    reducer = Scissor(tau=float(config["tau"]))
    video = VideoTokens.create(features, grid=(config.get("H", 1), config.get("W", tokens)))
    capacity = frames * tokens
    plan, reduced = planned(reducer, video, reducer.budget_of(capacity, reducer.tau), capacity=capacity)
    count = int(plan.count)
    found = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    yield exact("keep", count, golden["keep"])
    yield exact("label", found["label"], golden["label"])
    components = found["label"].max(axis=1) + 1
    yield exact("frame_components", components, golden["frame_components"])
    yield exact("first_step", components.sum(), golden["first_step"])
    listed = found["temporal_label"]
    yield exact("temporal_label", listed[listed >= 0], golden["temporal_label"])
    yield exact("closest", found["closest"], golden["closest"])
    yield exact("counts", found["counts"][:count], golden["counts"])
    yield close("tokens", np.asarray(reduced.tokens)[:count], golden["tokens"], TOKENS)
    if "lost" in golden.arrays:
        # Members that the released search leaves out of their mean.
        members = np.bincount(listed[listed >= 0], minlength=count)
        yield exact("lost", components.sum() - members.sum(), golden["lost"])
    if "similarity_gap" in golden.arrays:
        gap = _smallest_gap(features, found["label"], listed[listed >= 0])
        yield close("similarity_gap", gap, golden["similarity_gap"], TOKENS, note="in float64")


def _smallest_gap(features: np.ndarray, label: np.ndarray, temporal: np.ndarray) -> float:
    """Smallest lead of a token's most similar centre over the next, from the labels of both steps; inf for one."""
    x = features.astype(np.float64)
    means = [
        frame[mine == part].mean(0) for frame, mine in zip(x, label, strict=True) for part in range(mine.max() + 1)
    ]
    centres = np.stack([np.stack(means)[temporal == part].mean(0) for part in range(temporal.max() + 1)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    flat = x.reshape(-1, x.shape[-1])
    cosine = np.sort(flat / np.linalg.norm(flat, axis=1, keepdims=True) @ centres.T, axis=1)
    return float((cosine[:, -1] - cosine[:, -2]).min()) if len(centres) > 1 else float("inf")


COMPARERS = [Comparer("scissor", is_scissor, compare)]
