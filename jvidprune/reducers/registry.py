"""Reducers by name, with the published hyper-parameters of each backbone."""

import importlib
from typing import Any, Literal, get_args

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.reducers.protocol import MethodInfo, Reducer
from jvidprune.texts import pieces, read_settings, split_chain, unknown

Backbone = Literal["llava_onevision", "llava_video", "qwen2_5_vl", "qwen3_vl", "molmo2"]
BACKBONES: tuple[str, ...] = get_args(Backbone)
"""Model families with published settings."""

_METHODS: dict[str, tuple[str, str]] = {
    "none": ("full", "Full"),
    "visionzip": ("visionzip", "VisionZip"),
    "divprune": ("divprune", "DivPrune"),
    "scissor": ("scissor", "Scissor"),
    "tome": ("tome", "ToMe"),
    "cdpruner": ("cdpruner", "CDPruner"),
    "vcast": ("vcast", "VCAST"),
    "evs": ("evs", "EVS"),
    "vidcom2": ("vidcom2", "VidCom2"),
    "holov": ("holov", "HoloV"),
    "dycoke": ("dycoke", "DyCoke"),
    "random": ("controls", "Random"),
    "uniform": ("controls", "Uniform"),
    "frame_drop": ("controls", "FrameDrop"),
    "inner_random": ("inner_random", "InnerRandom"),
    "fastv": ("fastv", "FastV"),
    "attention_topk": ("controls", "AttentionTopK"),
    "flashvid": ("flashvid", "FlashVID"),
    "fastvid": ("fastvid", "FastVID"),
    "holitom": ("holitom", "HoliTom"),
    "prunevid": ("prunevid", "PruneVid"),
    "ottvid": ("ottvid", "OTTVid"),
    "aot": ("aot", "AOT"),
    "stop": ("stop", "SToP"),
    "qwen_norm": ("qwen_norm", "QwenNorm"),
    "visionzip_qwen": ("stop_qwen", "VisionZipQwen"),
}
"""Registry name -> (module in this package, class). A class carries `info` and `PRESETS`, backbone -> settings."""

_LONGEST_TEXT = 1000
"""Of a method as it is typed; the parser of literals takes deep brackets badly."""

_COMBINATORS: dict[str, tuple[str, str]] = {"sequential": ("compose", "Sequential")}
"""What builds a method from several others, in the same form."""


_LEARNED: dict[str, tuple[str, str]] = {"stts": ("jvidprune.stts.reducer", "STTS")}
"""What needs weights of its own beside a model's, in the same form; the modules are outside of this package."""


def combinators() -> tuple[str, ...]:
    """Names that `get` and `from_text` know besides `names`: ways of chaining methods, which make no row of tables."""
    return tuple(_COMBINATORS)


def learned() -> tuple[str, ...]:
    """Names of methods that need weights of their own beside a model's."""
    return tuple(_LEARNED)


def names() -> tuple[str, ...]:
    """All registry names, in the order of the README's table."""
    return tuple(_METHODS)


def reducer_class(name: str) -> Any:
    """The class behind a registry name.

    Raises:
      JvidpruneError: unknown name; the sentence offers the nearest one.
    """
    key = name.lower().replace("-", "_")
    known = _METHODS | _COMBINATORS | _LEARNED
    if key not in known:
        raise JvidpruneError(unknown("reducer", name, tuple(known)))
    module, attribute = known[key]
    return getattr(importlib.import_module(module if "." in module else f"jvidprune.reducers.{module}"), attribute)


def get(name: str, backbone: str | None = None, layers: int | None = None, **overrides: Any) -> Reducer:
    """A reducer with the published settings of a backbone.

    Args:
      name: registry name, e.g. "flashvid".
      backbone: one of `BACKBONES`; None takes the class defaults.
      layers: decoder layers of the model, for methods whose settings depend on its depth (they have an `at_depth`);
        None takes those of the published models. See `for_model`.
      **overrides: hyper-parameters that replace the preset's.

    Raises:
      JvidpruneError: unknown reducer, backbone or hyper-parameter.
    """
    return _build(name, backbone, layers, overrides)


def _build(name: str, backbone: str | None, layers: int | None, overrides: dict[str, Any]) -> Reducer:
    cls = reducer_class(name)
    settings: dict[str, Any] = {}
    if backbone is not None:
        if backbone not in BACKBONES:
            raise JvidpruneError(unknown("backbone", backbone, BACKBONES))
        settings |= getattr(cls, "PRESETS", {}).get(backbone, {})
    fields = getattr(cls, "__dataclass_fields__", {})
    for key in overrides:
        if key not in fields:
            raise JvidpruneError(unknown(f"hyper-parameter of {name}", key, tuple(fields)))
    try:
        if layers is not None and hasattr(cls, "at_depth"):
            # Values are checked first: settings of a depth are worked out from them.
            cls(**(settings | overrides))
            settings |= cls.at_depth(layers, settings, overrides)
        return cls(**(settings | overrides))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, JvidpruneError):
            raise
        # A value of a type that the hyper-parameter's own check does not know.
        given = quoted(", ".join(f"{key}={value!r}" for key, value in overrides.items()), 200)
        raise JvidpruneError(f"{name} cannot be made with {given}: {reason(error)}.") from error


def for_model(text: str, config: Any) -> Reducer:
    """A reducer from a command-line text with the published settings of a model's family, at the model's depth.

    Args:
      text: as for `from_text`.
      config: of the model: its `family` and `text.layers`. A family without published settings takes the class
        defaults.

    Raises:
      JvidpruneError: as for `from_text`.
    """
    return from_text(text, config.family if config.family in BACKBONES else None, config.text.layers)


def from_text(text: str, backbone: str | None = None, layers: int | None = None) -> Reducer:
    """A reducer from a command-line text.

    "flashvid", "flashvid:alpha=0.5,distinct=True"; a modifier names what it wraps, in brackets where that has settings
    of its own: "stop:base=fastvid", "stop:base=(flashvid:alpha=0.5),mu_s=0.03"; a plus chains reducers under one ratio
    in equal shares: "visionzip+flashvid:alpha=0.5" (see `compose.chain`; "sequential:first=visionzip,second=flashvid,
    split=0.3" for other shares).

    Args:
      text: registry name, then a colon and settings as Python literals (bare words and bracketed texts are strings).
      backbone, layers: as for `get`.

    Raises:
      JvidpruneError: as for `get`, a setting without "=", or reducers that cannot be chained.
    """
    if len(text) > _LONGEST_TEXT:
        raise JvidpruneError(f"a reducer is written in at most {_LONGEST_TEXT} characters, got {len(text)}.")
    stages = split_chain(text)
    if len(stages) > 1:
        from jvidprune.reducers.compose import chain

        return chain(*(from_text(stage, backbone, layers) for stage in stages))
    name, settings = read_settings(text)
    return _build(name, backbone, layers, settings)


def title(text: str) -> str:
    """The name for people of a method as it is typed: its paper's, with the settings asked for; chains with an arrow.

    Raises:
      JvidpruneError: an unknown name, or brackets that do not match.
    """
    stages = split_chain(text)
    if len(stages) > 1:
        return " → ".join(map(title, stages))
    name, _, settings = text.partition(":")
    shown = info(name.strip()).title
    return f"{shown} ({', '.join(pieces(settings, ','))})" if settings.strip() else shown


def info(name: str) -> MethodInfo:
    """What is said of a method in listings."""
    return reducer_class(name).info
