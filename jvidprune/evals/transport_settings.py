"""Costs x masses x solvers x temperatures x projections as methods: the grid that `jvidprune costs` compares."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

from jvidprune.errors import JvidpruneError
from jvidprune.ops.transport import Transport
from jvidprune.reducers.protocol import Reducer, title_of

OWN = "own"
"""In the place of a part: the method's own."""

Where = Literal["inside", "along", "both"]
"""Which transports of AOT; OTT-Vid has one, between frames."""


def transports_of(reducer: Any, where: Where) -> tuple[str, ...]:
    """Names of the settings that hold a method's transports.

    Raises:
      JvidpruneError: a method without any, or without that one.
    """
    names = getattr(type(reducer), "__dataclass_fields__", {})
    if "transport" in names:
        return ("transport",)
    if "intra_transport" not in names:
        raise JvidpruneError(f"{title_of(reducer)} moves nothing by optimal transport: choose aot or ottvid.")
    chosen = {"inside": ("intra_transport",), "along": ("inter_transport",)}
    found = chosen.get(where, ("intra_transport", "inter_transport"))
    if not getattr(reducer, "inter", True):
        found = tuple(name for name in found if name != "inter_transport")
    if not found:
        raise JvidpruneError("this method has no transport along clips.")
    return found


def with_epsilon(solver: Any, epsilon: float) -> Any:
    """A solver at another temperature; of one that holds a solver that one's.

    Raises:
      JvidpruneError: a solver that has no epsilon.
    """
    names = getattr(type(solver), "__dataclass_fields__", {})
    if "epsilon" in names:
        return dataclasses.replace(solver, epsilon=epsilon)
    if "solver" in names:
        return dataclasses.replace(solver, solver=with_epsilon(solver.solver, epsilon))
    raise JvidpruneError(f"the solver {type(solver).__name__} has no epsilon to vary.")


def settings(
    reducer: Reducer,
    *,
    costs: Sequence[Any] = (OWN,),
    masses: Sequence[Any] = (OWN,),
    solvers: Sequence[Any] = (OWN,),
    epsilons: Sequence[float] = (),
    projections: Sequence[Any] = (OWN,),
    where: Where = "both",
) -> dict[str, Reducer]:
    """Every combination as a method, by a name that says what differs.

    Args:
      reducer: AOT or OTT-Vid with its other settings.
      costs, masses, solvers, projections: parts, or texts such as "./my.py:MyCost(0.5)", or "own".
      epsilons: temperatures; empty leaves each solver its own.
      where: which transports are changed.

    Raises:
      JvidpruneError: a method without transport, an unknown part, or a solver without epsilon.
    """
    found: dict[str, Reducer] = {}
    places = transports_of(reducer, where)
    kinds: dict[str, Sequence[Any]] = {"cost": costs, "marginals": masses, "solver": solvers, "projection": projections}
    if empty := [kind for kind, choices in kinds.items() if not choices]:
        raise JvidpruneError(f"there is no {empty[0]} to try.")
    for parts in itertools.product(*kinds.values()):
        chosen = {kind: part for kind, part in zip(kinds, parts, strict=True) if part != OWN}
        varied = [_name(part) for kind, part in chosen.items() if len(kinds[kind]) > 1]
        varied += [OWN] if not varied and any(len(choices) > 1 for choices in kinds.values()) else []
        for epsilon in epsilons or (None,):
            changed = {}
            for place in places:
                made = Transport(**chosen).over(getattr(reducer, place))
                if epsilon is not None:
                    made = dataclasses.replace(made, solver=with_epsilon(made.solver, epsilon))
                changed[place] = made
            words = [*varied, *([f"eps {epsilon:g}"] if epsilon is not None and len(epsilons) > 1 else [])]
            name = " ".join(words) or _single(chosen, epsilon)
            if name in found:
                raise JvidpruneError(f"{name} is there twice.")
            found[name] = dataclasses.replace(reducer, **changed)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return found


def _single(chosen: dict[str, Any], epsilon: float | None) -> str:
    words = [_name(part) for part in chosen.values()] + ([] if epsilon is None else [f"eps {epsilon:g}"])
    return " ".join(words) or OWN


def _name(part: Any) -> str:
    if isinstance(part, str):
        return part
    return getattr(part, "__name__", None) or repr(part)
