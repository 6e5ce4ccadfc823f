"""Molmo2's connector: attention that pools windows of patches, then a gated projector."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from jvidprune.models.layers import GatedMlp, linear
from jvidprune.models.molmo2.config import ConnectorConfig

_MASKED = -1e30


Windows = Int32[np.ndarray, "N P"] | Int32[Array, "N P"]
"""Patches of windows, -1 for none: static of frames, traced of pictures, which have them in every size."""


def window_means(x: Float[Array, "T M ..."], patches: Windows, *, masked: bool = True) -> Float[Array, "T N ..."]:
    """The mean of what the patches of each window carry.

    Args:
      x: one number or vector a patch.
      patches: from `windows.window_patches`.
      masked: over the patches that are there; False counts missing ones as zeros.
    """
    there = jnp.asarray(patches >= 0).reshape(*patches.shape, *(1,) * (x.ndim - 2))
    values = jnp.where(there, x[:, patches.clip(0)], 0)
    count = (patches >= 0).sum(axis=1).clip(1) if masked else np.full(len(patches), patches.shape[1])
    return values.sum(axis=2) / jnp.asarray(count, x.dtype).reshape(-1, *(1,) * (x.ndim - 2))


class Connector(nnx.Module):
    """One query a window, the mean of its patches, reads the patches; the projector maps what it finds (2601.10611)."""

    def __init__(self, config: ConnectorConfig, vision: int, out: int, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        wide, width = vision * len(config.blocks), config.width
        self.q = linear(wide, width, dtype=dtype, rngs=rngs)
        self.k = linear(wide, width, dtype=dtype, rngs=rngs)
        self.v = linear(wide, width, dtype=dtype, rngs=rngs)
        self.o = linear(width, width, dtype=dtype, rngs=rngs)
        self.mlp = GatedMlp(width, config.mlp, config.activation, out=out, dtype=dtype, rngs=rngs)

    def pool(self, x: Float[Array, "T M W"], patches: Windows) -> Float[Array, "T N Dc"]:
        """What the pooling attention makes of each window.

        Without the mask a missing patch is a zero vector, of which the projections leave their biases.

        Args:
          x: (T, M, W) joined outputs of the tower's blocks.
          patches: from `windows.window_patches`.
        """
        heads, there = self.config.heads, jnp.asarray(patches >= 0)
        query = self.q(window_means(x, patches, masked=self.config.masked))
        query = query.reshape(*query.shape[:2], heads, -1)
        windows = jnp.where(there[..., None], x[:, patches.clip(0)], 0)
        keys, values = (
            part(windows).reshape(*windows.shape[:3], heads, -1)  # pyright: ignore
            for part in (self.k, self.v)
        )
        scores = jnp.einsum("tnhd,tnphd->tnhp", query, keys, preferred_element_type=jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        if self.config.masked:
            scores = jnp.where(there[:, None], scores, _MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        found = jnp.einsum("tnhp,tnphd->tnhd", weights, values)
        return self.o(found.reshape(*found.shape[:2], -1))

    def __call__(self, x: Float[Array, "T M W"], patches: Windows) -> Float[Array, "T N D"]:
        """Tokens in the width of the language model."""
        return self.mlp(self.pool(x, patches))
