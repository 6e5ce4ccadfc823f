"""Reducers by name, with the published hyper-parameters of each backbone."""

import dataclasses
import importlib
from typing import Any, cast

from jvidprune.backbones import added_settings, backbones, check_backbone
from jvidprune.cuts.attended import check_attended
from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.expressions import Chain, Written, check_colon, own_reference, parse
from jvidprune.fields import settings_of
from jvidprune.reducers.own import check_made, installed, installed_class, own_class
from jvidprune.reducers.protocol import MethodInfo, Reducer, class_with_defaults, inner_stages, with_defaults
from jvidprune.texts import unknown

_METHODS: dict[str, tuple[str, str]] = {
    "none": ("full", "Full"),
    "visionzip": ("visionzip", "VisionZip"),
    "divprune": ("divprune", "DivPrune"),
    "scissor": ("scissor", "Scissor"),
    "tome": ("tome", "ToMe"),
    "cdpruner": ("cdpruner", "CDPruner"),
    "zspaprune": ("zspaprune", "ZSPAPrune"),
    "vcast": ("vcast", "VCAST"),
    "evs": ("evs", "EVS"),
    "vidcom2": ("vidcom2", "VidCom2"),
    "holov": ("holov", "HoloV"),
    "dycoke": ("dycoke", "DyCoke"),
    "random": ("controls", "Random"),
    "uniform": ("controls", "Uniform"),
    "frame_drop": ("controls", "FrameDrop"),
    "pool_space": ("grids", "PoolSpace"),
    "pool_time": ("grids", "PoolTime"),
    "pool_spacetime": ("grids", "PoolSpaceTime"),
    "sample_space": ("grids", "SampleSpace"),
    "sample_time": ("grids", "SampleTime"),
    "sample_spacetime": ("grids", "SampleSpaceTime"),
    "sample_random_cell": ("grids", "SampleRandomCell"),
    "inner_random": ("inner_random", "InnerRandom"),
    "fastv": ("fastv", "FastV"),
    "dart": ("dart", "DART"),
    "pyramiddrop": ("pyramiddrop", "PyramidDrop"),
    "information_horizon": ("information_horizon", "InformationHorizon"),
    "sparsevlm": ("sparsevlm", "SparseVLM"),
    "framefusion": ("framefusion", "FrameFusion"),
    "swiftvlm": ("swiftvlm", "SwiftVLM"),
    "dstp": ("dstp", "DSTP"),
    "mod": ("mod", "MoD"),
    "videollm_mod": ("videollm_mod", "VideoLLMMoD"),
    "attention_topk": ("controls", "AttentionTopK"),
    "norm_topk": ("controls", "NormTopK"),
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

_COMBINATORS: dict[str, tuple[str, str]] = {"sequential": ("compose", "Sequential")}
"""What builds a method from several others, in the same form."""


_LEARNED: dict[str, tuple[str, str]] = {
    "stts": ("jvidprune.stts.reducer", "STTS"),
    "covipal": ("jvidprune.covipal.reducer", "CoViPAL"),
}
"""What needs weights of its own beside a model's, in the same form; the modules are outside of this package."""

_FRAMED: dict[str, tuple[str, str]] = {"downscale": ("frames", "Downscale"), "fewer_frames": ("frames", "FewerFrames")}
"""What makes tokens of other frames, in the same form: a model runs it, tokens alone have no frames."""

_KNOWN = _METHODS | _COMBINATORS | _LEARNED | _FRAMED


def combinators() -> tuple[str, ...]:
    """Names that `get` and `from_text` know besides `names`: ways of chaining methods, which make no row of tables."""
    return tuple(_COMBINATORS)


def learned() -> tuple[str, ...]:
    """Names of methods that need weights of their own beside a model's."""
    return tuple(_LEARNED)


def framed() -> tuple[str, ...]:
    """Names of the controls that make tokens of other frames (`reducers.frames`)."""
    return tuple(_FRAMED)


def names() -> tuple[str, ...]:
    """All registry names of what reduces tokens, in the order of the README's table."""
    return tuple(_METHODS)


def plugins() -> tuple[str, ...]:
    """Names of the methods that installed packages bring along (`own.GROUP`), without those that are taken."""
    return tuple(name for name in installed() if name not in _KNOWN)


def reducer_class(name: str) -> Any:
    """The class behind a name: of this package, of an installed one, or the user's own as in "module:Class".

    Raises:
      JvidpruneError: unknown name, with the nearest one, or what `own.own_class` raises.
    """
    own = own_reference(name)
    if own is not None:
        check_colon(name, tuple(_KNOWN))
        return own_class(*own)
    key = name.lower().replace("-", "_")
    if key in _KNOWN:
        module, attribute = _KNOWN[key]
        return getattr(importlib.import_module(module if "." in module else f"jvidprune.reducers.{module}"), attribute)
    if key in installed():
        return installed_class(key)
    raise JvidpruneError(unknown("reducer", name, (*_KNOWN, *plugins())))


def name_of(cls: type) -> str | None:
    """The name that `reducer_class` finds a class by, None for one that has to be written as "module:Class"."""
    said = class_with_defaults(cls).info.name
    if said in _KNOWN and reducer_class(said) is cls:
        return said
    package = cls.__module__.partition(".")[0]
    beside = (name for name in plugins() if installed()[name].value.partition(".")[0].partition(":")[0] == package)
    return next((name for name in beside if installed_class(name) is cls), None)


def get(name: str, backbone: str | None = None, layers: int | None = None, **overrides: Any) -> Reducer:
    """A reducer with the published settings of a backbone.

    Args:
      name: registry name, e.g. "flashvid".
      backbone: a model family (`jvidprune.backbones`); None takes the class defaults.
      layers: decoder layers of the model, for methods whose settings depend on its depth (`BaseReducer.at_depth`);
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
        check_backbone(backbone)
        settings |= class_with_defaults(cls).preset(backbone)
        settings |= added_settings(backbone, name.lower().replace("-", "_"))
    if dataclasses.is_dataclass(cls):
        known = settings_of(cls)
        for key in overrides:
            if key not in known:
                raise JvidpruneError(unknown(f"hyper-parameter of {name}", key, known))
    if isinstance(cls, type):
        made = _called(cls, name, settings, layers, overrides)
    elif overrides:
        raise JvidpruneError(f"{name} is an object and takes no settings, got {', '.join(overrides)}.")
    else:
        made = cast(Reducer, cls)
    if own_reference(name) is not None or name_of(type(made)) not in _KNOWN:
        check_made(made, name)
    return made


_WRONG_VALUE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def _called(cls: Any, name: str, settings: dict[str, Any], layers: int | None, overrides: dict[str, Any]) -> Reducer:
    try:
        if layers is not None:
            # Values are checked first: settings of a depth are worked out from them.
            cls(**(settings | overrides))
            settings |= class_with_defaults(cls).at_depth(layers, settings, overrides)
        return cls(**(settings | overrides))
    except JvidpruneError:
        raise
    except Exception as error:
        if not isinstance(error, _WRONG_VALUE) and own_reference(name) is None:
            raise
        # A value of a type that the hyper-parameter's own check does not know.
        given = quoted(", ".join(f"{key}={value!r}" for key, value in overrides.items()), 200)
        raise JvidpruneError(f"{name} cannot be made with {given}: {reason(error)}.") from error


class HoldsMethods:
    """Of a method that holds others: a text in their place is built for a family and a depth, which are two fields.

    Attributes:
      backbone: the family, None for the defaults of the classes.
      layers: the depth of the language model, None for that of the published models.
    """

    backbone: str | None
    layers: int | None

    def named_inside(self, name: str) -> Reducer:
        """With the published settings of the family, at the depth of the model."""
        return get(name, self.backbone, self.layers)

    @classmethod
    def preset(cls, backbone: str) -> dict[str, Any]:
        """The family."""
        return {"backbone": backbone}

    @classmethod
    def at_depth(cls, layers: int, settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """The depth."""
        return {"layers": layers}


def for_model(text: str, config: Any) -> Reducer:
    """A reducer from a command-line text with the published settings of a model's family, at the model's depth.

    Args:
      text: as for `from_text`.
      config: of the model: its `family` and `text.layers`. A method without settings of that family takes the class
        defaults.

    Raises:
      JvidpruneError: as for `from_text`, or a method that has no meaning on such a model, or stages inside it that it
        cannot have (`cuts.attended`).
    """
    made = from_text(text, config.family if config.family in backbones() else None, config.text.layers)
    with_defaults(made).check_model(config)
    if len(config.text.attending) < config.text.layers:
        try:
            stages = inner_stages(made, _ANY_RATIO)
        except JvidpruneError:
            # It tells which ratios it takes when it is given one.
            return made
        check_attended(stages, config.text.layers, config.text.attending)
    return made


_ANY_RATIO = 0.5
"""Layers and rules of a method's stages are those of any other ratio."""


def from_text(text: str, backbone: str | None = None, layers: int | None = None) -> Reducer:
    """A reducer from a text, see `jvidprune.expressions`.

    "flashvid(alpha=0.5, distinct=True)"; "stop(base=fastvid)" and "stop(base=flashvid(alpha=0.5), mu_s=0.03)" wrap
    another method; a plus chains methods under one ratio in equal shares: "visionzip + flashvid(alpha=0.5)" (see
    `compose.chain`; "sequential(first=visionzip, second=flashvid, split=0.3)" for other shares);
    "my_module:MyReducer(alpha=0.5)" and "./my_reducer.py:MyReducer" are the user's own, see `own`.

    Args:
      text: the method.
      backbone, layers: as for `get`.

    Raises:
      JvidpruneError: as for `get`, a text that is no method, or reducers that cannot be chained.
    """
    return _made(parse(text), backbone, layers)


def _made(written: Written, backbone: str | None, layers: int | None) -> Reducer:
    if isinstance(written, Chain):
        from jvidprune.reducers.compose import chain

        return chain(*(_made(stage, backbone, layers) for stage in written.stages))
    return _build(written.name, backbone, layers, written.settings)


def title(text: str) -> str:
    """The name for people of a method as it is typed: its paper's, with the settings asked for; chains with an arrow.

    Reconstructions are marked, as settings too: "SToP (base=zspaprune (reconstruction))".

    Raises:
      JvidpruneError: an unknown name, or a text that is no method.
    """
    return _title(parse(text))


def _title(written: Written) -> str:
    if isinstance(written, Chain):
        return " → ".join(map(_title, written.stages))
    shown = info(written.name).label
    settings = [
        f"{typed} (reconstruction)" if _has_reconstruction(value) else typed
        for typed, value in zip(written.written, written.settings.values(), strict=True)
    ]
    return f"{shown} ({', '.join(settings)})" if settings else shown


def _has_reconstruction(value: Any) -> bool:
    """Whether the value of a setting is a method that is a reconstruction or is made of one."""
    if not isinstance(value, str):
        return False
    try:
        written = parse(value)
        stages = written.stages if isinstance(written, Chain) else (written,)
        return any(
            info(stage.name).provenance == "reconstruction" or any(map(_has_reconstruction, stage.settings.values()))
            for stage in stages
            if not isinstance(stage, Chain)
        )
    except JvidpruneError:
        # A word that names no method.
        return False


def info(name: str) -> MethodInfo:
    """What is said of a method in listings; of one that says nothing of itself, the name of its class.

    Raises:
      JvidpruneError: as for `reducer_class`.
    """
    found = class_with_defaults(reducer_class(name)).info
    return found if found.name else dataclasses.replace(found, name=name)


def listing() -> list[tuple[MethodInfo, frozenset[str]]]:
    """What is said of all methods that have a name, with the evidence they need; of installed ones that work, too."""
    found = []
    for name in (*names(), *framed(), *combinators(), *learned(), *plugins()):
        try:
            found.append((info(name), frozenset(get(name).needs)))
        except JvidpruneError:
            # Somebody else's package that is broken is no reason not to list the rest; who names it is told.
            if name in _KNOWN:
                raise
    return found
