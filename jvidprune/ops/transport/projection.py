"""From a transport plan to new anchors: which share of each source an anchor takes."""

from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.ops.select import first_argmax

ProjectionName = Literal["mass", "row", "column", "hard"]
Projection = ProjectionName | Callable[[Array], Array]


def normalise_plan(plan: Float[Array, "... R A"], kind: Projection) -> Float[Array, "... R A"]:
    """Weights of sources in anchors.

    Args:
      plan: (..., R, A) transported mass.
      kind: "mass" takes the plan as it is (AOT inside frames: 1/A an anchor), "row" gives every source mass 1 (AOT
        between frames), "column" gives every anchor mass 1 (barycentric map), "hard" sends each source to the first
        anchor of its largest entry; or any function of the plan.

    Raises:
      JvidpruneError: unknown projection.
    """
    if callable(kind):
        return kind(plan)
    if kind == "mass":
        return plan
    if kind == "row":
        return plan / jnp.maximum(plan.sum(-1, keepdims=True), 1e-9)
    if kind == "column":
        return plan / jnp.maximum(plan.sum(-2, keepdims=True), 1e-9)
    if kind == "hard":
        best = first_argmax(plan)[..., None] == jnp.arange(plan.shape[-1])
        return jnp.where(best & (plan.sum(-1, keepdims=True) > 0), 1.0, 0.0)
    known = ", ".join(get_args(ProjectionName))
    raise JvidpruneError(f"unknown projection {kind!r}; known: {known}, or a function of the plan.")


def blend(
    weights: Float[Array, "... R A"], scale: float | Array = 1.0
) -> tuple[Float[Array, "... A"], Float[Array, "... R A"]]:
    """Coefficients of (x_a + scale * sum_r w_ra x_r) / (1 + scale * sum_r w_ra): the anchor's own, the sources'."""
    divisor = 1.0 + scale * jnp.maximum(weights.sum(-2), 1e-9)
    return 1.0 / divisor, scale * weights / divisor[..., None, :]


def strongest(
    plan: Float[Array, "... R A"], target: Int[Array, "... R A"], most: int = 4
) -> tuple[Int[Array, "... R F"], Float[Array, "... R F"]]:
    """The largest entries of each source, for drawing a plan.

    Args:
      plan: transported mass, or any non-negative weights.
      target: id behind each entry.
      most: F, entries of a source.

    Returns:
      ids, -1 where a source sends nothing more, and the shares of the source's mass that they stand for.
    """
    missing = max(most - plan.shape[-1], 0)
    plan = jnp.pad(plan, [(0, 0)] * (plan.ndim - 1) + [(0, missing)])
    target = jnp.pad(target, [(0, 0)] * (target.ndim - 1) + [(0, missing)])
    mass, place = lax.top_k(plan, most)
    share = mass / jnp.maximum(plan.sum(-1, keepdims=True), 1e-30)
    return jnp.where(mass > 0, jnp.take_along_axis(target, place, axis=-1), -1), share
