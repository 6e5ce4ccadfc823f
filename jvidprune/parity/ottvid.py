"""Golden files of OTT-Vid (arXiv 2605.11803): every intermediate of both stages."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jvidprune.ops.transport import FixedSinkhorn, LeaveOneOut, Transport, Uniform
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.reducers.ottvid import OTTVid
from jvidprune.reducers.run import reduce
from jvidprune.tokens import Reduced, VideoTokens


def reducer_of(config: Any) -> OTTVid:
    """The reducer that a golden file's config describes."""
    return OTTVid(
        temporal_share=config["temporal_share"],
        spatial_retention=config["spatial_retention"],
        budget_temperature=config["ot_budget_temperature"],
        cost_threshold=config["ot_cost_threshold"],
        transport=Transport(
            marginals=Uniform() if config["ot_mass_tau"] is None else LeaveOneOut(config["ot_mass_tau"]),
            solver=FixedSinkhorn.ottvid(config["ot_sinkhorn_eps"], config["ot_sinkhorn_iters"]),
        ),
        temporal=config["enable_temporal"],
        variant="llava" if str(config["backbone"]).startswith("llava") else "qwen",
        centroid_grid=tuple(config["centroid_grid"]),
    )


def _recognises(golden: Golden) -> bool:
    return golden.config.get("method") == "ottvid" and golden.has("features", "attention", "spatial_indices")


def _compare(golden: Golden) -> Iterator[Row]:
    config = golden.config
    features = golden["features"]
    tokens = features.shape[1]
    video = VideoTokens.create(features, {"attention_last": golden["attention"]}, grid=tuple(config["grid"]))
    reducer = reducer_of(config)
    ratio = config["total_retention_ratio"]
    out = reduce(reducer, video, ratio, diagnostics=True)
    count = int(out.count)
    info = {name: np.asarray(value) for name, value in out.diagnostics.items()}
    kept = int(info["kept_per_frame"])
    position = info["position"][:, :kept]
    global_id = position + np.arange(len(features))[:, None] * tokens
    yield exact("n_spatial", kept, golden["n_spatial"])
    yield exact("spatial_indices", global_id.reshape(-1), golden["spatial_indices"])
    if golden.has("fl_order"):
        yield exact(
            "fl_order", info["order"][:, :kept] + np.arange(len(features))[:, None] * tokens, golden["fl_order"]
        )
    if golden.has("plan"):
        yield from _stage2(golden, info, kept, global_id)
    roots = info["root"][:, :kept].reshape(-1)
    if golden.has("root"):
        yield exact("root", roots, golden["root"])
    if golden.has("temporal_ranges"):
        yield exact("temporal_ranges", _ranges(roots, out, count, kept), golden["temporal_ranges"])
    if golden.has("survivor_mass"):
        # Without a mass temperature the reference counts tokens here.
        uniform = config["ot_mass_tau"] is None
        mass = np.ones(len(roots)) if uniform else info["mass"][:, :kept].reshape(-1).astype(np.float64)
        summed = np.array([mass[roots == root].sum() for root in np.asarray(out.index)[:count]])
        yield close("survivor_mass", summed, golden["survivor_mass"], 2e-5)
    yield exact("indices", np.asarray(out.index)[:count], golden["indices"])
    if count == len(golden["indices"]):
        yield close("tokens", np.asarray(out.tokens)[:count], golden["tokens"], 2e-6, rtol=1e-6)


def _stage2(golden: Golden, info: dict[str, np.ndarray], kept: int, global_id: np.ndarray) -> Iterator[Row]:
    yield close("alpha", info["pair_weight"], golden["alpha"], 1e-6)
    if golden.has("mass"):
        yield close("mass", info["mass"][:, :kept], golden["mass"], 5e-6)
    cost = info["transport_cost"][:, :kept, :kept]
    yield close("cost", cost, golden["cost"], 1e-6)
    yield close("plan", info["transport_plan"][:, :kept, :kept], golden["plan"], 5e-6)
    yield close("pair_cost", info["pair_cost"], golden["pair_cost"], 5e-6)
    yield exact("budgets", info["removals"], golden["budgets"])
    if not golden.has("matches"):
        return
    rows = []
    for pair in range(len(cost)):
        columns = np.flatnonzero(info["matched"][pair, :kept])
        for column in columns[np.argsort(info["match_rank"][pair, columns])]:
            rows.append((pair, int(info["parent"][pair, column]), int(column)))
    matches = np.array(rows, np.int32).reshape(-1, 3)
    yield exact("matches", matches, golden["matches"])
    pair, row, column = matches.T
    yield exact("match_parent", global_id[pair, row], golden["match_parent"])
    yield exact("match_child", global_id[pair + 1, column], golden["match_child"])
    if len(matches) == len(golden["match_cost"]):
        yield close("match_cost", cost[pair, row, column], golden["match_cost"], 1e-6)
    dropped = info["matched"][:, :kept] & ~info["absorbed"][:, :kept]
    yield exact("pruned_child", np.sort(global_id[1:][dropped]), golden["pruned_child"])


def _ranges(roots: np.ndarray, out: Reduced, count: int, kept: int) -> np.ndarray:
    frame = np.arange(len(roots)) // kept
    members = [frame[roots == root] for root in np.asarray(out.index)[:count]]
    return np.array([(m.min(), m.max()) for m in members]).reshape(-1, 2)


COMPARERS: list[Comparer] = [Comparer("ottvid", _recognises, _compare)]
