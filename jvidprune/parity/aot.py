"""Golden files of AOT: the Sinkhorn loop, the stage inside frames, one step along a clip, whole pipelines.

A file holds several cases; every array is named `<case>_<name>` and the config maps case to hyper-parameters. Masks,
ids and iteration counts must match exactly, tokens within 1e-5, plans within 1e-5 of their largest entry.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.ops.newline import arrange, sequence
from jvidprune.ops.pool import PoolKind, pool_tokens, pooled_side
from jvidprune.ops.transport import ClipCost, Rows, Sinkhorn, TokenCost, Transport
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.reducers.aot import AOT, AOTBudget
from jvidprune.reducers.aot.inter import ClipRules, Distinct, Step, step
from jvidprune.reducers.aot.intra import problems
from jvidprune.reducers.aot.pooling import weigh
from jvidprune.reducers.aot.reducer import INTER
from jvidprune.reducers.aot.sizes import kept_tokens
from jvidprune.tokens import VideoTokens

TOKENS, PLAN = 1e-5, 1e-5
NEWLINE = 7.0
"""The constant that stands for the newline vector in the golden files."""


def _cases(golden: Golden) -> dict[str, Mapping[str, Any]]:
    return {name: case for name, case in golden.config.items() if isinstance(case, Mapping)}


def _every_case(golden: Golden, keys: tuple[str, ...], settings: tuple[str, ...]) -> bool:
    cases = _cases(golden)
    return bool(cases) and all(
        golden.has(*(f"{name}_{key}" for key in keys)) and all(s in case for s in settings)
        for name, case in cases.items()
    )


def _solver(case: Mapping[str, Any]) -> Sinkhorn:
    return Sinkhorn(float(case["eps"]), threshold=float(case["thresh"]), max_iterations=int(case["max_iter"]))


def _sinkhorn(golden: Golden) -> Iterator[Row]:
    for name, case in _cases(golden).items():
        result = jax.jit(_solver(case))(*(jnp.asarray(golden[f"{name}_{key}"]) for key in ("cost", "mu", "nu")))
        yield close(f"{name} plan", result.plan, golden[f"{name}_plan"], 0.0, PLAN)
        yield exact(f"{name} iterations", np.unique(result.iterations), np.atleast_1d(golden[f"{name}_n_iter"]))


def _square(tokens: int, case: Mapping[str, Any]) -> tuple[int, int]:
    if "grid" in case:
        return int(case["grid"][0]), int(case["grid"][1])
    side = round(tokens**0.5)
    return side, side


def _video(golden: Golden, name: str, case: Mapping[str, Any], pool: PoolKind) -> VideoTokens:
    x = jnp.asarray(golden[f"{name}_features"])
    grid = _square(x.shape[1], case)
    evidence: dict[str, Any] = {"features_unpooled": x}
    evidence |= {f"attention_{kind}": golden[f"{name}_attn_{kind}"] for kind in ("shallow", "deep")}
    evidence["newline"] = np.full(x.shape[-1], NEWLINE, np.float32)
    pooled = pooled_side(grid[0], pool), pooled_side(grid[1], pool)
    return VideoTokens.create(pool_tokens(x, grid, pool), evidence, grid=pooled, unpooled_grid=grid)


def _reducer(case: Mapping[str, Any], *, intra: Any = None, inter_cost: Any = None, **settings: Any) -> AOT:
    return AOT(
        visual_tokens=int(case["visual_token_num"]),
        global_ratio=float(case["global_ratio"]),
        window=int(case["window"]),
        intra_transport=Transport(cost=intra, solver=_solver(case)),
        inter_transport=Transport(cost=inter_cost, solver=_solver(case)),
        **settings,
    )


@functools.partial(jax.jit, static_argnames=("reducer", "capacity"))
def _stages(reducer: AOT, video: VideoTokens, budget: AOTBudget, capacity: int) -> dict[str, Any]:
    """Everything between input and output that the golden files hold."""
    shared = reducer.prepare(video, capacity=capacity)
    intra = reducer.intra(shared, budget)
    x = shared.x.astype(jnp.float32)
    columns = shared.selection.candidates
    inside = jnp.minimum(columns, x.shape[1] - 1)
    own, taken = jax.vmap(reducer.merge(budget))(intra.plan, shared.selection.cosines, intra.sources, intra.active)
    kept = own[..., None] * jnp.take_along_axis(x, inside[..., None], axis=1)
    merged = kept + jax.vmap(weigh)(jnp.swapaxes(taken, 1, 2), x)
    wide = dataclasses.replace(shared, x=x)
    priced = problems(wide, intra.anchors, intra.sources, reducer.intra_transport).priced
    blank = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    place = jnp.where(intra.active, columns, x.shape[1])
    replaced = jax.vmap(lambda frame, ids, rows: frame.at[ids].set(rows))(blank, place, merged)[:, :-1]
    plan = reducer.decide(shared, budget, capacity=capacity)
    return {
        "intra": intra,
        "cost": priced,
        "candidates": columns,
        "local_rank": shared.selection.local_rank,
        "replaced": replaced,
        "pooled": pool_tokens(replaced, shared.geometry.grid, shared.geometry.kind),
        "plan": plan,
        "reduced": reducer.apply(plan, video),
    }


def _run(reducer: AOT, video: VideoTokens) -> dict[str, Any]:
    layout = video.layout()
    return _stages(reducer, video, reducer.budget(layout, 0.5), reducer.capacity(layout, 0.5))


def _anchor_rows(values: Any, mask: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(frame)[chosen] for frame, chosen in zip(values, mask, strict=True)])


def _pairs(values: Any, run: Mapping[str, Any], mask: np.ndarray) -> np.ndarray:
    """(T, N - A, A) rows of pruned tokens and columns of anchors, out of (T, N, C)."""
    active = np.asarray(run["intra"].active)
    return np.stack([np.asarray(v)[~m][:, a] for v, m, a in zip(values, mask, active, strict=True)])


def _intra(golden: Golden) -> Iterator[Row]:
    for name, case in _cases(golden).items():
        video = _video(golden, name, case, "bilinear")
        cost = TokenCost(w_pos=float(case["spatial_weight"]))
        reducer = _reducer(case, inter=False, intra=cost, nearest=float(case["nearest_weight"]))
        run = _run(reducer, video)
        mask = np.asarray(run["intra"].anchors)
        yield exact(f"{name} index_mask", mask, golden[f"{name}_index_mask"])
        if not np.array_equal(mask, golden[f"{name}_index_mask"]):
            continue
        budget = reducer.budget(video.layout(), 0.5)
        yield exact(
            f"{name} local_idx",
            _local_order(np.asarray(run["local_rank"]), int(budget.local), reducer, video),
            golden[f"{name}_local_idx"],
        )
        result = run["intra"].result
        yield exact(f"{name} iterations", np.unique(result.iterations), np.atleast_1d(golden[f"{name}_n_iter"]))
        yield close(f"{name} cost", _pairs(run["cost"], run, mask), golden[f"{name}_cost"], 1e-5)
        yield close(f"{name} plan", _pairs(result.plan, run, mask), golden[f"{name}_plan"], 0.0, PLAN)
        yield close(
            f"{name} merged_anchors", _anchor_rows(run["replaced"], mask), golden[f"{name}_merged_anchors"], TOKENS
        )


def _local_order(rank: np.ndarray, local: int, reducer: AOT, video: VideoTokens) -> np.ndarray:
    """(T, windows * k) local anchors, window by window, by descending attention."""
    geometry = reducer.geometry(video.grid, video.unpooled_grid)
    windows = _window_tokens(geometry.grid, geometry.windows, reducer.window)
    order = [[w[np.argsort(frame[w], kind="stable")[:local]] for w in windows] for frame in rank]
    return np.asarray(order, np.int32).reshape(rank.shape[0], -1)


def _window_tokens(grid: tuple[int, int], windows: tuple[int, int], side: int) -> np.ndarray:
    """(windows, side * side) token ids, window by window; what lies beyond the last complete window is in none."""
    ids = np.arange(grid[0] * grid[1]).reshape(grid)[: windows[0] * side, : windows[1] * side]
    blocks = ids.reshape(windows[0], side, windows[1], side).swapaxes(1, 2)
    return blocks.reshape(windows[0] * windows[1], side * side)


def _rows(features: np.ndarray, size: int, time: float) -> Rows:
    n = features.shape[0]
    padded = jnp.asarray(np.pad(features, ((0, size - n), (0, 0))))
    return Rows(padded, jnp.zeros((size, 2)), jnp.full(size, time), jnp.ones(size), jnp.arange(size) < n)


@functools.partial(jax.jit, static_argnames="distinct")
def _step(
    anchors: Rows, sources: Rows, numbers: tuple, scale: float, keep: np.ndarray, distinct: Distinct = "pmax"
) -> Step:
    return step(anchors, sources, ClipRules(INTER.with_numbers(numbers), distinct, scale, jnp.asarray(keep)))


def _inter(golden: Golden) -> Iterator[Row]:
    # All cases of a file share one padded shape, hence one compilation.
    most = max(golden[f"{name}_{side}"].shape[0] for name in _cases(golden) for side in ("sources", "anchors"))
    for name, case in _cases(golden).items():
        sources, anchors = golden[f"{name}_sources"], golden[f"{name}_anchors"]
        r, a = sources.shape[0], anchors.shape[0]
        numbers = ClipCost(sigma=float(case["sigma_t"])), None, _solver(case)
        keep = np.array([kept_tokens(float(case["keep_ratio"]), n) for n in range(most + 1)], np.int32)
        sides = _rows(anchors, most, 0.0), _rows(sources, most, float(case["dt"]))
        step = _step(*sides, numbers, float(case["scaling"]), keep)
        yield exact(f"{name} keep", step.keep[:r], golden[f"{name}_keep"])
        yield exact(f"{name} iterations", step.result.iterations, golden[f"{name}_n_iter"])
        yield close(f"{name} plan", step.result.plan[:r, :a], golden[f"{name}_plan"], 0.0, PLAN)
        yield close(f"{name} pmax", step.score[:r], golden[f"{name}_pmax"], 0.0, PLAN)
        yield close(f"{name} new_anchors", step.anchors[:a], golden[f"{name}_new_anchors"], TOKENS)


def _pipeline(golden: Golden) -> Iterator[Row]:
    for name, case in _cases(golden).items():
        given = case.get("inputs") or name
        video = _video(golden, given, case, case["pool"])
        lines, inter = case["newline"] == "grid", bool(case["inter"])
        reducer = _reducer(
            case,
            keep_ratio=float(case["keep_ratio"]),
            # With row newlines the reference scales the clip stage by the setting of the other stage (Q4).
            inter_scale=float(case["intra_scale"] if lines else case["inter_scale"]),
            inter=inter,
            inter_cost=ClipCost(sigma=float(case["sigma_t"])),
            clips=tuple(case["segments"]) if case.get("segments") else "fixed",
            pooling=case["pool"],
            row_newlines=lines and inter,
        )
        yield from _compare_pipeline(golden, name, case, reducer, video)


def _compare_pipeline(
    golden: Golden, name: str, case: Mapping[str, Any], reducer: AOT, video: VideoTokens
) -> Iterator[Row]:
    run = _run(reducer, video)
    plan, reduced = run["plan"], run["reduced"]
    shown = {key: np.asarray(value) for key, value in plan.diagnostics.items()}
    t, (h, w) = video.features.shape[0], video.grid
    mask = shown["anchors"]
    if golden.has(f"{name}_index_mask"):
        yield exact(f"{name} index_mask", mask, golden[f"{name}_index_mask"])
        iterations = np.unique(shown["intra_iterations"])
        yield exact(f"{name} intra_iter", iterations, np.atleast_1d(golden[f"{name}_intra_iter"]))
        if np.array_equal(mask, golden[f"{name}_index_mask"]):
            anchors = _anchor_rows(run["replaced"], mask)
            yield close(f"{name} merged_anchors", anchors, golden[f"{name}_merged_anchors"], TOKENS)
    if golden.has(f"{name}_pooled"):
        yield close(f"{name} pooled", run["pooled"], golden[f"{name}_pooled"], TOKENS)

    lines = case["newline"] == "grid"
    slots = shown["slot_mask"].reshape(t, h, -1)
    cells = slots[:, :, :w].reshape(t, -1)
    if lines and not reducer.inter:
        slots = np.pad(slots, ((0, 0), (0, 0), (0, 1)), constant_values=True)
    yield exact(f"{name} pooled_mask", cells, golden[f"{name}_pooled_mask"])
    yield exact(f"{name} slot_mask", slots.reshape(t, -1), golden[f"{name}_slot_mask"])
    if reducer.inter:
        yield from _compare_clips(golden, name, shown)

    kind = "one_token" if case.get("emit_newline") else "grid" if lines and not reducer.inter else "no_token"
    order = arrange(reduced.index, reduced.valid, kind=kind, grid=(h, w), frames=t)
    rows, newline, valid = (np.asarray(a) for a in (order.source, order.is_newline, order.valid))
    count = min(int(order.count), valid.shape[0])
    tokens = sequence(order, reduced.tokens, jnp.full(video.features.shape[-1], NEWLINE))
    yield close(f"{name} out_tokens", np.asarray(tokens)[:count], golden[f"{name}_out_tokens"], TOKENS)
    kinds, ids = _labels(plan, shown, slots.reshape(t, -1).shape[1], reducer.inter)
    ids = np.asarray(order.position) if kind == "grid" else np.append(ids, 0)[rows]
    # The closing newline has no id in the golden files.
    listed = valid & ~(newline & (kind == "one_token"))
    yield exact(f"{name} out_ids", ids[listed], golden[f"{name}_out_ids"])
    yield exact(f"{name} out_kind", np.where(newline, 3, np.append(kinds, 0)[rows])[listed], golden[f"{name}_out_kind"])


def _compare_clips(golden: Golden, name: str, shown: Mapping[str, np.ndarray]) -> Iterator[Row]:
    shape = golden[f"{name}_slot_mask"].shape
    frames = np.arange(shape[0])[:, None]
    keep, pmax = np.zeros((shape[0], shape[1] + 1), bool), np.full((shape[0], shape[1] + 1), np.nan)
    keep[frames, shown["slots"]] = shown["inter_keep"]
    pmax[frames, shown["slots"]] = shown["inter_score"]
    starts = np.flatnonzero(np.diff(shown["segments"], prepend=-1))
    segments = np.stack([starts, np.diff(np.append(starts, shape[0]))], axis=1)
    yield exact(f"{name} segments", segments, golden[f"{name}_segments"])
    yield exact(f"{name} inter_iter", shown["inter_iterations"], golden[f"{name}_inter_iter"])
    yield close(f"{name} pmax", pmax[:, :-1], golden[f"{name}_pmax"], 0.0, PLAN)
    yield exact(f"{name} keep_mask", keep[:, :-1], golden[f"{name}_keep_mask"])


def _labels(plan: Any, shown: Mapping[str, np.ndarray], slots: int, inter: bool) -> tuple[np.ndarray, np.ndarray]:
    """Kind and frame * S + slot of each row: what stands there before or after the clip stage."""
    t, n = shown["slots"].shape
    source = np.minimum(np.asarray(plan.source), 2 * t * n - 1)
    frame, merged, slot = source // (2 * n), (source // n) % 2 == 1, source % n
    kinds = np.where(merged, 2, np.where(np.asarray(plan.key)[frame] | (not inter), 0, 1))
    lead = np.arange(t)
    if inter:
        key = np.asarray(plan.key)
        lead = np.array([np.flatnonzero(key & (shown["segments"] == s))[0] for s in shown["segments"]])
    origin = np.where(merged, lead[frame], frame)
    return kinds, origin * slots + shown["slots"][origin, slot]


COMPARERS = [
    Comparer(
        "aot",
        lambda g: _every_case(g, ("cost", "mu", "nu", "plan", "n_iter"), ("eps", "thresh", "max_iter")),
        _sinkhorn,
    ),
    Comparer(
        "aot",
        lambda g: _every_case(
            g,
            ("features", "attn_shallow", "index_mask", "local_idx", "merged_anchors"),
            ("visual_token_num", "nearest_weight"),
        ),
        _intra,
    ),
    Comparer(
        "aot",
        lambda g: _every_case(
            g, ("anchors", "sources", "new_anchors", "pmax", "keep"), ("dt", "keep_ratio", "scaling")
        ),
        _inter,
    ),
    Comparer(
        "aot",
        lambda g: _every_case(
            g,
            ("slot_mask", "pooled_mask", "out_tokens", "out_ids", "out_kind"),
            ("visual_token_num", "pool", "newline"),
        ),
        _pipeline,
    ),
]
