"""Golden files of the three baselines by norms: what is kept, where it stands, tokens and DeepStack levels."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.planned import PlannedRun, grid_of, starts_and_ends
from jvidprune.parity.table import Check, optional
from jvidprune.reducers.qwen_norm import QwenNorm
from jvidprune.tokens import VideoTokens

TOKENS = 2e-5

_OPTIONS = {
    "visionzip_dominant_ratio": ("dominant_share", float),
    "visionzip_k_neighbors": ("neighbours", int),
    "fastvid_DySeg_c": ("segments", int),
    "fastvid_DySeg_tau": ("tau", float),
    "fastvid_DySeg_ignore": ("ignore", float),
    "fastvid_STPrune_d": ("context_share", float),
    "fastvid_DTM_p": ("interval", int),
    "fastvid_DTM_beta": ("beta", float),
    "HOLITOM_T": ("tau", float),
}
"""The released environment variables, our names, and their types."""


def is_qwen_norm(golden: Golden) -> bool:
    """One of the three methods, ranked by norms or by patches in the tower's order."""
    named = golden.config.get("method") in ("visionzip", "fastvid", "holitom")
    first = golden.config.get("version") == "first"
    return named and golden.has("features", "deepstack", "tokens", "patch_scores" if first else "norms")


def _deepstack(run: PlannedRun) -> np.ndarray:
    return run.deepstack(run.plan.diagnostics.get("level_place", run.plan.ids))


def _length(run: PlannedRun) -> int:
    """The driver's prompt: time stamp and two markers of every frame, and four tokens of text."""
    return run.count + 3 * len(run.video.features) + 4


def _common(indices: str, scores: str) -> tuple[Check[PlannedRun], ...]:
    return (
        Check("keep", "count"),
        Check(indices, "ids"),
        Check("frame_counts", "frame_counts", optional=True),
        Check(scores, "shown.norm", TOKENS, 1e-6),
        Check("length", _length, optional=True),
        Check("tokens", "tokens", TOKENS),
        Check("deepstack_tokens", _deepstack, 0.0),
    )


def _source(run: PlannedRun) -> np.ndarray:
    """The token that each row comes from."""
    return run.shown["source"][: run.count]


def _places(name: str) -> Any:
    """Places inside each frame where a diagnostic mask holds."""
    return lambda run: np.stack([np.flatnonzero(row) for row in run.shown[name]])


def _starts(run: PlannedRun) -> np.ndarray:
    return starts_and_ends(run.shown["segment"])[:, 0]


def _adjusted_ratio(run: PlannedRun) -> float:
    return min(run.golden.config["ratio"] / (int(run.shown["left"]) / run.video.layout().total), 1.0)


def _window_tokens(run: PlannedRun) -> np.ndarray:
    window = run.shown["segment"]
    kept = run.shown["static_kept"] * (np.diff(window, prepend=-1) > 0) + run.shown["dynamic_kept"]
    return np.bincount(window, weights=kept).astype(int)


VERSIONS: dict[str, tuple[Check[PlannedRun], ...]] = {
    "first": _common("video_position", "token_scores"),
    "norm": _common("indices", "norms"),
}
"""What all three methods state, by the version of their code."""

METHODS: dict[str, tuple[Check[PlannedRun], ...]] = {
    "visionzip": optional(
        (
            Check("source", _source),
            Check("dominant", _places("dominant")),
            Check("contextual", _places("seed")),
        )
    ),
    "fastvid": optional(
        (
            Check("segment_sizes", lambda run: np.bincount(run.shown["segment"])),
            Check("frame_similarity", "shown.similarity", TOKENS),
        )
    ),
    "holitom": optional(
        (
            Check("windows", lambda run: starts_and_ends(run.shown["segment"])),
            Check("reduced", lambda run: run.video.layout().total - int(run.shown["left"])),
            Check("adjusted_ratio", _adjusted_ratio, TOKENS),
            Check("similarity", "shown.similarity", TOKENS),
            Check("window_tokens", _window_tokens),
            Check("static", lambda run: run.shown["static"][_starts(run)]),
            Check("source", _source),
        )
    ),
}
"""What a method states besides."""


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    config = golden.config
    settings: dict[str, Any] = {"method": config["method"], "version": config.get("version", "norm")}
    for name, value in config.get("options", {}).items():
        key, kind = _OPTIONS[name]
        settings[key] = kind(value)
    reducer = QwenNorm(**settings)
    evidence = {"attention_columns": golden["patch_scores"]} if reducer.version == "first" else {}
    video = VideoTokens.create(golden["features"], evidence, grid=grid_of(golden))
    layout, ratio = video.layout(), config["ratio"]
    run = PlannedRun.of(golden, reducer, video, reducer.budget(layout, ratio), capacity=reducer.capacity(layout, ratio))
    yield from table.compare(VERSIONS["first" if reducer.version == "first" else "norm"], run, golden)
    yield from table.compare(METHODS[config["method"]], run, golden)


COMPARERS = [Comparer("qwen_norm", is_qwen_norm, compare)]
