"""What code stands behind a user's own reducer, cost or rule: its module's file and what its functions compute.

The package's own sources are hashed as a whole (`identity.code_fingerprint`); what comes from elsewhere is not among
them, and would otherwise be known by its name alone.
"""

import ast
import functools
import hashlib
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1].resolve()
_LIBRARIES = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_INSTALLED = {"site-packages", "dist-packages"}
_PLAIN = (str, bytes, int, float, complex, bool, type(None))

Describe = Callable[[Any], Any]
"""Values as JSON holds them (`identity.plain`)."""


def source_of(thing: Any, describe: Describe) -> dict[str, Any] | None:
    """What a class or function from outside the package is made of.

    Args:
      thing: a class or a function.
      describe: for values that functions carry along: defaults, closures, bound arguments.

    Returns:
      "file": hash of the module's file and of the user's own modules that it imports, None where it has none (a
      notebook, a prompt); "code": hash of what the functions compute, with the values they carry. None for what the
      package, Python or no source at all stands behind.
    """
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    path = _file(module)
    if (path is not None and _is_ours(path)) or (path is None and not _codes(thing)):
        return None
    if path is not None and _is_library(path) and _INSTALLED.isdisjoint(path.parts):
        return None
    digest = hashlib.sha256()
    for name, part in sorted(_codes(thing)):
        digest.update(f"{name}:{_described(part, describe, module if path is None else None, set())}".encode())
    return {"file": None if path is None else _hash_of_files(module), "code": digest.hexdigest()[:16]}


def _file(module: types.ModuleType | None) -> Path | None:
    name = getattr(module, "__file__", None)
    path = None if name is None else Path(name).resolve()
    return path if path is not None and path.is_file() else None


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(_PACKAGE)


def _is_library(path: Path) -> bool:
    return not _INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(folder) for folder in _LIBRARIES)


def _hash_of_files(module: Any) -> str:
    """A hash of a module's file and of the files of the user's own modules that it reaches."""
    files: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        one = waiting.pop()
        path = _file(one)
        if path is None or str(path) in files:
            continue
        if _is_ours(path) or (one is not module and _is_library(path)):
            continue
        text = path.read_bytes()
        files[str(path)] = hashlib.sha256(text).digest()
        if not _is_library(path):
            waiting += [sys.modules[name] for name in _imported(text, one) if name in sys.modules]
    # The contents decide, not where the files lie: a moved folder is the same code.
    return hashlib.sha256(b"".join(sorted(files.values()))).hexdigest()[:16]


def _imported(text: bytes, module: types.ModuleType) -> Iterator[str]:
    """Names of the modules that a source imports, wherever in it; some may be names of what is in a module."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        # An extension module, or a file that was edited since.
        return
    package = getattr(module, "__package__", None) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _codes(thing: Any) -> list[tuple[str, Any]]:
    """The functions of a class, inherited ones of other outside classes included, or the function itself, by name."""
    if not isinstance(thing, type):
        function = _function(thing)
        return [] if function is None else [("", function)]
    found: dict[str, Any] = {}
    for base in thing.__mro__:
        path = _file(sys.modules.get(base.__module__))
        if base is object or (path is not None and (_is_ours(path) or _is_library(path))):
            continue
        for name, member in vars(base).items():
            for suffix, function in _functions(member):
                # Methods that `dataclasses` writes follow from the fields.
                if not (name.startswith("__") and function.__code__.co_filename == "<string>"):
                    found.setdefault(f"{name}{suffix}", function)
            if isinstance(member, _PLAIN) and not name.startswith("__"):
                found.setdefault(name, member)
    return list(found.items())


def _functions(member: Any) -> Iterator[tuple[str, types.FunctionType]]:
    if isinstance(member, property):
        parts = {".get": member.fget, ".set": member.fset}
    elif isinstance(member, functools.cached_property):
        parts = {".get": member.func}
    elif isinstance(member, staticmethod | classmethod):
        parts = {"": member.__func__}
    else:
        parts = {"": member}
    for suffix, part in parts.items():
        function = _function(part)
        if function is not None:
            yield suffix, function


def _function(value: Any) -> types.FunctionType | None:
    """The Python function behind a method or a jitted one."""
    if isinstance(value, types.MethodType):
        value = value.__func__
    try:
        value = inspect.unwrap(value)
    except ValueError:
        return None
    return value if isinstance(value, types.FunctionType) else None


def _described(value: Any, describe: Describe, module: types.ModuleType | None, seen: set[int]) -> str:
    """A function as text: its instructions, constants and the values that it carries.

    Args:
      value: a function, or a plain value.
      describe: for the values.
      module: whose globals are followed, where no file stands for them.
      seen: functions on the way here.
    """
    function = _function(value)
    if function is None:
        return repr(describe(value))
    if id(function) in seen:
        return function.__qualname__
    seen = seen | {id(function)}
    parts = [_instructions(function.__code__)]
    carried = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            carried.append(cell.cell_contents)
        except ValueError:
            # Not yet bound, e.g. the class that the function is being defined in.
            continue
    if module is not None:
        names = sorted(_names(function.__code__))
        carried += [vars(module)[name] for name in names if name in vars(module)]
    for one in carried:
        inner = _function(one)
        if inner is not None:
            parts.append(_described(inner, describe, module, seen))
        elif not isinstance(one, type | types.ModuleType):
            parts.append(repr(describe(one)))
    return "|".join(parts)


def _instructions(code: types.CodeType) -> str:
    return f"{code.co_code.hex()}{code.co_names}{code.co_varnames}{[_constant(value) for value in code.co_consts]}"


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _instructions(value)
    if isinstance(value, frozenset):
        return repr(sorted(map(_constant, value)))
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(value) for value in code.co_consts if isinstance(value, types.CodeType)]
    return set(code.co_names).union(*inner)
