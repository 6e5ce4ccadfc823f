"""Types of parameters and activations: what a checkpoint says of itself, and what a user may ask for."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.checkpoint.folder import Checkpoint

DTypeName = Literal["float32", "bfloat16", "float16"]
AUTO = "auto"
_ALIASES = {"half": "float16", "float": "float32"}


def is_auto(dtype: Any) -> bool:
    """Whether the checkpoint is to say it."""
    return isinstance(dtype, str) and dtype == AUTO


def read_dtype(dtype: Any) -> jnp.dtype:
    """A type by its name, or as numpy or JAX know it.

    Raises:
      JvidpruneError: another one than float32, bfloat16 or float16.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in get_args(DTypeName):
        allowed = ", ".join((AUTO, *get_args(DTypeName)))
        raise JvidpruneError(f"dtype must be one of {allowed}, got {quoted(str(dtype))}.")
    return found


def declared_dtype(raw: Mapping[str, Any]) -> jnp.dtype | None:
    """The type that a config.json names (`dtype`, `torch_dtype`), by itself or for its language model or tower.

    None where it names none, or leaves it to the tensors ("auto").

    Raises:
      JvidpruneError: a type that models do not run in.
    """
    for part in (raw, raw.get("text_config"), raw.get("vision_config")):
        for key in ("dtype", "torch_dtype"):
            value = part.get(key) if isinstance(part, Mapping) else None
            if value is None or value == AUTO:
                continue
            name = value.removeprefix("torch.") if isinstance(value, str) else None
            name = _ALIASES.get(str(name), name)
            if name not in get_args(DTypeName):
                raise JvidpruneError(
                    f"config.json gives {key} {quoted(value)}, which models do not run in; name one of "
                    f"{', '.join(get_args(DTypeName))} as dtype."
                )
            return jnp.dtype(name)
    return None


def stored_dtype(checkpoint: Checkpoint) -> jnp.dtype:
    """The type that most numbers of a checkpoint are stored in; float32 for 64 bits, which JAX does not hold."""
    numbers: Counter[str] = Counter()
    for name in sorted(checkpoint.names):
        if checkpoint.is_float(name):
            numbers[checkpoint.dtype(name).name] += int(np.prod(checkpoint.shape(name)))
    most = numbers.most_common(1)
    return jnp.dtype("float32" if not most or most[0][0] == "float64" else most[0][0])
