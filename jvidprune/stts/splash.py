"""Attention of a flat sequence with the TPU splash kernel: a static band and segment ids."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BLOCK = 128
"""Tile of the kernel: the sequence and the head dimension are filled up to multiples of it."""


@functools.lru_cache
def _kernel(heads: int, slots: int, reach: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    # A segment is no longer than the band is wide, so the band loses nothing and skips the tiles outside it.
    band = masks.LocalMask((slots, slots), (reach, reach), offset=0)
    with jax.ensure_compile_time_eval():
        return kernel.make_splash_mha(
            masks.MultiHeadMask([band] * heads),
            block_sizes=kernel.BlockSizes.get_default(),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )


def splash_attention(
    q: Float[Array, "C H d"], k: Float[Array, "C H d"], v: Float[Array, "C H d"], segment: Int[Array, "C"], longest: int
) -> Float[Array, "C H d"]:
    """Every slot sees the slots of its segment, which are contiguous and at most `longest`; differentiable.

    On a device that is no TPU the kernel is interpreted.

    Args:
      q: queries, unscaled; k and v alike.
      segment: int32; unused slots share one that no token has.
      longest: static.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    slots, heads, dim = q.shape
    more, wider = -slots % _BLOCK, -dim % _BLOCK

    def fill(x: Array) -> Array:
        return jnp.pad(x.swapaxes(0, 1), ((0, 0), (0, more), (0, wider)))

    segment = jnp.pad(segment, (0, more), constant_values=jnp.iinfo(jnp.int32).max)
    run = _kernel(heads, slots + more, longest - 1, jax.default_backend() != "tpu")
    scaled = (q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)
    ids = kernel.SegmentIds(q=segment, kv=segment)
    out = run(fill(scaled), fill(k), fill(v), segment_ids=ids)
    return out[:, :slots, :dim].swapaxes(0, 1).astype(q.dtype)
