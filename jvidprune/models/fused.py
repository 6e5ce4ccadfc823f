"""Which code computes attention: the library's own, cuDNN's fused kernel on NVIDIA GPUs, the splash kernel on TPUs."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.models.splash import splash_attention
from jvidprune.ops.branch import platform

AttentionKind = Literal["auto", "plain", "by_head", "xla", "cudnn", "splash"]
"""How a model is told to compute attention. "auto": cuDNN's fused kernel or, on TPU, the splash kernel where they
serve, the plain code elsewhere; "plain": always the plain code, chunked over queries; "by_head": `models.by_head`, for
training on a CPU, wherever no map, row or bias is needed and no row holds several examples; "xla" and "cudnn": this
implementation of `jax.nn.dot_product_attention` wherever no map, row or mask is needed that it does not give ("xla"
holds whole maps); "splash": likewise the TPU kernel, interpreted on other devices (slow: for tests)."""

Implementation = Literal["plain", "xla", "cudnn", "splash"]

_SHORTEST = 128
"""Sequences of fewer slots gain nothing from the splash kernel, whose tiles are as long."""


def choose(
    kind: AttentionKind,
    *,
    platform: str,
    capability: float | None,
    dtype: Any,
    head_dim: int,
    simple: bool,
    slots: int = _SHORTEST,
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
      slots: of a sequence.

    Raises:
      JvidpruneError: "cudnn" asked for where it cannot run.
    """
    if kind not in get_args(AttentionKind):
        raise JvidpruneError(f"unknown attention {kind!r}; known: {', '.join(get_args(AttentionKind))}.")
    if kind in ("plain", "by_head") or not simple:
        return "plain"
    if kind in ("xla", "splash"):
        return kind
    if kind == "auto" and platform == "tpu":
        return "splash" if slots >= _SHORTEST else "plain"
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
    """`choose` for the device that programs are traced for and queries (..., S, H, d)."""
    device = jax.local_devices()[0]
    try:
        capability = float(getattr(device, "compute_capability", ""))
    except ValueError:
        capability = None
    return choose(
        kind,
        platform=platform(),
        capability=capability,
        dtype=q.dtype,
        head_dim=q.shape[-1],
        simple=simple,
        slots=q.shape[-3],
    )


def fused_attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B P K d"],
    v: Float[Array, "B P K d"],
    *,
    which: Literal["xla", "cudnn", "splash"],
    causal: bool,
    lengths: Int[Array, "B"] | None = None,
) -> Float[Array, "B S H d"]:
    """`jax.nn.dot_product_attention`, or the splash kernel; query head j reads key head floor(j / (H / K)).

    Args:
      q: queries.
      k: keys; v alike.
      which: "xla", "cudnn" or "splash".
      causal: whether query i sees keys 0..i only.
      lengths: (B,) int32 real tokens of each row, the first ones; None where all are, or where causality hides the
        rest from them.
    """
    if which == "splash":
        segment = None if lengths is None else (jnp.arange(q.shape[1]) >= lengths[:, None]).astype(jnp.int32)
        return splash_attention(q, k, v, sight="causal" if causal else "full", segment=segment)
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, implementation=which, query_seq_lengths=lengths, key_value_seq_lengths=lengths
    )
