"""What a model's config may hold: numbers of the right type, in range, that fit each other.

A config.json comes from anywhere. What it makes of a config is checked here, once for all families, before anything is
built, traced or allocated from it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_type_hints

from jvidprune.errors import JvidpruneError, quoted

SECTIONS = (
    "text_config",
    "vision_config",
    "vision_config_override",
    "vit_config",
    "adapter_config",
    "rope_scaling",
    "rope_parameters",
)
"""Keys of a config.json whose values are objects, at any depth."""

LARGEST: Mapping[str, int] = {
    "layers": 4096,
    "stored_blocks": 4096,
    "heads": 4096,
    "kv_heads": 4096,
    "head_dim": 1 << 16,
    "width": 1 << 20,
    "mlp": 1 << 22,
    "out": 1 << 20,
    "vocab": 1 << 28,
    "image_size": 1 << 14,
    "patch_size": 1 << 10,
    "channels": 64,
    "merge": 64,
    "pair": 64,
    "max_positions": 1 << 30,
}
"""Fields that are at least 1, and the most that is believed; far beyond every published model."""

_INT = 1 << 31


def check_sections(raw: Mapping[str, Any]) -> None:
    """Refuses a config.json whose sections are no objects.

    Raises:
      JvidpruneError: names the section and what it is instead.
    """
    for name in SECTIONS:
        section = raw.get(name)
        if section is None:
            continue
        if not isinstance(section, dict):
            raise JvidpruneError(f"{name} in config.json must be an object, not {quoted(section)}.")
        check_sections(section)


def check_sizes(config: Any, part: str = "") -> None:
    """Refuses a config with impossible values.

    Args:
      config: a dataclass; those inside it are checked too.
      part: name of the config inside a larger one.

    Raises:
      JvidpruneError: names the field, its value and what is allowed.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{part}{field.name}"
        if dataclasses.is_dataclass(value):
            check_sizes(value, f"{name}.")
        elif isinstance(value, tuple):
            for number in value:
                _check_int(name, number, 0, _INT)
        elif hints[field.name] is int:
            largest = LARGEST.get(field.name)
            _check_int(name, value, *((-_INT, _INT) if largest is None else (1, largest)))
        elif hints[field.name] is float:
            _check_float(name, value)
        elif hints[field.name] is bool and not isinstance(value, bool):
            raise JvidpruneError(f"config.json gives {name} = {quoted(value)}, which must be true or false.")
        elif hints[field.name] is str and not isinstance(value, str):
            raise JvidpruneError(f"config.json gives {name} = {quoted(value)}, which must be a text.")
    _check_heads(config, part)


def _check_int(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        wanted = f"a whole number from {low} to {high}" if low > -_INT else "a whole number of 32 bits"
        raise JvidpruneError(f"config.json gives {name} = {quoted(value)}, which must be {wanted}.")


def _check_float(name: str, value: Any) -> None:
    # Norms and rotary bases: all are above 0 but rates, which may be 0.
    low = 0.0 if name.endswith("per_second") else 1e-30
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low <= value <= 1e12 and math.isfinite(value)):
        raise JvidpruneError(f"config.json gives {name} = {quoted(value)}, which must be a number above 0.")


def _check_heads(config: Any, part: str) -> None:
    heads, head_dim = getattr(config, "heads", None), getattr(config, "head_dim", None)
    if heads is None:
        return
    kv_heads = getattr(config, "kv_heads", heads)
    if heads % kv_heads:
        raise JvidpruneError(f"config.json gives {heads} {part}heads, no multiple of {kv_heads} {part}kv_heads.")
    if kv_heads == heads and not hasattr(config, "kv_heads") and config.width % heads:
        raise JvidpruneError(f"config.json gives {part}width {config.width}, no multiple of {heads} {part}heads.")
    if head_dim is not None and head_dim % 2:
        raise JvidpruneError(f"config.json gives {part}head_dim {head_dim}, which must be even.")
