"""Golden files of the three baselines by norms: what is kept, where it stands, tokens and DeepStack levels."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvidprune.ops import compact
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
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


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    features, config = golden["features"], golden.config
    frames, tokens, _ = features.shape
    settings: dict[str, Any] = {"method": config["method"], "version": config.get("version", "norm")}
    for name, value in config.get("options", {}).items():
        key, kind = _OPTIONS[name]
        settings[key] = kind(value)
    reducer = QwenNorm(**settings)
    first = reducer.version == "first"
    evidence = {"attention_columns": golden["patch_scores"]} if first else {}
    video = VideoTokens.create(features, evidence, grid=(config.get("H", 1), config.get("W", tokens)))
    budget, capacity = (make(video.layout(), config["ratio"]) for make in (reducer.budget, reducer.capacity))
    plan, reduced = planned(reducer, video, budget, capacity=capacity)
    count = int(plan.count)
    ids = np.asarray(plan.ids)[:count]
    found = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    yield exact("keep", count, golden["keep"])
    yield exact("video_position" if first else "indices", ids, golden["video_position" if first else "indices"])
    if "frame_counts" in golden.arrays:
        yield exact("frame_counts", np.bincount(ids // tokens, minlength=frames), golden["frame_counts"])
    scores = "token_scores" if first else "norms"
    yield close(scores, found["norm"], golden[scores], TOKENS, rtol=1e-6)
    if "length" in golden.arrays:
        # The driver's prompt: time stamp and two markers of every frame, and four tokens of text.
        yield exact("length", count + 3 * frames + 4, golden["length"])
    yield close("tokens", np.asarray(reduced.tokens)[:count], golden["tokens"], TOKENS)
    levels = jnp.moveaxis(jnp.asarray(golden["deepstack"]), 0, 2).reshape(frames * tokens, -1)
    shown = plan._replace(ids=plan.diagnostics.get("level_place", plan.ids))
    gathered = np.asarray(compact.gather_rows(shown, levels))[:count].reshape(count, len(golden["deepstack"]), -1)
    yield close("deepstack_tokens", np.moveaxis(gathered, 1, 0), golden["deepstack_tokens"], 0.0)
    own = {"visionzip": _visionzip, "fastvid": _fastvid, "holitom": _holitom}[config["method"]]
    for name, ours, theirs in own(golden, found, count):
        if name in golden.arrays:
            yield theirs(name, ours, golden[name])


def _visionzip(golden: Golden, found: dict[str, np.ndarray], count: int) -> Iterator[tuple[str, Any, Any]]:
    """Places of dominant and contextual tokens inside each frame."""
    yield "source", found.get("source", np.zeros(0))[:count], exact
    for name, mask in (("dominant", found["dominant"]), ("contextual", found["seed"])):
        if name not in golden.arrays:
            continue
        yield name, np.stack([np.flatnonzero(row) for row in mask]), exact


def _fastvid(golden: Golden, found: dict[str, np.ndarray], count: int) -> Iterator[tuple[str, Any, Any]]:
    """Segments and the similarities that cut them."""
    yield "segment_sizes", np.bincount(found["segment"]), exact
    yield "frame_similarity", found["similarity"], _close


def _holitom(golden: Golden, found: dict[str, np.ndarray], count: int) -> Iterator[tuple[str, Any, Any]]:
    """Windows, what they merge, and which token each row comes from."""
    frames, tokens, _ = golden["features"].shape
    window = found["segment"]
    starts = np.flatnonzero(np.diff(window, prepend=-1))
    ends = np.append(starts[1:], frames) - 1
    left, total = int(found["left"]), frames * tokens
    yield "windows", np.stack([starts, ends], axis=1), exact
    yield "reduced", total - left, exact
    yield "adjusted_ratio", min(golden.config["ratio"] / (left / total), 1.0), _close
    yield "similarity", found["similarity"], _close
    kept = found["static_kept"] * (np.diff(window, prepend=-1) > 0) + found["dynamic_kept"]
    yield "window_tokens", np.bincount(window, weights=kept).astype(int), exact
    yield "static", found["static"][starts], exact
    yield "source", found["source"][:count], exact


def _close(what: str, ours: Any, golden: Any) -> Row:
    return close(what, ours, golden, TOKENS)


COMPARERS = [Comparer("qwen_norm", is_qwen_norm, compare)]
