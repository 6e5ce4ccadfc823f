"""FastVID's golden files: the three released copies and the two saliency functions."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.models.rope import rotate
from jvidprune.ops.cluster import density, separation
from jvidprune.ops.pool import pool_tokens
from jvidprune.ops.saliency import PoolingHead, mean_query_attention, pooling_head_attention
from jvidprune.ops.similarity import distance_from_gram, frame_gram
from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row, close
from jvidprune.parity.lines import Lines
from jvidprune.parity.planned import PlannedRun
from jvidprune.parity.table import Check
from jvidprune.reducers.fastvid import FastVID, Variant
from jvidprune.tokens import VideoTokens

TOKENS = 1e-4
SCORES = 2e-4

_VARIANTS: dict[str, Variant] = {
    "llava_onevision": "llava_onevision",
    "llava_video": "llava_video",
    "qwen25vl": "qwen2_5_vl",
    "qwen2_5_vl": "qwen2_5_vl",
}


def is_fastvid(golden: Golden) -> bool:
    """A whole run of one of the copies."""
    return golden.config.get("backbone") in _VARIANTS and golden.has(
        "features", "attention", "global_features", "segment_sizes", "is_anchor", "frame_budget"
    )


def is_head(golden: Golden) -> bool:
    """SigLIP's pooling head with its weights."""
    return golden.has("hidden", "attention", "global_features", "weight.probe", "weight.attention.in_proj_weight")


def is_pseudo_cls(golden: Golden) -> bool:
    """Attention of the mean query in a vision tower without a CLS token."""
    return "thw" in golden.config and golden.has("q", "k", "cos", "sin", "attention")


def reducer_of(golden: Golden) -> FastVID:
    """The reducer a golden file was made with."""
    c = golden.config
    return FastVID(
        variant=_VARIANTS[c["backbone"]],
        segments=c["c"],
        tau=c["tau"],
        ignore=c.get("ignore", 0.95),
        context_share=c["d"],
        interval=c["p"],
        beta=c["beta"],
    )


def run(golden: Golden) -> PlannedRun:
    """Plan and tokens of one golden file."""
    reducer = reducer_of(golden)
    evidence = {reducer.attention: golden["attention"], "frame_embedding": golden["global_features"]}
    grid = golden.config.get("grid")
    video = VideoTokens.create(golden["features"], evidence, grid=tuple(grid) if grid else None)
    layout, ratio = video.layout(), golden.config["ratio"]
    return PlannedRun.of(
        golden, reducer, video, reducer.budget(layout, ratio), capacity=reducer.capacity(layout, ratio)
    )


def _frame_budget(run: PlannedRun) -> list[int]:
    """Tokens of a frame, and in files with three numbers how many of them are salient and how many peaks."""
    total, context = int(run.budget.tokens), int(run.budget.context[1])
    return [total, total - context, context] if len(run.golden["frame_budget"]) == 3 else [total]


def _is_anchor(run: PlannedRun) -> np.ndarray:
    return ~np.asarray(run.plan.is_pick)[: run.count]


STAGES: tuple[Check[PlannedRun], ...] = (
    Check("frame_budget", _frame_budget),
    Check("similarity", "shown.similarity", 1e-5),
    Check("segment_sizes", lambda run: np.bincount(run.shown["segment"])),
    Check("salient_per_frame", "shown.salient_per_frame"),
    Check("anchor_per_frame", "shown.anchor_per_frame"),
    Check("anchor_num", "shown.anchor_per_frame", optional=True),
    Check("valid_frame", "shown.holds_tokens", optional=True),
)
ROWS: tuple[Check[PlannedRun], ...] = (
    Check("index", "ids"),
    Check("is_anchor", _is_anchor),
    Check("tokens", "tokens", TOKENS),
)


def _newlines(run: PlannedRun) -> Lines:
    plan, video = run.plan, run.video
    frames = len(video.features)
    return Lines.of(plan.ids, plan.valid, kind="grid", grid=video.grid, frames=frames, rows="nonempty")


def _anchors_in_lines(run: PlannedRun) -> np.ndarray:
    return _newlines(run).values(~np.asarray(run.plan.is_pick), False)


LINES: tuple[Check[PlannedRun], ...] = (
    Check("index", lambda run: _newlines(run).values(run.plan.ids, -1)),
    Check("is_newline", lambda run: _newlines(run).is_newline),
    Check("is_anchor", _anchors_in_lines),
    Check("sequence_index", lambda run: _newlines(run).position),
    Check("tokens", lambda run: _newlines(run).tokens(run.reduced.tokens, run.golden["newline"]), TOKENS),
)


def compare_run(golden: Golden) -> Iterator[Row]:
    """Everything a whole run states."""
    found = run(golden)
    yield from table.compare(STAGES, found, golden)
    yield from table.compare(LINES if golden.has("is_newline") else ROWS, found, golden)
    if golden.has("salient_index"):
        yield from table.compare(DENSITIES, _densities(found), golden)


class _Densities(NamedTuple):
    """(T, K) places by falling attention, (T, F) those that are not salient, their densities and separations."""

    salient: np.ndarray
    filtered: np.ndarray
    rho: np.ndarray
    delta: np.ndarray


DENSITIES: tuple[Check[_Densities], ...] = (
    Check("salient_index", "salient"),
    Check("filtered_index", "filtered"),
    Check("density", "rho", SCORES),
    Check("delta", "delta", SCORES),
    Check("density_score", lambda found: found.rho * found.delta, SCORES),
)


def _densities(run: PlannedRun) -> _Densities:
    """The density scores of every frame, which the plan computes for anchor frames alone."""
    salient, near = run.golden["salient_index"], run.reducer.neighbours
    order = np.argsort(-run.golden["attention"], axis=1, kind="stable")
    filtered = np.sort(order[:, salient.shape[1] :], axis=1)
    free = np.ones(order.shape, bool)
    np.put_along_axis(free, salient, False, axis=1)

    @jax.jit
    def peaks(x: jax.Array, free: jax.Array) -> tuple[jax.Array, jax.Array]:
        distance = distance_from_gram(frame_gram(x), x.shape[-1])
        rho = jax.vmap(lambda d, f: density(d, f, near, max_neighbours=near))(distance, free)
        return rho, jax.vmap(lambda d, f, r: separation(d, f, r, break_ties=False))(distance, free, rho)

    rho, delta = (np.take_along_axis(np.asarray(v), filtered, 1) for v in peaks(run.video.features, free))
    return _Densities(order[:, : salient.shape[1]], filtered, rho, delta)


def compare_head(golden: Golden) -> Iterator[Row]:
    """Pooled vector, attention, and the attention pooled with the features."""
    names = (
        "post_layernorm.weight", "post_layernorm.bias", "probe", "attention.in_proj_weight", "attention.in_proj_bias",
        "attention.out_proj.weight", "attention.out_proj.bias", "layernorm.weight", "layernorm.bias",
        "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
    )  # fmt: skip
    weights = [golden[f"weight.{name}"] for name in names]
    weights[2] = weights[2].reshape(-1)
    head = PoolingHead(*(jnp.asarray(weight) for weight in weights))
    config = golden.config
    pooled, attention = pooling_head_attention(
        jnp.asarray(golden["hidden"]), head, heads=config["heads"], eps=config.get("eps", 1e-6)
    )
    yield close("global_features", pooled, golden["global_features"], 1e-5, 1e-5)
    yield close("attention", attention[:, None, :], golden["attention"], 1e-6)
    side = config.get("side", round(attention.shape[1] ** 0.5))
    for kind in ("bilinear", "average"):
        if f"attention_{kind}" in golden.arrays:
            pooled = pool_tokens(attention, (side, side), kind)
            yield close(f"attention_{kind}", pooled, golden[f"attention_{kind}"], 1e-6)


def compare_pseudo_cls(golden: Golden) -> Iterator[Row]:
    """Attention of the mean query after the rotary embedding."""
    steps = golden.config["thw"][0]
    q, k, cos, sin = (jnp.asarray(golden[name]) for name in ("q", "k", "cos", "sin"))
    q, k = (rotate(v.astype(jnp.float32)[None], cos[None], sin[None])[0] for v in (q, k))
    q, k = (v.reshape(steps, -1, *v.shape[1:]) for v in (q, k))
    unit = q.shape[1] // golden["attention"].shape[1]
    yield close("attention", mean_query_attention(q, k, unit=unit), golden["attention"], 1e-5)


COMPARERS = [
    Comparer("fastvid", is_fastvid, compare_run),
    Comparer("fastvid", is_head, compare_head),
    Comparer("fastvid", is_pseudo_cls, compare_pseudo_cls),
]
