"""PruneVid's golden files: the stage before the language model and the selection inside it."""

from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.rules import text_relevance, top_in_blocks
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.prunevid import PruneVid
from jvidprune.tokens import VideoTokens

TOKENS = 1e-4

_BUDGETING: dict[str, Literal["retention", "clusters"]] = {"pllava": "clusters", "stop": "retention"}


def is_prunevid(golden: Golden) -> bool:
    """A run of either released version."""
    return golden.config.get("variant") in _BUDGETING and golden.has(
        "features", "tokens", "assign", "is_static", "frame_cluster", "window_sizes"
    )


def compare(golden: Golden) -> Iterator[Row]:
    """Frame clusters, static places, rows and tokens, and the rows that the text keeps."""
    c = golden.config
    reducer = PruneVid(
        budgeting=_BUDGETING[c["variant"]],
        tau=c["tau"],
        frame_share=c["temporal_segment_ratio"],
        neighbours=c["k"],
    )
    features = golden["features"]
    generator = c.get("generator", {})
    grid = (generator["H"], generator["W"]) if {"H", "W"} <= generator.keys() else (1, features.shape[1])
    video = VideoTokens.create(features, grid=grid)
    layout = video.layout()
    plan, reduced = planned(reducer, video, reducer.budget(layout, c["ratio"]), capacity=layout.total)
    count = int(plan.count)
    d = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    yield exact("frame_cluster_raw", d["frame_cluster_raw"], golden["frame_cluster_raw"])
    yield exact("frame_cluster", d["frame_cluster"], golden["frame_cluster"])
    sizes = np.bincount(d["segment"])
    yield exact("window_sizes", sizes, golden["window_sizes"])
    yield close("window_similarity", d["similarity"][: len(sizes)], golden["window_similarity"], 1e-5)
    yield exact("is_static", d["static"], golden["is_static"])
    yield exact("assign", np.asarray(reduced.slot).reshape(layout.frames, -1), golden["assign"])
    yield close("tokens", reduced.tokens[:count], golden["tokens"], TOKENS)
    yield exact("within_bound", count <= reducer.capacity(layout, c["ratio"]), True)
    static, dynamic = _outputs(d["static"], np.asarray(reduced.slot).reshape(layout.frames, -1), d["segment"])
    yield exact("static_sizes", static, golden["static_sizes"])
    yield exact("dynamic_sizes", dynamic, golden["dynamic_sizes"])
    if "llm_index" in golden.arrays:
        quota = jnp.asarray([int(n * c["alpha"]) for n in range(layout.total + 1)], jnp.int32)
        relevance = jnp.zeros(layout.total).at[:count].set(text_relevance(jnp.asarray(golden["text_attention"])))
        kept = jax.jit(top_in_blocks)(relevance, plan.diagnostics["block"], plan.valid, quota)
        yield exact("llm_index", np.flatnonzero(np.asarray(kept)), golden["llm_index"])


def _outputs(static: np.ndarray, slot: np.ndarray, segment: np.ndarray) -> tuple[list[int], list[int]]:
    """Output tokens of each segment, static and dynamic."""
    found: tuple[list[int], list[int]] = ([], [])
    for number in range(segment.max() + 1):
        inside = (segment == number)[:, None]
        found[0].append(len(np.unique(slot[inside & static])))
        found[1].append(len(np.unique(slot[inside & ~static])))
    return found


COMPARERS = [Comparer("prunevid", is_prunevid, compare)]
