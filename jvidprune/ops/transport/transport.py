"""A transport as one value: cost, marginals, solver and projection."""

import dataclasses
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.fields import check_fields
from jvidprune.ops.transport.cost import Rows, cost_matrix
from jvidprune.ops.transport.kinds import CostPart, MarginalsPart, ProjectionPart, SolverPart
from jvidprune.ops.transport.projection import normalise_plan
from jvidprune.ops.transport.solvers import differentiable, reads_places


def check_derivatives(owner: str, *transports: "Transport") -> None:
    """Refuses solvers without derivatives, for methods whose plan_gradient is "through".

    Raises:
      JvidpruneError: names the solver.
    """
    for parts in transports:
        if not differentiable(parts.solver):
            raise JvidpruneError(
                f"{owner}'s plan_gradient='through' needs a solver with derivatives, and {type(parts.solver).__name__} "
                "has none: take Sinkhorn, LogSinkhorn, FixedSinkhorn or OttSinkhorn, or one inside Dustbin or Partial."
            )


class Problem(NamedTuple):
    """What a solver is given: costs (R, A) and the masses (R,) and (A,) of both sides, 0 on padding."""

    cost: Float[Array, "R A"]
    mu: Float[Array, "R"]
    nu: Float[Array, "A"]


@dataclasses.dataclass(frozen=True)
class Transport:
    """The four parts of a transport, each exchangeable; a part that is None is the method's own at that place.

    A method completes what it is given, `AOT(intra_transport=Transport(cost=TokenCost(w_pos=0.0)))` keeps the
    marginals, the solver and the projection that AOT has inside frames.

    Attributes:
      cost: `(x: Rows, y: Rows) -> (R, A)`, or an ott `CostFn` on the features.
      marginals: `(x, y) -> (mu, nu)`.
      solver: `(cost, mu, nu) -> TransportResult` over any leading axes; one whose `reads_places` is True is called with
        the places of both sides behind these.
      projection: what the method reads of a plan, see `normalise_plan`.

    Raises:
      JvidpruneError: what cannot be such a part.
    """

    cost: CostPart = None
    marginals: MarginalsPart = None
    solver: SolverPart = None
    projection: ProjectionPart = None

    def __post_init__(self) -> None:
        check_fields(self)

    def over(self, other: Self) -> Self:
        """This transport with the parts of another one where it has none."""
        missing = {f.name: getattr(other, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) is None}
        return dataclasses.replace(self, **missing) if missing else self

    def problem(self, x: Rows, y: Rows) -> Problem:
        """Costs and masses between the rows of two sides."""
        return Problem(cost_matrix(self.cost, x, y), *self.marginals(x, y))

    def places(self, x: Rows, y: Rows) -> tuple[()] | tuple[Float[Array, "R 2"], Float[Array, "A 2"]]:
        """What the solver is given behind a problem: the places of both sides if it compares them, else nothing."""
        return (x.position, y.position) if reads_places(self.solver) else ()

    def weights(self, plan: Float[Array, "... R A"]) -> Float[Array, "... R A"]:
        """A plan under the projection."""
        return normalise_plan(plan, self.projection)

    def numbers(self) -> tuple:
        """`numeric_leaves` of cost, marginals and solver: a pytree to be traced, vmapped over and differentiated in."""
        return tuple(numeric_leaves(part) for part in (self.cost, self.marginals, self.solver))

    def without_numbers(self) -> Self:
        """The same transport for compiled programs, whose numbers and arrays `with_numbers` brings back.

        Equal and hashed by its structure alone: programs of other numbers are the same, and arrays have no hash.
        """
        cost, marginals, solver = self.numbers()
        return dataclasses.replace(
            self,
            cost=self.cost if cost is None else _Absent(jax.tree.structure(cost)),
            marginals=self.marginals if marginals is None else _Absent(jax.tree.structure(marginals)),
            # A solver is asked for its static settings.
            solver=self.solver if solver is None else jax.tree.map(lambda _: 1.0, solver),
        )

    def with_numbers(self, numbers: tuple) -> Self:
        """The same transport with traced numbers, of the form that `numbers` gives, in place of its own."""
        parts = zip(("cost", "marginals", "solver"), numbers, strict=True)
        return dataclasses.replace(self, **{name: part for name, part in parts if part is not None})


@dataclasses.dataclass(frozen=True)
class _Absent:
    """Stands for a cost or for marginals whose numbers travel apart from the program."""

    structure: Any

    def __call__(self, x: Rows, y: Rows) -> Any:
        raise TypeError(f"a part of the structure {self.structure} has no numbers here: see Transport.with_numbers")


def numeric_leaves(part: Any) -> Any:
    """The same configuration with float32 scalars in place of its numbers, ready to be traced; None if it has none.

    Arrays stay arrays, those of numpy in float32. Anything that is no pytree of both (a plain function, an unregistered
    class) stays static.
    """
    leaves = jax.tree.leaves(part)
    if not leaves or not all(isinstance(v, _NUMBERS) and not isinstance(v, bool) for v in leaves):
        return None
    return jax.tree.map(_traced, part)


_NUMBERS = (int, float, np.number, np.ndarray, jax.Array)


def _traced(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    return leaf.astype(np.float32) if isinstance(leaf, np.ndarray) else np.float32(leaf)
