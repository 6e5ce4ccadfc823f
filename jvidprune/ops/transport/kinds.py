"""What may stand for the cost, the marginals and the solver of a transport: objects, functions, or names as texts."""

import dataclasses
import inspect
from typing import Annotated, Any

from jvidprune.errors import JvidpruneError
from jvidprune.ops.transport.cost import is_geometry
from jvidprune.texts import read_settings, unknown

_NAMED: dict[str, tuple[str, ...]] = {
    "cost": ("TokenCost", "ClipCost"),
    "marginals": ("Uniform", "Saliency"),
    "solver": ("Sinkhorn", "FixedSinkhorn", "Dustbin", "OttSinkhorn", "LowRank"),
}
"""Parts that are numbers and names alone, which texts and saved settings can make."""

_OTHER: dict[str, tuple[str, ...]] = {"cost": ("OnRows",), "marginals": ("Given",), "solver": ()}

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
        """The part; a text such as "Sinkhorn" or "Sinkhorn:epsilon=0.5" is made into what it names.

        Raises:
          JvidpruneError: an unknown name or setting.
          ValueError: anything else that cannot be called as this kind of part.
        """
        if isinstance(value, str):
            return self._named(value)
        if isinstance(value, type) or type(value) in _classes(*(kind for kind in _NAMED if kind != self.kind)):
            raise ValueError
        if self.kind == "cost" and (hasattr(value, "all_pairs") or is_geometry(value)):
            return value
        if not callable(value) or not _fits(value, len(self.takes)):
            raise ValueError
        return value

    def _named(self, text: str) -> Any:
        from jvidprune.ops import transport

        name, settings = read_settings(text)
        if name not in _NAMED[self.kind]:
            raise JvidpruneError(unknown(self.kind, name, _NAMED[self.kind]))
        cls = getattr(transport, name)
        allowed = tuple(field.name for field in dataclasses.fields(cls))
        for key in settings:
            if key not in allowed:
                raise JvidpruneError(unknown(f"setting of {name}", key, allowed))
        return cls(**settings)


CostPart = Annotated[Any, PartOf("cost", ("x", "y"))]
MarginalsPart = Annotated[Any, PartOf("marginals", ("x", "y"))]
SolverPart = Annotated[Any, PartOf("solver", ("cost", "mu", "nu"))]


def _classes(*kinds: str) -> tuple[type, ...]:
    from jvidprune.ops import transport

    return tuple(getattr(transport, name) for kind in kinds for name in (*_NAMED[kind], *_OTHER[kind]))


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
