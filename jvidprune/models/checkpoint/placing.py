"""Parameters onto their devices: slices of tensors as they are stored, or quantised layer by layer."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jvidprune.models.checkpoint.folder import Checkpoint
from jvidprune.models.quantised import is_quantised, quantise_matrices

if TYPE_CHECKING:
    from jvidprune.models.checkpoint.names import Binding

_Index = tuple[slice, ...]


def held_bytes(value: Any, dtype: Any) -> int:
    """Bytes of a parameter in a type; of a quantised one the scales alone are of that type."""
    wide = jnp.dtype(dtype).itemsize
    return sum(leaf.size * min(leaf.dtype.itemsize, wide) for leaf in jax.tree.leaves(value))


def placed(
    binding: "Binding", source: Checkpoint, like: Any, dtype: Any, place: Callable[[tuple[int, ...]], Sharding]
) -> Any:
    """A parameter on its devices.

    Args:
      binding: the parameter and its tensors.
      source: tensors.
      like: the abstract parameter: an array, or a `qwix.QArray` of them.
      dtype: of the parameter, or of its scales.
      place: from the shape of an array of it to where that goes.
    """
    if is_quantised(like):
        return _quantised(binding, source, like, dtype, place)
    sharding, parts = place(binding.shape), []
    for index, devices in _slices(binding.shape, sharding):
        # Each distinct slice is read once, put where it is wanted, and forgotten.
        value = binding.read(source, index, dtype)
        parts += [jax.device_put(value, device) for device in devices]
        del value
    return jax.make_array_from_single_device_arrays(binding.shape, sharding, parts)


def _quantised(
    binding: "Binding", source: Checkpoint, like: Any, dtype: Any, place: Callable[[tuple[int, ...]], Sharding]
) -> Any:
    """A quantised stack of layers: each layer is read whole, as its scales need it, quantised, cut and forgotten.

    The host holds its devices' slices in one byte a number, and wider numbers of one layer alone.
    """
    leaves, structure = jax.tree.flatten(like)
    stacks = [_Stack(leaf, place(leaf.shape)) for leaf in leaves]
    inner = (slice(None),) * (len(binding.shape) - 1)
    for number in range(len(binding.sources)):
        layer = binding.read(source, (slice(number, number + 1), *inner), dtype)
        made = quantise_matrices(jnp.asarray(layer), like.qtype, jnp.dtype(dtype))
        for stack, part in zip(stacks, jax.tree.leaves(made), strict=True):
            stack.put(number, np.asarray(part)[0])
    return jax.tree.unflatten(structure, [stack.array() for stack in stacks])


class _Stack:
    """Slices of a stack of layers, filled layer by layer."""

    def __init__(self, like: Any, sharding: Sharding):
        self.shape, self.sharding, self.slices = like.shape, sharding, _slices(like.shape, sharding)
        self.parts = []
        for index, _ in self.slices:
            sides = [len(range(*part.indices(side))) for part, side in zip(index, like.shape, strict=True)]
            self.parts.append(np.empty(sides, like.dtype))

    def put(self, number: int, layer: np.ndarray) -> None:
        for (index, _), part in zip(self.slices, self.parts, strict=True):
            part[number] = layer[index[1:]]

    def array(self) -> jax.Array:
        laid = [
            jax.device_put(part, device)
            for (_, devices), part in zip(self.slices, self.parts, strict=True)
            for device in devices
        ]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, laid)


def _slices(shape: tuple[int, ...], sharding: Sharding) -> list[tuple[_Index, list[jax.Device]]]:
    """The distinct slices of an array that this process's devices hold, and which ones hold each."""
    whole = tuple(slice(None) for _ in shape)
    found: dict[Any, tuple[_Index, list[jax.Device]]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        index = whole if index is None else index
        found.setdefault(tuple((s.start, s.stop) for s in index), (index, []))[1].append(device)
    return list(found.values())
