"""SToP's golden files (arXiv 2604.20937): sink scores alone, and every base with and without the modifier."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.ops.cluster import peak_scores
from jvidprune.ops.sink import sink_scores
from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.lines import Lines
from jvidprune.parity.planned import PlannedRun, starts_and_ends
from jvidprune.parity.table import Check, optional
from jvidprune.reducers.fastvid import FastVID
from jvidprune.reducers.flashvid import FlashVID
from jvidprune.reducers.holitom import HoliTom
from jvidprune.reducers.protocol import with_defaults
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
    return own, plan, with_defaults(reducer).apply(plan, video)


@dataclasses.dataclass(frozen=True)
class _Case(PlannedRun):
    """A run of a base with or without the modifier; `golden` holds the arrays of this run alone."""

    shared: Any

    @property
    def base(self) -> Any:
        """The reducer without the modifier."""
        return self.reducer.base if isinstance(self.reducer, SToP) else self.reducer

    @property
    def first(self) -> np.ndarray:
        """(T, 1) id of each frame's first token."""
        frames, tokens, _ = self.video.features.shape
        return np.arange(frames)[:, None] * tokens

    def sink(self, name: str) -> np.ndarray:
        """Sink scores, of each segment where the base has any, or the attention that they lead to."""
        attention, real = self.video.evidence["attention_last"], self.video.frame_mask
        segmented = self.golden.config["base"] == "flashvid"
        groups = jnp.asarray(self.shown["segments"]) if segmented else jnp.zeros(len(real), jnp.int32)
        if name == "adjusted":
            return np.asarray(self.reducer.rule.adjust(attention, groups, real).attention)
        score = np.asarray(sink_scores(attention, groups, real, self.golden.config["gamma"]))
        return score if segmented else score[0]


def _compare_runs(golden: Golden) -> Iterator[Row]:
    for prefix in _prefixes(golden):
        config = _config(golden, prefix)
        video = _video(golden, prefix, config)
        reducer, own = _reducer(config), table.part(golden, f"{prefix}_", config)
        layout = video.layout()
        if config["base"] == "visionzip":
            spatial = int(own["dominant_num"]) + int(own["contextual_num"])
            yield exact(f"{prefix} tokens per frame", spatial, config["spatial_tokens"])
            base = reducer.base if isinstance(reducer, SToP) else reducer
            budget = base.split(layout.tokens, spatial)
            yield exact(f"{prefix} dominant_num", budget.dominant, own["dominant_num"])
            capacity = layout.frames * spatial
        else:
            budget, capacity = reducer.budget(layout, config["ratio"]), reducer.capacity(layout, config["ratio"])

        shared, plan, reduced = _run(reducer, video, budget, capacity=capacity)
        case = _Case(own, reducer, video, budget, plan, reduced, shared)
        steady = config.get("stable_under_1e-5", True)
        if steady:
            if isinstance(reducer, SToP) and own.has("sink"):
                yield from table.compare(_SINK, case, own, f"{prefix} ")
            yield from table.compare(_STAGES[config["base"]], case, own, f"{prefix} ")
        yield from _sequence(case, prefix, steady)


def _sequence(case: _Case, prefix: str, steady: bool) -> Iterator[Row]:
    config, video = case.golden.config, case.video
    tokens, ids = case.golden["tokens"], case.golden.arrays.get("token_ids")
    kind = config.get("newline", "one_token") if ids is not None and (ids < 0).any() else "no_token"
    rows = "nonempty" if config["base"] == "holitom" else "all"
    places, frames = case.plan.diagnostics.get("place", case.plan.ids), len(video.features)
    lines = Lines.of(places, case.plan.valid, kind=kind, grid=video.grid, frames=frames, rows=rows)
    if not steady:
        yield exact(f"{prefix} count", lines.count, len(tokens), "ties: tokens are not compared")
        return
    ours = lines.tokens(case.reduced.tokens, np.full(tokens.shape[1], NEWLINE, np.float32))
    if ids is not None:
        yield exact(f"{prefix} token_ids", lines.values(places, -1), ids)
        if config["base"] in ("flashvid", "fastvid") and len(ours) == len(tokens):
            # Rows of one id come in an undefined order in the reference: compare them sorted.
            ours, tokens = (x[np.lexsort((x[:, 0], ids))] for x in (ours, tokens))
    yield close(f"{prefix} tokens", ours, tokens, _TOLERANCE[config["base"]])


_SINK: tuple[Check[_Case], ...] = (
    Check("sink", lambda case: case.sink("sink"), 5e-6),
    Check("adjusted", lambda case: case.sink("adjusted"), 1e-6, optional=True),
)


def _distinct_slots(case: _Case) -> bool:
    return len(np.unique(case.golden["contextual_slots"])) == int(case.golden["contextual_num"])


_VISIONZIP: tuple[Check[_Case], ...] = (
    Check(
        "dominant_ids",
        lambda case: case.first + np.sort(case.shown["attention_order"][:, : int(case.budget.dominant)], axis=1),
    ),
    Check("contextual_slots", lambda case: case.shown["seed_number"][0, : int(case.budget.contextual)]),
    Check("contextual_ids", lambda case: case.first + case.shown["seed_place"][:, : int(case.budget.contextual)]),
    Check("assign", lambda case: np.stack([row[row >= 0] for row in case.shown["joined"]]), when=_distinct_slots),
)


def _salient(case: _Case) -> np.ndarray:
    return np.asarray(case.shared.rank) < case.shown["salient_per_frame"][:, None]


def _salient_ids(case: _Case) -> np.ndarray:
    return case.first + np.argsort(case.shared.rank, axis=1)[:, : case.golden["salient_ids"].shape[1]]


def _anchors(case: _Case) -> np.ndarray:
    """Only anchor frames have centres; the port computes no distances inside the others."""
    return np.flatnonzero(case.shown["anchor_per_frame"] > 0)


def _density(case: _Case) -> np.ndarray:
    near, salient, shared = case.base.neighbours, _salient(case), case.shared
    scores = jax.vmap(lambda x, free: peak_scores(x, free, near, max_neighbours=near))(shared.distance, ~salient)
    scores = np.asarray(scores - shared.penalty)
    return np.stack([scores[t][~salient[t]] for t in _anchors(case)])


_FASTVID_STAGES: tuple[Check[_Case], ...] = optional(
    (
        Check("segment_sizes", lambda case: np.bincount(case.shown["segment"])),
        Check("salient_ids", _salient_ids),
        Check("filtered", lambda case: np.stack([np.flatnonzero(~row) for row in _salient(case)])),
        Check(
            "density_score",
            _density,
            2e-4,
            theirs=lambda scores, case: scores[_anchors(case)],
            note="anchor frames",
        ),
        Check(
            "sink_weight_context",
            "reducer.rule.kappa",
            1e-6,
            when=lambda case: isinstance(case.reducer, SToP),
        ),
    )
)


def _selected(case: _Case) -> np.ndarray:
    return np.sort(np.asarray(case.shared.order)[:, : int(case.golden["num_selected"])], axis=1)


_FLASHVID_STAGES: tuple[Check[_Case], ...] = optional(
    (
        Check("num_selected", "budget.n_select"),
        Check("num_merged", "budget.n_merge"),
        Check("segment_lengths", lambda case: np.bincount(case.shown["segments"])),
        Check("selected", _selected, theirs=lambda places, _: np.sort(places, axis=1)),
    )
)


def _starts(case: _Case) -> np.ndarray:
    return starts_and_ends(case.shown["segment"])[:, 0]


_HOLITOM_STAGES: tuple[Check[_Case], ...] = (
    Check("segments", lambda case: starts_and_ends(case.shown["segment"])),
    Check("total_reduced", lambda case: case.video.layout().total - int(case.shown["left"])),
    Check("feature_sim", "shown.similarity", 2e-6),
    Check("n_static", lambda case: case.shown["static"][_starts(case)].sum(1)),
    Check("n_static_kept", lambda case: case.shown["static_kept"][_starts(case)]),
    Check("n_dynamic_kept", lambda case: case.shown["dynamic_kept"][_starts(case)]),
)


def _effective_ratio(case: _Case) -> float:
    total = case.video.layout().total
    return min(case.golden.config["ratio"] / max((total - int(case.shown["reduced"])) / total, 0.1), 1.0)


def _calls(case: _Case) -> list[tuple[int, int]]:
    """(frame, set) of the sets that hold tokens: each is one call of the released selection."""
    sizes = case.shown["set_size"]
    return [(t, s) for t in range(len(sizes)) for s in (0, 1) if sizes[t, s] > 0]


def _kept_slots(case: _Case) -> list[Any]:
    kept, member = case.shown["kept"], case.shown["set_of"]
    return [slot for t, s in _calls(case) for slot in np.flatnonzero(kept[t][member[t] == s])]


_QWEN_STAGES: tuple[Check[_Case], ...] = (
    Check("importance", "shown.importance", 2e-5, optional=True),
    Check("sink", lambda case: case.shown["sink"][0], 2e-5, optional=True),
    Check("segments", lambda case: starts_and_ends(case.shown["segments"]), optional=True),
    Check("total_reduced", "shown.reduced", optional=True),
    Check("effective_ratio", _effective_ratio, 1e-12, optional=True),
    Check("kept_per_call", lambda case: [case.shown["kept_per_set"][call] for call in _calls(case)]),
    Check("kept_slots", _kept_slots),
)

_STAGES: dict[str, tuple[Check[_Case], ...]] = {
    "visionzip": _VISIONZIP,
    "fastvid": _FASTVID_STAGES,
    "flashvid": _FLASHVID_STAGES,
    "holitom": _HOLITOM_STAGES,
    "qwen25vl": _QWEN_STAGES,
}
"""What a run shows between input and output, by its base."""


COMPARERS: list[Comparer] = [
    Comparer("stop", _is_run, _compare_runs),
    Comparer("stop", _is_sink, _compare_sink),
]
