"""FastVID's golden files: the three released copies and the two saliency functions."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.models.rope import rotate
from jvidprune.ops import newline
from jvidprune.ops.cluster import density, separation
from jvidprune.ops.pool import pool_tokens
from jvidprune.ops.saliency import PoolingHead, mean_query_attention, pooling_head_attention
from jvidprune.ops.similarity import distance_from_gram, frame_gram
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.fastvid import FastVID, Variant
from jvidprune.tokens import Plan, Reduced, VideoTokens

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


def run(reducer: FastVID, golden: Golden) -> tuple[VideoTokens, Plan, Reduced]:
    """Plan and tokens of one golden file."""
    features = golden["features"]
    evidence = {reducer.attention: golden["attention"], "frame_embedding": golden["global_features"]}
    grid = golden.config.get("grid")
    video = VideoTokens.create(features, evidence, grid=tuple(grid) if grid else None)
    layout, ratio = video.layout(), golden.config["ratio"]
    return video, *planned(reducer, video, reducer.budget(layout, ratio), capacity=reducer.capacity(layout, ratio))


def compare_run(golden: Golden) -> Iterator[Row]:
    """Everything a whole run states."""
    reducer = reducer_of(golden)
    video, plan, reduced = run(reducer, golden)
    count = int(plan.count)
    d = {name: np.asarray(value) for name, value in plan.diagnostics.items()}
    budget = reducer.budget(video.layout(), golden.config["ratio"])
    numbers = [int(budget.tokens)]
    if len(golden["frame_budget"]) == 3:
        numbers += [int(budget.tokens) - int(budget.context[1]), int(budget.context[1])]
    yield exact("frame_budget", numbers, golden["frame_budget"])
    yield close("similarity", d["similarity"], golden["similarity"], 1e-5)
    yield exact("segment_sizes", np.bincount(d["segment"]), golden["segment_sizes"])
    yield exact("salient_per_frame", d["salient_per_frame"], golden["salient_per_frame"])
    yield exact("anchor_per_frame", d["anchor_per_frame"], golden["anchor_per_frame"])
    if "anchor_num" in golden.arrays:
        yield exact("anchor_num", d["anchor_per_frame"], golden["anchor_num"])
    if "valid_frame" in golden.arrays:
        yield exact("valid_frame", d["holds_tokens"], golden["valid_frame"])
    index, is_anchor = np.asarray(plan.ids[:count]), ~np.asarray(plan.is_pick[:count])
    tokens = np.asarray(reduced.tokens[:count])
    if "is_newline" not in golden.arrays:
        yield exact("index", index, golden["index"])
        yield exact("is_anchor", is_anchor, golden["is_anchor"])
        yield close("tokens", tokens, golden["tokens"], TOKENS)
    else:
        yield from _with_newlines(golden, video, plan, reduced)
    if "salient_index" in golden.arrays:
        yield from _densities(golden, reducer, video)


def _with_newlines(golden: Golden, video: VideoTokens, plan: Plan, reduced: Reduced) -> Iterator[Row]:
    frames = video.features.shape[0]
    arranged = newline.arrange(plan.ids, plan.valid, kind="grid", grid=video.grid, frames=frames, rows="nonempty")
    count = int(arranged.count)
    source, is_newline = np.asarray(arranged.source[:count]), np.asarray(arranged.is_newline[:count])
    ids = np.append(np.asarray(plan.ids), -1)
    merged = np.append(~np.asarray(plan.is_pick), False)
    yield exact("index", ids[source], golden["index"])
    yield exact("is_newline", is_newline, golden["is_newline"])
    yield exact("is_anchor", merged[source], golden["is_anchor"])
    yield exact("sequence_index", np.asarray(arranged.position[:count]), golden["sequence_index"])
    tokens = np.asarray(newline.sequence(arranged, reduced.tokens, jnp.asarray(golden["newline"])))
    yield close("tokens", tokens[:count], golden["tokens"], TOKENS)


def _densities(golden: Golden, reducer: FastVID, video: VideoTokens) -> Iterator[Row]:
    """The density scores of every frame, which the plan computes for anchor frames alone."""
    salient = golden["salient_index"]
    order = np.argsort(-golden["attention"], axis=1, kind="stable")
    yield exact("salient_index", order[:, : salient.shape[1]], salient)
    filtered = np.sort(order[:, salient.shape[1] :], axis=1)
    yield exact("filtered_index", filtered, golden["filtered_index"])
    free = np.ones(order.shape, bool)
    np.put_along_axis(free, salient, False, axis=1)

    @jax.jit
    def peaks(x: jax.Array, free: jax.Array) -> tuple[jax.Array, jax.Array]:
        distance = distance_from_gram(frame_gram(x), x.shape[-1])
        rho = jax.vmap(lambda d, f: density(d, f, reducer.neighbours, max_neighbours=reducer.neighbours))(
            distance, free
        )
        return rho, jax.vmap(lambda d, f, r: separation(d, f, r, break_ties=False))(distance, free, rho)

    rho, delta = (np.take_along_axis(np.asarray(v), filtered, 1) for v in peaks(video.features, free))
    yield close("density", rho, golden["density"], SCORES)
    yield close("delta", delta, golden["delta"], SCORES)
    yield close("density_score", rho * delta, golden["density_score"], SCORES)


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
