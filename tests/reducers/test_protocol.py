"""What a reducer is: the minimum with all defaults, and combinators that pass on what they wrap."""

import ast
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.reducer_checks import make_video

import jvidprune
from jvidprune import reducers
from jvidprune.cuts.rules import RandomDraw
from jvidprune.errors import JvidpruneError, JvidpruneWarning
from jvidprune.ops import compact
from jvidprune.reducers import registry
from jvidprune.reducers.compose import Sequential
from jvidprune.reducers.counting import TokenWidth
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import (
    BaseReducer,
    MethodInfo,
    StagedReducer,
    class_with_defaults,
    inner_stages,
    prompt_rules,
    title_of,
    with_defaults,
)
from jvidprune.reducers.stop import SToP, base_reducer
from jvidprune.stts.config import STTSConfig
from jvidprune.tokens import InnerStage, Kept

VIDEO = make_video()
MEMBERS = [name for name in vars(BaseReducer) if not name.startswith("_")]


@dataclasses.dataclass(frozen=True)
class Minimal:
    """Keeps the first tokens."""

    needs = frozenset()

    def budget(self, layout, ratio):
        return np.int32(max(1, round(layout.tokens * ratio)))

    def capacity(self, layout, ratio):
        return layout.frames * int(self.budget(layout, ratio))

    def plan(self, video, budget, *, capacity):
        keep = np.arange(video.features.shape[1])[None] < budget
        return compact.selection_plan((keep & video.frame_mask[:, None]).reshape(-1), capacity)


@dataclasses.dataclass(frozen=True)
class Rich(Minimal):
    info = MethodInfo("rich", "Rich!", "-", "has everything", nested=True, merges=False, exact=True)
    prompt = PromptRules("frame", "nonempty", "original", "original", "drop", True)

    def tokens_per_frame(self, layout, ratio):
        return int(self.budget(layout, ratio))

    def inner(self, ratio):
        return (InnerStage(3, RandomDraw(), Kept(0.5)),)

    def flops(self, layout, width, ratio):
        return {"thinking": 7.0}

    def warning(self, diagnostics):
        return "Rich is not sure."


def test_a_minimal_reducer_has_every_default():
    made, layout = Minimal(), VIDEO.layout()
    known = with_defaults(made)
    assert (known.info.title, known.info.summary, known.info.exact) == ("Minimal", "Keeps the first tokens.", False)
    assert (known.prompt, known.inner(0.5), known.flops(layout, 8, 0.5)) == (PromptRules(), (), {})
    assert (known.tokens_from, known.tokens_per_frame, known.warning({})) == ("features", None, None)
    assert known.bind("model") is made
    assert class_with_defaults(Minimal).PRESETS == class_with_defaults(Minimal).at_depth(3, {}, {}) == {}
    reduced = jvidprune.reduce(made, VIDEO, 0.5)
    wanted = compact.apply(made.plan(VIDEO, made.budget(layout, 0.5), capacity=layout.total), VIDEO.features)
    np.testing.assert_array_equal(reduced.tokens[reduced.valid], wanted.tokens[wanted.valid])


def test_what_an_object_has_of_the_others_is_read():
    rich = Rich()
    assert (title_of(rich), prompt_rules(rich), inner_stages(rich, 0.1)) == ("Rich!", rich.prompt, rich.inner(0.1))
    assert with_defaults(rich).flops(VIDEO.layout(), 8, 0.5) == {"thinking": 7.0}
    with pytest.warns(JvidpruneWarning, match="Rich is not sure"):
        jvidprune.reduce(rich, VIDEO, 0.5, diagnostics=True)
    assert Sequential(rich, Minimal()).first is rich

    class Applies(Rich):
        def apply(self, plan, video):
            return compact.apply(plan, 2 * video.features)

    assert with_defaults(Applies()).tokens_from == "evidence"
    doubled, plain = (jvidprune.reduce(made, VIDEO, 0.5) for made in (Applies(), rich))
    np.testing.assert_allclose(doubled.tokens, 2 * plain.tokens)
    with pytest.raises(JvidpruneError, match="cannot chain Rich!"):
        Sequential(Applies(), Minimal())


@pytest.mark.parametrize("name", registry.names())
def test_every_method_that_touches_features_counts_its_work(name):
    """Merging is a sum over the features, so that a method that merges counts something; a plain int will do as D."""
    layout = jvidprune.Layout(8, (6, 6), (12, 12))
    terms = registry.get(name).flops(layout, 64, 0.5)
    assert not class_with_defaults(registry.reducer_class(name)).info.merges or terms
    assert terms == registry.get(name).flops(layout, TokenWidth(64), 0.5)
    assert all(flops >= 0 for flops in terms.values())


def test_what_else_a_method_reads_of_a_token_is_counted():
    layout = jvidprune.Layout(8, (6, 6), (12, 12))
    stop = SToP("visionzip")
    assert stop.flops(layout, 64, 0.5)["seed similarities"] == 0
    assert stop.flops(layout, TokenWidth(64, keys=16), 0.5)["seed similarities"] > 0
    for name in ("evs(deepstack=True)", "vidcom2(deepstack=True)"):
        plain, wide = (registry.from_text(name).flops(layout, TokenWidth(64, levels=n), 0.5) for n in (0, 3))
        assert wide == {term: 4 * flops for term, flops in plain.items()}


def test_values_are_settled_once_and_then_stay():
    made = SToP("flashvid", mu_s=np.float32(0.5))
    assert made == SToP(base_reducer("flashvid"), mu_s=0.5)
    assert hash(made) == hash(SToP(base_reducer("flashvid"), mu_s=0.5))
    assert type(made.mu_s) is float
    again = dataclasses.replace(made, gamma=2)
    assert (again.base, again.gamma) == (made.base, 2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.base = "visionzip"
    with pytest.raises(JvidpruneError, match="SToP cannot wrap SToP"):
        SToP("stop")

    @dataclasses.dataclass(frozen=True)
    class Named(BaseReducer):
        """A user's own, with a value that follows from another."""

        size: int = 2
        seen: tuple = ()

        def settled(self):
            return {"size": 2 * self.size}

        def __post_init__(self):
            if self.size > 8:
                raise JvidpruneError("too large")

    assert Named(np.int64(3)).size == 6
    with pytest.raises(JvidpruneError, match="too large"):
        Named(5)


def test_a_prompt_that_is_none_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Wrong(Minimal):
        prompt = "frame"

    with pytest.raises(JvidpruneError, match=r"prompt of Wrong must be PromptRules\(\.\.\.\), got .*frame"):
        prompt_rules(Wrong())


def test_combinators_pass_on_what_they_wrap():
    rich, layout = Rich(), VIDEO.layout()
    stop = SToP(rich, keep_inner=True)
    assert stop.prompt == rich.prompt
    assert SToP(rich, positions="renumbered").prompt == rich.prompt._replace(positions="renumbered")
    assert (stop.inner(0.1), SToP(rich).inner(0.1)) == (rich.inner(0.1), ())
    assert stop.warning({}) == "Rich is not sure."
    assert stop.tokens_per_frame is not None
    assert stop.tokens_per_frame(layout, 0.5) == rich.tokens_per_frame(layout, 0.5)
    assert SToP("aot").tokens_from == "evidence"
    # A row of a chain names a token of the first stage, whose place is its own.
    assert Sequential("visionzip", rich).prompt == rich.prompt._replace(official_places=False)
    assert Sequential("visionzip(positions=original)", "flashvid").prompt.positions == "original"
    assert Sequential("visionzip", Minimal()).tokens_per_frame is None
    assert Sequential("visionzip", rich).tokens_per_frame is not None


def test_a_base_without_a_place_for_the_rule_gets_adjusted_maps():
    @dataclasses.dataclass(frozen=True)
    class Plain(StagedReducer):
        needs = frozenset({"attention_last"})
        reads_sink = False

        def budget(self, layout, ratio):
            return np.int32(1)

        def capacity(self, layout, ratio):
            return layout.frames

        def prepare(self, video, *, capacity):
            return video

        def decide(self, shared, budget, *, capacity):
            return Minimal().plan(shared, budget, capacity=capacity)

    frames, tokens, _ = VIDEO.features.shape
    attention = jax.random.uniform(jax.random.key(0), (frames, tokens))
    video = dataclasses.replace(VIDEO, evidence=VIDEO.evidence | {"attention_last": attention})
    given = SToP(Plain(), mu_s=0.5).prepare(video, capacity=frames).base.evidence["attention_last"]
    assert not np.array_equal(given, attention)


def test_methods_bound_to_different_models_are_not_equal():
    one, other = (type("Model", (), {"stts": STTSConfig(), "layers": 27})() for _ in range(2))
    method = registry.get("stts")
    assert method.bind(one) == method.bind(one) != method.bind(other) != method
    assert hash(method.bind(one)) == hash(method.bind(one))
    assert "model" not in repr(method.bind(one))
    with pytest.raises(JvidpruneError, match="unknown hyper-parameter of stts 'model'"):
        registry.from_text("stts(model=3)")


@pytest.mark.parametrize("name", [*registry.names(), *registry.combinators(), *registry.learned()])
def test_every_method_has_every_member(name):
    made = registry.get(name)
    assert isinstance(made, BaseReducer)
    assert with_defaults(made) is made
    assert isinstance(prompt_rules(made), PromptRules)
    assert all(isinstance(stage, InnerStage) for stage in inner_stages(made, 0.5))
    assert made.tokens_from in ("features", "evidence", "tower")


def test_every_class_is_offered_by_name():
    for name in (*registry.names(), *registry.combinators(), *registry.learned()):
        cls = registry.reducer_class(name)
        assert getattr(reducers, cls.__name__) is cls
    with pytest.raises(AttributeError, match="no attribute 'Flashvid'"):
        _ = reducers.Flashvid


def test_no_other_module_asks_what_a_reducer_has():
    found = set()
    for path in Path(jvidprune.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
            ):
                asked = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
                if asked in {*MEMBERS} - {"model"}:
                    found.add((path.name, node.lineno, asked))
    # Parts of a transport are named in sentences too.
    assert {name for name, _, _ in found} <= {"protocol.py", "fields.py"}, found
