"""PruneVid's golden files: the stage before the language model and the selection inside it."""

from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.rules import text_relevance, top_in_blocks
from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row, exact
from jvidprune.parity.planned import PlannedRun, grid_of
from jvidprune.parity.table import Check
from jvidprune.reducers.prunevid import PruneVid
from jvidprune.tokens import VideoTokens

TOKENS = 1e-4

_BUDGETING: dict[str, Literal["retention", "clusters"]] = {"pllava": "clusters", "stop": "retention"}


def is_prunevid(golden: Golden) -> bool:
    """A run of either released version."""
    return golden.config.get("variant") in _BUDGETING and golden.has(
        "features", "tokens", "assign", "is_static", "frame_cluster", "window_sizes"
    )


def _sizes(run: PlannedRun) -> np.ndarray:
    return np.bincount(run.shown["segment"])


def _slot(run: PlannedRun) -> np.ndarray:
    return np.asarray(run.reduced.slot).reshape(run.video.features.shape[:2])


def _outputs(run: PlannedRun, *, static: bool) -> list[int]:
    """Output tokens of each segment that come from static or from dynamic tokens."""
    slot, segment, mine = _slot(run), run.shown["segment"], run.shown["static"] == static
    return [len(np.unique(slot[(segment == number)[:, None] & mine])) for number in range(segment.max() + 1)]


def _kept_by_text(run: PlannedRun) -> np.ndarray:
    """Rows that the selection inside the language model keeps, from the stored attention of the question."""
    total, alpha = run.video.layout().total, run.golden.config["alpha"]
    quota = jnp.asarray([int(n * alpha) for n in range(total + 1)], jnp.int32)
    relevance = text_relevance(jnp.asarray(run.golden["text_attention"]))
    scores = jnp.zeros(total).at[: run.count].set(relevance)
    return np.flatnonzero(jax.jit(top_in_blocks)(scores, run.plan.diagnostics["block"], run.plan.valid, quota))


STAGES: tuple[Check[PlannedRun], ...] = (
    Check("frame_cluster_raw", "shown.frame_cluster_raw"),
    Check("frame_cluster", "shown.frame_cluster"),
    Check("window_sizes", _sizes),
    Check("window_similarity", lambda run: run.shown["similarity"][: len(_sizes(run))], 1e-5),
    Check("is_static", "shown.static"),
    Check("assign", _slot),
    Check("tokens", "tokens", TOKENS),
)
SIZES: tuple[Check[PlannedRun], ...] = (
    Check("static_sizes", lambda run: _outputs(run, static=True)),
    Check("dynamic_sizes", lambda run: _outputs(run, static=False)),
    Check("llm_index", _kept_by_text, optional=True),
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
    video = VideoTokens.create(golden["features"], grid=grid_of(golden))
    layout = video.layout()
    run = PlannedRun.of(golden, reducer, video, reducer.budget(layout, c["ratio"]), capacity=layout.total)
    yield from table.compare(STAGES, run, golden)
    yield exact("within_bound", run.count <= reducer.capacity(layout, c["ratio"]), True)
    yield from table.compare(SIZES, run, golden)


COMPARERS = [Comparer("prunevid", is_prunevid, compare)]
