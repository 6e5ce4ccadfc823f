"""CoViPAL (reconstruction): the invariants of its description, its module's file, costs, and questions end to end."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pruners
from helpers import reducer_checks as checks
from helpers import tiny_checkpoints as tiny
from helpers.decoders import CONFIG, SLOTS, VALID, VISUAL, create, read_and_decode

from jvidprune import reducers
from jvidprune.covipal import CoViPAL, ModuleTopK, SoftTopK, module_of, soft_top_k
from jvidprune.covipal.module import made_of, parameters_of
from jvidprune.covipal.rules import LOG_NOTHING, grid_places, slots_of
from jvidprune.cuts.rules import Told
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.prompt_cuts import newlines_compete
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.reducers.serialise import SavedPruning, load_pruning, save_pruning
from jvidprune.tokens import InnerStage, Kept
from jvidprune.weights import Weights

DIM = 8
QUESTION = np.random.default_rng(7).normal(size=(5, DIM)).astype("f4")


@jax.jit
def run(module, *arrays):
    """One program for all modules of a shape."""
    return module(*arrays)


@functools.partial(jax.jit, static_argnums=0)
def order_of(method, video):
    """Tokens from the best one on."""
    return jnp.argsort(method.prepare(video, capacity=120))


def scores(module, video, question=QUESTION, rows=0):
    """S of a video, with rows of padding behind the question."""
    frames, n, _ = video.features.shape
    text = np.concatenate([question, np.full((rows, DIM), 9.0, "f4")])
    x = jnp.concatenate([video.features.reshape(1, -1, DIM), text[None]], axis=1)
    visual = np.arange(x.shape[1])[None] < frames * n
    asked = ~visual & (np.arange(x.shape[1])[None] < frames * n + len(question))
    index = np.arange(x.shape[1])
    places = np.stack([index // n, index % n // video.grid[1], index % n % video.grid[1]], axis=-1)[None]
    return np.asarray(run(module, x, visual, asked, places))[0, : frames * n]


def test_everything_stays_at_one_and_the_best_of_the_scores_below_it():
    video, module = checks.make_video(dim=DIM), pruners.module(DIM)
    asked = video.with_text(QUESTION)
    made = CoViPAL(pruners.weights(DIM))
    whole = checks.reduce(made, asked, 1.0)
    np.testing.assert_array_equal(whole.tokens, video.features.reshape(-1, DIM))
    best = np.argsort(-scores(module, video), kind="stable")
    for ratio, kept in ((0.1, 12), (0.0375, 4), (0.02, 2)):
        found, _ = checks.valid_rows(checks.reduce(made, asked, ratio))
        # 120 tokens; 4.5 goes to the even 4.
        assert found.tolist() == sorted(best[:kept])


def test_another_question_gives_other_scores_and_padding_does_not():
    video, module = checks.make_video(dim=DIM), pruners.module(DIM)
    plain = scores(module, video)
    np.testing.assert_allclose(scores(module, video, rows=3), plain, atol=1e-5)
    assert np.abs(scores(module, video, QUESTION + 1) - plain).max() > 1e-3
    np.testing.assert_allclose(scores(module, video, QUESTION[::-1]), plain, atol=1e-5)
    made = CoViPAL(pruners.weights(DIM))
    kept = checks.valid_rows(checks.reduce(made, video.with_text(QUESTION), 0.2))[0]
    padded = video.with_text(np.pad(QUESTION, ((0, 3), (0, 0)), constant_values=9.0), np.arange(8) < 5)
    np.testing.assert_array_equal(checks.valid_rows(checks.reduce(made, padded, 0.2))[0], kept)
    longer = checks.pad(video, 2).with_text(QUESTION)
    np.testing.assert_array_equal(checks.valid_rows(checks.reduce(made, longer, 0.2))[0], kept)


def test_without_places_a_permutation_of_tokens_permutes_their_scores():
    video = checks.make_video(dim=DIM)
    order = np.random.default_rng(1).permutation(video.layout().total)
    moved = dataclasses.replace(video, features=video.features.reshape(-1, DIM)[order].reshape(video.features.shape))
    for grid in (False, True):
        module = pruners.module(DIM, grid=grid)
        alike = np.allclose(scores(module, moved), scores(module, video)[order], atol=1e-5)
        assert alike is not grid


def test_frames_by_themselves_do_not_see_each_other():
    """A change in the last frame alone leaves the order of the first frame's tokens, which the whole video does not."""
    video = checks.make_video(dim=DIM)
    other = dataclasses.replace(video, features=video.features.at[-1].multiply(-3.0))
    made = CoViPAL(pruners.weights(DIM), scope="frame")

    def first(method):
        orders = (np.asarray(order_of(method, one.with_text(QUESTION))) for one in (video, other))
        return [order[order < 100].tolist() for order in orders]

    one, changed = first(made)
    assert one == changed
    one, changed = first(CoViPAL(pruners.weights(DIM)))
    assert one != changed


def test_a_soft_choice_is_the_hard_one_with_a_budget_that_no_gradient_moves():
    score = jnp.asarray(np.random.default_rng(0).normal(size=12), jnp.float32)
    visual = np.arange(12) < 10
    for keep in (0, 3, 10):
        found = soft_top_k(score, visual, keep, 0.5)
        hard = np.isin(np.arange(12), np.argsort(np.where(visual, -score, np.inf))[:keep])
        np.testing.assert_array_equal(found.retention, np.where(hard, 1.0, np.exp(np.float32(LOG_NOTHING))))
        assert float(found.soft.sum()) == pytest.approx(keep, abs=1e-3)
    np.testing.assert_allclose(np.exp(found.log_soft), found.soft, atol=1e-6)
    total, each = (jax.grad(lambda s, i=i: soft_top_k(s, visual, 3, 0.5).retention[i].sum())(score) for i in (..., 2))
    np.testing.assert_allclose(total, 0.0, atol=1e-6)
    # Against differences of the soft shares themselves.
    step = 1e-2 * np.eye(12)[4]
    ends = [float(soft_top_k(score + sign * step, visual, 3, 0.5).soft[2]) for sign in (1, -1)]
    assert float(each[4]) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2)
    assert float(each[4]) < 0 < float(each[2])
    assert not np.asarray(each)[~visual].any()


BLOCK = np.where(VISUAL, (SLOTS - np.where(VISUAL, SLOTS, 99).min(axis=1, keepdims=True)) % 4, 0)
BLOCK = np.where(VISUAL, BLOCK // 2 * 3 + BLOCK % 2, 0)
"""Frames of 2 x 2 tokens, a row of which takes three places."""


def stage(rule, kept, place=1, **more):
    arrays = parameters_of(pruners.weights(CONFIG.width))
    return InnerStage(place, rule, kept, weights=Weights.of(slots_of(arrays, np.float32(0.3)) if more else arrays))


@pytest.mark.slow
def test_the_soft_cut_is_the_hard_one_at_kept_rows(decoder, embeds):
    def inner(*stages, **options):
        return dataclasses.replace(create(*stages, **options), block=BLOCK)

    soft, _, records = read_and_decode(decoder, embeds, inner(stage(SoftTopK(2), Told(0.4), temperature=True)))
    hard, _, cuts = read_and_decode(decoder, embeds, inner(stage(ModuleTopK(2), Kept(0.4))))
    masked, *_ = read_and_decode(decoder, embeds, inner(stage(ModuleTopK(2), Kept(0.4)), compact=False))
    np.testing.assert_allclose(soft, hard, atol=2e-5)
    np.testing.assert_allclose(masked, hard, atol=2e-5)
    retained = np.asarray(records[0].diagnostics["retention"]) > 0.5
    np.testing.assert_array_equal(retained & VALID, cuts[0].survivors)
    assert np.asarray(cuts[0].survivors & VISUAL).sum(axis=1).tolist() == [8, 7]


@pytest.fixture(scope="module")
def decoder():
    from flax import nnx

    from jvidprune.models.decoder import Decoder

    return Decoder(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def embeds(decoder):
    return 3 * jax.random.normal(jax.random.key(1), (*VALID.shape, CONFIG.width))


def test_frame_row_and_column_are_read_off_places():
    """Two frames of 2 x 3 tokens with text around, as `shared_places` numbers them."""
    block = np.array([0, 0, 1, 2, 4, 5, 6, 0, 1, 2, 4, 5, 6, 0])
    visual = np.array([False, *[True] * 12, False])
    found = np.asarray(grid_places(jnp.asarray(block), jnp.asarray(visual)))[visual]
    np.testing.assert_array_equal(found, [[f, r, c] for f in range(2) for r in range(2) for c in range(3)])


def test_without_a_trained_module_it_is_refused():
    made, video = reducers.get("covipal"), checks.make_video(dim=DIM).with_text(QUESTION)
    checks.refused(lambda: checks.reduce(made, video, 0.5), "CoViPAL has no trained module and nothing to choose by")
    assert made.info.label == "CoViPAL (reconstruction)"


def test_what_is_no_module_is_refused():
    good = pruners.weights(DIM)
    part = Weights.of({name: x for name, x in good.arrays.items() if name != "kind"})
    checks.refused(lambda: CoViPAL(part), "is no pruning module: kind is missing")
    broken = Weights.of({**good.arrays, "score.kernel": np.zeros((3, 1), "f4")})
    checks.refused(lambda: CoViPAL(broken), r"no pruning module: its arrays do not fit.*score.kernel is \(3, 1\)")
    video = checks.make_video(dim=DIM + 1).with_text(np.ones((2, DIM + 1), "f4"))
    checks.refused(lambda: checks.reduce(CoViPAL(good), video, 0.5), f"tokens of width {DIM}, but these have {DIM + 1}")
    checks.refused(lambda: CoViPAL(pruners.weights(DIM, place=2), scope="frame"), "acts before layer 2.*no meaning")


def test_a_module_is_the_same_from_its_file_and_can_be_saved_in_settings(tmp_path, monkeypatch):
    path = pruners.file(DIM, 3, 2, grid=False)
    read = Weights.read(path)
    assert made_of(read) == (2, False, 2)
    assert read == pruners.weights(DIM, 3, 2, grid=False)
    video = checks.make_video(dim=DIM)
    again = module_of(parameters_of(read), 2, False)
    np.testing.assert_array_equal(scores(again, video), scores(pruners.module(DIM, 3, grid=False), video))
    made = reducers.from_text(f"covipal(module='{path}')")
    assert made == CoViPAL(read)
    # Settings are read from any working directory.
    monkeypatch.chdir(Path(path).parent)
    near = reducers.from_text(f"covipal(module='{Path(path).name}')")
    save_pruning(tmp_path, SavedPruning(near, 0.25))
    monkeypatch.chdir(tmp_path)
    assert load_pruning(tmp_path).reducer == made


def test_its_flops_are_counted():
    """Half of the terms by hand: two blocks of width 256 at n tokens, 2 (12 W^2 n + 2 W n^2) products each."""
    layout = checks.make_video(dim=DIM).layout()
    n, width = layout.total, 3584
    terms = CoViPAL(pruners.weights(DIM, width=256, hidden=1024, heads=4, blocks=2)).flops(layout, width, 0.5)
    assert terms["projection"] == 2 * n * width * 256
    both = terms["attention of the module"] + terms["matrices of the module"]
    assert both == 2 * 2 * (12 * 256**2 * n + 2 * 256 * n**2)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(tiny.write("llava_video", tmp_path_factory.mktemp("llm") / "llava_video"))


@pytest.mark.slow
def test_questions_choose_tokens_before_and_inside_the_language_model(llm):
    frames = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    video = llm.encode(frames, fps=2.0)
    before = CoViPAL(pruners.weights(tiny.WIDTH, seed=1))
    first, second = (llm.reduce(video, reducer=before, ratio=0.25, question=q) for q in ("What?", "Is it a red cat?"))
    assert (first.kept, first.visual) == (16, 64)
    assert set(np.asarray(first.reduced.index)) != set(np.asarray(second.reduced.index))
    inside = CoViPAL(pruners.weights(tiny.WIDTH, seed=1, place=1))
    assert inside.needs == frozenset()
    one = llm.reduce(video, reducer=inside, ratio=0.25)
    assert one.kept == 64
    assert not newlines_compete(one.inner, llm.newline)
    prompts = [Prompt(one, question) for question in ("What?", "Is it a red cat?")]
    together = answer_many(llm, prompts, max_new_tokens=2, likeliest=3)
    for prompt, reply in zip(prompts, together, strict=True):
        (alone,) = answer_many(llm, [prompt], max_new_tokens=2, likeliest=3)
        np.testing.assert_allclose([p for _, p in alone.likeliest], [p for _, p in reply.likeliest], atol=1e-4)
    whole = llm.ask(video, "What?", reducer=inside, ratio=1.0, max_new_tokens=2)
    assert whole.token_ids == llm.ask(video, "What?", reducer="none", ratio=1.0, max_new_tokens=2).token_ids
