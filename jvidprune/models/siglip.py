"""The SigLIP vision tower of the LLaVA families, Molmo2 and, as its base, InternVL, with attention from any block."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.models.attention import Attend, attend_all
from jvidprune.models.fused import AttentionKind
from jvidprune.models.layers import Mlp, check_activation, layer_norm, linear, scan_layers, stack
from jvidprune.ops import saliency as ops
from jvidprune.parallel import constrain


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Sizes of a SigLIP tower.

    Attributes:
      width: Dv.
      mlp: hidden width of the MLP.
      layers: blocks that run; the output of the last one, without any norm, is the vision feature.
      heads: attention heads.
      image_size: side of the square input in pixels.
      patch_size: side of a patch; pixels beyond the last whole patch are never read.
      channels: of the input.
      activation: of the MLP, by its name in config.json.
      eps: of the LayerNorms.
      pooling_head: whether the weights of SigLIP's own attention-pooling head are there.
      channels_last: the numbers of a patch come pixel by pixel (Molmo2), not channel by channel.
      attention: which code computes attention, see `fused.AttentionKind`.
      remat: in training, blocks are computed again in the backward pass instead of kept.
    """

    width: int
    mlp: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    channels: int = 3
    activation: str = "gelu_pytorch_tanh"
    eps: float = 1e-6
    pooling_head: bool = False
    channels_last: bool = False
    attention: AttentionKind = "auto"
    remat: bool = False

    @classmethod
    def from_hf(cls, vision: Mapping[str, Any]) -> "SiglipConfig":
        """Reads the vision part of a config.json; missing keys take the SigLIP defaults."""
        return cls(
            width=vision.get("hidden_size", 768),
            mlp=vision.get("intermediate_size", 3072),
            layers=vision.get("num_hidden_layers", 12),
            heads=vision.get("num_attention_heads", 12),
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 16),
            channels=vision.get("num_channels", 3),
            activation=check_activation(vision.get("hidden_act", "gelu_pytorch_tanh")),
            eps=vision.get("layer_norm_eps", 1e-6),
        )

    @property
    def side(self) -> int:
        """n: patches on a side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """M = n^2 tokens of a frame."""
        return self.side**2

    @property
    def shallow_block(self) -> int:
        """AOT's shallow block: 5 of 26; the same share of a smaller tower, floor(5 layers / 26)."""
        return min(5, self.layers * 5 // 26)

    @property
    def deep_block(self) -> int:
        """AOT's deep block: the last but one that runs."""
        return max(self.layers - 2, 0)


class BlockOutputs(NamedTuple):
    """What tapped blocks give, leading axis = blocks of the run (absent for a single tapped block).

    Attributes:
      received: (T, heads, M) float32 attention received by each token, mean over queries; or None.
      keys: (T, M, d) float32 unscaled keys, mean over heads; or None.
      hidden: (T, M, Dv) output of the block; or None.
      paid: (T, M) float32 attention that the class token pays, mean over heads; None where a tower has none.
    """

    received: Any = None
    keys: Any = None
    hidden: Any = None
    paid: Any = None


class SiglipAttention(nnx.Module):
    """Projections of one block, all with biases."""

    def __init__(self, config: SiglipConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.heads = config.heads
        self.kind: AttentionKind = config.attention
        self.q = linear(config.width, config.width, dtype=dtype, rngs=rngs)
        self.k = linear(config.width, config.width, dtype=dtype, rngs=rngs)
        self.v = linear(config.width, config.width, dtype=dtype, rngs=rngs)
        self.o = linear(config.width, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, tap: bool, attend: Attend | None = None) -> tuple[Array, BlockOutputs]:
        """Output, and with `tap` attention received and mean keys.

        `attend` takes the place of attention over whole frames; nothing is tapped then.
        """
        q, k, v = (part(x).reshape(*x.shape[:2], self.heads, -1) for part in (self.q, self.k, self.v))
        if attend is not None:
            return self.o(attend(q, k, v).reshape(x.shape)), BlockOutputs()
        out, received = attend_all(q, k, v, received=tap, kind=self.kind)
        keys = k.astype(jnp.float32).mean(axis=2) if tap else None
        return self.o(out.reshape(x.shape)), BlockOutputs(received, keys)


class SiglipBlock(nnx.Module):
    """x += attention(norm1(x)); x += mlp(norm2(x))."""

    def __init__(self, config: SiglipConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config.width, config.eps, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(config.width, config.eps, dtype=dtype, rngs=rngs)
        self.attn = SiglipAttention(config, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(config.width, config.mlp, config.width, config.activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, tap: bool, attend: Attend | None = None) -> tuple[Array, BlockOutputs]:
        """The new residual and what the attention gives."""
        out, found = self.attn(self.norm1(x), tap=tap, attend=attend)
        x = x + out
        return x + self.mlp(self.norm2(x)), found


class PoolingHead(nnx.Module):
    """SigLIP's attention-pooling head behind `post_layernorm`: one learned probe over the tokens of a frame.

    LLaVA checkpoints never hold it; FastVID takes it from the original tower (FastVID, arXiv 2503.11187).
    """

    def __init__(self, config: SiglipConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.heads, self.eps = config.heads, config.eps
        self.post_norm = layer_norm(config.width, config.eps, dtype=dtype, rngs=rngs)
        self.probe = nnx.Param(jnp.zeros((1, 1, config.width), dtype))
        self.qkv = linear(config.width, 3 * config.width, dtype=dtype, rngs=rngs)
        self.o = linear(config.width, config.width, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(config.width, config.eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(config.width, config.mlp, config.width, config.activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "T M Dv"]) -> tuple[Float[Array, "T Dv"], Float[Array, "T M"]]:
        """The pooled vector of each frame, and the probe's attention, mean over heads; both float32."""
        return ops.pooling_head_attention(x, self._weights(), heads=self.heads, eps=self.eps)

    def tokens(self, x: Float[Array, "T M Dv"]) -> Float[Array, "T M Dv"]:
        """Each token by itself in the space of the pooled vector; float32."""
        return ops.pooling_head_tokens(x, self._weights(), eps=self.eps)

    def _weights(self) -> ops.PoolingHead:
        probe = self.probe[...].reshape(-1)
        attention = (*_affine(self.post_norm), probe, *_affine(self.qkv), *_affine(self.o))
        return ops.PoolingHead(*attention, *_affine(self.norm), *_affine(self.mlp.fc1), *_affine(self.mlp.fc2))


def _affine(layer: nnx.Linear | nnx.LayerNorm) -> tuple[Array, Array]:
    """Weight in the stored layout, (out, in) for a matrix, and bias."""
    weight = layer.kernel[...].T if isinstance(layer, nnx.Linear) else layer.scale[...]  # pyright: ignore
    return weight, layer.bias[...]  # pyright: ignore[reportOptionalSubscript]


class Siglip(nnx.Module):
    """Patch embedding, learned positions and pre-norm blocks; the output is the last block's, not normalised."""

    def __init__(self, config: SiglipConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = linear(config.channels * config.patch_size**2, config.width, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.zeros((config.tokens, config.width), dtype))
        self.blocks = stack(lambda r: SiglipBlock(config, dtype=dtype, rngs=r), config.layers, rngs)
        self.head = PoolingHead(config, dtype=dtype, rngs=rngs) if config.pooling_head else None

    def patches(self, pixels: Float[Array, "T C S S"]) -> Float[Array, "T M Dv"]:
        """Patch embeddings before the positions, raster order.

        Raises:
          JvidpruneError: pixels of another size than the tower's.
        """
        config = self.config
        expected = (config.channels, config.image_size, config.image_size)
        if pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise JvidpruneError(
                f"pixels must have shape (frames, {', '.join(map(str, expected))}), got {pixels.shape}."
            )
        n, p = config.side, config.patch_size
        cut = pixels[:, :, : n * p, : n * p].reshape(-1, config.channels, n, p, n, p)
        order = (0, 2, 4, 3, 5, 1) if config.channels_last else (0, 2, 4, 1, 3, 5)
        rows = cut.transpose(order).reshape(-1, n * n, config.channels * p * p)
        return self.patch_embed(rows.astype(self.pos_embed[...].dtype))

    def embed(self, pixels: Float[Array, "T C S S"]) -> Float[Array, "T M Dv"]:
        """What enters the first block: patches with their positions."""
        return self.patches(pixels) + self.pos_embed[...]

    def run(
        self,
        x: Float[Array, "T M Dv"],
        start: int,
        stop: int,
        *,
        tap: bool = False,
        hidden: bool = False,
        attend: Attend | None = None,
    ) -> tuple[Float[Array, "T M Dv"], BlockOutputs]:
        """Blocks [start, stop) as one scan; `tap` asks every one of them for attention received and keys.

        With `attend`, x is any (rows, slots, Dv) of tokens, and which see each other is up to that function.
        """

        def body(block: Any, x: Array, _: None) -> tuple[Array, BlockOutputs]:
            x, found = block(constrain(x, "frames", None, None), tap=tap, attend=attend)
            return x, found._replace(hidden=x if hidden else None)

        return scan_layers(self.blocks, start, stop, self.config.layers, body, x, remat=self.config.remat)

    def __call__(
        self, pixels: Float[Array, "T C S S"], taps: tuple[int, ...] = (), hidden: tuple[int, ...] = ()
    ) -> tuple[Float[Array, "T M Dv"], dict[int, BlockOutputs]]:
        """Vision features, and attention received and keys of the tapped blocks.

        Args:
          pixels: (T, C, S, S) normalised frames.
          taps: blocks, 0-based and static, that run outside the scans with their attention summed over columns.
          hidden: blocks, 0-based and static, whose outputs are returned.

        Raises:
          JvidpruneError: pixels of the wrong size, or a block the tower does not have.
        """
        x, at, found = self.embed(pixels), 0, {}
        for block in sorted({*taps, *hidden}):
            if not 0 <= block < self.config.layers:
                raise JvidpruneError(f"the tower has blocks 0..{self.config.layers - 1}, not {block}.")
            tap = block in taps
            plain = block if tap else block + 1
            if plain > at:
                x, _ = self.run(x, at, plain)
            outputs = BlockOutputs()
            if tap:
                x, outputs = self.run(x, block, block + 1, tap=True)
            found[block] = jax.tree.map(lambda a: a[0], outputs)
            if block in hidden:
                found[block] = found[block]._replace(hidden=x)
            at = block + 1
        if at < self.config.layers:
            x, _ = self.run(x, at, self.config.layers)
        return x, found
