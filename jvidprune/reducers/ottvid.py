"""OTT-Vid: facility-location pruning inside frames, then transport between neighbouring frames (arXiv 2605.11803).

a is the attention that a token receives, w = a / sum a in its frame, S the cosines inside a frame.

1. Every frame keeps the K = N * ratio^(1 - gamma) tokens that cover it best: greedily the token that adds most to
   sum_i w_i max_j S_ij.
2. Between frames t and t + 1 moving token i to j costs alpha (1 - max(0, cos)) + (1 - alpha) |p_i - p_j| / sqrt(2),
   where alpha in [0.5, 1] grows with the difference of the two frames.
3. Mass is softmax(-c / tau_m): c is what the frame's coverage loses without the token. 200 Sinkhorn updates at
   epsilon 0.01 give the plan of every pair of frames.
4. The tokens that have to go are shared among the pairs by a softmax of minus their transport cost over tau_b.
5. Of each pair the tokens of frame t + 1 with the largest plan entries are absorbed by those of frame t that they are
   matched with, or dropped if that costs more than theta. A row is the mean of all that it absorbed.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("ottvid"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.fields import Count, Positive, Share, Temperature
from jvidprune.ops import similarity
from jvidprune.ops.compact import ascending_plan
from jvidprune.ops.facility import coverage_weights, facility_order
from jvidprune.ops.quarters import filled_quarter, widen
from jvidprune.ops.select import first_argmax, order_ascending, rank_descending
from jvidprune.ops.sink import SinkRule
from jvidprune.ops.transport import (
    CompletedBy,
    FixedSinkhorn,
    LeaveOneOut,
    LocalityCost,
    Rows,
    Transport,
    Uniform,
    check_derivatives,
    iterations_of,
    strongest,
    underflow_warning,
)
from jvidprune.reducers.counting import Terms, gram, sums
from jvidprune.reducers.ottvid_pairs import (
    centroids,
    cross_cosine,
    pair_distances,
    pair_weights,
    roots,
    split_removals,
)
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import MethodInfo, PlanGradient, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens

PAIRS = Transport(LocalityCost(), LeaveOneOut(0.3), FixedSinkhorn(0.01, 200), "mass")
"""The paper's transport between neighbouring frames, from the earlier frame (rows) to the later one (columns)."""


class OTTVidBudget(NamedTuple):
    """Integers of one ratio, and the numbers of a transport that holds arrays or is differentiated.

    Attributes:
      per_frame: tokens kept per frame by stage 1.
      removals: tokens that stage 2 removes from the video.
      transport: `Transport.numbers`, or None: plain numbers are part of the compiled program, where they are rounded as
        constants.
    """

    per_frame: np.int32
    removals: np.int32
    transport: tuple | None = None


class OTTVidShared(NamedTuple):
    """Ratio-independent work; K is the largest per-frame count that the capacity allows.

    Attributes:
      x: (T, N, D) the tokens.
      order: (T, K) stage-1 tokens of each frame in greedy order; a ratio keeps a prefix.
      columns: (T, K, N) cosine of each of them with all tokens of its frame.
      cross: (T-1, K, K) cosine of token i of frame t with token j of frame t + 1, both in greedy order.
      pair_weight: (T-1,) alpha.
      attention: (T, N) float32 saliency.
      centroids: (N, 2) row and column of the tokens, each from 0 to 1.
      frame_mask: (T,) real frames.
    """

    x: Float[Array, "T N D"]
    order: Int[Array, "T K"]
    columns: Float[Array, "T K N"]
    cross: Float[Array, "P K K"]
    pair_weight: Float[Array, "P"]
    attention: Float[Array, "T N"]
    centroids: Float[Array, "N 2"]
    frame_mask: Bool[Array, "T"]


@dataclasses.dataclass(frozen=True)
class OTTVid(PositionedReducer):
    """Keeps K tokens a frame by weighted facility location, then absorbs tokens into the frame before them.

    The defaults are the paper's configuration; `OTTVid.library_defaults()` are those of the reference package. The
    number of output tokens is T*K - min(removals, (T-1)*(K-1)), known before any data is seen; frame 0 keeps all its
    K tokens and each later frame at least one, so that very small ratios are missed upwards.

    Attributes:
      temporal_share: gamma; stage 1 keeps the share r ** (1 - gamma). None leaves all reduction to stage 2.
      spatial_retention: stage 1's share itself, in place of the rule above.
      budget_temperature: tau_b of the split of the removals over the frame pairs.
      cost_threshold: theta; a matched token that costs more is dropped with everything that reaches it. None: off.
      transport: cost, marginals, solver and projection of stage 2; parts that are None are those of `PAIRS`. Tokens
        are matched by the largest entries of the plan under the projection. The reference's plan is not converged, so
        that the number of updates is part of the method; it uses the log domain below epsilon 0.05.
      temporal: whether stage 2 runs.
      variant: "qwen" truncates K, aims at round(T*N*r) and weighs the mass by all saliencies; "llava" rounds K, aims
        at a share of the T*K tokens and fills the saliency of pruned tokens with the mean of the kept ones.
      centroid_grid: grid on which token positions are read; None is the video's own. The reference's LLaVA path
        reads every grid as 13x13, also the 14x14 of LLaVA-OneVision, where rows reach 15/12 and columns wrap.
      plan_gradient: "through" makes plans, costs and masses of the diagnostics differentiable in numbers and arrays of
        the transport, in the features and in the attention. The tokens are plain means over matches, which are choices:
        they have no derivative in the plan under either.
      model_dtype_pair_weight: round the pair weights to the dtype of the features at each step, as the reference's
        bf16 pipeline does; False keeps float32.
    """

    temporal_share: Share | None = 0.3
    spatial_retention: Positive | None = None
    budget_temperature: Temperature = 0.3
    cost_threshold: float | None = 0.3
    transport: Annotated[Transport, CompletedBy(PAIRS)] = PAIRS
    temporal: bool = True
    variant: Literal["qwen", "llava"] = "qwen"
    centroid_grid: tuple[Count, Count] | None = None
    model_dtype_pair_weight: bool = False
    plan_gradient: PlanGradient = "stop"  # pyright: ignore[reportIncompatibleVariableOverride]

    needs = frozenset({"attention_last"})
    wide_decisions = True

    def __post_init__(self) -> None:
        if self.plan_gradient == "through":
            check_derivatives("OTT-Vid", self.transport)

    def without_numbers(self) -> "OTTVid":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The numbers of the transport are in the budget where it holds arrays or is differentiated."""
        if not self._carries_numbers:
            return self
        return dataclasses.replace(self, transport=self.transport.without_numbers())

    @property
    def _carries_numbers(self) -> bool:
        leaves = jax.tree.leaves(self.transport.numbers())
        return self.plan_gradient == "through" or any(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> OTTVidShared:
        """Similarities, the greedy order up to the largest K, cross-frame cosines of its tokens, and pair weights.

        With a sink rule the adjusted attention, floored at 0, weighs the coverage (no reference does this).
        """
        x = video.features
        frames, tokens, _ = x.shape
        steps = self._largest_kept(frames, tokens, capacity)
        attention = video.evidence["attention_last"].astype(jnp.float32)
        if sink is not None:
            adjusted = sink.adjust(attention, jnp.zeros(frames, jnp.int32), video.frame_mask).attention
            attention = jnp.maximum(adjusted, 0.0)
        gram = similarity.frame_gram(x)
        squared = jnp.diagonal(gram, axis1=-2, axis2=-1)
        cosine = similarity.cosine_from_gram(gram, squared, squared, eps=1e-12)
        if self._share(0.5) >= 1.0:
            order = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (frames, tokens))
        else:
            order = facility_order(*lax.stop_gradient((cosine, coverage_weights(attention))), steps)
        columns = jnp.take_along_axis(cosine, order[:, :, None], axis=1)
        norms = jnp.maximum(jnp.sqrt(squared), 1e-12)
        weight = pair_weights(x, norms, rounded=self.model_dtype_pair_weight)
        cross = cross_cosine(x, order, norms)
        grid = video.grid if self.centroid_grid is None else self.centroid_grid
        return OTTVidShared(x, order, columns, cross, weight, attention, centroids(tokens, grid), video.frame_mask)

    def decide(self, shared: OTTVidShared, budget: OTTVidBudget, *, capacity: int) -> Plan:
        """Stage 2 on the prefix of the greedy order; see the specification's sections 4.2 to 4.8 for each step."""
        frames, tokens = shared.attention.shape
        steps = shared.order.shape[1]
        kept = jnp.minimum(budget.per_frame, steps)
        valid = jnp.arange(steps) < kept
        # Ascending position inside each frame: the reference's order, on which ties between equal entries depend.
        place = order_ascending(jnp.where(valid, shared.order, tokens + jnp.arange(steps)))
        position = jnp.take_along_axis(shared.order, place, axis=1)
        self_id = jnp.arange(frames, dtype=jnp.int32)[:, None] * tokens + position
        diagnostics = {"kept_per_frame": kept, "order": shared.order, "position": position}
        total = frames * tokens
        root_id, alive = self_id, valid & shared.frame_mask[:, None]
        if frames > 1 and self.temporal:
            matched, parent, absorbed, extra = self._matched(shared, budget, place, position, kept)
            root_id, dropped = roots(self_id, matched, parent, absorbed)
            alive = alive & ~dropped
            diagnostics |= extra
            sent = jnp.swapaxes(lax.stop_gradient(extra["transport_plan"]), -1, -2)
            target, share = strongest(sent, jnp.broadcast_to(self_id[:-1, None], sent.shape))
            child = jnp.where(matched, self_id[1:], total)
            nothing = jnp.full((total, target.shape[-1]), -1, jnp.int32)
            diagnostics["flow"] = nothing.at[child].set(target, mode="drop")
            diagnostics["flow_share"] = jnp.zeros(nothing.shape).at[child].set(share, mode="drop")
        diagnostics["root"] = root_id
        root_id = jnp.where(alive, root_id, total)
        size = jnp.zeros(total + 1, jnp.float32).at[root_id.reshape(-1)].add(1.0)
        scatter = jnp.where(alive, self_id, total).reshape(-1)
        target = jnp.full(total + 1, total, jnp.int32).at[scatter].set(root_id.reshape(-1))[:total]
        merged = (target == jnp.arange(total)) & (size[:total] > 0)
        weight = 1.0 / jnp.maximum(size[target], 1.0)
        picks = jnp.zeros(total, jnp.int32)
        plan = ascending_plan(picks, merged, target[None], weight[None], capacity, diagnostics)
        # A per-frame count above the inferred bound means that the capacity was too small: say so through the count.
        missing = (budget.per_frame - kept) * shared.frame_mask.sum()
        return plan._replace(count=plan.count + missing)

    def _matched(
        self,
        shared: OTTVidShared,
        budget: OTTVidBudget,
        place: Int[Array, "T K"],
        position: Int[Array, "T K"],
        kept: Int[Array, ""],
    ) -> tuple[Bool[Array, "P K"], Int[Array, "P K"], Bool[Array, "P K"], dict[str, Array]]:
        """`_match` on as many of the K places as a budget fills, to a quarter; the transport costs their square."""
        steps = place.shape[1]

        def run(size: int) -> tuple:
            part = shared._replace(order=shared.order[:, :size], columns=shared.columns[:, :size])
            out = self._match(part, budget, place[:, :size], position[:, :size], kept)
            # Frame pairs have one axis in front of those over places.
            return jax.tree.map(lambda leaf: widen(leaf, steps, tuple(range(1, leaf.ndim))), out)

        return filled_quarter(kept, steps, run)

    def _match(
        self,
        shared: OTTVidShared,
        budget: OTTVidBudget,
        place: Int[Array, "T K"],
        position: Int[Array, "T K"],
        kept: Int[Array, ""],
    ) -> tuple[Bool[Array, "P K"], Int[Array, "P K"], Bool[Array, "P K"], dict[str, Array]]:
        """Children of frames 1..T-1: matched, parent's place in the frame before, absorbed; and diagnostics."""
        steps = place.shape[1]
        valid = jnp.arange(steps) < kept
        earlier, later = self._sides(shared, place, position, kept)
        parts = self.transport if budget.transport is None else self.transport.with_numbers(budget.transport)
        cost, *masses = jax.vmap(parts.problem)(earlier, later)
        normal = (mass / jnp.maximum(mass.sum(-1, keepdims=True), 1e-12) for mass in masses)
        result = parts.solver(cost, *normal, *parts.places(earlier, later))
        difficulty = jnp.sum(result.plan * cost, axis=(-2, -1))
        ranked = parts.weights(result.plan)
        pairs = shared.frame_mask[1:] & shared.frame_mask[:-1]
        removals, most = jnp.asarray(budget.removals), jnp.maximum(kept - 1, 0)
        budgets = split_removals(lax.stop_gradient(difficulty), pairs, removals, most, self.budget_temperature)
        score = jnp.where(valid, jnp.max(ranked, axis=-2), -jnp.inf)
        # Rows are unrestricted, so the reference's descending walk over plan entries is a top-k of column maxima.
        parent = first_argmax(jnp.swapaxes(jnp.where(valid[:, None], ranked, -jnp.inf), -1, -2))
        parent = jnp.minimum(parent, steps - 1)
        rank = rank_descending(score)
        matched = (rank < budgets[:, None]) & valid
        paid = jnp.take_along_axis(cost, parent[:, None, :], axis=1)[:, 0]
        absorbed = matched if self.cost_threshold is None else matched & (paid <= self.cost_threshold)
        extra = {
            "pair_weight": shared.pair_weight,
            "mass": jnp.concatenate([masses[0][:1], masses[1]]),
            "transport_cost": cost,
            "transport_plan": result.plan,
            "transport_iterations": result.iterations,
            "transport_row_error": result.row_error,
            "transport_column_error": result.column_error,
            "transport_gap": jnp.broadcast_to(result.gap, difficulty.shape),
            "transport_converged": result.converged,
            "transport_underflow": jnp.broadcast_to(jnp.float32(result.underflow), difficulty.shape),
            "pair_cost": difficulty,
            "removals": budgets,
            "match_rank": rank,
            "matched": matched,
            "parent": parent,
            "absorbed": absorbed,
        }
        return matched, parent, absorbed, extra

    def _sides(
        self, shared: OTTVidShared, place: Int[Array, "T K"], position: Int[Array, "T K"], kept: Int[Array, ""]
    ) -> tuple[Rows, Rows]:
        """The kept tokens of frames 0..T-2 and 1..T-1, what is known of each and of each pair of frames."""
        frames, steps = place.shape
        places = shared.centroids[position]
        tokens = Rows(
            jnp.take_along_axis(shared.x, position[..., None], axis=1),
            places[..., ::-1],
            jnp.broadcast_to(jnp.arange(frames, dtype=jnp.float32)[:, None], (frames, steps)),
            jnp.take_along_axis(shared.attention, position, axis=1),
            jnp.broadcast_to(jnp.arange(steps) < kept, (frames, steps)),
            coverage=self._coverage(shared, position, kept),
        )
        cosines = jnp.take_along_axis(shared.cross, place[:-1, :, None], axis=1)
        cosines = jnp.take_along_axis(cosines, place[1:, None, :], axis=2)
        earlier, later = (jax.tree.map(lambda leaf, cut=cut: leaf[cut], tokens) for cut in (slice(-1), slice(1, None)))
        known = {"cosines": cosines, "distances": pair_distances(places), "feature_weight": shared.pair_weight}
        return earlier._replace(**known), later

    def _coverage(self, shared: OTTVidShared, position: Int[Array, "T K"], kept: Int[Array, ""]) -> Float[Array, "T K"]:
        """What the kept tokens of a frame would cover less of it without each of them; 0 beyond `kept`."""
        frames, tokens = shared.attention.shape
        valid = jnp.arange(position.shape[1]) < kept
        attention = shared.attention
        if self.variant == "llava":
            chosen = _mark(position, jnp.broadcast_to(valid, position.shape), tokens)
            mean = jnp.sum(jnp.where(chosen, attention, 0.0), -1, keepdims=True) / kept
            attention = jnp.where(chosen, attention, mean)
        weight = coverage_weights(attention)
        covered = jnp.where(valid[:, None], shared.columns, -jnp.inf)
        best = jnp.max(covered, axis=1)
        where = jnp.where(covered == best[:, None], shared.order[:, :, None], tokens)
        winner = jnp.min(where, axis=1)
        others = jnp.where(shared.order[:, :, None] == winner[:, None], -jnp.inf, covered)
        second = jnp.where(kept > 1, jnp.max(others, axis=1), 0.0)
        lost = weight * jnp.maximum(best - second, 0.0)
        rows = jnp.arange(frames)[:, None]
        contribution = jnp.zeros((frames, tokens + 1), jnp.float32).at[rows, winner].add(lost)
        contribution = jnp.take_along_axis(contribution, position, axis=1)
        return jnp.where(valid, contribution, 0.0)

    @classmethod
    def library_defaults(cls, **overrides: Any) -> "OTTVid":
        """The reference package's defaults instead of the paper's: uniform mass, no threshold, eps 0.1, 50 updates.

        The package also switches stage 2 off unless told otherwise (`temporal=False` here).
        """
        settings = {
            "budget_temperature": 0.2,
            "cost_threshold": None,
            "transport": Transport(marginals=Uniform(), solver=FixedSinkhorn.ottvid(0.1, 50)),
        }
        return cls(**(settings | overrides))

    def budget(self, layout: Layout, ratio: float) -> OTTVidBudget:
        """K and the removals, in float64 with the reference's rounding.

        Raises:
          JvidpruneError: the ratio is no number in (0, 1].
        """
        kept, removals = self._sizes(layout.frames, layout.tokens, check_ratio(ratio))
        return OTTVidBudget(
            np.int32(kept), np.int32(removals), self.transport.numbers() if self._carries_numbers else None
        )

    def capacity(self, layout: Layout, ratio: float) -> int:
        """T*K - min(removals, (T-1)*(K-1)), exact; with padding frames the count of a video without any.

        The count never falls with T, so the padded bound holds; it is what lets `prepare` infer K from a capacity.
        """
        return self._count(layout.slots, layout.tokens, check_ratio(ratio))

    @property
    def tokens_per_frame(self) -> Callable[[Layout, float], int] | None:
        """Tokens of every frame, which are equal where stage 2 is off; None otherwise."""
        if self.temporal:
            return None
        return lambda layout, ratio: self._sizes(layout.frames, layout.tokens, check_ratio(ratio))[0]

    def _share(self, ratio: float) -> float:
        if self.spatial_retention is not None:
            return self.spatial_retention
        return 1.0 if self.temporal_share is None else ratio ** (1.0 - self.temporal_share)

    def _sizes(self, frames: int, tokens: int, ratio: float) -> tuple[int, int]:
        share = self._share(ratio)
        if share >= 1.0:
            kept = tokens
        else:
            kept = min(tokens, max(1, int(tokens * share) if self.variant == "qwen" else round(tokens * share)))
        if not self.temporal or frames < 2:
            return kept, 0
        if self.variant == "qwen":
            target = round(frames * tokens * ratio)
        else:
            target = max(1, round(frames * kept * (ratio / max(share, 1e-6))))
        return kept, max(0, frames * kept - target)

    def _count(self, frames: int, tokens: int, ratio: float) -> int:
        kept, removals = self._sizes(frames, tokens, ratio)
        return frames * kept - min(removals, max(frames - 1, 0) * (kept - 1))

    def _largest_kept(self, frames: int, tokens: int, capacity: int) -> int:
        """The largest K of any ratio whose count fits the capacity; K and the count both grow with the ratio."""
        low, high = 0.0, 1.0
        if self._count(frames, tokens, high) <= capacity:
            return self._sizes(frames, tokens, high)[0]
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._count(frames, tokens, middle) <= capacity else (low, middle)
        return self._sizes(frames, tokens, low)[0]

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Newlines behind rows of which something is left."""
        return super().prompt._replace(newline_rows="nonempty")

    def warning(self, diagnostics: dict[str, Array]) -> str | None:
        """What to do about kernels that underflowed so far that marginals do not hold; None if none did.

        Args:
          diagnostics: of plans of this method, on the host.
        """
        if "transport_underflow" not in diagnostics:
            return None
        under, held = diagnostics["transport_underflow"], diagnostics["transport_converged"]
        return underflow_warning("OTT-Vid's solver", under, held, getattr(self.transport.solver, "epsilon", None))

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Similarities and coverage in frames; costs, iterations and sums of the transport where stage 2 runs."""
        frames, tokens = layout.frames, layout.tokens
        kept = int(self.budget(layout, ratio).per_frame)
        terms = {"similarities": frames * gram(layout, width), "coverage steps": 4.0 * frames * kept * tokens**2}
        if self.temporal and frames > 1:
            pairs = frames - 1
            terms["pair weights"] = 2.0 * pairs * tokens * width
            terms["transport costs"] = 2.0 * pairs * kept**2 * width
            # Of each entry and half step: a difference, a maximum, an exponential and a sum.
            terms["transport iterations"] = 8.0 * iterations_of(self.transport.solver) * pairs * kept**2
            terms["weighted sums"] = sums(layout, width)
        return terms

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {"variant": "llava", "centroid_grid": (13, 13)},
        "llava_video": {"variant": "llava", "centroid_grid": (13, 13)},
        "qwen2_5_vl": {"variant": "qwen"},
        "qwen3_vl": {"variant": "qwen"},
    }

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ottvid",
        title="OTT-Vid",
        paper="2605.11803",
        summary="Facility-location selection in each frame, then optimal-transport merging into the previous frame.",
        nested=False,
        merges=True,
        exact=True,
        quirks=(
            "LLaVA-OneVision's 14x14 tokens are placed on a 13x13 grid (centroid_grid=None uses the true one)",
            "the transport plan is cut off after a fixed number of updates (transport=Transport(solver=Sinkhorn(...)))",
            "per-frame counts truncate on Qwen and round on LLaVA, and LLaVA fills the saliency of pruned tokens "
            "(variant)",
        ),
    )


def _mark(position: Int[Array, "T K"], valid: Bool[Array, "T K"], tokens: int) -> Bool[Array, "T N"]:
    rows = jnp.arange(position.shape[0])[:, None]
    marks = jnp.zeros((position.shape[0], tokens + 1), bool)
    return marks.at[rows, jnp.where(valid, position, tokens)].set(True)[:, :tokens]
