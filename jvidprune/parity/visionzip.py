"""VisionZip's golden files: the video version, its baseline inside SToP, the original for images, and the pooling."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvidprune.ops.pool import PoolKind, pool_tokens
from jvidprune.ops.sink import SinkRule
from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row, exact
from jvidprune.parity.lines import Lines
from jvidprune.parity.planned import Run, planned
from jvidprune.parity.table import Check, optional
from jvidprune.reducers.visionzip import VisionZip
from jvidprune.tokens import VideoTokens

TOKENS = 1e-5


def is_video(golden: Golden) -> bool:
    """The per-frame video version, SToP's baseline with sink weight 0 included."""
    return golden.config.get("variant") in ("video", "stop") and golden.has(
        "features", "attention", "metric", "budget", "topk_index", "target_position", "center_index", "sequence"
    )


def is_image(golden: Golden) -> bool:
    """The original for images with a CLS token."""
    return golden.config.get("variant") == "image" and golden.has("hidden", "cls_attention", "metric", "center_index")


def is_pooling(golden: Golden) -> bool:
    """Features and attention pooled by both operators."""
    return golden.has("features", "attention", "features_bilinear", "features_average")


class _Run(Run):
    """A run for counts that a golden file states."""

    @classmethod
    def with_counts(
        cls, golden: Golden, reducer: VisionZip, features: np.ndarray, attention: np.ndarray, counts: tuple[int, int]
    ) -> "_Run":
        """Plan and tokens for these numbers of dominant and contextual tokens of a frame."""
        tokens = features.shape[1]
        grid = None if round(tokens**0.5) ** 2 == tokens else (1, tokens)
        generator = golden.config.get("generator", {})
        if generator.get("H", 0) * generator.get("W", 0) == tokens:
            grid = (generator["H"], generator["W"])
        video = VideoTokens.create(features, {"attention_last": attention, "keys": golden["metric"]}, grid=grid)
        budget = reducer.split(tokens, sum(counts), counts[0])
        sink = None
        if golden.config.get("variant") == "stop":
            sink = SinkRule(mu_s=golden.config["mu_s"], gamma=golden.config["gamma"], blocked=20)
        found = planned(reducer, video, budget, capacity=len(features) * sum(counts), sink=sink)
        return cls(golden, reducer, video, budget, *found)

    @property
    def first(self) -> np.ndarray:
        """(T, 1) id of each frame's first token; images have places in the frame instead of ids."""
        frames, tokens, _ = self.video.features.shape
        step = 0 if self.golden.config.get("variant") == "image" else tokens
        return np.arange(frames)[:, None] * step

    @property
    def per_frame(self) -> np.ndarray:
        """(T, K, D) output of each frame."""
        out = np.asarray(self.reduced.tokens)
        return out.reshape(len(self.video.features), -1, out.shape[-1])


def _top(run: _Run) -> np.ndarray:
    return run.first + run.shown["attention_order"][:, : int(run.budget.dominant)]


def _targets(run: _Run) -> np.ndarray:
    """(K,) numbers of the contextual seeds among the rest, which are those of every frame; else all of them."""
    numbers = np.unique(run.shown["seed_number"][:, : int(run.budget.contextual)], axis=0)
    return numbers[0] if len(numbers) == 1 else numbers


def _centres(run: _Run) -> np.ndarray:
    return run.first + run.shown["seed_place"][:, : int(run.budget.contextual)]


def _members(run: _Run) -> np.ndarray:
    joined = run.shown["joined"]
    return np.stack([run.first[t] + np.flatnonzero(row >= 0) for t, row in enumerate(joined)])


CHOICES: tuple[Check[_Run], ...] = optional(
    (
        Check("topk_index", _top),
        Check("dominant_index", lambda run: np.sort(_top(run), axis=1)),
        Check("target_position", _targets),
        Check("center_index", _centres),
        Check("member_index", _members),
        Check("assign", lambda run: np.stack([row[row >= 0] for row in run.shown["joined"]])),
        Check("count", lambda run: run.shown["members"][:, : int(run.budget.contextual)]),
    )
)
"""Everything discrete."""

VIDEO: tuple[Check[_Run], ...] = (
    *CHOICES,
    Check("dominant_tokens", lambda run: run.per_frame[:, : int(run.budget.dominant)], 0.0, optional=True),
    Check("contextual_tokens", lambda run: run.per_frame[:, int(run.budget.dominant) :], TOKENS, optional=True),
)
IMAGE: tuple[Check[_Run], ...] = (
    Check(
        "budget",
        lambda run: [run.budget.dominant - 1, run.budget.contextual, run.budget.step],
        optional=True,
    ),
    *CHOICES,
    Check("tokens", lambda run: run.per_frame, TOKENS, optional=True),
)


def _in_frames(ids: Any, run: _Run) -> np.ndarray:
    return np.asarray(ids).reshape(len(run.first), -1)


GRID: tuple[Check[_Run], ...] = optional(
    (
        Check("sorted_position", lambda run: _in_frames(run.shown["place"], run) - run.first),
        Check("sorted_source_index", lambda run: _in_frames(run.reduced.index, run)),
    )
)


def _sequence(run: _Run) -> np.ndarray:
    places = run.plan.diagnostics["place"] if run.reducer.layout == "grid" else run.reduced.index
    kind, frames = run.golden.config["newline"], len(run.video.features)
    lines = Lines.of(places, run.reduced.valid, kind=kind, grid=run.video.grid, frames=frames)
    return lines.tokens(run.reduced.tokens, run.golden["image_newline"])


SEQUENCE: tuple[Check[_Run], ...] = (Check("sequence", _sequence, TOKENS),)


def compare_video(golden: Golden) -> Iterator[Row]:
    """Rows of a video file."""
    features, attention = golden["features"], golden["attention"]
    spatial, dominant, contextual, _ = (int(v) for v in golden["budget"])
    share = float(golden.config["dominant_ratio"])
    reducer = VisionZip(layout="one_token", dominant_share=share)
    yield exact("budget", reducer.split(features.shape[1], spatial), golden["budget"])
    run = _Run.with_counts(golden, reducer, features, attention, (dominant, contextual))
    yield from table.compare(VIDEO, run, golden)
    if golden.config["newline"] == "grid":
        reducer = VisionZip(layout="grid", dominant_share=share)
        run = _Run.with_counts(golden, reducer, features, attention, (dominant, contextual))
        yield from table.compare(GRID, run, golden)
    yield from table.compare(SEQUENCE, run, golden)


def compare_image(golden: Golden) -> Iterator[Row]:
    """Rows of an image file."""
    dominant, contextual = int(golden.config["dominant"]), int(golden.config["contextual"])
    share = dominant / (dominant + contextual)
    reducer = VisionZip(layout="one_token", dominant_share=min(share, 0.999) * 0.999, tower="none", cls_token=True)
    attention = np.pad(golden["cls_attention"].sum(axis=1), ((0, 0), (1, 0)))
    run = _Run.with_counts(golden, reducer, golden["hidden"], attention, (dominant, contextual))
    yield from table.compare(IMAGE, run, golden)


def _pooled(name: str, kind: PoolKind) -> Check[Golden]:
    def ours(golden: Golden) -> Any:
        side = int(golden.config.get("side", round(golden["attention"].shape[1] ** 0.5)))
        return pool_tokens(jnp.asarray(golden[name]), (side, side), kind)

    return Check(f"{name}_{kind}", ours, 1e-5, optional=True)


POOLING: tuple[Check[Golden], ...] = (
    _pooled("features", "bilinear"),
    _pooled("attention", "bilinear"),
    _pooled("features", "average"),
    _pooled("attention", "average"),
)


def compare_pooling(golden: Golden) -> Iterator[Row]:
    """Rows of the pooling file."""
    yield from table.compare(POOLING, golden, golden)


COMPARERS = [
    Comparer("visionzip", is_video, compare_video),
    Comparer("visionzip", is_image, compare_image),
    Comparer("visionzip", is_pooling, compare_pooling),
]
