"""HoliTom's golden files: whole runs, their parts, and the merge inside the language model."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.inner import Inner
from jvidprune.cuts.rules import halving_merge
from jvidprune.models.decoder import Decoder
from jvidprune.models.prefill import read_prompt
from jvidprune.ops import newline
from jvidprune.ops.cluster import peak_scores
from jvidprune.ops.exact import ceil_product, fraction_words, round_product
from jvidprune.ops.segment import per_segment_sum
from jvidprune.ops.select import order_descending, rank_descending
from jvidprune.ops.similarity import distance_from_gram, dot_f32
from jvidprune.ops.windows import best_windows, window_cuts, window_gains
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.decoders import decoder_of
from jvidprune.parity.planned import planned
from jvidprune.reducers.holitom import HoliTom, static_places
from jvidprune.tokens import Plan, Reduced, VideoTokens

TOKENS = 2e-4

Case = tuple[str, dict[str, np.ndarray], dict[str, Any]]


def cases(golden: Golden) -> list[Case]:
    """(name, arrays without the prefix, config) of every run in a file; a file of one run has no prefix."""
    if golden.config:
        return [("", dict(golden.arrays), dict(golden.config))]
    found = []
    shared = {key: golden[key] for key in ("features", "attention") if key in golden.arrays}
    for key in sorted(golden.arrays):
        if key.endswith("_config") and golden[key].ndim == 0:
            prefix = key[: -len("config")]
            arrays = {k[len(prefix) :]: v for k, v in golden.arrays.items() if k.startswith(prefix) and k != key}
            found.append((prefix, shared | arrays, json.loads(str(golden[key]))))
    return found


def _all_cases(golden: Golden, keys: set[str], settings: set[str]) -> bool:
    runs = cases(golden)
    return bool(runs) and all(keys <= arrays.keys() and settings <= config.keys() for _, arrays, config in runs)


def is_whole(golden: Golden) -> bool:
    """Whole runs of the vision side by the method's own repository (SToP's copy names its base)."""
    keys = {"features", "attention", "feature_sim", "segments", "token_ids", "token_kind", "n_static"}
    return _all_cases(golden, keys, {"max_window", "tau", "newline"}) and not any(
        "base" in c for _, _, c in cases(golden)
    )


def is_segmentation(golden: Golden) -> bool:
    """The dynamic programme alone."""
    return _all_cases(golden, {"feature_sim", "count", "dp", "prev", "segments"}, {"tau", "max_window"})


def is_temporal(golden: Golden) -> bool:
    """Static tokens and their means for given windows."""
    return _all_cases(golden, {"features", "feature_sim", "segments", "static_mask", "static_mean"}, {"tau"})


def is_spatial(golden: Golden) -> bool:
    """Clusters of one token set, and attention top-k."""
    return _all_cases(golden, {"features", "positions", "tokens", "token_positions"}, {"ratio"})


def is_merge(golden: Golden) -> bool:
    """The merge inside the language model, alone."""
    return _all_cases(golden, {"hidden", "attention_row", "out_hidden", "keep_ids"}, {"start", "length", "r"})


def is_decoder(golden: Golden) -> bool:
    """A tiny decoder that merges before one of its layers."""
    return "probe_layer_is_causal" in golden.config and golden.has("hidden_after_probe", "attention_row", "keep_ids")


def compare_whole(golden: Golden) -> Iterator[Row]:
    """Segments, counts, ids and tokens of every run; runs marked unstable only by their counts."""
    for name, g, c in cases(golden):
        reducer = HoliTom(
            layout="grid" if c["newline"] == "grid" else "one_token",
            tau=c["tau"],
            beta=c["beta"],
            neighbours=c["K"],
            max_window=c["max_window"],
            contextual_share=c["D"],
            merge="mean" if c["no_beta"] else "beta",
        )
        grid = tuple(c["grid"]) if "grid" in c else None
        video = VideoTokens.create(g["features"], {"attention_last": g["attention"]}, grid=grid)
        layout = video.layout()
        budget, capacity = reducer.budget(layout, c["ratio"]), layout.total
        plan, reduced = planned(reducer, video, budget, capacity=capacity)
        d = {key: np.asarray(value) for key, value in plan.diagnostics.items()}
        starts = np.flatnonzero(np.diff(d["segment"], prepend=-1))
        ends = np.append(starts[1:] - 1, layout.frames - 1)
        yield close(f"{name}feature_sim", d["similarity"], g["feature_sim"], 1e-5)
        yield exact(f"{name}segments", np.stack([starts, ends], axis=1), g["segments"])
        yield exact(f"{name}total_reduced", layout.total - d["left"], g["total_reduced"])
        words = np.asarray(budget.share)[int(d["left"])].astype(np.float64)
        share = words @ 2.0 ** np.array([-24, -48, -72])
        yield close(f"{name}effective_ratio", share, g["effective_ratio"], 0.0)
        yield exact(f"{name}n_static", d["static"].sum(axis=1)[starts], g["n_static"])
        yield exact(f"{name}n_static_kept", d["static_kept"][starts], g["n_static_kept"])
        yield exact(f"{name}n_dynamic_kept", d["dynamic_kept"][starts], g["n_dynamic_kept"])
        bound = reducer.capacity(layout, c["ratio"])
        yield exact(f"{name}within_bound", int(plan.count) <= bound, True)
        yield from _sequence(name, video, plan, reduced, g, c)


def _sequence(name: str, video: VideoTokens, plan: Plan, reduced: Reduced, g: dict, c: dict) -> Iterator[Row]:
    arranged = newline.arrange(
        plan.ids,
        plan.valid,
        kind="grid" if c["newline"] == "grid" else "one_token",
        grid=video.grid,
        frames=video.features.shape[0],
        rows="nonempty",
    )
    count = int(arranged.count)
    if not c.get("stable_under_1e-5", True):
        if c["newline"] == "one_token":
            yield exact(f"{name}count", count, len(g["token_ids"]))
        return
    source = np.asarray(arranged.source[:count])
    kind = np.append(np.where(np.asarray(plan.is_pick), 0, 1), 2)
    yield exact(f"{name}token_ids", np.append(np.asarray(plan.ids), -1)[source], g["token_ids"])
    yield exact(f"{name}token_kind", kind[source], g["token_kind"])
    is_newline = g["token_kind"] == 2
    vector = g["tokens"][is_newline][0] if is_newline.any() else np.zeros(g["tokens"].shape[1], np.float32)
    tokens = np.concatenate([np.asarray(reduced.tokens), vector[None]])[source]
    yield close(f"{name}tokens", tokens, g["tokens"], TOKENS)


def compare_segmentation(golden: Golden) -> Iterator[Row]:
    """Gains, values, last windows and segments."""

    @functools.partial(jax.jit, static_argnums=1)
    def solve(unchanged: jax.Array, max_window: int) -> tuple[jax.Array, ...]:
        gains = window_gains(unchanged)
        value, start = best_windows(gains, max_window)
        return gains, value, start, window_cuts(start)

    for name, g, c in cases(golden):
        gains, value, start, cuts = (np.asarray(v) for v in solve(g["feature_sim"] > c["tau"], c["max_window"]))
        starts = np.append(0, np.flatnonzero(cuts) + 1)
        ends = np.append(np.flatnonzero(cuts), len(cuts))
        yield exact(f"{name}count", gains, g["count"])
        yield exact(f"{name}dp", value, g["dp"])
        yield exact(f"{name}prev", start, g["prev"])
        yield exact(f"{name}segments", np.stack([starts, ends], axis=1), g["segments"])
        if "total_reduced" in g:
            yield exact(f"{name}total_reduced", value[-1], g["total_reduced"])


def compare_temporal(golden: Golden) -> Iterator[Row]:
    """Static places and their means over time."""
    for name, g, c in cases(golden):
        window = jnp.asarray(np.repeat(np.arange(len(g["segments"])), np.diff(g["segments"], axis=1)[:, 0] + 1))
        static = static_places(jnp.asarray(g["feature_sim"] > c["tau"]), window)
        yield exact(f"{name}static_mask", static, g["static_mask"])
        frames = np.bincount(np.asarray(window))
        total = per_segment_sum(jnp.where(static[:, :, None], g["features"], 0.0), window)[: len(frames)]
        yield close(f"{name}static_mean", total / frames[:, None, None], g["static_mean"], TOKENS)


def compare_spatial(golden: Golden) -> Iterator[Row]:
    """Density-peak clusters of one set; most attended tokens of a stack of frames."""
    for name, g, c in cases(golden):
        ratio = jnp.asarray(fraction_words(np.asarray(c["ratio"], np.float64)))
        x = jnp.asarray(g["features"])
        if "attention" in g:
            kept = int(ceil_product(ratio, jnp.int32(x.shape[1])))
            mask = np.asarray(rank_descending(jnp.asarray(g["attention"])) < kept)
            chosen = np.stack([np.flatnonzero(row) for row in mask]).reshape(len(mask), -1)
            yield exact(f"{name}token_positions", np.take_along_axis(g["positions"], chosen, 1), g["token_positions"])
            yield close(f"{name}tokens", np.take_along_axis(g["features"], chosen[:, :, None], 1), g["tokens"], TOKENS)
            continue
        count = int(round_product(ratio, jnp.int32(len(x))))
        yield exact(f"{name}clusters", count, c.get("clusters", len(g["tokens"])))
        if count == 0:
            yield exact(f"{name}tokens", g["tokens"].size, 0)
            continue
        reducer = HoliTom(beta=c["beta"], neighbours=c["K"], merge="mean" if c["no_beta"] else "beta")
        distance = distance_from_gram(dot_f32(x, x), x.shape[1])
        near = min(c["K"], count)
        scores = peak_scores(distance, jnp.ones(len(x), bool), near, max_neighbours=c["K"])
        if not c.get("stable", True):
            continue
        one = lambda v: jnp.asarray(v)[None]  # noqa: E731
        every, free = one(np.ones(len(x), bool)), one(np.zeros(len(x)))
        clusters = reducer._cluster(distance[None], every, one(np.int32(count)), free)
        centre, joined, weight = (np.asarray(v)[0] for v in clusters)
        places = np.flatnonzero(centre)
        mix = np.where(joined[None, :] == places[:, None], weight[None, :], 0.0)
        yield close(f"{name}distance", distance, g["distance"], 2e-3, note="the reference's diagonal is not exactly 0")
        yield exact(f"{name}centers_by_score", order_descending(scores)[:count], g["centers_by_score"])
        yield exact(f"{name}token_positions", g["positions"][places], g["token_positions"])
        yield close(f"{name}tokens", mix @ g["features"], g["tokens"], TOKENS)


def _merge(hidden: np.ndarray, row: np.ndarray, start: int, length: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(len(row))
    visual = (index >= start) & (index < start + length)
    keep = round(length * (1 - share))
    merged, survivors = jax.jit(halving_merge)(jnp.asarray(hidden), jnp.asarray(row), jnp.asarray(visual), keep)
    kept = np.flatnonzero(np.asarray(survivors))
    return np.asarray(merged)[kept], kept


def compare_merge(golden: Golden) -> Iterator[Row]:
    """Kept positions and halved hidden states."""
    for name, g, c in cases(golden):
        merged, kept = _merge(g["hidden"], g["attention_row"], c["start"], c["length"], c["r"])
        yield exact(f"{name}keep_ids", kept, g["keep_ids"])
        yield close(f"{name}out_hidden", merged, g["out_hidden"], TOKENS)
        if "cache_position" in g:
            yield exact(f"{name}cache_position", np.arange(len(kept)), g["cache_position"])


def compare_decoder(golden: Golden) -> Iterator[Row]:
    """A tiny decoder that merges before one of its layers, and the merge alone from the stored hidden states."""
    g, c = golden, golden.config
    if g.has("layer_probe_attention"):
        yield close("attention_row", g["layer_probe_attention"].mean(axis=0)[-1], g["attention_row"], 1e-6)
    merged, kept = _merge(g["hidden_after_probe"], g["attention_row"], c["start"], c["length"], c["r"])
    yield exact("keep_ids", kept, g["keep_ids"])
    if g.has("cache_position"):
        yield exact("cache_position", np.arange(len(kept)), g["cache_position"])
    # The reference merges in place, so that the recorded input may hold the merged rows already.
    in_place = np.array_equal(g["hidden_after_probe"][g["keep_ids"]], g["hidden_into_k"])
    if not in_place:
        yield close("hidden_into_k", merged, g["hidden_into_k"], TOKENS)
    if g.has("inputs_embeds", "w.norm.weight"):
        yield from _whole_decoder(golden, in_place)


def _whole_decoder(golden: Golden, in_place: bool) -> Iterator[Row]:
    c, embeds = golden.config, golden["inputs_embeds"]
    text = {
        "hidden_size": c["hidden"],
        "intermediate_size": c["intermediate"],
        "num_hidden_layers": c["layers"],
        "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv_heads"],
        "rope_theta": c["rope_theta"],
        "rms_norm_eps": c["rms_eps"],
    }
    slots = np.arange(len(embeds))[None]
    visual = (slots >= c["start"]) & (slots < c["start"] + c["length"])
    valid = np.ones(slots.shape, bool)
    reducer = HoliTom(inner_layer=c["k"], inner_dropped=c["r"], probe_causal=bool(c["probe_layer_is_causal"]))
    inner = Inner.create(reducer.inner(0.5), visual, valid, layers=c["layers"])
    with jax.default_matmul_precision("highest"):
        decoder = decoder_of({k.removeprefix("w."): v for k, v in golden.arrays.items() if k.startswith("w.")}, text)

        @jax.jit
        def run(decoder: Decoder, embeds: jax.Array, inner: Inner) -> tuple[Any, ...]:
            cache = decoder.empty_cache(1, inner.capacities(slots.size, 0), inner.boundaries)
            places, every = jnp.asarray(slots), jnp.asarray(valid)
            read = read_prompt(decoder, embeds[None], places, every, cache, inner=inner)
            x, last = embeds[None], jnp.full((1, 1), slots.size - 1)
            for layer in range(c["k"]):
                causal = reducer.probe_causal or layer < c["k"] - 1
                x, _ = decoder.run(x, decoder.step(places, every), layer, layer + 1, causal=causal, rows=last)
            return read, decoder.norm(read.hidden), x

        read, last, before = run(decoder, embeds, inner)
    survivors = np.flatnonzero(read.cuts[0].survivors[0])
    yield close("score at the cut", read.cuts[0].score[0], golden["attention_row"], 1e-6)
    yield exact("kept in the decoder", survivors, golden["keep_ids"])
    if in_place:
        others = np.setdiff1d(np.arange(slots.size), golden["keep_ids"])
        note = "rows that are not merged into"
    else:
        others, note = np.arange(slots.size), ""
    yield close("hidden_after_probe", before[0, others], golden["hidden_after_probe"][others], TOKENS, note=note)
    if in_place:
        merged, _ = _merge(np.asarray(before[0]), golden["attention_row"], c["start"], c["length"], c["r"])
        yield close("hidden_into_k", merged, golden["hidden_into_k"], TOKENS)
    yield close("last_hidden", last[0, : len(survivors)], golden["last_hidden"], TOKENS)
    lengths = [int(part.length) for part in read.cache.segments for _ in range(part.start, part.stop)]
    yield exact("kv_lengths", lengths, golden["kv_lengths"])


COMPARERS = [
    Comparer("holitom", is_whole, compare_whole),
    Comparer("holitom", is_segmentation, compare_segmentation),
    Comparer("holitom", is_temporal, compare_temporal),
    Comparer("holitom", is_spatial, compare_spatial),
    Comparer("holitom", is_merge, compare_merge),
    Comparer("holitom", is_decoder, compare_decoder),
]
