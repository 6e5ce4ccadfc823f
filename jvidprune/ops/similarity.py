"""Inner products, cosines and distances between tokens, accumulated in float32.

Gram matrices are taken of the raw features and scaled afterwards: normalising first makes XLA:CPU leave its fast
matmul path and costs a (T, N, D) temporary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jvidprune.ops.branch import on_cpu


def dot_f32(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Inner products of rows, (n, d) x (m, d) -> (n, m) float32.

    float32 inputs multiply at highest precision; bf16 inputs multiply natively and accumulate in float32, which equals
    casting first because the products are exact. Where float64 is on, inputs in it stay in it.
    """
    precision = None if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    kind = widened(jnp.promote_types(a.dtype, b.dtype))
    return lax.dot_general(
        a, b, (((a.ndim - 1,), (b.ndim - 1,)), ((), ())), precision=precision, preferred_element_type=kind
    )


def widened(dtype: Any) -> Any:
    """The dtype that sums are made in: float32, or float64 for what is in it already."""
    return jnp.promote_types(dtype, jnp.float32)


def root(squared: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root whose derivative at 0 is 0 and not infinite: padding rows are 0."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), lax.stop_gradient(squared))


def over_frames(fn: Callable, *arrays: Any) -> Any:
    """Maps `fn` over the leading axis of arrays or pytrees: one by one on CPU (the 2-D matmul path), else batched."""
    if on_cpu():
        return lax.map(lambda args: fn(*args), arrays)
    return jax.vmap(fn)(*arrays)


def frame_gram(x: Float[Array, "T N D"]) -> Float[Array, "T N N"]:
    """Inner products of all pairs of tokens inside each frame, float32."""
    return over_frames(lambda frame: dot_f32(frame, frame), x)


def neighbour_gram(x: Float[Array, "T N D"]) -> Float[Array, "T-1 N N"]:
    """Inner products <x[t+1, n], x[t, m]> for t = 0..T-2, indexed [t, n, m], float32."""
    frames = x.shape[0]
    if frames < 2:
        return jnp.zeros((0, x.shape[1], x.shape[1]), jnp.float32)
    if on_cpu():
        return lax.map(lambda t: dot_f32(x[t + 1], x[t]), jnp.arange(frames - 1))
    return jax.vmap(dot_f32)(x[1:], x[:-1])


def squared_norms(x: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Sum of squares of the last axis in float32 (of float64 in it)."""
    x = x.astype(widened(x.dtype))
    return jnp.sum(x * x, axis=-1)


def gram_norms(gram: Float[Array, "... n n"]) -> Float[Array, "... n"]:
    """Squared norms, from the diagonal of a Gram matrix; a masked sum on accelerators, where a gather is slow."""
    if on_cpu():
        return jnp.diagonal(gram, axis1=-2, axis2=-1)
    return jnp.sum(jnp.where(jnp.eye(gram.shape[-1], dtype=bool), gram, 0.0), axis=-1)


def cosine_from_gram(
    gram: Float[Array, "... n m"], left: Float[Array, "... n"], right: Float[Array, "... m"], eps: float = 0.0
) -> Float[Array, "... n m"]:
    """Scales inner products to cosines.

    Args:
      gram: inner products.
      left, right: squared norms of the rows and columns.
      eps: floor of each norm; 0 reproduces reference code that has none (a zero token then gives NaN).
    """
    a, b = root(left), root(right)
    if eps > 0:
        a, b = jnp.maximum(a, eps), jnp.maximum(b, eps)
    return gram / (a[..., :, None] * b[..., None, :])


def distance_from_gram(gram: Float[Array, "... n n"], dim: int) -> Float[Array, "... n n"]:
    """Euclidean distance divided by sqrt(dim) from a Gram matrix; the self-distance is exactly 0."""
    norms = gram_norms(gram)
    squared = jnp.maximum(norms[..., :, None] + norms[..., None, :] - 2.0 * gram, 0.0)
    return root(squared) / jnp.sqrt(jnp.float32(dim))


def frame_pair_inner(x: Float[Array, "T N D"], early: np.ndarray, late: np.ndarray) -> Float[Array, "P N"]:
    """Inner product of each token of frame `late[i]` with the token at the same place of frame `early[i]`, float32.

    Pair by pair on CPU, where XLA would form all products before it sums them: six times the time.
    """

    def pair(a: Array, b: Array) -> Array:
        return jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32), axis=-1)

    if len(late) == 0:
        return jnp.zeros((0, x.shape[1]), jnp.float32)
    if on_cpu():
        return lax.map(lambda at: pair(x[at[0]], x[at[1]]), (jnp.asarray(early), jnp.asarray(late)))
    return pair(x[early], x[late])


def same_position_inner(x: Float[Array, "T N D"]) -> Float[Array, "T-1 N"]:
    """Inner product of each token with the token at the same place one frame later, float32."""
    later = np.arange(1, x.shape[0], dtype=np.int32)
    return frame_pair_inner(x, later - 1, later)


def same_position_cosine(x: Float[Array, "T N D"], eps: float = 1e-8) -> Float[Array, "T-1 N"]:
    """Cosine of each token with the token at the same place one frame later, float32, norms floored at `eps`."""
    norms = root(squared_norms(x))
    if eps > 0:
        norms = jnp.maximum(norms, eps)
    return same_position_inner(x) / (norms[:-1] * norms[1:])


def neighbour_cosine(x: Float[Array, "T D"], eps: float = 0.0) -> Float[Array, "T-1"]:
    """Cosine of each row with the next one, float32, norms floored at `eps`; for frame embeddings."""
    unit = normalise(x, eps)
    return jnp.sum(unit[:-1] * unit[1:], axis=-1)


def normalise(x: Float[Array, "... D"], eps: float = 0.0) -> Float[Array, "... D"]:
    """Unit vectors in float32; `eps` floors the norm, 0 means no floor (a zero row gives NaN)."""
    norm = root(squared_norms(x))
    if eps > 0:
        norm = jnp.maximum(norm, eps)
    return x.astype(widened(x.dtype)) / norm[..., None]
