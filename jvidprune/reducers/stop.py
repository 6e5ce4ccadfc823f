"""SToP: sink-token-aware pruning as a modifier of any reducer (arXiv 2604.20937).

a is the attention that the base method ranks tokens by.

1. Sink score s in [0, 1]: the mean of a over frames at each place, between its minimum and maximum, to the power gamma.
2. STSP: wherever the base ranks tokens by a it ranks by a - mu_s * s.
3. STTP: wherever the base asks whether a token is unchanged, it adds mu_t * s to the cosine.
4. Everything else is the base's own: budgets, merging, evidence, cuts inside the language model.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("stop"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvidprune.backbones import Backbone
from jvidprune.errors import JvidpruneError
from jvidprune.expressions import Chain, parse
from jvidprune.fields import Exponent
from jvidprune.ops.sink import SinkRule, sink_scores
from jvidprune.reducers import registry
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import (
    AnyReducer,
    MethodInfo,
    PositionedReducer,
    Reducer,
    StagedReducer,
    TokensFrom,
    check_weighs_features,
    prompt_rules,
    with_defaults,
)
from jvidprune.tokens import Budget, InnerStage, Layout, Plan, Reduced, VideoTokens

_WEIGHTS: dict[str, tuple[float, float]] = {
    "visionzip": (0.03, 0.0),
    "fastvid": (0.02, 0.0),
    "flashvid": (0.02, 0.0),
    "holitom": (0.04, 0.07),
    "prunevid": (0.0, 0.0),
    "visionzip_qwen": (3.7, 0.0),
}
"""Base -> (mu_s, mu_t) of the reference's defaults, for either LLaVA backbone and, for the last, Qwen2.5-VL."""

_OTHER_WEIGHTS = (0.03, 0.0)
"""For bases the reference does not know: the value its sensitivity study finds best."""

_BASE_SETTINGS: dict[str, dict[str, Any]] = {
    "fastvid": {"variant": "llava_onevision", "attention": "attention_last"},
    "flashvid": {"pruning_layer": None, "expansion": 1.25, "alpha": 0.7, "method": "attn_div_v2"},
    "holitom": {"tau": 0.8, "inner_layer": None},
}
"""Settings that the reference passes to a base where they differ from the base's own preset."""

_KAPPA = 0.3
_BLOCKED = 20
_STATIC_THRESHOLD = 0.8


class SToPShared(NamedTuple):
    """Ratio-independent work.

    Attributes:
      base: the base's own.
      score: (T, N) float32 sink scores over the whole video, zeros for a base without attention.
    """

    base: Any
    score: Float[Array, "T N"]


@dataclasses.dataclass(frozen=True)
class SToP(PositionedReducer):
    """Lowers the attention of tokens that attract it in every frame, then lets the base decide.

    The sink score s of a place is the min-max normalised power (gamma) of its mean attention over frames, in [0, 1].
    The base ranks by a - mu_s * s (STSP) and tests for unchanged tokens with sim + mu_t * s (STTP). A `StagedReducer`
    gets a `SinkRule` in `prepare` and uses what it has a place for; any other reducer gets a video whose attention maps
    are a - mu_s * s. Methods without attention or static tests are left as they are. Budgets, capacities, evidence and
    application are the base's own.

    By default the reference's ungated extras are reproduced, so that mu_s = mu_t = 0 is *not* the base:

    * VisionZip's uniform targets avoid the 20 highest sink places whatever mu_s, with two numberings mixed;
    * HoliTom's static centres are lowered by 0.3 * s whatever mu_s and mu_t, and its static test uses 0.8 whatever its
      tau (with tau = 0.65 the budget is exceeded);
    * FastVID's cluster centres are lowered by 0.3 * s, twice in segments of several frames, where mu_s is not 0;
    * FlashVID scores each segment by itself and may choose a token again once few positive columns are left
      (`FlashVID(distinct=True)` does not).

    Kept tokens stand at the positions that the base's have: on LLaVA those of FastVID keep the original ones, where
    the reference's copy of it counts them anew (`base=fastvid(positions=renumbered)`).

    `gated=True` is the clean variant: no extra without its weight and the base's own threshold, so that
    mu_s = mu_t = 0 is exactly the base. The paper's tables "without SToP" come from the ungated code.

    Attributes:
      base: any reducer, or a text such as "fastvid" or "flashvid(alpha=0.5)", which is built for `backbone` with the
        settings of SToP's runs.
      mu_s: weight in the attention, in units of maps whose unpooled rows sum to 1; None takes the reference's value for
        the base (0.02 to 0.04; the paper's text names 0.2 and 0.3 for maps of another scale). On Qwen2.5-VL that is 0
        for every base but visionzip_qwen (3.7).
      units: "absolute" is the reference's. With "mean" mu_s, which then has to be given, is in units of the mean of
        what the base ranks by. A map that sums to 1 has the mean 1 / N, so that the reference's 0.03 is about 22 means
        of SigLIP's 729 tokens but 6 of 196: one absolute value is of another strength on every grid.
      mu_t: weight in static tests; None as for mu_s.
      gamma: exponent of the mean attention.
      gated: the clean variant.
      keep_inner: keep the base's cuts inside the language model; the reference makes none, with budgets as if it did.
      backbone: for a base given by name.
    """

    base: AnyReducer = "visionzip"
    mu_s: float | None = None
    mu_t: float | None = None
    units: Literal["absolute", "mean"] = "absolute"
    gamma: Exponent = 1.1
    gated: bool = False
    keep_inner: bool = False
    backbone: Backbone | None = None

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the base needs."""
        return self.base.needs

    @property
    def wide_decisions(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the base has it."""
        return with_defaults(self.base).wide_decisions

    def settled(self) -> dict[str, Any]:
        """The base where it is given as text."""
        if not isinstance(self.base, str):
            return {}
        try:
            return {"base": base_reducer(self.base, self.backbone)}
        except JvidpruneError as error:
            raise JvidpruneError(f"SToP's base: {error}") from error

    def __post_init__(self) -> None:
        if isinstance(self.base, SToP):
            raise JvidpruneError("SToP cannot wrap SToP; choose mu_s and mu_t of one.")
        if self.units == "mean" and self.mu_s is None:
            raise JvidpruneError(
                "SToP's mu_s must be given with units='mean': the reference has no values in these units."
            )
        check_weighs_features(cast(Reducer, self.base), "SToP cannot wrap")

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> Any:
        """The base's shared work under the sink rule; for a reducer without stages, the adjusted video itself."""
        rule = self.rule if sink is None else sink
        return SToPShared(self._prepare_base(video, rule, capacity), self._scores(video, rule))

    def decide(self, shared: Any, budget: Budget, *, capacity: int) -> Plan:
        """The base's decisions, with the sink scores of the whole video among the diagnostics."""
        if isinstance(self.base, StagedReducer):
            plan = self.base.decide(shared.base, budget, capacity=capacity)
        else:
            plan = self.base.plan(shared.base, budget, capacity=capacity)
        return plan._replace(diagnostics=plan.diagnostics | {"sink_score": shared.score})

    def apply(self, plan: Plan, video: VideoTokens) -> Reduced:
        """The base's own way from a plan to tokens."""
        return with_defaults(self.base).apply(plan, video)

    def named_inside(self, name: str) -> Reducer:
        """With the settings that SToP's runs pass to it."""
        return base_reducer(name, self.backbone)

    @property
    def rule(self) -> SinkRule:
        """The adjustments for this base."""
        name = _base_name(self.base)
        default_s, default_t = _WEIGHTS.get(name, _OTHER_WEIGHTS)
        if self.backbone == "qwen2_5_vl" and name != "visionzip_qwen":
            # The reference adjusts nothing but its own method there.
            default_s, default_t = 0.0, 0.0
        mu_s = default_s if self.mu_s is None else self.mu_s
        mu_t = default_t if self.mu_t is None else self.mu_t
        strong = mu_s != 0 or (name == "holitom" and mu_t != 0)
        ungated = not self.gated
        kappa, blocked, threshold = 0.0, 0, None
        if name == "visionzip":
            blocked = _BLOCKED if strong or ungated else 0
        elif name == "holitom":
            kappa = _KAPPA if strong or ungated else 0.0
            threshold = _STATIC_THRESHOLD if ungated else None
        elif name != "flashvid":
            kappa = _KAPPA if strong else 0.0
        return SinkRule(mu_s, mu_t, self.gamma, kappa, threshold, blocked, self.units == "mean")

    def _prepare_base(self, video: VideoTokens, rule: SinkRule, capacity: int) -> Any:
        if not isinstance(self.base, StagedReducer):
            return adjust_video(video, rule, self.base.needs)
        if self.base.reads_sink:
            return self.base.prepare(video, capacity=capacity, sink=rule)
        return self.base.prepare(adjust_video(video, rule, self.base.needs), capacity=capacity)

    def _scores(self, video: VideoTokens, rule: SinkRule) -> Float[Array, "T N"]:
        frames, tokens, _ = video.features.shape
        for name in sorted(self.base.needs):
            if name.startswith("attention_") and video.evidence[name].shape == (frames, tokens):
                groups = jnp.zeros(frames, jnp.int32)
                return sink_scores(video.evidence[name], groups, video.frame_mask, rule.gamma)
        return jnp.zeros((frames, tokens), jnp.float32)

    @property
    def reads_text_mask(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the base."""
        return with_defaults(self.base).reads_text_mask

    @property
    def in_time(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the base."""
        return with_defaults(self.base).in_time

    @property
    def tokens_from(self) -> TokensFrom:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the base."""
        return with_defaults(self.base).tokens_from

    def budget(self, layout: Layout, ratio: float) -> Budget:
        """The base's budget."""
        return self.base.budget(layout, ratio)

    def capacity(self, layout: Layout, ratio: float) -> int:
        """The base's bound; all T*N tokens where HoliTom's tau lies below the hard-coded static threshold.

        There fewer tokens are merged over time than the budget counted on.
        """
        bound = self.base.capacity(layout, ratio)
        threshold = self.rule.static_threshold
        if threshold is not None and self.base.tau < threshold:
            return max(bound, layout.total)
        return bound

    def expected(self, layout: Layout, ratio: float) -> int:
        """The base's."""
        return with_defaults(self.base).expected(layout, ratio)

    @property
    def tokens_per_frame(self) -> Callable[[Layout, float], int] | None:
        """The base's count for every frame, None where frames differ."""
        return with_defaults(self.base).tokens_per_frame

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """Cuts inside the language model: none in the reference, the base's with `keep_inner`."""
        return with_defaults(self.base).inner(ratio) if self.keep_inner else ()

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base's; on LLaVA-Video SToP's copies of all but two methods insert no newlines."""
        rules = prompt_rules(self.base)
        if self.backbone == "llava_video" and _base_name(self.base) not in ("visionzip", "holitom"):
            rules = rules._replace(newline="no_token")
        return rules._replace(positions=self.positions or rules.positions)

    def warning(self, diagnostics: dict[str, Any]) -> str | None:
        """What the base says."""
        return with_defaults(self.base).warning(diagnostics)

    def flops(self, layout: Layout, width: int, ratio: float) -> Mapping[str, float]:
        """The base's."""
        return with_defaults(self.base).flops(layout, width, ratio)

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {"base": "visionzip", "backbone": "llava_onevision"},
        "llava_video": {"base": "visionzip", "backbone": "llava_video"},
        "qwen2_5_vl": {"base": "visionzip_qwen", "backbone": "qwen2_5_vl"},
        "qwen3_vl": {"base": "visionzip_qwen", "backbone": "qwen3_vl"},
        "molmo2": {"base": "visionzip", "backbone": "molmo2"},
        "video_llama_3": {"base": "visionzip", "backbone": "video_llama_3"},
        "internvl": {"base": "visionzip", "backbone": "internvl"},
    }

    @classmethod
    def preset(cls, backbone: str) -> dict[str, Any]:
        """Those published, and the family for a base given by name."""
        return {"backbone": backbone} | dict(super().preset(backbone))

    info: ClassVar[MethodInfo] = MethodInfo(
        name="stop",
        title="SToP",
        paper="2604.20937",
        summary="Makes another reducer ignore attention sinks; wraps any base, VisionZip by default.",
        nested=False,
        merges=True,
        exact=False,
        quirks=(
            "mu = 0 is not the base: blocked slots and centre penalties are not gated (gated=True)",
            "HoliTom's static test uses 0.8 whatever its tau (gated=True)",
            "FlashVID keeps 12.5 % at 10 %: its budget is expanded for a cut that is not made (no option)",
        ),
    )


def base_reducer(text: str, backbone: str | None = None) -> Reducer:
    """A reducer from a text with the settings that SToP's runs pass to it, where it has them.

    Args:
      text: a name, with settings that win over SToP's ("flashvid(alpha=0.5)"), or a chain; see `registry.from_text`.
      backbone: as for `registry.get`.

    Raises:
      JvidpruneError: unknown name, backbone or hyper-parameter.
    """
    written = parse(text)
    if isinstance(written, Chain):
        return registry.from_text(text, backbone)
    return registry.get(written.name, backbone, **(_BASE_SETTINGS.get(written.name, {}) | written.settings))


def adjust_video(video: VideoTokens, rule: SinkRule, needs: frozenset[str]) -> VideoTokens:
    """The video with every attention map of `needs` replaced by a - mu_s * s, s over all real frames.

    Maps that are summed over queries instead of averaged are adjusted in the units of the averaged ones.
    """
    evidence = dict(video.evidence)
    groups = jnp.zeros(video.features.shape[0], jnp.int32)
    for name in needs:
        if not name.startswith("attention_") or name not in evidence:
            continue
        attention = evidence[name].astype(jnp.float32)
        scale = attention.shape[1] if name in ("attention_shallow", "attention_deep") else 1
        adjusted = rule.adjust(attention / scale, groups, video.frame_mask).attention
        evidence[name] = adjusted * scale
    return dataclasses.replace(video, evidence=evidence)


def _base_name(base: Reducer) -> str:
    return with_defaults(base).info.name
