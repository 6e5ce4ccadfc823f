"""What moving a token costs: callables of two sets of rows, with weights that can be traced and vmapped over.

Any callable `(x: Rows, y: Rows) -> (R, A)` is a cost; as a registered dataclass its float fields become traced
weights. An ott-jax `CostFn` or a callable that returns an ott `Geometry` works as it is.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jvidprune.fields import Share, Temperature, Weight, check_fields, pytree
from jvidprune.ops.similarity import cosine_from_gram, dot_f32, squared_norms, widened


class Rows(NamedTuple):
    """One side of a transport problem: n tokens and what is known of them.

    Attributes:
      features: (n, D).
      position: (n, 2) place in the frame as (x, y), each in [0, 1].
      time: (n,) float32 frame number.
      saliency: (n,) float32 attention received.
      mask: (n,) bool, False on padding.
      cosines: (R, A) cosines against the other side where the caller has them already (only on the source side).
      distances: (R, A) distances of the places likewise.
      coverage: (n,) what the tokens that are kept of the frame would cover less of it without this one, None where the
        method measures no coverage (only OTT-Vid does).
      feature_weight: () how much features count against places between these two frames, None where the method has no
        such weight (only OTT-Vid has; on the source side).
    """

    features: Float[Array, "n D"]
    position: Float[Array, "n 2"]
    time: Float[Array, "n"]
    saliency: Float[Array, "n"]
    mask: Bool[Array, "n"]
    cosines: Float[Array, "n m"] | None = None
    distances: Float[Array, "n m"] | None = None
    coverage: Float[Array, "n"] | None = None
    feature_weight: Float[Array, ""] | None = None


class Cost(Protocol):
    """Anything that prices every pair of a source row and an anchor row."""

    def __call__(self, x: Rows, y: Rows) -> Any:
        """(R, A) float32 costs, or an ott geometry of that shape; entries of padding may be anything finite."""
        ...


def cosine(x: Rows, y: Rows, eps: float = 1e-8) -> Float[Array, "R A"]:
    """Cosines of the features, norms floored at `eps`; taken from `x.cosines` where the caller provides them."""
    if x.cosines is not None:
        return x.cosines
    gram = dot_f32(x.features, y.features)
    return cosine_from_gram(gram, squared_norms(x.features), squared_norms(y.features), eps)


def distance(x: Rows, y: Rows) -> Float[Array, "R A"]:
    """Euclidean distance of the places in the frame (not squared), from `x.distances` where the caller has them."""
    if x.distances is not None:
        return x.distances
    squared = jnp.sum((x.position[:, None] - y.position[None]) ** 2, axis=-1)
    # sqrt has no gradient at zero; the pair of equal places takes 0 instead of NaN.
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def lag(x: Rows, y: Rows) -> Float[Array, "R A"]:
    """Frames between the two tokens, without sign."""
    return jnp.abs(x.time[:, None] - y.time[None])


@pytree
@dataclasses.dataclass(frozen=True)
class TokenCost:
    """w_feat (1 - cos) + w_pos |p - q| + w_time (1 - exp(-dt^2 / (2 sigma^2))), all weights traced.

    The defaults are AOT's cost inside frames (arXiv 2603.01400; spatial weight 0.5, no temporal term).
    """

    w_feat: Weight = 1.0
    w_pos: Weight = 0.5
    w_time: Weight = 0.0
    sigma: Temperature = 1.5

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, x: Rows, y: Rows) -> Float[Array, "R A"]:
        """(R, A) costs."""
        apart = 1.0 - jnp.exp(-(lag(x, y) ** 2) / (2.0 * self.sigma**2))
        return self.w_feat * (1.0 - cosine(x, y)) + self.w_pos * distance(x, y) + self.w_time * apart


@pytree
@dataclasses.dataclass(frozen=True)
class ClipCost:
    """AOT's cost between frames: (1 - cos) minus its smallest pair, times 1 - exp(-dt^2 / (2 sigma^2 + 1e-9)).

    `w_pos` adds |p - q|, which the reference does not have: as dt is the same for all pairs of two frames, its temporal
    factor is only a temperature.
    """

    w_feat: Weight = 1.0
    w_pos: Weight = 0.0
    sigma: Temperature = 1.5

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, x: Rows, y: Rows) -> Float[Array, "R A"]:
        """(R, A) costs; the minimum is taken over pairs without padding."""
        # Cosines are clamped as in the reference, so that equal tokens cost 1e-6 before the shift.
        feature = 1.0 - jnp.clip(cosine(x, y, 1e-12), -1.0 + 1e-6, 1.0 - 1e-6)
        pairs = x.mask[:, None] & y.mask[None]
        lowest = jnp.min(jnp.where(pairs, feature, jnp.inf))
        feature = feature - jnp.where(jnp.isfinite(lowest), lowest, 0.0)
        factor = 1.0 - jnp.exp(-(lag(x, y) ** 2) / (2.0 * self.sigma**2 + 1e-9))
        return self.w_feat * feature * factor + self.w_pos * distance(x, y)


@pytree
@dataclasses.dataclass(frozen=True)
class LocalityCost:
    """OTT-Vid's cost: alpha (1 - max(0, cos)) + (1 - alpha) |p - q| / sqrt(2), in [0, 1] (arXiv 2605.11803).

    alpha is `x.feature_weight`, which OTT-Vid raises from 0.5 to 1 the less two frames agree; where the method has no
    such weight it is `alpha`.
    """

    alpha: Share = 0.5

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, x: Rows, y: Rows) -> Float[Array, "R A"]:
        """(R, A) costs."""
        alpha = self.alpha if x.feature_weight is None else x.feature_weight
        apart = distance(x, y) / jnp.sqrt(jnp.float32(2.0))
        return alpha * (1.0 - jnp.maximum(cosine(x, y), 0.0)) + (1.0 - alpha) * apart


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnRows:
    """An ott `CostFn` that sees whole rows [feature | y, x | t] (D + 3 numbers) instead of features alone."""

    cost_fn: Any

    def __call__(self, x: Rows, y: Rows) -> Float[Array, "R A"]:
        """(R, A) costs."""
        return _pairwise(self.cost_fn, _whole(x), _whole(y))


def cost_matrix(cost: Any, x: Rows, y: Rows) -> Float[Array, "R A"]:
    """(R, A) costs of any kind of cost: a function, an ott `CostFn` on features, what makes an ott geometry.

    In float32, or in float64 where the cost is.
    """
    if hasattr(cost, "all_pairs"):
        priced = _pairwise(cost, *(side.features.astype(widened(side.features.dtype)) for side in (x, y)))
    else:
        priced = cost(x, y)
        # An ott geometry, told without importing ott.
        priced = priced.cost_matrix if hasattr(priced, "apply_lse_kernel") else priced
    priced = jnp.asarray(priced)
    return priced.astype(widened(priced.dtype))


def _whole(rows: Rows) -> Float[Array, "n W"]:
    features = rows.features.astype(widened(rows.features.dtype))
    return jnp.concatenate([features, rows.position[:, ::-1], rows.time[:, None]], axis=1)


def _pairwise(cost_fn: Any, x: Array, y: Array) -> Array:
    from ott.geometry import pointcloud

    return jnp.asarray(pointcloud.PointCloud(x, y, cost_fn=cost_fn, epsilon=1.0).cost_matrix)
