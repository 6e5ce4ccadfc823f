"""The benchmark's detailed setting: objects of four tokens, and categories whose answers need many of them."""

import collections
import dataclasses

import numpy as np
import pytest

from jvidprune.errors import JvidpruneError
from jvidprune.evals.items import Question
from jvidprune.procedural.baselines import baselines
from jvidprune.procedural.benchmark import Procedural, detailed, vocabulary
from jvidprune.procedural.categories import ALL_CATEGORIES, ALL_FOCUS, CATEGORIES, DETAIL_FOCUS, DETAIL_TEXTS
from jvidprune.procedural.drawing import DIRECTIONS
from jvidprune.procedural.masks import masks
from jvidprune.procedural.paint import paint
from jvidprune.procedural.settings import DETAILED
from jvidprune.procedural.templates import split, template_of
from jvidprune.procedural.world import COLOURS, GLYPHS, SHAPES, Scene, Thing

NEW = tuple(DETAIL_FOCUS)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, tuple[Question, ...]]]:
    task = detailed("train", 100_000, categories=NEW)
    return [task.scene(i) for i in range(240)]


def test_the_default_benchmark_knows_nothing_of_it():
    plain = Procedural("train", clips=10)
    assert plain.categories == CATEGORIES
    assert not {"size", "counted"} & set(plain.fingerprint())
    assert detailed("train", 10).fingerprint().items() >= {"size": 1.15, "counted": 5, "frames": 16}.items()
    assert set(ALL_CATEGORIES) == {*CATEGORIES, *NEW}
    assert set(vocabulary()) < set(vocabulary(detail=True))
    assert not set(GLYPHS) & set(vocabulary())
    # Each category may be asked about in clips of any size, too.
    small = Procedural("train", clips=6, categories=NEW)
    assert [small[i].questions[0].category for i in range(6)] == list(NEW)


def test_a_main_object_covers_four_tokens_and_a_small_one_one_or_two():
    task, found = detailed("validation", 1000), collections.defaultdict(list)
    for i in range(32):
        scene, _ = task.scene(i)
        shown = masks(scene, paint(scene)[1], (8, 8), 16)
        counts = shown.shown.reshape(len(shown.things), 16, 64).sum(-1)
        for thing, count in zip(shown.things, counts, strict=True):
            found[thing.role] += count[count > 0].tolist()
    assert np.mean(found["main"]) >= 4
    assert 1 <= np.mean(found["small"]) <= 2
    assert np.mean(found["glyph"]) >= 2


def _answer(scene: Scene, question: Question) -> str:
    """What the scene says, found without the code that asks."""
    text = question.text.rstrip("?")
    words, things = text.split(), [thing for thing in scene.things if thing.role != "clutter"]

    def of(role: str, **wanted: str) -> Thing:
        (one,) = [t for t in things if t.role == role and all(getattr(t, k) == v for k, v in wanted.items())]
        return one

    def by_name(name: str) -> Thing:
        (one,) = [thing for thing in things if thing.name == name]
        return one

    match template_of(question):
        case "small_colour":
            return of("small", shape=words[-1]).colour
        case "small_shape":
            return of("small", colour=words[-2]).shape
        case "letter_of":
            return of("glyph", colour=words[-1]).shape
        case "letter_colour":
            return of("glyph", shape=words[-1]).colour
        case "turn_first" | "turn_last" | "alike_direction":
            thing = by_name(" ".join(words[4:6]))
            half = slice(9, 16) if "after" in words else slice(0, 7)
            moved = np.diff(thing.centre + scene.camera, axis=0)[half].sum(0).round(6)
            return next(way for way, sign in DIRECTIONS.items() if tuple(np.sign(moved)) == sign)
        case "middle":
            return sorted(things, key=lambda thing: thing.start)[1].name
        case "middle_colour":
            return sorted(things, key=lambda thing: thing.start)[1].colour
        case "earlier":
            one, other = text.removeprefix("did the ").split(" appear before the ")
            return "yes" if by_name(one).start < by_name(other).start else "no"
        case "alike_mover":
            return of("main", colour=words[4], direction=words[-1]).shape
        case "pair" | "pair_other":
            name = " ".join([word for word in words if word in (*COLOURS, *SHAPES)])
            return "yes" if name in {thing.name for thing in things} else "no"
        case other:
            raise AssertionError(other)


def test_answers_are_what_the_scene_says(drawn):
    seen = collections.Counter()
    for scene, questions in drawn:
        for question in questions:
            if question.category in NEW:
                seen[template_of(question)] += 1
                assert question.content == _answer(scene, question), question
    assert set(seen) == set(DETAIL_TEXTS)
    assert min(seen.values()) >= 5


def test_pairs_ask_for_one_that_is_there_and_one_that_is_not(drawn):
    pairs = [[q for q in questions if q.category == "pair"] for scene, questions in drawn if scene.focus == "pair"]
    assert pairs
    for two in pairs:
        assert sorted(question.answer for question in two) == ["no", "yes"]
    # Of what is not there, colour and shape are.
    for scene, questions in drawn:
        for question in questions:
            if question.category == "pair" and question.answer == "no":
                colour, shape = [word for word in split(question.text) if word in (*COLOURS, *SHAPES)]
                assert colour in {thing.colour for thing in scene.mains}
                assert shape in {thing.shape for thing in scene.mains}


def test_up_to_five_are_counted():
    task = detailed("train", 1000, categories=("counting",))
    found = {task[i].questions[0].content for i in range(40)}
    assert found == {"1", "2", "3", "4", "5"}


@pytest.mark.slow
def test_text_alone_stays_at_chance():
    train = dataclasses.replace(detailed("train", 900), categories=NEW)
    for row in baselines(train, detailed("test", 400, categories=NEW)):
        if row.category in NEW:
            error = np.sqrt(row.chance * (1 - row.chance) / row.questions)
            assert row.text_only < row.chance + 0.02 + 3 * error, row


def test_words_of_all_categories_are_known(drawn):
    known = set(vocabulary(detail=True))
    used = {word for _, questions in drawn for q in questions for word in (*split(q.prompt()), *split(q.answer))}
    assert used <= known


def test_letters_are_drawn_apart_from_each_other():
    task = detailed("test", 300, categories=("letter",), clutter=0, noise=0.0, texture=0.0, camera=0.0, posts=0)
    for i in range(6):
        drawn = task.sample(i)
        for number, thing in enumerate(drawn.scene.things, 1):
            if thing.role == "glyph":
                owner = paint(drawn.scene)[1]
                assert (owner[thing.start] == number).sum() > 60
                assert (owner[: thing.start] != number).all()


@pytest.mark.parametrize("wrong", [{"size": 2.0}, {"counted": 9}, {"categories": ("smell",)}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(JvidpruneError):
        detailed("train", 4, **wrong)


def test_settings_may_be_replaced():
    assert detailed("test", 3, frames=32).frames == 32
    assert DETAILED["frames"] == 16
    assert set(ALL_FOCUS) == set(ALL_CATEGORIES)
