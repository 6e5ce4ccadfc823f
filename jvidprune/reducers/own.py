"""Reducers from outside this package: "module:Class", "./file.py:Class", and the entry points of installed packages.

A module is looked for where Python looks, then in the working directory. What a user names in a call or on the command
line is imported; what a file or a page names is not, unless the user allowed it (`code_refused`).
"""

import functools
import importlib.metadata
from typing import Any

from jvidprune.errors import JvidpruneError, reason
from jvidprune.own_code import named, said
from jvidprune.reducers.protocol import Reducer, with_defaults
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


def own_class(where: str, name: str) -> Any:
    """A class of the user's own, or an object that is a reducer already.

    Args:
      where: a module such as "my_module", or a file such as "./my_reducer.py".
      name: in it.

    Raises:
      JvidpruneError: code that nobody allowed to run, a module or file that is not there or cannot be imported, a name
        that is not in it, or a thing that is no reducer; the sentence names the first missing member.
    """
    return named(where, name, lambda thing: check_members(thing, name), "a reducer")


def check_members(thing: Any, name: str) -> None:
    """Refuses a class or object without the four members of a reducer.

    Raises:
      JvidpruneError: names what is missing.
    """
    lacks = _lacks(thing)
    if lacks:
        raise JvidpruneError(f"{name} is no reducer: of {', '.join(_MEMBERS.values())} it lacks {', '.join(lacks)}.")


def check_given(reducer: Any) -> Reducer:
    """A reducer that was passed as an object.

    Raises:
      JvidpruneError: a class, or a thing without the four members.
    """
    name = reducer.__name__ if isinstance(reducer, type) else type(reducer).__name__
    if isinstance(reducer, type):
        raise JvidpruneError(f"a reducer is an object, and {name} is a class: make one of it, as in {name}().")
    check_members(reducer, name)
    return reducer


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
        raise JvidpruneError(f"{name} of an installed package cannot be imported: {said(error)}.") from error
    check_members(found, name)
    return found


def _lacks(thing: Any) -> tuple[str, ...]:
    # `needs` may be a field without a default, which a class does not have as an attribute.
    fields = getattr(thing, "__dataclass_fields__", {})
    return tuple(name for name in _MEMBERS if not hasattr(thing, name) and name not in fields)
