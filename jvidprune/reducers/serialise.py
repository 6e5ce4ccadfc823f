"""A reducer's settings as JSON beside a checkpoint: written whole, read strictly.

Reading runs nothing of a stranger's. A reducer of the user's own is written down with its module and class; a file that
names one is refused, unless the caller says `allow_code=True` or has named that class before in the same process.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jvidprune.backbones import check_backbone
from jvidprune.errors import JvidpruneError
from jvidprune.expressions import own_reference
from jvidprune.fields import settings_of, settle
from jvidprune.files import atomic_output, load_json
from jvidprune.ops.transport.kinds import NAMES as PARTS
from jvidprune.own_code import code_refused
from jvidprune.procedural.settings import BenchmarkSetting, check_categories, check_setting
from jvidprune.reducers import registry
from jvidprune.reducers.own import own_class
from jvidprune.reducers.prompt_rules import PositionRule, check_positions
from jvidprune.reducers.protocol import Reducer, check_ratio
from jvidprune.texts import unknown
from jvidprune.weights import Weights

FILE = "jvidprune_config.json"
"""Name of the file in a checkpoint folder."""

FORMAT = 1
"""Version of the layout; a file of a later one is refused."""

_PRUNING, _READING = ("backbone", "ratio", "reducer"), ("convention", "mrope_rule")
_KEYS = ("format", "jvidprune", *_PRUNING, *_READING)
_DECLARED = ("positions", "benchmark", "categories")
"""What is said of the model itself, whatever reduces its videos and in whichever convention they are read."""


@dataclasses.dataclass(frozen=True)
class SavedPruning:
    """How a checkpoint's videos are reduced unless the caller says otherwise.

    Attributes:
      reducer: the method with all its settings.
      ratio: retention ratio in (0, 1].
      backbone: model family that the settings were made for, None for any.
      convention: that videos are read in, a name of `llm.conventions`; None leaves it to the default.
      mrope_rule: of a Qwen-VL family, a name of `models.positions.MropeRule`; None leaves it to the convention.
    """

    reducer: Reducer
    ratio: float
    backbone: str | None = None
    convention: str | None = None
    mrope_rule: str | None = None

    def __post_init__(self) -> None:
        settle(self, ratio=check_ratio(self.ratio))
        if self.backbone is not None:
            check_backbone(self.backbone)

    def record(self) -> dict[str, Any]:
        """Plain values for JSON; every setting is written, so that later presets change nothing.

        Raises:
          JvidpruneError: a reducer that cannot be imported or is no dataclass, or a setting that JSON cannot hold.
        """
        import jvidprune

        method = _method(self.reducer, "the reducer")
        known = {"format": FORMAT, "jvidprune": jvidprune.__version__, "backbone": self.backbone, "ratio": self.ratio}
        reading = {"convention": self.convention, "mrope_rule": self.mrope_rule}
        # Files that leave the reading of videos alone stay readable for versions that know nothing of it.
        return known | {"reducer": method} | {key: value for key, value in reading.items() if value is not None}

    def text(self) -> str:
        """The file's text."""
        return FolderSettings(self).text()


class FolderSettings(NamedTuple):
    """What `FILE` of a folder says.

    Attributes:
      pruning: how its videos are reduced, None where it names no reducer.
      positions: the rule of positions that the model was made for, which holds for every method that is not told
        another (`prompt_rules.position_rule`); None where it declares none.
      convention, mrope_rule: that the model was trained with, as in `SavedPruning`; None where `pruning` has its own.
      benchmark: setting of the procedural benchmark that the model was trained for; None where it declares none.
      categories: of that setting, in its order, that the model is good enough for; None for all of them.
    """

    pruning: SavedPruning | None = None
    positions: PositionRule | None = None
    convention: str | None = None
    mrope_rule: str | None = None
    benchmark: BenchmarkSetting | None = None
    categories: tuple[str, ...] | None = None

    def text(self) -> str:
        """The file's text.

        Raises:
          JvidpruneError: what `SavedPruning.record` raises, or a rule, a benchmark or categories that are none.
        """
        known: dict[str, Any] = {"format": FORMAT} if self.pruning is None else self.pruning.record()
        # A rule belongs to its convention: the model's own two go together, or not at all.
        if not known.keys() & set(_READING):
            known |= {key: getattr(self, key) for key in _READING if getattr(self, key) is not None}
        declared = {key: getattr(self, key) for key in _DECLARED if getattr(self, key) is not None}
        return _text(known | _checked_declarations(declared))


def _text(known: dict[str, Any]) -> str:
    return json.dumps(known, indent=1, ensure_ascii=False) + "\n"


def save_pruning(folder: str | Path, pruning: SavedPruning) -> Path:
    """Writes `FILE` into a checkpoint folder; what the folder declares for its model stays.

    Raises:
      JvidpruneError: what `SavedPruning.record` raises, or a folder that cannot be written to.
    """
    path = Path(folder) / FILE
    text = load_declared(folder)._replace(pruning=pruning).text()
    with atomic_output(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def load_pruning(folder: str | Path, *, allow_code: bool = False) -> SavedPruning | None:
    """How `FILE` of a folder says that videos are reduced, None where there is none or it names no reducer.

    Args:
      folder: of a checkpoint.
      allow_code: import the module of a reducer that is not this package's; it runs with all rights of the user.

    Raises:
      JvidpruneError: anything unexpected in the file, or code that is not allowed, in one sentence that names the file.
    """
    return load_settings(folder, allow_code=allow_code).pruning


def load_positions(folder: str | Path) -> PositionRule | None:
    """The rule of positions that `FILE` of a folder declares for its model, None where it declares none.

    Raises:
      JvidpruneError: anything unexpected in the file, in one sentence that names it.
    """
    return load_reading(folder).positions


class FolderReading(NamedTuple):
    """What `FILE` of a folder says of how its model reads videos, whatever reduces them.

    Attributes:
      convention, mrope_rule: as in `SavedPruning`.
      positions, benchmark, categories: as in `FolderSettings`.
    """

    convention: str | None = None
    mrope_rule: str | None = None
    positions: PositionRule | None = None
    benchmark: BenchmarkSetting | None = None
    categories: tuple[str, ...] | None = None


def load_reading(folder: str | Path) -> FolderReading:
    """How `FILE` of a folder says that videos are read; its reducer is not made, so that no code of it is needed.

    Raises:
      JvidpruneError: anything unexpected in the file, in one sentence that names it.
    """
    return _loaded(folder, _read_reading, FolderReading())


def load_declared(folder: str | Path) -> FolderSettings:
    """What `FILE` of a folder declares for its model, whatever reduces its videos: settings without `pruning`.

    Raises:
      JvidpruneError: anything unexpected in the file, in one sentence that names it.
    """
    return _loaded(folder, _read_declared, FolderSettings())


def with_reading(folder: str | Path, convention: str, mrope_rule: str | None = None) -> str:
    """The text of a folder's `FILE` with a convention and an M-RoPE rule; all else that it says stays.

    Raises:
      JvidpruneError: anything unexpected in the file, in one sentence that names it.
    """

    def kept(value: Any) -> dict[str, Any]:
        _read_reading(value)
        return {key: part for key, part in value.items() if key not in _READING}

    reading = {"convention": convention} | ({} if mrope_rule is None else {"mrope_rule": mrope_rule})
    return _text(_loaded(folder, kept, {"format": FORMAT}) | reading)


def load_settings(folder: str | Path, *, allow_code: bool = False) -> FolderSettings:
    """All that `FILE` of a folder says; nothing where there is none.

    Raises:
      JvidpruneError: anything unexpected in the file, or code that is not allowed, in one sentence that names the file.
    """

    def read(value: Any) -> FolderSettings:
        return read_settings(value, allow_code=allow_code)

    return _loaded(folder, read, FolderSettings())


_Read = TypeVar("_Read")


def _loaded(folder: str | Path, read: Callable[[Any], _Read], nothing: _Read) -> _Read:
    path = Path(folder) / FILE
    if not path.exists():
        return nothing
    value = load_json(path, finite=True)
    try:
        return read(value)
    except RecursionError as error:
        raise JvidpruneError(f"{path} nests methods too deeply.") from error
    except JvidpruneError as error:
        raise JvidpruneError(f"{path}: {error}") from error


def read_settings(value: Any, *, allow_code: bool = False) -> FolderSettings:
    """The inverse of `FolderSettings.text`: a record of pruning, what is declared for a model, or both.

    Raises:
      JvidpruneError: as for `read_record`, or a rule of positions, a benchmark or categories that are none.
    """
    rest, declared = _split(value)
    if _prunes(rest, declared):
        return FolderSettings(read_record(rest, allow_code=allow_code), **declared)
    return _read_declared(value)


def _prunes(rest: Any, declared: dict[str, Any]) -> bool:
    """Whether a file has to say how videos are reduced: it begins to, or declares nothing."""
    if not isinstance(rest, dict):
        return True
    return bool(rest.keys() & set(_PRUNING)) or not (declared or rest.keys() & set(_READING))


def _split(value: Any) -> tuple[Any, dict[str, Any]]:
    """The record without what is declared of the model, and that."""
    if not isinstance(value, dict):
        return value, {}
    declared = _checked_declarations({key: value[key] for key in _DECLARED if key in value})
    return {key: part for key, part in value.items() if key not in _DECLARED}, declared


def _checked_declarations(found: dict[str, Any]) -> dict[str, Any]:
    """Values of `_DECLARED`, those that are there."""
    if "positions" in found and check_positions(found["positions"]) is None:
        raise JvidpruneError("positions must be renumbered or original, got null.")
    setting = check_setting(found["benchmark"]) if "benchmark" in found else "default"
    if "categories" not in found:
        return found
    return found | {"categories": check_categories(found["categories"], setting)}


def _read_reading(value: Any) -> FolderReading:
    rest, declared = _split(value)
    required = ("format", "ratio", "reducer") if _prunes(rest, declared) else ("format",)
    found = _checked_format(_object(rest, "the file", _KEYS, required))
    return FolderReading(**_names(found, *_READING), **declared)


def _read_declared(value: Any) -> FolderSettings:
    found = _read_reading(value)
    if _prunes(*_split(value)):
        found = found._replace(convention=None, mrope_rule=None)
    return FolderSettings(None, **found._asdict())


def read_record(value: Any, *, allow_code: bool = False) -> SavedPruning:
    """The inverse of `SavedPruning.record`; settings that are missing take the method's defaults.

    Names of this package's own methods and transport parts and of installed ones are looked up, in closed lists.

    Args:
      value: of a JSON file.
      allow_code: import the module of a reducer that is in none of these lists.

    Raises:
      JvidpruneError: an unknown key, method or setting, a value of the wrong type, one that the method refuses, or code
        that is not allowed.
    """
    found = _checked_format(_object(value, "the file", _KEYS, required=("format", "ratio", "reducer")))
    ratio = found["ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise JvidpruneError(f"ratio must be a number in (0, 1], got {ratio!r}.")
    reading = _names(found, *_READING)
    backbone = _names(found, "backbone")["backbone"]
    # Methods inside of others are texts, which may name code as well.
    with code_refused(not allow_code):
        reducer = _build(found["reducer"], "reducer")
    return SavedPruning(reducer, ratio, backbone, **reading)


def _names(found: dict[str, Any], *keys: str) -> dict[str, str | None]:
    for key in keys:
        if found.get(key) is not None and not isinstance(found[key], str):
            raise JvidpruneError(f"{key} must be a name or null, got {found[key]!r}.")
    return {key: found.get(key) for key in keys}


def _checked_format(found: dict[str, Any]) -> dict[str, Any]:
    version = found["format"]
    if type(version) is not int or version < 1:
        raise JvidpruneError(f"format must be a whole number from 1 on, got {version!r}.")
    if version > FORMAT:
        raise JvidpruneError(f"it has format {version}, which a later jvidprune wrote; this one reads up to {FORMAT}.")
    return found


def _method(value: Any, what: str) -> dict[str, Any]:
    cls = type(value)
    name = registry.name_of(cls)
    if name is not None:
        return {"method": name, "settings": _settings(value, name)}
    if not isinstance(value, Reducer) or not dataclasses.is_dataclass(value) or cls.__qualname__ != cls.__name__:
        raise JvidpruneError(
            f"{what} is a {cls.__name__}, which cannot be saved: it is no reducer that is a dataclass of a module."
        )
    return {"module": cls.__module__, "class": cls.__qualname__, "settings": _settings(value, cls.__name__)}


def _settings(value: Any, name: str) -> dict[str, Any]:
    return {field: _plain(getattr(value, field), f"{field} of {name}") for field in settings_of(value)}


def _plain(value: Any, what: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise JvidpruneError(f"{what} is {value}, which JSON cannot hold.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [_plain(item, what) for item in value]
    if isinstance(value, Weights):
        if value.path is None:
            raise JvidpruneError(f"{what} stands in no file: write it with Weights.write before it is saved.")
        # Settings are read from wherever somebody works.
        return str(Path(value.path).absolute())
    if type(value).__name__ in PARTS and type(value) is _part(type(value).__name__):
        return {"part": type(value).__name__, "settings": _settings(value, type(value).__name__)}
    return _method(value, what)


def _part(name: str) -> Any:
    from jvidprune.ops import transport

    return getattr(transport, name)


def _build(value: Any, what: str) -> Any:
    """An object from {"method", "part" or "module" and "class", "settings"}."""
    if isinstance(value, dict) and "class" in value:
        keys: tuple[str, ...] = ("module", "class")
    else:
        keys = ("part",) if isinstance(value, dict) and "part" in value else ("method",)
    found = _object(value, what, (*keys, "settings"), required=keys)
    for key in keys:
        if not isinstance(found[key], str):
            raise JvidpruneError(f"{key} of {what} must be a name, got {found[key]!r}.")
    name, settings = found[keys[-1]], found.get("settings", {})
    cls = _class(found)
    given = _object(settings, f"settings of {name}", settings_of(cls))
    made = {key: _value(item, f"{key} of {name}") for key, item in given.items()}
    try:
        return cls(**made)
    except JvidpruneError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise JvidpruneError(f"{name} cannot be made from its settings: {str(error).rstrip('.')}.") from error


def _class(found: dict[str, Any]) -> Any:
    if "part" in found:
        if found["part"] not in PARTS:
            raise JvidpruneError(unknown("transport part", found["part"], PARTS))
        return _part(found["part"])
    if "method" in found:
        name = found["method"]
        if own_reference(name) is not None:
            raise JvidpruneError(f"method names {name}: a class of a module is saved as module and class.")
        cls = registry.reducer_class(name)
    else:
        name = found["class"]
        cls = own_class(found["module"], name)
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise JvidpruneError(f"{name} is no dataclass, so that its settings cannot be read.")
    return cls


def _value(item: Any, what: str) -> Any:
    if isinstance(item, list):
        return [_value(part, what) for part in item]
    return _build(item, what) if isinstance(item, dict) else item


def _object(value: Any, what: str, allowed: tuple[str, ...], required: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise JvidpruneError(f"{what} must be a JSON object, got {type(value).__name__}.")
    for key in value:
        if key not in allowed:
            raise JvidpruneError(unknown(f"key in {what}", key, allowed))
    if missing := [key for key in required if key not in value]:
        raise JvidpruneError(f"{what} has no {missing[0]}.")
    return value
