"""Golden files of FlashVID: whole compressions, ablations and single stages.

Discrete values are compared exactly, values relative to the largest one. Where a file says that clusters hang on the
reference's random density noise (`dpc_exact` False), only their number is compared and the value of a single cluster.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jvidprune.ops import cluster, segment, similarity, tree
from jvidprune.parity.core import Comparer, Golden, Row, close, exact, prefixed
from jvidprune.parity.table import part
from jvidprune.reducers.flashvid import FlashVID, Method
from jvidprune.reducers.run import reduce
from jvidprune.tokens import Reduced, VideoTokens

VALUE_RTOL = 1e-5
"""Relative to the largest value, as the files' description asks."""

_STAGE = re.compile(r"^(segment|select|tstm|dpc)\d+/(frames|order|token_mask|clusters)$")


def reducer_of(config: Mapping[str, Any]) -> FlashVID:
    """The reducer that a golden config describes."""
    names = {
        "expansion": "expansion",
        "alpha": "alpha",
        "token_selection_method": "method",
        "temporal_threshold": "temporal_threshold",
        "do_segment": "do_segment",
        "complementary_segment": "complementary",
        "segment_threshold": "segment_threshold",
        "min_segment_num": "min_segments",
        "pruning_layer": "pruning_layer",
        "llm_retention_ratio": "llm_retention_ratio",
    }
    return FlashVID(**{ours: config[theirs] for theirs, ours in names.items() if theirs in config})


def run_config(config: Mapping[str, Any], features: np.ndarray, attention: np.ndarray) -> Reduced:
    """Our compression under a golden config, with diagnostics, on the host."""
    video = VideoTokens.create(features, {"attention_last": attention}, grid=(1, features.shape[1]))
    reduced = reduce(reducer_of(config), video, config["retention_ratio"], diagnostics=True)
    return jax.tree.map(np.asarray, reduced)


def shown_of(reduced: Reduced) -> dict[str, np.ndarray]:
    """The diagnostics on the host."""
    return {name: np.asarray(value) for name, value in reduced.diagnostics.items()}


class _Outputs:
    """Rows ordered by (id, kind), kind 0 = selected, with the frames of doubtful clusters left out on request."""

    def __init__(self, ids: np.ndarray, kind: np.ndarray, tokens: np.ndarray, tokens_per_frame: int) -> None:
        order = np.lexsort((kind, ids))
        self.ids, self.kind, self.tokens = ids[order], kind[order], tokens[order]
        self.per_frame, self.frame = tokens_per_frame, self.ids // tokens_per_frame

    def only(self, trusted: np.ndarray) -> "_Outputs":
        """Without the merged rows of frames that are not trusted."""
        keep = (self.kind == 0) | trusted[self.frame]
        return _Outputs(self.ids[keep], self.kind[keep], self.tokens[keep], self.per_frame)


def our_outputs(reduced: Reduced) -> _Outputs:
    """Our valid rows; a row of an id is the picked one as often as the id was selected."""
    count, per_frame = int(reduced.count), reduced.diagnostics["selected"].shape[1]
    ids = np.asarray(reduced.index)[:count]
    repeats = np.asarray(reduced.diagnostics["selected"]).reshape(-1)
    nth = np.arange(count) - np.searchsorted(ids, ids, side="left")
    return _Outputs(ids, (nth >= repeats[ids]).astype(int), np.asarray(reduced.tokens)[:count], per_frame)


def _selected(reduced: Reduced, width: int) -> np.ndarray:
    """(T, A) global ids of the selected tokens, ascending, repeats included."""
    picks = np.asarray(reduced.diagnostics["selected"])
    n = picks.shape[1]
    rows = [t * n + np.repeat(np.arange(n), row) for t, row in enumerate(picks)]
    return np.stack(rows) if all(len(row) == width for row in rows) else np.array([len(row) for row in rows])


def _segment_of_frame(lengths: np.ndarray) -> np.ndarray:
    """Segment of each frame with empty segments left out, as ours are numbered."""
    lengths = lengths[lengths > 0]
    return np.repeat(np.arange(len(lengths)), lengths)


def _compare_whole(golden: Golden) -> Iterator[Row]:
    config = golden.config
    reduced = run_config(config, golden["features"], golden["attention"])
    frames, n, _ = golden["features"].shape
    ours, shown = our_outputs(reduced), shown_of(reduced)
    trusted = golden["dpc_exact"].astype(bool)
    budget = reducer_of(config).budget(_layout(golden["features"]), config["retention_ratio"])
    yield exact("token_budget", budget.n_select + budget.n_merge, golden["token_budget"])
    yield exact("num_adts", budget.n_select, golden["num_adts"])
    yield exact("num_tstm", budget.n_merge, golden["num_tstm"])
    yield close("transition_similarities", shown["transition"], golden["transition_similarities"], 1e-6, VALUE_RTOL)
    yield exact("segment_of_frame", shown["segments"], _segment_of_frame(golden["segment_lengths"]))
    yield exact("adts_indices", _selected(reduced, golden["adts_indices"].shape[1]), golden["adts_indices"])
    yield from _tree_rows(golden, reduced, int(budget.n_merge))
    yield from _cluster_rows(golden, reduced, trusted, int(budget.n_merge))
    theirs = _Outputs(golden["out_indices"], golden["out_kind"], golden["out_tokens"], n)
    yield from _output_rows(ours, theirs, trusted, frames)
    for t in np.flatnonzero(~trusted & (golden["num_clusters"] == 1)):
        mean = [side.tokens[(side.frame == t) & (side.kind == 1)] for side in (ours, theirs)]
        yield close(f"one cluster of frame {t}", *mean, atol=0.0, rtol=VALUE_RTOL, note="its id is arbitrary")


def _tree_rows(golden: Golden, reduced: Reduced, n_merge: int) -> Iterator[Row]:
    shown, n = shown_of(reduced), golden["features"].shape[1]
    frame_segment = golden["segment_of_frame"]
    linked, merged = shown["parent"] >= 0, golden["tstm_merged"].astype(bool)
    yield exact("tstm_merged", linked, merged)
    yield exact("tstm_kept", shown["candidate"], golden["tstm_kept"])
    yield exact(
        "tstm_parent", np.where(merged & linked, shown["parent"] % n, -1)[merged], golden["tstm_parent"][merged]
    )
    if n_merge > 0 and golden.config.get("temporal_threshold", 0.8) < 1:
        several = golden["segment_lengths"][frame_segment] > 1
        ours, theirs = shown["similarity"][several], golden["tstm_max_sim"][several]
        yield close("tstm_max_sim", ours, theirs, 1e-6, VALUE_RTOL)
    yield close("tstm_soft_threshold", shown["raised_threshold"], golden["tstm_soft_threshold"][frame_segment], 1e-6)
    kept = golden["tstm_kept"].astype(bool)
    if (shown["candidate"] == kept).all():
        x = golden["features"].reshape(-1, golden["features"].shape[-1])
        root = tree.tree_roots(jnp.asarray(linked), jnp.asarray(np.where(linked, shown["parent"] % n, 0)))
        values = np.asarray(tree.tree_values(jnp.asarray(x), root, jnp.asarray(shown["divisor"], jnp.float32)))
        yield close("tstm_features", values[kept.reshape(-1)], golden["tstm_features"], 0.0, VALUE_RTOL)


def _cluster_rows(golden: Golden, reduced: Reduced, trusted: np.ndarray, n_merge: int) -> Iterator[Row]:
    shown, frame_segment = shown_of(reduced), golden["segment_of_frame"]
    sizes = golden["segment_lengths"]
    in_segment = np.bincount(frame_segment, shown["candidate"].sum(1), len(sizes))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = n_merge * sizes / in_segment
    yield close("adaptive_ratio", share[frame_segment], golden["adaptive_ratio"][frame_segment], 1e-6)
    yield exact("num_clusters", shown["clusters"], golden["num_clusters"])
    ran = (share[frame_segment] < 1) & shown["candidate"].any(1) & (n_merge > 0)
    yield exact("clustered", ran, golden["clustered"])
    n = shown["cluster_centre"].shape[1]
    centres = np.split(golden["cluster_centers"], np.cumsum(golden["num_clusters"])[:-1])
    ours, theirs = [], []
    for t in np.flatnonzero(trusted):
        assign, rank = shown["cluster_centre"][t], shown["cluster_rank"][t]
        # One cluster a token: numbers follow scores that nothing reads, membership is what counts.
        whole = bool(shown["clusters"][t] == shown["candidate"][t].sum())
        ours.append(_canonical(_numbers(assign, rank), _centres(assign, rank), whole))
        theirs.append(_canonical(golden["cluster_of_token"][t], centres[t] - t * n, whole))
    note = f"{len(ours)} of {len(trusted)} frames"
    for place, what in enumerate(("cluster_of_token", "cluster_centers")):
        sides = [np.concatenate([np.zeros(0, int), *(frame[place] for frame in side)]) for side in (ours, theirs)]
        yield exact(what, *sides, note=note)


def _numbers(assign: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(N,) cluster number of each token in the order of falling score, -1 outside."""
    return np.where(assign >= 0, rank[np.maximum(assign, 0)], -1)


def _centres(assign: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Places of the centres in the order of their cluster numbers."""
    places = np.flatnonzero(assign == np.arange(len(assign)))
    return places[np.argsort(rank[places])]


def _canonical(numbers: np.ndarray, centres: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    return (numbers >= 0, np.sort(centres)) if whole else (numbers, centres)


def _output_rows(ours: _Outputs, theirs: _Outputs, trusted: np.ndarray, frames: int) -> Iterator[Row]:
    yield exact("number of outputs", len(ours.ids), len(theirs.ids))
    mine, stored = (np.bincount(side.frame, minlength=frames) for side in (ours, theirs))
    yield exact("outputs per frame", mine, stored)
    ours, theirs = ours.only(trusted), theirs.only(trusted)
    note = "" if trusted.all() else f"without the clusters of {int((~trusted).sum())} frames"
    yield exact("out_indices", ours.ids, theirs.ids, note)
    yield exact("out_kind", ours.kind, theirs.kind, note)
    yield close("out_tokens", ours.tokens, theirs.tokens, 0.0, VALUE_RTOL, note)


def _layout(features: np.ndarray) -> Any:
    return VideoTokens.create(features, grid=(1, features.shape[1])).layout()


def _compare_ablations(golden: Golden) -> Iterator[Row]:
    features, attention = golden["features"], golden["attention"]
    frames, n, _ = features.shape
    for name, config in golden.config["variants"].items():
        if not golden.has(f"{name}/adts_indices"):
            continue
        reduced = run_config(config, features, attention)
        ours, shown = our_outputs(reduced), shown_of(reduced)
        own = part(golden, f"{name}/", config)
        theirs = _Outputs(own["out_indices"], own["out_kind"], own["out_tokens"], n)
        # Only rows are flagged here: a frame is doubtful where a merged row of it is.
        trusted = np.ones(frames, bool)
        trusted[own["out_indices"][~own["out_exact"].astype(bool)] // n] = False
        yield exact(f"{name}: segment_lengths", shown["segments"], _segment_of_frame(own["segment_lengths"]))
        selected = _selected(reduced, own["adts_indices"].shape[1])
        yield exact(f"{name}: adts_indices", selected, own["adts_indices"])
        yield exact(f"{name}: tstm_merged", shown["parent"] >= 0, own["tstm_merged"])
        yield exact(f"{name}: num_clusters", shown["clusters"], own["num_clusters"])
        theirs_centres = own["cluster_centers"][trusted[own["cluster_centers"] // n]]
        centres = np.flatnonzero(shown["cluster_centre"].reshape(-1) % n == np.arange(frames * n) % n)
        centres = centres[shown["cluster_centre"].reshape(-1)[centres] >= 0]
        yield exact(f"{name}: cluster_centers", centres[trusted[centres // n]], np.sort(theirs_centres))
        yield from prefixed(f"{name}: ", _output_rows(ours, theirs, trusted, frames))


def _compare_stages(golden: Golden) -> Iterator[Row]:
    stages = {key.split("/")[0] for key in golden.arrays if _STAGE.match(key)}
    for stage in sorted(stages, key=lambda name: (re.sub(r"\d", "", name), int(re.sub(r"\D", "", name)))):
        kind, index = re.sub(r"\d", "", stage), int(re.sub(r"\D", "", stage))
        settings = golden.config[kind][index]
        yield from prefixed(f"{stage}: ", _STAGES[kind](settings, part(golden, f"{stage}/").arrays))


@functools.partial(jax.jit, static_argnames="complementary")
def _segment_stage(frames: Array, threshold: float, minimum: int, complementary: bool) -> Array:
    transition = similarity.neighbour_cosine(frames)
    cuts = segment.threshold_cuts(transition, threshold)
    return segment.segment_ids(segment.complementary_cuts(transition, cuts, minimum) if complementary else cuts)


def _compare_segment(settings: Mapping[str, Any], part: Mapping[str, np.ndarray]) -> Iterator[Row]:
    minimum, complementary = settings["min_segment_num"], settings["complementary_segment"]
    ids = _segment_stage(jnp.asarray(part["frames"]), settings["segment_threshold"], minimum, complementary)
    yield exact("lengths", ids, _segment_of_frame(part["lengths"]))


@functools.partial(jax.jit, static_argnames=("method", "steps"))
def _select_stage(features: Array, attention: Array, method: Method, steps: int) -> Array:
    reducer = FlashVID(method=method, alpha=1.0, do_segment=False)
    video = VideoTokens.create(features, {"attention_last": attention}, grid=(1, features.shape[1]))
    return reducer.prepare(video, capacity=features.shape[0] * steps).order


def _compare_select(settings: Mapping[str, Any], part: Mapping[str, np.ndarray]) -> Iterator[Row]:
    steps = int(settings["k"])
    order = np.asarray(_select_stage(part["features"], part["attention"], settings["method"], steps))
    if settings["method"] == "attn":
        yield exact("order", np.sort(order, 1), np.sort(part["order"], 1), "as a set")
        return
    inside = np.arange(steps) < np.asarray(part["stable_prefix"])[:, None]
    yield exact("order", order[inside], part["order"][inside], "up to stable_prefix")
    yield exact("distinct", [len(set(row)) for row in order], settings["distinct"])


@jax.jit
def _tree_stage(x: Array, outside: Array, budget: int, threshold: float) -> tuple[Array, ...]:
    frames, _, width = x.shape
    ids, lengths = jnp.zeros(frames, jnp.int32), jnp.full(frames, frames, jnp.int32)
    norms = similarity.squared_norms(x)
    cosine = similarity.cosine_from_gram(similarity.neighbour_gram(x), norms[1:], norms[:-1])
    best, parent = tree.best_previous(cosine, outside, segment.segment_starts(ids))
    linked, raised = tree.bounded_links(best, threshold, ids, lengths, jnp.int32(budget))
    root = tree.tree_roots(linked, parent)
    values = tree.tree_values(x.reshape(-1, width), root, 1 + tree.child_counts(linked, parent))
    return best, parent, linked, raised[0], values


def _compare_tstm(settings: Mapping[str, Any], part: Mapping[str, np.ndarray]) -> Iterator[Row]:
    outside, merged, budget = ~part["token_mask"].astype(bool), part["merged"].astype(bool), settings["budget"]
    staged = _tree_stage(part["features"], outside, budget, settings["temporal_threshold"])
    best, parent, linked, raised, values = (np.asarray(value) for value in staged)
    kept = ~linked & ~outside
    yield close("max_sim", best, part["max_sim"], 1e-6, VALUE_RTOL)
    yield exact("merged", linked, merged)
    yield exact("parent", parent[merged], part["parent"][merged])
    yield exact("lower_bound", budget * len(outside), part["lower_bound"])
    yield close("soft_threshold", raised, part["soft_threshold"], 1e-6)
    yield exact("token_count", kept.sum(1), part["token_count"])
    yield exact("indices", np.flatnonzero(kept), part["indices"])
    if kept.sum() == len(part["tokens"]):
        yield close("tokens", values[kept.reshape(-1)], part["tokens"], 0.0, VALUE_RTOL)


@jax.jit
def _cluster_stage(x: Array, valid: Array, width: int, neighbours: int, count: int) -> tuple[Array, ...]:
    # Zero columns change no inner product, so that files of different widths share a compilation.
    distance = similarity.distance_from_gram(similarity.dot_f32(x, x), 1) / jnp.sqrt(jnp.float32(width))
    rho = cluster.density(distance, valid, neighbours, max_neighbours=7)
    scores = cluster.peak_scores(distance, valid, neighbours, max_neighbours=7, break_ties=True)
    centre, rank = cluster.centre_mask(scores, count)
    return rho, scores, cluster.assign_to_centres(distance, centre, rank=rank), rank


def _compare_dpc(settings: Mapping[str, Any], part: Mapping[str, np.ndarray]) -> Iterator[Row]:
    n, width = part["features"].shape
    x = np.zeros((-(-n // 128) * 128, -(-width // 32) * 32), np.float32)
    x[:n, :width] = part["features"]
    staged = _cluster_stage(x, np.arange(len(x)) < n, width, settings["k"], settings["num_clusters"])
    rho, scores, assign, rank = (np.asarray(value)[:n] for value in staged)
    # The reference's self-distance comes out of a matrix product for more than 25 tokens, up to about 1e-2 off.
    limit = 1e-5 if n <= 25 else 1e-3
    yield close("density", rho, part["density"], limit)
    yield close("score", scores, part["score"], 0.0, limit)
    yield exact("centers", _centres(assign, rank), part["centers"])
    yield exact("clusters", _numbers(assign, rank), part["clusters"])


_STAGES = {
    "segment": _compare_segment,
    "select": _compare_select,
    "tstm": _compare_tstm,
    "dpc": _compare_dpc,
}


def _is_stages(golden: Golden) -> bool:
    return any(_STAGE.match(key) for key in golden.arrays)


def _is_ablations(golden: Golden) -> bool:
    variants = golden.config.get("variants")
    return isinstance(variants, dict) and any(golden.has(f"{name}/adts_indices") for name in variants)


COMPARERS = [
    Comparer(
        "flashvid",
        lambda golden: golden.has("features", "attention", "adts_indices", "tstm_merged", "out_tokens", "dpc_exact"),
        _compare_whole,
    ),
    Comparer("flashvid", _is_ablations, _compare_ablations),
    Comparer("flashvid", _is_stages, _compare_stages),
]
