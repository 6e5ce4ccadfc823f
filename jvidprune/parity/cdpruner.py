"""CDPruner's golden files: relevance, cosines, picks in order with what they add, and what is kept."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jvidprune.ops.similarity import cosine_from_gram, frame_gram, squared_norms
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.cdpruner import CDPruner, CDPrunerBudget
from jvidprune.tokens import VideoTokens

RELEVANCE, GAIN = 2e-6, 1e-5


def is_cdpruner(golden: Golden) -> bool:
    """Tokens and question in a space that they share, and the picks of each frame in order."""
    return golden.has("features", "image_embeds", "text_embeds", "relevance", "order", "mask")


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    features, config = golden["features"], golden.config
    frames, tokens, _ = features.shape
    keep = int(config["keep"])
    reducer = CDPruner(variant="official", relevance="joint")
    evidence = {"joint_image": golden["image_embeds"], "joint_text": golden["text_embeds"]}
    video = VideoTokens.create(features, evidence, grid=(config.get("H", 1), config.get("W", tokens)))
    budget = CDPrunerBudget(np.int32(keep))
    plan, reduced = planned(reducer, video, budget, capacity=frames * min(keep, tokens))
    count = int(plan.valid.sum())
    ids = np.asarray(plan.ids)[:count]
    found = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    yield close("relevance", found["relevance"], golden["relevance"], RELEVANCE)
    if "similarity" in golden.arrays:
        x = jnp.asarray(features)
        cosine = cosine_from_gram(frame_gram(x), squared_norms(x), squared_norms(x))
        yield close("similarity", cosine, golden["similarity"], RELEVANCE)
    order = found["order"][:, 0]
    yield exact("order", order, golden["order"])
    if "gain" in golden.arrays:
        yield close("gain", found["gain"][:, 0], golden["gain"], GAIN)
    if "gap" in golden.arrays:
        yield close("gap", _leads(features, found["relevance"], order), golden["gap"], 1e-4, note="in float64")
    mask = np.zeros(frames * tokens, bool)
    mask[ids] = True
    yield exact("mask", mask.reshape(frames, tokens), golden["mask"])
    yield exact("keep", count, golden["keep"])
    yield exact("indices", ids, golden["indices"])
    if "tokens" in golden.arrays:
        yield close("tokens", np.asarray(reduced.tokens)[:count], golden["tokens"], 0.0)


def _leads(features: np.ndarray, relevance: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Lead of every pick over the next candidate as a share of its own gain, in float64."""
    x = features.astype(np.float64)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    leads = np.zeros(order.shape)
    for frame, picks in enumerate(order):
        r = relevance[frame].astype(np.float64)
        left = r[:, None] * (unit[frame] @ unit[frame].T) * r
        taken = np.zeros(len(r), bool)
        for step, pick in enumerate(picks):
            taken[pick] = True
            gain = left[pick, pick]
            leads[frame, step] = (gain - np.diag(left)[~taken].max()) / gain
            left = left - np.outer(left[:, pick], left[pick]) / gain
    return leads


COMPARERS = [Comparer("cdpruner", is_cdpruner, compare)]
