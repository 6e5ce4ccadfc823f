"""DyCoke's golden files: token selection before the language model, and the decoding policy."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from jvidprune.cuts.decoding import DecodePolicy
from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import PlannedRun, grid_of
from jvidprune.parity.table import Check
from jvidprune.reducers.dycoke import DyCoke
from jvidprune.tokens import VideoTokens


def is_selection(golden: Golden) -> bool:
    """TTM: kept tokens with the similarities of pairs and of windows of four."""
    return "k" in golden.config and golden.has("features", "index", "similarity_pairs", "tokens_per_frame")


def is_decoding(golden: Golden) -> bool:
    """DP: attention rows of successive decoding steps and what deep layers read."""
    return {"start", "length", "p", "threshold"} <= set(golden.config) and golden.has("rows", "row_length", "attended")


def _quads(run: PlannedRun) -> np.ndarray:
    return run.shown["similarity"][2::4][: len(run.golden["similarity_quads"])]


SELECTION: tuple[Check[PlannedRun], ...] = (
    Check("similarity_pairs", lambda run: run.shown["similarity"][1::2], 1e-5),
    Check("similarity_quads", _quads, 1e-5, optional=True),
    Check("tokens_per_frame", "frame_counts"),
    Check("index", "ids"),
    Check("tokens", "tokens", 0.0, optional=True),
)


def compare_selection(golden: Golden) -> Iterator[Row]:
    """Rows of a TTM file."""
    reducer, video = DyCoke(), VideoTokens.create(golden["features"], grid=grid_of(golden))
    budget = reducer.budget_of(video.layout(), float(golden.config["k"]))
    run = PlannedRun.of(golden, reducer, video, budget, capacity=reducer.count(video.layout(), int(budget.keep)))
    yield from table.compare(SELECTION, run, golden)


class _Steps(NamedTuple):
    """(S,) cosines that decide the steps, (S, R) what deep layers read, and below what a step prunes."""

    similarity: np.ndarray
    attended: np.ndarray
    threshold: float


DECODING: tuple[Check[_Steps], ...] = (
    Check("similarity", "similarity", 1e-5),
    Check("pruned", lambda steps: steps.similarity < steps.threshold),
    Check("attended", "attended"),
)


def compare_decoding(golden: Golden) -> Iterator[Row]:
    """Rows of a decoding file."""
    config = golden.config
    rows, lengths = golden["rows"], golden["row_length"]
    slots, start = np.arange(rows.shape[-1]), int(config["start"])
    # The last visual token counts as text: it stands behind the `length` prunable ones.
    visual = (slots >= start) & (slots <= start + int(config["length"]))
    reducer = DyCoke(
        decode_layer=int(config.get("layer", 3)),
        decode_dropped=float(config["p"]),
        decode_threshold=float(config["threshold"]),
    )
    (stage,) = reducer.inner(0.5)
    policy = DecodePolicy.create(stage.layer, stage.kept, visual[None], threshold=float(config["threshold"]))
    read, cosines = [], []
    for row, length in zip(rows, lengths, strict=True):
        cosine, (policy, mask) = _decoding_step(policy, row[None])
        read.append(np.asarray(mask[0]) & (slots < length))
        cosines.append(float(cosine[0]))
    yield from table.compare(DECODING, _Steps(np.asarray(cosines), np.stack(read), policy.threshold), golden)


@jax.jit
def _decoding_step(policy: DecodePolicy, attention: jax.Array) -> tuple[jax.Array, tuple[DecodePolicy, jax.Array]]:
    """The cosine that decides a step, and the step."""
    return policy.choose(attention).similarity, policy.step(attention)


COMPARERS = [Comparer("dycoke", is_selection, compare_selection), Comparer("dycoke", is_decoding, compare_decoding)]
