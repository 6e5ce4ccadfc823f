"""Reading answers: the patterns that published evaluations accept, and what is no answer."""

import pytest

from jvidprune.bench.extract import first_letter, is_correct, option_letter, short_text, yes_or_no

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


def test_answers_are_compared_by_kind():
    assert is_correct("(B) green", "B", "choice", COLOURS)
    assert not is_correct("", "B", "choice", COLOURS)
    assert is_correct("Because of A", "B", "choice", COLOURS, rule="first_letter")
    assert is_correct("No.", "no", "yes_no", ("yes", "no"))
    assert not is_correct("maybe", "no", "yes_no", ("yes", "no"))
    assert is_correct("two", "2", "short")
    assert not is_correct("", "", "short")
