"""DivPrune: greedy max-min diversity over all tokens of the video (arXiv 2503.02175).

d_ij = 1 - cos(x_i, x_j) between tokens.

1. s_j = distance of token j to its nearest other token; the first pick is the largest s_j.
2. Every further pick is the token farthest from its nearest pick: argmax_j min_p d_pj.
3. k = round(ratio * tokens) picks stay, unchanged, in increasing position.

The order of the picks does not depend on k: one scan serves every ratio, and a ratio keeps a prefix of it. No text, no
attention. Follows the authors' one function (`vbdi/divprune`, commit 799e2d9), written for one image.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("divprune"), synthetic_tokens(grid=(6, 6)), 0.1).count.item()
29
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops import compact
from jvidprune.ops.layout import row_major
from jvidprune.ops.select import first_argmax
from jvidprune.ops.similarity import dot_f32, frame_gram, over_frames, squared_norms
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.counts import CountedReducer
from jvidprune.reducers.protocol import MethodInfo
from jvidprune.tokens import Layout, Plan, VideoTokens

EPS = 1e-12
"""Floor of a norm: a zero token is at distance 1 from all others, where the released code's NaN would take over."""

HELD_TOKENS = 8192
"""Tokens compared with each other up to which all their inner products are held (268 MB); above, a step makes its row
again, which reads the features once a pick."""


class DivPruneBudget(NamedTuple):
    """int32 scalar: picks of the video, or of each frame."""

    keep: Any


class DivPruneShared(NamedTuple):
    """Ratio-independent work on G groups of M tokens: the video (1, T * N), or its frames (T, N).

    Attributes:
      order: (G, k) int32 picks in order, places in the group.
      gain: (G, k) float32 distance of each pick to the nearest one before it, of the first to its nearest token.
      nearest: (G, M) float32 distance of every token to its nearest other one.
      real: (G, M) bool, False on padding.
    """

    order: Int[Array, "G k"]
    gain: Float[Array, "G k"]
    nearest: Float[Array, "G M"]
    real: Bool[Array, "G M"]


@dataclasses.dataclass(frozen=True)
class DivPrune(CountedReducer):
    """Keeps the tokens that lie farthest from each other, by greedy max-min on 1 - cosine.

    k = round(ratio * n) in float64, halves to even, and at least one token, where the released code keeps none. Frames
    get very different shares with `scope="video"`. Ties go to the lowest index.

    Attributes:
      scope: choose k of all T * N tokens of the `video`, as the released function does with its one flat list, or
        round(ratio * N) of every `frame`.
      distinct: never take a token twice. The released code does once all others equal a pick up to rounding, which
        takes exactly repeated frames; distinct=False returns such rows again, the lowest index first.
    """

    scope: Literal["video", "frame"] = "video"
    distinct: bool = True

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> DivPruneShared:
        """The order of the picks, as many as the capacity has room for; a sink rule has no place here."""
        frames, n, dim = video.features.shape
        whole = self.scope == "video"
        x = video.features.reshape(1, frames * n, dim) if whole else video.features
        real = jnp.broadcast_to(video.frame_mask[:, None], (frames, n)).reshape(x.shape[:2])
        steps = min(x.shape[1], capacity // x.shape[0])
        return DivPruneShared(*farthest_first(x, real, steps=steps, distinct=self.distinct), real)

    def decide(self, shared: DivPruneShared, budget: DivPruneBudget, *, capacity: int) -> Plan:
        """The first k picks, ascending by id."""
        groups, steps = shared.order.shape
        taken = (jnp.arange(steps) < budget.keep) & shared.real[:, :1]
        times = jnp.zeros(shared.real.shape, jnp.int32)
        times = times.at[jnp.arange(groups)[:, None], shared.order].add(taken.astype(jnp.int32))
        diagnostics = {"order": shared.order, "gain": shared.gain, "nearest": shared.nearest}
        multiplicity = (times > 0) if self.distinct else times
        plan = compact.selection_plan(multiplicity.reshape(-1), capacity, diagnostics)
        # Too small a capacity also shortens the order: the count still tells what was asked for.
        return plan._replace(count=budget.keep * jnp.sum(shared.real[:, 0], dtype=jnp.int32))

    def budget(self, layout: Layout, ratio: float) -> DivPruneBudget:
        """k of the video, or of each frame."""
        return DivPruneBudget(np.int32(self.keep_for(layout, ratio)))

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Similarities of all pairs, and the greedy steps; of long lists the rows of the picks once more."""
        groups = 1 if self.scope == "video" else layout.frames
        size = layout.total // groups
        picks = int(self.budget(layout, ratio).keep)
        terms = {"similarities": 2.0 * groups * size**2 * width, "selection steps": 4.0 * groups * picks * size}
        if size > HELD_TOKENS:
            terms["similarities of picks"] = 2.0 * groups * picks * size * width
        return terms

    # No settings of these families are published: the released code is one function for one image.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="divprune",
        title="DivPrune",
        paper="2503.02175",
        summary="Keeps the tokens of the whole video that lie farthest from each other.",
        nested=True,
        merges=False,
        exact=True,
        quirks=(
            "if only equal tokens are left, the released code selects tokens twice; here never "
            "(distinct=False repeats them)",
            "a frame may keep no token (scope='frame' shares the budget equally)",
        ),
    )


def farthest_first(
    x: Float[Array, "G M D"],
    real: Bool[Array, "G M"],
    *,
    steps: int,
    distinct: bool = True,
    held: int = HELD_TOKENS,
) -> tuple[Int[Array, "G k"], Float[Array, "G k"], Float[Array, "G M"]]:
    """Greedy max-min order of each group by 1 - cosine.

    Args:
      x: tokens of each group.
      real: tokens that may be picked and compared with.
      steps: static number k of picks, at most M.
      distinct: picked tokens are out; else they stay at distance 0.
      held: largest M for which all inner products of a group are held.

    Returns:
      order (G, k) int32, gain (G, k) and nearest (G, M), both float32; see `DivPruneShared`.
    """
    places = jnp.arange(x.shape[1], dtype=jnp.int32)
    norm = jnp.maximum(jnp.sqrt(squared_norms(x)), EPS)
    gram = row_major(frame_gram(x)) if x.shape[1] <= held else None

    def distance_to(pick: Array) -> Array:
        if gram is None:
            inner = over_frames(lambda group, at: dot_f32(group[at][None], group)[0], x, pick)
        else:
            inner = jnp.take_along_axis(gram, pick[:, None, None], axis=1)[:, 0]
        own = jnp.take_along_axis(norm, pick[:, None], axis=1)
        # The released code's distance to itself is rounding noise of either sign.
        return jnp.where(places == pick[:, None], 0.0, 1.0 - inner / (own * norm))

    def nearest_of(at: Array, inner: Array, group: Array) -> Array:
        """Distance of the tokens `at` of a group to their nearest other one, from their rows of inner products."""
        distance = 1.0 - inner / (norm[group][at][:, None] * norm[group])
        others = real[group] & (places != at[:, None])
        return jnp.min(jnp.where(others, distance, jnp.inf), axis=-1)

    groups = jnp.arange(x.shape[0])
    if gram is not None:
        nearest = over_frames(lambda group, inner: nearest_of(places, inner, group), groups, gram)
    else:
        nearest = over_frames(lambda group, tokens: _in_blocks(nearest_of, tokens, group), groups, x)
    nearest = jnp.where(jnp.isinf(nearest), 0.0, nearest)
    first = first_argmax(jnp.where(real, nearest, -jnp.inf))

    def step(state: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        closest, pick, gain = state
        closest = jnp.minimum(closest, distance_to(pick))
        if distinct:
            closest = jnp.where(places == pick[:, None], -jnp.inf, closest)
        score = jnp.where(real, closest, -jnp.inf)
        return (closest, first_argmax(score), jnp.max(score, axis=-1)), (pick, gain)

    start = jnp.full(real.shape, jnp.inf), first, jnp.max(jnp.where(real, nearest, -jnp.inf), axis=-1)
    _, (order, gain) = lax.scan(step, start, length=steps)
    return order.T, gain.T, nearest


def _in_blocks(nearest_of: Callable, x: Float[Array, "M D"], group: Array, size: int = 256) -> Float[Array, "M"]:
    """`nearest_of` for all tokens of a group, whose inner products are made and dropped block by block."""
    m = x.shape[0]

    def block(start: Array) -> Array:
        at = jnp.minimum(start + jnp.arange(size, dtype=jnp.int32), m - 1)
        return nearest_of(at, dot_f32(x[at], x), group)

    return lax.map(block, jnp.arange(0, m, size, dtype=jnp.int32)).reshape(-1)[:m]
