"""The procedural benchmark: what it says about its clips is what their pixels show, and no text gives answers away."""

import numpy as np
import pytest

from jvidprune.bench import Procedural, vocabulary
from jvidprune.bench.templates import CATEGORIES, split
from jvidprune.errors import JvidpruneError


@pytest.fixture(scope="module")
def train() -> Procedural:
    return Procedural("train", clips=100_000)


def test_equal_settings_give_equal_items(train):
    again = Procedural("train", clips=7)
    a, b = train.sample(6), again.sample(6)
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.questions == b.questions == train[6].questions
    np.testing.assert_array_equal(train[6].load().frames, a.frames)


def test_prompts_and_answers_use_the_vocabulary_alone(train):
    known = set(vocabulary())
    for i in range(300):
        for question in train[i].questions:
            assert {*split(question.prompt()), *split(question.answer)} <= known
            assert len(split(question.text)) <= 15


def test_every_category_is_asked_first_in_turn(train):
    assert [train[i].questions[0].category for i in range(20)] == [*CATEGORIES, *CATEGORIES]


@pytest.mark.parametrize(
    "wrong", [{"split": "dev"}, {"frames": 4}, {"difficulty": 2.0}, {"categories": ("smell",)}, {"objects": 9}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(JvidpruneError):
        Procedural(**wrong)
