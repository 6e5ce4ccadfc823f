"""The vision towers of Qwen2.5-VL and Qwen3-VL: 2-D rotary, windows, DeepStack, and evidence from the last block."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.models.attention import FRAME_QUERIES, QUERY_CHUNK, attend_all
from jvidprune.models.fused import AttentionKind
from jvidprune.models.layers import GatedMlp, Mlp, RMSNorm, layer_norm, linear, scan_layers, stack
from jvidprune.models.rope import grid_rope_tables, rotate
from jvidprune.ops.saliency import mean_query_attention
from jvidprune.parallel import constrain

_SCORES = 2**27
"""float32 attention scores that may exist at once, half a GiB: bounds the frames of a chunk."""

Grid = tuple[int, int, int]
"""(T, Hp, Wp): grid frames, patch rows and patch columns of a video; always static."""


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """Sizes of a tower.

    Attributes:
      width: Dv.
      mlp: hidden width of the MLP.
      layers: number of blocks.
      heads: attention heads.
      out: width of the mergers' output, that of the language model.
      patch_size: side of a patch in pixels.
      rms: RMSNorms, a gated MLP with biases and a patch embedding without (Qwen2.5-VL) instead of LayerNorms, a plain
        MLP and a patch embedding with bias (Qwen3-VL).
      activation: of the MLP; that of the mergers is always the exact GELU.
      merge: patches on a side of the block that becomes one token.
      pair: video frames of a grid frame.
      channels: of the input.
      window: side in tokens of the windows of blocks outside `full_blocks`; 0 means that all blocks see whole frames.
      full_blocks: blocks that see whole frames although there are windows.
      table_side: side of the learned position table, 0 for none.
      taps: blocks whose outputs become DeepStack levels, increasing.
      eps: of the norms.
      attention: which code computes attention, see `fused.AttentionKind`.
    """

    width: int
    mlp: int
    layers: int
    heads: int
    out: int
    patch_size: int
    rms: bool
    activation: str
    merge: int = 2
    pair: int = 2
    channels: int = 3
    window: int = 0
    full_blocks: tuple[int, ...] = ()
    table_side: int = 0
    taps: tuple[int, ...] = ()
    eps: float = 1e-6
    attention: AttentionKind = "auto"

    @property
    def unit(self) -> int:
        """Patches of a token."""
        return self.merge**2

    @property
    def patch_values(self) -> int:
        """Numbers of a patch."""
        return self.channels * self.pair * self.patch_size**2

    @property
    def sees_frames(self) -> tuple[bool, ...]:
        """For each block, whether it sees whole frames."""
        return tuple(not self.window or block in self.full_blocks for block in range(self.layers))

    @property
    def shallow_block(self) -> int:
        """For AOT, which has no Qwen version: the block with whole frames nearest to its 5 of SigLIP's 26."""
        return self._nearest(min(5, self.layers * 5 // 26))

    @property
    def deep_block(self) -> int:
        """For AOT, alike: the block with whole frames nearest to the last but one, the later one of two."""
        return self._nearest(max(self.layers - 2, 0))

    def _nearest(self, block: int) -> int:
        # In a block of windows attention tells which patch of its window is salient, not which of its frame.
        whole = [b for b, sees in enumerate(self.sees_frames) if sees] or [self.layers - 1]
        return min(whole, key=lambda b: (abs(b - block), -b))

    def chunk(self, grid: Grid) -> int:
        """Frames that go through the tower at once."""
        patches = grid[1] * grid[2]
        queries = patches if patches <= FRAME_QUERIES else QUERY_CHUNK
        return max(1, _SCORES // (self.heads * patches * queries))

    def check_grid(self, grid: Grid, patches: tuple[int, ...]) -> None:
        """JvidpruneError unless `patches` is the shape of a video of this grid."""
        if len(grid) != 3 or min(grid) < 1 or grid[1] % self.merge or grid[2] % self.merge:
            raise JvidpruneError(
                f"a grid is (frames, rows, columns) of patches, rows and columns multiples of {self.merge}, got {grid}."
            )
        expected = (grid[0] * grid[1] * grid[2], self.patch_values)
        if tuple(patches) != expected:
            raise JvidpruneError(f"a video of grid {grid} has patches of shape {expected}, got {tuple(patches)}.")


def patch_coordinates(rows: int, columns: int, merge: int = 2) -> Int[np.ndarray, "M 2"]:
    """(M, 2) row and column of the patches of a frame in the processor's order: merge block by merge block."""
    where = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = where.reshape(rows // merge, merge, columns // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)


def table_weights(
    coordinates: Int[np.ndarray, "M 2"], rows: int, columns: int, side: int
) -> tuple[Int[np.ndarray, "4 M"], Float[np.ndarray, "4 M"]]:
    """Bilinear resampling with aligned corners of a side x side table: rows of the table and their weights, a patch."""

    def axis(index: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        source = index * ((side - 1) / (count - 1)) if count > 1 else np.zeros(len(index))
        # Rounding may lift the last coordinate above the table.
        low = np.minimum(np.floor(source).astype(np.int32), side - 1)
        return low, np.minimum(low + 1, side - 1), source - low

    r0, r1, dr = axis(coordinates[:, 0], rows)
    c0, c1, dc = axis(coordinates[:, 1], columns)
    at = np.stack([r0 * side + c0, r0 * side + c1, r1 * side + c0, r1 * side + c1])
    weight = np.stack([(1 - dr) * (1 - dc), (1 - dr) * dc, dr * (1 - dc), dr * dc])
    return at.astype(np.int32), weight.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class AttentionWindows:
    """Frames of h x w tokens cut into windows of at most side x side tokens, aligned to the top left corner.

    Border windows are filled up, so that all windows have one shape and no mask is larger than a window.

    Attributes:
      height, width: h and w.
      side: of a window, in tokens.
      unit: patches of a token, which stay together.
    """

    height: int
    width: int
    side: int
    unit: int

    @property
    def _cut(self) -> tuple[int, int, int, int]:
        """Window rows, rows of a window, window columns, columns of a window."""
        rows, columns = min(self.side, self.height), min(self.side, self.width)
        return -(-self.height // rows), rows, -(-self.width // columns), columns

    def split(self, x: Array) -> Array:
        """(T, M, ...) to (T * windows, patches of a window, ...)."""
        down, rows, across, columns = self._cut
        rest = x.shape[2:]
        x = x.reshape(-1, self.height, self.width, self.unit, *rest)
        fill = ((0, 0), (0, down * rows - self.height), (0, across * columns - self.width))
        x = jnp.pad(x, (*fill, *((0, 0),) * (x.ndim - 3)))
        x = jnp.swapaxes(x.reshape(-1, down, rows, across, columns, self.unit, *rest), 2, 3)
        return x.reshape(-1, rows * columns * self.unit, *rest)

    def join(self, x: Array) -> Array:
        """The inverse of `split`."""
        down, rows, across, columns = self._cut
        rest = x.shape[2:]
        x = jnp.swapaxes(x.reshape(-1, down, across, rows, columns, self.unit, *rest), 2, 3)
        x = x.reshape(-1, down * rows, across * columns, self.unit, *rest)[:, : self.height, : self.width]
        return x.reshape(-1, self.height * self.width * self.unit, *rest)

    def valid(self, frames: int) -> Bool[Array, "W L"] | None:
        """Which patches of the windows are real, or None if all are."""
        down, rows, across, columns = self._cut
        if (down * rows, across * columns) == (self.height, self.width):
            return None
        return self.split(jnp.ones((frames, self.height * self.width * self.unit), bool))


class GridTables(NamedTuple):
    """What every block reads of the grid: rotary tables (1, M, d) float32, and the windows."""

    cos: Float[Array, "1 M d"]
    sin: Float[Array, "1 M d"]
    windows: AttentionWindows


class BlockOutputs(NamedTuple):
    """What a run of blocks leaves besides the residual, leading axis the blocks.

    Attributes:
      received: (blocks, T, heads, M) float32 attention received by each patch, mean over the queries that see it.
      mean_query: (blocks, T, N) attention of the frame's mean query to the mean keys of the tokens, mean over heads.
      keys: (blocks, T, N, d) float32 keys before the rotary, mean over heads and the patches of a token.
      hidden: (blocks, T, M, Dv) output of each block.
    """

    received: Any = None
    mean_query: Any = None
    keys: Any = None
    hidden: Any = None


class TowerOutputs(NamedTuple):
    """What the tower leaves.

    Attributes:
      hidden: (T, M, Dv) output of the last block.
      taps: (S, T, M, Dv) outputs of the tapped blocks, or None.
      evidence: of the blocks asked for, by their number, without the leading axis.
    """

    hidden: Float[Array, "T M Dv"]
    taps: Any
    evidence: dict[int, BlockOutputs]


def _norm(config: QwenVisionConfig, width: int, *, dtype: Any, rngs: nnx.Rngs) -> RMSNorm | nnx.LayerNorm:
    if config.rms:
        return RMSNorm(width, config.eps, dtype=dtype)
    return layer_norm(width, config.eps, dtype=dtype, rngs=rngs)


class VisionAttention(nnx.Module):
    """Multi-head attention over frames or windows; the kernel holds the columns of all queries, keys, then values."""

    def __init__(self, config: QwenVisionConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.heads, self.unit = config.heads, config.unit
        self.kind: AttentionKind = config.attention
        self.qkv = linear(config.width, 3 * config.width, dtype=dtype, rngs=rngs)
        self.o = linear(config.width, config.width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Array, tables: GridTables, whole: Any, *, tap: bool, attend: Callable[..., Array] | None = None
    ) -> tuple[Array, BlockOutputs]:
        """Output, and with `tap` the evidence of this block.

        `whole` says whether frames are seen whole: a static bool, or a traced one inside a scan over mixed blocks.
        `attend` (q, k, v, whole) takes the place of attention over frames and windows; nothing is tapped then.
        """
        frames, patches, _ = x.shape
        qkv = self.qkv(x).reshape(frames, patches, 3, self.heads, -1)
        # Rotated in float32 and cast back, as the reference does.
        q, k = (rotate(qkv[:, :, i].astype(jnp.float32), tables.cos, tables.sin).astype(x.dtype) for i in (0, 1))
        v = qkv[:, :, 2]
        if attend is not None:
            return self.o(attend(q, k, v, whole).reshape(x.shape)), BlockOutputs()

        def over_frames(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            return attend_all(q, k, v, received=tap, kind=self.kind)

        def over_windows(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            cut = tables.windows
            out, received = attend_all(
                *map(cut.split, (q, k, v)), valid=cut.valid(frames), received=tap, kind=self.kind
            )
            if received is not None:
                received = cut.join(received.swapaxes(1, 2)).swapaxes(1, 2)
            return cut.join(out), received

        if isinstance(whole, bool):
            out, received = (over_frames if whole else over_windows)(q, k, v)
        else:
            out, received = lax.cond(whole, over_frames, over_windows, q, k, v)
        found = BlockOutputs()
        if tap:
            keys = qkv[:, :, 1].astype(jnp.float32).mean(axis=2)
            keys = keys.reshape(frames, patches // self.unit, self.unit, -1).mean(axis=2)
            found = BlockOutputs(received, mean_query_attention(q, k, unit=self.unit), keys)
        return self.o(out.reshape(x.shape)), found


class VisionBlock(nnx.Module):
    """x += attention(norm1(x)); x += mlp(norm2(x))."""

    def __init__(self, config: QwenVisionConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.norm1 = _norm(config, config.width, dtype=dtype, rngs=rngs)
        self.norm2 = _norm(config, config.width, dtype=dtype, rngs=rngs)
        self.attn = VisionAttention(config, dtype=dtype, rngs=rngs)
        if config.rms:
            self.mlp: Any = GatedMlp(config.width, config.mlp, config.activation, bias=True, dtype=dtype, rngs=rngs)
        else:
            self.mlp = Mlp(config.width, config.mlp, config.width, config.activation, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Array, tables: GridTables, whole: Any, *, tap: bool, attend: Callable[..., Array] | None = None
    ) -> tuple[Array, BlockOutputs]:
        """The new residual and what the attention gives."""
        out, found = self.attn(self.norm1(x), tables, whole, tap=tap, attend=attend)
        x = x + out
        return x + self.mlp(self.norm2(x)), found


class Merger(nnx.Module):
    """The patches of a token side by side, then Linear, exact GELU, Linear; the norm comes before or after joining."""

    def __init__(self, config: QwenVisionConfig, *, norm_joined: bool, dtype: Any, rngs: nnx.Rngs):
        joined = config.unit * config.width
        self.norm_joined, self.joined = norm_joined, joined
        self.norm = _norm(config, joined if norm_joined else config.width, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(joined, joined, config.out, "gelu", dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "T M Dv"]) -> Float[Array, "T N D"]:
        """One token for `unit` consecutive patches."""
        if not self.norm_joined:
            x = self.norm(x)
        x = x.reshape(x.shape[0], -1, self.joined)
        return self.mlp(self.norm(x) if self.norm_joined else x)


class GridVit(nnx.Module):
    """Patch embedding, learned positions (Qwen3-VL) and blocks; everything in the processor's patch order.

    Time never enters: frames are a batch. The tower permutes nothing globally; a window block cuts frames into windows
    by reshaping, so attention maps are (patches of a frame)^2 or (patches of a window)^2.
    """

    def __init__(self, config: QwenVisionConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = linear(config.patch_values, config.width, bias=not config.rms, dtype=dtype, rngs=rngs)
        side = config.table_side
        self.pos_embed = nnx.Param(jnp.zeros((side * side, config.width), dtype)) if side else None
        self.blocks = stack(lambda r: VisionBlock(config, dtype=dtype, rngs=r), config.layers, rngs)

    def tables(self, grid: Grid) -> GridTables:
        """Constants of a grid."""
        config, (_, rows, columns) = self.config, grid
        cos, sin = grid_rope_tables(patch_coordinates(rows, columns, config.merge), config.width // config.heads)
        windows = AttentionWindows(rows // config.merge, columns // config.merge, config.window, config.unit)
        return GridTables(cos, sin, windows)

    def positions(self, grid: Grid) -> Float[Array, "M Dv"]:
        """Learned positions of a frame's patches, float32; zeros where the tower has none."""
        config, (_, rows, columns) = self.config, grid
        if self.pos_embed is None:
            return jnp.zeros((rows * columns, config.width), jnp.float32)
        coordinates = patch_coordinates(rows, columns, config.merge)
        at, weight = table_weights(coordinates, rows, columns, config.table_side)
        table = self.pos_embed[...].astype(jnp.float32)
        return (table[at] * weight[:, :, None]).sum(axis=0)

    def embed(self, patches: Float[Array, "T M P"]) -> Float[Array, "T M Dv"]:
        """Patch embeddings before the positions."""
        return self.patch_embed(patches.astype(self.patch_embed.kernel[...].dtype))

    def run(
        self,
        x: Float[Array, "T M Dv"],
        tables: GridTables,
        start: int,
        stop: int,
        *,
        tap: bool = False,
        hidden: bool = False,
        attend: Callable[..., Array] | None = None,
    ) -> tuple[Float[Array, "T M Dv"], BlockOutputs]:
        """Blocks [start, stop) as one scan; `tap` asks every one of them for evidence.

        With `attend`, x is any (rows, slots, Dv) of tokens whose rotary is in the tables, and which see each other is
        up to that function.

        Blocks that see frames and blocks that see windows share the scan: a flag chooses inside, so a tower compiles as
        one block whatever its pattern.
        """
        kinds = self.config.sees_frames[start:stop]
        flags = None if len(set(kinds)) == 1 else jnp.asarray(kinds)

        def body(block: VisionBlock, x: Array, flag: Any) -> tuple[Array, BlockOutputs]:
            x = constrain(x, "frames", None, None)
            x, found = block(x, tables, kinds[0] if flag is None else flag, tap=tap, attend=attend)
            return x, found._replace(hidden=x if hidden else None)

        return scan_layers(self.blocks, start, stop, self.config.layers, body, x, flags)

    def __call__(self, patches: Float[Array, "T M P"], grid: Grid, evidence: tuple[int, ...] = ()) -> TowerOutputs:
        """The last block's output, the tapped ones, and the evidence of the blocks that are named (static)."""
        config, tables = self.config, self.tables(grid)
        x = self.embed(patches)
        x = x + self.positions(grid).astype(x.dtype)
        levels, found, at = [], {}, 0
        for stop in sorted({*(block + 1 for block in (*config.taps, *evidence)), *evidence, config.layers} - {0}):
            asked = stop - 1 in evidence
            x, outputs = self.run(x, tables, at, stop, tap=asked)
            if asked:
                found[stop - 1] = jax.tree.map(lambda a: a[0], outputs)
            if stop - 1 in config.taps:
                levels.append(x)
            at = stop
        return TowerOutputs(x, jnp.stack(levels) if levels else None, found)


class QwenVit(GridVit):
    """The tower of a Qwen-VL model with its mergers."""

    def __init__(self, config: QwenVisionConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.merger = Merger(config, norm_joined=False, dtype=dtype, rngs=rngs)
        build = functools.partial(Merger, config, norm_joined=True, dtype=dtype)
        self.deepstack = stack(lambda r: build(rngs=r), len(config.taps), rngs) if config.taps else None

    def merge(self, hidden: Float[Array, "T M Dv"]) -> Float[Array, "T N D"]:
        """Tokens of the language model, one for `unit` consecutive patches."""
        return self.merger(hidden)

    def merge_taps(self, taps: Float[Array, "S T M Dv"]) -> Float[Array, "S T N D"]:
        """DeepStack levels: each tap through its own merger."""

        def body(merger: Merger, carry: None, x: Array) -> tuple[None, Array]:
            return carry, merger(x)

        assert self.deepstack is not None
        count = len(self.config.taps)
        return scan_layers(self.deepstack, 0, count, count, body, None, taps)[1]
