"""SparseVLM's golden files: four released versions over a tiny decoder, and the merging alone."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.sparsevlm import recycle
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.inner_runs import answer, decoder_from, one_prompt
from jvidprune.reducers.sparsevlm import SparseVLM

RELATION, HIDDEN, LOGITS = 1e-5, 2e-4, 5e-4
_RAMP = 5e-7


def is_whole(golden: Golden) -> bool:
    """A whole run of one version."""
    return "flavor" in golden.config and golden.has("embeds", "raters", "relation0", "keep0")


def is_recycling(golden: Golden) -> bool:
    """The merging of dropped tokens alone."""
    return "clusters" in golden.config and golden.has("x", "merged", "cluster", "centres", "density", "distance")


def reducer_of(golden: Golden) -> SparseVLM:
    """The reducer that a golden config describes."""
    config = golden.config
    settings = {name: config[name] for name in ("scale", "bias") if name in config}
    if "lists" in config:
        settings["numbers"] = tuple(config["lists"])
    return SparseVLM(config["flavor"], cut_layers=tuple(layer + 1 for layer in config["layers_cut"]), **settings)


def compare_whole(golden: Golden) -> Iterator[Row]:
    """Raters, ratings, what is kept and merged at every cut, and the answer."""
    config, decoder = golden.config, decoder_from(golden)
    start, count, embeds = config["start"], config["count"], golden["embeds"]
    inner = one_prompt(reducer_of(golden).inner(0.5), len(embeds), start, count, config["layers"])
    got = answer(decoder, embeds, inner, golden["tokens"])
    raters = np.flatnonzero(got.read.cuts[0].diagnostics["raters"][0]) - start - count
    yield exact("raters", raters, golden["raters"])
    left = count
    for i, (record, state) in enumerate(zip(got.read.cuts[1:], got.read.states[1:], strict=True)):
        found = {name: np.asarray(value)[0] for name, value in record.diagnostics.items()}
        yield close(f"relation{i}", found["relation"][start : start + left], golden[f"relation{i}"], RELATION)
        yield exact(f"keep{i}", found["keep"][start : start + left], golden[f"keep{i}"])
        if f"merged{i}" in golden.arrays:
            many = len(golden[f"merged{i}"])
            yield close(f"merged{i}", found["merged"][:many], golden[f"merged{i}"], HIDDEN)
            yield exact(f"cluster{i}", found["cluster"][found["there"]], golden[f"cluster{i}"])
            if many > 1:
                yield exact(f"centres{i}", found["centres"][:many], golden[f"centres{i}"])
        valid = np.asarray(state.valid)[0]
        yield close(f"hidden_after{i}", np.asarray(state.hidden)[0][valid], golden[f"hidden_after{i}"], HIDDEN)
        yield exact(f"positions_after{i}", np.asarray(state.positions)[0][valid], golden[f"positions_after{i}"])
        left = int(np.asarray(state.visual)[0].sum())
    last = decoder.norm(got.read.hidden[0][np.asarray(got.read.states[-1].valid)[0]])
    yield close("last_hidden", last, golden["last_hidden"], HIDDEN)
    yield close("step_logits", got.logits, golden["step_logits"], LOGITS)
    yield exact("tokens", got.logits.argmax(axis=-1), golden["tokens"])
    yield exact("cache_lengths", got.lengths, golden["cache_lengths"])
    yield exact("decode_positions", got.positions, golden["decode_positions"])


def compare_recycling(golden: Golden) -> Iterator[Row]:
    """Densities, distances, centres, clusters, means."""
    x, count = golden["x"], golden.config["clusters"]
    rows = jnp.arange(len(x))
    found = jax.jit(recycle)(jnp.asarray(x), jnp.ones(len(x), bool), jnp.int32(count), rows)
    # The file's densities hold a falling ramp in place of noise, which ours do without.
    ramp = _RAMP * np.arange(len(x))[::-1]
    yield close("density", found.density + ramp, golden["density"], RELATION, note="with the file's ramp for noise")
    yield close("distance", found.distance, golden["distance"], RELATION)
    yield exact("centres", found.centres[:count], golden["centres"])
    yield exact("cluster", found.cluster, golden["cluster"])
    yield close("merged", found.merged[:count], golden["merged"], HIDDEN)


COMPARERS = [
    Comparer("sparsevlm", is_whole, compare_whole),
    Comparer("sparsevlm", is_recycling, compare_recycling),
]
