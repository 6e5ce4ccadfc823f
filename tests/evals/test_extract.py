"""Reading answers: the patterns that published evaluations accept, and what is no answer."""

import dataclasses

import pytest

from jvidprune import JvidpruneError
from jvidprune.evals.datasets.wording import choice
from jvidprune.evals.extract import first_letter, grade, is_correct, option_letter, short_text, yes_or_no
from jvidprune.evals.items import Question

COLOURS = ("red", "green", "light green", "blue")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("B. green", "B"),
        ("B: green", "B"),
        ("B) green", "B"),
        ("(B)", "B"),
        ("(b) green", "B"),
        (" D\n", "D"),
        ("The answer is C", "C"),
        ("The best answer is: (C).", "C"),
        ("Best option: (D) blue", "D"),
        ("I think it is (C) because of the leaves", "C"),
        ("It must be D.", "D"),
        ("Not A. The right one is B.", "B"),
        ("green", "B"),
        ("Light green", "C"),
        ("It is light green.", "C"),
        ("A bird that is blue", "D"),
        ("the dog", ""),
        ("E", ""),
        ("", ""),
        ("Because", ""),
    ],
)
def test_option_letters(text, letter):
    assert option_letter(text, COLOURS) == letter


def test_options_may_carry_their_letters():
    assert option_letter("green", ("A. red", "B. green")) == "B"


@pytest.mark.parametrize(
    ("text", "letter"),
    [("The best answer is B.", "B"), ("Because of A", "B"), ("C", "C"), ("none", ""), ("The answer is (D)", "D")],
)
def test_the_rule_of_videomme_takes_the_first_capital(text, letter):
    assert first_letter(text, COLOURS) == letter


@pytest.mark.parametrize(
    ("text", "word"),
    [("Yes, it does.", "yes"), ("no", "no"), ("There is no dog, yes?", "no"), ("nothing", ""), ("Noyes", "")],
)
def test_yes_and_no(text, word):
    assert yes_or_no(text) == word


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Three.", "3"),
        ("the Red circle!", "red circle"),
        ("It is a dog\nbecause", "dog"),
        ("2.5 s", "2.5 s"),
        ("The answer is: blue", "blue"),
        ("the", "the"),
    ],
)
def test_short_answers_are_normalised(text, plain):
    assert short_text(text) == plain


def test_every_option_of_a_choice_has_its_letter():
    words = [f"thing {i}" for i in range(27)]
    asked = Question("q", "Which?", "c", "choice", tuple(words[:26]), "Z")
    assert asked.prompt({}).splitlines()[1:] == [f"{chr(65 + i)}. thing {i}" for i in range(26)]
    assert (asked.content, option_letter("Z. thing 25", asked.options)) == ("thing 25", "Z")
    with pytest.raises(JvidpruneError, match="question q has 27 options, more than the 26 that have a letter"):
        dataclasses.replace(asked, options=tuple(words))
    named = choice("q", "Who?", "c", ["A. N. Korea", "B. I. Newton"], "B. I. Newton", asked="")
    assert (named.options, named.answer) == (("N. Korea", "I. Newton"), "B")
    assert choice("q", "Who?", "c", ["N. Korea", "I. Newton"], "I. Newton", asked="").options == (
        "N. Korea",
        "I. Newton",
    )


def test_answers_are_compared_by_kind():
    assert is_correct("(B) green", "B", "choice", COLOURS)
    assert not is_correct("", "B", "choice", COLOURS)
    assert is_correct("Because of A", "B", "choice", COLOURS, rule="first_letter")
    assert is_correct("No.", "no", "yes_no", ("yes", "no"))
    assert not is_correct("maybe", "no", "yes_no", ("yes", "no"))
    assert is_correct("two", "2", "short")
    assert not is_correct("", "", "short")
    assert grade("B", "B", "choice", COLOURS) == {"correct": True}
    assert grade("A cat barks.", "A dog barks.", "open") == {"correct": None}
