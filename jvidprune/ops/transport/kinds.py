"""What may stand for a transport and for its parts: objects, functions, or names as texts."""

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated, Any, get_args

from jvidprune.errors import JvidpruneError
from jvidprune.expressions import own_reference, parse_call
from jvidprune.ops.transport.projection import ProjectionName
from jvidprune.own_code import named, said
from jvidprune.texts import unknown

if TYPE_CHECKING:
    from jvidprune.ops.transport.transport import Transport

_NAMED: dict[str, tuple[str, ...]] = {
    "cost": ("TokenCost", "ClipCost", "LocalityCost", "LearnedCost"),
    "marginals": ("Uniform", "Saliency", "LeaveOneOut", "LearnedMasses"),
    "solver": (
        "Sinkhorn",
        "FixedSinkhorn",
        "LogSinkhorn",
        "Dustbin",
        "Partial",
        "OttSinkhorn",
        "LowRank",
        "GromovWasserstein",
    ),
    "transport": ("Transport",),
}
"""Parts that are numbers and names alone, which texts and saved settings can make."""

_OTHER: dict[str, tuple[str, ...]] = {"cost": ("OnRows",)}

NAMES = tuple(name for names in _NAMED.values() for name in names)
"""All that texts and saved settings can make."""


@dataclasses.dataclass(frozen=True)
class PartOf:
    """The rule of `fields` for one kind of part.

    Attributes:
      kind: "cost", "marginals" or "solver".
      takes: positional arguments that it is called with.
    """

    kind: str
    takes: tuple[str, ...]

    @property
    def words(self) -> str:
        """What is allowed."""
        own = ", an ott CostFn" if self.kind == "cost" else ""
        return f"one of {', '.join(_NAMED[self.kind])}{own} or a function of ({', '.join(self.takes)})"

    def check(self, value: Any) -> Any:
        """The part; a text such as "Sinkhorn(epsilon=0.5)" or "./my.py:MyCost(weight=2)" is made into what it names.

        Raises:
          JvidpruneError: an unknown name or setting, or code that cannot be imported or is no such part.
          ValueError: anything else that cannot be called as this kind of part.
        """
        if isinstance(value, str):
            return _named(self.kind, value, self)
        if isinstance(value, type) or type(value) in _classes(*(kind for kind in _NAMED if kind != self.kind)):
            raise ValueError
        if self.kind == "cost" and hasattr(value, "all_pairs"):
            return value
        if not callable(value) or not _fits(value, len(self.takes)):
            raise ValueError
        return value


class _ProjectionRule:
    """The rule of `fields` for what is read of a plan."""

    words = f"{', '.join(map(repr, get_args(ProjectionName)))} or a function of the plan"

    def check(self, value: Any) -> Any:
        if isinstance(value, str) and value in get_args(ProjectionName):
            return value
        if isinstance(value, type) or type(value) in _classes(*_NAMED) or not callable(value) or not _fits(value, 1):
            raise ValueError
        return value


@dataclasses.dataclass(frozen=True)
class CompletedBy:
    """The rule of `fields` for a transport: the parts that it lacks are the method's.

    Attributes:
      own: the method's transport at that place, complete.
    """

    own: "Transport"
    words = "a Transport"

    def check(self, value: Any) -> Any:
        """The complete transport; a text such as "Transport(solver=Sinkhorn(epsilon=0.5))" is made into what it names.

        Raises:
          JvidpruneError: an unknown name or setting.
          ValueError: anything that is no transport.
        """
        made = _named("transport", value, None) if isinstance(value, str) else value
        if not isinstance(made, type(self.own)):
            raise ValueError
        return made.over(self.own)


def _own(name: str, where: str, cls: str, settings: dict[str, Any], part: PartOf, places: tuple = ()) -> Any:
    """A part of the user's own: an object, or a class or a function that is made into one with its settings."""

    def check(thing: Any) -> None:
        if not callable(thing):
            raise JvidpruneError(f"{name} is no {part.kind}, which is {part.words}.")

    found = named(where, cls, check, f"a {part.kind}")
    if isinstance(found, type) or settings or places:
        try:
            found = found(*places, **settings)
        except JvidpruneError:
            raise
        except Exception as error:
            given = ", ".join([*map(repr, places), *(f"{key}={value!r}" for key, value in settings.items())])
            raise JvidpruneError(f"{name} cannot be made with {given or 'no settings'}: {said(error)}.") from error
    try:
        return part.check(found)
    except ValueError:
        raise JvidpruneError(f"{name} is no {part.kind}, which is {part.words}.") from None


def _named(kind: str, text: str, part: PartOf | None) -> Any:
    from jvidprune.ops import transport

    name, settings, _, places = parse_call(text)
    own = own_reference(name)
    if own is not None and part is not None and own[0] not in _NAMED[kind]:
        return _own(name, *own, settings, part, places)
    if name not in _NAMED[kind]:
        raise JvidpruneError(unknown(kind, name, _NAMED[kind]))
    cls = getattr(transport, name)
    allowed = tuple(field.name for field in dataclasses.fields(cls))
    if len(places) > len(allowed) or set(allowed[: len(places)]) & set(settings):
        raise JvidpruneError(f"{name} has the settings {', '.join(allowed) or 'none'}, each once, got {text}.")
    settings = dict(zip(allowed, places, strict=False)) | settings
    for key in settings:
        if key not in allowed:
            raise JvidpruneError(unknown(f"setting of {name}", key, allowed))
    return cls(**settings)


CostPart = Annotated[Any, PartOf("cost", ("x", "y"))]
MarginalsPart = Annotated[Any, PartOf("marginals", ("x", "y"))]
SolverPart = Annotated[Any, PartOf("solver", ("cost", "mu", "nu"))]
ProjectionPart = Annotated[Any, _ProjectionRule()]


def _classes(*kinds: str) -> tuple[type, ...]:
    from jvidprune.ops import transport

    return tuple(getattr(transport, name) for kind in kinds for name in (*_NAMED[kind], *_OTHER.get(kind, ())))


def _fits(function: Any, arguments: int) -> bool:
    """Whether a callable takes so many positional arguments, as far as its signature can be read."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(arguments))
    except TypeError:
        return False
    return True
