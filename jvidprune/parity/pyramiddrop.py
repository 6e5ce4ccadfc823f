"""PyramidDrop's golden files: whole tiny decoders with several cuts, batches, and the ranking alone."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.inner_runs import Batch, answer, decoder_from, one_prompt
from jvidprune.reducers.pyramiddrop import PyramidDrop
from jvidprune.tokens import Kept

SCORE, HIDDEN, LOGITS = 1e-5, 1e-4, 2e-4


def is_pyramiddrop(golden: Golden) -> bool:
    """Shares of the prompt's own number, and layers or one stage of the ranking."""
    config = golden.config
    return {"ratios", "kind", "rope_theta"} <= config.keys() and (
        "stage" in config or ("layer_list" in config and "norm" not in config)
    )


def reducer_of(golden: Golden) -> PyramidDrop:
    """The reducer that a golden config describes; a ranking alone stands before the first layer."""
    config = golden.config
    if "stage" not in config:
        return PyramidDrop(cut_layers=tuple(config["layer_list"]), shares=tuple(config["ratios"]))
    by = "text" if config["kind"] == "train" else "last"
    return PyramidDrop(cut_layers=(0,), shares=(config["ratios"][config["stage"]],), ranked_by=by)


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    kinds = {"decode": _decode, "batch": _batch, "rank": _rank, "train": _rank}
    yield from kinds[golden.config["kind"]](golden)


def _decode(golden: Golden) -> Iterator[Row]:
    config, decoder = golden.config, decoder_from(golden)
    start, count = config["start"], config["count"]
    length, tokens = len(golden["embeds"]), golden["tokens"]
    inner = one_prompt(reducer_of(golden).inner(0.5), length, start, count, config["layers"])
    got = answer(decoder, golden["embeds"], inner, tokens)
    left = count
    for i, (record, state) in enumerate(zip(got.read.cuts, got.read.states, strict=True)):
        yield close(f"score{i}", record.score[0, start : start + left], golden[f"score{i}"], SCORE)
        kept = np.asarray(state.valid)[0]
        yield exact(f"keep{i}", np.asarray(state.source)[0][kept], golden[f"keep{i}"])
        yield exact(f"positions{i}", np.asarray(state.positions)[0][kept], golden[f"positions{i}"])
        yield close(f"hidden_into{i}", state.hidden[0][kept], golden[f"hidden_into{i}"], HIDDEN)
        left = int(count * config["ratios"][i])
    yield close("last_hidden", decoder.norm(got.read.hidden[0]), golden["last_hidden"], HIDDEN)
    yield close("step_logits", got.logits, golden["step_logits"], LOGITS)
    yield exact("tokens", got.logits.argmax(axis=-1), tokens)
    yield exact("decode_positions", got.positions, golden["decode_positions"])
    yield exact("cache_lengths", got.lengths, golden["cache_lengths"])


def _batch(golden: Golden) -> Iterator[Row]:
    decoder, batch = decoder_from(golden), Batch.of(golden)
    read = batch.read(decoder, reducer_of(golden).inner(0.5), golden.config["layers"])
    yield exact("lengths", np.stack([state.valid.sum(axis=1) for state in read.states]), golden["lengths"])
    for b in range(len(batch.embeds)):
        for i, state in enumerate(read.states):
            if f"keep{b}_{i}" in golden.arrays:
                kept = np.asarray(state.valid)[b]
                yield exact(f"keep{b}_{i}", np.asarray(state.source)[b][kept], golden[f"keep{b}_{i}"])
        last = decoder.norm(read.hidden[b][np.asarray(read.states[-1].valid)[b]])
        yield close(f"last_hidden{b}", last, golden[f"last_hidden{b}"], HIDDEN)


def _rank(golden: Golden) -> Iterator[Row]:
    config, decoder = golden.config, decoder_from(golden)
    hidden, start = golden["hidden"], config["start"]
    length, stage = len(hidden), config["stage"]
    left = int(config["count"] * ([1.0, *config["ratios"]][stage]))
    options = {}
    if "labels" in golden.arrays:
        silent = golden["labels"] == -100
        options["text_queries"] = np.append(silent[:-1] & ~silent[1:], False)[None]
    (cut,) = reducer_of(golden).inner(0.5)
    kept_number = Kept(number=int(config["count"] * config["ratios"][stage]))
    inner = one_prompt([dataclasses.replace(cut, kept=kept_number)], length, start, left, 1, **options)

    @jax.jit
    def run(hidden: jax.Array) -> tuple:
        valid = jnp.ones((1, length), bool)
        state = inner.start(hidden[None], jnp.arange(length)[None], valid)
        rows = inner.rows(inner.cuts[0], state)
        assert rows is not None
        attention = decoder.attention_ahead(state.hidden, decoder.step(state.positions, valid), 0, rows)
        return inner.cuts[0].apply(state, attention)[:2]

    with jax.default_matmul_precision("highest"):
        state, record = run(jnp.asarray(hidden))
    yield close("score", record.score[0, start : start + left], golden["score"], SCORE)
    kept = np.asarray(state.valid)[0]
    yield exact("keep", np.asarray(state.source)[0][kept], golden["keep"])
    yield exact("positions", np.asarray(state.positions)[0][kept], golden["positions"])


COMPARERS = [Comparer("pyramiddrop", is_pyramiddrop, compare)]
