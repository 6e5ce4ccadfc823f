"""Settings of the benchmark that have a name: which one a model was trained for stands in its folder."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.procedural.categories import ALL_CATEGORIES, CATEGORIES

BenchmarkSetting = Literal["default", "detailed"]
"""A name of `SETTINGS`."""

DETAILED: Mapping[str, Any] = MappingProxyType(
    {"frames": 16, "side": 112, "clutter": 6, "size": 1.15, "counted": 5, "categories": ALL_CATEGORIES}
)
"""Settings under which evidence takes tokens: 16 frames, larger objects, small ones among clutter, letters, turns."""

SETTINGS: Mapping[BenchmarkSetting, Mapping[str, Any]] = MappingProxyType(
    {"default": MappingProxyType({}), "detailed": DETAILED}
)
"""What each setting changes of `benchmark.Procedural`."""


def check_setting(value: Any) -> BenchmarkSetting:
    """The name of a setting.

    Raises:
      JvidpruneError: anything else.
    """
    for known in SETTINGS:
        if isinstance(value, str) and value == known:
            return known
    raise JvidpruneError(f"benchmark must be {' or '.join(SETTINGS)}, got {quoted(repr(value))}.")


def check_categories(value: Any, setting: BenchmarkSetting) -> tuple[str, ...]:
    """Some categories of a setting, in its order.

    Args:
      value: a list or tuple of names.
      setting: whose categories they are.

    Raises:
      JvidpruneError: no category, one that the setting does not ask about, another order, or no list.
    """
    known = SETTINGS[setting].get("categories", CATEGORIES)
    if isinstance(value, list | tuple) and value and list(value) == [name for name in known if name in value]:
        return tuple(value)
    raise JvidpruneError(
        f"categories of the {setting} benchmark must be some of {', '.join(known)}, in this order, got "
        f"{quoted(repr(value))}."
    )
