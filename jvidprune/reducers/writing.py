"""The text of a reducer, in the form of `jvidprune.expressions`: `registry.from_text` makes an equal one of it."""

import dataclasses
import keyword
import math
from collections.abc import Callable
from typing import Any

from jvidprune.errors import JvidpruneError
from jvidprune.fields import settings_of
from jvidprune.ops import transport
from jvidprune.ops.transport.kinds import NAMES as PARTS
from jvidprune.reducers import registry
from jvidprune.reducers.compose import Sequential, chain
from jvidprune.reducers.protocol import Reducer, with_defaults
from jvidprune.weights import Weights

_Named = Callable[[str], Any]
"""From a bare name to the reducer that it stands for at this place; settings that are as there are not written."""


def expression(reducer: Reducer, backbone: str | None = None, layers: int | None = None) -> str:
    """A reducer as it is typed, e.g. "stop(base=flashvid(alpha=0.5), mu_s=0.03)"; settings that differ, in their order.

    Args:
      reducer: a method of this package, or a dataclass of the user's own.
      backbone, layers: whose settings need not be written; `registry.from_text` with the same ones reads the text.

    Raises:
      JvidpruneError: a reducer or a setting that no text can say: a function, an array, infinity.
    """
    return _method(reducer, lambda name: registry.get(name, backbone, layers))


def _method(reducer: Any, named: _Named) -> str:
    stages = _stages(reducer)
    if stages is not None:
        # Brackets keep a chain behind a plus together.
        return " + ".join(f"({_method(one, named)})" if _stages(one) else _method(one, named) for one in stages)
    name = registry.name_of(type(reducer))
    if name is None:
        if not isinstance(reducer, Reducer) or not dataclasses.is_dataclass(reducer):
            raise JvidpruneError(f"a {type(reducer).__name__} cannot be written as a method: it is no dataclass.")
        name = f"{type(reducer).__module__}:{type(reducer).__qualname__}"
    try:
        usual = named(name)
    except JvidpruneError:
        # It has settings without a default.
        usual = None
    own = with_defaults(reducer)
    return _call(name, reducer, usual, lambda inside: own.named_inside(inside) or registry.get(inside))


def _stages(reducer: Any) -> tuple[Any, ...] | None:
    """The stages of a chain in equal shares, None for anything else."""
    if not isinstance(reducer, Sequential):
        return None
    stages = [reducer.first]
    rest: Any = reducer.second
    while isinstance(rest, Sequential):
        stages.append(rest.first)
        rest = rest.second
    for found in ((*stages, rest), (reducer.first, reducer.second)):
        # A chain in front of a plus would be read as part of the whole one.
        if not isinstance(found[0], Sequential) and chain(*found) == reducer:
            return found
    return None


def _call(name: str, made: Any, usual: Any, inside: _Named) -> str:
    settings = []
    for field in settings_of(made):
        value = getattr(made, field)
        if usual is None or value != getattr(usual, field):
            known = None if usual is None else getattr(usual, field)
            settings.append(f"{field}={_value(value, f'{field} of {name}', inside, known)}")
    return f"{name}({', '.join(settings)})" if settings else name


def _value(value: Any, what: str, inside: _Named, usual: Any) -> str:
    if isinstance(value, str):
        return value if value.isidentifier() and not keyword.iskeyword(value) else repr(value)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, tuple) and all(isinstance(one, bool | int | float | str | tuple) for one in value):
        return f"[{', '.join(repr(one) for one in value)}]"
    if isinstance(value, Weights) and value.path is not None:
        return repr(value.path)
    name = type(value).__name__
    if name in PARTS and type(value) is getattr(transport, name):
        # Parts that a transport lacks are the method's own at that place.
        completed = isinstance(value, transport.Transport) and isinstance(usual, transport.Transport)
        return _call(name, value, usual if completed else _usual_part(type(value)), inside)
    if isinstance(value, Reducer):
        return _method(value, inside)
    raise JvidpruneError(f"{what} is a {name}, which cannot be written in a method's text.")


def _usual_part(cls: type) -> Any:
    try:
        return cls()
    except TypeError:
        return None
