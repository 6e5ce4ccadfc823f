"""What the rows of one reduction hold of a clip whose object masks are known; each measure is a sum over a sum.

Sums of clips are added up, so that a clip counts by what it holds and a bootstrap over clips resamples both.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from jvidprune.procedural.masks import Masks

VERBATIM = 0.99
"""Share of a row's weight from which on it is called a copy of one token."""

HALF = 0.5
"""Share of a row's weight from which on it is said to show an object."""


class ProbeMeasure(NamedTuple):
    """A number of the probe.

    Attributes:
      short: head of its column in tables.
      text: what it is, as a sentence.
    """

    short: str
    text: str


MEASURES: Mapping[str, ProbeMeasure] = {
    "object_kept": ProbeMeasure("objects kept", "Share of the tokens that show an object which are rows of their own."),
    "object_merged": ProbeMeasure("objects merged", "Share of these that went into rows with others."),
    "rare_kept": ProbeMeasure("rare kept", "The same of the tokens of tiny objects: rows of their own."),
    "rare_merged": ProbeMeasure("rare merged", "The same of the tokens of tiny objects: merged."),
    "needle_kept": ProbeMeasure(
        "needle kept", "The same of the tokens of an object shown in one frame: rows of their own."
    ),
    "needle_merged": ProbeMeasure("needle merged", "The same of the tokens of an object shown in one frame: merged."),
    "found": ProbeMeasure("found", "Share of the objects that hold at least half of the weight of some row."),
    "purity": ProbeMeasure(
        "purity", "Mean over merged rows of the largest share of weight of one object or the background."
    ),
    "object_purity": ProbeMeasure("objects' purity", "The same over the merged rows with some weight in an object."),
    "reconstruction": ProbeMeasure(
        "rebuilt",
        "Share of the features' variance that the nearest row explains: 1 - sum |x - nearest row|^2 / sum |x - mean|^2 "
        "over the tokens of a clip, Euclidean, no fitting; below 0 the mean token would do better.",
    ),
    "object_reconstruction": ProbeMeasure("objects rebuilt", "The same over the tokens that show an object."),
    "attribute": ProbeMeasure(
        "what",
        "Share of right answers to: which shape does the object of this colour have, and which colour that of this "
        "shape; read from the row that shows the colour (or shape) most. Asked where one object alone has it.",
    ),
    "position": ProbeMeasure(
        "where",
        "Share of the objects whose place, read from the row that shows their colour most, is off by a fifth of the "
        "image's side at most.",
    ),
    "count": ProbeMeasure(
        "count", "Share of the clips whose number of objects the read-out of the rows tells exactly."
    ),
}
"""Everything that the probe measures, in the order of its tables; shares lie in 0..1."""

Sums = dict[str, tuple[float, float]]
"""Measure -> what is counted, and of how many; nothing of what a clip does not have."""


class ProbedRows(NamedTuple):
    """The rows of one reduction.

    Attributes:
      tokens: (K, D) float32.
      index: (K,) place of each row, frame * N + token.
      slot: (T * N,) row that each token went to, -1 where it was dropped.
      weights: (K, S) weight of each source in each row.
      off: (T * N,) squared distance of each token to the nearest row (`nearest`).
    """

    tokens: Float32[np.ndarray, "K D"]
    index: Int[np.ndarray, "K"]
    slot: Int[np.ndarray, "M"]
    weights: Float32[np.ndarray, "K S"]
    off: Float32[np.ndarray, "M"]

    def shares(self) -> Float[np.ndarray, "K S"]:
        """Weights as shares of their row's."""
        size = np.abs(self.weights)
        return size / np.maximum(size.sum(1, keepdims=True), 1e-12)


def token_of(grid: tuple[int, int], tokens: tuple[int, int], steps: int) -> Int[np.ndarray, "S"]:
    """The token that each source lies in: itself, or for cells before pooling the one over its centre."""
    (rows, columns), (high, wide) = grid, tokens
    y, x = (
        np.minimum(((np.arange(fine) + 0.5) * coarse / fine).astype(np.int64), coarse - 1)
        for fine, coarse in ((rows, high), (columns, wide))
    )
    inside = (y[:, None] * wide + x).ravel()
    return (np.arange(steps)[:, None] * (high * wide) + inside).ravel()


def kept_and_merged(
    rows: ProbedRows, place: Int[np.ndarray, "S"]
) -> tuple[Bool[np.ndarray, "M"], Bool[np.ndarray, "M"]]:
    """Tokens that some row is a copy of, and those that went into rows with others.

    Args:
      rows: of a reduction.
      place: from `token_of`.
    """
    total = len(rows.slot)
    own = np.where(place[None] == rows.index[:, None], rows.shares(), 0.0).sum(1)
    kept = np.zeros(total, bool)
    kept[rows.index[own >= VERBATIM]] = True
    return kept, (rows.slot >= 0) & ~kept


def measure(
    features: Float32[np.ndarray, "M D"], rows: ProbedRows, coarse: Masks, fine: Masks, place: Int[np.ndarray, "S"]
) -> Sums:
    """The measures that need no read-out.

    Args:
      features: every token of the clip.
      rows: what a method left of them.
      coarse: masks on the tokens.
      fine: masks on the sources of the rows' weights: the same, or the cells before pooling.
      place: token of each source.
    """
    sums: Sums = {}
    kept, merged = kept_and_merged(rows, place)
    for name, role in (("object", None), ("rare", "tiny"), ("needle", "needle")):
        some = coarse.of(role)
        if some.any():
            sums[f"{name}_kept"] = float(kept[some].sum()), float(some.sum())
            sums[f"{name}_merged"] = float(merged[some].sum()), float(some.sum())
    # (K, objects + 1) share of each row's weight, the background last.
    shares = rows.shares()
    labels = np.eye(len(fine.things) + 1)[fine.owner]
    parts = shares @ labels
    visible = coarse.shown.any(1)
    if visible.any():
        found = (parts[:, :-1] >= HALF).any(0) & visible
        sums["found"] = float(found.sum()), float(visible.sum())
    several = shares.max(1, initial=0.0) < VERBATIM
    if several.any():
        purest = parts.max(1)
        sums["purity"] = float(purest[several].sum()), float(several.sum())
        mixed = several & (parts[:, :-1].sum(1) > 1 - VERBATIM)
        if mixed.any():
            sums["object_purity"] = float(purest[mixed].sum()), float(mixed.sum())
    apart = np.square(features - features.mean(0)).sum(1, dtype=np.float64)
    for name, some in (("reconstruction", slice(None)), ("object_reconstruction", coarse.of())):
        whole = float(apart[some].sum())
        if whole > 0:
            sums[name] = whole - float(rows.off[some].sum(dtype=np.float64)), whole
    return sums


@jax.jit
def nearest(x: Float[Array, "M D"], rows: Float[Array, "R K D"], valid: Bool[Array, "R K"]) -> Float[Array, "R M"]:
    """Squared distance of each token to the nearest valid row of every ratio, float32; infinite without any row.

    Args:
      x: tokens.
      rows, valid: of a sweep.
    """
    x, middle = x.astype(jnp.float32), jnp.mean(x.astype(jnp.float32), 0)

    def one(rows: Array, valid: Array) -> Array:
        # Around the mean token little is lost to rounding, and the one that is chosen is measured again.
        around = rows.astype(jnp.float32) - middle
        inner = jnp.matmul(x - middle, around.T, precision=lax.Precision.HIGHEST)
        far = jnp.where(valid, jnp.sum(around * around, -1), jnp.inf) - 2 * inner
        best = around[jnp.argmin(far, -1)]
        return jnp.where(jnp.any(valid), jnp.sum(jnp.square(x - middle - best), -1), jnp.inf)

    return lax.map(lambda pair: one(*pair), (rows, valid))
