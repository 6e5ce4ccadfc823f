"""Token saliency from attention: what a tower's pooling head, its mean query or all its queries look at."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_HIGHEST = lax.Precision.HIGHEST


class PoolingHead(NamedTuple):
    """Weights of SigLIP's attention-pooling head, matrices stored (out, in).

    Attributes:
      post_norm_scale, post_norm_bias: (C,) layer norm applied to the hidden states first.
      probe: (C,) the learned query.
      in_weight, in_bias: (3 * C, C), (3 * C,) query, key and value projections stacked.
      out_weight, out_bias: (C, C), (C,).
      norm_scale, norm_bias: (C,) layer norm in front of the MLP.
      fc1_weight, fc1_bias, fc2_weight, fc2_bias: (F, C), (F,), (C, F), (C,).
    """

    post_norm_scale: Float[Array, "C"]
    post_norm_bias: Float[Array, "C"]
    probe: Float[Array, "C"]
    in_weight: Float[Array, "3C C"]
    in_bias: Float[Array, "3C"]
    out_weight: Float[Array, "C C"]
    out_bias: Float[Array, "C"]
    norm_scale: Float[Array, "C"]
    norm_bias: Float[Array, "C"]
    fc1_weight: Float[Array, "F C"]
    fc1_bias: Float[Array, "F"]
    fc2_weight: Float[Array, "C F"]
    fc2_bias: Float[Array, "C"]


def pooling_head_attention(
    hidden: Float[Array, "T M C"], head: PoolingHead, *, heads: int, eps: float = 1e-6
) -> tuple[Float[Array, "T C"], Float[Array, "T M"]]:
    """What SigLIP's own pooling head returns for each frame, and where its probe looks (FastVID, arXiv 2503.11187).

    Args:
      hidden: (T, M, C) output of the last block that runs, before `post_layernorm`.
      head: the weights.
      heads: attention heads; C is a multiple of it.
      eps: of both layer norms.

    Returns:
      pooled: (T, C) float32, the frame embedding; attention: (T, M) float32, mean over heads, each row sums to 1.
    """
    x = _layer_norm(hidden.astype(jnp.float32), head.post_norm_scale, head.post_norm_bias, eps)
    frames, tokens, width = x.shape
    w_query, w_key, w_value = jnp.split(head.in_weight.astype(jnp.float32), 3)
    b_query, b_key, b_value = jnp.split(head.in_bias.astype(jnp.float32), 3)
    query = _linear(head.probe.astype(jnp.float32), w_query, b_query).reshape(heads, -1)
    key = _linear(x, w_key, b_key).reshape(frames, tokens, heads, -1)
    value = _linear(x, w_value, b_value).reshape(frames, tokens, heads, -1)
    logits = jnp.einsum("hd,tmhd->thm", query, key, precision=_HIGHEST) / jnp.sqrt(jnp.float32(width // heads))
    weights = jax.nn.softmax(logits, axis=-1)
    pooled = jnp.einsum("thm,tmhd->thd", weights, value, precision=_HIGHEST).reshape(frames, width)
    return _after_attention(pooled, head, eps), weights.mean(axis=1)


def pooling_head_tokens(
    hidden: Float[Array, "T M C"], head: PoolingHead, *, eps: float = 1e-6
) -> Float[Array, "T M C"]:
    """What SigLIP's pooling head would return of each token if it were alone in its frame: (T, M, C) float32.

    The probe then looks nowhere else, so that a token's value goes through the head's projection, norm and MLP: tokens
    in the space of `pooled` of `pooling_head_attention`, which SigLIP shares with its text tower.

    Args:
      hidden, head, eps: as for `pooling_head_attention`.
    """
    x = _layer_norm(hidden.astype(jnp.float32), head.post_norm_scale, head.post_norm_bias, eps)
    (*_, weight), (*_, bias) = (jnp.split(part.astype(jnp.float32), 3) for part in (head.in_weight, head.in_bias))
    return _after_attention(_linear(x, weight, bias), head, eps)


def _after_attention(x: Float[Array, "... C"], head: PoolingHead, eps: float) -> Float[Array, "... C"]:
    """The head behind its weighted values: projection, norm and MLP."""
    x = _linear(x, head.out_weight, head.out_bias)
    inner = _layer_norm(x, head.norm_scale, head.norm_bias, eps)
    inner = jax.nn.gelu(_linear(inner, head.fc1_weight, head.fc1_bias), approximate=True)
    return x + _linear(inner, head.fc2_weight, head.fc2_bias)


def mean_query_attention(
    query: Float[Array, "T M heads d"], key: Float[Array, "T M heads d"], *, unit: int
) -> Float[Array, "T N"]:
    """Attention of each frame's mean query to the mean keys of its merge units (FastVID on Qwen2.5-VL).

    Args:
      query, key: (T, M, heads, d) of the last block, after the rotary embedding; the `unit` patches of a merge unit
        follow each other.
      unit: patches of a merge unit (4 for a 2x2 merge); M = unit * N.

    Returns:
      (T, N) float32 mean over heads of the softmax, each row sums to 1, in the order of the merge units.
    """
    frames, patches, heads, width = key.shape
    mean_query = query.astype(jnp.float32).mean(axis=1)
    mean_key = key.astype(jnp.float32).reshape(frames, patches // unit, unit, heads, width).mean(axis=2)
    logits = jnp.einsum("thd,tnhd->thn", mean_query, mean_key, precision=_HIGHEST) / jnp.sqrt(jnp.float32(width))
    return jax.nn.softmax(logits, axis=-1).mean(axis=1)


def _linear(x: Array, weight: Array, bias: Array) -> Array:
    return jnp.einsum("...i,oi->...o", x, weight.astype(jnp.float32), precision=_HIGHEST) + bias.astype(jnp.float32)


def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + eps) * scale.astype(jnp.float32) + bias.astype(jnp.float32)
