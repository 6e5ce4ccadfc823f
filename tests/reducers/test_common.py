"""What every reducer has to pass: all of the registry, combinators, other settings of some, and one of a user's own.

A method that is added to the registry is checked here without any line of its own. What `info` claims is read as a
promise: counts known before the data (`exact`), nested sets (`nested`), tokens copied and not mixed (`merges`).
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pruners
from helpers import reducer_checks as checks
from helpers.places import REPOSITORY

import jvidprune
from jvidprune import JvidpruneError, Reduced, Reducer, VideoTokens
from jvidprune.ops.compact import selection_plan
from jvidprune.reducers import registry
from jvidprune.reducers.programs import run_budgets
from jvidprune.reducers.protocol import BaseReducer, title_of, with_defaults
from jvidprune.reducers.serialise import SavedPruning, load_pruning, read_record, save_pruning
from jvidprune.tokens import Plan, stack_budgets

FRAMES, GRID, UNPOOLED, DIM = 6, (4, 4), (8, 8), 8
RATIOS = (0.05, 0.1, 0.3, 0.5, 1.0)

SMALL = {"sequential": {"ladder": (0.5, 1.0)}, "covipal": {"module": pruners.file(DIM)}}
"""Settings that only keep a method's compilation short, or that it cannot do without."""

OTHER_SETTINGS = (
    "visionzip(tower='none', dominant_share=0.5)",
    "visionzip(tower='none', layout='grid')",
    "divprune(scope='frame')",
    "scissor(tau=0.9)",
    "tome(clip=2)",
    "tome(clip=4)",
    "tome(clip=None)",
    "tome(clip=2, order='position')",
    "vcast(leftover='spread')",
    "evs(deepstack=True)",
    "cdpruner(variant='official', relevance='joint')",
    "zspaprune(scope='frame', core=0.3)",
    "zspaprune(core_tokens=3, rule='min-min')",
    "vidcom2(variant='vllm')",
    "holov(order='official', pad_zeros=True)",
    "holov(diversity=False)",
    "holov(per_frame=False)",
    "holov(redistribute=True)",
    "dycoke(mode='fixed')",
    "random(seed=3, scope='frame')",
    "attention_topk(scope='frame')",
    "flashvid(min_segments=3)",
    "flashvid(tree_value='mean', distinct=True)",
    "fastvid(variant='llava_video')",
    "fastvid(variant='qwen2_5_vl')",
    "holitom(tau=0.7)",
    "holitom(tau=0.7, layout='grid')",
    "prunevid(budgeting='clusters')",
    "stop(base=visionzip(tower='none'), mu_s=0.1)",
    "qwen_norm(method='fastvid')",
    "qwen_norm(method='holitom')",
    "sequential(first=attention_topk(scope='frame'), second=visionzip(tower='none'), ladder=(0.5,))",
    "sequential(first=visionzip(tower='none'), second=visionzip(tower='none'), ladder=(0.5,))",
    "sequential(first=visionzip(tower='none'), second=attention_topk(scope='frame'), ladder=(0.25, 0.5))",
)


OWN_ORDER = {"tome(clip=2)", "tome(clip=4)", "tome(clip=None)"}
"""Settings whose rows stand in the order of the method's own lists, over the frames of a clip, as the code has them."""


class KeepBudget(NamedTuple):
    """Tokens of a frame."""

    keep: np.int32


@dataclasses.dataclass(frozen=True)
class FirstTokens:
    """Keeps the first tokens of every frame: a user's own reducer, with the four members and nothing else."""

    needs = frozenset()

    def budget(self, layout, ratio):
        return KeepBudget(np.int32(max(1, round(layout.tokens * ratio))))

    def capacity(self, layout, ratio):
        return layout.frames * int(self.budget(layout, ratio).keep)

    def plan(self, video, budget, *, capacity):
        keep = jnp.arange(video.features.shape[1]) < budget.keep
        return selection_plan((video.frame_mask[:, None] & keep[None, :]).reshape(-1), capacity)


NAMES = (*registry.names(), *registry.combinators(), *registry.learned())
DEFAULTS: dict[str, Reducer] = {name: registry.get(name, **SMALL.get(name, {})) for name in NAMES}
CASES = DEFAULTS | {text: registry.from_text(text) for text in OTHER_SETTINGS} | {"a user's own": FirstTokens()}
PLANNED = [name for name, reducer in CASES.items() if with_defaults(reducer).tokens_from != "tower"]
"""All but what runs the rest of a model's tower; `tests/stts` has that with towers."""
CASES = {name: CASES[name] for name in (*PLANNED, *(name for name in CASES if name not in PLANNED))}

ONCE_MORE = {text.partition("(")[0]: text for text in reversed(OTHER_SETTINGS)}.values()
"""The first of each method's other settings; the rest of them is for the longer run (-m long)."""
LONGER = set(OTHER_SETTINGS) - set(ONCE_MORE)


def over(names, longer):
    """With this scope the tests run case after case."""
    cases = [pytest.param(name, marks=pytest.mark.long) if name in longer else name for name in names]
    return pytest.mark.parametrize("case", cases, scope="module")


every, planned = over(CASES, LONGER), over(PLANNED, LONGER)
compiled = over(PLANNED, set(OTHER_SETTINGS))
"""A program more for each case, of a method's own settings alone."""
_LAST: list[str | None] = [None]


@pytest.fixture(autouse=True)
def forget_other_cases(request):
    """Programs and results of a case go before the next one: those of all exceed what a process may map."""
    case = request.node.callspec.params.get("case")
    if case != _LAST[0]:
        swept.cache_clear()
        plans.cache_clear()
        jax.clear_caches()
        _LAST[0] = case


def make_video(seed: int = 0, frames: int = FRAMES, dtype=np.float32) -> VideoTokens:
    """Drifting content with all evidence there is, so that neighbouring frames are alike but never equal."""
    rng = np.random.default_rng(seed)
    n, m = math.prod(GRID), math.prod(UNPOOLED)

    def positive(*shape):
        return (rng.random(shape) ** 3 + 1e-3).astype(np.float32)

    def signed(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def drifting(places):
        return signed(1, places, DIM) + np.cumsum(0.4 * signed(frames, places, DIM), axis=0)

    evidence = {name: positive(frames, n) for name in ("attention_last", "attention_pooling_head")}
    evidence |= {name: positive(frames, n) for name in ("attention_mean_query", "relevance")}
    evidence |= {name: positive(frames, m) for name in ("attention_shallow", "attention_deep")}
    evidence |= {"keys": signed(frames, n, 4), "frame_embedding": signed(frames, 5)}
    evidence |= {"features_unpooled": drifting(m), "features_deepstack": signed(frames, n, 2, DIM)}
    evidence |= {"text": signed(3, DIM), "joint_image": signed(frames, n, 5), "joint_text": signed(3, 5)}
    evidence |= {"newline": signed(DIM)}
    return VideoTokens.create(drifting(n).astype(dtype), evidence, grid=GRID, unpooled_grid=UNPOOLED)


@functools.cache
def the_video(seed: int = 0) -> VideoTokens:
    return make_video(seed)


def as_dtype(video: VideoTokens, dtype) -> VideoTokens:
    """The same video with features, pooled or not, of another dtype."""
    unpooled = {"features_unpooled": video.evidence["features_unpooled"].astype(dtype)}
    features = video.features.astype(dtype)
    return dataclasses.replace(video, features=features, evidence=video.evidence | unpooled)


def is_sentence(error: JvidpruneError) -> bool:
    return str(error).endswith((".", "?")) and "\n" not in str(error)


def ratios_of(reducer: Reducer) -> list[float]:
    """Those of the ratios that the method does not refuse; a refusal is a sentence that names what is possible."""
    possible = []
    for ratio in RATIOS:
        try:
            reducer.budget(the_video().layout(), ratio)
        except JvidpruneError as error:
            refusal = error
        else:
            possible.append(ratio)
            continue
        assert is_sentence(refusal)
    assert possible[-3:] == list(RATIOS[-3:])
    return possible


@functools.cache
def swept(case: str, seed: int = 0) -> Reduced:
    """The video at all possible ratios, on as many rows as there are tokens and clusters."""
    reducer = CASES[case]
    return jvidprune.sweep(reducer, the_video(seed), ratios_of(reducer), capacity=room(reducer))


def room(reducer: Reducer) -> int:
    return max(the_video().layout().total, reducer.capacity(the_video().layout(), 1.0))


@functools.cache
def plans(case: str) -> Plan:
    """The plans of the same budgets, vmapped."""
    reducer, video = CASES[case], the_video()
    budgets = stack_budgets([reducer.budget(video.layout(), ratio) for ratio in ratios_of(reducer)])
    return jax.device_get(jax.jit(jax.vmap(lambda b: reducer.plan(video, b, capacity=room(reducer))))(budgets))


def at(tree, number):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[number], tree)


def sets(case: str, seed: int = 0) -> list[np.ndarray]:
    """Ids of the rows in use at each ratio."""
    reduced = swept(case, seed)
    return [np.asarray(index)[valid] for index, valid in zip(reduced.index, np.asarray(reduced.valid), strict=True)]


@every
def test_it_is_a_value_that_describes_itself(case):
    reducer = CASES[case]
    assert isinstance(reducer, Reducer)
    assert hash(reducer) == hash(dataclasses.replace(reducer))
    assert reducer == dataclasses.replace(reducer)
    assert reducer.needs <= jvidprune.EVIDENCE.keys()
    assert title_of(reducer)
    with pytest.raises(dataclasses.FrozenInstanceError):
        reducer.needs = frozenset()
    for field in dataclasses.fields(reducer):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(reducer, field.name, None)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_listed(name):
    info = registry.info(name)
    assert info.name == name
    assert info.summary
    assert isinstance(DEFAULTS[name], BaseReducer)
    page = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf8")
    assert f"\n### {name}\n" in page or name in registry.learned()
    if name in registry.names():
        assert f"\n| [`{name}`](#{name}) |" in page


@every
def test_saved_settings_are_read_back(case, tmp_path):
    reducer = CASES[case]
    saved = SavedPruning(reducer, 0.3)
    own = case == "a user's own"
    assert read_record(saved.record(), allow_code=own) == saved
    save_pruning(tmp_path, saved)
    assert load_pruning(tmp_path, allow_code=own) == saved


@planned
def test_one_compilation_serves_all_ratios(case):
    reducer, video = CASES[case], the_video()
    reduced, ratios = swept(case), ratios_of(reducer)
    before = run_budgets._cache_size()
    backwards = jvidprune.sweep(reducer, video, ratios[::-1], capacity=room(reducer))
    others = jvidprune.sweep(reducer, the_video(1), [1.0] * len(ratios), capacity=room(reducer))
    assert run_budgets._cache_size() == before
    for one, other in zip(jax.tree.leaves(backwards), jax.tree.leaves(reduced), strict=True):
        np.testing.assert_array_equal(np.asarray(one)[::-1], other)
    assert int(others.count[0]) == int(swept(case, 1).count[-1])


@compiled
def test_a_vmap_over_budgets_decides_as_the_sweep_does(case):
    found, reduced = plans(case), swept(case)
    np.testing.assert_array_equal(found.ids, reduced.index)
    np.testing.assert_array_equal(found.valid, reduced.valid)
    np.testing.assert_array_equal(found.count, reduced.count)


@planned
def test_shapes_are_static_and_rows_in_use_come_first(case):
    reducer, video, reduced = CASES[case], the_video(), swept(case)
    capacity, total = room(reducer), the_video().layout().total
    for number, ratio in enumerate(ratios_of(reducer)):
        one = at(reduced, number)
        assert one.tokens.shape == (capacity, DIM)
        assert one.index.shape == one.valid.shape == one.mass.shape == (capacity,)
        assert one.slot.shape == (total,)
        assert (one.index.dtype, one.mass.dtype, one.slot.dtype) == (np.int32, np.int32, np.int32)
        count = int(one.count)
        assert 0 < count <= reducer.capacity(video.layout(), ratio)
        np.testing.assert_array_equal(one.valid, np.arange(capacity) < count)
        assert ((one.index[:count] >= 0) & (one.index[:count] < total)).all()
        np.testing.assert_array_equal(one.index[count:], total)
        np.testing.assert_array_equal(one.tokens[count:], 0)
        np.testing.assert_array_equal(one.mass[count:], 0)
        assert np.isfinite(one.tokens).all()


@planned
def test_rows_stand_in_the_order_of_the_video(case):
    ordered = all((np.diff(ids // math.prod(GRID)) >= 0).all() for ids in sets(case))
    assert ordered == (case not in OWN_ORDER)


@planned
def test_masses_count_the_tokens_that_went_into_a_row(case):
    reduced = swept(case)
    for number in range(len(reduced.index)):
        one = at(reduced, number)
        count = int(one.count)
        assert ((one.slot >= -1) & (one.slot < count)).all()
        listed = np.bincount(one.slot[one.slot >= 0], minlength=count)[:count]
        assert (one.mass[:count] >= np.maximum(listed, 1)).all()
        kept = one.index[:count]
        # A token with a row of its own is listed with it, with the first where a reference repeats itself.
        assert (one.slot[kept] >= 0).all()


@compiled
def test_tokens_are_the_sums_that_the_plan_says(case):
    """The arithmetic of `apply` written out in numpy, for all methods whose tokens are made of the features."""
    if with_defaults(CASES[case]).tokens_from != "features":
        # Its arithmetic is its own, and tested where it is.
        assert type(CASES[case]).apply is not BaseReducer.apply
        return
    x = np.asarray(the_video().features, np.float64).reshape(-1, DIM)
    reduced, found = swept(case), plans(case)
    for number in range(len(reduced.index)):
        plan, one = at(found, number), at(reduced, number)
        expected = np.zeros((len(plan.ids) + 1, DIM))
        members = np.zeros(len(plan.ids) + 1, int)
        for rows, weights in zip(plan.row, plan.weight, strict=True):
            np.add.at(expected, rows, weights[:, None].astype(np.float64) * x)
            np.add.at(members, rows, 1)
        picked = np.flatnonzero(plan.is_pick)
        expected[picked] = x[plan.ids[picked]]
        members[picked] += 1
        used = int(one.count)
        np.testing.assert_allclose(one.tokens[:used], expected[:used], atol=1e-5)
        np.testing.assert_array_equal(one.mass[:used], members[:used])
        if plan.row.size:
            # Nothing is weighted into a row that is not there.
            assert (plan.weight[(plan.row < len(plan.ids)) & (plan.row >= used)] == 0).all()


@planned
def test_what_is_said_of_counts_and_sets_holds(case):
    info, reducer = with_defaults(CASES[case]).info, CASES[case]
    total, found = the_video().layout().total, sets(case)
    counts = [len(ids) for ids in found]
    assert counts == sorted(counts)
    if info.exact:
        assert counts == [len(ids) for ids in sets(case, 1)]
        assert counts == [reducer.capacity(the_video().layout(), ratio) for ratio in ratios_of(reducer)]
        np.testing.assert_array_equal(np.sort(found[-1]), np.arange(total), "a ratio of 1 keeps every token once")
    if info.nested:
        for small, large in itertools.pairwise(found):
            assert set(small.tolist()) <= set(large.tolist())
    if info.name and not info.merges:
        for number in range(len(found)):
            one = at(swept(case), number)
            if len(set(found[number].tolist())) == counts[number]:
                checks.check_copies(the_video(), one)
            flat = np.asarray(the_video().features).reshape(-1, DIM)
            np.testing.assert_array_equal(one.tokens[: counts[number]], flat[found[number]])


@compiled
def test_videos_with_padding_frames_in_a_batch_equal_single_ones(case):
    reducer = CASES[case]
    ratios = ratios_of(reducer)
    batch = jax.tree.map(lambda *a: jnp.stack(a), *(checks.pad(the_video(seed), 2) for seed in (0, 1)))
    batched = jvidprune.reduce_batch(reducer, batch, ratios[-3])
    for seed in (0, 1):
        alone, one = at(swept(case, seed), len(ratios) - 3), at(batched, seed)
        (ids, tokens), (other_ids, other_tokens) = checks.valid_rows(alone), checks.valid_rows(one)
        np.testing.assert_array_equal(other_ids, ids)
        np.testing.assert_allclose(other_tokens, tokens, atol=1e-6)
        np.testing.assert_array_equal(one.mass[: len(ids)], alone.mass[: len(ids)])


@compiled
def test_bf16_features_are_decided_on_in_float32(case):
    reducer = CASES[case]
    half = as_dtype(the_video(), jnp.bfloat16)
    same = as_dtype(half, jnp.float32)
    narrow, wide = (jvidprune.sweep(reducer, v, ratios_of(reducer), capacity=room(reducer)) for v in (half, same))
    assert narrow.tokens.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow.index, wide.index)
    np.testing.assert_array_equal(narrow.mass, wide.mass)
    scale = float(jnp.abs(wide.tokens).max())
    np.testing.assert_allclose(narrow.tokens.astype(jnp.float32), wide.tokens, atol=scale * 2.0**-8)


def weighted(plan: Plan, to_rows: np.ndarray) -> np.ndarray:
    """(M, D) gradient with respect to the features, of a gradient (K, D) with respect to the tokens of a fixed plan."""
    picked = np.flatnonzero(plan.is_pick)
    gradient = np.zeros((plan.row.shape[-1], DIM))
    np.add.at(gradient, plan.ids[picked], to_rows[picked])
    summed = np.append(np.where((plan.valid & ~plan.is_pick)[:, None], to_rows, 0.0), np.zeros((1, DIM)), axis=0)
    for rows, weights in zip(plan.row, plan.weight, strict=True):
        gradient += weights[:, None] * summed[np.minimum(rows, len(plan.ids))]
    return gradient


@compiled
def test_gradients_reach_what_is_kept_and_treat_the_plan_as_fixed(case):
    reducer, video = CASES[case], the_video()
    ratios = ratios_of(reducer)
    capacity, number = room(reducer), len(ratios) - 2
    budget, plan = reducer.budget(video.layout(), ratios[number]), at(plans(case), number)
    weight = np.random.default_rng(1).normal(size=(capacity, DIM)).astype(np.float32)

    def loss(video, fixed=None):
        found = reducer.plan(jax.lax.stop_gradient(video), budget, capacity=capacity) if fixed is None else fixed
        return jnp.sum(weight * with_defaults(reducer).apply(found, video).tokens)

    if with_defaults(reducer).tokens_from == "features":
        gradient = jax.jit(jax.grad(lambda x: loss(dataclasses.replace(video, features=x))))(video.features)
        expected = weighted(plan, weight).reshape(gradient.shape)
    else:

        def of_unpooled(x, fixed=None):
            return loss(dataclasses.replace(video, evidence=video.evidence | {"features_unpooled": x}), fixed)

        x = video.evidence["features_unpooled"]
        gradient = jax.jit(jax.grad(of_unpooled))(x)
        expected = jax.jit(jax.grad(of_unpooled))(x, plan)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert bool(jnp.isfinite(gradient).all())
    assert bool((gradient != 0).any())


@pytest.mark.parametrize("frames", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", [name for name in PLANNED if name in DEFAULTS], scope="module")
@pytest.mark.slow
def test_short_videos_are_reduced_or_refused_in_one_sentence(case, frames):
    reducer, video = CASES[case], make_video(frames=frames)
    try:
        reduced = jvidprune.reduce(reducer, video, 0.5)
    except JvidpruneError as error:
        reduced, refusal = None, error
    if reduced is None:
        assert is_sentence(refusal)
        assert str(frames) in str(refusal)
    else:
        assert int(reduced.count) > 0
        assert bool(jnp.isfinite(reduced.tokens).all())


@planned
def test_bad_input_is_refused_before_anything_is_compiled(case):
    reducer, video = CASES[case], the_video()
    before = run_budgets._cache_size()
    for ratio in (0.0, -0.1, 1.5, math.nan, math.inf, None, "much"):
        checks.refused(lambda ratio=ratio: jvidprune.reduce(reducer, video, ratio), r"\(0, 1\]")
    if isinstance(reducer, BaseReducer):
        checks.refused(lambda: reducer.budget(video.layout(), 1.5), r"\(0, 1\]")
    for name in sorted(reducer.needs):
        rest = {key: value for key, value in video.evidence.items() if key != name}
        poorer = dataclasses.replace(video, evidence=rest)
        checks.refused(lambda poorer=poorer: jvidprune.reduce(reducer, poorer, 0.5), f"needs the evidence {name}")
    small = reducer.capacity(video.layout(), 0.5) - 1
    checks.refused(lambda: jvidprune.reduce(reducer, video, 0.5, capacity=small), f"capacity {small} is too small")
    assert run_budgets._cache_size() == before


@planned
def test_numbers_that_are_not_finite_are_refused(case):
    """The program of a call finds them itself, so that a video is not read twice."""
    reducer, video = CASES[case], the_video()

    def sweep(video):
        return jvidprune.sweep(reducer, video, ratios_of(reducer), capacity=room(reducer))

    broken = dataclasses.replace(video, features=video.features.at[1, 2, 3].set(jnp.nan))
    checks.refused(lambda: sweep(broken), "features hold 1 NaN")
    for name in sorted(reducer.needs):
        if not jnp.issubdtype(video.evidence[name].dtype, jnp.floating):
            continue
        evidence = video.evidence | {name: video.evidence[name].at[0].set(jnp.inf)}
        spoiled = dataclasses.replace(video, evidence=evidence)
        checks.refused(lambda spoiled=spoiled: sweep(spoiled), f"{name} hold")


@every
def test_budgets_are_numbers_of_the_host_and_capacities_grow(case):
    reducer, layout = CASES[case], the_video().layout()
    shapes, capacities = set(), []
    for ratio in ratios_of(reducer):
        leaves = jax.tree.leaves(reducer.budget(layout, ratio))
        assert not any(isinstance(leaf, jax.Array) for leaf in leaves)
        shapes.add(tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves))
        capacities.append(reducer.capacity(layout, ratio))
        assert isinstance(capacities[-1], int)
    assert len(shapes) == 1
    assert capacities == sorted(capacities)
