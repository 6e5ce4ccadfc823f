"""DSTP-like (reconstruction): a pruner's choice of visual tokens is renewed while the answer is written.

Of DSTP (arXiv 2604.12358) neither code nor the text of its method could be had. This has its purpose and what is said
of it: an add-on over any pruner that swaps visual tokens while decoding and keeps their number. All else is ours.

1. The host chooses k of n tokens; layers before K have the keys of all.
2. At every step the attention of the new token in layer K - 1, mean over heads, is the relevance of the n tokens.
3. Where 1 - cosine of it to that of the last choice exceeds delta, the k most relevant tokens are chosen.
4. Layers from K on read text, answer, and chosen tokens.

The count of the example is that before the language model.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("dstp"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
288
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import jax.numpy as jnp

from jvidprune.backbones import Backbone
from jvidprune.cuts.decoding import Renewal, RenewalMode
from jvidprune.cuts.protocol import CutRule
from jvidprune.cuts.rules import Marked, MarkedCount
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count
from jvidprune.ops.compact import selection_plan
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers import registry
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import (
    AnyReducer,
    BaseReducer,
    MethodInfo,
    PositionedReducer,
    Reducer,
    StagedReducer,
    TokensFrom,
    check_weighs_features,
    prompt_rules,
    title_of,
    with_defaults,
)
from jvidprune.tokens import Budget, InnerStage, Layout, Plan, Reduced, VideoTokens

_ANY = 0.5


@dataclasses.dataclass(frozen=True)
class DSTP(registry.HoldsMethods, PositionedReducer):
    """Renews a host's choice of visual tokens at the steps of an answer; the number of tokens is the host's.

    A host that cuts inside the language model by the attention of the last position, once, keeps its own layer and
    count (FastV, FlashVID). Of any other only the choice is taken: all tokens enter the language model, and what the
    host did not choose is hidden from layer `layer` on; its newline embeddings stay. Such a host must keep tokens as
    they are. Hosts with several cuts, or whose tokens are counted anew behind one, have no place for what returns.

    The ways in which tokens that come back get keys in deep layers, see `cuts.reselection.Reselection`: `bank` saves
    reading while decoding alone, the prompt costs as much as an unpruned one; `recompute` is exact and costs the deep
    layers at every step; `fill` saves both, but for hosts before the language model, whose prompts keep their length.

    Attributes:
      host: any such reducer, or a text such as "fastv(layer=3)", which is built for `backbone` and `layers`.
      layer: K, of hosts before the language model.
      serve: `bank`, `recompute` or `fill`.
      shift: delta; a large one never renews, a negative one always.
      every: steps from one test to the next.
      swaps: most tokens that change places in a step; None for any number, or 16 with `fill`.
      backbone, layers: for a host given by a text.
    """

    host: AnyReducer = "fastv"
    layer: Count = 2
    serve: RenewalMode = "bank"
    shift: float = 0.1
    every: Count = 1
    swaps: Count | None = None
    backbone: Backbone | None = None
    layers: Count | None = None

    def settled(self) -> dict[str, Any]:
        """The host where it is given as text."""
        if not isinstance(self.host, str):
            return {}
        try:
            return {"host": registry.from_text(self.host, self.backbone, self.layers)}
        except JvidpruneError as error:
            raise JvidpruneError(f"DSTP's host: {error}") from error

    def __post_init__(self) -> None:
        """Refuses hosts that cannot have their choice renewed.

        Raises:
          JvidpruneError: a host that merges before the language model, or one with other cuts inside it.
        """
        check_weighs_features(cast(Reducer, self.host), "DSTP cannot renew the choice of")
        title, stages = title_of(self.host), self._host.inner(_ANY)
        if not stages and self._host.info.merges:
            raise JvidpruneError(
                f"DSTP cannot renew the choice of {title}, which merges tokens: they are not there to come back."
            )
        fits = [isinstance(stage.rule, CutRule) and stage.rule.renewable for stage in stages]
        if stages and (fits != [True] or stages[0].positions != "keep"):
            raise JvidpruneError(
                f"DSTP cannot renew the choice of {title} inside the language model: it wants one cut, by the "
                "attention of the last position, behind which tokens keep their positions."
            )

    @property
    def _host(self) -> BaseReducer:
        return with_defaults(self.host)

    @property
    def _inside(self) -> bool:
        """Whether the host cuts inside the language model."""
        return bool(self._host.inner(_ANY))

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the host needs."""
        return self.host.needs

    @property
    def wide_decisions(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the host has it."""
        return self._host.wide_decisions

    @property
    def reads_text_mask(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the host."""
        return self._host.reads_text_mask

    @property
    def reads_sink(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the host, if it works in stages."""
        return isinstance(self.host, StagedReducer) and self._host.reads_sink

    @property
    def in_time(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the host."""
        return self._host.in_time

    @property
    def tokens_from(self) -> TokensFrom:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the host, where its tokens enter."""
        return self._host.tokens_from if self._inside else "features"

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> Any:
        """The host's shared work, and the mask of the tokens of real frames."""
        shared: Any = video
        if isinstance(self.host, StagedReducer):
            shared = self.host.prepare(video, capacity=capacity, **({} if sink is None else {"sink": sink}))
        return shared, jnp.repeat(video.frame_mask, video.features.shape[1])

    def decide(self, shared: Any, budget: Budget, *, capacity: int) -> Plan:
        """The host's plan; of a host before the language model all tokens, its own in blocks of odd numbers."""
        work, real = shared
        decide = self.host.decide if isinstance(self.host, StagedReducer) else self.host.plan
        plan = decide(work, budget, capacity=capacity)
        if self._inside:
            return plan
        size = real.shape[0]
        kept = jnp.zeros(size + 1, bool).at[jnp.where(plan.valid, plan.ids, size)].set(True)[:size]
        whole = selection_plan(real, capacity)
        block = jnp.where(whole.valid, kept[jnp.minimum(whole.ids, size - 1)].astype(jnp.int32), -1)
        return whole._replace(diagnostics={"block": block})

    def apply(self, plan: Plan, video: VideoTokens) -> Reduced:
        """The host's way from a plan to tokens, where they enter."""
        return self._host.apply(plan, video) if self._inside else super().apply(plan, video)

    def budget(self, layout: Layout, ratio: float) -> Budget:
        """The host's."""
        return self.host.budget(layout, ratio)

    def capacity(self, layout: Layout, ratio: float) -> int:
        """The host's, or all tokens, padding frames included."""
        bound = self.host.capacity(layout, ratio)
        return bound if self._inside else layout.slots * layout.tokens

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The host's cut, or one that keeps what it marked, renewed while decoding."""
        renewal = Renewal(self.serve, self.shift, self.every, self.swaps)
        stages = self._host.inner(ratio)
        if not stages:
            return (InnerStage(self.layer, Marked(renewal=renewal), MarkedCount()),)
        stage = stages[0]
        rule = dataclasses.replace(cast(CutRule, stage.rule), renewal=renewal)
        return (dataclasses.replace(stage, rule=rule),)

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The host's where its tokens enter; all tokens stand as the model family has them."""
        rules = prompt_rules(self.host) if self._inside else PromptRules()
        return rules._replace(positions=self.positions or prompt_rules(self.host).positions)

    def warning(self, diagnostics: dict[str, Any]) -> str | None:
        """What the host says, of what is there."""
        return self._host.warning(diagnostics) if self._inside else None

    def flops(self, layout: Layout, width: int, ratio: float) -> Mapping[str, float]:
        """The host's."""
        return self._host.flops(layout, width, ratio)

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dstp",
        title="DSTP-like",
        paper="2604.12358",
        summary="Renews another pruner's choice of visual tokens while the answer is written; wraps FastV by default.",
        nested=False,
        merges=False,
        exact=True,
        quirks=(
            "the paper's detector, layer, threshold, interval and number of swaps are not known (shift, layer, every, "
            "swaps)",
            "dropped tokens have deep keys computed without other dropped tokens (serve='recompute', serve='fill')",
        ),
        provenance="reconstruction",
    )
