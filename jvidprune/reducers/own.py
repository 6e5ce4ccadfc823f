"""Reducers from outside this package: "module:Class", "./file.py:Class", and the entry points of installed packages.

A module is looked for where Python looks, then in the working directory. What a user names in a call or on the command
line is imported; what a file or a page names is not, unless the user allowed it (`code_refused`).
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from jvidprune.errors import JvidpruneError, reason
from jvidprune.reducers.protocol import with_defaults
from jvidprune.texts import unknown
from jvidprune.tokens import EVIDENCE

GROUP = "jvidprune.reducers"
"""Entry points of this group are methods by their names, as in [project.entry-points."jvidprune.reducers"]."""

_MEMBERS = {
    "needs": "needs",
    "budget": "budget(layout, ratio)",
    "capacity": "capacity(layout, ratio)",
    "plan": "plan(video, budget, capacity=...)",
}

_NAMED: dict[tuple[str, str], Any] = {}
"""(module, class) -> class, of what the user named in this process."""

_REFUSED: ContextVar[bool] = ContextVar("code_refused", default=False)


@contextlib.contextmanager
def code_refused(refused: bool = True) -> Iterator[None]:
    """Inside, classes that the user has not named before in this process are refused instead of imported."""
    token = _REFUSED.set(refused)
    try:
        yield
    finally:
        _REFUSED.reset(token)


def own_class(where: str, name: str) -> Any:
    """A class of the user's own, or an object that is a reducer already.

    Args:
      where: a module such as "my_module", or a file such as "./my_reducer.py".
      name: in it.

    Raises:
      JvidpruneError: code that nobody allowed to run, a module or file that is not there or cannot be imported, a name
        that is not in it, or a thing that is no reducer; the sentence names the first missing member.
    """
    is_file = where.endswith(".py") or "/" in where or "\\" in where
    path = Path(where).expanduser().resolve() if is_file else None
    module = where if path is None else _module_name(path)
    known = _NAMED.get((module, name))
    if known is None and _REFUSED.get():
        raise JvidpruneError(
            f"it names {name} of {where}, whose code would be run: allow that with allow_code=True or --allow-code if "
            "you trust where it comes from."
        )
    if path is None and known is not None and sys.modules.get(module) is not None:
        found = getattr(sys.modules[module], name, known)
    else:
        made = _by_name(where) if path is None else _by_file(path, where)
        found = getattr(made, name, None)
        if found is None:
            classes = [key for key, value in vars(made).items() if isinstance(value, type) and not _lacks(value)]
            raise JvidpruneError(unknown("class", name, (*classes,) or ("none that is a reducer",), f" of {where}"))
    check_members(found, name)
    _NAMED[module, name] = found
    return found


def check_members(thing: Any, name: str) -> None:
    """Refuses a class or object without the four members of a reducer.

    Raises:
      JvidpruneError: names what is missing.
    """
    lacks = _lacks(thing)
    if lacks:
        raise JvidpruneError(f"{name} is no reducer: of {', '.join(_MEMBERS.values())} it lacks {', '.join(lacks)}.")


def check_made(reducer: Any, name: str) -> None:
    """Refuses an object that jit cannot take, or that needs what no model gives.

    Raises:
      JvidpruneError: it has no hash, or asks for unknown evidence.
    """
    check_members(reducer, name)
    try:
        hash(with_defaults(reducer).without_numbers())
    except TypeError as error:
        raise JvidpruneError(
            f"{name} has no hash, which a reducer needs to be a static argument of jit: make it a frozen dataclass "
            f"({reason(error)})."
        ) from error
    if not isinstance(reducer.needs, frozenset | set):
        raise JvidpruneError(f"needs of {name} must be a frozenset of names, got {type(reducer.needs).__name__}.")
    for one in reducer.needs:
        if one not in EVIDENCE:
            raise JvidpruneError(unknown("evidence", one, tuple(EVIDENCE), f" in needs of {name}"))


@functools.cache
def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """Entry points of the group by method name."""
    return {one.name.lower().replace("-", "_"): one for one in importlib.metadata.entry_points(group=GROUP)}


def installed_class(name: str) -> Any:
    """The class behind an entry point.

    Raises:
      JvidpruneError: it cannot be imported, or is no reducer.
    """
    point = installed()[name]
    try:
        found = point.load()
    except Exception as error:
        raise JvidpruneError(f"{name} of an installed package cannot be imported: {_said(error)}.") from error
    check_members(found, name)
    return found


def _lacks(thing: Any) -> tuple[str, ...]:
    # `needs` may be a field without a default, which a class does not have as an attribute.
    fields = getattr(thing, "__dataclass_fields__", {})
    return tuple(name for name in _MEMBERS if not hasattr(thing, name) and name not in fields)


def _by_name(where: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise JvidpruneError(
                f"there is no module {where}, neither where Python looks nor in {Path.cwd()}; a file is written "
                "./file.py:Class."
            ) from error
        raise JvidpruneError(f"the module {where} cannot be imported: {_said(error)}.") from error
    except Exception as error:
        raise JvidpruneError(f"the module {where} cannot be imported: {_said(error)}.") from error


def _by_file(path: Path, where: str) -> ModuleType:
    try:
        stat = path.stat()
    except OSError as error:
        raise JvidpruneError(f"cannot read {where}: {reason(error)}.") from error
    # What it imports from beside itself is found, as when Python runs it.
    _look_in(path.parent)
    name, stamp = _module_name(path), (stat.st_mtime_ns, stat.st_size)
    if path in _FILES:
        # Once for each version of a file, as objects of one class are equal to each other alone.
        known, module = _FILES[path]
        if known == stamp:
            return module
    elif name in sys.modules and _file_of(sys.modules[name]) == path:
        _FILES[path] = stamp, sys.modules[name]
        return sys.modules[name]
    try:
        module = _run(path, name)
    except Exception as error:
        raise JvidpruneError(f"{where} cannot be imported: {_said(error)}.") from error
    _FILES[path] = stamp, module
    return module


_FILES: dict[Path, tuple[tuple[int, int], ModuleType]] = {}
"""Time and size of every file that was imported, with its module."""


def _run(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    # Dataclasses look their module up while they are made.
    sys.modules[name] = module
    try:
        # Without Python's cache of compiled files, which takes an edit within the same second for none.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _file_of(module: ModuleType) -> Path | None:
    origin = getattr(module, "__file__", None)
    return None if origin is None else Path(origin).resolve()


def _module_name(path: Path) -> str:
    """The file's own name, as when it is imported from its folder; another where that is another module's."""
    if not path.stem.isidentifier():
        return re.sub(r"\W", "_", f"own_{path.stem}")
    known = sys.modules.get(path.stem)
    if known is not None:
        own = _file_of(known) == path
    else:
        try:
            spec = importlib.util.find_spec(path.stem)
        except (ImportError, ValueError):
            spec = None
        own = spec is None or (spec.origin is not None and Path(spec.origin).resolve() == path)
    if own:
        return path.stem
    # By what it holds, so that the name (which a run's identity has) is the same wherever the file lies.
    digest = hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()[:8]
    return f"{path.stem}_{digest}"


def _look_in(folder: Path) -> None:
    # At the end: nothing of the user's takes the place of an installed module.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}".rstrip(".")
