"""ToMe's golden files: pairs of every round, the row of every source token, and the merged tokens."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import Run, count, grid_of, shown
from jvidprune.parity.table import Check
from jvidprune.reducers.tome import ToMe, ToMeBudget
from jvidprune.tokens import VideoTokens

TOKENS = 1e-5


def is_tome(golden: Golden) -> bool:
    """Pairs that rounds of bipartite matching merge down to a target."""
    return "target" in golden.config and golden.has(
        "features", "row", "size", "removed", "tokens", "merged_0", "into_0"
    )


def _target(run: Run) -> int:
    return int(run.budget.target)


def _removed(run: Run) -> list[int]:
    """Pairs of every round."""
    size, removed = run.reducer.clip * run.video.features.shape[1], []
    while size > _target(run):
        removed.append(min(size - _target(run), size // 2))
        size -= removed[-1]
    return removed


def _tokens(run: Run) -> np.ndarray:
    return run.tokens.reshape(-1, _target(run), run.tokens.shape[-1])


def _smallest_gap(run: Run) -> float:
    """Smallest distance of neighbouring best similarities, or of a best one to the second, over our own rounds."""
    features, found, clip = run.golden["features"], run.shown, run.reducer.clip
    x = features.astype(np.float64).reshape(len(features) // clip, -1, features.shape[-1])
    gaps = [np.inf]
    for entry, tokens in enumerate(x):
        for level, pairs in enumerate(_removed(run)):
            metric = tokens.reshape(len(tokens), run.reducer.heads, -1).mean(1)
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


class _Round(NamedTuple):
    """(E, even tokens) in the order of their ranks, the pairs merged, and (E, even tokens) whom each joins."""

    order: np.ndarray
    pairs: int
    into: np.ndarray


def _rounds(run: Run) -> Iterator[_Round]:
    size = run.reducer.clip * run.video.features.shape[1]
    for level, pairs in enumerate(_removed(run)):
        order = np.argsort(run.shown["levels_rank"][level][:, : -(-size // 2)], axis=1)
        yield _Round(order, pairs, run.shown["levels_into"][level])
        size -= pairs


def _round_table(level: int) -> tuple[Check[_Round], ...]:
    return (
        Check(f"unmerged_{level}", lambda one: one.order[:, one.pairs :]),
        Check(f"merged_{level}", lambda one: one.order[:, : one.pairs]),
        Check(f"into_{level}", lambda one: np.take_along_axis(one.into, one.order[:, : one.pairs], axis=1)),
    )


COUNTS: tuple[Check[Run], ...] = (Check("keep", count), Check("removed", _removed))
RESULT: tuple[Check[Run], ...] = (
    Check("row", shown("row")),
    Check("size", lambda run: run.shown["size"][:, : _target(run)]),
    Check("tokens", _tokens, TOKENS),
    Check("gap", _smallest_gap, TOKENS, optional=True, note="in float64"),
)


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    target, clip = int(golden.config["target"]), int(golden.config.get("clip", 1))
    reducer = ToMe(clip=clip, heads=int(golden.config.get("heads", 1)))
    video = VideoTokens.create(golden["features"], grid=grid_of(golden))
    capacity = len(golden["features"]) // clip * target
    run = Run.of(golden, reducer, video, ToMeBudget(np.int32(target), np.int32(0)), capacity=capacity)
    yield from table.compare(COUNTS, run, golden)
    for level, one in enumerate(_rounds(run)):
        yield from table.compare(_round_table(level), one, golden)
    yield from table.compare(RESULT, run, golden)


COMPARERS = [Comparer("tome", is_tome, compare)]
