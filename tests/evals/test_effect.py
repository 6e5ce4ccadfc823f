"""Whether a method acted: shares of tokens, logits and answers against the unpruned model, flags in plain words."""

import csv
import json
import math

import numpy as np
import pytest
from helpers.sweeps import sweep

from jvidprune.evals.effect import effects, flagged, logit_change, write_effects
from jvidprune.tokens import place_fates

TITLES = {"flashvid": "FlashVID"}


def sample(clip, method, ratio, kept, *, said="A"):
    row = {"clip": clip, "question": "q", "method": method, "ratio": ratio, "prediction": said}
    return row | {"kept": kept, "visual": 100}


def costs(clip, method, ratio, logits=None):
    """A record of costs, with logits or without."""
    row = {"clip": clip, "method": method, "ratio": ratio, "refused": ""}
    return row | ({} if logits is None else {"logits": {"q": logits}})


def batch(clip, method, ratio, merged, dropped, *, inside=False, logits=None):
    """One that also says what became of the tokens."""
    row = costs(clip, method, ratio, logits) | {"inside": inside}
    return row | {"places_kept": 100 - merged - dropped, "places_merged": merged, "places_dropped": dropped}


def test_places_are_kept_merged_or_dropped():
    # Rows stand for the places 3, 0 and 3 again; 1 went to the first row, 2 nowhere, 4 to the second.
    assert place_fates(np.array([3, 0, 3]), np.array([1, 0, -1, 0, 1])) == (2, 2, 1)
    # A place with a row of its own is kept, whatever it is listed with.
    assert place_fates(np.array([0]), np.array([-1, -1])) == (1, 0, 1)


def test_logits_change_by_the_largest_difference_of_common_tokens():
    base = [[7, -0.1], [3, -2.5], [4, -5.0]]
    assert logit_change(base, base) == 0.0
    assert logit_change(base, [[7, -0.2], [3, -2.0], [9, -6.0]]) == pytest.approx(0.5)
    assert logit_change(base, [[9, -0.1], [8, -2.5], [7, -2.6]]) == math.inf
    assert logit_change(base, None) is logit_change([], base) is None


def test_shares_and_differences_are_counted_over_the_clips():
    one, other = [[5, -0.1], [6, -2.4]], [[5, -0.3], [6, -1.4]]
    samples = [sample(clip, "none", 1.0, 100) for clip in ("a", "b")]
    samples += [sample("a", "flashvid", 0.2, 20), sample("b", "flashvid", 0.2, 22, said="B")]
    batches = [costs(clip, "none", 1.0, one) for clip in ("a", "b")]
    batches += [batch("a", "flashvid", 0.2, 50, 30, logits=other), batch("b", "flashvid", 0.2, 58, 20, logits=one)]
    found = effects(samples, batches, [("none", 1.0), ("flashvid", 0.2), ("flashvid", 0.1)])
    assert list(found) == [("flashvid", 0.2)]
    effect = found["flashvid", 0.2]
    assert [effect.mean(name) for name in ("kept", "merged", "dropped")] == pytest.approx([0.21, 0.54, 0.25])
    # Another answer is a difference whatever the logits of its first token.
    assert (effect.count("questions"), effect.count("by_logits"), effect.count("differ"), effect.count("answers")) == (
        2,
        2,
        2,
        1,
    )
    assert (effect.flags, flagged(found.values(), TITLES)) == ([], [])


def flags(kept, *, logits=None, base=None, said="A", ratio=0.2, merged=0, inside=False, dtype="float32"):
    """The flags of a method with one such clip."""
    samples = [sample("a", "none", 1.0, 100), sample("a", "flashvid", ratio, kept, said=said)]
    gone = 100 - kept - merged
    batches = [costs("a", "none", 1.0, base)]
    batches += [batch("a", "flashvid", ratio, merged, gone, inside=inside, logits=logits)]
    (effect,) = effects(samples, batches, [("flashvid", ratio)], dtype).values()
    return effect.flags


def test_a_method_that_did_nothing_is_flagged_in_plain_words():
    same, near, far = [[5, -0.1]], [[5, -0.102]], [[5, -0.15]]
    assert flags(100, logits=same, base=same) == ["kept every token", "no logits differ from the unpruned model's"]
    # Rounding is no difference, and how much rounding is depends on the dtype.
    assert flags(20, logits=near, base=same) == ["no logits differ from the unpruned model's"]
    assert flags(20, logits=far, base=same) == []
    assert flags(20, logits=far, base=same, dtype="bfloat16") == ["no logits differ from the unpruned model's"]
    # Older records have no logits.
    assert flags(20) == ["no answer differs from the unpruned model's"]
    assert flags(20, said="B") == []
    # A ratio of 1 asks for every token; methods inside the language model keep all of them at its input.
    assert flags(100, logits=far, base=same, ratio=1.0) == []
    assert flags(100, logits=far, base=same, inside=True) == []
    assert flags(100, logits=far, base=same) == ["kept every token"]


def test_single_clips_are_counted():
    same, other = [[5, -0.1]], [[5, -1.1]]
    samples = [sample(clip, "none", 1.0, 100) for clip in "abc"]
    samples += [sample(clip, "flashvid", 0.2, kept) for clip, kept in (("a", 100), ("b", 20), ("c", 20))]
    batches = [costs(clip, "none", 1.0, same) for clip in "abc"]
    batches += [costs(clip, "flashvid", 0.2, logits) for clip, logits in (("a", same), ("b", other), ("c", same))]
    found = effects(samples, batches, [("flashvid", 0.2)])
    assert flagged(found.values(), TITLES) == [
        "FlashVID at 20 % did not act on every clip: kept every token of 1 of 3 clips; on 2 of 3 clips no logits "
        "differ from the unpruned model's"
    ]
    assert math.isnan(found["flashvid", 0.2].mean("merged"))


def test_every_clip_has_its_line(tmp_path):
    samples = [sample("a", "none", 1.0, 100), sample("a", "flashvid", 0.2, 20, said="B")]
    found = effects(samples, [batch("a", "flashvid", 0.2, 50, 30)], [("flashvid", 0.2)])
    write_effects(found.values(), tmp_path / "effects.csv")
    (row,) = csv.DictReader((tmp_path / "effects.csv").open())
    wanted = {"method": "flashvid", "ratio": "0.2", "clip": "a", "kept": "0.2", "merged": "0.5", "dropped": "0.3"}
    assert wanted.items() <= row.items()
    assert (row["questions"], row["differ"], row["whole"], row["same"]) == ("1", "1", "False", "False")


OWN = '''
import dataclasses
from jvidprune.reducers.controls import Random

@dataclasses.dataclass(frozen=True)
class Idle(Random):
    """Says that it prunes, and keeps everything."""

    def budget(self, layout, ratio):
        return super().budget(layout, 1.0)

    def capacity(self, layout, ratio):
        return layout.total
'''


@pytest.mark.slow
def test_a_method_that_keeps_everything_is_flagged_by_the_verb(home, model, tmp_path):
    (tmp_path / "idle.py").write_text(OWN)
    idle = f"{tmp_path / 'idle.py'}:Idle"
    out = sweep(home, model, tmp_path / "run", "--methods", f"{idle},random", "--ratios", "0.25")
    page = (out / "report.html").read_text()
    assert "at 25 % did not act: kept every token; no logits differ from the unpruned model&#39;s" in page
    rows = list(csv.DictReader((out / "table.csv").open()))
    said = {row["method"]: row for row in rows if row["category"] == "all"}
    assert said[idle]["did_not_act"] == "kept every token; no logits differ from the unpruned model's"
    assert (said["random"]["did_not_act"], said["random"]["dropped"], said["random"]["merged"]) == ("", "0.75", "0")
    for line in (out / "batches.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["places_kept"] + row["places_merged"] + row["places_dropped"] == 128
        assert row["inside"] is False
        # Five likeliest tokens of every answer, the first one first.
        for found in row["logits"].values():
            values = [value for _, value in found]
            assert len(values) == 5
            assert values == sorted(values, reverse=True)
