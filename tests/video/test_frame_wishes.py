"""Wishes for frames on short and long videos: the right numbers by arithmetic of their own, from the rules' texts."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from jvidprune.errors import JvidpruneError
from jvidprune.llm.conventions import settings_of
from jvidprune.llm.folder import family_settings
from jvidprune.models import family as families
from jvidprune.video.sampling import RULES
from jvidprune.video.wish import FrameWish

TOTALS = (*range(1, 10), 23, 24, 33, 200)
RATES = (10.0, 3.0, 0.25, 30.0)
NUMBERS = (1, 2, 3, 4, 5, 7, 8, 32, 64)


def spread(total, count, rounding):
    """`count` places from the first frame to the last, exactly."""
    if count == 1:
        return [0]
    return [rounding(Fraction(i * (total - 1), count - 1)) for i in range(count)]


def even(number):
    return number - number % 2


def pair(total, count, rounding=round):
    """Qwen: two frames at least, the first one twice where there is no second."""
    return [0, 0] if count < 2 else spread(total, count, rounding)


def by_number(family, total, rate, number):
    if family in ("llava_onevision", "llava_video"):
        return spread(total, min(number, total), math.floor)
    if family.startswith("qwen"):
        return pair(total, min(2 * round(number / 2), even(total)))
    if family == "video_llama_3":
        return steps(total, min(number, total))
    if family == "internvl":
        return middles(total, min(number, total))
    return molmo2(total, rate, 2.0, number)


def steps(total, count):
    """Evenly from the first, not to the last."""
    return [i * total // count for i in range(count)]


def middles(total, count):
    """Of equal stretches."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def molmo2(total, rate, fps, most):
    """Every half second and the last frame; spread evenly where that is too many."""
    step = max(Fraction(rate) / Fraction(fps), 1)
    places = [i * step for i in range(total) if i * step < total - 1]
    if len(places) + 1 > most:
        return [total - 1] if most == 1 else spread(total, most, math.floor)
    return sorted({round(place) for place in places} | {total - 1})


def by_rate(family, total, rate, fps, most=None):
    seconds = Fraction(total) / Fraction(rate)
    wanted = seconds * Fraction(fps)
    if family == "llava_onevision":
        return steps(total, min(max(1, math.floor(wanted)), total, most or total))
    if family == "internvl":
        return middles(total, min(max(1, math.floor(wanted)), total, most or total))
    if family == "llava_video":
        step, most = max(1, round(Fraction(rate) / Fraction(fps))), most or 64
        every = list(range(0, total, step))
        return every if len(every) <= most else spread(total, most, math.floor)
    if family == "molmo2":
        return molmo2(total, rate, min(fps, 2.0), most or 128)
    if family == "video_llama_3":
        return steps(total, math.floor(min(max(wanted, 4), 180, total, most or total)))
    high = min(768, total, most or total)
    count = min(max(wanted, 4), high)
    return pair(total, 2 * math.floor(count / 2))


def ties(total, count):
    """Whether a place lies half way between two frames, where float32 decides in the reference."""
    return count > 1 and any((2 * i * (total - 1)) % (2 * (count - 1)) == count - 1 for i in range(count))


def same(found, expected, total, family):
    assert found.dtype == np.int64
    assert (np.diff(found) >= 0).all()
    assert 0 <= found[0] <= found[-1] < total
    if family.startswith("qwen") and ties(total, len(expected)):
        assert len(found) == len(expected)
        assert np.abs(found - expected).max() <= 1
    else:
        assert found.tolist() == expected


@pytest.mark.parametrize("family", families.names())
@pytest.mark.parametrize("rate", RATES)
def test_a_number_of_frames_is_a_ceiling(family, rate):
    settings = settings_of(family)
    in_pairs = family.startswith("qwen")
    default = {"llava_onevision": 32, "llava_video": 64, "molmo2": 128}.get(family, 32)
    for total in TOTALS:
        if family == "video_llama_3":
            # A frame a second, as its authors evaluate it.
            unasked = by_rate(family, total, rate, 1.0)
        else:
            unasked = by_number(family, total, rate, default)
        same(settings.wish().indices(total, rate), unasked, total, family)
        for number in NUMBERS:
            found = settings.wish(number).indices(total, rate)
            same(found, by_number(family, total, rate, number), total, family)
            assert len(np.unique(found)) <= total
            assert len(found) <= max(number + number % 2, 2 * in_pairs)


def test_qwen3_vl_takes_odd_numbers_in_transformers():
    """qwen-vl-utils, its authors' way, knows even ones alone."""
    settings = settings_of("qwen3_vl", "transformers")
    for total in TOTALS:
        for number in NUMBERS:
            found = settings.wish(number).indices(total, 25.0)
            same(found, pair(total, min(number, total)), total, "qwen3_vl")
        for fps in (0.5, 2.0, 60.0):
            count = math.floor(min(max(Fraction(total) / 25 * Fraction(fps), 4), 768, total))
            same(settings.wish(fps=fps).indices(total, 25.0), pair(total, count), total, "qwen3_vl")


@pytest.mark.parametrize("convention", ["released", "transformers", "lmms-eval"])
@pytest.mark.parametrize("family", families.names())
def test_every_convention_answers_every_length(family, convention):
    if (family, convention) in (
        ("llava_video", "transformers"),
        ("molmo2", "lmms-eval"),
        ("video_llama_3", "lmms-eval"),
        ("internvl", "lmms-eval"),
        ("qwen3_5", "lmms-eval"),
    ):
        return
    settings = settings_of(family, convention)
    in_pairs = family.startswith("qwen")
    for total in TOTALS:
        for rate in RATES:
            for wish in ({}, {"frames": 1}, {"frames": 5}, {"fps": 2.0}, {"fps": 50.0}, {"frames": 2, "fps": 50.0}):
                found = settings.wish(**wish).indices(total, rate)
                assert 0 <= found[0] <= found[-1] < total
                assert found.tolist() == (
                    [0, 0] if in_pairs and len(set(found.tolist())) == 1 else sorted(set(found.tolist()))
                )
                assert len(found) <= max(2, total)


@pytest.mark.parametrize("family", families.names())
@pytest.mark.parametrize("rate", RATES)
def test_a_rate_goes_by_the_family_and_frames_are_its_most(family, rate):
    settings = settings_of(family)
    in_pairs = family.startswith("qwen")
    for total in TOTALS:
        for fps in (0.125, 0.5, 1.0, 2.0, 4.0, 60.0):
            same(settings.wish(fps=fps).indices(total, rate), by_rate(family, total, rate, fps), total, family)
            for most in (1, 2, 5, 6, 40):
                found = settings.wish(most, fps).indices(total, rate)
                same(found, by_rate(family, total, rate, fps, most), total, family)
                assert len(found) <= max(most, 2 * in_pairs)


def test_limits_of_rates_are_those_of_the_processors():
    """4 to 768 frames on Qwen, 4 to 180 on VideoLLaMA3, two a second on Molmo2, one up to 64 on LLaVA-Video."""
    lengths = {
        family: [len(settings_of(family).wish(fps=fps).indices(20000, 25.0)) for fps in (0.001, 1.0, 20.0)]
        for family in families.names()
    }
    assert lengths == {
        "llava_onevision": [1, 800, 16000],
        "llava_video": [1, 64, 64],
        "qwen2_5_vl": [4, 768, 768],
        "qwen3_vl": [4, 768, 768],
        "qwen3_vl_moe": [4, 768, 768],
        "qwen3_5": [4, 768, 768],
        "molmo2": [2, 128, 128],
        "video_llama_3": [4, 180, 180],
        "internvl": [1, 800, 16000],
    }
    # 60 frames at 10 a second.
    assert settings_of("llava_video").wish(fps=1.0).indices(60, 10.0).tolist() == [0, 10, 20, 30, 40, 50]
    assert settings_of("llava_onevision").wish(fps=1.0).indices(60, 10.0).tolist() == [0, 10, 20, 30, 40, 50]
    assert settings_of("molmo2").wish(fps=8.0).indices(60, 10.0).tolist() == [*range(0, 60, 5), 59]
    assert settings_of("qwen2_5_vl").wish(fps=1.0).indices(60, 10.0).tolist() == [0, 12, 24, 35, 47, 59]
    # Slides, one every ten seconds: a rate of one a second finds no more of them.
    assert settings_of("llava_video").wish(fps=1.0).indices(5, 0.1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "fps"])
@pytest.mark.parametrize("total", TOTALS)
def test_every_rule_meets_every_wish(rule, total):
    for wish in (*({"frames": n} for n in NUMBERS), {"fps": 0.1}, {"fps": 3.0}, {"fps": 1e300}, {"fps": 1e-300}):
        found = FrameWish(rule=rule, **wish).indices(total, 12.5)
        assert (np.diff(found) >= 0).all()
        assert 0 <= found[0] <= found[-1] < total
        assert len(set(found.tolist())) == len(found) or found.tolist() == [0, 0]
        if "frames" in wish:
            whole = FrameWish(wish["frames"], rule=rule, repeat=True).indices(total, 12.5)
            assert len(whole) == wish["frames"]
            assert 0 <= whole[0] <= whole[-1] < total
            # Frames stand several times only where there are too few.
            assert len(set(whole.tolist())) == min(total, wish["frames"])


def test_limits_of_a_folder_and_what_goes_before_them():
    def count(total, **wish):
        return len(FrameWish(**wish).indices(total, 10.0))

    # Two seconds at 2 a second.
    assert count(20, fps=2.0, rule="qwen_utils", fewest=6) == 6
    assert count(20, fps=2.0, rule="qwen_utils", fewest=5) == 6
    assert count(20, fps=2.0, rule="hf_qwen2", fewest=5) == 4
    assert count(20, fps=2.0, rule="hf_qwen3", fewest=5) == 5
    assert count(20, fps=2.0, rule="hf_qwen3", fewest=1, most=3) == 3
    assert count(20, fps=2.0, rule="qwen_utils", most=3) == 2
    assert count(4, fps=2.0, rule="hf_qwen3", fewest=99) == 4
    assert count(20, fps=2.0, rule="molmo2", fastest=1.0) == 3
    assert count(20, frames=9, rule="hf_molmo2", fastest=1.0) == 2
    # The processor of transformers caps the rate where no rate is asked for.
    assert count(20, frames=9, rule="hf_molmo2") == 4
    assert count(20, fps=4.0, rule="hf_molmo2") == 8
    assert count(20, frames=6, fps=4.0, rule="hf_molmo2") == 6


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({}, "exactly one"),
        ({"frames": 0}, "at least one frame must be sampled, not 0"),
        ({"frames": 2.5}, "at least one frame must be sampled, not 2.5"),
        ({"fps": "fast"}, "fps must be above 0, not fast"),
        ({"frames": -3, "fps": 1.0}, "at least one frame must be sampled, not -3"),
        ({"fps": 0.0}, "fps must be above 0, not 0"),
        ({"fps": math.nan}, "fps must be above 0, not nan"),
        ({"fps": math.inf, "frames": 4}, "fps must be above 0, not inf"),
        ({"frames": 4, "rule": "fps"}, "by a rate"),
        ({"frames": 4, "rule": "nearest"}, "no sampling rule 'nearest'"),
        ({"fps": 4.0, "rule": "nearest"}, "no sampling rule 'nearest'"),
        ({"fps": 1.0, "fewest": 5, "most": 4}, "in order, not 5 to 4"),
    ],
)
def test_a_wish_that_makes_no_sense_is_one_sentence(wish, says):
    with pytest.raises(JvidpruneError, match=says):
        FrameWish(**wish)


PROCESSORS = [
    # family, keys of the folder's video processor, frames of a video of 60 frames at 10 a second
    ("qwen2_5_vl", {}, 32),
    ("qwen2_5_vl", {"num_frames": 10}, 10),
    ("qwen2_5_vl", {"fps": 2.0, "do_sample_frames": True}, 12),
    ("qwen2_5_vl", {"fps": 1}, 6),
    ("qwen2_5_vl", {"fps": 0.1}, 4),
    ("qwen2_5_vl", {"fps": 0.1, "min_frames": 8}, 8),
    ("qwen2_5_vl", {"fps": 5.0, "max_frames": 20}, 20),
    ("qwen2_5_vl", {"max_frames": 16}, 16),
    ("qwen2_5_vl", {"min_frames": 40, "max_frames": 50}, 40),
    ("qwen2_5_vl", {"do_sample_frames": False, "fps": 2, "min_frames": 4, "max_frames": 8, "num_frames": None}, 32),
    ("qwen3_vl", {"do_sample_frames": True, "fps": 2, "min_frames": 4, "max_frames": 768, "num_frames": None}, 12),
    ("qwen3_vl", {"do_sample_frames": True}, 12),
    ("qwen3_vl", {"do_sample_frames": True, "num_frames": 7}, 8),
    ("llava_onevision", {"do_sample_frames": False, "num_frames": None, "fps": None}, 32),
    ("llava_onevision", {"do_sample_frames": True, "num_frames": 16}, 16),
    ("llava_onevision", {"fps": 1.5}, 9),
    ("llava_video", {"fps": 2}, 12),
    (
        "molmo2",
        {"do_sample_frames": True, "num_frames": 384, "max_fps": 2, "frame_sample_mode": "uniform_last_frame"},
        13,
    ),
    ("molmo2", {"num_frames": 7}, 7),
    ("molmo2", {"max_fps": 1.0}, 7),
    ("molmo2", {"do_sample_frames": True}, 13),
    ("video_llama_3", {}, 6),
    ("video_llama_3", {"do_sample_frames": False, "fps": 2}, 6),
    ("video_llama_3", {"do_sample_frames": True, "fps": 2, "max_frames": 9}, 9),
    ("video_llama_3", {"num_frames": 7}, 7),
    ("internvl", {"num_frames": 8, "initial_shift": True}, 8),
    ("internvl", {"do_sample_frames": True, "fps": 2}, 12),
]


@pytest.mark.parametrize(("family", "given", "count"), PROCESSORS)
@pytest.mark.parametrize("place", ["video_preprocessor_config.json", "processor_config.json"])
def test_the_folder_s_processor_is_obeyed(tmp_path, family, given, count, place):
    nested = {"video_processor": given} if place.startswith("processor") else given
    (tmp_path / place).write_text(json.dumps(nested))
    settings = family_settings(family, tmp_path)
    assert len(settings.wish().indices(60, 10.0)) == count
    # A number that is asked for goes before what the folder says.
    assert len(settings.wish(6).indices(60, 10.0)) == 6


REFUSED = [
    ({"num_frames": "many"}, "num_frames many; it must be a whole number above 0"),
    ({"num_frames": 0}, "num_frames 0"),
    ({"num_frames": 2.5}, "num_frames 2.5"),
    ({"num_frames": True}, "num_frames True"),
    ({"fps": -1}, "fps -1; it must be a number above 0"),
    ({"fps": [2]}, r"fps \[2\]"),
    ({"min_frames": 0}, "min_frames 0"),
    ({"max_frames": {}}, "max_frames {}"),
    ({"max_fps": "2"}, "max_fps 2; it must be a number above 0"),
    ({"min_frames": 9, "max_frames": 8}, "min_frames 9 above max_frames 8"),
    ({"num_frames": 8, "fps": 2}, "num_frames 8 and fps 2; it can sample by one of them alone"),
    ({"do_sample_frames": "yes"}, "do_sample_frames yes; it must be true or false"),
    ({"do_sample_frames": 1}, "do_sample_frames 1; it must be true or false"),
    ({"do_sample_frames": True}, "says neither num_frames nor fps"),
    ({"initial_shift": 0}, "initial_shift 0; only true is known"),
    ({"frame_sample_mode": "fps"}, "frame_sample_mode fps; only 'uniform_last_frame' is known"),
]


@pytest.mark.parametrize(("given", "says"), REFUSED)
def test_what_cannot_be_obeyed_is_refused(tmp_path, given, says):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    with pytest.raises(JvidpruneError, match=says) as error:
        family_settings("llava_onevision", tmp_path)
    assert str(error.value).endswith(".")
    assert str(error.value).count(". ") == 0
