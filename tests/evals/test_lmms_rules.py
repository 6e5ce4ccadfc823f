"""Reading letters as lmms-eval's tasks do: what each rule finds in an answer.

That the rules are lmms-eval's is tested beside it (`tests/integrations/test_lmms_tasks.py`).
"""

import pytest

from jvidprune.evals.extract import RULES, is_correct, read_answer

ANIMALS = ("a cat", "a dog", "a bird", "a fish", "nobody")
NAMED = ("Sentence A: A cat barks.", "Sentence B: A dog barks.")
FOUND = {
    "first_four": {"B": "B", "The answer is (C).": "C", "Because B": "B", "Cats, so A": "A", "E": "", "": "", "b": ""},
    "ranked": {"E": "E", "(A) and (B)": "B", "B: a dog": "B", "Maybe C)": "C", "A or B. Or C": "A"},
    "mvbench": {"(B)": "B", "b. a dog": "B", "a dog": "A", "The 3,000 dogs": "", "B.": "B", "x": "X", "F": "F"},
    "egoschema": {"(B) or (A)": "B", "B. a dog": "B", "It is not easy to say: A. a cat": "A", "nothing": ""},
    "nextqa": {"(B) or (A)": "A", "A B": "B", "It seems to be just a fish": "D", "A.B.": "B", "nothing": ""},
    "longvideobench": {"The answer is C": "C", "Because B": "B", "Do you see D?": "D", "none": ""},
    "perceptiontest": {"It is B": "B", "because": "", "E": "", "A dog, so B": "A"},
    "motionbench": {"A</think>b": "B", "The best answer is: c)": "C", "xDx": "D", "e": "E", "ooh": ""},
    "tomato": {"(C) not (B)": "B", "(B) not (C)": "C", "C or B": "B", "ooh": "A", "well it seems to be a fish": "D"},
    "tempcompass": {"B": "B", "B. a dog": "B", "B) a dog": "B", "B, a dog": "", "a dog": "", "E": ""},
}
"""Rule -> answer -> letter."""


@pytest.mark.parametrize("rule", FOUND)
def test_each_rule_reads_as_its_task(rule):
    assert {text: RULES[f"lmms_{rule}"](text, ANIMALS) for text in FOUND[rule]} == FOUND[rule]


def test_every_rule_of_lmms_eval_has_examples():
    assert {f"lmms_{rule}" for rule in FOUND} | {"letters", "first_letter"} == set(RULES)


def test_captions_are_named_in_several_ways():
    texts = ("Sentence B: A dog barks.", "A dog barks.", "(B) A dog barks.", "Sentence A.", "A", "Sentence C", "a dog")
    assert [RULES["lmms_tempcompass"](text, NAMED) for text in texts] == ["B", "B", "B", "A", "A", "", ""]


def test_yes_and_no_at_the_start_alone():
    assert [read_answer(text, "yes_no", rule="lmms_tempcompass") for text in ("Yes.", "nothing", "I say no")] == [
        "yes",
        "no",
        "",
    ]
    assert read_answer("I say no", "yes_no") == "no"
    assert not is_correct("I say no", "no", "yes_no", rule="lmms_tempcompass")
