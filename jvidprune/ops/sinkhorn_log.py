"""Balanced entropic transport by a fixed number of Sinkhorn updates, columns first, as OTT-Vid defines its plan.

The plan of OTT-Vid (arXiv 2605.11803) is not converged: the number of updates and their order belong to the method.
Zero marginals mark padding; they come back as exact zeros and leave the other entries alone.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def _safe_log(x: Array, floor: float) -> Array:
    return jnp.where(x > 0, jnp.log(jnp.maximum(x, floor)), -jnp.inf)


def _lse(values: Array) -> Array:
    """log-sum-exp over axis -2, which vectorises on CPU where a reduction over the last axis does not."""
    top = jnp.max(values, axis=-2, keepdims=True)
    return jnp.log(jnp.sum(jnp.exp(values - top), axis=-2)) + top[..., 0, :]


def sinkhorn_log(
    cost: Float[Array, "*P n m"],
    a: Float[Array, "*P n"],
    b: Float[Array, "*P m"],
    epsilon: float,
    iterations: int,
) -> Float[Array, "*P n m"]:
    """Transport plan after `iterations` updates in the log domain: v from the columns first, then u from the rows.

    Args:
      cost: finite costs.
      a, b: marginals; 0 marks padding, at least one entry of each must be positive.
      epsilon: entropic regularisation.
      iterations: static or traced number of (v, u) updates.

    Returns:
      exp(u + v - cost / epsilon) in float32; its rows sum to `a` up to rounding.
    """
    log_kernel = -cost / epsilon
    transposed = jnp.swapaxes(log_kernel, -1, -2)
    log_a, log_b = _safe_log(a, 1e-30), _safe_log(b, 1e-30)

    def update(_, uv):
        u, _ = uv
        v = log_b - _lse(u[..., :, None] + log_kernel)
        u = log_a - _lse(v[..., :, None] + transposed)
        return u, v

    start = jnp.where(a > 0, 0.0, -jnp.inf), jnp.zeros_like(b)
    u, v = lax.fori_loop(0, iterations, update, start)
    return jnp.exp(u[..., :, None] + v[..., None, :] + log_kernel)


def sinkhorn_scaling(
    cost: Float[Array, "*P n m"],
    a: Float[Array, "*P n"],
    b: Float[Array, "*P m"],
    epsilon: float,
    iterations: int,
) -> Float[Array, "*P n m"]:
    """The same updates on exp(-cost / epsilon) with scalings, denominators floored at 1e-12; for epsilon above 0.03."""
    kernel = jnp.exp(-cost / epsilon)
    transposed = jnp.swapaxes(kernel, -1, -2)

    def update(_, uv):
        u, _ = uv
        v = b / jnp.maximum(jnp.sum(u[..., :, None] * kernel, axis=-2), 1e-12)
        u = a / jnp.maximum(jnp.sum(v[..., :, None] * transposed, axis=-2), 1e-12)
        return u, v

    start = (a > 0).astype(cost.dtype), jnp.zeros_like(b)
    u, v = lax.fori_loop(0, iterations, update, start)
    return u[..., :, None] * kernel * v[..., None, :]
