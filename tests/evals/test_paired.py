"""Two runs on the same questions: exact tests, corrections and sample sizes worked out by hand."""

import math

import numpy as np
import pytest

from jvidprune.evals.paired import compare_runs, corrected, holm, mcnemar, paired_difference


def records(method, ratio, right, *, questions=2):
    """One record a question, `questions` of them a clip."""
    return [
        {
            "clip": f"clip {i // questions}",
            "question": str(i % questions),
            "method": method,
            "ratio": ratio,
            "category": "even" if i % 2 == 0 else "odd",
            "correct": bool(one),
        }
        for i, one in enumerate(right)
    ]


@pytest.mark.parametrize(
    ("gained", "lost", "value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (1, 7, 2 * 9 / 256),  # (1 + 8) of 2^8, both sides
        (4, 4, 1.0),
        (3, 5, 2 * (1 + 8 + 28 + 56) / 256),
    ],
)
def test_mcnemar_is_the_two_sided_binomial_tail(gained, lost, value):
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == pytest.approx(value)


def test_mcnemar_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for gained, lost in ((3, 9), (40, 41), (120, 80), (700, 900), (0, 3000)):
        expected = stats.binomtest(gained, gained + lost).pvalue
        assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_holm_steps_down_and_never_falls():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_counts_the_questions_that_one_run_alone_gets_right():
    first, second = [1, 1, 0, 0, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1, 0, 1]
    rows = [*records("a", 0.1, first), *records("b", 0.2, second)]
    (found,) = compare_runs(rows, [(("a", 0.1), ("b", 0.2))])
    assert (found.questions, found.gained, found.lost, found.change) == (8, 4, 1, pytest.approx(3 / 8))
    assert found.p == pytest.approx(2 * (1 + 5) / 32)
    # Changes of the four clips are -1, +2, +1, +1 of two questions each: no resample leaves [-1/2, 1].
    assert -0.5 <= found.low < 3 / 8 < found.high <= 1.0
    assert (found.ratio, found.adjusted, found.established) == (0.2, None, False)
    (odd,) = compare_runs(rows, [(("a", 0.1), ("b", 0.2))], category="odd")
    assert (odd.questions, odd.gained, odd.lost) == (4, 3, 1)
    (back,) = compare_runs(rows[::-1], [(("b", 0.2), ("a", 0.1))])
    assert (back.gained, back.lost, back.change) == (1, 4, -found.change)
    assert (back.low, back.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_runs_are_compared_on_the_questions_that_both_were_asked():
    rows = [*records("a", 0.1, [1, 1, 1, 1]), *records("b", 0.1, [0, 1])]
    pairs = [(("a", 0.1), ("b", 0.1)), (("a", 0.1), ("c", 0.1)), (("a", 0.1), ("a", 0.1))]
    shorter, none, same = compare_runs(rows, pairs)
    assert (shorter.questions, shorter.lost, none) == (2, 1, None)
    assert (same.questions, same.change, same.low, same.high, same.p) == (4, 0.0, 0.0, 0.0, 1.0)
    assert paired_difference(rows, "a", "b", 0.1) == compare_runs(rows, pairs[:1])[0]
    assert compare_runs(rows, []) == []
    assert compare_runs([], pairs[:1]) == [None]


def test_many_pairs_are_what_each_is_alone():
    rng = np.random.default_rng(0)
    rows = [row for i in range(24) for row in records(f"m{i}", 0.1, rng.random(20) < 0.5)]
    pairs = [((f"m{i}", 0.1), (f"m{j}", 0.1)) for i in range(24) for j in range(i)]
    assert len(pairs) > 256
    together = compare_runs(rows, pairs, draws=50)
    for i in (0, 100, 255, 256, len(pairs) - 1):
        assert together[i] == compare_runs(rows, [pairs[i]], draws=50)[0]


def test_a_difference_is_established_by_interval_and_corrected_test_together():
    rows = [*records("a", 0.1, [0] * 20, questions=1), *records("b", 0.1, [1] * 7 + [0] * 13, questions=1)]
    (found,) = compare_runs(rows, [(("a", 0.1), ("b", 0.1))])
    assert found.p == pytest.approx(2 / 128)
    assert found.clear
    assert found.established
    one, two, three, four = corrected([found] * 4)
    assert one.adjusted == two.adjusted == three.adjusted == four.adjusted == pytest.approx(4 * 2 / 128)
    assert one.clear
    assert not one.established


def test_questions_needed_follow_the_formula_for_paired_proportions():
    # 100 questions, 20 gained, 10 lost: d = 0.3, c = 0.1.
    right = [1] * 10 + [0] * 90, [0] * 10 + [1] * 20 + [0] * 70
    rows = [*records("a", 0.1, right[0]), *records("b", 0.1, right[1])]
    (found,) = compare_runs(rows, [(("a", 0.1), ("b", 0.1))])
    expected = ((1.959964 * math.sqrt(0.3) + 0.841621 * math.sqrt(0.29)) / 0.1) ** 2
    assert found.questions_needed() == math.ceil(expected) == 234
    assert found.questions_needed(power=0.9) > found.questions_needed()
    (same,) = compare_runs(rows, [(("a", 0.1), ("a", 0.1))])
    assert same.questions_needed() is None
