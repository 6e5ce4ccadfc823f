"""Transport that respects the layout: fused Gromov-Wasserstein between two frames, by ott-jax."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Iterations, NotNegative, Share, Temperature, check_fields, pytree
from jvidprune.ops.transport.gradients import held_still, without_derivatives
from jvidprune.ops.transport.ott import each_problem, trace_of_mass
from jvidprune.ops.transport.solvers import TransportResult, transport_result

_STATIC = {"static": True}


@pytree
@dataclasses.dataclass(frozen=True)
class GromovWasserstein:
    """`ott.solvers.quadratic.gromov_wasserstein.GromovWasserstein`: tokens that are near stay near.

    Least (1 - s) sum_ij C_ij P_ij + s sum_ijkl (|p_i - p_k| - |q_j - q_l|)^2 P_ij P_kl + epsilon sum P (log P - 1) over
    plans that meet both masses, with the places p of the sources and q of the anchors (Vayer et al. 2019, arXiv
    1805.09114; Peyre et al. 2016 for the algorithm). s = 1 matches the layout alone, whatever the tokens are: of two
    equal grids each mirror image is as good. Distances within a frame do not change when all of it moves, so that a
    pan of the camera costs nothing, where |p - q| in a cost charges for it.

    Each outer step linearises the quadratic term at the plan and solves that by Sinkhorn in the log domain, from the
    product of the masses. The problem is not convex: what is found is a stationary point. `gap` is that of the problem
    linearised at the plan, 0 at such a point; `iterations` counts outer steps. There are no derivatives:
    `plan_gradient="through"` and `jax.grad` are refused.

    Attributes:
      structure: s, traced.
      epsilon: temperature, traced.
      threshold: relative change of the cost below which outer steps stop; static.
      max_iterations: cap of outer steps; static.
      inner_threshold: L1 error of a marginal at which Sinkhorn stops; static.
      inner_iterations: cap of Sinkhorn; static.
    """

    structure: Share = 0.5
    epsilon: Temperature = 0.02
    threshold: NotNegative = dataclasses.field(default=1e-4, metadata=_STATIC)
    max_iterations: Iterations = dataclasses.field(default=30, metadata=_STATIC)
    inner_threshold: NotNegative = dataclasses.field(default=1e-4, metadata=_STATIC)
    inner_iterations: Iterations = dataclasses.field(default=500, metadata=_STATIC)

    differentiable = False
    reads_places = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def updates(self) -> int:
        """Sinkhorn's in all outer steps."""
        return self.max_iterations * self.inner_iterations

    def __call__(
        self,
        cost: Float[Array, "... R A"],
        mu: Float[Array, "... R"],
        nu: Float[Array, "... A"],
        sources: Float[Array, "... R 2"] | None = None,
        anchors: Float[Array, "... A 2"] | None = None,
    ) -> TransportResult:
        """Solves every problem of the leading axes.

        Args:
          cost, mu, nu: as for every solver.
          sources, anchors: places (x, y) of the tokens of both sides, of any number of coordinates.

        Raises:
          JvidpruneError: no places.
        """
        if sources is None or anchors is None:
            raise JvidpruneError(
                "GromovWasserstein compares places: call it as solver(cost, mu, nu, sources, anchors)."
            )
        given = cost, mu, nu, sources, anchors
        still, *held = held_still((self, *given))

        def one(*args: Array) -> TransportResult:
            return still._one(*args)

        result = each_problem(one, *held)
        return without_derivatives("GromovWasserstein", result, (given, self.structure, self.epsilon))

    def _one(self, cost: Array, mu: Array, nu: Array, sources: Array, anchors: Array) -> TransportResult:
        from ott.geometry import geometry
        from ott.problems.quadratic import quadratic_problem
        from ott.solvers.linear import sinkhorn
        from ott.solvers.quadratic import gromov_wasserstein

        pairs = (mu[:, None] > 0) & (nu[None] > 0)
        linear = jnp.where(pairs, (1.0 - jnp.asarray(self.structure)) * cost, 0.0)
        # ott keeps epsilon in what it compiles: everything is divided by it instead. Its linearisation is half of the
        # derivative of the quadratic term, which the factor 2 makes up for.
        weight = jnp.sqrt(2.0 * jnp.asarray(self.structure) / self.epsilon)
        layouts = [geometry.Geometry(cost_matrix=weight * _apart(place)) for place in (sources, anchors)]
        across = geometry.Geometry(cost_matrix=linear / self.epsilon)
        a, b = trace_of_mass(mu, nu), trace_of_mass(nu, mu)
        problem = quadratic_problem.QuadraticProblem(layouts[0], layouts[1], across, a=a, b=b)
        inner = min(10, self.inner_iterations)
        solver = gromov_wasserstein.GromovWasserstein(
            sinkhorn.Sinkhorn(
                threshold=self.inner_threshold, max_iterations=self.inner_iterations, inner_iterations=inner
            ),
            epsilon=1.0,
            threshold=self.threshold,
            min_iterations=min(5, self.max_iterations),
            max_iterations=self.max_iterations,
        )
        output: Any = solver(problem)
        state = output.linear_state
        plan = jnp.where(pairs, state.matrix, 0.0)
        gap = self._gap(plan, pairs, output.geom.cost_matrix, mu, nu, state.f, state.g)
        return transport_result(plan, mu, nu, jnp.sum(output.costs != -1), gap=gap)

    def _gap(
        self, plan: Array, pairs: Array, cost: Array, mu: Array, nu: Array, f: Array, g: Array
    ) -> Float[Array, ""]:
        """Entropic cost of the plan under the costs linearised at it, less the dual value of its potentials there.

        All but plan and masses in units of epsilon. The plan solves the problem that was linearised one step before.
        """
        f, g = jnp.where(mu > 0, f, 0.0), jnp.where(nu > 0, g, 0.0)
        dual_plan = jnp.where(pairs, jnp.exp(jnp.minimum(jnp.where(pairs, f[:, None] + g - cost, 0.0), 80.0)), 0.0)
        log_plan = jnp.log(jnp.where(plan > 0, plan, 1.0))
        # plan (cost + log plan) - plan - (f mu + g nu - dual plan), with f and g taken into the sum of the plan.
        inside = plan * (cost + log_plan - f[:, None] - g) - plan + dual_plan
        outside = (f * (plan.sum(1) - mu)).sum() + (g * (plan.sum(0) - nu)).sum()
        return self.epsilon * (jnp.where(pairs, inside, 0.0).sum() + outside)


def _apart(place: Array) -> Array:
    squared = jnp.sum((place[:, None] - place[None]) ** 2, axis=-1)
    return jnp.sqrt(squared)
