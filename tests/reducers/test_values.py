"""Wrong values of every setting of every method, in Python, as texts and in saved settings: a sentence, or it works."""

import dataclasses
import itertools
import json
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvidprune
from jvidprune import JvidpruneError, VideoTokens, cli
from jvidprune.fields import Count, Range, Share, check_fields, checked, pytree, settings_of
from jvidprune.ops import transport
from jvidprune.ops.transport import kinds
from jvidprune.reducers import registry
from jvidprune.reducers.protocol import StagedReducer
from jvidprune.reducers.serialise import read_record

METHODS = (*registry.names(), *registry.combinators(), *registry.learned())
FRAMES, GRID, UNPOOLED, DIM = 6, (4, 4), (8, 8), 8


class Odd:
    """Something that no setting can be."""


WRONG = [
    None,
    True,
    False,
    "abc",
    "",
    "1",
    "a\nb" * 200,
    b"x",
    [],
    [1],
    [0.5, "x"],
    (),
    {},
    {"a": 1},
    {1},
    1j,
    math.nan,
    math.inf,
    -math.inf,
    -1,
    0,
    -0.5,
    0.5,
    1.5,
    3,
    np.float32(0.25),
    np.int64(2),
    np.float64("nan"),
    np.zeros(3),
    -1e30,
    1e30,
    1e300,
    1e-300,
    2**31,
    -(2**40),
    10**400,
    10**5000,
    Odd(),
    Odd,
    int,
    lambda: 0,
    transport.TokenCost(),
    transport.Sinkhorn(),
    transport.Uniform(),
    registry.get("random"),
]


def the_video() -> VideoTokens:
    rng = np.random.default_rng(0)
    n, m = GRID[0] * GRID[1], UNPOOLED[0] * UNPOOLED[1]

    def draw(*shape):
        return rng.random(shape, np.float32) + 0.01

    evidence = {name: draw(FRAMES, n) for name in ("attention_last", "attention_pooling_head", "attention_mean_query")}
    evidence |= {name: draw(FRAMES, m) for name in ("attention_shallow", "attention_deep")}
    evidence |= {
        "keys": draw(FRAMES, n, 4),
        "features_unpooled": draw(FRAMES, m, DIM),
        "frame_embedding": draw(FRAMES, 5),
    }
    evidence |= {"features_deepstack": draw(FRAMES, n, 2, DIM), "text": draw(3, DIM), "newline": draw(DIM)}
    evidence["tower_scores"] = draw(FRAMES, n)
    evidence["tower_state"] = draw(FRAMES, n, DIM)
    return VideoTokens.create(draw(FRAMES, n, DIM), evidence, grid=GRID, unpooled_grid=UNPOOLED)


VIDEO = the_video()


def one_sentence(error, name, value):
    text = str(error)
    assert "\n" not in text
    assert len(text) < 700
    assert text.endswith((".", "?"))
    assert name in text, text
    return text


def plans(reducer, trace=True):
    """Budget, capacity and the traced plan of a small video, without compiling it."""
    layout = VIDEO.layout()
    budget, capacity = reducer.budget(layout, 0.5), reducer.capacity(layout, 0.5)
    assert capacity >= 1
    if trace and reducer.tokens_from != "tower":
        plan = jax.eval_shape(lambda video, budget: reducer.plan(video, budget, capacity=capacity), VIDEO, budget)
        assert plan.ids.shape == (capacity,)


def check_values(method, most):
    """Every wrong value of every field is refused or plans; `most` of those that plan do so for real."""
    cls, refused, accepted = registry.reducer_class(method), 0, {}
    for name, value in itertools.product(settings_of(cls), WRONG):
        try:
            made = cls(**{name: value})
        except JvidpruneError as error:
            one_sentence(error, name, value)
            refused += 1
            continue
        accepted.setdefault(made, (name, value))
    # Most of the list fits no field.
    assert refused >= 20 * len(settings_of(cls))
    step = max(1, -(-len(accepted) // most))
    for number, made in enumerate(accepted):
        try:
            plans(made, trace=number % step == 0)
        except JvidpruneError as error:
            one_sentence(error, "", None)


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_value_is_refused_in_one_sentence_or_works(method):
    check_values(method, most=1 if method in registry.combinators() else 3)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_every_value_that_is_accepted_plans(method):
    check_values(method, most=10_000)


@pytest.mark.parametrize("method", METHODS)
def test_texts_and_saved_settings_are_refused_as_python_is(method):
    cls = registry.reducer_class(method)
    typed = [value for value in WRONG if isinstance(value, bool | int | float | str | list | type(None))]
    typed = [value for value in typed if not (isinstance(value, int) and abs(value) > 2**64)]
    typed = [
        value for value in typed if value == value and value not in (math.inf, -math.inf) and "\n" not in str(value)
    ]
    for name, value in itertools.product(settings_of(cls), typed):
        outcomes = []
        record = {"format": 1, "ratio": 0.5, "reducer": {"method": method, "settings": {name: value}}}
        ways = [
            lambda name=name, value=value: cls(**{name: value}),
            lambda name=name, value=value: registry.from_text(f"{method}:{name}={value!r}"),
            lambda record=record: read_record(record).reducer,
        ]
        for way in ways:
            try:
                outcomes.append(way())
            except JvidpruneError as error:
                outcomes.append(one_sentence(error, name, value))
        assert outcomes[0] == outcomes[1] == outcomes[2], (name, value)


SENTENCES = {
    "aot:intra_transport=Foo": "AOT's intra_transport: unknown transport 'Foo'; known: Transport.",
    "aot:intra_transport=(Transport:cost=Foo)": "AOT's intra_transport: Transport's cost: unknown cost 'Foo'; known: "
    "TokenCost, ClipCost, LocalityCost, LearnedCost.",
    "random:seed=abc": "Random's seed must be a whole number in [-2147483648, 4294967295], got 'abc'.",
    "evs:floor=None": "EVS's floor must be a number of at least 0, got None.",
    "fastvid:tau=abc": "FastVID's tau must be a finite number, got 'abc'.",
    "holitom:tau=abc": "HoliTom's tau must be a finite number, got 'abc'.",
    "prunevid:tau=[1]": "PruneVid's tau must be a finite number, got [1].",
    "aot:inter_transport=5": "AOT's inter_transport must be a Transport, got 5.",
    "ottvid:transport=(Transport:solver=5)": "OTT-Vid's transport: Transport's solver must be one of Sinkhorn, "
    "FixedSinkhorn, LogSinkhorn, Dustbin, Partial, OttSinkhorn, LowRank, GromovWasserstein or a function of (cost, mu, "
    "nu), got 5.",
    "aot:intra_transport=(Transport:solver=(Sinkhorn:epsilon=0))": "AOT's intra_transport: Transport's solver: "
    "Sinkhorn's epsilon must be at least 1e-06, got 0.",
    "aot:intra_transport=(Transport:solver=(Sinkhorn:epsilom=1))": "AOT's intra_transport: Transport's solver: unknown "
    "setting of Sinkhorn 'epsilom'; known: epsilon, tau_sources, tau_anchors, threshold, max_iterations, stop, exact, "
    "floor. Did you mean 'epsilon'?",
    "flashvid:distinct=true": "FlashVID's distinct must be True or False, got 'true'.",
    "flashvid:pruning_layer=0": "FlashVID's pruning_layer must be at least 1 or None, got 0.",
    "flashvid:method=atn": "unknown method 'atn' of FlashVID; known: attn, div, attn_div, attn_div_v2. Did you mean "
    "'attn'?",
    "ottvid:centroid_grid=[13]": "OTT-Vid's centroid_grid must be a list of 2: a whole number of at least 1, a whole "
    "number of at least 1 or None, got [13].",
    "flashvid:alpha=1,alpha=0": "alpha is given twice in 'flashvid:alpha=1,alpha=0'.",
    "stop:base=(flashvid:alpha=2)": "SToP's base: FlashVID's alpha must lie in [0, 1], got 2.",
}


@pytest.mark.parametrize(("text", "sentence"), SENTENCES.items())
def test_sentences_of_the_command_line(text, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["jvidprune", "flops", "--reducer", text])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_numbers_of_numpy_and_whole_numbers_are_numbers():
    made = registry.get(
        "flashvid", alpha=np.float32(0.5), min_segments=np.int64(4), expansion=2, distinct=np.bool_(True)
    )
    assert made == registry.get("flashvid", alpha=0.5, min_segments=4, expansion=2.0, distinct=True)
    assert {type(getattr(made, name)) for name in ("alpha", "min_segments", "distinct")} == {float, int, bool}
    hash(made)
    assert registry.get("sequential", ladder=[0.5, 1]).ladder == (0.5, 1)
    assert registry.get("ottvid", centroid_grid=[13, np.int32(13)]).centroid_grid == (13, 13)


def test_traced_values_stay_what_they_are():
    budget = registry.get("prunevid").budget(VIDEO.layout(), 0.5)

    def kept(tau):
        return registry.get("prunevid", tau=tau).plan(VIDEO, budget, capacity=VIDEO.layout().total).count

    counts = jax.jit(jax.vmap(kept))(jnp.array([-2.0, 0.9999, 2.0]))
    wanted = [int(jax.jit(kept)(tau)) for tau in (-2.0, 0.9999, 2.0)]
    assert counts.tolist() == wanted
    assert len(set(wanted)) > 1


PARTS = [*kinds.NAMES]


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_a_transport_refuse_wrong_values_too(part):
    cls, last = getattr(transport, part), registry.get("aot", window=2)
    for name, value in itertools.product(settings_of(cls), WRONG):
        try:
            made = cls(**{name: value})
        except JvidpruneError as error:
            one_sentence(error, name, value)
            continue
        leaves, tree = jax.tree.flatten(made)
        assert jax.tree.unflatten(tree, leaves) == made
        # Transformations put what they like into the leaves.
        jax.tree.unflatten(tree, [object()] * len(leaves))
        kind = next(kind for kind, names in kinds._NAMED.items() if part in names)
        if not any(isinstance(leaf, np.ndarray) for leaf in leaves):
            parts = made if kind == "transport" else transport.Transport(**{kind: made})
            last = registry.get("aot", window=2, intra_transport=parts)
            plans(last, trace=False)
    plans(last)


def test_texts_make_parts_of_a_transport():
    parts = "Transport:solver=(Dustbin:solver=(Sinkhorn:epsilon=0.5),mass=0.2),cost=(TokenCost:w_pos=0)"
    inside = registry.from_text(f"aot:intra_transport=({parts})").intra_transport
    # What is not given is the method's own at that place.
    dustbin = transport.Dustbin(transport.Sinkhorn(0.5), mass=0.2)
    assert inside == transport.Transport(transport.TokenCost(w_pos=0), transport.Uniform(), dustbin, "mass")
    along = registry.from_text("aot:inter_transport=(Transport:marginals=Saliency)").inter_transport
    own = transport.ClipCost(), transport.Saliency(), transport.Sinkhorn(), "row"
    assert along == transport.Transport(*own)


@dataclasses.dataclass(frozen=True)
class Mine(StagedReducer):
    """A reducer of a user whose annotations name what only its own module knows."""

    share: Share = 2.0
    whatever: Annotated["NoSuchName", 1] | None = None


def test_a_users_own_fields_are_left_alone_where_annotations_cannot_be_read():
    assert Mine(share="x").share == "x"


@dataclasses.dataclass(frozen=True)
class Checked(StagedReducer):
    """A reducer of a user."""

    share: Share = 2.0
    mode: Literal["a", "b"] | int = "a"
    many: tuple[Count, ...] = ()
    anything: object = None
    inside: Annotated[float, Range(0, 1, above=True, below=True)] = 0.5

    def __post_init__(self):
        if self.share > 0.5 and self.mode == "b":
            raise JvidpruneError("b takes at most a half.")


def test_a_users_own_fields_are_checked_before_its_own_check():
    assert Checked() == Checked(share=2.0)
    assert Checked(many=[1, 2], anything=Odd).many == (1, 2)
    for settings, sentence in [
        ({"share": 1.5}, "Checked's share must lie in [0, 1], got 1.5."),
        ({"share": "x"}, "Checked's share must be a number in [0, 1], got 'x'."),
        ({"mode": "c"}, "Checked's mode must be 'a' or 'b' or a whole number, got 'c'."),
        ({"many": (1, 0)}, "Checked's many must be a list, each entry a whole number of at least 1, got (1, 0)."),
        ({"inside": 1}, "Checked's inside must lie in (0, 1), got 1."),
        ({"share": 1, "mode": "b"}, "b takes at most a half."),
    ]:
        with pytest.raises(JvidpruneError) as caught:
            Checked(**settings)
        assert str(caught.value) == sentence


def test_values_without_an_owner_and_long_ones():
    with pytest.raises(JvidpruneError, match=r"^seconds must be a positive number, got '(a+)\.\.\.\.$"):
        checked("a" * 500, Annotated[float, Range(0, above=True)], "seconds")
    assert json.dumps(checked(np.float64(2), float, "x")) == "2.0"
    assert jvidprune.JvidpruneError is JvidpruneError
    check_fields(Odd())


@pytree
@dataclasses.dataclass(frozen=True)
class Leaf:
    """A pytree with one leaf and one part of its structure."""

    a: float = 1.0
    b: int = dataclasses.field(default=2, metadata={"static": True})

    def __post_init__(self):
        check_fields(self)


def test_a_pytree_is_checked_when_made_and_not_when_rebuilt():
    paths = jax.tree_util.tree_leaves_with_path(Leaf(3.0))
    assert [(jax.tree_util.keystr(path), leaf) for path, leaf in paths] == [(".a", 3.0)]
    assert jax.tree.map(lambda _: "text", Leaf()).a == "text"
    assert Leaf(np.arange(3.0)).a.shape == (3,)
    for wrong in ({"a": "x"}, {"b": 1.5}, {"a": math.nan}):
        with pytest.raises(JvidpruneError, match="Leaf's"):
            Leaf(**wrong)


WRONG_NUMBERS = {
    "flops --kept=-1": "kept must lie in [0, 6272], the video's tokens, got -1.",
    "flops --kept=6273": "kept must lie in [0, 6272], the video's tokens, got 6273.",
    "flops --text=0": "text must lie in [1, 10000000], got 0.",
    "flops --new-tokens=99999999999999999999": "new_tokens must lie in [1, 10000000], got 99999999999999999999.",
    "flops --frames=-3": "frames must lie in [1, 100000], got -3.",
    "flops --ratio=nan": "the retention ratio must lie in (0, 1], got nan.",
    "flops --size=²x³": "a size is written HEIGHTxWIDTH in pixels, each from 1 to 100000, got '²x³'.",
    "flops --size=0x448": "a size is written HEIGHTxWIDTH in pixels, each from 1 to 100000, got '0x448'.",
    "plan --frames=,": "frames are whole numbers separated by commas, got ''.",
    "plan --frames=1e3": "frames are whole numbers separated by commas, got '1e3'.",
    "plan --batch=-1": "batch must lie in [1, 10000000], got -1.",
    "plan --mesh tensor=²": "a mesh is written as in data=2,fsdp=2,tensor=2, got 'tensor=²'.",
    "clip out.mp4 --seed=-1": "seed must be at least 0, got -1.",
    "clip out.mp4 --frames=100000000": "frames must lie in [3, 10000], got 100000000.",
    "ask --max-new-tokens=-1": "max_new_tokens must be at least 1, got -1.",
    "ask --temperature=nan": "temperature must be a number of at least 0, got nan.",
    "ask --temperature=inf": "temperature must be a number of at least 0, got inf.",
    "ask --top-p=0": "top_p must lie in (0, 1], got 0.",
    "ask --seed=99999999999999999999": "seed must lie in [-2147483648, 4294967295], got 99999999999999999999.",
    "reduce --ratio=inf": "the retention ratio must lie in (0, 1], got inf.",
    "reduce --out=/proc/none/x.png": "cannot write /proc/none/x.png: No such file or directory.",
    "bench baselines --clips=99999999999": "clips must lie in [1, 1000000], got 99999999999.",
}


@pytest.mark.parametrize(("words", "sentence"), WRONG_NUMBERS.items())
def test_numbers_that_no_verb_can_use(words, sentence, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["jvidprune", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert list(tmp_path.iterdir()) == []
