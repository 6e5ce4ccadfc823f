"""EVS's golden files: selection and the rotary positions of what is kept."""

from collections.abc import Iterator

import numpy as np

from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.evs import EVS, EVSBudget, keep_count, media_positions, prompt_positions
from jvidprune.tokens import VideoTokens


def is_evs(golden: Golden) -> bool:
    """Dissimilarities to the previous frame with a pruned fraction q."""
    return "q" in golden.config and golden.has("features", "dissimilarity", "mask", "keep")


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    config, features = golden.config, golden["features"]
    frames, tokens, _ = features.shape
    grid = tuple(config.get("grid", (1, tokens)))
    keep = keep_count(frames, tokens, float(config["q"]))
    yield exact("keep", keep, golden["keep"])
    reducer = EVS()
    video = VideoTokens.create(features, grid=grid)
    plan, _ = planned(reducer, video, EVSBudget(np.int32(keep)), capacity=keep)
    ids = np.asarray(plan.ids)[: int(plan.count)]
    dissimilarity = np.asarray(plan.diagnostics["dissimilarity"])
    yield close("dissimilarity", dissimilarity, golden["dissimilarity"], 1e-6)
    if config.get("margins", 1.0) is not None and config.get("margins", 1.0) <= 1e-6:
        kept = np.bincount(ids // tokens, minlength=frames)
        yield exact("keep (choice hangs on rounding)", kept.sum(), golden["keep"])
        return
    mask = np.zeros(frames * tokens, bool)
    mask[ids] = True
    yield exact("mask", mask.reshape(frames, tokens), golden["mask"])
    if "indices" in golden.arrays:
        yield exact("indices", ids, golden["indices"])
    if "frame_counts" in golden.arrays:
        yield exact("frame_counts", np.bincount(ids // tokens, minlength=frames), golden["frame_counts"])
    if "order" in golden.arrays:
        yield _order(np.argsort(np.asarray(plan.diagnostics["rank"]))[:keep], golden)
    if "kept_positions" in golden.arrays:
        yield from _positions(ids, golden)


def _order(ours: np.ndarray, golden: Golden) -> Row:
    """Order of keeping; tokens whose golden dissimilarities are closer than rounding may change places."""
    theirs = golden["order"]
    scores = golden["dissimilarity"].reshape(-1)
    if ours.shape != theirs.shape or sorted(ours) != sorted(theirs):
        return exact("order", ours, theirs)
    gap = np.abs(scores[ours] - scores[theirs])
    return exact("order", np.where(gap <= 1e-6, theirs, ours), theirs, "swaps closer than 1e-6 allowed")


def _positions(ids: np.ndarray, golden: Golden) -> Iterator[Row]:
    config = golden.config
    media = media_positions(
        ids,
        tuple(config["grid"]),
        tokens_per_second=config["tokens_per_second"],
        second_per_grid=config["second_per_grid"],
        truncate=False,  # The server casts before it calls the function that these files come from.
    )
    yield exact("kept_positions", media, golden["kept_positions"])
    if "prompt_positions" in golden.arrays:
        prefix, suffix, width = int(config["prefix"]), int(config["suffix"]), int(config["grid"][1])
        positions, delta = prompt_positions(media, prefix=prefix, suffix=suffix, width=width)
        yield exact("prompt_positions", positions, golden["prompt_positions"])
        yield exact("prompt_delta", delta, golden["prompt_delta"])


COMPARERS = [Comparer("evs", is_evs, compare)]
