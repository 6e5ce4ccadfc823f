"""Two runs on the same questions: exact tests, corrections and sample sizes worked out by hand."""

import csv
import math

import numpy as np
import pytest

from jvidprune.evals.metrics import summarise
from jvidprune.evals.paired import (
    apart,
    compare_runs,
    corrected,
    every_pair,
    holm,
    mcnemar,
    paired_difference,
    resolution,
    two_best,
    write_pairs,
)


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
    from scipy import stats

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
    rows = [*records("a", 0.1, right[0], questions=1), *records("b", 0.1, right[1], questions=1)]
    (found,) = compare_runs(rows, [(("a", 0.1), ("b", 0.1))])
    expected = ((1.959964 * math.sqrt(0.3) + 0.841621 * math.sqrt(0.29)) / 0.1) ** 2
    assert found.spread == pytest.approx(0.29)
    assert found.questions_needed() == math.ceil(expected) == 234
    assert found.questions_needed(power=0.9) > found.questions_needed()
    (same,) = compare_runs(rows, [(("a", 0.1), ("a", 0.1))])
    assert same.questions_needed() is None
    # Two questions a clip that always go together: of 50 clips 10 gain two, 5 lose two, and twice as many are needed:
    # (10 * 1.8^2 + 5 * 2.2^2 + 35 * 0.2^2) / 100 = 0.58.
    rows = [*records("a", 0.1, right[0]), *records("b", 0.1, right[1])]
    (paired,) = compare_runs(rows, [(("a", 0.1), ("b", 0.1))])
    assert paired.spread == pytest.approx(0.58)
    assert paired.questions_needed() == math.ceil((1.959964 + 0.841621) ** 2 * 0.58 / 0.01) == 456
    assert paired.turned().questions_needed() == 456


def test_a_run_tells_how_many_clips_its_methods_need_for_5_points():
    # One of three pairs disagrees on 20 of 100 questions, two on 30; two questions a clip.
    right = {"a": [1] * 60 + [0] * 40, "b": [1] * 50 + [0] * 20 + [1] * 10 + [0] * 20}
    right["c"] = [1] * 80 + [0] * 10 + [1] * 10
    rows = [row for name, some in right.items() for row in records(name, 0.1, some)]
    pairs = every_pair(rows, list(right), [0.1])[0.1]
    assert sorted(pair.discordant for pair in pairs) == pytest.approx([0.2, 0.3, 0.3])
    found = resolution(pairs, 50)
    spread = sorted(pair.spread for pair in pairs)[1]
    alone = (1.959964 * math.sqrt(0.3) + 0.841621 * math.sqrt(0.3 - 0.0025)) ** 2
    expected = max(alone, (1.959964 + 0.841621) ** 2 * spread) / 0.0025
    assert found.questions == math.ceil(expected)
    assert (found.clips, found.here) == (math.ceil(found.questions / 2), 50)
    assert f"about {found.clips:,} clips" in str(found)
    assert "this run has 50" in str(found)
    assert resolution(pairs, 50, change=0.1).questions < found.questions
    assert resolution([], 50) is None


def test_any_two_methods_are_compared_at_each_ratio_and_corrected_within_it(tmp_path):
    at_tenth = {"a": [1] * 16 + [0] * 4, "b": [1] * 6 + [0] * 14, "c": [0] * 4 + [1] * 12 + [0] * 4}
    rows = [row | {"kept": 9, "prompt": 9} for name, right in at_tenth.items() for row in records(name, 0.1, right)]
    rows += [row | {"kept": 9, "prompt": 9} for row in records("a", 0.2, [1] * 20)]
    found = every_pair(rows, ["a", "b", "c"], [0.1, 0.2], draws=100)
    assert found[0.2] == []
    named = {(one.second[0], one.first[0]): one for one in found[0.1]}
    counts = {pair: (one.gained, one.lost) for pair, one in named.items()}
    assert counts == {("a", "b"): (10, 0), ("a", "c"): (4, 0), ("b", "c"): (4, 10)}
    # p-values 2/1024, 2/16 and 2 (1 + 14 + 91 + 364 + 1001) / 2^14 = 0.1796: times 3, 2 and 1, and none below the last.
    assert [named[pair].adjusted for pair in counts] == pytest.approx([6 / 1024, 0.25, 0.25])
    cells = {(c.method, c.ratio, c.category): c for c in summarise(rows, [(n, 0.1) for n in "abc"], draws=10)}
    best = two_best(found[0.1], cells)
    assert (best.second[0], best.first[0], best.gained, best.lost) == ("a", "c", 4, 0)
    # Two of ten clips gain both of their questions: (2 * 1.6^2 + 8 * 0.4^2) / 20 = 0.32, (1.959964 + 0.841621)^2 of it
    # over 0.2^2 is 62.8; independent questions with d = c = 0.2 would be 37.
    assert apart(best, {"a": "AOT"}).endswith("to tell such a difference takes about 63 questions, here are 20")
    assert "the two best are AOT and c: +20.0 points" in apart(best, {"a": "AOT"})
    assert best.turned().turned() == best
    assert best.turned().change == -best.change
    assert two_best([], cells) is None
    write_pairs(found, tmp_path / "pairs.csv")
    lines = list(csv.DictReader((tmp_path / "pairs.csv").open()))
    assert [(row["first"], row["second"], row["gained"]) for row in lines] == [
        ("b", "a", "10"),
        ("c", "a", "4"),
        ("c", "b", "4"),
    ]
    assert [row["questions_needed"] for row in lines][1] == "63"


def test_of_equal_methods_no_number_of_questions_tells_them_apart():
    rows = [row | {"kept": 9, "prompt": 9} for name in "ab" for row in records(name, 0.1, [1, 0, 1, 0])]
    cells = {(c.method, c.ratio, c.category): c for c in summarise(rows, [("a", 0.1), ("b", 0.1)], draws=10)}
    best = two_best(every_pair(rows, ["a", "b"], [0.1], draws=10)[0.1], cells)
    assert apart(best, {}).endswith("these 4 questions show no difference to look for")
