"""FrameFusion's golden files: call after call with given states, and whole runs over a tiny decoder."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.inner import Inner
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.inner_runs import answer, decoder_from, one_prompt
from jvidprune.reducers.framefusion import FrameFusion

COSINE, HIDDEN, LOGITS = 2e-6, 2e-4, 5e-4
_LAYERS = 8


def is_framefusion(golden: Golden) -> bool:
    """Calls with states in and out; a whole run or the module alone."""
    return golden.config.get("kind") in ("whole", "steps") and golden.has("input0", "output0", "keep0", "sparsity")


def reducer_of(golden: Golden) -> FrameFusion:
    """The reducer that a golden config describes."""
    c = golden.config
    return FrameFusion(c["similarity"], c["ratio"], rows=c.get("rows", 1), depth=c["cost_depth"])


def inner_of(golden: Golden) -> Inner:
    """Its stages for the prompt of the file."""
    c = golden.config
    count = c["frames"] * c["patches"]
    block = np.zeros((1, c["length"]), np.int32)
    block[0, c["start"] : c["start"] + count] = np.arange(count) % c["patches"]
    stages = reducer_of(golden).inner(c["cost"])
    return one_prompt(stages, c["length"], c["start"], count, c.get("layers", _LAYERS), block=block)


def compare(golden: Golden) -> Iterator[Row]:
    """The calls, and what a whole run makes of them."""
    inner, length = inner_of(golden), golden.config["length"]
    apply = jax.jit(lambda cut, state, rows: cut.apply(state, rows)[:2])
    state = inner.start(jnp.asarray(golden["input0"])[None], jnp.arange(length)[None], jnp.ones((1, length), bool))
    counts = [int(np.asarray(inner.visual).sum())]
    for i, cut in enumerate(inner.cuts):
        if not golden.has(f"input{i}"):
            break
        alive = np.flatnonzero(np.asarray(state.valid)[0])
        state = state._replace(hidden=state.hidden.at[0, alive].set(golden[f"input{i}"]))
        rows = np.zeros((1, 1, 1, state.valid.shape[1]), np.float32)
        if golden.has(f"attention{i}"):
            given = np.atleast_2d(golden[f"attention{i}"])
            given = given.reshape(-1, *given.shape[-2:]) if given.ndim > 2 else given[None]
            rows = np.zeros((1, *given.shape[:2], state.valid.shape[1]), np.float32)
            rows[0, :, :, alive] = np.moveaxis(given, -1, 0)
        before = state
        state, record = apply(cut, state, None if i == 0 else rows)
        found = {name: np.asarray(value)[0] for name, value in record.diagnostics.items()}
        yield from _call(golden, i, found, np.asarray(before.visual)[0], alive)
        stays = np.asarray(record.survivors)[0]
        yield exact(f"keep{i}", np.flatnonzero(stays[alive]), golden[f"keep{i}"])
        valid = np.asarray(state.valid)[0]
        yield close(f"output{i}", np.asarray(state.hidden)[0][valid], golden[f"output{i}"], HIDDEN)
        counts.append(int(np.asarray(state.visual)[0].sum()))
    behind = np.asarray(counts, np.float64)
    shares = (1 - behind[1:] / behind[:-1])[: len(golden["sparsity"])]
    yield close("sparsity", shares, golden["sparsity"], 1e-6)
    if golden.config["kind"] == "whole":
        yield from _whole(golden, inner)


def _call(golden: Golden, i: int, found: dict, visual: np.ndarray, alive: np.ndarray) -> Iterator[Row]:
    """Cosines and flags of one call."""
    flags = [found["merging_closed"], found["pruning_closed"]]
    yield exact(f"flags{i}", np.asarray(flags), golden[f"flags{i}"])
    if not golden.has(f"similarity{i}"):
        return
    order = found["order"][: visual.sum()]
    yield exact(f"order{i}", np.searchsorted(alive, order), golden[f"order{i}"])
    yield close(f"similarity{i}", found["similarity"][order], golden[f"similarity{i}"], COSINE)


def _whole(golden: Golden, inner: Inner) -> Iterator[Row]:
    """A run over the decoder with decoding."""
    decoder, config = decoder_from(golden), golden.config
    positions = golden["positions"] if golden.has("positions") else None
    got = answer(
        decoder,
        golden["embeds"],
        inner,
        golden["tokens"],
        positions=positions,
        next_position=config["decode_position"],
    )
    valid = np.ones(config["length"], bool)
    for i, (record, state) in enumerate(zip(got.read.cuts, got.read.states, strict=True)):
        found = {name: np.asarray(value)[0] for name, value in record.diagnostics.items()}
        if golden.has(f"similarity{i}"):
            order = found["order"][: len(golden[f"similarity{i}"])]
            yield close(f"run: similarity{i}", found["similarity"][order], golden[f"similarity{i}"], COSINE)
        if golden.has(f"attention{i}"):
            yield close(f"run: attention{i}", found["attention"][valid], golden[f"attention{i}"], COSINE)
        valid = np.asarray(state.valid)[0]
    last = got.read.states[-1]
    yield exact("alive", np.asarray(last.source)[0][valid], golden["alive"])
    yield close("last_hidden", decoder.norm(got.read.hidden[0][valid]), golden["last_hidden"], HIDDEN)
    yield close("step_logits", got.logits, golden["step_logits"], LOGITS)
    yield exact("tokens", got.logits.argmax(axis=-1), golden["tokens"])
    # At the end of the prompt: what is generated is cached in every layer alike.
    read = len(golden["tokens"]) - 1
    yield exact("cache_lengths", got.lengths, golden["cache_lengths"])
    at = np.full((read, config["layers"]), config["decode_position"]) + np.arange(read)[:, None]
    yield exact("decode_positions", got.positions, at)


COMPARERS = [Comparer("framefusion", is_framefusion, compare)]
