"""V-CAST's golden files: curvature, weights, frame budgets, scores, and what is kept of tokens and DeepStack levels."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jvidprune.ops import compact
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.vcast import VCAST
from jvidprune.tokens import VideoTokens

LIMITS = {"curvature": 2e-5, "weights": 2e-6, "outlier": 5e-6, "score": 5e-6}


def is_vcast(golden: Golden) -> bool:
    """Tokens and DeepStack levels kept at a ratio by one method that needs no name."""
    known = golden.has("features", "deepstack", "indices", "keep", "frame_counts", "deepstack_tokens")
    return known and "ratio" in golden.config and "method" not in golden.config


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    features, config = golden["features"], golden.config
    frames, tokens, _ = features.shape
    reducer = VCAST(least=int(config.get("minimum", 1)))
    video = VideoTokens.create(features, grid=(config.get("H", 1), config.get("W", tokens)))
    budget, total = reducer.budget(video.layout(), config["ratio"]), reducer.capacity(video.layout(), config["ratio"])
    plan, reduced = planned(reducer, video, budget, capacity=total)
    count = int(plan.count)
    ids = np.asarray(plan.ids)[:count]
    found = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    if "total" in golden.arrays:
        yield exact("total", total, golden["total"])
    for name, limit in LIMITS.items():
        if name in golden.arrays:
            yield close(name, found[name], golden[name], limit)
    if "raw" in golden.arrays:
        # A share of R tokens deviates by R times what its weight does.
        yield close("raw", found["raw"], golden["raw"], LIMITS["weights"] * max(total, 1))
    if "budgets" in golden.arrays:
        yield exact("budgets", found["budgets"], golden["budgets"])
    yield exact("keep", count, golden["keep"])
    yield exact("frame_counts", np.bincount(ids // tokens, minlength=frames), golden["frame_counts"])
    yield exact("indices", ids, golden["indices"])
    if "tokens" in golden.arrays:
        yield close("tokens", np.asarray(reduced.tokens)[:count], golden["tokens"], 0.0)
    levels = jnp.moveaxis(jnp.asarray(golden["deepstack"]), 0, 2).reshape(frames * tokens, -1)
    gathered = np.asarray(compact.gather_rows(plan, levels))[:count].reshape(count, len(golden["deepstack"]), -1)
    yield close("deepstack_tokens", np.moveaxis(gathered, 1, 0), golden["deepstack_tokens"], 0.0)


COMPARERS = [Comparer("vcast", is_vcast, compare)]
