"""Code of the user's own by its name: "module:Name" and "./file.py:Name".

A module is looked for where Python looks, then in the working directory. What a user names in a call or on the command
line is imported; what a file or a page names is not, unless the user allowed it (`code_refused`).
"""

import contextlib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.texts import unknown

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


def named(where: str, name: str, check: Callable[[Any], None], wanted: str) -> Any:
    """What a module or a file of the user's own has under a name.

    Args:
      where: a module such as "my_module", or a file such as "./my_reducer.py".
      name: in it.
      check: raises JvidpruneError for what it may not be.
      wanted: what it should be, in a sentence.

    Raises:
      JvidpruneError: code that nobody allowed to run, a module or file that is not there or cannot be imported, a name
        that is not in it, or what `check` raises.
    """
    is_file = where.endswith(".py") or "/" in where or "\\" in where
    try:
        path = Path(where).expanduser().resolve() if is_file else None
        module = where if path is None else _module_name(path)
    except (OSError, ValueError, RuntimeError) as error:  # no name that a file can have
        raise JvidpruneError(f"cannot read {quoted(where)}: {reason(error)}.") from error
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
            classes = [key for key, value in vars(made).items() if isinstance(value, type) and _fits(check, value)]
            raise JvidpruneError(unknown("class", name, (*classes,) or (f"none that is {wanted}",), f" of {where}"))
    check(found)
    _NAMED[module, name] = found
    return found


def _fits(check: Callable[[Any], None], thing: Any) -> bool:
    try:
        check(thing)
    except JvidpruneError:
        return False
    return True


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
        raise JvidpruneError(f"the module {where} cannot be imported: {said(error)}.") from error
    except Exception as error:
        raise JvidpruneError(f"the module {where} cannot be imported: {said(error)}.") from error


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
        raise JvidpruneError(f"{where} cannot be imported: {said(error)}.") from error
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


def said(error: BaseException) -> str:
    """An error of somebody else's code, in the middle of a sentence."""
    return f"{type(error).__name__}: {reason(error)}".rstrip(".")
