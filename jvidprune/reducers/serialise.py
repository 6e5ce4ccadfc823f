"""A reducer's settings as JSON beside a checkpoint: written whole, read strictly, never executed."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output
from jvidprune.ops.transport.kinds import NAMES as PARTS
from jvidprune.reducers import registry
from jvidprune.reducers.protocol import PositionRule, Reducer, check_positions, check_ratio
from jvidprune.texts import unknown

FILE = "jvidprune_config.json"
"""Name of the file in a checkpoint folder."""

FORMAT = 1
"""Version of the layout; a file of a later one is refused."""

_KEYS = ("format", "jvidprune", "backbone", "ratio", "reducer", "convention", "mrope_rule")


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
        object.__setattr__(self, "ratio", check_ratio(self.ratio))
        if self.backbone is not None and self.backbone not in registry.BACKBONES:
            raise JvidpruneError(unknown("backbone", self.backbone, registry.BACKBONES))

    def record(self) -> dict[str, Any]:
        """Plain values for JSON; every setting is written, so that later presets change nothing.

        Raises:
          JvidpruneError: a reducer or a part of one that is not this package's, or a setting that JSON cannot hold.
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
        another (`protocol.position_rule`); None where it declares none.
    """

    pruning: SavedPruning | None = None
    positions: PositionRule | None = None

    def text(self) -> str:
        """The file's text.

        Raises:
          JvidpruneError: what `SavedPruning.record` raises, or a rule that is none.
        """
        known: dict[str, Any] = {"format": FORMAT} if self.pruning is None else self.pruning.record()
        declared = check_positions(self.positions)
        known |= {} if declared is None else {"positions": declared}
        return json.dumps(known, indent=1, ensure_ascii=False) + "\n"


def save_pruning(folder: str | Path, pruning: SavedPruning) -> Path:
    """Writes `FILE` into a checkpoint folder; positions that the folder declares stay.

    Raises:
      JvidpruneError: what `SavedPruning.record` raises, or a folder that cannot be written to.
    """
    path = Path(folder) / FILE
    text = FolderSettings(pruning, load_settings(folder).positions).text()
    with atomic_output(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def load_pruning(folder: str | Path) -> SavedPruning | None:
    """How `FILE` of a folder says that videos are reduced, None where there is none or it names no reducer.

    Raises:
      JvidpruneError: anything unexpected in the file, in one sentence that names it.
    """
    return load_settings(folder).pruning


def load_positions(folder: str | Path) -> PositionRule | None:
    """The rule of positions that `FILE` of a folder declares for its model, None where it declares none.

    Raises:
      JvidpruneError: anything unexpected in the file, in one sentence that names it.
    """
    return load_settings(folder).positions


def load_settings(folder: str | Path) -> FolderSettings:
    """All that `FILE` of a folder says; nothing where there is none.

    Raises:
      JvidpruneError: anything unexpected in the file, in one sentence that names it.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return FolderSettings()
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise JvidpruneError(f"{path} is no readable JSON file: {error}.") from error
    try:
        return read_settings(value)
    except RecursionError as error:
        raise JvidpruneError(f"{path} nests methods too deeply.") from error
    except JvidpruneError as error:
        raise JvidpruneError(f"{path}: {error}") from error


def read_settings(value: Any) -> FolderSettings:
    """The inverse of `FolderSettings.text`: a record of pruning, positions declared for a model, or both.

    Raises:
      JvidpruneError: as for `read_record`, or a rule of positions that is none.
    """
    if not isinstance(value, dict) or "positions" not in value:
        return FolderSettings(read_record(value))
    declared = check_positions(value["positions"])
    if declared is None:
        raise JvidpruneError("positions must be renumbered or original, got null.")
    rest = {key: part for key, part in value.items() if key != "positions"}
    if {"reducer", "ratio", "backbone", "convention", "mrope_rule"} & rest.keys():
        return FolderSettings(read_record(rest), declared)
    _checked_format(_object(rest, "the file", _KEYS, required=("format",)))
    return FolderSettings(None, declared)


def read_record(value: Any) -> SavedPruning:
    """The inverse of `SavedPruning.record`; settings that are missing take the method's defaults.

    Only names of this package's own methods and transport parts are looked up, in closed lists.

    Raises:
      JvidpruneError: an unknown key, method or setting, a value of the wrong type, or one that the method refuses.
    """
    found = _checked_format(_object(value, "the file", _KEYS, required=("format", "ratio", "reducer")))
    ratio, backbone = found["ratio"], found.get("backbone")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise JvidpruneError(f"ratio must be a number in (0, 1], got {ratio!r}.")
    if backbone is not None and not isinstance(backbone, str):
        raise JvidpruneError(f"backbone must be a name or null, got {backbone!r}.")
    reading = {key: found.get(key) for key in ("convention", "mrope_rule")}
    for key, name in reading.items():
        if name is not None and not isinstance(name, str):
            raise JvidpruneError(f"{key} must be a name or null, got {name!r}.")
    return SavedPruning(_build(found["reducer"], "reducer"), ratio, backbone, **reading)


def _checked_format(found: dict[str, Any]) -> dict[str, Any]:
    version = found["format"]
    if type(version) is not int or version < 1:
        raise JvidpruneError(f"format must be a whole number from 1 on, got {version!r}.")
    if version > FORMAT:
        raise JvidpruneError(f"it has format {version}, which a later jvidprune wrote; this one reads up to {FORMAT}.")
    return found


def _method(value: Any, what: str) -> dict[str, Any]:
    info = getattr(value, "info", None)
    name = getattr(info, "name", None)
    known = (*registry.names(), *registry.combinators(), *registry.learned())
    if name not in known or type(value) is not registry.reducer_class(str(name)):
        raise JvidpruneError(
            f"{what} is a {type(value).__name__}, which is no method of this package and cannot be saved."
        )
    return {"method": name, "settings": _settings(value, str(name))}


def _settings(value: Any, name: str) -> dict[str, Any]:
    return {
        field.name: _plain(getattr(value, field.name), f"{field.name} of {name}")
        for field in dataclasses.fields(value)
        if field.init
    }


def _plain(value: Any, what: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise JvidpruneError(f"{what} is {value}, which JSON cannot hold.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [_plain(item, what) for item in value]
    if type(value).__name__ in PARTS and type(value) is _part(type(value).__name__):
        return {"part": type(value).__name__, "settings": _settings(value, type(value).__name__)}
    return _method(value, what)


def _part(name: str) -> Any:
    from jvidprune.ops import transport

    return getattr(transport, name)


def _build(value: Any, what: str) -> Any:
    """An object from {"method" or "part", "settings"}."""
    kind = "part" if isinstance(value, dict) and "part" in value else "method"
    found = _object(value, what, (kind, "settings"), required=(kind,))
    name, settings = found[kind], found.get("settings", {})
    if not isinstance(name, str):
        raise JvidpruneError(f"{kind} of {what} must be a name, got {name!r}.")
    if kind == "method":
        cls = registry.reducer_class(name)
    elif name in PARTS:
        cls = _part(name)
    else:
        raise JvidpruneError(unknown("transport part", name, PARTS))
    given = _object(settings, f"settings of {name}", tuple(f.name for f in dataclasses.fields(cls) if f.init))
    made = {key: _value(item, f"{key} of {name}") for key, item in given.items()}
    try:
        return cls(**made)
    except JvidpruneError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise JvidpruneError(f"{name} cannot be made from its settings: {str(error).rstrip('.')}.") from error


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


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")
