"""FastV's golden files: kept positions of one cut, in all four implementations of its repository."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.inner import Inner
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.reducers.fastv import FastV

SCORE = 1e-6


def is_fastv(golden: Golden) -> bool:
    """One cut by one of the four."""
    return {"variant", "start", "length"} <= golden.config.keys() and golden.has(
        "features", "attention", "index", "score", "calls_of_layer_before"
    )


def reducer_of(golden: Golden) -> FastV:
    """The reducer that a golden config describes; the wrapper's own layer and share are constants of its code."""
    config = golden.config
    variant = config["variant"]
    layer = config.get("layer")
    if variant in ("mask", "inplace"):
        return FastV(variant=variant, count=int(config["count"]), layer=layer)
    return FastV(variant=variant, dropped=float(config.get("rate", 0.5)), layer=layer)


def compare(golden: Golden) -> Iterator[Row]:
    """Scores, kept positions, gathered hidden states; the mask form hides what the others remove."""
    start, length = int(golden.config["start"]), int(golden.config["length"])
    features, attention = golden["features"], golden["attention"]
    slots = np.arange(len(features))
    visual = (slots >= start) & (slots < start + length)
    stages = reducer_of(golden).inner(0.5)
    compact = golden.config["variant"] != "mask"
    inner = Inner.create(stages, visual[None], np.ones((1, len(slots)), bool), layers=10**6, compact=compact)

    @jax.jit
    def run(hidden: jax.Array, weights: jax.Array) -> tuple:
        state = inner.start(hidden[None], jnp.asarray(slots)[None], jnp.ones((1, len(slots)), bool))
        return inner.cuts[0].apply(state, weights[None, :, None])[:2]

    state, record = run(jnp.asarray(features), jnp.asarray(attention))
    yield close("score", np.asarray(record.score)[0][visual], golden["score"], SCORE)
    valid = np.asarray(state.valid)[0]
    index = golden["index"]
    yield exact("index", np.asarray(state.source)[0][valid], index)
    yield exact("positions", np.asarray(state.positions)[0][valid], index, "original positions stay")
    if valid.sum() == len(index):
        yield close("hidden", np.asarray(state.hidden)[0][valid], features[index], 0.0)


COMPARERS = [Comparer("fastv", is_fastv, compare)]
