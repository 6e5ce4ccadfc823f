"""Spatial pooling of token grids as the LLaVA towers do it: 2x2 bilinear (ceil), 2x2 average or maximum (floor)."""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError

PoolKind = Literal["bilinear", "average", "max", "none"]


def pooled_side(side: int, kind: PoolKind) -> int:
    """Side of the pooled grid: 27 -> 14 (bilinear), 13 (average, max), 27 (none).

    Raises:
      JvidpruneError: an unknown kind.
    """
    if kind == "bilinear":
        return -(-side // 2)
    if kind in ("average", "max"):
        return side // 2
    if kind == "none":
        return side
    raise JvidpruneError(f"unknown pooling {kind!r}; known: bilinear, average, max, none.")


def find_pooling(grid: tuple[int, int], pooled: tuple[int, int]) -> PoolKind:
    """The linear pooling that turns one grid into the other; on even sides bilinear and average are the same.

    Raises:
      JvidpruneError: none does.
    """
    kinds: tuple[PoolKind, ...] = ("none", "bilinear", "average")
    results: dict[PoolKind, tuple[int, int]] = {
        kind: (pooled_side(grid[0], kind), pooled_side(grid[1], kind)) for kind in kinds
    }
    for kind, result in results.items():
        if result == tuple(pooled):
            return kind
    options = ", ".join(f"{kind} gives {h}x{w}" for kind, (h, w) in results.items())
    raise JvidpruneError(f"no pooling turns a {grid[0]}x{grid[1]} grid into {pooled[0]}x{pooled[1]}: {options}.")


@functools.lru_cache
def pooling_matrix(side: int, kind: PoolKind) -> np.ndarray:
    """(pooled side, side) float32 weights of one axis, for the linear kinds.

    bilinear: see `bilinear_matrix`; average: mean of two neighbours, an odd last row is dropped.
    """
    out = pooled_side(side, kind)
    if kind == "bilinear":
        return bilinear_matrix(side, out)
    weights = np.zeros((out, side), np.float64)
    if kind == "none":
        np.fill_diagonal(weights, 1.0)
    else:
        for i in range(out):
            weights[i, 2 * i : 2 * i + 2] = 0.5
    return weights.astype(np.float32)


@functools.lru_cache
def bilinear_matrix(side: int, out: int) -> np.ndarray:
    """(out, side) float32 weights of one axis: half-pixel centres, no antialiasing, edges clamped."""
    weights = np.zeros((out, side), np.float64)
    for i in range(out):
        source = max((i + 0.5) * side / out - 0.5, 0.0)
        low = int(source)
        high = min(low + 1, side - 1)
        weights[i, low] += 1.0 - (source - low)
        weights[i, high] += source - low
    return weights.astype(np.float32)


def resize_tokens(x: Float[Array, "h w ..."], size: tuple[int, int]) -> Float[Array, "a b ..."]:
    """A grid of tokens resized bilinearly, see `bilinear_matrix`; float32 arithmetic, input dtype out."""
    if x.shape[:2] == size:
        return x
    rows, columns = (bilinear_matrix(side, out) for side, out in zip(x.shape[:2], size, strict=True))
    wide = x.astype(jnp.float32)
    for axis, weights in enumerate((rows, columns)):
        wide = jnp.moveaxis(jnp.tensordot(weights, wide, (1, axis), precision=lax.Precision.HIGHEST), 0, axis)
    return wide.astype(x.dtype)


def pool_tokens(x: Float[Array, "T M ..."], grid: tuple[int, int], kind: PoolKind) -> Float[Array, "T N ..."]:
    """Pools a raster of tokens (or of one number a token) 2x2 over its grid; float32 arithmetic, input dtype out.

    Args:
      x: (T, h * w) or (T, h * w, D).
      grid: (h, w).
      kind: which pooling.
    """
    if kind == "none":
        return x
    h, w = grid
    if kind == "max":
        cells = x.reshape(x.shape[0], h, w, -1)[:, : h // 2 * 2, : w // 2 * 2]
        cells = cells.reshape(x.shape[0], h // 2, 2, w // 2, 2, -1).max(axis=(2, 4))
        return cells.reshape(x.shape[0], (h // 2) * (w // 2), *x.shape[2:])
    rows, columns = jnp.asarray(pooling_matrix(h, kind)), jnp.asarray(pooling_matrix(w, kind))
    image = x.reshape(x.shape[0], h, w, -1).astype(jnp.float32)
    # Rows first: the larger intermediate is avoided and each einsum is one matmul a frame.
    image = jnp.einsum("ay,tyxd->taxd", rows, image, precision=lax.Precision.HIGHEST)
    image = jnp.einsum("bx,taxd->tabd", columns, image, precision=lax.Precision.HIGHEST)
    return image.reshape(x.shape[0], rows.shape[0] * columns.shape[0], *x.shape[2:]).astype(x.dtype)
