"""Cuts by a pruning module: the one that drops, and the one that a module learns by, which gives keys a bias."""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.covipal.module import module_of
from jvidprune.cuts.protocol import Chosen, CutInputs, CutRule, TokenState
from jvidprune.fields import Count
from jvidprune.ops.select import keep_top, rank_in_group
from jvidprune.tokens import NewlineRole

LOG_NOTHING = -30.0
"""Stands for the logarithm of a retention of 0."""

_HALVINGS = 50
"""Bisections for the threshold: to the last bit of a float32."""

TEMPERATURE = "temperature"
"""Array among a stage's weights, beside the module's parameters: T of `soft_top_k`."""


@dataclasses.dataclass(frozen=True)
class ModuleTopK(CutRule):
    """The visual tokens that a pruning module scores highest, from the states in front of the cut (CoViPAL).

    The stage's `weights` are the module's parameters. Text are the tokens behind the video. Frames, rows and columns
    are read off the tokens' places, so that the cut has to be the first one of a prompt.

    Attributes:
      heads: of the module.
      grid: whether the module knows places.
    """

    heads: Count = 4
    grid: bool = True
    newlines: NewlineRole = dataclasses.field(default="never", kw_only=True)

    by_place: ClassVar[bool] = True

    def score(self, inputs: CutInputs, state: TokenState) -> Float[Array, "S"]:
        """What the module says of every slot; those of text mean nothing."""
        module = module_of({k: x for k, x in inputs.weights.items() if k != TEMPERATURE}, self.heads, self.grid)
        places = grid_places(state.block, state.visual)
        lists = (state.hidden, state.visual, state.text_queries & ~state.visual, places)
        return module(*(x[None] for x in lists))[0]

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """The `kept` largest, equal ones by position."""
        score = self.score(inputs, state)
        return Chosen(state.hidden, keep_top(score, state.visual, inputs.kept), score)


@dataclasses.dataclass(frozen=True)
class SoftTopK(ModuleTopK):
    """The same choice, nothing dropped: keys of the others get a bias of -30, with gradients to the module.

    The prompt is read as if it were cut (`soft_top_k`); its stage counts with `cuts.rules.Told`. Besides the module's
    parameters the weights have "temperature" ().

    The slope of a hidden token is what a little of its attention would change, times all of it: on a small model a
    hundredth of these slopes were above a million times those of kept tokens. With `hard=False` every key has the
    logarithm of its share as its bias, and all slopes are of one size; `training.pruners` learns by these.

    Attributes:
      hard: whether the bias is 0 or -30, or the logarithm of a share.
    """

    hard: bool = True

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """Log-retentions as the bias of visual keys; diagnostics have the retention."""
        score = self.score(inputs, state)
        found = soft_top_k(score, state.visual, inputs.kept, inputs.weights[TEMPERATURE])
        bias = jnp.where(state.visual, jnp.log(found.retention) if self.hard else found.log_soft, 0.0)
        shown = {"retention": jnp.where(state.visual, found.retention, 1.0)}
        return Chosen(state.hidden, state.valid, score, bias=bias, diagnostics=shown)


class SoftChoice(NamedTuple):
    """What `soft_top_k` finds.

    Attributes:
      retention: (S,) 1 of kept and e^-30 of dropped tokens, with the gradient of `soft`.
      soft: (S,) shares in [0, 1] that sum to the budget.
      log_soft: (S,) their logarithms, at least -30.
    """

    retention: Float[Array, "S"]
    soft: Float[Array, "S"]
    log_soft: Float[Array, "S"]


def soft_top_k(
    score: Float[Array, "S"],
    visual: Bool[Array, "S"],
    keep: Int[Array, ""] | int,
    temperature: Float[Array, ""] | float,
) -> SoftChoice:
    """A hard choice of k tokens whose gradient is that of sigmoid((s - tau) / T), tau such that the shares sum to k.

    The threshold moves with the scores, so that the gradient of the sum of all retentions is zero: one token gains what
    others lose. A dropped token has a gradient too, that of what attention to it would change.

    Args:
      score: s.
      visual: which compete.
      keep: k.
      temperature: T.
    """
    hard = keep_top(lax.stop_gradient(score), visual, keep) & visual
    held = lax.stop_gradient(jnp.where(visual, score.astype(jnp.float32), 0.0)) / temperature
    wanted = jnp.clip(jnp.asarray(keep, jnp.float32), 0.0, jnp.sum(visual))
    reach = 40.0
    ends = (
        jnp.min(jnp.where(visual, held, jnp.inf), initial=jnp.inf) - reach,
        jnp.max(jnp.where(visual, held, -jnp.inf), initial=-jnp.inf) + reach,
    )

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        many = jnp.sum(jnp.where(visual, jax.nn.sigmoid(held - middle), 0.0)) > wanted
        return jnp.where(many, middle, low), jnp.where(many, high, middle)

    low, high = lax.fori_loop(0, _HALVINGS, halve, ends)
    tau = (low + high) / 2
    share = jnp.where(visual, jax.nn.sigmoid(held - tau), 0.0)
    slope = share * (1 - share)
    live = jnp.where(visual, score.astype(jnp.float32), 0.0) / temperature
    # d tau / d s_j = slope_j / sum(slope): implicit, since the sum of the shares is fixed.
    moved = jnp.sum(slope * (live - held)) / jnp.maximum(jnp.sum(slope), 1e-12)
    soft = jnp.where(visual, jax.nn.sigmoid(live - tau - moved), 0.0)
    nothing = math.exp(LOG_NOTHING)
    retention = jnp.where(hard, 1.0, nothing) + (soft - lax.stop_gradient(soft))
    log_soft = jnp.where(visual, jnp.maximum(jax.nn.log_sigmoid(live - tau - moved), LOG_NOTHING), LOG_NOTHING)
    return SoftChoice(retention, soft, log_soft)


def grid_places(block: Int[Array, "S"], visual: Bool[Array, "S"]) -> Int[Array, "S 3"]:
    """Frame, row and column of visual tokens from their place in the frame, row * (columns + 1) + column.

    A frame is how many tokens of the same place stand before, the number of columns the first place that no token has.
    """
    size = block.shape[0]
    group = jnp.where(visual, block, size)
    frame = rank_in_group(jnp.zeros(size, jnp.float32), group)
    there = jnp.zeros(size + 1, bool).at[group].set(True)[:size]
    wide = jnp.min(jnp.where(there, size, jnp.arange(size))) + 1
    found = jnp.stack([frame, block // wide, block % wide], axis=-1)
    return jnp.where(visual[:, None], found, 0)


def slots_of(parameters: Any, temperature: Any) -> dict[str, Any]:
    """Weights of a stage with `SoftTopK`."""
    return {**parameters, TEMPERATURE: temperature}
