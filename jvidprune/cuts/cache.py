"""The KV cache: a plain pytree, one buffer for each segment of decoder layers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.parallel import Axes, constrain, sharding_of

Held = Callable[[int, int, Any], tuple[int, Any]]
"""Layers with keys and values among [start, stop), and the shapes of what one row of the others carries in a type, or
None: a tree of arrays whose first axis are those layers."""

KEY_AXES: Axes = (None, "batch", None, "kv_heads", None)
VALID_AXES: Axes = ("batch", None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheSegment:
    """Keys and values of the layers [start, stop), all with the same slots.

    Attributes:
      k: (L, B, M, K, d) keys after rotary; L is stop - start, less the layers that carry a state instead.
      v: the values alike.
      valid: (B, M) bool; attention reads this, never `length`, so a pruned prompt may be compacted or masked.
      length: () int32, the slot written next.
      shift: (B,) int32 what these layers subtract from the position of a new token, where the tokens that they hold
        were counted anew at a cut; None where they were not.
      start: first layer, static.
      stop: one past the last layer, static.
      route: of a routed layer whose rule routes generated tokens too (`cuts.routing.Route`), or None.
      bias: (B, M) float32 added to the attention scores of each slot, or None.
      state: what layers without keys and values carry (`models.delta.Carried`), each array (layers, B, ...), or None.
    """

    k: Float[Array, "L B M K d"]
    v: Float[Array, "L B M K d"]
    valid: Bool[Array, "B M"]
    length: Int[Array, ""]
    start: int = dataclasses.field(metadata={"static": True})
    stop: int = dataclasses.field(metadata={"static": True})
    shift: Int[Array, "B"] | None = None
    route: Any = None
    bias: Float[Array, "B M"] | None = None
    state: Any = None

    @property
    def capacity(self) -> int:
        """Slots of a row."""
        return self.valid.shape[1]

    def append(self, k: Array, v: Array, valid: Bool[Array, "B S"], state: Any = None) -> "CacheSegment":
        """Writes S slots of all layers; k and v are (L, B, S or more, K, d), `state` what is carried."""
        at = (0, 0, self.length, 0, 0)
        return dataclasses.replace(
            self,
            k=constrain(lax.dynamic_update_slice(self.k, k.astype(self.k.dtype), at), *KEY_AXES),
            v=constrain(lax.dynamic_update_slice(self.v, v.astype(self.v.dtype), at), *KEY_AXES),
            valid=constrain(lax.dynamic_update_slice(self.valid, valid, (0, self.length)), *VALID_AXES),
            length=self.length + valid.shape[1],
            state=self.state if state is None else jax.tree.map(_carried_on, self.state, state),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What decoding needs to go on.

    Attributes:
      segments: buffers in layer order; one without pruning inside the language model, else one between two boundaries,
        each with a capacity of its own.
      position: (B,) int32, position of the next token on every rotary axis; segments may shift it.
      policy: which cached tokens deep layers read (of `cuts.decoding`), or None for all.
    """

    segments: tuple[CacheSegment, ...]
    position: Int[Array, "B"]
    policy: Any = None


def empty_cache(
    *,
    batch: int,
    layers: int,
    held: Held | None = None,
    kv_heads: int,
    head_dim: int,
    capacity: int | tuple[int, ...],
    boundaries: tuple[int, ...] = (),
    dtype: Any,
    mesh: Mesh | None = None,
) -> Cache:
    """A cache with nothing in it.

    Args:
      batch: B.
      layers: decoder layers.
      held: what of them has keys and values, and what the others carry; by default all have.
      kv_heads: K.
      head_dim: d.
      capacity: slots of a row, or one number for each segment.
      boundaries: layers at which a new segment starts, increasing, each in 1..layers-1.
      dtype: of keys and values.
      mesh: over which rows and heads are divided; None means the default device.

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
        count, carried = (stop - start, None) if held is None else held(start, stop, dtype)
        shape = (count, batch, slots, kv_heads, head_dim)
        valid = _zeros((batch, slots), bool, VALID_AXES, mesh)
        k, v = (_zeros(shape, dtype, KEY_AXES, mesh) for _ in "kv")
        state = jax.tree.map(lambda one: _carried(one, batch, mesh), carried)
        segments.append(CacheSegment(k, v, valid, jnp.int32(0), start, stop, state=state))
    return Cache(tuple(segments), jnp.zeros(batch, jnp.int32))


def state_axes(ndim: int) -> Axes:
    """Logical axes of what layers carry: (layers, rows, heads, ...) of states, (layers, rows, ...) of a convolution."""
    return (None, "batch", "delta_heads" if ndim == 5 else None, *(None,) * (ndim - 3))


def _carried_on(old: Array, new: Array) -> Array:
    return constrain(new.astype(old.dtype), *state_axes(new.ndim))


def _carried(one: jax.ShapeDtypeStruct, batch: int, mesh: Mesh | None) -> Array:
    shape = (one.shape[0], batch, *one.shape[1:])
    return _zeros(shape, one.dtype, state_axes(len(shape)), mesh)


def _zeros(shape: tuple[int, ...], dtype: Any, axes: Axes, mesh: Mesh | None) -> Array:
    # Made where they lie: a long prompt's cache need not fit one device.
    return jnp.zeros(shape, dtype, device=None if mesh is None else sharding_of(axes, shape, mesh))
