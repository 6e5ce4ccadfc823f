"""HoliTom's golden files: whole runs, their parts, and the merge inside the language model."""

import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.inner import Inner
from jvidprune.cuts.rules import halving_merge
from jvidprune.models.decoder import Decoder
from jvidprune.models.prefill import read_prompt
from jvidprune.ops.cluster import peak_scores
from jvidprune.ops.exact import ceil_product, fraction_words, round_product
from jvidprune.ops.segment import per_segment_sum
from jvidprune.ops.select import order_descending, rank_descending
from jvidprune.ops.similarity import distance_from_gram, dot_f32
from jvidprune.ops.windows import best_windows, window_cuts, window_gains
from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.decoders import decoder_of
from jvidprune.parity.lines import Lines
from jvidprune.parity.planned import PlannedRun, starts_and_ends
from jvidprune.parity.table import Check
from jvidprune.reducers.holitom import HoliTom, static_places
from jvidprune.tokens import VideoTokens

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


def _share(run: PlannedRun) -> float:
    """The share of every set that the port makes of a ratio, in three words of 24 bits, for what is left to prune."""
    words = np.asarray(run.budget.share)[int(run.shown["left"])].astype(np.float64)
    return words @ 2.0 ** np.array([-24, -48, -72])


def _starts(run: PlannedRun) -> np.ndarray:
    return starts_and_ends(run.shown["segment"])[:, 0]


WHOLE: tuple[Check[PlannedRun], ...] = (
    Check("feature_sim", "shown.similarity", 1e-5),
    Check("segments", lambda run: starts_and_ends(run.shown["segment"])),
    Check("total_reduced", lambda run: run.video.layout().total - run.shown["left"]),
    Check("effective_ratio", _share, 0.0),
    Check("n_static", lambda run: run.shown["static"].sum(axis=1)[_starts(run)]),
    Check("n_static_kept", lambda run: run.shown["static_kept"][_starts(run)]),
    Check("n_dynamic_kept", lambda run: run.shown["dynamic_kept"][_starts(run)]),
)


def compare_whole(golden: Golden) -> Iterator[Row]:
    """Segments, counts, ids and tokens of every run; runs marked unstable only by their counts."""
    for name, arrays, c in cases(golden):
        g = Golden(arrays, c)
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
        run = PlannedRun.of(g, reducer, video, reducer.budget(layout, c["ratio"]), capacity=layout.total)
        yield from table.compare(WHOLE, run, g, name)
        yield exact(f"{name}within_bound", run.count <= reducer.capacity(layout, c["ratio"]), True)
        yield from _sequence(name, run)


def _sequence(name: str, run: PlannedRun) -> Iterator[Row]:
    g, c, plan = run.golden, run.golden.config, run.plan
    kind, frames = "grid" if c["newline"] == "grid" else "one_token", len(run.video.features)
    lines = Lines.of(plan.ids, plan.valid, kind=kind, grid=run.video.grid, frames=frames, rows="nonempty")
    if not c.get("stable_under_1e-5", True):
        if c["newline"] == "one_token":
            yield exact(f"{name}count", lines.count, len(g["token_ids"]))
        return
    yield exact(f"{name}token_ids", lines.values(plan.ids, -1), g["token_ids"])
    yield exact(f"{name}token_kind", lines.values(np.where(plan.is_pick, 0, 1), 2), g["token_kind"])
    is_newline = g["token_kind"] == 2
    vector = g["tokens"][is_newline][0] if is_newline.any() else np.zeros(g["tokens"].shape[1], np.float32)
    yield close(f"{name}tokens", lines.tokens(run.reduced.tokens, vector), g["tokens"], TOKENS)


class _Windows(NamedTuple):
    """What the dynamic programme makes of a video: gains, values, last windows, cuts."""

    gains: jax.Array
    dp: jax.Array
    prev: jax.Array
    cuts: jax.Array


@functools.partial(jax.jit, static_argnums=1)
def _windows(unchanged: jax.Array, max_window: int) -> _Windows:
    gains = window_gains(unchanged)
    value, start = best_windows(gains, max_window)
    return _Windows(gains, value, start, window_cuts(start))


SEGMENTATION: tuple[Check[_Windows], ...] = (
    Check("count", "gains"),
    Check("dp", "dp"),
    Check("prev", "prev"),
    Check("segments", lambda found: starts_and_ends(np.append(0, np.cumsum(found.cuts)))),
    Check("total_reduced", lambda found: found.dp[-1], optional=True),
)


def compare_segmentation(golden: Golden) -> Iterator[Row]:
    """Gains, values, last windows and segments."""
    for name, g, c in cases(golden):
        found = _windows(g["feature_sim"] > c["tau"], c["max_window"])
        yield from table.compare(SEGMENTATION, found, Golden(g, c), name)


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
