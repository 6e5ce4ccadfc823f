"""SToP's golden files (arXiv 2604.20937): sink scores alone, and every base with and without the modifier."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.ops import newline
from jvidprune.ops.cluster import peak_scores
from jvidprune.ops.sink import sink_scores
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.reducers.fastvid import FastVID
from jvidprune.reducers.flashvid import FlashVID
from jvidprune.reducers.holitom import HoliTom
from jvidprune.reducers.protocol import full
from jvidprune.reducers.stop import SToP, SToPShared
from jvidprune.reducers.stop_qwen import VisionZipQwen
from jvidprune.reducers.visionzip import VisionZip
from jvidprune.tokens import Plan, Reduced, VideoTokens

NEWLINE = -5.0
"""The constant that stands for the newline vector in these files."""

_TOLERANCE = {"visionzip": 1e-3, "fastvid": 1e-3, "flashvid": 1e-3, "holitom": 2e-4, "qwen25vl": 2e-4}


def _prefixes(golden: Golden) -> list[str]:
    key = "runs" if "runs" in golden.arrays else "cases"
    if key not in golden.arrays:
        return []
    try:
        names = json.loads(str(golden.arrays[key]))
    except ValueError:
        # Another method's file may hold an array of this name.
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _config(golden: Golden, prefix: str) -> dict[str, Any]:
    return json.loads(str(golden.arrays[f"{prefix}_config"]))


def _is_sink(golden: Golden) -> bool:
    names = _prefixes(golden)
    return (
        bool(names)
        and all(golden.has(f"{p}_attention", f"{p}_sink", f"{p}_config") for p in names)
        and not any(golden.has(f"{p}_tokens") for p in names)
    )


def _is_run(golden: Golden) -> bool:
    names = _prefixes(golden)
    if not names or not all(golden.has(f"{p}_config", f"{p}_tokens") for p in names):
        return False
    return all({"base", "mu_s", "gamma"} <= _config(golden, p).keys() for p in names)


def _compare_sink(golden: Golden) -> Iterator[Row]:
    for name in _prefixes(golden):
        attention = golden[f"{name}_attention"]
        frames = len(attention)
        groups, mask = jnp.zeros(frames, jnp.int32), jnp.ones(frames, bool)
        ours = sink_scores(jnp.asarray(attention), groups, mask, _config(golden, name)["gamma"])
        yield close(f"{name}_sink", np.asarray(ours)[0], golden[f"{name}_sink"], 2e-6)


def _base(config: dict[str, Any]) -> Any:
    grid = config.get("newline", "one_token") == "grid"
    match config["base"]:
        case "visionzip":
            # The reference files tokens under each other's places in the grid layout; the ids are those places.
            return VisionZip(layout="grid" if grid else "one_token", tower="none")
        case "fastvid":
            given = {ours: config[name] for name, ours in _FASTVID.items() if name in config}
            return FastVID(attention="attention_last", **given)
        case "flashvid":
            given = {ours: config[name] for name, ours in _FLASHVID.items() if name in config}
            return FlashVID(pruning_layer=None, **given)
        case "holitom":
            given = {ours: config[name] for name, ours in _HOLITOM.items() if name in config}
            return HoliTom(layout="grid" if grid else "one_token", **given)
    return VisionZipQwen(mu_s=config["mu_s"], mu_t=config["mu_t"], gamma=config["gamma"], threshold=_tau(config))


_FASTVID = {"c": "segments", "tau": "tau", "d": "context_share", "p": "interval", "alpha": "beta"}
_FLASHVID = {
    "do_segment": "do_segment",
    "segment_threshold": "segment_threshold",
    "min_segment_num": "min_segments",
    "complementary_segment": "complementary",
    "token_selection_method": "method",
    "temporal_threshold": "temporal_threshold",
    "expansion": "expansion",
    "alpha": "alpha",
}
_HOLITOM = {"tau": "tau", "beta": "beta", "D": "contextual_share", "K": "neighbours", "max_window": "max_window"}


def _tau(config: dict[str, Any]) -> float:
    return config.get("tau", 0.8)


def _reducer(config: dict[str, Any]) -> Any:
    base = _base(config)
    if config.get("without_stop", False) or config["base"] == "qwen25vl":
        return base
    return SToP(base, mu_s=config["mu_s"], mu_t=config["mu_t"], gamma=config["gamma"])


def _video(golden: Golden, prefix: str, config: dict[str, Any]) -> VideoTokens:
    def array(name: str) -> np.ndarray | None:
        for key in (f"{prefix}_{name}", name):
            if key in golden.arrays:
                return golden[key]
        return None

    evidence = {"attention_last": "attention", "keys": "metric", "frame_embedding": "frame_global"}
    found = {name: value for name, key in evidence.items() if (value := array(key)) is not None}
    features = array("features")
    grid = config.get("grid")
    return VideoTokens.create(features, found, grid=tuple(grid) if grid else None)


@functools.partial(jax.jit, static_argnames=("reducer", "capacity"))
def _run(reducer: Any, video: VideoTokens, budget: Any, *, capacity: int) -> tuple[Any, Plan, Reduced]:
    """The base's shared work, the plan and its tokens; runs of one setting and shape share a compilation."""
    shared = reducer.prepare(video, capacity=capacity)
    plan = reducer.decide(shared, budget, capacity=capacity)
    own = shared.base if isinstance(shared, SToPShared) else shared
    return own, plan, full(reducer).apply(plan, video)


def _compare_runs(golden: Golden) -> Iterator[Row]:
    for prefix in _prefixes(golden):
        config = _config(golden, prefix)
        video = _video(golden, prefix, config)
        reducer = _reducer(config)
        layout = video.layout()
        if config["base"] == "visionzip":
            spatial = int(golden[f"{prefix}_dominant_num"]) + int(golden[f"{prefix}_contextual_num"])
            yield exact(f"{prefix} tokens per frame", spatial, config["spatial_tokens"])
            base = reducer.base if isinstance(reducer, SToP) else reducer
            budget = base.split(layout.tokens, spatial)
            yield exact(f"{prefix} dominant_num", budget.dominant, golden[f"{prefix}_dominant_num"])
            capacity = layout.frames * spatial
        else:
            budget, capacity = reducer.budget(layout, config["ratio"]), reducer.capacity(layout, config["ratio"])

        shared, plan, reduced = _run(reducer, video, budget, capacity=capacity)
        steady = config.get("stable_under_1e-5", True)
        if steady:
            for row in _details(golden, prefix, config, reducer, video, shared, plan):
                yield Row(f"{prefix} {row.what}", row.deviation, row.limit, row.verdict, row.note)
        yield from _sequence(golden, prefix, config, video, plan, reduced, steady)


def _sequence(
    golden: Golden, prefix: str, config: dict[str, Any], video: VideoTokens, plan: Plan, reduced: Reduced, steady: bool
) -> Iterator[Row]:
    tokens = golden[f"{prefix}_tokens"]
    ids = golden.arrays.get(f"{prefix}_token_ids")
    kind = config.get("newline", "one_token")
    if ids is None or not (ids < 0).any():
        kind = "no_token"
    rows = "nonempty" if config["base"] == "holitom" else "all"
    places = plan.diagnostics.get("place", plan.ids)
    laid = newline.arrange(
        places, plan.valid, kind=kind, grid=video.grid, frames=len(video.features), rows=rows, capacity=None
    )
    count = int(laid.count)
    if not steady:
        yield exact(f"{prefix} count", count, len(tokens), "ties: tokens are not compared")
        return
    vector = jnp.full(video.features.shape[-1], NEWLINE, jnp.float32)
    ours = np.asarray(newline.sequence(laid, reduced.tokens, vector))[:count]
    ours_ids = np.append(np.asarray(places), -1)[np.asarray(laid.source)[:count]]
    if ids is not None:
        yield exact(f"{prefix} token_ids", ours_ids, ids)
        if config["base"] in ("flashvid", "fastvid") and len(ours) == len(tokens):
            # Rows of one id come in an undefined order in the reference: compare them sorted.
            ours, tokens = (x[np.lexsort((x[:, 0], ids))] for x in (ours, tokens))
    yield close(f"{prefix} tokens", ours, tokens, _TOLERANCE[config["base"]])


def _details(
    golden: Golden,
    prefix: str,
    config: dict[str, Any],
    reducer: Any,
    video: VideoTokens,
    shared: Any,
    plan: Plan,
) -> Iterator[Row]:
    wanted = {key.removeprefix(f"{prefix}_"): v for key, v in golden.arrays.items() if key.startswith(f"{prefix}_")}
    d = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    frames = len(video.features)
    if "sink" in wanted and isinstance(reducer, SToP):
        segmented = config["base"] == "flashvid"
        groups = jnp.asarray(d["segments"]) if segmented else jnp.zeros(frames, jnp.int32)
        attention = video.evidence["attention_last"]
        adjusted = reducer.rule.adjust(attention, groups, video.frame_mask)
        score = np.asarray(sink_scores(attention, groups, video.frame_mask, config["gamma"]))
        yield close("sink", score if segmented else score[0], wanted["sink"], 5e-6)
        if "adjusted" in wanted:
            yield close("adjusted", adjusted.attention, wanted["adjusted"], 1e-6)
    match config["base"]:
        case "visionzip":
            yield from _visionzip(wanted, d, video)
        case "fastvid":
            yield from _fastvid(wanted, d, shared, reducer)
        case "flashvid":
            if "num_selected" in wanted:
                budget = reducer.budget(video.layout(), config["ratio"])
                yield exact("num_selected", budget.n_select, wanted["num_selected"])
                yield exact("num_merged", budget.n_merge, wanted["num_merged"])
            if "segment_lengths" in wanted:
                yield exact("segment_lengths", np.bincount(d["segments"]), wanted["segment_lengths"])
            if "selected" in wanted:
                picked = np.asarray(shared.order)[:, : int(wanted["num_selected"])]
                yield exact("selected", np.sort(picked, axis=1), np.sort(wanted["selected"], axis=1))
        case "holitom":
            yield from _holitom(wanted, d, video, plan)
        case "qwen25vl":
            yield from _qwen(wanted, d, video, config)


def _visionzip(wanted: dict[str, np.ndarray], d: dict[str, np.ndarray], video: VideoTokens) -> Iterator[Row]:
    frames, tokens, _ = video.features.shape
    kd, kc = int(wanted["dominant_num"]), int(wanted["contextual_num"])
    first = np.arange(frames)[:, None] * tokens
    yield exact("dominant_ids", first + np.sort(d["attention_order"][:, :kd], axis=1), wanted["dominant_ids"])
    yield exact("contextual_slots", d["seed_number"][0, :kc], wanted["contextual_slots"])
    yield exact("contextual_ids", first + d["seed_place"][:, :kc], wanted["contextual_ids"])
    if len(np.unique(wanted["contextual_slots"])) == kc:
        joined = [row[row >= 0] for row in d["joined"]]
        yield exact("assign", np.stack(joined), wanted["assign"])


def _fastvid(wanted: dict[str, np.ndarray], d: dict[str, np.ndarray], shared: Any, reducer: Any) -> Iterator[Row]:
    if "segment_sizes" not in wanted:
        return
    yield exact("segment_sizes", np.bincount(d["segment"]), wanted["segment_sizes"])
    rank = np.asarray(shared.rank)
    frames, tokens = rank.shape
    salient = rank < d["salient_per_frame"][:, None]
    first = np.arange(frames)[:, None] * tokens
    ks = wanted["salient_ids"].shape[1]
    yield exact("salient_ids", first + np.argsort(rank, axis=1)[:, :ks], wanted["salient_ids"])
    yield exact("filtered", np.stack([np.flatnonzero(~row) for row in salient]), wanted["filtered"])
    base = reducer.base if isinstance(reducer, SToP) else reducer
    near = base.neighbours
    scores = jax.vmap(lambda x, free: peak_scores(x, free, near, max_neighbours=near))(shared.distance, ~salient)
    scores = np.asarray(scores - shared.penalty)
    # Only anchor frames have centres; the port computes no distances inside the others.
    anchors = np.flatnonzero(d["anchor_per_frame"] > 0)
    ours = np.stack([scores[t][~salient[t]] for t in anchors])
    yield close("density_score", ours, wanted["density_score"][anchors], 2e-4, note="anchor frames")
    if "sink_weight_context" in wanted and isinstance(reducer, SToP):
        yield close("sink_weight_context", reducer.rule.kappa, wanted["sink_weight_context"], 1e-6)


def _holitom(wanted: dict[str, np.ndarray], d: dict[str, np.ndarray], video: VideoTokens, plan: Plan) -> Iterator[Row]:
    frames, tokens, _ = video.features.shape
    starts = np.flatnonzero(np.append(True, np.diff(d["segment"]) > 0))
    ends = np.append(starts[1:], frames) - 1
    yield exact("segments", np.stack([starts, ends], axis=1), wanted["segments"])
    yield exact("total_reduced", frames * tokens - int(d["left"]), wanted["total_reduced"].astype(np.int64))
    yield close("feature_sim", d["similarity"], wanted["feature_sim"], 2e-6)
    yield exact("n_static", d["static"][starts].sum(1), wanted["n_static"])
    yield exact("n_static_kept", d["static_kept"][starts], wanted["n_static_kept"])
    yield exact("n_dynamic_kept", d["dynamic_kept"][starts], wanted["n_dynamic_kept"])


def _qwen(
    wanted: dict[str, np.ndarray], d: dict[str, np.ndarray], video: VideoTokens, config: dict[str, Any]
) -> Iterator[Row]:
    total = video.features.shape[0] * video.features.shape[1]
    if "importance" in wanted:
        yield close("importance", d["importance"], wanted["importance"], 2e-5)
    if "sink" in wanted:
        yield close("sink", d["sink"][0], wanted["sink"], 2e-5)
    if "segments" in wanted:
        starts = np.flatnonzero(np.append(True, np.diff(d["segments"]) > 0))
        ends = np.append(starts[1:], len(d["segments"])) - 1
        yield exact("segments", np.stack([starts, ends], axis=1), wanted["segments"])
    if "total_reduced" in wanted:
        yield exact("total_reduced", d["reduced"], wanted["total_reduced"].astype(np.int64))
    if "effective_ratio" in wanted:
        share = min(config["ratio"] / max((total - int(d["reduced"])) / total, 0.1), 1.0)
        yield close("effective_ratio", share, wanted["effective_ratio"], 1e-12)
    calls = [(t, s) for t in range(len(d["set_size"])) for s in (0, 1) if d["set_size"][t, s] > 0]
    yield exact("kept_per_call", [d["kept_per_set"][t, s] for t, s in calls], wanted["kept_per_call"])
    slots = []
    for t, s in calls:
        inside = d["set_of"][t] == s
        slots.extend(np.flatnonzero(d["kept"][t][inside]))
    yield exact("kept_slots", slots, wanted["kept_slots"])


COMPARERS: list[Comparer] = [
    Comparer("stop", _is_run, _compare_runs),
    Comparer("stop", _is_sink, _compare_sink),
]
