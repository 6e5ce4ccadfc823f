"""Loaders of published benchmarks, on small files in their layouts with generated videos."""

import json
import re

import pytest
from helpers.layouts import (
    LAYOUTS,
    OPTIONS,
    listed,
    longvideobench,
    mvbench,
    place,
    write,
)

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets import answer_tokens, names, open_dataset, prompt_presets
from jvidprune.evals.datasets.videos import VideoIndex, part_indices, read_clip
from jvidprune.evals.datasets.wording import split_options
from jvidprune.procedural.clips import ClipSpec, render
from jvidprune.video.limits import Limits

WISH = {"frames": 4, "rule": "llava_video_force"}


@pytest.fixture(scope="module")
def film():
    return render(ClipSpec(seed=1, frames=12, size=(48, 64))).frames


DIRECTLY = "Answer with the option's letter from the given choices directly."
SPANS = (
    "Please find the visual event described by the sentence 'a dog barks', determining its starting and ending times. "
    "The format should be: 'The event happens in <start time> - <end time> seconds'."
)
EXPECTED = {
    # (clips, answers of the first clip, categories, missing, a line of the first prompt)
    "videomme": (1, "BD", ("short",), 1, DIRECTLY),
    "videomme_w_subtitle": (1, "BD", ("short",), 1, "The best answer is:"),
    "mvbench": (3, "B", ("action_sequence", "episodic_reasoning"), 2, "Only give the best option."),
    "egoschema": (1, "B", ("egoschema",), 1, DIRECTLY),
    "longvideobench": (1, "B", ("15 s",), 1, DIRECTLY),
    "mlvu": (1, "B", ("needle",), 1, "Best option: ("),
    "nextqa": (1, "B", ("temporal",), 1, "E. nobody"),
    "videocomp": (2, "B", ("activitynet", "youcook2"), 1, "Only give the option."),
    "charades_timelens": (1, ["0.5 - 1.5", "1.0 - 2.0"], ("charades",), 1, SPANS),
    "activitynet_timelens": (1, ["0.5 - 1.5", "1.0 - 2.0"], ("activitynet",), 1, SPANS),
    "vcgbench": (
        1,
        ["A dog.", "At the end.", "The dog.", "The dog."],
        ("Generic", "Temporal", "Consistency"),
        1,
        "What barks?",
    ),
    "tempcompass": (
        1,
        ["B", "yes", "B"],
        ("multi-choice", "yes_no", "caption_matching"),
        1,
        "Please directly give the best option:",
    ),
    "tempcompass_captioning": (1, [f"{listed('{}. {}')}\nAnswer: B. a dog"], ("action",), 1, "Describe the video."),
    "tomato": (1, "B", ("count",), 1, "{'A': 'a cat', 'B': 'a dog', 'C': 'a bird', 'D': 'a fish'} "),
    "motionbench": (
        1,
        "B",
        ("Motion Recognition",),
        1,
        "Answer with only the option letter (A, B, C, D, E, or F).",
    ),
    "perceptiontest": (1, "B", ("physics",), 1, DIRECTLY),
    "lvbench": (1, "B", ("cartoon",), 1, "Answer the question with the option letter"),
    "videoevalpro": (1, "B", ("Local Perception",), 1, "Answer with the option letter only."),
    "videoevalpro_open": (
        1,
        ["A dog."],
        ("Local Perception",),
        1,
        "What barks? Keep the answer short and concise.",
    ),
    "eventhallusion": (2, ["yes", "no"], ("entire", "interleave"), 1, "Please answer yes or no:"),
    "eventhallusion_descriptions": (
        2,
        ["Did it bark? Yes.\nDid it fly? No."],
        ("entire", "interleave"),
        1,
        "Please describe this video in detail.",
    ),
}


@pytest.mark.parametrize("name", names())
def test_published_layouts_are_read(tmp_path, film, name):
    LAYOUTS[name](tmp_path, film)
    task = open_dataset(name, tmp_path, **WISH)
    clips, answers, categories, missing, line = EXPECTED[name]
    assert (len(task), len(task.missing), task.categories) == (clips, missing, categories)
    item = task[0]
    assert [q.answer for q in item.questions] == list(answers)
    first = item.questions[0]
    assert line in first.prompt().splitlines()
    if first.kind == "choice":
        assert first.options[1] == "a dog"
        assert re.search(r"B\S* '?a dog", first.prompt())
        assert task.chance(first) == pytest.approx(1 / len(first.options))
    clip = item.load()
    assert clip.frames.shape == (4, 48, 64, 3)
    assert len({q.id for i in range(len(task)) for q in task[i].questions}) == sum(
        len(task[i].questions) for i in range(clips)
    )
    assert json.loads(json.dumps(task.fingerprint())) == task.fingerprint()


@pytest.mark.parametrize("name", [name for name in names() if name != "charades_timelens"])
def test_one_wrong_row_costs_no_other(tmp_path, film, name):
    from jvidprune.evals.datasets.annotations import read_rows

    LAYOUTS[name](tmp_path, film)
    before = open_dataset(name, tmp_path, **WISH)
    path = min(path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".parquet"))
    rows = read_rows(path)
    needed = {"motionbench": "qa", "activitynet_timelens": "query", "vcgbench": "answer"}
    field = "questions" if name.startswith("eventhallusion") else needed.get(name, "question")
    # Behind the good rows, so that questions numbered by their rows keep their names.
    write(tmp_path, path.relative_to(tmp_path), [*rows, rows[0] | {field: None}])
    task = open_dataset(name, tmp_path, **WISH)
    (bad,) = set(task.left_out) - set(before.left_out)
    assert (bad.item, bad.file) == (f"row {len(rows)}", str(path))
    assert f"{bad.item} of {path} has no {field}; its columns are" in bad.reason
    assert [task[i].questions for i in range(len(task))] == [before[i].questions for i in range(len(before))]
    with pytest.raises(JvidpruneError):
        open_dataset(name, tmp_path, **WISH, strict=True)


def test_lines_that_are_no_json_and_answers_that_are_none_are_left_out(tmp_path, film):
    row = {"videoID": "v", "question_id": "1", "question": "What barks?", "options": OPTIONS, "answer": "B"}
    answers = ("C", "Z", 9, -1, "7", True, None, ["A"], "a dog", "(D) a fish", 2, "3")
    rows = [row | {"question_id": str(i), "answer": answer} for i, answer in enumerate(answers)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "test.jsonl").write_text("\n".join(["{", *lines, "[1]", lines[0], "", "nothing"]))
    place(tmp_path, film, "data/v.mp4")
    task = open_dataset("videomme", tmp_path, **WISH)
    assert [q.answer for q in task[0].questions] == ["C", "B", "D", "C", "D"]
    assert [bad.item for bad in task.left_out] == [
        "line 1",
        *(f"row {number}" for number in (2, 3, 4, 5, 6, 7, 8)),
        "line 14",
        "0",
        "line 17",
    ]
    assert all(bad.file == str(tmp_path / "test.jsonl") for bad in task.left_out if bad.item != "0")


def test_parts_and_folders_of_frames(tmp_path, film):
    mvbench(tmp_path, film)
    task = open_dataset("mvbench", tmp_path, **WISH)
    part, whole, show = (task[i].load() for i in range(3))
    assert part.indices.tolist() == [3, 5, 6, 7]
    assert whole.indices.tolist() == [0, 3, 7, 11]
    assert show.indices.tolist() == [0, 2, 3, 4]
    assert show.frames[:, 0, 0, 0].tolist() == [0, 20, 30, 40]
    assert part_indices(10, 5.0, 4, None, 99.0).tolist() == [1, 3, 5, 8]


def test_a_rate_sets_the_frames_of_parts_and_folders_too(tmp_path, film):
    mvbench(tmp_path, film)
    task = open_dataset("mvbench", tmp_path, frames=4, fps=2.0)
    # One second of a part, two of a whole file of 12 frames at 6 a second, two of pictures at 3 a second.
    assert [len(task[i].load().indices) for i in range(3)] == [2, 4, 4]
    path = tmp_path / "video/star/Charades_v1_480/a.mp4"
    wish = {"start": 0.5}
    assert len(read_clip(path, fps=0.1, end=1.5, **wish).indices) == 1
    # From 0.5 s to the end at 2 s, all frames: there are no more.
    assert len(read_clip(path, fps=99.0, **wish).indices) == 9
    assert len(read_clip(path, fps=99.0, frames=4, **wish).indices) == 4
    with pytest.raises(JvidpruneError, match="fps must be above 0, not 0"):
        read_clip(path, fps=0.0, **wish)


def test_limits_hold_for_files_parts_and_folders_of_frames(tmp_path, film):
    mvbench(tmp_path, film)
    for text, says in (
        ("pixels=300", "more than the 300 (pixels )?allowed"),
        ("total=8", "more than the 8 frames allowed"),
        ("seconds=1.5", "more than the 1.5 allowed"),
        ("frames=3", "4 frames of"),
        ("bytes=4000", "GiB allowed"),
    ):
        task = open_dataset("mvbench", tmp_path, **WISH, limits=Limits.from_text(text))
        for i in range(3):
            with pytest.raises(JvidpruneError, match=says):
                task[i].load()


def test_a_video_is_not_replaced_by_another_of_its_name(tmp_path, film):
    place(tmp_path, film, "copy/clevrer/v.mp4", "x/w.mp4", "y/w.mp4", "y/z.mp4", "z.mp4", "one/x.y.webm.mp4")
    index = VideoIndex(tmp_path)

    def found(*names):
        path = index.find(names)
        return None if path is None else path.relative_to(tmp_path).as_posix()

    assert found("perception/v.mp4") is None
    assert found("clevrer/v.mp4") == found("gone/v.mp4", "clevrer/v") == found("v") == "copy/clevrer/v.mp4"
    assert found("w.mp4") is found("w") is None
    assert found("y/w.mp4") == found("y/w") == "y/w.mp4"
    # The whole path of one file, though the end of another's.
    assert found("z.mp4") == "z.mp4"
    assert found("x.y.webm") == "one/x.y.webm.mp4"
    assert found("evrer/v.mp4", "mp4", "", ".") is None


def test_eventhallusion_finds_the_mixed_videos_and_their_descriptions(tmp_path, film):
    LAYOUTS["eventhallusion"](tmp_path, film)
    task = open_dataset("eventhallusion", tmp_path, **WISH)
    assert [task[i].id for i in range(2)] == ["videos/entire/entire_1.mp4", "videos/interleave/interleave_3.mp4"]
    assert [q.prompt() for q in task[1].questions] == ["Did it fly?\nPlease answer yes or no:"]
    assert task[1].questions[0].answer == "no"
    own = open_dataset("eventhallusion", tmp_path, **WISH, prompts="official")
    assert own[1].questions[0].prompt() == "Did it fly? Please answer yes or no."
    assert own.fingerprint() == task.fingerprint() | {"prompts": "official"}
    (tmp_path / "questions/misleading_questions.json").unlink()
    told = {"id": "entire_1", "event_info": "A cat barks.", "questions": []}
    write(tmp_path, "questions/entire_questions.json", [told])
    described = open_dataset("event-hallusion-descriptions", tmp_path, **WISH)
    asked = [described[i].questions[0] for i in range(2)]
    assert [q.kind for q in asked] == ["open", "open"]
    assert [q.answer for q in asked] == ['{"event_info": "A cat barks."}', "Did it fly? No."]
    assert described.chance(asked[0]) == 0


def test_the_authors_files_of_egoschema_and_nextqa(tmp_path, film):
    rows = [
        {"q_uid": uid, "question": "?", **{f"option {i}": o for i, o in enumerate(OPTIONS)}} for uid in ("u1", "u2")
    ]
    write(tmp_path / "ego", "questions.json", rows)
    write(tmp_path / "ego", "subset_answers.json", {"u2": 3})
    place(tmp_path / "ego", film, "u1.mp4", "u2.mp4")
    ego = open_dataset("EgoSchema", tmp_path / "ego", **WISH)
    assert [(q.id, q.answer) for q in ego[0].questions] == [("u2", "D")]
    row = {"video": "7", "question": "q", "answer": "4", "qid": "0", "type": "DC", **{f"a{i}": i for i in range(5)}}
    write(tmp_path / "next", "test.csv", [row])
    place(tmp_path / "next", film, "0001/7.mp4")
    assert open_dataset("next-qa", tmp_path / "next", **WISH)[0].questions[0].answer == "E"


def test_benchmarks_with_groups_of_lengths_say_them(tmp_path, film):
    longvideobench(tmp_path / "long", film)
    assert open_dataset("longvideobench", tmp_path / "long", **WISH)[0].questions[0].length == "8 to 15 s"
    row = {"videoID": "v", "question_id": "1", "question": "What barks?", "options": OPTIONS, "answer": "B"}
    place(tmp_path / "mme", film, "data/v.mp4")
    (tmp_path / "mme" / "test.jsonl").write_text(json.dumps(row | {"duration": "medium"}))
    task = open_dataset("videomme", tmp_path / "mme", **WISH)
    assert [question.length for question in task[0].questions] == ["medium"]


def test_the_fingerprint_follows_sampling_and_items_follow_their_own_video(tmp_path, film):
    longvideobench(tmp_path, film)

    def made(**wish):
        task = open_dataset("longvideobench", tmp_path, **(WISH | wish))
        return task.fingerprint(), {task[i].id: task[i].source() for i in range(len(task))}

    known, sources = made()
    assert made() == (known, sources)
    assert made(frames=5)[0] != known
    assert made(frames=5)[1] != sources
    place(tmp_path, film[:10], "videos/v.mp4")
    changed = made()
    assert changed[0] == known
    assert changed[1] != sources
    place(tmp_path, film[:9], "videos/gone.mp4")
    added = made()
    assert added[0] == known
    assert added[1]["videos/v.mp4"] == changed[1]["videos/v.mp4"]
    assert added[1].keys() == {"videos/v.mp4", "videos/gone.mp4"}


def test_refusals_are_sentences(tmp_path, film):
    with pytest.raises(JvidpruneError, match="Did you mean 'videomme'"):
        open_dataset("videome", tmp_path, **WISH)
    with pytest.raises(JvidpruneError, match="is not asked with the prompts 'lmms_eval', only with stop"):
        open_dataset("eventhallusion", tmp_path, **WISH, prompts="lmms_eval")
    with pytest.raises(JvidpruneError, match="no annotations in"):
        open_dataset("videomme", tmp_path, **WISH)
    with pytest.raises(JvidpruneError, match="--data"):
        open_dataset("videomme", None, **WISH)
    with pytest.raises(JvidpruneError, match="no folder"):
        open_dataset("videomme", tmp_path / "none", **WISH)
    write(tmp_path, "json/2_needle.json", [{"video": "x.mp4", "question": "?"}])
    with pytest.raises(JvidpruneError, match="has no answer; its columns are video, question"):
        open_dataset("mlvu", tmp_path, **WISH)
    write(tmp_path, "json/2_needle.json", [{"video": "x.mp4", "question": "?", "answer": "b"}])
    with pytest.raises(JvidpruneError, match="has no candidates; its columns are video, question, answer"):
        open_dataset("mlvu", tmp_path, **WISH)
    write(tmp_path, "json/2_needle.json", [{"video": "x.mp4", "question": "?", "candidates": ["a"], "answer": "b"}])
    with pytest.raises(JvidpruneError, match="'b' is none of the options"):
        open_dataset("mlvu", tmp_path, **WISH)
    write(tmp_path, "json/2_needle.json", [{"video": "x.mp4", "question": "?", "candidates": ["a"], "answer": "a"}])
    with pytest.raises(JvidpruneError, match="none of the 1 videos"):
        open_dataset("mlvu", tmp_path, **WISH)


def test_the_wordings_of_a_benchmark(tmp_path, film):
    """Each preset gives another prompt; SToP's leaves a task of MVBench out and fills LongVideoBench up to five."""
    asked = {}
    for name in ("videomme", "mvbench", "longvideobench", "nextqa", "mlvu"):
        LAYOUTS[name](tmp_path / name, film)
        for preset in prompt_presets(name):
            task = open_dataset(name, tmp_path / name, **WISH, prompts=preset)
            assert task.fingerprint()["prompts"] == preset
            asked[name, preset] = task[0].questions[0].prompt()
    # SToP's wording of VideoMME is the authors' here.
    assert (len(set(asked.values())), len(asked)) == (11, 12)
    lead = "Select the best answer to the following multiple-choice question based on the video"
    assert asked["videomme", "lmms_eval"].startswith(f"{lead} and the subtitles. Respond")
    assert asked["videomme", "official"].startswith(f"{lead}. Respond")
    assert asked["longvideobench", "stop"].splitlines()[-2:] == ["E. N/A", "The best answer is:"]
    assert asked["mvbench", "stop"].endswith("D. a fish\nOnly give the option.")
    assert asked["mvbench", "lmms_eval"].startswith("Question:What barks?\nOption:\n(A) a cat\n")
    row = {"video": "p.mp4", "question": "What?", "candidates": OPTIONS, "answer": "a dog"}
    write(tmp_path / "mvbench", "json/fine_grained_pose.json", [row])
    place(tmp_path / "mvbench", film, "video/nturgbd/p.mp4")
    counts = [len(open_dataset("mvbench", tmp_path / "mvbench", **WISH, prompts=one)) for one in ("stop", "official")]
    assert counts == [3, 4]
    assert {name: prompt_presets(name)[0] for name in names()} == {
        name: "stop" if name in ("eventhallusion", "eventhallusion_descriptions", "videocomp") else "lmms_eval"
        for name in names()
    }
    assert [answer_tokens(name) for name in ("mvbench", "longvideobench", "charades-timelens")] == [16, 32, 50]
    assert [answer_tokens(f"tempcompass{part}") for part in ("", "_captioning")] == [16, 512]


def test_subtitles_that_are_shown_at_32_frames_stand_before_the_question(tmp_path, film):
    LAYOUTS["videomme_w_subtitle"](tmp_path, film)
    task = open_dataset("videomme-w-subtitle", tmp_path, **WISH)
    lines = task[0].questions[0].prompt().splitlines()
    assert lines[:3] == ["This video's subtitles are listed below: ", "Woof,", "says the dog."]
    (tmp_path / "subtitle/fFjv93ACGo8.srt").unlink()
    lines = open_dataset("videomme_w_subtitle", tmp_path, **WISH)[0].questions[0].prompt().splitlines()
    assert lines[1] == "No subtitles available"
    (tmp_path / "subtitle/fFjv93ACGo8.srt").write_text("1\nsoon\nWoof\n")
    with pytest.raises(JvidpruneError, match=r"row 0 of .* cannot be asked"):
        open_dataset("videomme_w_subtitle", tmp_path, **WISH)


def test_mvbench_files_that_are_cut_already_are_looked_at_whole(tmp_path, film):
    mvbench(tmp_path, film)
    (tmp_path / "video/star/Charades_v1_480").rename(tmp_path / "video/star/Charades_segment")
    task = open_dataset("mvbench", tmp_path, **WISH)
    assert task[0].id == "video/star/Charades_segment/a.mp4"
    assert task[0].load().indices.tolist() == [0, 3, 7, 11]
    assert [len(task[0].questions), len(task)] == [2, 2]


def test_videocomp_looks_at_microseconds_of_a_video(tmp_path, film):
    LAYOUTS["videocomp"](tmp_path, film)
    task = open_dataset("videocomp", tmp_path, **WISH)
    assert [task[i].id for i in range(2)] == ["activitynet_video/v_ab.mp4@0.5-1.5", "raw_videos/video/cd.mp4@0-1"]
    assert task[0].load().indices.tolist() == [3, 5, 6, 7]
    other = task[1].questions[0]
    assert (other.answer, other.prompt()) == ("D", f"What swims?\n{listed('{}. {}')[12:]}\nOnly give the option.")
    row = {"video_id": "ab", "question": "What?", "answer": "B", "key": "k1", "query_video/start_time": 0}
    rows = [row, row | {"options": OPTIONS}, row | {"options": OPTIONS, "query_video/end_time": "1"}]
    write(tmp_path, "activitynet_comp_val.json", rows)
    bad = [str(one) for one in open_dataset("videocomp", tmp_path, **WISH).left_out]
    assert len(bad) == 3
    assert "row 0" in bad[0]
    assert "no options" in bad[0]
    assert all("has no query_video/end_time; its columns are video_id, question" in text for text in bad[1:])


def test_timelens_lists_what_has_no_span(tmp_path, film):
    place(tmp_path, film, "videos/AB.mp4")
    spans = [[0.5, 1.5], [1.5, 0.5], "soon", [0.5, 1.5], [-1, 2], [1, float("nan")]]
    known = {"spans": spans, "queries": ["a", "b", "c", "a", "d", "e"]}
    odd = {"CD": {"spans": [[0, 1]], "queries": ["a", "b"]}, "EF": 3}
    write(tmp_path, "charades.json", {"AB": known} | odd)
    task = open_dataset("charades_timelens", tmp_path, **WISH)
    assert [q.id for q in task[0].questions] == ["a @ 0.5-1.5"]
    assert [bad.item for bad in task.left_out] == [
        *(f"query {number} of video AB" for number in (1, 2)),
        "a @ 0.5-1.5",
        *(f"query {number} of video AB" for number in (4, 5)),
        "CD",
        "EF",
    ]
    write(tmp_path, "charades.json", [1])
    with pytest.raises(JvidpruneError, match="must be one object"):
        open_dataset("charades_timelens", tmp_path, **WISH)


def test_questions_split_from_their_options():
    assert split_options("What?\n(A) a\n(B) b\n more") == ("What?", ("a", "b\n more"))
    assert split_options("Who?\nB) b\nA) a\nB) c") == ("Who?\nB) b", ("a", "c"))
    assert split_options("Why?\nA. a") == ("Why?\nA. a", ())
    assert split_options("Why?\nA: a\nB: b\nA.I. is it") == ("Why?", ("a", "b\nA.I. is it"))


def test_the_authors_files_of_lvbench_and_vcgbench(tmp_path, film):
    qa = [{"uid": "7", "question": listed("({}) {}"), "answer": "C"}, {"uid": "8", "question": "?", "answer": "A"}]
    write(tmp_path / "lv", "video_info.meta.jsonl", [{"key": "ab", "type": "sport", "qa": qa}])
    place(tmp_path / "lv", film, "videos/ab.mp4")
    task = open_dataset("lvbench", tmp_path / "lv", **WISH)
    assert [(q.id, q.answer, q.text, q.category) for q in task[0].questions] == [("7", "C", "What barks?", "sport")]
    assert [bad.item for bad in task.left_out] == ["question 1 of row 0"]
    for part in ("generic", "temporal"):
        write(tmp_path / "vcg", f"{part}_qa.json", [{"Q": part, "A": "yes", "video_name": "v"}])
    write(tmp_path / "vcg", "consistency_qa.json", [{"Q1": "one?", "Q2": "two?", "A": "yes", "video_name": "v"}])
    place(tmp_path / "vcg", film, "v.mp4")
    questions = open_dataset("vcgbench", tmp_path / "vcg", **WISH)[0].questions
    assert [q.id for q in questions] == ["Generic-0", "Temporal-0", "Consistency-0-1", "Consistency-0-2"]
    assert [q.prompt() for q in questions] == ["generic", "temporal", "one?", "two?"]


def test_a_video_that_an_object_names_twice_is_listed_twice(tmp_path, film):
    LAYOUTS["charades_timelens"](tmp_path, film)
    path = tmp_path / "charades-timelens.json"
    known = json.loads(path.read_text())
    again = {"queries": ["a dog barks", "it runs"], "spans": [[0.5, 1.5], [0, 1]]}
    path.write_text('{"AB": ' + json.dumps(again) + ", " + json.dumps(known)[1:])
    task = open_dataset("charades_timelens", tmp_path, **WISH)
    assert [q.text for q in task[0].questions] == ["a dog barks", "it runs", "it sleeps"]
    assert [bad.item for bad in task.left_out if not bad.missing] == ["a dog barks @ 0.5-1.5"]
