"""What a reducer is: four members that any object can have, and a base class with all others and their defaults."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol, cast, runtime_checkable

from jax import lax

from jvidprune.backbones import settings_of
from jvidprune.errors import JvidpruneError, quoted
from jvidprune.fields import check_fields, settle
from jvidprune.ops import compact
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.prompt_rules import PositionRule, PromptRules, check_positions
from jvidprune.tokens import Budget, InnerStage, Layout, Plan, Reduced, VideoTokens


@runtime_checkable
class Reducer(Protocol):
    """What any reducer, ours or a user's, looks like: a hashable object (static under jit) with four members."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of `EVIDENCE` that `plan` reads."""
        ...

    def budget(self, layout: Layout, ratio: float) -> Budget:
        """Integers for one retention ratio, on the host in float64; JvidpruneError in one sentence if impossible."""
        ...

    def capacity(self, layout: Layout, ratio: float) -> int:
        """A proved upper bound of the number of output tokens."""
        ...

    def plan(self, video: VideoTokens, budget: Budget, *, capacity: int) -> Plan:
        """The decisions: pure, jittable, vmappable over budgets and videos."""
        ...


Provenance = Literal["code", "reconstruction"]
"""What a method was written after.

"code": an implementation that is public, the authors' or another. "reconstruction": what is said of it and no more,
since no code is public; nothing shows that its authors' program keeps the same tokens, and every listing says so.
"""


@dataclasses.dataclass(frozen=True)
class MethodInfo:
    """What `jvidprune methods` and the README's table say of a method.

    Attributes:
      name: registry name.
      title: the paper's name of the method.
      paper: arXiv id, or "-" for a control.
      summary: one sentence.
      nested: the kept sets of a smaller budget lie inside those of a larger one.
      merges: tokens are averaged or summed, not only selected.
      exact: the number of output tokens is known before any data is seen.
      quirks: behaviours of the reference implementation that the default reproduces, each with the option that
        mends it in brackets, or "no option".
      provenance: see `Provenance`.
    """

    name: str
    title: str
    paper: str
    summary: str
    nested: bool
    merges: bool
    exact: bool
    quirks: tuple[str, ...] = ()
    provenance: Provenance = "code"

    @property
    def label(self) -> str:
        """The title, with the word for a reconstruction where it is one: what listings, tables and reports show."""
        return f"{self.title} (reconstruction)" if self.provenance == "reconstruction" else self.title


class _ReducerRule:
    """The rule of `fields` for a reducer inside another one, which may also be a text for `registry.from_text`."""

    words = "a reducer, or a method as text"

    def check(self, value: Any) -> Any:
        if isinstance(value, type) or not isinstance(value, str | Reducer) or value == "":
            raise ValueError
        return value


AnyReducer = Annotated[Any, _ReducerRule()]
"""Annotation of a field that holds a reducer."""


PlanGradient = Literal["stop", "through"]
"""What derivatives see of a plan: nothing ("stop"), or the weights in it that are no choice ("through")."""


def gradient_gate(reducer: Any) -> Callable[[Any], Any]:
    """What shared work and budgets of a reducer pass: `lax.stop_gradient`, or nothing with plan_gradient "through"."""
    return (lambda tree: tree) if with_defaults(reducer).plan_gradient == "through" else lax.stop_gradient


TokensFrom = Literal["features", "evidence", "tower", "frames"]
"""What the tokens of a reduction are made of.

"features": weighted sums of `video.features`, as the plan says, so that a chain can multiply its stages' weights;
"evidence": other arrays of the video, which the reducer's own `apply` reads (AOT before pooling); "tower": the rest of
the tower, which the reducer runs itself in `run_budgets` (STTS), so that nothing can be done with its plan alone;
"frames": other frames of the video, which the model encodes as `BaseReducer.seen` says (`reducers.frames`).
"""


class _Described:
    """What is said of a class that says nothing of itself."""

    def __get__(self, made: Any, cls: type) -> MethodInfo:
        return _described(cls)


def _described(cls: type) -> MethodInfo:
    summary = (cls.__doc__ or "").strip().partition("\n")[0]
    return MethodInfo("", cls.__name__, "-", summary, nested=False, merges=False, exact=False)


class BaseReducer:
    """All that the package reads of a reducer, with what holds unless it says otherwise.

    Subclasses are frozen dataclasses of hyper-parameters, whose values are checked against the annotations before a
    `__post_init__` of their own runs, see `fields`. A reducer of the user's own need not be one: `with_defaults` reads
    any object with the four members of `Reducer` as one, and takes what it has of the others.

    Attributes:
      info: what listings say.
      PRESETS: model family -> published settings.
      needs: names of `EVIDENCE` that `plan` reads.
      prompt: how tokens stand in the prompt.
      tokens_from: see `TokensFrom`.
      tokens_per_frame: (layout, ratio) -> tokens of every frame, of methods that keep equally many in each; None of all
        others. It is what the first stage of a chain must have.
      wide_decisions: what is decided for one budget holds (T, N, N) or D-wide arrays, so that several budgets are
        decided one after the other on accelerators too.
      reads_sink: `prepare` has a place for SToP's rule; else SToP gives it a video whose maps are adjusted.
      reads_text_mask: a method that reads "text" reads "text_mask" too; else it is given a question without padding, in
        a program for each length.
      plan_gradient: see `PlanGradient`.
      in_time: frames are compared with those before or behind them, so that tiles of a picture are no frames to it.
    """

    info: ClassVar[MethodInfo] = cast(MethodInfo, _Described())
    PRESETS: ClassVar[Mapping[str, dict[str, Any]]] = {}
    needs: frozenset[str] = frozenset()
    prompt: PromptRules = PromptRules()
    tokens_from: TokensFrom = "features"
    tokens_per_frame: Callable[[Layout, float], int] | None = None
    reads_sink: bool = True
    wide_decisions: bool = False
    reads_text_mask: bool = False
    plan_gradient: PlanGradient = "stop"
    in_time: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("__post_init__")
        if own is None:
            return

        @functools.wraps(own)
        def settled_first(self: Any) -> None:
            BaseReducer.__post_init__(self)
            own(self)

        cls.__post_init__ = settled_first  # type: ignore[attr-defined]

    def __post_init__(self) -> None:
        """Checks the values of all fields and settles those that were given in another form; runs before a class's own.

        Raises:
          JvidpruneError: names the field, the value and what is allowed.
        """
        check_fields(self)
        settle(self, **self.settled())

    def settled(self) -> Mapping[str, Any]:
        """Fields in the form that they are kept in where they may be given in another, e.g. a method given as text.

        Asked for once, when the object is made and the fields have passed their annotations; equality, hash and saved
        settings are those of what it returns.
        """
        return {}

    @classmethod
    def preset(cls, backbone: str) -> Mapping[str, Any]:
        """Published settings on a model family, or on that whose they are; none for one without any."""
        return cls.PRESETS.get(backbone, cls.PRESETS.get(settings_of(backbone), {}))

    @classmethod
    def at_depth(cls, layers: int, settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Settings that follow from the depth of the language model: a field `depth`, unless it was given.

        Args:
          layers: decoder layers.
          settings: of the backbone's preset.
          given: settings of the user's own.
        """
        named = "depth" in getattr(cls, "__dataclass_fields__", {}) and "depth" not in given
        return {"depth": layers} if named else {}

    def named_inside(self, name: str) -> Reducer | None:
        """The reducer that a bare name stands for as a setting of this one; None for that of `registry.get(name)`."""
        return None

    def without_numbers(self) -> Reducer:
        """What compiled programs are made for: the method without the numbers and arrays that its budgets carry."""
        return cast(Reducer, self)

    def bind(self, model: Any) -> Reducer:
        """The same method on a model, where it needs the model's weights."""
        return cast(Reducer, self)

    def check_model(self, config: Any) -> None:
        """Refuses a model that the method has no meaning on, told from its config alone.

        Raises:
          JvidpruneError: such a model, in one sentence.
        """

    def seen(self, layout: Layout, ratio: float) -> Layout:
        """What the tower encodes of a video whose tokens have this layout: all of it, unless `tokens_from` is "frames".

        Raises:
          JvidpruneError: an impossible ratio.
        """
        return layout

    def budget(self, layout: Layout, ratio: float) -> Budget:
        """See `Reducer.budget`."""
        raise NotImplementedError

    def capacity(self, layout: Layout, ratio: float) -> int:
        """See `Reducer.capacity`."""
        raise NotImplementedError

    def plan(self, video: VideoTokens, budget: Budget, *, capacity: int) -> Plan:
        """See `Reducer.plan`."""
        raise NotImplementedError

    def apply(self, plan: Plan, video: VideoTokens) -> Reduced:
        """The tokens of a plan: copies and weighted sums of the features."""
        return compact.apply(plan, video.features)

    def run_budgets(self, video: VideoTokens, budgets: Budget, *, capacity: int, diagnostics: bool) -> Reduced:
        """`Reduced` for every entry of a stacked budget, of methods whose tokens come from the tower."""
        raise NotImplementedError

    def expected(self, layout: Layout, ratio: float) -> int:
        """Tokens that a reduction is expected to leave before any video is seen; costs are matched by it.

        `capacity` where that is exact; else the share that the ratio names, at which methods aim whose number of tokens
        the video decides. A method that aims at another says so here.
        """
        bound = self.capacity(layout, ratio)
        return bound if self.info.exact else min(bound, max(1, int(layout.total * ratio + 0.5)))

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The cuts inside the language model at a retention ratio."""
        return ()

    def flops(self, layout: Layout, width: int, ratio: float) -> Mapping[str, float]:
        """The terms that dominate one reduction, see `counting`; none for a method that only ranks what it is given.

        Args:
          layout: of the video.
          width: D; from `costs` a `counting.TokenWidth`, which says what else of a token is compared.
          ratio: retention ratio.
        """
        return {}

    def warning(self, diagnostics: dict[str, Any]) -> str | None:
        """What a user should know of a result, as a sentence."""
        return None


class _Filled(BaseReducer):
    """Any object with the four members of a reducer; what it has of the others is taken from it."""

    _MEMBERS = (
        *(
            "needs",
            "budget",
            "capacity",
            "plan",
            "info",
            "PRESETS",
            "prompt",
            "tokens_per_frame",
            "reads_sink",
            "wide_decisions",
            "reads_text_mask",
            "plan_gradient",
            "in_time",
        ),
        *("tokens_from", "at_depth", "bind", "apply", "run_budgets", "inner", "flops", "warning"),
        *("check_model", "seen", "expected", "without_numbers"),
    )

    def __init__(self, reducer: Any):
        # What it overrides tells what it makes tokens of, unless it says so.
        own = "tower" if hasattr(reducer, "run_budgets") else "evidence" if hasattr(reducer, "apply") else "features"
        known = {"tokens_from": own, "info": _described(type(reducer)), "bind": lambda model: reducer}
        known["without_numbers"] = lambda: reducer
        known |= {name: getattr(reducer, name) for name in self._MEMBERS if hasattr(reducer, name)}
        vars(self).update(known)


def with_defaults(reducer: Any) -> BaseReducer:
    """A reducer with all members: itself, or one with the defaults filled in; nothing else looks what a reducer has."""
    return reducer if isinstance(reducer, BaseReducer) else _Filled(reducer)


def class_with_defaults(cls: Any) -> type[BaseReducer]:
    """The same of a class that is not yet made: its `info`, `PRESETS`, `preset` and `at_depth`."""
    if not isinstance(cls, type):
        return class_with_defaults(type(cls))
    if issubclass(cls, BaseReducer):
        return cls
    known = {name: getattr(cls, name) for name in ("info", "PRESETS", "preset", "at_depth") if hasattr(cls, name)}
    return type(cls.__name__, (BaseReducer,), {"__doc__": cls.__doc__} | known)


def prompt_rules(reducer: Any) -> PromptRules:
    """`prompt` of a reducer, checked.

    Raises:
      JvidpruneError: it is no `PromptRules`, or has a rule of positions that is none.
    """
    rules = with_defaults(reducer).prompt
    if not isinstance(rules, PromptRules):
        raise JvidpruneError(f"prompt of {type(reducer).__name__} must be PromptRules(...), got {quoted(repr(rules))}.")
    for name in ("positions", "reference_positions"):
        check_positions(getattr(rules, name), f"{name} of {type(reducer).__name__}")
    return rules


class StagedReducer(BaseReducer):
    """A reducer in two stages: `prepare` (no budget, shared by all ratios) and `decide` (budget-dependent).

    Decisions are made under `stop_gradient`: the output is linear in the features once the plan is fixed, so gradients
    reach the tokens that survive or are merged. A method with plan_gradient "through" stops its choices itself.
    """

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> Any:
        """Ratio-independent work: similarities, segmentations, selection orders. Any pytree.

        Args:
          video: the tokens.
          capacity: static bound of the output rows of the largest budget that will be asked for.
          sink: SToP's adjustments; given where `reads_sink`. A method that says so and has no place for them ignores
            the rule.
        """
        raise NotImplementedError

    def decide(self, shared: Any, budget: Budget, *, capacity: int) -> Plan:
        """The plan for one budget from the shared work."""
        raise NotImplementedError

    def plan(self, video: VideoTokens, budget: Budget, *, capacity: int) -> Plan:
        """The decisions for one video and one budget; see `Reducer.plan`."""
        held = gradient_gate(self)
        return self.decide(held(self.prepare(video, capacity=capacity)), held(budget), capacity=capacity)


@dataclasses.dataclass(frozen=True, eq=False)
class PositionedReducer(StagedReducer):
    """What every method of this package lets a user choose beside its own hyper-parameters.

    Attributes:
      positions: rotary positions of kept tokens, "renumbered" or "original"; None takes the rule of the checkpoint's
        folder or of the method's reference on the model's family, see `protocol.position_rule`.
    """

    positions: PositionRule | None = dataclasses.field(default=None, kw_only=True)

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The positions that were asked for, and all else as the model family has it."""
        return PromptRules(positions=self.positions)


def title_of(reducer: Reducer) -> str:
    """A reducer's name for people: the label of its `info`, or the name of its class where it carries none."""
    return with_defaults(reducer).info.label


def inner_stages(reducer: Reducer, ratio: float) -> tuple[InnerStage, ...]:
    """What a reducer does inside the language model at a retention ratio."""
    return tuple(with_defaults(reducer).inner(ratio))


def check_ratio(ratio: float) -> float:
    """The retention ratio as a float.

    Raises:
      JvidpruneError: not a number in (0, 1].
    """
    try:
        value = float(ratio)
    except (TypeError, ValueError):
        raise JvidpruneError(f"the retention ratio must be a number in (0, 1], got {ratio!r}.") from None
    if not 0.0 < value <= 1.0:
        raise JvidpruneError(f"the retention ratio must lie in (0, 1], got {value:g}.")
    return value


def of_frames(reducer: Reducer) -> bool:
    """Whether a method's tokens are those of other frames, which a model encodes for it."""
    return with_defaults(reducer).tokens_from == "frames"


def check_weighs_features(reducer: Reducer, what: str) -> None:
    """Refuses a method whose tokens are no weighting of the video's features, where these are all there is.

    Args:
      reducer: any; STTS is such a method: its tokens come from the blocks of the tower that it runs itself.
      what: begins the sentence.

    Raises:
      JvidpruneError: it is one.
    """
    if with_defaults(reducer).tokens_from == "tower":
        raise JvidpruneError(
            f"{what} {title_of(reducer)}: it runs the tower itself, which `reduce` and `sweep` let it do."
        )
    if of_frames(reducer):
        raise JvidpruneError(
            f"{what} {title_of(reducer)}: it makes tokens of other frames, which VideoLLM.reduce, ask and sweeps of a "
            "model let it do."
        )
