"""ToMe's golden files: pairs of every round, the row of every source token, and the merged tokens."""

from collections.abc import Iterator

import numpy as np

from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.tome import ToMe, ToMeBudget
from jvidprune.tokens import VideoTokens

TOKENS = 1e-5


def is_tome(golden: Golden) -> bool:
    """Pairs that rounds of bipartite matching merge down to a target."""
    return "target" in golden.config and golden.has(
        "features", "row", "size", "removed", "tokens", "merged_0", "into_0"
    )


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    features, config = golden["features"], golden.config
    frames, tokens, dim = features.shape
    target, clip = int(config["target"]), int(config.get("clip", 1))
    reducer = ToMe(clip=clip, heads=int(config.get("heads", 1)))
    video = VideoTokens.create(features, grid=(config.get("H", 1), config.get("W", tokens)))
    entries, capacity = frames // clip, frames // clip * target
    plan, reduced = planned(reducer, video, ToMeBudget(np.int32(target), np.int32(0)), capacity=capacity)
    found = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    yield exact("keep", int(plan.count), golden["keep"])
    removed, size = [], clip * tokens
    while size > target:
        removed.append(min(size - target, size // 2))
        size -= removed[-1]
    yield exact("removed", removed, golden["removed"])
    size = clip * tokens
    for level, pairs in enumerate(removed):
        order = np.argsort(found["levels_rank"][level][:, : -(-size // 2)], axis=1)
        merged = order[:, :pairs]
        yield exact(f"unmerged_{level}", order[:, pairs:], golden[f"unmerged_{level}"])
        yield exact(f"merged_{level}", merged, golden[f"merged_{level}"])
        into = np.take_along_axis(found["levels_into"][level], merged, axis=1)
        yield exact(f"into_{level}", into, golden[f"into_{level}"])
        size -= pairs
    yield exact("row", found["row"], golden["row"])
    yield exact("size", found["size"][:, :target], golden["size"])
    out = np.asarray(reduced.tokens)[: int(plan.count)].reshape(entries, target, dim)
    yield close("tokens", out, golden["tokens"], TOKENS)
    if "gap" in golden.arrays:
        yield close("gap", _smallest_gap(features, found, removed, reducer), golden["gap"], TOKENS, note="in float64")


def _smallest_gap(features: np.ndarray, found: dict[str, np.ndarray], removed: list[int], reducer: ToMe) -> float:
    """Smallest distance of neighbouring best similarities, or of a best one to the second, over our own rounds."""
    clip = reducer.clip or len(features)
    x = features.astype(np.float64).reshape(len(features) // clip, -1, features.shape[-1])
    gaps = [np.inf]
    for entry, tokens in enumerate(x):
        for level, pairs in enumerate(removed):
            metric = tokens.reshape(len(tokens), reducer.heads, -1).mean(1)
            unit = metric / np.linalg.norm(metric, axis=1, keepdims=True)
            similarity = np.sort(unit[0::2] @ unit[1::2].T, axis=1)
            gaps += list(np.diff(np.sort(similarity[:, -1])))
            if similarity.shape[1] > 1:
                gaps += list(similarity[:, -1] - similarity[:, -2])
            rank, into = (found[name][level][entry] for name in ("levels_rank", "levels_into"))
            unmerged = -(-len(tokens) // 2) - pairs
            sums = np.zeros((len(tokens) - pairs, tokens.shape[1]))
            for place, token in enumerate(tokens):
                half = place // 2
                even = unmerged + into[half] if rank[half] < pairs else rank[half] - pairs
                sums[even if place % 2 == 0 else unmerged + half] += token
            tokens = sums
    return float(min(gaps))


COMPARERS = [Comparer("tome", is_tome, compare)]
