"""Attention by JAX's splash kernel for TPUs: prompts, whole frames and packed tokens, without maps of scores in memory.

On a device that is no TPU the kernel is interpreted, which is slow: for tests.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jvidprune import parallel
from jvidprune.ops.branch import platform

_LANES = 128
"""Slots and head dimensions are filled up to multiples of it."""

_BLOCK = 512
"""Largest tile of queries and of keys."""

_EMPTY = jnp.iinfo(jnp.int32).max
"""Segment of slots that fill a sequence up."""

Sight = Literal["causal", "full"] | int
"""Which keys a query may see by their places alone: those up to its own, all, or so many to either side."""


def splash_attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    *,
    sight: Sight,
    segment: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H d"]:
    """Attention of B sequences; differentiable. Scores are float32, the output has the dtype of q.

    On a mesh (`with jax.set_mesh(mesh)`) every device computes its own rows and heads: the kernel is no program that
    XLA could divide.

    Args:
      q: queries, unscaled; query head j reads key head floor(j / (H / K)).
      k: keys; v alike.
      sight: what a query sees by place. A band loses nothing where a segment is contiguous and no longer than it.
      segment: int32; a slot sees slots of its own segment alone. None where all of a row are one.
    """
    slots, heads = q.shape[1:3]
    if slots % _LANES and sight != "causal" and segment is None:
        # What fills the sequence up must not be seen; behind the end of a causal one it is not.
        segment = jnp.zeros(q.shape[:2], jnp.int32)
    if parallel.pieces("heads") > 1 and k.shape[2] % parallel.pieces("heads"):
        # Devices hold query heads of several key heads, or of a part of one.
        k, v = (jnp.repeat(x, heads // k.shape[2], axis=2) for x in (k, v))
    run = functools.partial(_run, sight=sight)
    given = (q, k, v) if segment is None else (q, k, v, segment)
    spread = ("batch", None, "heads", None), ("batch", None, "kv_heads", None), ("batch", None, "kv_heads", None)
    return parallel.each_piece(run, (*spread, ("batch", None))[: len(given)])(*given)


def _run(q: Array, k: Array, v: Array, segment: Array | None = None, *, sight: Sight) -> Array:
    """The same on one device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    slots, heads, dim = q.shape[1:]
    block = min(_BLOCK, -(-slots // _LANES) * _LANES)
    more, wider = -slots % block, -dim % _LANES

    def fill(x: Array) -> Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, more), (0, wider)))

    scaled = (q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)
    run = _kernel(heads, slots + more, block, sight, platform() != "tpu")
    if segment is None:
        out = jax.vmap(lambda q, k, v: run(q, k, v))(fill(scaled), fill(k), fill(v))
    else:
        ids = jnp.pad(segment, ((0, 0), (0, more)), constant_values=_EMPTY)
        out = jax.vmap(lambda q, k, v, ids: run(q, k, v, segment_ids=kernel.SegmentIds(q=ids, kv=ids)))(
            fill(scaled), fill(k), fill(v), ids
        )
    return out[:, :, :slots, :dim].swapaxes(1, 2).astype(q.dtype)


def _kernel(heads: int, slots: int, block: int, sight: Sight, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = slots, slots
    if sight == "causal":
        mask: Any = masks.CausalMask(shape)
    elif sight == "full":
        mask = masks.FullMask(shape)
    else:
        # Tiles outside the band are never computed.
        mask = masks.LocalMask(shape, (sight, sight), offset=0)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
