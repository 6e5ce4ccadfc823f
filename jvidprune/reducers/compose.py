"""Chaining reducers under one ratio: an exact per-frame method first, any other on the tokens it leaves.

1. The first method keeps K1 tokens of every frame: the share ratio^split, rounded to a rung of the ladder.
2. What it leaves is a video of (T, K1, D) tokens with the evidence of the tokens it kept.
3. The second method keeps the share ratio * N / K1 of these, so that the total is the ratio.
4. Weights multiply: every row is a weighting of the original tokens.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> chain = jvidprune.reducers.Sequential("attention_topk(scope='frame')", "divprune", ladder=(0.5,))
>>> jvidprune.reduce(chain, synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jvidprune.backbones import Backbone
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Ratio, Share
from jvidprune.ops import compact
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers import registry
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import (
    AnyReducer,
    MethodInfo,
    PositionedReducer,
    Reducer,
    StagedReducer,
    check_ratio,
    inner_stages,
    prompt_rules,
    title_of,
    with_defaults,
)
from jvidprune.tokens import Budget, InnerStage, Layout, Plan, VideoTokens

_PER_TOKEN = (
    "attention_last",
    "attention_pooling_head",
    "attention_mean_query",
    "keys",
    "features_deepstack",
    "joint_image",
    "relevance",
)
_PER_VIDEO = ("frame_embedding", "text", "text_mask", "joint_text")
_ANY, _OTHER = 0.5, 0.25
"""Two ratios, to tell cuts inside the model that follow the ratio from those that do not."""


class SequentialBudget(NamedTuple):
    """The rung in use and, for every rung, the budgets of both stages there; those of other rungs are not read."""

    rung: Any
    first: tuple[Budget, ...]
    second: tuple[Budget, ...]


class _Rung(NamedTuple):
    ratio: float
    kept: int


@dataclasses.dataclass(frozen=True)
class Sequential(registry.HoldsMethods, PositionedReducer):
    """Runs `second` on the tokens that `first` leaves, as one reducer with one plan over the original tokens.

    The first stage must keep the same known number K1 of tokens in every frame (its `tokens_per_frame` is not None):
    its output is then a video of (T, K1, D) tokens, with the evidence of the tokens it kept. A first-stage token that
    stands for several keeps the evidence of the token that its row is named after. The second stage sees a frame as
    one row of K1 tokens: methods that read positions on the grid find those of the row.

    K1 is a shape and so cannot be traced. The first stage's share r ** split of the reduction is therefore rounded, on
    a logarithmic scale, to a rung of `ladder`; the second stage makes up the rest, r * N / K1, so that the total is r.
    All rungs are part of one compiled program and a ratio runs one of them, so that a sweep compiles once. Compilation
    takes as many second stages as there are rungs: `ladder=(0.5,)` fixes the first stage's share.

    Weights multiply through the stages. A token that the first stage copies into two rows and merges into a third is
    followed into one copy only.

    Attributes:
      first: VisionZip, OTTVid(temporal=False), AttentionTopK(scope="frame"), SToP of such a method, or a reducer of
        your own with `tokens_per_frame(layout, ratio) -> int` and plans that are weightings of their input. A text
        such as "visionzip(dominant_share=0.5)" is built for `backbone`, see `registry.from_text`.
      second: any reducer whose plans are weightings of their input, another Sequential included; or a text.
      split: share of log(ratio) that the first stage is to take, in [0, 1].
      ladder: ratios that the first stage may run at, each in (0, 1].
      backbone, layers: for stages given by a text.
    """

    first: AnyReducer = "visionzip"
    second: AnyReducer = "flashvid"
    split: Share = 0.5
    ladder: tuple[Ratio, ...] = (0.125, 0.25, 0.5, 1.0)
    backbone: Backbone | None = None
    layers: Count | None = None

    wide_decisions = True

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What either stage needs."""
        return frozenset(self.first.needs) | frozenset(self.second.needs)

    def settled(self) -> dict[str, Any]:
        """The stages that are given as texts."""
        made = {}
        for name, stage in (("first", self.first), ("second", self.second)):
            if isinstance(stage, str):
                try:
                    made[name] = registry.from_text(stage, self.backbone, self.layers)
                except JvidpruneError as error:
                    raise JvidpruneError(f"Sequential's {name}: {error}") from error
        return made

    def __post_init__(self) -> None:
        for stage in (self.first, self.second):
            if with_defaults(stage).tokens_from != "features":
                raise JvidpruneError(
                    f"Sequential cannot chain {title_of(stage)}: its tokens are no fixed weighting of its input tokens."
                )
        if with_defaults(self.first).tokens_per_frame is None:
            raise JvidpruneError(
                f"{title_of(self.first)} cannot be the first stage of Sequential, which must keep an equal, known "
                "number of tokens in every frame."
            )
        lost = sorted(self.second.needs - set(_PER_TOKEN) - set(_PER_VIDEO))
        if lost:
            raise JvidpruneError(
                f"{title_of(self.second)} cannot be a later stage of Sequential: {', '.join(lost)} of the unpruned "
                "frame cannot be carried along."
            )
        if inner_stages(self.second, _ANY) != inner_stages(self.second, _OTHER):
            raise JvidpruneError(
                f"{title_of(self.second)} cannot be a later stage of Sequential: its cut inside the language model "
                "follows the ratio, which a chain divides."
            )
        if not self.ladder:
            raise JvidpruneError("Sequential's ladder must have at least one ratio in (0, 1], got none.")

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> Any:
        """The first stage's shared work; the second's depends on which tokens the first keeps.

        A sink rule goes to the first stage alone.
        """
        if not isinstance(self.first, StagedReducer):
            return video, video
        first_rows = video.features.shape[0] * max(rung.kept for rung in self._rungs(video.layout()))
        if sink is None or not self.first.reads_sink:
            return video, self.first.prepare(video, capacity=first_rows)
        return video, self.first.prepare(video, capacity=first_rows, sink=sink)

    def decide(self, shared: tuple[VideoTokens, Any], budget: SequentialBudget, *, capacity: int) -> Plan:
        """Both stages at the budget's rung, as one plan."""
        video, work = shared
        rungs = self._rungs(video.layout())

        def branch(index: int) -> Callable[[], Plan]:
            return lambda: self._run(video, work, rungs[index], budget.first[index], budget.second[index], capacity)

        branches = [branch(i) for i in range(len(rungs))]
        slots = max(jax.eval_shape(run).row.shape[0] for run in branches)

        def padded(run: Callable[[], Plan]) -> Callable[[], Plan]:
            def filled() -> Plan:
                plan = run()
                more = slots - plan.row.shape[0]
                row = jnp.pad(plan.row, ((0, more), (0, 0)), constant_values=capacity)
                return plan._replace(row=row, weight=jnp.pad(plan.weight, ((0, more), (0, 0))))

            return filled

        plan = lax.switch(budget.rung, [padded(run) for run in branches])
        handed = jnp.asarray([rung.kept for rung in rungs], jnp.int32)[budget.rung]
        return plan._replace(diagnostics={"handed_over_per_frame": handed})

    def shares(self, layout: Layout, ratio: float) -> tuple[tuple[Layout, float], tuple[Layout, float]]:
        """What each stage is given for a total ratio: its video and its own ratio.

        Raises:
          JvidpruneError: as for `budget`.
        """
        index, rungs = self._choose(layout, ratio)
        kept = rungs[index].kept
        second = _inside(layout, kept), self._second_ratio(layout, ratio, kept)
        return (layout, rungs[index].ratio), second

    def _second_ratio(self, layout: Layout, ratio: float, kept: int) -> float:
        return min(1.0, ratio * layout.tokens / kept)

    def _choose(self, layout: Layout, ratio: float) -> tuple[int, tuple[_Rung, ...]]:
        ratio = check_ratio(ratio)
        rungs = self._rungs(layout)
        wanted = self.split * math.log(ratio)
        # Rungs below the ratio itself leave the second stage nothing to do and miss the total.
        usable = [i for i, rung in enumerate(rungs) if rung.kept >= ratio * layout.tokens * (1 - 1e-9)]
        usable = usable or [max(range(len(rungs)), key=lambda i: rungs[i].kept)]
        return min(usable, key=lambda i: abs(math.log(rungs[i].kept / layout.tokens) - wanted)), rungs

    def _run(
        self, video: VideoTokens, work: Any, rung: _Rung, first_budget: Budget, second_budget: Budget, capacity: int
    ) -> Plan:
        frames = video.features.shape[0]
        rows = frames * rung.kept
        if isinstance(self.first, StagedReducer):
            first = self.first.decide(work, first_budget, capacity=rows)
        else:
            first = self.first.plan(work, first_budget, capacity=rows)
        inner = lax.stop_gradient(kept_video(video, first, rung.kept))
        second = self.second.plan(inner, second_budget, capacity=capacity)
        return multiply_plans(first, second)

    @property
    def tokens_per_frame(self) -> Callable[[Layout, float], int] | None:
        """Tokens of every frame where the second stage keeps an equal number too, as that one counts them."""
        rule = with_defaults(self.second).tokens_per_frame
        return None if rule is None else lambda layout, ratio: rule(*self.shares(layout, ratio)[1])

    def budget(self, layout: Layout, ratio: float) -> SequentialBudget:
        """The rung for a ratio and both stages' budgets.

        Raises:
          JvidpruneError: what either stage raises at its share, or a ladder without a usable rung.
        """
        index, rungs = self._choose(layout, ratio)
        second = []
        for i, rung in enumerate(rungs):
            share = self._second_ratio(layout, ratio, rung.kept) if i == index else 1.0
            second.append(self.second.budget(_inside(layout, rung.kept), share))
        first = tuple(self.first.budget(layout, rung.ratio) for rung in rungs)
        return SequentialBudget(np.int32(index), first, tuple(second))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """The second stage's bound on the tokens of the first."""
        return self.second.capacity(*self.shares(layout, ratio)[1])

    def expected(self, layout: Layout, ratio: float) -> int:
        """What the second stage is expected to leave of the tokens of the first."""
        return with_defaults(self.second).expected(*self.shares(layout, ratio)[1])

    def _rungs(self, layout: Layout) -> tuple[_Rung, ...]:
        """Rungs that the first stage can run at on this grid, one for each count; the same for any ratio."""
        rule = with_defaults(self.first).tokens_per_frame
        assert rule is not None
        found: dict[int, _Rung] = {}
        for ratio in sorted(self.ladder):
            try:
                kept = rule(layout, ratio)
            except JvidpruneError:
                continue
            if kept >= 1:
                found.setdefault(kept, _Rung(ratio, kept))
        if not found:
            raise JvidpruneError(f"{title_of(self.first)} keeps no token of a frame at any rung of the ladder.")
        return tuple(found.values())

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The second stage's, and the first's positions where it has none."""
        rules = prompt_rules(self.second)
        positions = self.positions or rules.positions or prompt_rules(self.first).positions
        # Rows of the second stage name tokens of the first one's, which are in their own places.
        return rules._replace(positions=positions, official_places=False)

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The second stage's cuts inside the language model, which do not follow the ratio."""
        return inner_stages(self.second, _ANY)

    @property
    def in_time(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a stage is."""
        return any(with_defaults(one).in_time for one in (self.first, self.second))

    @property
    def reads_text_mask(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether each stage that reads the question knows its padding."""
        return all(with_defaults(one).reads_text_mask for one in (self.first, self.second) if "text" in one.needs)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Both stages' at their shares: the second's on the tokens that the first leaves of every frame."""
        first, second = self.shares(layout, ratio)
        terms: Terms = {}
        for order, stage, share in (("first", self.first, first), ("second", self.second, second)):
            found = with_defaults(stage).flops(share[0], width, share[1])
            terms |= {f"{order}: {name}": flops for name, flops in found.items()}
        return terms

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sequential",
        title="Sequential",
        paper="-",
        summary="Runs one reducer on the tokens that another leaves, under one ratio: visionzip+flashvid for short.",
        nested=False,
        merges=True,
        exact=False,
    )


def chain(*stages: Reducer, shares: Sequence[float] | None = None, **settings: Any) -> Reducer:
    """Any number of reducers under one ratio r, as nested `Sequential`s; stage i is to take the factor r ** share_i.

    Args:
      *stages: in the order they run; all but the last must keep an equal number of tokens in every frame.
      shares: non-negative shares of the reduction, one a stage, not all 0; equal by default.
      **settings: `ladder` of every `Sequential`.

    Raises:
      JvidpruneError: no stage, a wrong number of shares, or what `Sequential` raises.
    """
    if not stages:
        raise JvidpruneError("a chain needs at least one reducer.")
    weights = [1.0] * len(stages) if shares is None else [float(share) for share in shares]
    if len(weights) != len(stages) or min(weights) < 0 or sum(weights) <= 0:
        raise JvidpruneError(f"a chain of {len(stages)} reducers needs as many shares, not negative, got {weights}.")
    chained = stages[-1]
    for i in range(len(stages) - 2, -1, -1):
        rest = sum(weights[i:])
        chained = Sequential(stages[i], chained, split=weights[i] / rest if rest > 0 else 0.0, **settings)
    return chained


def kept_video(video: VideoTokens, plan: Plan, per_frame: int) -> VideoTokens:
    """The (T, K1, D) video that a plan with K1 rows a frame leaves, with the evidence of the rows' own tokens."""
    frames, n, _ = video.features.shape

    def shaped(x: jax.Array) -> jax.Array:
        return x.reshape(frames, per_frame, *x.shape[1:])

    features = shaped(compact.combine(plan, video.features.reshape(frames * n, -1)))
    evidence = {}
    for name, value in video.evidence.items():
        if name in _PER_TOKEN:
            evidence[name] = shaped(compact.gather_rows(plan, value.reshape(frames * n, *value.shape[2:])))
        elif name in _PER_VIDEO:
            evidence[name] = value
    return VideoTokens(features, evidence, video.frame_mask, (1, per_frame))


def multiply_plans(first: Plan, second: Plan) -> Plan:
    """One plan over the tokens of `first` for `second` run on its rows.

    Slots are the products of both plans' slots, each plan with one more for verbatim copies. A row that copies a row
    that copies a token stays a copy.
    """
    m = first.row.shape[-1]
    handed, capacity = first.ids.shape[0], second.ids.shape[0]
    copied = jnp.append(first.is_pick, False)[jnp.minimum(second.ids, handed)]
    is_pick = second.is_pick & copied
    row_a, weight_a = _with_copies(first, m)
    row_b, weight_b = _with_copies(second._replace(is_pick=second.is_pick & ~is_pick), handed)
    row_b = jnp.pad(row_b, ((0, 0), (0, 1)), constant_values=capacity)
    weight_b = jnp.pad(weight_b, ((0, 0), (0, 1)))
    row = row_b[:, row_a].reshape(-1, m)
    weight = (weight_b[:, row_a] * weight_a).reshape(-1, m)
    ids = jnp.append(first.ids, m)[jnp.minimum(second.ids, handed)]
    return Plan(ids, second.valid, second.count, is_pick, row, weight, {})


def _with_copies(plan: Plan, sources: int) -> tuple[jax.Array, jax.Array]:
    """Rows and weights with one more slot, in which copied tokens point to their copies with weight 1."""
    capacity = plan.ids.shape[0]
    at = jnp.where(plan.is_pick & plan.valid, plan.ids, sources)
    copy = jnp.full(sources + 1, capacity, jnp.int32).at[at].set(jnp.arange(capacity, dtype=jnp.int32))[:sources]
    row = jnp.concatenate([copy[None], plan.row])
    weight = jnp.concatenate([(copy < capacity).astype(jnp.float32)[None], plan.weight])
    return row, weight


def _inside(layout: Layout, per_frame: int) -> Layout:
    return Layout(layout.frames, (1, per_frame), None, layout.padded_frames)
