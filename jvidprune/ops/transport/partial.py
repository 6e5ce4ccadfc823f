"""Transport that leaves mass where it is, by points that take it for nothing: the dustbin, and partial transport."""

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Range, Share, Weight, check_fields, pytree
from jvidprune.ops.transport.gradients import held_still
from jvidprune.ops.transport.kinds import SolverPart
from jvidprune.ops.transport.log_domain import LogSinkhorn
from jvidprune.ops.transport.solvers import Sinkhorn, TransportResult, differentiable, reads_places

_SCALINGS, _CONVERGED = Sinkhorn(), LogSinkhorn()


@pytree
@dataclasses.dataclass(frozen=True)
class Dustbin:
    """Any solver with one more anchor of constant cost, where sources that match nothing may leave their mass.

    `TransportResult.unmatched` says how much each source left there: a differentiable measure of distinctness. Anchors
    take (1 - mass) of their own masses; in `Partial` they too choose what they take.

    Attributes:
      solver: solves the enlarged problem.
      cost: of the dustbin, traced. As its mass is given, a converged plan does not depend on it.
      mass: share of all mass that it takes, traced.
    """

    solver: SolverPart = _SCALINGS
    cost: Weight = 0.6
    mass: Share = 0.3

    def __post_init__(self) -> None:
        check_fields(self)
        _check_inner(self)

    @property
    def differentiable(self) -> bool:
        """As the solver inside."""
        return differentiable(self.solver)

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """The plan without the dustbin's column; marginal errors are those of the enlarged problem."""
        nu = jnp.broadcast_to(nu, (*cost.shape[:-2], cost.shape[-1]))
        bin_cost = jnp.broadcast_to(jnp.asarray(self.cost, cost.dtype), (*cost.shape[:-1], 1))
        bin_mass = jnp.asarray(self.mass) * nu.sum(-1, keepdims=True)
        result = self.solver(
            jnp.concatenate([cost, bin_cost], -1), mu, jnp.concatenate([(1.0 - self.mass) * nu, bin_mass], -1)
        )
        return result._replace(plan=result.plan[..., :-1], unmatched=result.plan[..., -1])


@pytree
@dataclasses.dataclass(frozen=True)
class Partial:
    """Moves the share 1 - `share` of the mass, the cheapest there is, and leaves the rest: no token has to match.

    Of all plans whose rows sum to at most mu and whose columns to at most nu, the one of least (entropic) cost among
    those of mass m = (1 - share) min(sum mu, sum nu). Reduced to a balanced problem as in Chapel et al. (2020, arXiv
    2002.08276, section 3.1): a dummy anchor takes what sources keep, sum mu - m in all, a dummy source gives what
    anchors lack, sum nu - m. Both cost nothing to every token. From one to the other moving costs 2 max C and 100
    epsilon more, so that nothing goes there and exactly m moves between tokens. The solver inside solves that; the
    entropy counts what goes to the dummies too.

    `TransportResult.unmatched` is what each source keeps: AOT's `distinct="unmatched"` lets tokens stay by it.

    Attributes:
      share: of the mass that stays, traced.
      solver: solves the enlarged problem, balanced. Where it does not converge (AOT's early stop) more or less than m
        moves.
    """

    share: Annotated[float, Range(0, 1, below=True)] = 0.3
    solver: SolverPart = _CONVERGED

    def __post_init__(self) -> None:
        check_fields(self)
        _check_inner(self)
        taus = (getattr(self.solver, name, None) for name in ("tau_sources", "tau_anchors"))
        weights = (getattr(self.solver, name, None) for name in ("rho_sources", "rho_anchors"))
        if any(tau not in (None, 1.0) for tau in taus) or any(weight is not None for weight in weights):
            raise JvidpruneError(
                f"Partial's solver must be balanced, got {type(self.solver).__name__} with a relaxed side: what stays "
                "is set by Partial's share."
            )

    @property
    def differentiable(self) -> bool:
        """As the solver inside."""
        return differentiable(self.solver)

    def __call__(
        self, cost: Float[Array, "... R A"], mu: Float[Array, "... R"], nu: Float[Array, "... A"]
    ) -> TransportResult:
        """The plan between tokens; marginal errors, gap and convergence are those of the enlarged problem."""
        mu = jnp.broadcast_to(mu, cost.shape[:-1]).astype(cost.dtype)
        nu = jnp.broadcast_to(nu, (*cost.shape[:-2], cost.shape[-1])).astype(cost.dtype)
        given, taken = mu.sum(-1, keepdims=True), nu.sum(-1, keepdims=True)
        moved = (1.0 - jnp.asarray(self.share)) * jnp.minimum(given, taken)
        # Rounding must not leave a dummy with less than nothing.
        kept, lacking = jnp.maximum(given - moved, 0.0), jnp.maximum(taken - moved, 0.0)
        pairs = (mu > 0)[..., :, None] & (nu > 0)[..., None, :]
        largest = jnp.max(jnp.where(pairs, jnp.abs(held_still(cost)), 0.0), axis=(-2, -1))
        epsilon = held_still(jnp.asarray(getattr(self.solver, "epsilon", 0.0), cost.dtype))
        corner = (2.0 * largest + 100.0 * epsilon)[..., None, None]
        right = jnp.concatenate([cost, jnp.zeros_like(cost[..., :1])], -1)
        below = jnp.concatenate([jnp.zeros_like(cost[..., :1, :]), corner], -1)
        result = self.solver(
            jnp.concatenate([right, below], -2), jnp.concatenate([mu, lacking], -1), jnp.concatenate([nu, kept], -1)
        )
        # The kernel of the pair of dummies is meant to be nothing, and was counted.
        rows, columns = ((mass > 0).sum(-1) + (more > 0)[..., 0] for mass, more in ((mu, lacking), (nu, kept)))
        dummies = ((lacking > 0) & (kept > 0))[..., 0]
        lost = jnp.maximum(jnp.round(result.underflow * (rows * columns)) - dummies, 0.0)
        under = lost / jnp.maximum(pairs.sum((-2, -1)), 1)
        return result._replace(plan=result.plan[..., :-1, :-1], unmatched=result.plan[..., :-1, -1], underflow=under)


def _check_inner(made: Any) -> None:
    if reads_places(made.solver):
        raise JvidpruneError(
            f"{type(made).__name__} enlarges a problem by a point without a place, and {type(made.solver).__name__} "
            "needs places: take another solver inside."
        )
