"""What a sweep does with items that are bad, mended, added or gone, and what its records belong to."""

import contextlib
import json
import shutil
import sys

import numpy as np
import pytest

from jvidprune import cli
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.export import export
from jvidprune.video.encode import write_mp4

WORDS = ["--methods", "random", "--ratios", "0.25", "--frames", "8", "--max-new-tokens", "1"]
WORDS += ["--controls", "none"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Twelve small clips with one question each."""
    folder = tmp_path_factory.mktemp("exported")
    export(Procedural("test", clips=12, questions=1), folder, scale=1)
    return folder


@pytest.fixture
def data(exported, tmp_path):
    """A copy of them that a test may spoil."""
    return shutil.copytree(exported, tmp_path / "data", ignore=shutil.ignore_patterns("lmms_eval"))


@pytest.fixture
def run(home, model, tmp_path, capfd, monkeypatch):
    """Runs the verb with --json and returns (exit code, its record, what it says on stderr)."""

    def call(data, *words, out=tmp_path / "out"):
        monkeypatch.setenv("JVIDPRUNE_CACHE", str(home))
        given = ["jvidprune", "sweep", "--model", str(model), "--task", "exported", "--data", str(data), *WORDS, *words]
        monkeypatch.setattr(sys, "argv", [*given, "--out", str(out), "--json"])
        code = 0
        capfd.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        said, error = capfd.readouterr()
        record = {}
        with contextlib.suppress(ValueError):
            record = json.loads(said)
        return code, record, error

    return call


def samples(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def video(data, number):
    return data / "videos" / f"test-{number}.mp4"


def spoil(data):
    """Clip 0 is cut, 3 empty, 6 missing, and 9 has three frames."""
    whole = video(data, 0).read_bytes()
    video(data, 0).write_bytes(whole[: len(whole) * 2 // 3])
    video(data, 3).write_bytes(b"")
    video(data, 6).unlink()
    frames = Procedural("test", clips=12).clip(9).frames
    write_mp4(video(data, 9), frames[:3], 1.0)


@pytest.mark.slow
def test_bad_videos_are_listed_and_mending_one_adds_it_and_changes_nothing_else(exported, data, run, tmp_path):
    spoil(data)
    out = tmp_path / "out"
    code, record, _ = run(data)
    assert code == 0
    assert {bad["item"] for bad in record["left_out"]} == {f"videos/test-{i}.mp4" for i in (0, 3, 6)}
    for bad in record["left_out"]:
        assert set(bad) == {"item", "file", "reason"}
        assert bad["file"] == str(data / bad["item"])
        assert bad["item"].rsplit("/", 1)[-1] in bad["reason"]
        assert bad["reason"].endswith(".")
    page = (out / "report.html").read_text()
    assert "3 left out" in page
    assert all(bad["item"] in page for bad in record["left_out"])
    first = samples(out)
    assert {r["clip"] for r in first} == {f"videos/test-{i}.mp4" for i in (1, 2, 4, 5, 7, 8, 9, 10, 11)}
    assert {r["visual"] for r in first if r["clip"] == "videos/test-9.mp4"} < {r["visual"] for r in first}
    table = [line for line in (out / "table.csv").read_text().splitlines() if line.startswith("none,")]
    assert ",9," in table[0]

    # Again: the bad ones are tried again, and nothing changes.
    before = (out / "samples.jsonl").read_bytes()
    code, again, _ = run(data)
    assert (code, again["resumed_samples"], again["left_out"]) == (0, len(first), record["left_out"])
    assert (out / "samples.jsonl").read_bytes() == before

    shutil.copy(video(exported, 0), video(data, 0))
    code, mended, _ = run(data)
    assert code == 0
    assert {bad["item"] for bad in mended["left_out"]} == {f"videos/test-{i}.mp4" for i in (3, 6)}
    after = (out / "samples.jsonl").read_bytes()
    assert after.startswith(before)
    assert {json.loads(line)["clip"] for line in after[len(before) :].splitlines()} == {"videos/test-0.mp4"}
    assert mended["resumed_samples"] == len(first)

    # The missing one comes, another goes: its records stay on the disk and out of the table.
    shutil.copy(video(exported, 6), video(data, 6))
    video(data, 1).unlink()
    code, moved, _ = run(data)
    assert {bad["item"] for bad in moved["left_out"]} == {f"videos/test-{i}.mp4" for i in (1, 3)}
    assert (out / "samples.jsonl").read_bytes().startswith(after)
    assert moved["samples"] == mended["samples"]
    # Back again: nothing is asked anew.
    shutil.copy(video(exported, 1), video(data, 1))
    code, back, _ = run(data)
    assert back["resumed_samples"] == back["samples"] == mended["samples"] + 3


def test_strict_stops_at_the_first_bad_video(data, run):
    spoil(data)
    code, _, error = run(data, "--strict")
    assert code == 2
    assert "test-6.mp4 is missing" in error
    video(data, 6).write_bytes(b"")
    code, _, error = run(data, "--strict")
    assert code == 2
    assert "test-0.mp4" in error
    assert error.count("error:") == 1


def test_if_all_are_bad_the_sweep_says_so_in_one_sentence(data, run):
    for number in range(12):
        video(data, number).write_bytes(b"no video")
    code, _, error = run(data)
    assert code == 2
    assert "nothing of exported could be answered (11 more are left out, too): " in error
    assert "videos/test-0.mp4 cannot be read" in error
    assert error.count("error:") == 1
    shutil.rmtree(data / "videos")
    code, _, error = run(data)
    assert code == 2
    assert "none of the 12 videos of exported lies below" in error


@pytest.mark.slow
def test_a_replaced_video_is_asked_again_and_the_others_are_not(exported, data, run, tmp_path):
    _, first, _ = run(data, "--clips", "3")
    _, more, _ = run(data, "--clips", "4")
    assert more["resumed_samples"] == first["samples"]
    shutil.copy(video(exported, 7), video(data, 1))
    _, record, _ = run(data, "--clips", "4")
    assert record["resumed_samples"] == more["samples"] - 3
    assert record["samples"] == more["samples"]
    clips = [r["clip"] for r in samples(tmp_path / "out")]
    assert clips.count("videos/test-1.mp4") == 2 * clips.count("videos/test-0.mp4")


@pytest.mark.slow
def test_methods_ratios_and_questions_are_added_to_what_is_there(data, run, tmp_path):
    _, first, _ = run(data, "--clips", "2")
    kept = (tmp_path / "out" / "samples.jsonl").read_bytes()
    _, wider, _ = run(data, "--clips", "2", "--methods", "random,uniform", "--ratios", "0.5,0.25")
    assert wider["resumed_samples"] == first["samples"] == 6
    assert wider["samples"] == 2 * (2 + 4)
    assert (tmp_path / "out" / "samples.jsonl").read_bytes().startswith(kept)
    # A question that is worded anew is asked again, alone.
    path = data / "annotations.json"
    notes = json.loads(path.read_text())
    notes["questions"][0]["prompt"] += " Look closely."
    path.write_text(json.dumps(notes))
    _, record, _ = run(data, "--clips", "2")
    assert record["resumed_samples"] == record["samples"] - 3
    # The first wish gives the first table again, whatever else there is.
    notes["questions"][0]["prompt"] = notes["questions"][0]["prompt"].removesuffix(" Look closely.")
    path.write_text(json.dumps(notes))
    _, again, _ = run(data, "--clips", "2")
    assert again["resumed_samples"] == again["samples"] == first["samples"]
    strip = ("accuracy", "kept", "prompt", "questions", "relative")
    assert [[row[k] for k in strip] for row in again["rows"]] == [[row[k] for k in strip] for row in first["rows"]]


WRONG = {
    "no answer": (lambda row: row.pop("answer"), "has no answer"),
    "answer of no option": (lambda row: row.update(kind="choice", options=["a", "b"], answer="Z"), "'Z' is none of"),
    "options are a text": (lambda row: row.update(options="abc"), "'abc' is no list"),
    "kind": (lambda row: row.update(kind="essay"), "kind 'essay'"),
    "prompt": (lambda row: row.update(prompt=""), "its prompt is"),
    "video": (lambda row: row.update(video=7), "its video is no text"),
    "half a character": (lambda row: row.update(question="\ud800"), "no text that can be written"),
    "yes or no": (lambda row: row.update(kind="yes_no", answer="perhaps"), "neither yes nor no"),
}


def test_wrong_annotations_are_listed_and_the_others_asked(data, run):
    path = data / "annotations.json"
    notes = json.loads(path.read_text())
    rows = notes["questions"]
    for row, (spoil_row, _) in zip(rows, WRONG.values(), strict=False):
        spoil_row(row)
    rows[8:8] = [dict(rows[-1]), "no object", 3, None]
    path.write_text(json.dumps(notes))
    code, record, _ = run(data, "--clips", "2")
    assert code == 0
    reasons = [bad["reason"] for bad in record["left_out"]]
    assert len(reasons) == len(WRONG) + 4
    for (_, says), reason in zip(WRONG.values(), reasons, strict=False):
        assert says in reason
        assert str(path) in reason
    assert sum("is no object" in reason for reason in reasons) == 3
    assert sum("is there twice" in reason for reason in reasons) == 1
    assert all(bad["file"] for bad in record["left_out"])
    code, _, error = run(data, "--strict")
    assert code == 2
    assert "row 0" in error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read the annotations"),
        ("[", "cannot read the annotations"),
        ("3", "must be a list of objects"),
        ("{}", "must be a list of objects under 'questions'"),
        ('{"questions": {}}', "must be a list of objects under 'questions'"),
        ('{"questions": []}', "hold no question"),
        ("[]", "hold no question"),
        ('{"questions": [{"id": "a"}]}', "row 0 of"),
        ('{"questions": [1, 2]}', "1 more is left out, too"),
    ],
)
def test_annotations_of_which_nothing_can_be_asked_say_why(data, run, text, says):
    (data / "annotations.json").write_text(text)
    code, _, error = run(data)
    assert code == 2
    assert says in error
    assert "0 videos" not in error
    assert error.count("error:") == 1


@pytest.mark.parametrize("methods", [",", " ", ",,", " , "])
def test_no_method_is_no_sweep(data, run, methods):
    code, _, error = run(data, "--methods", methods)
    assert code == 2
    assert "at least one method" in error


def test_frames_of_other_clips_are_not_read_again(data, run, monkeypatch):
    """What is there is known by the file, not by reading it."""
    from jvidprune.evals.datasets import task as module

    run(data, "--clips", "3")
    read = []
    whole = module.read_clip
    monkeypatch.setattr(module, "read_clip", lambda path, **wish: read.append(path.name) or whole(path, **wish))
    frames = np.random.default_rng(0).integers(0, 256, (8, 84, 84, 3), np.uint8)
    write_mp4(video(data, 2), frames, 1.0)
    run(data, "--clips", "3")
    # The examples of the report are read to be drawn.
    assert read[0] == "test-2.mp4"
