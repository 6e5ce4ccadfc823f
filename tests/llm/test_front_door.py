"""`import jvidprune`: one model, one video, one question; what is left out is computed, refused or known."""

import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.reducer_checks import refused

import jvidprune
from jvidprune.llm import opening
from jvidprune.procedural.benchmark import Procedural
from jvidprune.video.decode import Clip
from jvidprune.video.encode import write_mp4

SHORT = {"ratio": 0.2, "max_new_tokens": 2}


@pytest.fixture(scope="module")
def llm():
    return jvidprune.VideoLLM.load()


@pytest.fixture(scope="module")
def clip():
    return Procedural("test", clips=1).clip(0)


@pytest.fixture(scope="module")
def path(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("front") / "clip.mp4"
    write_mp4(path, clip.frames, clip.fps)
    return path


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "molmo2"])
def timed(request, tmp_path_factory):
    """A model whose prompts hold the times of frames."""
    return jvidprune.VideoLLM.load(tiny_checkpoints.write(request.param, tmp_path_factory.mktemp("m") / request.param))


@pytest.fixture
def towers(monkeypatch):
    """The evidence that each run of the tower is asked for."""
    runs, encode = [], opening.encode_tokens

    def counted(model, pixels, needs, frame_mask=None):
        runs.append(needs)
        return encode(model, pixels, needs, frame_mask)

    monkeypatch.setattr(opening, "encode_tokens", counted)
    return runs


@dataclasses.dataclass(frozen=True)
class EveryOther:
    """A reducer of a user's own: four members, no base class."""

    needs = frozenset()

    def budget(self, layout, ratio):
        return np.int32(layout.total // 2)

    def capacity(self, layout, ratio):
        return layout.total // 2

    def plan(self, video, budget, *, capacity):
        total = video.features.shape[0] * video.features.shape[1]
        rows = jnp.arange(capacity, dtype=jnp.int32)
        valid, none = rows < budget, jnp.zeros((0, total))
        ids = jnp.where(valid, 2 * rows, total)
        return jvidprune.Plan(ids, valid, budget, valid, none.astype(jnp.int32), none, {})


def test_every_name_is_offered_and_none_is_imported_before_it_is_used():
    assert {"VideoLLM", "Answer", "EncodedVideo", "reducers", "sweep"} <= set(jvidprune.__all__) <= set(dir(jvidprune))
    for name in jvidprune.__all__:
        assert getattr(jvidprune, name) is not None
    code = "import jvidprune, sys; print('jax' in sys.modules, 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'VideoLM'"):
        _ = jvidprune.VideoLM


def test_three_lines(path):
    llm = jvidprune.VideoLLM.load()
    video = llm.encode(path, reducer="flashvid")
    answer = llm.ask(video, "What happens?", reducer="flashvid", ratio=0.1)
    assert isinstance(video, jvidprune.EncodedVideo)
    assert isinstance(answer, jvidprune.Answer)
    assert 0 < answer.kept < answer.visual == video.tokens.layout().total
    assert [stage.name for stage in answer.stages] == ["reduce", "prefill", "generate"]


def test_one_call_answers_what_the_steps_answer(llm, path):
    video = llm.encode(path, reducer="flashvid")
    reduced = llm.reduce(video, reducer="flashvid", ratio=0.2)
    steps = llm.ask(reduced, "Which colour?", max_new_tokens=2)
    whole = llm.ask(path, "Which colour?", reducer=llm.reducer("flashvid"), **SHORT)
    assert (whole.token_ids, whole.kept, whole.prompt) == (steps.token_ids, steps.kept, steps.prompt)
    assert [stage.name for stage in whole.stages] == ["decode", "encode", "reduce", "prefill", "generate"]
    assert whole.stages[1].tokens == whole.visual
    # Several videos of one prompt, each in any form.
    several = llm.ask([reduced, video], "Which colour?", reducer="flashvid", **SHORT)
    assert several.token_ids == llm.ask([reduced, reduced], "Which colour?", max_new_tokens=2).token_ids
    assert several.kept == 2 * steps.kept
    assert whole.stages[0].tokens == len(video.frames)


def test_a_path_frames_and_a_clip_give_the_same_tokens(llm, path):
    clip = llm.sample(path)
    videos = [llm.encode(source) for source in (str(path), clip, clip.frames, jnp.asarray(clip.frames))]
    for video in videos:
        np.testing.assert_array_equal(video.tokens.features, videos[0].tokens.features)
        np.testing.assert_array_equal(video.frames, clip.frames)
    # A file and a clip carry their times, frames alone have none, and need none on this family.
    np.testing.assert_array_equal(videos[0].clip.timestamps, clip.timestamps)
    assert videos[1].clip is clip
    assert videos[2].clip is None
    assert llm.encode(clip.frames, fps=4.0).clip.timestamps.tolist() == [i / 4 for i in range(len(clip.frames))]
    assert len(llm.encode(path, fps=0.5).frames) < len(clip.frames)


def test_what_is_no_video_is_refused(llm, clip, path):
    video = llm.encode(clip)
    refused(lambda: llm.encode(clip.frames[0]), r"array \(T, H, W, 3\) of uint8, got uint8 \(\d+, \d+, 3\)")
    refused(lambda: llm.encode(clip.frames / 255), r"got float64")
    refused(lambda: llm.encode(clip.frames[:0]), "at least one picture")
    refused(lambda: llm.encode(video), "got EncodedVideo")
    refused(lambda: llm.ask(video.tokens, "?", reducer="random", ratio=0.5), "got VideoTokens")
    refused(lambda: llm.encode("missing.mp4"), "missing.mp4")
    refused(lambda: llm.encode(clip, fps=2.0), "a clip has times of its own")
    refused(lambda: llm.encode(path, times=[0.0]), "a file has times of its own")
    refused(lambda: llm.ask(video, "?", reducer="random", ratio=0.5, fps=2.0), "an encoded video has its times")
    refused(lambda: llm.encode(clip.frames, fps=2.0, times=list(range(8))), "either fps= or times=")
    refused(lambda: llm.encode(clip.frames, fps=0.0), "fps must be above 0")
    refused(lambda: llm.encode(clip.frames, times=[0.0, 1.0]), r"8 frames need as many times, got .*\(2,\)")
    for times in ([*range(7), 6.0], range(-1, 7), [*range(7), np.inf]):
        refused(lambda times=times: llm.encode(clip.frames, times=times), "must be finite seconds from 0 on that rise")


def test_nothing_runs_before_a_method_and_a_ratio_are_named(llm, clip, towers):
    for given in ({}, {"reducer": "random"}, {"ratio": 0.5}):
        refused(lambda given=given: llm.ask(clip, "?", **given), "needs a reducer and a ratio")
    refused(lambda: llm.ask(clip, "?", reducer="flashvit", ratio=0.5), "unknown reducer 'flashvit'")
    assert towers == []


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_frames_without_times_are_refused_where_a_prompt_holds_them(timed, clip):
    frames = clip.frames[:, :48, :48]
    family = timed.loaded.family
    for call in (
        lambda: timed.encode(frames),
        lambda: timed.ask(frames, "?", reducer="random", ratio=0.5),
    ):
        refused(call, f"the prompts of {family} hold the times of frames: give fps= or times= with the frames")
    assert timed.ask(frames, "?", reducer="random", ratio=0.5, fps=2.0, max_new_tokens=1).kept
    bare = jvidprune.EncodedVideo(timed.encode(frames, fps=2.0).tokens)
    refused(lambda: timed.ask(bare, "?", reducer="random", ratio=0.5), "times of this video's frames are needed")


def test_a_rate_and_its_times_give_one_prompt_and_other_times_another(timed, clip):
    frames = clip.frames[:, :48, :48]

    def prompt(**given):
        one = timed.reduce(timed.encode(frames, **given), reducer="none", ratio=1.0)
        slots, text = timed.lay_out([one], "?", 1)
        return text.tolist(), slots.rotary.tolist()

    rated = prompt(fps=0.5)
    assert rated == prompt(times=[2.0 * i for i in range(8)]) == prompt_of_clip(timed, frames)
    assert rated != prompt(fps=0.1)


def prompt_of_clip(llm, frames):
    one = llm.reduce(llm.encode(Clip(frames, np.arange(8), np.arange(8) / 0.5, 0.5, 8)), reducer="none", ratio=1.0)
    slots, text = llm.lay_out([one], "?", 1)
    return text.tolist(), slots.rotary.tolist()


# --- evidence --------------------------------------------------------------------------------------------------------


def test_evidence_that_an_encoding_lacks_is_computed_from_its_frames(llm, clip, towers):
    plain, full = llm.encode(clip), llm.encode(clip, reducer="visionzip")
    assert plain.tokens.evidence == {}
    assert towers == [frozenset(), llm.reducer("visionzip").needs]
    answer, expected = (llm.ask(video, "?", reducer="visionzip", **SHORT) for video in (plain, full))
    assert answer.token_ids == expected.token_ids
    # Only what is missing is asked of the tower, and nothing where all is there.
    assert towers[2:] == [llm.reducer("visionzip").needs]
    more = llm.with_evidence(full, "fastvid")
    assert towers[3:] == [llm.reducer("fastvid").needs - full.tokens.evidence.keys()]
    assert more.tokens.evidence.keys() == full.tokens.evidence.keys() | llm.reducer("fastvid").needs
    assert more.tokens.features is full.tokens.features
    assert llm.with_evidence(more, "visionzip") is more


def test_evidence_that_cannot_be_computed_is_named(llm, clip):
    bare = jvidprune.EncodedVideo(llm.encode(clip).tokens)
    words = "FlashVID needs the evidence attention_last, which the video does not carry, and its frames were not kept"
    refused(lambda: llm.reduce(bare, reducer="flashvid", ratio=0.5), words)
    assert llm.ask(bare, "?", reducer="random", **SHORT).kept
    refused(lambda: llm.encode(clip, needs=frozenset({"tower_scores"})), "cannot give evidence tower_scores")


def test_a_method_that_reads_the_question_reads_the_one_that_is_asked(llm, clip, towers):
    """Whatever was embedded before, and without another run of the tower."""
    first, second = "What colour is the circle?", "Does the square move to the left?"
    plain, asked = llm.encode(clip, reducer="cdpruner"), llm.encode(clip, reducer="cdpruner", question=first)
    assert (plain.question, asked.question) == (None, first)
    runs = len(towers)
    for question in (first, second):
        whole = llm.reduce(llm.encode(clip, reducer="cdpruner", question=question), reducer="cdpruner", ratio=0.2)
        runs += 1
        for video in (plain, asked):
            reduced = llm.reduce(video, reducer="cdpruner", ratio=0.2, question=question)
            np.testing.assert_array_equal(reduced.reduced.index, whole.reduced.index)
            answer = llm.ask(video, question, reducer="cdpruner", **SHORT)
            assert answer.token_ids == llm.ask(whole, question, max_new_tokens=2).token_ids
    assert len(towers) == runs
    assert llm.ask(clip, second, reducer="cdpruner", **SHORT).kept
    np.testing.assert_array_equal(
        llm.reduce(asked, reducer="cdpruner", ratio=0.2).video.tokens.evidence["text"], asked.tokens.evidence["text"]
    )
    refused(lambda: llm.reduce(plain, reducer="cdpruner", ratio=0.2), "none was passed: give it as question=")
    refused(lambda: llm.encode(clip, needs=frozenset({"text"})), "none was passed: give it as question=")


def test_a_reducer_of_ones_own_is_as_good_as_a_text(llm, clip, towers):
    video = llm.encode(clip, reducer=EveryOther())
    answer = llm.ask(video, "?", reducer=EveryOther(), **SHORT)
    assert (answer.kept, answer.reducer) == (video.tokens.layout().total // 2, "EveryOther")
    assert llm.ask(clip, "?", reducer=EveryOther(), **SHORT).token_ids == answer.token_ids
    assert towers == [frozenset()] * 2
    assert isinstance(EveryOther(), jvidprune.Reducer)
