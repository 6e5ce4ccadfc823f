"""Which patches of a frame are scored, kept and pruned together, and which tokens of the language model they make."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.ops.pool import PoolKind, pooled_side, pooling_matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a frame; host constants.

    A window holds the patches of `side` x `side` neighbouring tokens of the language model, so that a kept token never
    reads a pruned patch. Where the pooling of the tower overlaps (27 patches to 14 tokens) windows share patches: such
    a patch stays as long as one of its windows does, and takes the largest score of them as its bias. A patch that no
    token reads goes with the pruned ones.

    Attributes:
      grid: (rows, columns) of windows, in raster order.
      patches: (P, G) patches of each window.
      of_patch: (N, w) windows of each patch, -1 where it has fewer than w.
      of_token: (L,) window of each token.
      token_patches: (L, g) patches that a token is pooled from.
      token_weights: (L, g) float32, their weights.
    """

    grid: tuple[int, int]
    patches: Int[np.ndarray, "P G"]
    of_patch: Int[np.ndarray, "N w"]
    of_token: Int[np.ndarray, "L"]
    token_patches: Int[np.ndarray, "L g"]
    token_weights: Float[np.ndarray, "L g"]

    @property
    def count(self) -> int:
        """P: windows of a frame."""
        return self.patches.shape[0]

    @property
    def patch_count(self) -> int:
        """N: patches of a frame."""
        return self.of_patch.shape[0]

    @property
    def token_count(self) -> int:
        """L: tokens of a frame."""
        return self.of_token.shape[0]

    @property
    def tokens_each(self) -> int:
        """Tokens of a window."""
        return self.token_count // self.count

    def active_bound(self, kept: int, frames: int) -> int:
        """Most patches that can stay when `kept` windows of `frames` frames do."""
        unread = int((self.of_patch < 0).all(axis=1).sum())
        return min(kept * self.patches.shape[1] + unread * frames, frames * self.patch_count)

    def gather(self, x: Float[Array, "F N ..."]) -> Float[Array, "F P G ..."]:
        """The patches of every window."""
        return x[:, self.patches]

    def spread_mask(self, windows: Bool[Array, "F P"]) -> Bool[Array, "F N"]:
        """Patches of which at least one window is set."""
        found = windows[:, np.maximum(self.of_patch, 0)]
        return (found & (self.of_patch >= 0)).any(axis=-1)

    def spread_largest(self, values: Float[Array, "F P"], nothing: float) -> Float[Array, "F N"]:
        """The largest value of the windows of each patch; `nothing` for a patch without any."""
        if self.of_patch.shape[1] == 1 and (self.of_patch >= 0).all():
            return values[:, self.of_patch[:, 0]]
        found = jnp.where(self.of_patch >= 0, values[:, np.maximum(self.of_patch, 0)], -jnp.inf).max(axis=-1)
        return jnp.where((self.of_patch >= 0).any(axis=1), found, nothing)

    def pool(self, x: Float[Array, "K g D"], tokens: Int[Array, "K"]) -> Float[Array, "K D"]:
        """Tokens from their patches, by weighted sum in float32; `tokens` says which token of a frame each row is."""
        weights = jnp.asarray(self.token_weights)[tokens]
        return (x.astype(jnp.float32) * weights[:, :, None]).sum(axis=1).astype(x.dtype)


def _build(
    grid: tuple[int, int], side: int, patches: Int[np.ndarray, "L g"], weights: Float[np.ndarray, "L g"], count: int
) -> Windows:
    rows, columns = grid
    if side < 1 or rows % side or columns % side:
        raise JvidpruneError(f"windows of {side}x{side} tokens do not divide a grid of {rows}x{columns} tokens.")
    row, column = np.divmod(np.arange(rows * columns), columns)
    of_token = row // side * (columns // side) + column // side
    order = np.argsort(of_token, kind="stable")
    joined = patches[order].reshape(-1, side * side * patches.shape[1])
    owners: list[list[int]] = [[] for _ in range(count)]
    for window, members in enumerate(joined):
        for patch in sorted(set(members.tolist())):
            owners[patch].append(window)
    most = max(map(len, owners))
    of_patch = np.array([found + [-1] * (most - len(found)) for found in owners], np.int32)
    tables = (joined.astype(np.int32), of_patch, of_token.astype(np.int32), patches.astype(np.int32))
    return Windows((rows // side, columns // side), *tables, weights.astype(np.float32))


@functools.lru_cache
def raster_windows(side: int, pool: int = 3, window: int = 1) -> Windows:
    """Windows of a square frame in raster order whose tokens are made of pool x pool patches (Molmo2: 27 and 3).

    Args:
      side: patches on a side of the frame.
      pool: patches on a side of a token.
      window: tokens on a side of a window.

    Raises:
      JvidpruneError: a side that is no multiple of the pool; the released code fails there too.
    """
    if pool < 1 or side % pool:
        raise JvidpruneError(f"a frame of {side}x{side} patches has no windows of {pool}x{pool} patches.")
    across = side // pool
    at = np.arange(side * side).reshape(across, pool, across, pool).transpose(0, 2, 1, 3)
    patches = at.reshape(across**2, pool**2)
    return _build((across, across), window, patches, np.full(patches.shape, 1 / pool**2), side * side)


@functools.lru_cache
def pooled_windows(side: int, kind: PoolKind, window: int = 1) -> Windows:
    """Windows that follow the spatial pooling of a LLaVA tower.

    Args:
      side: patches on a side of the tower's square grid.
      kind: pooling behind it; with "max" the weights are not used.
      window: tokens on a side of a window.

    Raises:
      JvidpruneError: windows that do not divide the grid of tokens.
    """
    out = pooled_side(side, kind)
    axis = pooling_matrix(side, "average" if kind == "max" else kind)
    reads = max(1, int((axis > 0).sum(axis=1).max()))
    # The patches with weight, filled up with their own first one at weight 0 where a token reads fewer.
    places = np.argsort(axis == 0, axis=1, kind="stable")[:, :reads]
    weight = np.take_along_axis(axis, places, axis=1)
    places = np.where(weight > 0, places, places[:, :1])
    patches = places[:, None, :, None] * side + places[None, :, None, :]
    weights = weight[:, None, :, None] * weight[None, :, None, :]
    flat = (out * out, reads * reads)
    return _build((out, out), window, patches.reshape(flat), weights.reshape(flat), side * side)


@functools.lru_cache
def merged_windows(rows: int, columns: int, unit: int, window: int = 1) -> Windows:
    """Windows of a Qwen tower, whose patches come merge block by merge block.

    Args:
      rows, columns: of tokens.
      unit: patches of a token; consecutive.
      window: tokens on a side of a window.

    Raises:
      JvidpruneError: windows that do not divide the grid of tokens.
    """
    patches = np.arange(rows * columns * unit).reshape(-1, unit)
    return _build((rows, columns), window, patches, np.full(patches.shape, 1 / unit), patches.size)
