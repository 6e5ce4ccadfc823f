"""InternViT: SigLIP's way through blocks with a class token, scaled branches, and norms by choice."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.models.attention import attend_all
from jvidprune.models.fused import AttentionKind
from jvidprune.models.layers import Mlp, RMSNorm, layer_norm, linear, stack
from jvidprune.models.siglip import BlockOutputs, Siglip, SiglipConfig

_QK_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class InternVitConfig(SiglipConfig):
    """Sizes of an InternViT; `tokens` counts patches, to which every block adds the class token.

    Attributes:
      rms: the blocks have RMSNorms (the 6B tower), else LayerNorms (the 300M tower).
      qk_norm: queries and keys are normed over all heads at once (the 6B tower).
      qkv_bias: biases on queries, keys and values (the 300M tower).
      final_norm: a LayerNorm acts on what leaves the last block.
      merge: patches on a side of the block that becomes one token.
    """

    rms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    final_norm: bool = False
    merge: int = 2

    @property
    def unit(self) -> int:
        """Patches of a token."""
        return self.merge**2


class InternVitAttention(nnx.Module):
    """Projections of one block."""

    def __init__(self, config: InternVitConfig, *, dtype: Any, rngs: nnx.Rngs):
        width, bias = config.width, config.qkv_bias
        self.heads = config.heads
        self.kind: AttentionKind = config.attention
        self.q = linear(width, width, bias=bias, dtype=dtype, rngs=rngs)
        self.k = linear(width, width, bias=bias, dtype=dtype, rngs=rngs)
        self.v = linear(width, width, bias=bias, dtype=dtype, rngs=rngs)
        self.o = linear(width, width, dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(width, _QK_EPS, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(width, _QK_EPS, dtype=dtype) if config.qk_norm else None

    def __call__(self, x: Array, *, tap: bool, attend: Any = None) -> tuple[Array, BlockOutputs]:
        """Output, and with `tap` attention received, mean keys and what the class token, slot 0, pays."""
        del attend  # of STTS, which has no slot for the class token
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.reshape(*part.shape[:2], self.heads, -1) for part in (q, k, v))
        out, received = attend_all(q, k, v, received=tap, kind=self.kind)
        found = BlockOutputs()
        if tap:
            scores = jnp.einsum("thd,tshd->ths", q[:, 0], k, preferred_element_type=jnp.float32)
            paid = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).mean(axis=1)
            found = BlockOutputs(received, k.astype(jnp.float32).mean(axis=2), paid=paid)
        return self.o(out.reshape(x.shape)), found


class InternVitBlock(nnx.Module):
    """x += scale1 * attention(norm1(x)); x += scale2 * mlp(norm2(x))."""

    def __init__(self, config: InternVitConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (_norm(config, dtype=dtype, rngs=rngs) for _ in range(2))
        self.attn = InternVitAttention(config, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(config.width, config.mlp, config.width, config.activation, dtype=dtype, rngs=rngs)
        self.scale1, self.scale2 = (nnx.Param(jnp.full(config.width, 0.1, dtype)) for _ in range(2))

    def __call__(self, x: Array, *, tap: bool, attend: Any = None) -> tuple[Array, BlockOutputs]:
        """The new residual and what the attention gives."""
        out, found = self.attn(self.norm1(x), tap=tap, attend=attend)
        x = x + self.scale1[...].astype(x.dtype) * out
        return x + self.scale2[...].astype(x.dtype) * self.mlp(self.norm2(x)), found


def _norm(config: InternVitConfig, *, dtype: Any, rngs: nnx.Rngs) -> RMSNorm | nnx.LayerNorm:
    if config.rms:
        return RMSNorm(config.width, config.eps, dtype=dtype)
    return layer_norm(config.width, config.eps, dtype=dtype, rngs=rngs)


class InternVit(Siglip):
    """Class token and patches with learned positions, then blocks; slot 0 of a frame is the class token."""

    def __init__(self, config: InternVitConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = linear(config.channels * config.patch_size**2, config.width, dtype=dtype, rngs=rngs)
        # In the shapes that checkpoints have.
        self.class_token = nnx.Param(jnp.zeros((1, 1, config.width), dtype))
        self.pos_embed = nnx.Param(jnp.zeros((1, config.tokens + 1, config.width), dtype))
        self.blocks = stack(lambda r: InternVitBlock(config, dtype=dtype, rngs=r), config.layers, rngs)
        self.post_norm = layer_norm(config.width, config.eps, dtype=dtype, rngs=rngs) if config.final_norm else None
        self.head = None

    def embed(self, pixels: Float[Array, "T C S S"]) -> Float[Array, "T S Dv"]:
        """What enters the first block: the class token and M patches, with their positions."""
        patches = self.patches(pixels)
        first = jnp.broadcast_to(self.class_token[...].astype(patches.dtype), (len(patches), 1, patches.shape[-1]))
        return jnp.concatenate([first, patches], axis=1) + self.pos_embed[...]

    def leave(self, hidden: Float[Array, "T S Dv"]) -> Float[Array, "T S Dv"]:
        """What the last block leaves, normed where the checkpoint has a norm there."""
        return hidden if self.post_norm is None else self.post_norm(hidden)
