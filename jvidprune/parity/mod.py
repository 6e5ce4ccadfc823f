"""Golden files of mixture of depths: p-MoD's layers, schedules and batches, Gamma-MoD's two forms of a layer."""

from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.cache import Cache
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.routers import (
    AnyNumber,
    GammaCount,
    GammaThreshold,
    GammaTopK,
    RouterTopK,
    routing_loss,
    run_probability,
)
from jvidprune.models.decoder import Decoder
from jvidprune.models.prefill import read_prompt
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.inner_runs import Batch, answer, decoder_from, one_prompt, read_exactly
from jvidprune.reducers.mod import Schedule, Truncated, shares_of
from jvidprune.tokens import InnerStage
from jvidprune.weights import Weights

GATE, HIDDEN, LOGITS = 1e-5, 2e-4, 5e-4
_FIXED = 1059
"""Image and template of Gamma-MoD's training form; the question stands behind them."""


def is_mod(golden: Golden) -> bool:
    """Routed layers, or tables of them."""
    config = golden.config
    kind = config.get("kind")
    routed = kind in ("pmod", "batch", "gamma_answer") and "targets" in config
    return routed or kind == "gamma_train" or (kind == "schedule" and "tables" in config)


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    kinds = {
        "pmod": _prompt,
        "batch": _batch,
        "schedule": _schedules,
        "gamma_train": _training,
        "gamma_answer": _evaluation,
    }
    yield from kinds[golden.config["kind"]](golden)


def stages_of(golden: Golden) -> list[InnerStage]:
    """The routed layers of p-MoD that a golden config describes."""
    config, rule = golden.config, RouterTopK(golden.config["norm"], scale_skipped=True)
    return [
        InnerStage(
            layer,
            rule,
            Truncated(share),
            weights=Weights.of({"weight": golden[f"router{layer}"], "bias": golden[f"router_bias{layer}"]}),
        )
        for layer, share in zip(config["targets"], config["ratios"], strict=True)
    ]


def _prompt(golden: Golden) -> Iterator[Row]:
    config, decoder = golden.config, decoder_from(golden)
    start, count, length = config["start"], config["count"], len(golden["embeds"])
    inner = one_prompt(stages_of(golden), length, start, count, config["layers"])
    got = answer(decoder, golden["embeds"], inner, golden["tokens"])
    for layer, record in zip(config["targets"], got.read.routes, strict=True):
        yield close(f"into{layer}", record.entering[0], golden[f"into{layer}"], HIDDEN)
        yield close(f"weight{layer}", record.gate[0, start : start + count], golden[f"weight{layer}"], GATE)
        yield exact(f"keep{layer}", np.flatnonzero(record.runs[0]), golden[f"keep{layer}"])
        if golden.has(f"after{layer}"):
            yield close(f"after{layer}", record.leaving[0], golden[f"after{layer}"], HIDDEN)
    yield close("last_hidden", decoder.norm(got.read.hidden[0]), golden["last_hidden"], HIDDEN)
    yield close("step_logits", got.logits, golden["step_logits"], LOGITS)
    yield exact("tokens", got.logits.argmax(axis=-1), golden["tokens"])
    yield exact("cache_lengths", got.lengths, golden["cache_lengths"])
    yield exact("decode_positions", got.positions, golden["decode_positions"])


def _batch(golden: Golden) -> Iterator[Row]:
    decoder, batch = decoder_from(golden), Batch.of(golden)
    read = batch.read(decoder, stages_of(golden), golden.config["layers"])
    for b, length in enumerate(batch.valid.sum(axis=1)):
        last = decoder.norm(read.hidden[b][:length])
        yield close(f"last_hidden{b}", last, golden[f"last_hidden{b}"], HIDDEN)


def _schedules(golden: Golden) -> Iterator[Row]:
    tokens = golden.config["tokens"]
    for name, table in golden.config["tables"].items():
        made = _shares(name)
        yield exact(f"{name}: layers", [layer for layer, _ in made], [layer for layer, _ in table])
        yield close(f"{name}: ratios", [share for _, share in made], [share for _, share in table], 1e-12)
        counts = [Truncated(share).count(tokens) for _, share in made]
        yield exact(f"{name}: counts", counts, golden.config["counts"][name])


def _shares(name: str) -> tuple[tuple[int, float], ...]:
    """The schedule of a name such as "shiftedcos_decay_0.85_0.15|0.5|32": kind, factor and layers."""
    kind, factor, layers = name.split("|")
    highest, lowest = "0.85", "0.15"
    if "_decay" in kind:
        kind, highest, lowest = kind.rsplit("_", 2)
    schedule = cast(Schedule, kind)
    return shares_of(schedule, float(factor), int(layers), highest=float(highest), lowest=float(lowest))


def _training(golden: Golden) -> Iterator[Row]:
    decoder, length = decoder_from(golden), len(golden["hidden"])
    slots, everything = np.arange(length)[None], np.ones((1, length), bool)
    stage = InnerStage(0, GammaTopK(), GammaCount(), "renumber", weights=Weights.of({"weight": golden["router"]}))
    inner = Inner.create([stage], everything, everything, layers=1, text_queries=slots >= _FIXED)
    read = read_exactly(decoder, golden["hidden"][None], slots, everything, inner)
    (record,) = read.routes
    yield close("probability", record.gate[0], golden["probability"], GATE)
    kept = np.flatnonzero(record.runs[0])
    yield exact("keep", kept, golden["keep"])
    yield exact("positions", np.arange(int(read.cache.segments[0].valid.sum())), golden["positions"])
    yield close("output", record.leaving[0], golden["output"], HIDDEN)
    yield close("aux_loss", routing_loss(record.gate, record.runs, jnp.asarray(everything)), golden["aux_loss"], GATE)


def _evaluation(golden: Golden) -> Iterator[Row]:
    config, decoder = golden.config, decoder_from(golden)
    rule = GammaThreshold(config["prompt_threshold"], config["decode_threshold"])
    weights, length, tokens = Weights.of({"weight": golden["router"]}), len(golden["embeds"]), golden["tokens"]
    stages = [InnerStage(layer, rule, AnyNumber(), "renumber", weights=weights) for layer in config["targets"]]
    inner = one_prompt(stages, length, 0, 0, config["layers"])
    where, steps = np.arange(length)[None], len(tokens)
    cache = decoder.empty_cache(1, inner.capacities(length, steps), inner.boundaries)
    with jax.default_matmul_precision("highest"):
        read = jax.jit(read_prompt)(decoder, golden["embeds"][None], where, where >= 0, cache, inner=inner)
        cache, logits, gates, positions = read.cache, [read.logits[0]], [], []
        step, watch = jax.jit(Decoder.decode), jax.jit(_gates)
        for token in tokens[:-1]:
            given = jnp.asarray([token])
            gates.append(watch(decoder, given, cache))
            positions.append(_positions(cache, np.asarray(gates[-1]) >= config["decode_threshold"]))
            found, cache = step(decoder, given, cache)
            logits.append(found[0])
    for layer, record in zip(config["targets"], read.routes, strict=True):
        yield close(f"probability{layer}", record.gate[0], golden[f"probability{layer}"], GATE)
        yield close(f"after{layer}", record.leaving[0], golden[f"after{layer}"], HIDDEN)
    yield close("last_hidden", decoder.norm(read.hidden[0]), golden["last_hidden"], HIDDEN)
    yield close("step_logits", np.stack(logits), golden["step_logits"], LOGITS)
    yield exact("tokens", np.stack(logits).argmax(axis=-1), tokens)
    yield close("decode_probability", np.stack(gates), golden["decode_probability"], GATE)
    yield exact("decode_positions", np.asarray(positions), golden["decode_positions"])
    lengths = [int(part.valid.sum()) for part in cache.segments for _ in range(part.start, part.stop)]
    yield exact("cache_lengths", lengths, golden["cache_lengths"])


def _gates(decoder: Decoder, tokens: jax.Array, cache: Cache) -> Any:
    """p of one new token in every routed layer."""
    x, found = decoder.embed_text(tokens)[:, None], []
    plain = decoder.step(cache.position[:, None], jnp.ones((1, 1), bool))
    for segment in cache.segments:
        if segment.route is None:
            x, _ = decoder.run(x, plain, segment.start, segment.stop, past=segment)
            continue
        found.append(run_probability(segment.route.weights, decoder.entering(x, segment.route.layer))[0, 0])
        x, *_ = segment.route.read_on(decoder, x, cache.position[:, None], segment)
    return jnp.stack(found)


def _positions(cache: Cache, runs: np.ndarray) -> list[int]:
    """Position of the next token in every layer, -1 in one that it passes by."""
    found, routed = [], iter(runs)
    for segment in cache.segments:
        own = int(cache.position[0]) if segment.route is None else int(segment.valid.sum()) if next(routed) else -1
        found += [own] * (segment.stop - segment.start)
    return found


COMPARERS = [Comparer("mod", is_mod, compare)]
