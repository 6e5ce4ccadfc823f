"""Loaders of published benchmarks, on small files in their layouts with generated videos."""

import json

import pytest
from helpers.layouts import (
    LAYOUTS,
    OPTIONS,
    longvideobench,
    mvbench,
    place,
    write,
)

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets import names, open_dataset
from jvidprune.evals.datasets.videos import VideoIndex, part_indices, read_clip
from jvidprune.procedural.clips import ClipSpec, render
from jvidprune.video.limits import Limits

WISH = {"frames": 4, "rule": "llava_video_force"}


@pytest.fixture(scope="module")
def film():
    return render(ClipSpec(seed=1, frames=12, size=(48, 64))).frames


EXPECTED = {
    # (clips, answers of the first clip, categories, missing, a line of the first prompt)
    "videomme": (1, "BD", ("short",), 1, "The best answer is:"),
    "mvbench": (3, "B", ("action_sequence", "episodic_reasoning"), 2, "Only give the best option."),
    "egoschema": (1, "B", ("egoschema",), 1, "Answer with the option's letter from the given choices directly."),
    "longvideobench": (1, "B", ("15 s",), 1, "Answer with the option's letter from the given choices directly."),
    "mlvu": (1, "B", ("findNeedle",), 1, "Best option: ("),
    "nextqa": (1, "B", ("temporal",), 1, "Answer with the option's letter from the given choices directly."),
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
        assert any("B" in text and text.endswith("a dog") for text in first.prompt().splitlines())
        assert task.chance(first) == pytest.approx(1 / len(first.options))
    clip = item.load()
    assert clip.frames.shape == (4, 48, 64, 3)
    assert len({q.id for i in range(len(task)) for q in task[i].questions}) == sum(
        len(task[i].questions) for i in range(clips)
    )
    assert json.loads(json.dumps(task.fingerprint())) == task.fingerprint()


@pytest.mark.parametrize("name", names())
def test_one_wrong_row_costs_no_other(tmp_path, film, name):
    from jvidprune.evals.datasets.annotations import read_rows

    LAYOUTS[name](tmp_path, film)
    before = open_dataset(name, tmp_path, **WISH)
    path = min(path for path in tmp_path.rglob("*") if path.suffix in (".json", ".parquet"))
    rows = read_rows(path)
    field = "questions" if name.startswith("eventhallusion") else "question"
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
    with pytest.raises(JvidpruneError, match="has no candidates, answer; its columns are video, question"):
        open_dataset("mlvu", tmp_path, **WISH)
    write(tmp_path, "json/2_needle.json", [{"video": "x.mp4", "question": "?", "candidates": ["a"], "answer": "b"}])
    with pytest.raises(JvidpruneError, match="'b' is none of the options"):
        open_dataset("mlvu", tmp_path, **WISH)
    write(tmp_path, "json/2_needle.json", [{"video": "x.mp4", "question": "?", "candidates": ["a"], "answer": "a"}])
    with pytest.raises(JvidpruneError, match="none of the 1 videos"):
        open_dataset("mlvu", tmp_path, **WISH)
