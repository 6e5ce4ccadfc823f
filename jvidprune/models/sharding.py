"""Where parameters live on a mesh: two short tables, parameter -> logical axes -> mesh axis."""

import re
from collections.abc import Mapping

from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: tuple[tuple[str, str], ...] = (
    ("vocab", "model"),
    ("heads", "model"),
    ("kv_heads", "model"),
    ("mlp", "model"),
    ("vit_heads", "model"),
    ("vit_mlp", "model"),
    ("embed", "fsdp"),
)
"""Logical axis -> mesh axis; an axis that the mesh lacks, or whose units it does not divide, is replicated."""

AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"lm\.embed\.embedding", ("vocab", "embed")),
    (r"lm\.head\.kernel", ("embed", "vocab")),
    (r"lm\.layers\.attn\.q\.kernel", (None, "embed", "heads")),
    (r"lm\.layers\.attn\.q\.bias", (None, "heads")),
    (r"lm\.layers\.attn\.[kv]\.kernel", (None, "embed", "kv_heads")),
    (r"lm\.layers\.attn\.[kv]\.bias", (None, "kv_heads")),
    (r"lm\.layers\.attn\.o\.kernel", (None, "heads", "embed")),
    (r"lm\.layers\.mlp\.(gate|up)\.kernel", (None, "embed", "mlp")),
    (r"lm\.layers\.mlp\.down\.kernel", (None, "mlp", "embed")),
    (r"vision\.blocks\.attn\.[qkv]\.kernel", (None, None, "vit_heads")),
    (r"vision\.blocks\.attn\.[qkv]\.bias", (None, "vit_heads")),
    (r"vision\.blocks\.attn\.o\.kernel", (None, "vit_heads", None)),
    (r"vision\.blocks\.mlp\.(fc1|gate|up)\.kernel", (None, None, "vit_mlp")),
    (r"vision\.blocks\.mlp\.(fc1|gate|up)\.bias", (None, "vit_mlp")),
    (r"vision\.blocks\.mlp\.(fc2|down)\.kernel", (None, "vit_mlp", None)),
    (r"projector\.fc1\.kernel", (None, "embed")),
    (r"projector\.fc2\.kernel", ("embed", None)),
)
"""Parameter path (regular expression on the whole path) -> logical axes of its dimensions; all else is replicated."""


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: Mesh, units: Mapping[str, int]) -> NamedSharding:
    """The sharding of one parameter.

    Args:
      path: module path joined by dots.
      shape: of the parameter.
      mesh: axis names "model" (tensor parallel) and "fsdp" are used, others replicate.
      units: logical axis -> number of indivisible pieces, e.g. the number of heads: a head is never cut.
    """
    axes = next((axes for pattern, axes in AXES if re.fullmatch(pattern, path)), (None,) * len(shape))
    rules, spec = dict(RULES), []
    for size, axis in zip(shape, axes, strict=True):
        name = rules.get(axis or "")
        divisible = name in mesh.shape and units.get(axis or "", size) % mesh.shape[name] == 0
        spec.append(name if divisible and name not in spec else None)
    return NamedSharding(mesh, PartitionSpec(*spec))
