"""CDPruner's golden files: relevance, cosines, picks in order with what they add, and what is kept."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Array

from jvidprune.ops.similarity import cosine_from_gram, frame_gram, squared_norms
from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import PlannedRun, grid_of
from jvidprune.parity.table import Check
from jvidprune.reducers.cdpruner import CDPruner, CDPrunerBudget
from jvidprune.tokens import VideoTokens

RELEVANCE, GAIN = 2e-6, 1e-5


def is_cdpruner(golden: Golden) -> bool:
    """Tokens and question in a space that they share, and the picks of each frame in order."""
    return golden.has("features", "image_embeds", "text_embeds", "relevance", "order", "mask")


def _cosine(run: PlannedRun) -> Array:
    x = run.video.features
    return cosine_from_gram(frame_gram(x), squared_norms(x), squared_norms(x))


def _leads(run: PlannedRun) -> np.ndarray:
    """Lead of every pick over the next candidate as a share of its own gain, in float64."""
    x, order = run.golden["features"].astype(np.float64), run.shown["order"][:, 0]
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    leads = np.zeros(order.shape)
    for frame, picks in enumerate(order):
        r = run.shown["relevance"][frame].astype(np.float64)
        left = r[:, None] * (unit[frame] @ unit[frame].T) * r
        taken = np.zeros(len(r), bool)
        for step, pick in enumerate(picks):
            taken[pick] = True
            gain = left[pick, pick]
            leads[frame, step] = (gain - np.diag(left)[~taken].max()) / gain
            left = left - np.outer(left[:, pick], left[pick]) / gain
    return leads


TABLE: tuple[Check[PlannedRun], ...] = (
    Check("relevance", "shown.relevance", RELEVANCE),
    Check("similarity", _cosine, RELEVANCE, optional=True),
    Check("order", lambda run: run.shown["order"][:, 0]),
    Check("gain", lambda run: run.shown["gain"][:, 0], GAIN, optional=True),
    Check("gap", _leads, 1e-4, optional=True, note="in float64"),
    Check("mask", "mask"),
    Check("keep", "count"),
    Check("indices", "ids"),
    Check("tokens", "tokens", 0.0, optional=True),
)


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    frames, tokens, _ = golden["features"].shape
    keep = int(golden.config["keep"])
    evidence = {"joint_image": golden["image_embeds"], "joint_text": golden["text_embeds"]}
    video = VideoTokens.create(golden["features"], evidence, grid=grid_of(golden))
    reducer, budget = CDPruner(variant="official", relevance="joint"), CDPrunerBudget(np.int32(keep))
    run = PlannedRun.of(golden, reducer, video, budget, capacity=frames * min(keep, tokens))
    yield from table.compare(TABLE, run, golden)


COMPARERS = [Comparer("cdpruner", is_cdpruner, compare)]
