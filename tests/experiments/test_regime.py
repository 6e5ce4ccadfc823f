"""The second recipe: what is read of a clip follows from a draw alone, captions, the contrastive loss, a few steps."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tiny import optimiser, variety
from experiments.tiny.batches import CATEGORY_NAMES, Prompts, question_rows
from experiments.tiny.captions import caption_batch, named
from experiments.tiny.features import Pool, pool
from experiments.tiny.gates import RATIOS, gates
from experiments.tiny.named import WAYS, told_of
from experiments.tiny.places import place_questions
from experiments.tiny.recipe import ModelSizes, write_tokenizer
from experiments.tiny.regime import ALL, EYES, MIND, REGIME, TASK, Regime, RegimeStage, begin, begun, train_regime
from experiments.tiny.regime_batches import PACKED, answer_batch
from experiments.tiny.regime_losses import averaged, contrastive, unevenness
from experiments.tiny.statistics import auc
from experiments.train_regime import write_model
from jvidprune.errors import JvidpruneError
from jvidprune.procedural.benchmark import detailed
from jvidprune.procedural.categories import ALL_CATEGORIES
from jvidprune.procedural.paint import paint
from jvidprune.procedural.world import COLOURS

SMALL = detailed("train", clips=1 << 30, frames=8, side=56)
LOOK = RegimeStage("look", "look", steps=2, clips=2, rate=1e-3, trained=EYES, warmup=1, dense=1.0)
ANSWER = RegimeStage(
    "answer", "answer", steps=3, clips=2, rate=1e-3, trained=ALL, warmup=1, asked=2, shares=(0, 0.5, 0.5, 0), first=64
)
WHOLE = dataclasses.replace(ANSWER, shares=(1, 0, 0, 0))
SIZES = ModelSizes(vision=(16, 16, 2, 2, 56, 7), text=(32, 32, 2, 2, 1))


def test_the_regime_is_the_one_that_was_asked_for():
    width, _, _, _, side, patch = REGIME.sizes.vision
    assert (TASK.frames, TASK.side, side // patch, side // patch // 2) == (16, side, 16, 8)
    assert variety.row_counts(16, 8) == (1024, 512, 256, 128)
    assert width == 64
    assert [stage.kind for stage in REGIME.stages][:2] == ["frames", "look"]
    # Dense losses are a warm-up alone, the tower learns from answers, and even tokens are asked of it then.
    assert {stage.kind for stage in REGIME.stages if stage.dense} == {"look"}
    through, settle = REGIME.stages[-2:]
    assert (through.kind, through.tower, through.level > 0, settle.tower) == ("answer", True, True, False)
    assert not any((stage.named, stage.placed, stage.dense) != (0, 0, 0) for stage in (through, settle))
    assert all(sum(stage.shares) == pytest.approx(1) for stage in REGIME.stages)
    larger = REGIME.scaled(8)
    assert [(a.clips, a.steps) for a in larger.stages] == [(8 * b.clips, round(b.steps / 8)) for b in REGIME.stages]


@pytest.mark.parametrize("rows", variety.row_counts(8, 4))
def test_every_way_of_reading_has_the_rows_and_places_that_it_says(rows):
    seen = set()
    for seed in range(60):
        shown = variety.draw(np.random.default_rng(seed), 8, 4, rows)
        read = shown.rows < rows
        counts = np.bincount(shown.rows[read], minlength=rows)
        assert len(counts) == rows
        assert len(set(counts.tolist())) == 1
        first = np.array([np.flatnonzero(shown.rows == row)[0] for row in range(rows)])
        assert (np.diff(first) > 0).all()
        gaps = np.append(first, 128).tolist() == shown.positions.tolist()
        closed = shown.positions.tolist() == list(range(rows + 1))
        assert gaps or closed
        seen.add((int(counts[0]), bool(read.all()), gaps and not closed))
    part = 128 // rows
    if part == 1:
        assert seen == {(1, True, False)}
    else:
        # Averages of all tokens, and single tokens of a part of them; both with gaps and without.
        assert {(size, whole) for size, whole, _ in seen} == {(part, True), (1, False)}
        assert {gaps for _, _, gaps in seen} == {True, False}


def test_a_subset_is_any_subset():
    rng = np.random.default_rng(0)
    chosen = np.zeros(128)
    subsets = 0
    for _ in range(400):
        rows = variety.draw(rng, 8, 4, 64).rows
        alone = np.bincount(rows, minlength=65)[:64].max() == 1
        frames = {int(token) // 16 for token in np.flatnonzero(rows < 64)}
        if alone and len(frames) == 8:
            chosen += rows < 64
            subsets += 1
    assert subsets > 60
    assert abs(chosen / subsets - 0.5).max() < 0.25


def test_means_of_rows_are_means():
    features = np.random.default_rng(1).normal(size=(128, 5)).astype(np.float32)
    shown = variety.draw(np.random.default_rng(4), 8, 4, 32)
    found = averaged(jnp.asarray(features), jnp.asarray(shown.rows), 32)
    for row in range(32):
        np.testing.assert_allclose(found[row], features[shown.rows == row].mean(0), atol=1e-6)


def test_muon_turns_kernels_alone_and_both_rates_are_bounded():
    # A kernel of two layers, a bias and a head: the update of each layer's kernel has even singular values.
    draw = np.random.default_rng(5)
    params = (
        {"lm": {"kernel": {"value": jnp.asarray(draw.normal(size=(2, 6, 4)))}, "bias": {"value": jnp.zeros((2, 4))}}},
        {"head": {"kernel": {"value": jnp.zeros((4, 3))}}},
    )
    gradient = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape)), params)
    tx = optimiser.muon(params, ("0.", "1."), rate=8e-3, warmup=1, steps=10)
    moments = tx.init(params)
    for _ in range(2):
        updates, moments = tx.update(gradient, moments, params)
    model, heads = updates
    values = np.linalg.svd(
        np.asarray(model["lm"]["kernel"]["value"] + 8e-3 * 0.02 * params[0]["lm"]["kernel"]["value"])
    )
    assert (values.S.max(-1) / values.S.min(-1) < 2).all()
    for part in (model["lm"]["bias"]["value"], heads["head"]["kernel"]["value"]):
        assert np.abs(part) == pytest.approx(optimiser.MOST_ADAM, rel=0.2)
    kept, _ = optimiser.muon(params, ("1.",), rate=1e-3, warmup=1, steps=10).update(
        gradient, optimiser.muon(params, ("1.",), rate=1e-3, warmup=1, steps=10).init(params), params
    )
    assert not np.asarray(kept[0]["lm"]["kernel"]["value"]).any()


def test_unevenness_is_the_variance_of_log_norms():
    features = np.random.default_rng(3).normal(size=(2, 30, 7))
    expected = np.log(np.linalg.norm(features, axis=-1)).var()
    assert unevenness(jnp.asarray(features)) == pytest.approx(expected, rel=1e-5)
    assert unevenness(jnp.asarray(features / np.linalg.norm(features, axis=-1, keepdims=True))) < 1e-9


def test_easier_questions_say_where_objects_are():
    answers: dict[str, int] = {}
    for number in range(60):
        scene, _ = SMALL.scene(number)
        for question in place_questions(np.random.default_rng(number), scene, 6):
            answers[question.answer] = answers.get(question.answer, 0) + 1
            assert question.answer in question.options
            assert question.kind == "short"
            words = question.text.rstrip("?").split()
            thing = _called(scene, words)
            if words[0] == "does":
                assert question.answer == thing.direction
            elif "of" not in words:
                axis = int("above" in words)
                frames = {"start": [thing.start], "end": [thing.stop - 1]}.get(
                    words[-1], range(thing.start, thing.stop)
                )
                off = thing.centre[list(frames), axis] - scene.knobs.side / 2
                assert (off > 0).all() == (question.answer in ("right", "below"))
                assert (off > 0).all() or (off < 0).all()
    assert set(answers) == {"left", "right", "above", "below", "up", "down"}
    assert 0.6 < answers["left"] / answers["right"] < 1.7


def _called(scene, words):
    """The main object behind "is the" or "does the"."""
    colour, shape = (words[2], words[3]) if words[2] in COLOURS else ("", words[2])
    fits = [
        thing
        for thing in scene.things
        if thing.role != "clutter" and thing.colour == (colour or thing.colour) and shape in (thing.shape, "object")
    ]
    assert len(fits) == 1
    return fits[0]


def test_words_that_name_an_object_tell_what_becomes_of_it():
    found = 0
    for number in range(40):
        scene, _ = SMALL.scene(number)
        for thing in scene.mains:
            slots, spots, ways = told_of(scene, ["is", "the", *thing.name.split(), "there", "?"])
            alike = [other for other in scene.things if other.name == thing.name]
            if len(alike) > 1 or thing.change is not None or thing.turn:
                assert slots.tolist() == [-1, -1]
                continue
            assert slots.tolist() == [3, -1]
            half = scene.knobs.side / 2
            np.testing.assert_allclose((spots[0, :2] + 1) * half, thing.centre[thing.start], rtol=1e-5)
            np.testing.assert_allclose((spots[0, 2:4] + 1) * half, thing.centre[thing.stop - 1], rtol=1e-5)
            assert ((spots[0, 4:] + 1) * scene.knobs.frames / 2).tolist() == [thing.start, thing.stop]
            assert WAYS[ways[0]] == thing.direction
            found += 1
        assert told_of(scene, ["how", "many", "objects", "?"])[0].tolist() == [-1, -1]
    assert found > 40


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("words"), detail=True)[1]


def test_captions_name_what_a_frame_shows(tokenizer):
    batch = caption_batch(SMALL, 3, 3, 2, (8, 4), tokenizer, dense=0.5)
    for row in range(6):
        rng = np.random.default_rng([0, 9 + row // 2])
        scene, _ = SMALL.scene(9 + row // 2)
        owner = paint(scene)[1]
        objects = named(scene, owner, int(rng.permutation(8)[row % 2]))
        text = tokenizer.decode(batch.ids[row, : batch.length[row]].tolist())
        assert (", ".join(objects) or "no").startswith(text)
        assert text
        places = [" ".join(part.split()[-2:]) for part in objects]
        assert places == sorted(places, key=["top left", "top right", "bottom left", "bottom right"].index)
    assert batch.same.diagonal().all()
    assert (batch.same == batch.same.T).all()
    assert batch.dense == np.float32(0.5)


def test_the_contrastive_loss_is_that_of_its_formula():
    rng = np.random.default_rng(2)
    seen, told = rng.normal(size=(2, 4, 6))
    same = np.eye(4, dtype=bool)
    same[1, 2] = same[2, 1] = True
    loss, right = contrastive(jnp.asarray(seen), jnp.asarray(told), jnp.asarray(same), jnp.log(5.0), jnp.float32(-2.0))
    cosines = (seen @ told.T) / np.linalg.norm(seen, axis=1)[:, None] / np.linalg.norm(told, axis=1)
    sign = np.where(same, 1, -1)
    assert loss == pytest.approx(np.log1p(np.exp(-sign * (5 * cosines - 2))).sum() / 4, rel=1e-5)
    assert right == pytest.approx(same[np.arange(4), cosines.argmax(1)].mean())


def test_nothing_of_what_tokens_show_reaches_the_language_model(tokenizer):
    prompts = Prompts(tokenizer, ANSWER.longest)
    batch = answer_batch(SMALL, 5, ANSWER, prompts, 4, 0, None)
    # What is read follows from the draw alone: the same on clips that look different.
    other = answer_batch(dataclasses.replace(SMALL, noise=20.0), 5, ANSWER, prompts, 4, 0, None)
    np.testing.assert_array_equal(batch.shown.rows, other.shown.rows)
    assert (batch.seen != other.seen).any()
    assert batch.shown.positions.shape[1] - 1 in variety.row_counts(8, 4)[1:3]
    assert set(batch._fields) == {"seen", "questions", "shown"}


def test_easier_questions_take_no_more_places_than_there_are(tokenizer):
    rows = question_rows(np.random.default_rng(0), SMALL, SMALL.scene(2)[0], Prompts(tokenizer, 28), 2, ("short",), 5)
    assert rows.ids.shape == (2, 28)
    assert rows.category.tolist() == [CATEGORY_NAMES.index("place")] * 2


def test_every_stage_has_room_for_its_questions(tokenizer):
    scenes = [TASK.scene(number)[0] for number in range(len(ALL_CATEGORIES) * 4)]
    for longest, kinds in {(stage.longest, stage.kinds) for stage in REGIME.stages if stage.kind == "answer"}:
        prompts = Prompts(tokenizer, longest)
        for number, scene in enumerate(scenes):
            rows = question_rows(np.random.default_rng(number), TASK, scene, prompts, 8, kinds)
            assert rows.length.max() <= longest


def test_more_clips_of_a_pool_are_read_where_fewer_tokens_are(tokenizer):
    seen = np.random.default_rng(0).normal(size=(40, 8, 64, 16)).astype(np.float16)
    pooled, prompts = Pool(SMALL, 7, seen), Prompts(tokenizer, ANSWER.longest)
    for number, part in enumerate(PACKED):
        stage = dataclasses.replace(ANSWER, shares=tuple(float(i == number) for i in range(4)))
        batch = answer_batch(SMALL, 3, stage, prompts, 4, 0, pooled)
        again = answer_batch(SMALL, 3, stage, prompts, 4, 0, pooled)
        assert len(batch.seen) == stage.clips * PACKED[part]
        np.testing.assert_array_equal(batch.questions.ids, again.questions.ids)
        numbers = [int(np.flatnonzero((seen == one).all((1, 2, 3)))[0]) for one in batch.seen]
        assert len(set(numbers)) == len(numbers)
        # Questions are those of the pool's own clips.
        assert (batch.questions.category >= 0).any()
        assert pooled.scene(numbers[0]).noise == SMALL.scene(7 + numbers[0])[0].noise


def test_a_pool_goes_on_where_it_stopped_and_refuses_other_settings(tmp_path):
    done = []

    def see(frames: np.ndarray) -> np.ndarray:
        done.append(len(done))
        if len(done) == 20:
            raise KeyboardInterrupt
        return frames[:, :8, :4, 0].reshape(8, 8, 4).astype(np.float16) / 255

    options: dict[str, Any] = {"task": SMALL, "first": 3, "clips": 24, "shape": (8, 8, 4), "settings": {"a": (1, 2)}}
    with pytest.raises(KeyboardInterrupt):
        pool(tmp_path / "parts", see=see, **options)
    parts = pool(tmp_path / "parts", see=see, **options)
    # 16 clips were noted as done.
    assert len(done) == 20 + 8
    whole = pool(tmp_path / "whole", see=see, **options)
    np.testing.assert_array_equal(parts.seen, whole.seen)
    assert pool(tmp_path / "whole", see=see, **options).seen.shape == (24, 8, 8, 4)
    assert len(done) == 28 + 24
    with pytest.raises(JvidpruneError, match="other settings"):
        pool(tmp_path / "whole", see=see, **{**options, "settings": {"a": 2}})


def test_the_written_model_declares_its_clips_and_no_rule_of_positions(tmp_path):
    regime = Regime((), SIZES, SMALL)
    network, params, _, _ = begin(regime, tmp_path)
    settings = write_model(regime, tmp_path / "model", network, params).settings
    assert (settings.benchmark, settings.categories, settings.declared_positions) == ("detailed", None, None)
    # A later run begins from it: the model is the written one in float32, the heads of losses are new.
    other = begin(dataclasses.replace(regime, seed=1), tmp_path)[1]
    again = begun(network, other, tmp_path / "model")
    written = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    for (path, value), old, new in zip(
        jax.tree_util.tree_leaves_with_path(again), jax.tree.leaves(written), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_array_equal(value, old if path[0].key == 0 else new)


def test_gates_tell_what_fails():
    good = {
        "mib": 2.5,
        "frames": 16,
        "grid": [8, 8],
        "kept": ["attribute"],
        "unpruned": 0.9,
        "statistics": {"tokens": 4.4, "norm_auc": 0.7},
        "random": dict(zip(map(str, RATIOS), (0.9, 0.88, 0.8, 0.7, 0.65, 0.6), strict=True)),
        "original": {"0.25": 0.81, "0.1": 0.66},
    }
    assert all(gate.passed for gate in gates(good))
    bad = good | {"mib": 9.0, "unpruned": 0.8, "statistics": {"tokens": 3.5, "norm_auc": 0.9}}
    bad |= {"random": good["random"] | {"0.5": 0.95}, "original": {"0.25": 0.9, "0.1": 0.66}}
    failed = [gate.name.split()[0] for gate in gates(bad) if not gate.passed]
    assert failed == ["at", "an", "AUC", "85%", "random", "rules"]


def test_an_area_under_the_curve_counts_pairs():
    scores, shown = np.array([3.0, 1.0, 2.0, 2.0, 0.0]), np.array([True, False, True, False, False])
    assert auc(scores, shown) == pytest.approx((3 + 2.5) / 6)


@pytest.mark.slow
def test_a_few_steps_train_tower_and_model_and_go_on_where_they_stopped(tmp_path):
    look = dataclasses.replace(LOOK, dense=0.0)
    train_regime(Regime((look,), SIZES, SMALL), tmp_path, every=1, log=1)
    regime = Regime((look, WHOLE), SIZES, SMALL, held=4, measure=2)
    lines = []
    network, params, _ = train_regime(regime, tmp_path, every=1, log=1, report=lambda *one: lines.append(one))
    # The first stage was there.
    assert [stage for stage, _ in lines] == ["answer"] * 3
    assert np.isfinite([line["loss"] for _, line in lines]).all()
    assert "answer" in lines[-1][1]
    assert ["held/all" in line for _, line in lines] == [False, True, True]
    model, _ = network.merge(params)
    assert np.isfinite(np.asarray(model.vision.pos_embed[...])).all()
    first = [json.loads(line) for line in (tmp_path / "look" / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in first] == [1, 2]
    assert {"caption/head", "caption/mean", "caption/words", "head/attention"} <= set(first[0])
    assert not any(name.startswith("dense") for name in first[0])


@pytest.mark.long
def test_a_run_in_parts_gives_the_parameters_of_a_whole_one(tmp_path):
    cached = dataclasses.replace(WHOLE, name="cached", trained=MIND)
    regime = Regime((LOOK, cached, WHOLE), SIZES, SMALL, pool=4, held=0)
    lines = []
    _, params, _ = train_regime(regime, tmp_path / "whole", every=1, log=1, report=lambda *one: lines.append(one))
    assert "dense/shape" in lines[0][1]
    train_regime(dataclasses.replace(regime, stages=(LOOK,)), tmp_path / "parts", every=1, log=1)
    train_regime(dataclasses.replace(regime, stages=(LOOK, cached)), tmp_path / "parts", every=1, log=1)
    _, again, _ = train_regime(regime, tmp_path / "parts", every=1, log=1)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
