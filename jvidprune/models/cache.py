"""The KV cache: a plain pytree, one buffer for each segment of decoder layers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheSegment:
    """Keys and values of the layers [start, stop), all with the same slots.

    Attributes:
      k: (stop - start, B, M, K, d) keys after rotary.
      v: the values alike.
      valid: (B, M) bool; attention reads this, never `length`, so a pruned prompt may be compacted or masked.
      length: () int32, the slot written next.
      start: first layer, static.
      stop: one past the last layer, static.
    """

    k: Float[Array, "L B M K d"]
    v: Float[Array, "L B M K d"]
    valid: Bool[Array, "B M"]
    length: Int[Array, ""]
    start: int = dataclasses.field(metadata={"static": True})
    stop: int = dataclasses.field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Slots of a row."""
        return self.valid.shape[1]

    def append(self, k: Array, v: Array, valid: Bool[Array, "B S"]) -> "CacheSegment":
        """Writes S slots of every layer of the segment; k and v are (stop - start, B, S, K, d)."""
        at = (0, 0, self.length, 0, 0)
        return dataclasses.replace(
            self,
            k=lax.dynamic_update_slice(self.k, k.astype(self.k.dtype), at),
            v=lax.dynamic_update_slice(self.v, v.astype(self.v.dtype), at),
            valid=lax.dynamic_update_slice(self.valid, valid, (0, self.length)),
            length=self.length + valid.shape[1],
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What decoding needs to go on.

    Attributes:
      segments: buffers in layer order; one without pruning inside the language model, else one between two boundaries,
        each with a capacity of its own.
      position: (B,) int32, position of the next token on every rotary axis.
      policy: which cached tokens deep layers read (of `models.decode_policy`), or None for all.
    """

    segments: tuple[CacheSegment, ...]
    position: Int[Array, "B"]
    policy: Any = None


def empty_cache(
    *,
    batch: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    capacity: int | tuple[int, ...],
    boundaries: tuple[int, ...] = (),
    dtype: Any,
) -> Cache:
    """A cache with nothing in it.

    Args:
      batch: B.
      layers: decoder layers.
      kv_heads: K.
      head_dim: d.
      capacity: slots of a row, or one number for each segment.
      boundaries: layers at which a new segment starts, increasing, each in 1..layers-1.
      dtype: of keys and values.

    Raises:
      JvidpruneError: boundaries that are not increasing layers, or not one capacity a segment.
    """
    edges = (0, *boundaries, layers)
    capacities = (capacity,) * (len(edges) - 1) if isinstance(capacity, int) else capacity
    if list(edges) != sorted(set(edges)):
        raise JvidpruneError(f"cache boundaries {boundaries} must be increasing layers between 1 and {layers - 1}.")
    if len(capacities) != len(edges) - 1:
        raise JvidpruneError(f"{len(edges) - 1} cache segments need as many capacities, got {len(capacities)}.")
    segments = []
    for start, stop, slots in zip(edges[:-1], edges[1:], capacities, strict=True):
        shape = (stop - start, batch, slots, kv_heads, head_dim)
        valid = jnp.zeros((batch, slots), bool)
        empty = CacheSegment(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), valid, jnp.int32(0), start, stop)
        segments.append(empty)
    return Cache(tuple(segments), jnp.zeros(batch, jnp.int32))
