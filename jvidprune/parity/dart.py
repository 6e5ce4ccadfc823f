"""DART's golden files: key norms, pivots, the order they are visited in, what each takes, and what is left."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.models.layers import RMSNorm
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.inner_runs import one_prompt
from jvidprune.reducers.dart import DART

NORM, COSINE = 1e-5, 1e-6
_LAYERS = 4


def is_dart(golden: Golden) -> bool:
    """A cut with pivots."""
    return golden.has("norm_weight", "image_pivots", "text_pivots", "pivot_order", "picked", "kept", "index")


def reducer_of(golden: Golden) -> DART:
    """The reducer that a golden config describes."""
    config = golden.config
    if "reduction" in config:
        return DART(dropped=config["reduction"])
    return DART(number=config["keep"])


def compare(golden: Golden) -> Iterator[Row]:
    """Rows of a file."""
    features, start, size = golden["features"], golden.config["start"], len(golden["image_norm"])
    length = len(features)
    inner = one_prompt(reducer_of(golden).inner(0.5), length, start, size, _LAYERS)
    norm = RMSNorm(features.shape[1], 1e-5, dtype=jnp.float32)
    norm.scale.set_value(jnp.asarray(golden["norm_weight"]))

    @jax.jit
    def run(hidden: jax.Array, keys: jax.Array) -> tuple:
        valid = jnp.ones((1, length), bool)
        state = inner.start(hidden[None], jnp.arange(length)[None], valid)
        return inner.cuts[0].apply(state, None, jnp.swapaxes(keys, 0, 1)[None], norm(hidden)[None])[:2]

    state, record = run(jnp.asarray(features), jnp.asarray(golden["keys"]))
    found = {name: np.asarray(value)[0] for name, value in record.diagnostics.items()}
    yield close("image_norm", found["norm"][start : start + size], golden["image_norm"], NORM)
    yield close("text_norm", found["norm"][start + size :], golden["text_norm"], NORM)
    yield exact("image_pivots", found["image"], golden["image_pivots"])
    yield exact("text_pivots", found["text"], golden["text_pivots"])
    yield exact("pivot_order", found["pivots"], golden["pivot_order"])
    each, pivots = found["taken"].sum(axis=1), len(found["pivots"])
    yield exact("per_pivot", each, golden["per_pivot"][None].repeat(pivots))
    order = np.argsort(np.where(found["taken"], found["cosine"], np.inf), axis=1, kind="stable")[:, : each[0]]
    yield exact("picked", order, golden["picked"])
    yield close("picked_cosine", np.take_along_axis(found["cosine"], order, axis=1), golden["picked_cosine"], COSINE)
    yield exact("kept", np.flatnonzero(found["kept"]), golden["kept"])
    valid = np.asarray(state.valid)[0]
    yield exact("index", np.asarray(state.source)[0][valid], golden["index"])
    yield exact("positions", np.asarray(state.positions)[0][valid], golden["index"], "original positions stay")
    if "layer_lengths" in golden.arrays:
        sizes = inner.capacities(length, 0)
        edges = (0, *inner.boundaries, _LAYERS)
        yield exact("layer_lengths", np.repeat(sizes, np.diff(edges)), golden["layer_lengths"])


COMPARERS = [Comparer("dart", is_dart, compare)]
