"""Which code computes attention: the library's own, or `jax.nn.dot_product_attention` with cuDNN's fused kernel."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jvidprune.errors import JvidpruneError

AttentionKind = Literal["auto", "plain", "xla", "cudnn"]
"""How a model is told to compute attention. "auto": cuDNN's fused kernel where it serves, the plain code elsewhere;
"plain": always the plain code, chunked over queries; "xla" and "cudnn": this implementation of
`jax.nn.dot_product_attention` wherever no map, row or mask is needed that it does not give ("xla" holds whole maps)."""

Implementation = Literal["plain", "xla", "cudnn"]


def choose(
    kind: AttentionKind,
    *,
    platform: str,
    capability: float | None,
    dtype: Any,
    head_dim: int,
    simple: bool,
) -> Implementation:
    """The implementation for one call.

    Args:
      kind: the model's switch.
      platform: "gpu", "cpu", "tpu".
      capability: compute capability of an NVIDIA GPU such as 9.0, None on other devices.
      dtype: of queries, keys and values.
      head_dim: d.
      simple: whether the call asks for the output alone, reads no cache, and every key that a real query may see by
        its place is real (a causal prompt padded behind its end, whole frames).

    Raises:
      JvidpruneError: "cudnn" asked for where it cannot run.
    """
    if kind not in get_args(AttentionKind):
        raise JvidpruneError(f"unknown attention {kind!r}; known: {', '.join(get_args(AttentionKind))}.")
    if kind == "plain" or not simple:
        return "plain"
    if kind == "xla":
        return "xla"
    largest = 256 if capability is not None and capability >= 9.0 else 128
    obstacles = {
        f"the device is no NVIDIA GPU of compute capability 8.0 or later ({platform})": platform != "gpu"
        or capability is None
        or capability < 8.0,
        f"{jnp.dtype(dtype).name} is neither bfloat16 nor float16": jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16),
        f"the head dimension {head_dim} is no multiple of 8 up to {largest}": head_dim % 8 or head_dim > largest,
    }
    found = [reason for reason, there in obstacles.items() if there]
    if found and kind == "cudnn":
        raise JvidpruneError(f"attention='cudnn' cannot run: {found[0]}; 'auto' takes the plain code there.")
    return "plain" if found else "cudnn"


def implementation(kind: AttentionKind, q: Any, *, simple: bool) -> Implementation:
    """`choose` for the default device and queries (..., H, d)."""
    device = jax.local_devices()[0]
    try:
        capability = float(getattr(device, "compute_capability", ""))
    except ValueError:
        capability = None
    platform = jax.default_backend()
    return choose(kind, platform=platform, capability=capability, dtype=q.dtype, head_dim=q.shape[-1], simple=simple)


def fused_attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B P K d"],
    v: Float[Array, "B P K d"],
    *,
    which: Literal["xla", "cudnn"],
    causal: bool,
    lengths: Int[Array, "B"] | None = None,
) -> Float[Array, "B S H d"]:
    """`jax.nn.dot_product_attention`; query head j reads key head floor(j / (H / K)).

    Args:
      q: queries.
      k: keys; v alike.
      which: "xla" or "cudnn".
      causal: whether query i sees keys 0..i only.
      lengths: (B,) int32 real tokens of each row, the first ones; None where all are, or where causality hides the
        rest from them.
    """
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, implementation=which, query_seq_lengths=lengths, key_value_seq_lengths=lengths
    )
