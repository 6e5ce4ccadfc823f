"""Temporal grounding: spans read from answers, their overlap, and the table of mIoU and recalls."""

import csv
import itertools
import math

import numpy as np
import pytest

from jvidprune.evals.extract import grade
from jvidprune.evals.spans import ground, grounding_rows, overlap, read_span, spans_in, write_grounding, write_span


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("The event happens in 24.3 - 30.4 seconds.", [(24.3, 30.4)]),
        ("From 3 to 5 s, then 7 to 9", [(3.0, 5.0), (7.0, 9.0)]),
        ("1:02 until 0:01:03.5", [(62.0, 63.5)]),
        ("at 1:02, i.e. 62 - 64", [(62.0, 64.0)]),
        ("start 4, end 8, or 9", [(4.0, 8.0)]),
        ("5-2", [(5.0, 2.0)]),
        ("at 7", []),
        ("never", []),
    ],
)
def test_spans_are_read_from_clocks_ranges_and_numbers(text, spans):
    assert spans_in(text) == spans


def test_overlap_is_that_of_counted_steps():
    """Against steps of a quarter second that lie in both spans, and between the outer ends."""
    places = np.arange(0, 4, 0.25) + 0.125
    for a, b, c, d in itertools.product(range(4), repeat=4):
        if a >= b or c >= d:
            continue
        both = ((places > a) & (places < b) & (places > c) & (places < d)).sum()
        whole = ((places > min(a, c)) & (places < max(b, d))).sum()
        assert overlap((a, b), (c, d)) == pytest.approx(both / whole)
    assert overlap((1, 1), (1, 1)) == 0


def test_answers_are_right_from_half_an_overlap_on():
    answer = write_span((2.0, 6.0))
    assert read_span(answer) == (2.0, 6.0)
    assert grade("2 - 4 seconds", answer, "span") == {"correct": True, "iou": 0.5}
    assert grade("0 - 4 seconds", answer, "span") == {"correct": False, "iou": pytest.approx(1 / 3)}
    assert grade("no idea", answer, "span") == {"correct": False, "iou": 0.0}
    for wrong in ("6.0 - 2.0", "-1.0 - 2.0", "nan - 2.0", "2.0"):
        with pytest.raises(ValueError, match=r"span|float"):
            read_span(wrong)


def test_the_table_is_made_of_means_and_shares(tmp_path):
    values = {("m", 0.1): [0.2, 0.5, 0.7, 1.0], ("none", 1.0): [1.0, 1.0, 0.0, 0.35]}
    samples = [
        {"clip": f"c{i // 2}", "question": f"q{i}", "method": method, "ratio": ratio, "iou": value}
        for (method, ratio), found in values.items()
        for i, value in enumerate(found)
    ]
    samples.append({"clip": "c0", "question": "other", "method": "m", "ratio": 0.1})
    full, pruned = ground(samples, [("none", 1.0), ("m", 0.1), ("blind", 0.0)], draws=200)
    assert (pruned.questions, pruned.miou, pruned.recall) == (4, pytest.approx(0.6), (0.75, 0.75, 0.5))
    assert full.recall == (0.75, 0.5, 0.5)
    # Two clips of means 0.35 and 0.85: every resample lies between them.
    assert 0.35 <= pruned.low < pruned.miou < pruned.high <= 0.85
    assert grounding_rows([pruned], {"m": "Mine"})[0][::2] == ["Mine", "60.0 [35, 85]", "75.0"]
    write_grounding([full, pruned], tmp_path / "grounding.csv")
    rows = list(csv.DictReader((tmp_path / "grounding.csv").open()))
    assert [float(row["r0.7"]) for row in rows] == [0.5, 0.5]
    assert math.isclose(float(rows[1]["miou"]), 0.6)
    write_grounding([], tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
