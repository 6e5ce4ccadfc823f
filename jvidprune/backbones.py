"""Names of the model families that methods have settings for; models and reducers both read them, and nothing else.

A family of this package is a name here and a folder of `models`; one from outside is added by
`models.family.register`. Published settings of a method on a family stand in the method's `PRESETS`; those that a
family from outside brings along for methods of this package stand in its `Family.presets`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from jvidprune.errors import JvidpruneError
from jvidprune.texts import unknown

NAMES = (
    "llava_onevision",
    "llava_video",
    "qwen2_5_vl",
    "qwen3_vl",
    "molmo2",
    "video_llama_3",
    "internvl",
    "qwen3_vl_moe",
    "qwen3_5",
)
"""The families of this package."""

_SETTINGS_OF = {"qwen3_vl_moe": "qwen3_vl", "qwen3_5": "qwen3_vl"}
"""Families that are another one but for their layers, whose settings of methods are theirs where they have no own."""

Presets = Mapping[str, Mapping[str, Any]]
"""Method -> its settings on a family."""

_ADDED: dict[str, Presets] = {}


def backbones() -> tuple[str, ...]:
    """All families that are known, those of this package first."""
    return (*NAMES, *_ADDED)


def add(name: str, presets: Presets) -> None:
    """Makes a family of one's own known, with settings of methods on it."""
    _ADDED[name] = presets


def added_settings(name: str, method: str) -> Mapping[str, Any]:
    """Settings that a family brings along for a method; nothing for a family of this package."""
    return _ADDED.get(name, {}).get(method, {})


def settings_of(name: str) -> str:
    """The family whose published settings of methods are those of this one, by default itself."""
    return _SETTINGS_OF.get(name, name)


def check_backbone(name: str) -> str:
    """The name of a family.

    Raises:
      JvidpruneError: an unknown one, with the nearest.
    """
    if name not in backbones():
        raise JvidpruneError(unknown("backbone", name, backbones()))
    return name


class _BackboneRule:
    """The rule of `fields` for the name of a family."""

    words = "the name of a model family"

    def check(self, value: str) -> str:
        return check_backbone(value)


Backbone = Annotated[str, _BackboneRule()]
"""Annotation of a field that holds the name of a family."""
