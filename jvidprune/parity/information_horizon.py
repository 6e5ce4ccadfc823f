"""Golden files of the random cut behind a selector, of dropping everything, and of the information probe."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.rules import BlockOnly
from jvidprune.models.decoder import Decoder
from jvidprune.models.prefill import read_prompt
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.inner_runs import GoldenAnswer, answer, decoder_from, one_prompt
from jvidprune.reducers.information_horizon import InformationHorizon
from jvidprune.tokens import InnerStage, Kept

PROBABILITY, LOGITS, NORM = 1e-5, 5e-4, 1e-4
_DRAWN = 1
"""Block of the tokens that the reference drew."""


def is_schedule(golden: Golden) -> bool:
    """A cut by draw, or of everything, behind a selector."""
    return {"layer_list", "saves", "stage"} <= golden.config.keys()


def is_probe(golden: Golden) -> bool:
    """All windows of one layer."""
    return golden.has("window_probability", "reference_logits", "informed_keep")


def reducer_of(golden: Golden) -> InformationHorizon:
    """The reducer that a golden config describes; a selector before the model has done its work."""
    config = golden.config
    (first, last), (early, late) = config["layer_list"], config["saves"]
    return InformationHorizon(
        host="dart" if first else "none",
        then="drop" if config["stage"] == "VTW" else "random",
        layer=last,
        host_layer=first or None,
        numbers=(early, late),
        depth=config["layers"],
    )


def _given(stage: InnerStage) -> InnerStage:
    """The last stage with the reference's draw, which has no seed, in place of ours."""
    return dataclasses.replace(stage, rule=BlockOnly(), seed=_DRAWN)


def _block(golden: Golden, kept: np.ndarray) -> np.ndarray:
    return np.isin(np.arange(len(golden["embeds"])), kept)[None].astype(np.int32) * _DRAWN


def compare_schedule(golden: Golden) -> Iterator[Row]:
    """Rows of a schedule."""
    config, decoder = golden.config, decoder_from(golden)
    start, length, last = config["start"], len(golden["embeds"]), config["layer_list"][1]
    *before, deep = reducer_of(golden).inner(0.9)
    options = {"block": _block(golden, golden[f"keep{last}"])}
    inner = one_prompt([*before, _given(deep)], length, start, config["count"], config["layers"], **options)
    got = answer(decoder, golden["embeds"], inner, golden["tokens"])
    if before:
        found = {name: np.asarray(value)[0] for name, value in got.read.cuts[0].diagnostics.items()}
        yield close("dart_key_norm", found["norm"], golden["dart_key_norm"], NORM)
        yield exact("dart_image_pivots", found["image"], golden["dart_image_pivots"])
        yield exact("dart_text_pivots", found["text"], golden["dart_text_pivots"])
        yield exact("dart_pivot_order", found["pivots"], golden["dart_pivot_order"])
        yield exact("dart_kept", np.flatnonzero(found["kept"]), golden["dart_kept"])
    for cut, state in zip(inner.cuts, got.read.states, strict=True):
        kept = np.asarray(state.valid)[0]
        yield exact(f"keep{cut.layer}", np.asarray(state.source)[0][kept], golden[f"keep{cut.layer}"])
        yield exact(f"positions{cut.layer}", np.asarray(state.positions)[0][kept], golden[f"positions{cut.layer}"])
    yield from _answer_rows(golden, decoder, got, "")


def _answer_rows(golden: Golden, decoder: Decoder, got: GoldenAnswer, prefix: str) -> Iterator[Row]:
    last = decoder.norm(got.read.hidden[0])
    yield close(f"{prefix}last_hidden", last, golden[f"{prefix}last_hidden"], LOGITS)
    yield close(f"{prefix}step_logits", got.logits, golden[f"{prefix}step_logits"], LOGITS)
    yield exact(f"{prefix}tokens", got.logits.argmax(axis=-1), golden[f"{prefix}tokens"])
    yield exact(f"{prefix}cache_lengths", got.lengths, golden[f"{prefix}cache_lengths"])
    yield exact(f"{prefix}decode_positions", got.positions, golden[f"{prefix}decode_positions"])


def compare_probe(golden: Golden) -> Iterator[Row]:
    """Rows of the probe: every window alone, nothing, everything, and the tokens of the best windows."""
    config, decoder, size = golden.config, decoder_from(golden), golden.config["size"]
    start, count, layers, label = (config[name] for name in ("start", "count", "layers", "label"))
    embeds, side = golden["embeds"], round(config["count"] ** 0.5)
    length, across = len(embeds), side // size
    places = np.arange(count)
    column, row = places % side // size, places // side // size
    window = np.zeros((1, length), np.int32)
    window[0, start : start + count] = column * across + row
    stage = InnerStage(config["layer"], BlockOnly(), Kept(number=size * size))
    inner = one_prompt([stage], length, start, count, layers, block=window)

    @jax.jit
    def tried(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        only = dataclasses.replace(inner, cuts=(dataclasses.replace(inner.cuts[0], seed=seed),))
        cache = decoder.empty_cache(1, only.capacities(length, 0), only.boundaries)
        where, valid = jnp.arange(length)[None], jnp.ones((1, length), bool)
        read = read_prompt(decoder, embeds[None], where, valid, cache, inner=only)
        return read.logits[0], read.states[0].positions[0]

    with jax.default_matmul_precision("highest"):
        logits, positions = jax.vmap(tried)(jnp.arange(across * across))
    chance = np.asarray(jax.nn.softmax(logits, axis=-1))[:, label].reshape(across, across)
    yield close("window_probability", chance, golden["window_probability"], PROBABILITY)
    for x, y in ((1, 1), (3, 5)):
        at = (x - 1) * across + y - 1
        yield close(f"logits_{x}_{y}", logits[at], golden[f"logits_{x}_{y}"], LOGITS)
        yield exact(f"positions_{x}_{y}", positions[at], golden[f"positions_{x}_{y}"])
    nothing = one_prompt([dataclasses.replace(stage, kept=Kept(0.0), seed=-1)], length, start, count, layers)
    reference = answer(decoder, embeds, nothing).logits[0]
    yield close("reference_logits", reference, golden["reference_logits"], LOGITS)
    alone = jax.nn.softmax(reference)[label]
    yield close("reference_probability", alone, golden["reference_probability"], PROBABILITY)
    whole = answer(decoder, embeds, one_prompt([], length, start, count, layers)).logits[0]
    yield close("whole_logits", whole, golden["whole_logits"], LOGITS)
    scores = chance[column, row]
    yield close("informed_scores", scores, golden["informed_scores"], PROBABILITY)
    best = np.sort(np.argsort(-scores, kind="stable")[: config["keep"]]) + start
    informed = InnerStage(config["layer"], BlockOnly(), Kept(number=config["keep"]), seed=_DRAWN)
    inner = one_prompt([informed], length, start, count, layers, block=_block(golden, best))
    got = answer(decoder, embeds, inner, golden["informed_tokens"])
    kept = np.asarray(got.read.states[0].source)[0][np.asarray(got.read.states[0].valid)[0]]
    yield exact("informed_keep", kept, golden["informed_keep"])
    yield from _answer_rows(golden, decoder, got, "informed_")


COMPARERS = [
    Comparer("information_horizon", is_schedule, compare_schedule),
    Comparer("information_horizon", is_probe, compare_probe),
]
