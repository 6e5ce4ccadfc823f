"""The rules by which published models route tokens past a layer, and their controls."""

import dataclasses
import math
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jvidprune.cuts.protocol import TokenState
from jvidprune.cuts.routing import Routed, RouteInputs, RouteRule
from jvidprune.cuts.rules import random_scores, top_in_blocks
from jvidprune.errors import JvidpruneError, quoted
from jvidprune.fields import Count, Share
from jvidprune.ops.select import keep_top, rank_in_group
from jvidprune.tokens import Kept

_FUNCTIONS = ("tanh", "sigmoid", "softmax", "none")


class Norm(NamedTuple):
    """g = scale f(r) + shift, what a router's output r becomes."""

    function: str
    scale: float
    shift: float

    def __call__(self, r: Float[Array, "S"], visual: Bool[Array, "S"]) -> Float[Array, "S"]:
        """The gate of visual tokens, 1 elsewhere."""
        if self.function == "softmax":
            value = jax.nn.softmax(jnp.where(visual, r, -1e30))
        else:
            value = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "none": lambda x: x}[self.function](r)
        return jnp.where(visual, self.scale * value + self.shift, 1.0)


def read_norm(text: str) -> Norm:
    """The function that p-MoD's `mod_weight_norm` names: "tanh_0.2_1" is 0.2 tanh(r) + 1, "none" is r + 1.

    Raises:
      JvidpruneError: an unknown function, or what are no two numbers behind it.
    """
    function, *numbers = text.split("_")
    try:
        scale, shift = map(float, numbers) if numbers else (1.0, 1.0)
    except ValueError:
        function = ""
        scale = shift = 0.0
    if function not in _FUNCTIONS:
        raise JvidpruneError(
            f"the gate of a router is {', '.join(_FUNCTIONS)}, alone or with two numbers as in 'tanh_0.2_1', "
            f"got {quoted(repr(text))}."
        )
    return Norm(function, scale, shift)


class _NormRule:
    """The rule of `fields` for the name of a gate."""

    words = "the name of a gate"

    def check(self, value: str) -> str:
        read_norm(value)
        return value


NormName = Annotated[str, _NormRule()]
"""Annotation of a field that names a gate for `read_norm`."""


@dataclasses.dataclass(frozen=True)
class RouterTopK(RouteRule):
    """The visual tokens with the largest gate g = norm(w x + b) run (p-MoD, arXiv 2412.04449).

    x is the raw residual. A token that runs gets x + attention, then g times the MLP branch. Text always runs, with a
    gate of 1. Only visual tokens compete: the released code lets text slots in where a saturated gate is below theirs.

    The stage's `weights` are "weight" (D,) or (1, D) and "bias" () or (1,); without any r is 0 everywhere, the state
    that training starts from, and the first tokens run.

    Attributes:
      norm: see `read_norm`.
    """

    norm: NormName = "tanh_0.2_1"

    def choose(self, inputs: RouteInputs, state: TokenState) -> Routed:
        """The `kept` largest of the prompt or of each frame, equal ones by position."""
        r = jnp.zeros(state.visual.shape, jnp.float32)
        if inputs.weights:
            weight = jnp.reshape(inputs.weights["weight"], -1).astype(jnp.float32)
            if weight.shape[0] != state.hidden.shape[-1]:
                raise JvidpruneError(
                    f"the router is for states of width {weight.shape[0]}, the model's have {state.hidden.shape[-1]}."
                )
            bias = jnp.reshape(inputs.weights["bias"], ()).astype(jnp.float32)
            r = jnp.dot(state.hidden.astype(jnp.float32), weight, precision=lax.Precision.HIGHEST) + bias
        gate = read_norm(self.norm)(r, state.visual)
        return Routed(top_of(self, gate, inputs, state), gate, gate)


@dataclasses.dataclass(frozen=True)
class RandomRoute(RouteRule):
    """Visual tokens by a draw from the stage's seed run, without a gate: a control of routers."""

    def choose(self, inputs: RouteInputs, state: TokenState) -> Routed:
        """The same seed runs the tokens of a smaller count in every larger one."""
        score = random_scores(inputs.seed, state.source)
        return Routed(top_of(self, score, inputs, state), score)


@dataclasses.dataclass(frozen=True)
class UniformRoute(RouteRule):
    """Visual tokens at equal distances run, without a gate: a control of routers."""

    def choose(self, inputs: RouteInputs, state: TokenState) -> Routed:
        """k of n: those of rank i with floor((i + 1) k / n) above floor(i k / n)."""
        size = state.visual.shape[0]
        block = state.block if self.by_frame else jnp.zeros_like(state.block)
        group = jnp.where(state.visual, block, size)
        n = jnp.maximum(jnp.zeros(size + 1, jnp.int32).at[group].add(1)[group], 1)
        k = inputs.table[n]
        rank = rank_in_group(jnp.zeros(size, jnp.float32), group)
        chosen = (rank + 1) * k // n > rank * k // n
        return Routed(~state.visual | chosen, chosen.astype(jnp.float32))


def top_of(rule: RouteRule, score: Float[Array, "S"], inputs: RouteInputs, state: TokenState) -> Bool[Array, "S"]:
    """Text, and the visual tokens with the largest score of the prompt, or of each frame where the rule counts so."""
    score = lax.stop_gradient(score)
    if not rule.by_frame:
        return keep_top(score, state.visual, inputs.kept)
    return ~state.visual | top_in_blocks(score, state.block, state.visual, inputs.table)


@dataclasses.dataclass(frozen=True)
class GammaTopK(RouteRule):
    """Gamma-MoD's layer in training (arXiv 2410.13859): p = softmax(W norm(x))[1], the largest run, p gates their MLP.

    Tokens of the question (`text_queries`) always run where they compete. The stage's `weights` are "weight" (2, D).
    """

    reads_normed: ClassVar[bool] = True

    def choose(self, inputs: RouteInputs, state: TokenState) -> Routed:
        """The `kept` largest, equal ones by position."""
        p = run_probability(inputs.weights, inputs.normed)
        ranked = lax.stop_gradient(p) + state.text_queries
        return Routed(keep_top(ranked, state.visual, inputs.kept), p, p)


@dataclasses.dataclass(frozen=True)
class GammaThreshold(RouteRule):
    """Gamma-MoD's layer in evaluation: all tokens whose p lies above a threshold run, text and answers too.

    The number is not bounded, so a stage with it runs at full length.

    Attributes:
      threshold: of the prompt.
      answer_threshold: of generated tokens; those below it pass by and leave no key.
    """

    threshold: Share = 0.005
    answer_threshold: Share = 0.5

    reads_normed: ClassVar[bool] = True
    routes_answers: ClassVar[bool] = True

    def choose(self, inputs: RouteInputs, state: TokenState) -> Routed:
        """By the threshold alone."""
        p = run_probability(inputs.weights, inputs.normed)
        return Routed(p > self.threshold, p, p)

    def follow(self, weights: Any, normed: Float[Array, "B L D"]) -> tuple[Bool[Array, "B L"], Float[Array, "B L"]]:
        """By the other threshold."""
        p = run_probability(weights, normed)
        return p >= self.answer_threshold, p


def run_probability(weights: Any, normed: Float[Array, "... D"]) -> Float[Array, "..."]:
    """softmax(W x)[1], float32, of Gamma-MoD's router without a bias."""
    weight = jnp.asarray(weights["weight"]).astype(jnp.float32)
    logits = jnp.einsum("...d,cd->...c", normed.astype(jnp.float32), weight, precision=lax.Precision.HIGHEST)
    return jax.nn.sigmoid(logits[..., 1] - logits[..., 0])


def routing_loss(p: Float[Array, "B S"], runs: Bool[Array, "B S"], valid: Bool[Array, "B S"]) -> Float[Array, ""]:
    """Cross-entropy of Gamma-MoD's router to what was chosen, mean over valid tokens; its training adds 0.01 of it."""
    taken = jnp.where(runs, p, 1 - p)
    each = -jnp.log(jnp.maximum(taken, jnp.finfo(jnp.float32).tiny))
    return jnp.sum(jnp.where(valid, each, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


@dataclasses.dataclass(frozen=True)
class AnyNumber(Kept):
    """As many as the rule says: the layer runs at full length, and what does not run is hidden."""

    @property
    def bounded(self) -> bool:
        """Never."""
        return False


@dataclasses.dataclass(frozen=True)
class GammaCount(Kept):
    """ceil(n - fixed / 2) of n tokens, half of an image and its template in Gamma-MoD's training; all where n is less.

    Attributes:
      fixed: tokens of image and template, 1024 + 35.
    """

    fixed: Count = 1059

    def count(self, n: int, prompt: int | None = None) -> int:
        """How many of n tokens run."""
        return n if n <= self.fixed else math.ceil(n * (1 - 0.5 * self.fixed / n))
