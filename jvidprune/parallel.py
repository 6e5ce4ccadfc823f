"""Many devices: one mesh, sharding tables, and helpers that lay parameters and batches out on it.

A mesh has three axes. "data" holds copies of the parameters, "fsdp" holds slices of them that are put together where
they are needed, and both divide batches, frames and clips; "tensor" divides heads and hidden widths. Everything is
computed by XLA from the shardings of parameters and inputs: models stay free of collectives.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.texts import whole_number

AXES = ("data", "fsdp", "tensor")
"""Axes of every mesh, the slowest first: neighbours on "tensor" are neighbours in the machine."""

Axes = tuple[str | None, ...]
"""Logical axis of each dimension of an array, None where nothing divides it."""

ShardingTable = tuple[tuple[str, Axes], ...]
"""(pattern of a parameter's dotted path, logical axes of its dimensions) of a family; all else is on every device."""

RULES: dict[str, tuple[str, ...]] = {
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": ("tensor",),
    "delta_heads": ("tensor",),
    "delta_key_heads": ("tensor",),
    "vit_heads": ("tensor",),
    "vit_mlp": ("tensor",),
    "embed": ("fsdp",),
    "vit_embed": ("fsdp",),
    "batch": ("data", "fsdp"),
    "frames": ("data", "fsdp"),
}
"""Logical axis -> mesh axes, the same for all families; an axis that is not here is never divided."""

DECODER_AXES: ShardingTable = (
    (r"lm\.embed\.embedding", ("vocab", "embed")),
    (r"lm\.head\.kernel", ("embed", "vocab")),
    (r"lm\.layers\.attn\.q\.kernel", (None, "embed", "heads")),
    (r"lm\.layers\.attn\.q\.bias", (None, "heads")),
    (r"lm\.layers\.attn\.[kv]\.kernel", (None, "embed", "kv_heads")),
    (r"lm\.layers\.attn\.[kv]\.bias", (None, "kv_heads")),
    (r"lm\.layers\.attn\.o\.kernel", (None, "heads", "embed")),
    (r"lm\.layers\.mlp\.(gate|up)\.kernel", (None, "embed", "mlp")),
    (r"lm\.layers\.mlp\.down\.kernel", (None, "mlp", "embed")),
)
EXPERT_AXES: ShardingTable = (
    # Whole experts: the rows of each go to the device that holds it.
    (r"lm\.layers\.mlp\.router\.kernel", (None, "embed", None)),
    (r"lm\.layers\.mlp\.gate_up", (None, "experts", "embed", None)),
    (r"lm\.layers\.mlp\.down", (None, "experts", None, "embed")),
)
DELTA_AXES: ShardingTable = (
    (r"lm\.linear\.delta\.[qk]\.kernel", (None, "embed", "delta_key_heads")),
    (r"lm\.linear\.delta\.[vzab]\.kernel", (None, "embed", "delta_heads")),
    (r"lm\.linear\.delta\.taps_[qk]", (None, None, "delta_key_heads")),
    (r"lm\.linear\.delta\.taps_v", (None, None, "delta_heads")),
    (r"lm\.linear\.delta\.(a_log|dt_bias)", (None, "delta_heads")),
    (r"lm\.linear\.delta\.o\.kernel", (None, "delta_heads", "embed")),
    (r"lm\.linear\.mlp\.(gate|up)\.kernel", (None, "embed", "mlp")),
    (r"lm\.linear\.mlp\.down\.kernel", (None, "mlp", "embed")),
)
TOWER_AXES: ShardingTable = (
    (r"vision\.blocks\.attn\.[qkv]\.kernel", (None, "vit_embed", "vit_heads")),
    (r"vision\.blocks\.attn\.[qkv]\.bias", (None, "vit_heads")),
    # Queries, keys and values side by side: cut in pieces, a device would hold a part of one of them alone.
    (r"vision\.blocks\.attn\.qkv\.kernel", (None, "vit_embed", None)),
    (r"vision\.blocks\.attn\.o\.kernel", (None, "vit_heads", "vit_embed")),
    (r"vision\.blocks\.mlp\.(fc1|gate|up)\.kernel", (None, "vit_embed", "vit_mlp")),
    (r"vision\.blocks\.mlp\.(fc1|gate|up)\.bias", (None, "vit_mlp")),
    (r"vision\.blocks\.mlp\.(fc2|down)\.kernel", (None, "vit_mlp", "vit_embed")),
)


# --- the mesh --------------------------------------------------------------------------------------------------------


def make_mesh(*, data: int | None = None, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor).

    Args:
      data: copies of the parameters; None takes the devices that fsdp and tensor leave.
      fsdp: slices of the parameters.
      tensor: pieces of heads and hidden widths.
      devices: which ones; by default those of all processes.

    Raises:
      JvidpruneError: sizes below 1, or a product that is not the number of devices.
    """
    found = list(jax.devices() if devices is None else devices)
    sizes = ({} if data is None else {"data": data}) | {"fsdp": fsdp, "tensor": tensor}
    for name, size in sizes.items():
        if size < 1:
            raise JvidpruneError(f"axis {name} of a mesh must be at least 1, got {size}.")
    if data is None:
        data = len(found) // (fsdp * tensor)
    if data * fsdp * tensor != len(found):
        what = ", ".join(f"{name}={size}" for name, size in sizes.items())
        need = "a multiple of " if "data" not in sizes else ""
        count = math.prod(sizes.values())
        raise JvidpruneError(f"a mesh of {what} needs {need}{count} devices, but there are {len(found)}.")
    shape, kinds = (data, fsdp, tensor), (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(shape, AXES, axis_types=kinds, devices=found)
    except NotImplementedError:
        # An axis may take a part of one of the machine's, as tensor=4 does on 16 x 16 chips.
        return Mesh(create_device_mesh(shape, found, allow_split_physical_axes=True), AXES, axis_types=kinds)


def read_mesh(text: str) -> dict[str, int]:
    """Sizes for `make_mesh` from "data=2,tensor=4"; "" and "auto" leave everything to data.

    Raises:
      JvidpruneError: something that is no axis with a whole number.
    """
    sizes: dict[str, int] = {}
    for part in text.split(",") if text.strip() not in ("", "auto") else ():
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES or (count := whole_number(size)) is None or name in sizes:
            raise JvidpruneError(f"a mesh is written as in data=2,fsdp=2,tensor=2, got {quoted(repr(text))}.")
        sizes[name] = count
    return sizes


def check_mesh(family: str, units: Mapping[str, int], mesh: Mesh) -> None:
    """Refuses a mesh that would cut an attention head.

    Key and value heads, and the heads of towers, that do not divide are held whole by every device instead, as usual
    with grouped queries.

    Args:
      family: name of the model's, for the message.
      units: of the family's config: logical axis -> pieces.
      mesh: from `make_mesh`.

    Raises:
      JvidpruneError: the language model's heads are not divisible by "tensor".
    """
    check_sizes(family, units, mesh.shape)


def check_sizes(family: str, units: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """`check_mesh` for a mesh of which only the sizes of its axes are known."""
    tensor, heads = sizes.get("tensor", 1), units.get("heads", 0)
    if heads % tensor:
        allowed = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise JvidpruneError(f"tensor={tensor} does not divide the {heads} heads of this {family}; allowed: {allowed}.")


# --- parameters ------------------------------------------------------------------------------------------------------


def dotted(path: tuple[Any, ...]) -> str:
    """A key path of JAX as module names joined by dots, without the `value` that nnx variables end in.

    Values and scales of a quantised parameter both go by the parameter's name.
    """
    return re.sub(r"\.value(\.(qvalue|scale))?$", "", jax.tree_util.keystr(path, simple=True, separator="."))


def axes_of(path: str, table: ShardingTable) -> Axes | None:
    """Logical axes of a parameter, or of what an optimiser keeps for it; None where the table names none.

    Args:
      path: dotted; what stands before the model's own path (`0.`, `mu.`) does not matter.
      table: of the model's family.
    """
    return next((axes for pattern, axes in table if re.search(rf"(^|\.){pattern}$", path)), None)


def sharding_of(axes: Axes, shape: Sequence[int], mesh: Mesh, units: Mapping[str, int] | None = None) -> NamedSharding:
    """The sharding of an array by the logical axes of its dimensions.

    A dimension is divided over the first of its mesh axes that its pieces are divisible by, and no mesh axis is used
    twice.

    Args:
      axes: one a dimension.
      shape: of the array.
      mesh: from `make_mesh`.
      units: logical axis -> number of indivisible pieces, e.g. heads: a head is never cut.
    """
    return NamedSharding(mesh, _spec(axes, shape, dict(mesh.shape), units or {}))


def _spec(axes: Axes, shape: Sequence[int], sizes: Mapping[str, int], units: Mapping[str, int]) -> PartitionSpec:
    spec: list[Any] = []
    used: set[str] = set()
    for size, axis in zip(shape, axes, strict=True):
        names = tuple(name for name in RULES.get(axis or "", ()) if sizes.get(name, 1) > 1 and name not in used)
        unit = units.get(axis or "", size)
        while names and (size % (pieces := math.prod(sizes[name] for name in names)) or unit % pieces):
            names = names[:-1]
        used.update(names)
        spec.append(names if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*spec)


def share(
    path: str,
    shape: Sequence[int],
    sizes: Mapping[str, int],
    table: ShardingTable,
    units: Mapping[str, int] | None = None,
) -> int:
    """Into how many pieces a mesh of these sizes cuts a parameter; see `parameter_sharding`."""
    axes = axes_of(path, table)
    if axes is None or len(axes) != len(shape):
        return 1
    names = [name for entry in _spec(axes, shape, sizes, units or {}) for name in _names(entry)]
    return math.prod(sizes[name] for name in names)


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def parameter_sharding(
    path: str, shape: Sequence[int], mesh: Mesh, table: ShardingTable, units: Mapping[str, int] | None = None
) -> NamedSharding:
    """The sharding of one parameter; see `axes_of` and `sharding_of`."""
    axes = axes_of(path, table)
    if axes is None or len(axes) != len(shape):
        axes = (None,) * len(shape)
    return sharding_of(axes, shape, mesh, units)


def state_shardings(tree: Any, mesh: Mesh, table: ShardingTable, units: Mapping[str, int] | None = None) -> Any:
    """Shardings of everything in a tree of parameters, leaf by leaf.

    Args:
      tree: a module, its `nnx.State`, gradients, an optimiser's state around any of them, or the abstract version of
        these (`jax.eval_shape`); what the family's table does not name is on every device.
      mesh: from `make_mesh`.
      table: of the model's family.
      units: of the family's config (`config.units`).

    Returns:
      The same tree with a `NamedSharding` in place of each array, e.g. for the `out_shardings` of a jit that makes it.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return parameter_sharding(dotted(path), np.shape(leaf), mesh, table, units)

    return jax.tree_util.tree_map_with_path(one, tree)


def shard_state(tree: Any, mesh: Mesh, table: ShardingTable, units: Mapping[str, int] | None = None) -> Any:
    """A tree of parameters laid out on a mesh; every process passes the same values.

    Args:
      tree: of arrays, see `state_shardings`.
      mesh, table, units: as there.
    """
    return jax.tree.map(place, tree, state_shardings(tree, mesh, table, units))


def place(value: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, laid out so that each device gets its slice alone."""
    if isinstance(value, jax.Array) and (sharding.is_fully_addressable or not value.is_fully_addressable):
        return jax.device_put(value, sharding)
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


# --- batches and activations -----------------------------------------------------------------------------------------


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, ndim: int = 1, axis: int = 0) -> NamedSharding:
    """Rows over "data" and "fsdp".

    Args:
      mesh: from `make_mesh`.
      ndim: dimensions of the array.
      axis: which one holds the rows.
    """
    spec: list[Any] = [None] * ndim
    spec[axis] = RULES["batch"]
    return NamedSharding(mesh, PartitionSpec(*spec))


def rows_over(mesh: Mesh) -> int:
    """Into how many pieces a batch is divided."""
    return math.prod(mesh.shape.get(name, 1) for name in RULES["batch"])


def shard_batch(batch: Any, mesh: Mesh, *, axis: int = 0, local: bool = False) -> Any:
    """A batch laid out over "data" and "fsdp".

    Args:
      batch: tree of arrays whose dimension `axis` holds the rows; scalars go to every device.
      mesh: from `make_mesh`.
      axis: of the rows.
      local: each process passes its own rows alone, in the order of processes; by default all pass the whole batch.

    Raises:
      JvidpruneError: rows that do not divide.
    """
    pieces = rows_over(mesh)

    def one(value: Any) -> jax.Array:
        shape = np.shape(value)
        if not shape:
            return place(value, replicated(mesh))
        rows = shape[axis] * (jax.process_count() if local else 1)
        if rows % pieces:
            sizes = ", ".join(f"{name}={mesh.shape[name]}" for name in RULES["batch"])
            raise JvidpruneError(f"a batch of {rows} rows cannot be divided over {sizes}.")
        sharding = batch_sharding(mesh, len(shape), axis)
        if local:
            return jax.make_array_from_process_local_data(sharding, np.asarray(value))
        return place(value, sharding)

    return jax.tree.map(one, batch)


def constrain(x: Any, *axes: str | None) -> Any:
    """Tells XLA how an activation lies on the mesh in use (`with jax.set_mesh(mesh)`); without one, x itself.

    Args:
      x: array in a traced function.
      *axes: logical axis of each dimension, of `RULES`; None on all of them puts the array on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(axes, x.shape, _free(mesh), {}))


_mapped = jax.make_user_context(())


def map_rows(run: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.vmap` over rows, such as clips, that the mesh in use divides over "data" and "fsdp".

    Inside, what divides the rows divides nothing else: a clip's frames lie where the clip does.

    Args:
      run: of one row.
    """

    def over(*rows: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        count = jax.tree.leaves(rows)[0].shape[:1]
        names = () if mesh.empty else _names(_spec(("batch",), count, _free(mesh), {})[0])
        if not names:
            return jax.vmap(run)(*rows)
        with _mapped((*_mapped.value, *names)):
            return jax.vmap(run, spmd_axis_name=names)(*rows)

    return over


def _free(mesh: Any) -> dict[str, int]:
    """Sizes of the axes of a mesh; 1 of those that `map_rows` divides rows over here."""
    return {name: 1 if name in _mapped.value else size for name, size in mesh.shape.items()}


def each_piece(run: Callable[..., Any], given: Sequence[Axes]) -> Callable[..., Any]:
    """A function of arrays that every device of the mesh in use computes of its own pieces; without a mesh, itself.

    For kernels, which XLA cannot divide. Nothing is exchanged inside: pieces are independent of each other.

    Args:
      run: of arrays, one result, whose dimensions are those of the first argument and are divided alike.
      given: logical axes of the dimensions of each argument.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run

    def over(*arrays: Any) -> Any:
        specs = [_spec(axes, x.shape, _free(mesh), {}) for axes, x in zip(given, arrays, strict=True)]
        return jax.shard_map(run, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)(*arrays)

    return over


def summed_pieces(run: Callable[..., Any], given: Sequence[Axes], over: str) -> Callable[..., Any]:
    """`each_piece` of a function whose result is a sum over the pieces of a logical axis, which is added up.

    Args:
      run: of arrays, one result, whose dimensions are those of the first argument and are divided alike.
      given: logical axes of the dimensions of each argument.
      over: the logical axis that the sum goes over; the first argument does not have it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run

    def summed(*arrays: Any) -> Any:
        specs = [_spec(axes, x.shape, _free(mesh), {}) for axes, x in zip(given, arrays, strict=True)]
        entries = (zip(axes, spec, strict=True) for axes, spec in zip(given, specs, strict=True))
        names = {name for pairs in entries for axis, entry in pairs if axis == over for name in _names(entry)}

        def one(*pieces: Any) -> Any:
            out = run(*pieces)
            return jax.lax.psum(out, tuple(sorted(names))) if names else out

        return jax.shard_map(one, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)(*arrays)

    return summed


def on_every_device(tree: Any) -> Any:
    """`constrain` for a tree of which every device of the mesh in use gets the whole."""
    return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), tree)


def pieces(axis: str) -> int:
    """Into how many pieces the mesh in use divides a logical axis; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(_free(mesh).get(name, 1) for name in RULES[axis])


def mesh_of(model: Any) -> Mesh | None:
    """The mesh that the parameters of a model lie on; None for a single device, and inside a traced function."""
    first = next(iter(jax.tree.leaves(model)), None)
    if not isinstance(first, jax.Array) or isinstance(first, Tracer):
        return None
    mesh = getattr(first.sharding, "mesh", None)
    return mesh if isinstance(mesh, Mesh) else None


@contextlib.contextmanager
def on_mesh_of(model: Any) -> Iterator[Mesh | None]:
    """What is called inside runs on the mesh of a model's parameters."""
    mesh = mesh_of(model)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        yield mesh
