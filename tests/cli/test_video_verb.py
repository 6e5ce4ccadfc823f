"""`jvidprune video`: what is seen of a file, in words and as JSON, and what `ask` would say of it."""

import json

import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.films import encode_with, numbered
from helpers.kinds import CASES, RIGHT
from PIL import Image

from jvidprune.models.checkpoint.load import read_config
from jvidprune.models.embedded import EMBEDDED
from jvidprune.video import decode


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_the_json_says_what_a_file_holds(run, name):
    code, out, err = run("video", CASES / name, "--json")
    record = json.loads(out)
    frames, duration, fps, first, last, stream = RIGHT[name]
    assert (code, err) == (0, "")
    assert (record["frames"], record["stream"], record["size"]) == (frames, stream, [160, 96])
    assert (record["rotation"], record["mirrored"]) == (0, name == "hflip.mp4")
    assert [record["duration"], record["fps"]] == pytest.approx([duration, fps], rel=1e-3)
    assert [record["first"], record["last"]] == pytest.approx([first, last], abs=1e-6)
    assert record["sampled"] is None


def test_a_wish_gives_numbers_times_and_pictures(run, tmp_path):
    folder = tmp_path / "new" / "frames"
    code, out, _ = run("video", CASES / "coverfirst.mkv", "--frames", 4, "--json", "--save", folder)
    sampled = json.loads(out)["sampled"]
    assert code == 0
    assert (sampled["family"], sampled["numbers"]) == ("llava_onevision", [0, 19, 39, 59])
    assert sampled["times"] == pytest.approx([0.2, 2.1, 4.1, 6.1])
    assert sampled["seconds"] == pytest.approx([0.0, 1.9, 3.9, 5.9])
    saved = sorted(folder.iterdir())
    assert [path.name for path in saved] == ["frame-00.png", "frame-19.png", "frame-39.png", "frame-59.png"]
    clip = decode.read_frames(CASES / "coverfirst.mkv", indices=[0, 19, 39, 59])
    assert all(
        np.array_equal(np.asarray(Image.open(path)), frame) for path, frame in zip(saved, clip.frames, strict=True)
    )
    code, out, _ = run("video", CASES / "mr.webm", "--fps", 1, "--json")
    assert len(json.loads(out)["sampled"]["numbers"]) == 6


def test_a_folder_gives_its_familys_rule_without_its_weights(run, tmp_path):
    right = {
        "qwen2_5_vl": np.linspace(0, 59, 8).round(),  # qwen-vl-utils reads an even number of frames
        "qwen3_vl": np.linspace(0, 59, 8).round(),
        "llava_video": np.floor(np.linspace(0, 59, 7)),
        "molmo2": np.floor(np.linspace(0, 59, 7)),  # two a second would be 13, which is more
    }
    for family, numbers in right.items():
        folder = tiny_checkpoints.write(family, tmp_path / family)
        for weights in folder.glob("*.safetensors*"):
            weights.unlink()
        code, out, err = run("video", CASES / "base.mp4", "--frames", 7, "--model", folder, "--json")
        assert (code, err) == (0, "")
        sampled = json.loads(out)["sampled"]
        assert (sampled["family"], sampled["numbers"]) == (family, numbers.astype(int).tolist())
        assert sampled["times"] == pytest.approx((numbers / 10).tolist())


def test_a_convention_gives_its_rule(run):
    words = ("video", CASES / "base.mp4", "--frames", 4, "--json", "--convention")
    sampled = {name: json.loads(run(*words, name)[1])["sampled"] for name in ("released", "transformers")}
    assert {name: one["convention"] for name, one in sampled.items()} == {name: name for name in sampled}
    assert sampled["released"]["numbers"] == [0, 19, 39, 59]
    assert sampled["transformers"]["numbers"] == [0, 15, 30, 45]


def test_the_table_says_it_in_words(run):
    code, out, _ = run("video", CASES / "hflip.mp4", "--frames", 3)
    text = " ".join(out.split())
    assert code == 0
    for words in (
        "60 frames",
        "160 x 96 pixels, mirrored",
        "6.000 s, 10 frames a second",
        "0 (0.000 s)",
        "59 (5.900 s)",
    ):
        assert words in text
    assert "the one marked as the default" in run("video", CASES / "coverfirst.mkv")[1]
    assert "no constant rate" in run("video", CASES / "mr.webm")[1]
    assert run("video", CASES / "drop.avi", "--quiet")[1] == "11\n"


def test_damage_is_told_as_ask_tells_it(run, tmp_path):
    whole = encode_with(tmp_path / "film.mp4", numbered(), g="10").read_bytes()
    middle = bytearray(whole)
    start = middle.index(b"mdat") + (len(middle) - middle.index(b"mdat")) // 2
    middle[start : start + 400] = np.random.default_rng(1).bytes(400)
    files = {"cut.mp4": whole[: len(whole) * 2 // 3], "empty.mp4": b"", "scratched.mp4": bytes(middle)}
    files["noise.mkv"] = np.random.default_rng(0).bytes(3000)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    Image.fromarray(numbered(1)[0]).save(tmp_path / "still.png")
    for name in (*files, "missing.mp4", ""):
        code, out, err = run("video", tmp_path / name)
        assert (code, out) == (2, ""), name
        assert err == run("ask", tmp_path / name, "What?", "--quiet")[2], name
    code, out, _ = run("video", tmp_path / "still.png", "--json", "--frames", 2)
    sampled = json.loads(out)["sampled"]
    assert (code, json.loads(out)["picture"], sampled["numbers"]) == (0, True, [0])
    # The whole as one tile, then the map of its tiles.
    assert (len(sampled["maps"]), sampled["maps"][0]) == (2, [1, *read_config(EMBEDDED)[1].unpooled_grid])
    assert sampled["tokens"] == sum(h * w for _, h, w in sampled["maps"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--frames", "0"), "at least one frame"),
        (("--fps", "-1"), "fps must be above 0"),
        (("--save", "/proc/foo"), "cannot write"),
        (("--limits", "frames=2", "--frames", "3"), "more than the 2 allowed"),
        (("--model", "/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_impossible_wishes_end_in_a_sentence(run, words, sentence):
    code, out, err = run("video", CASES / "base.mp4", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sentence in err


def test_saved_frames_are_upright(run, tmp_path):
    run("video", CASES / "hflip.mp4", "--frames", 1, "--save", tmp_path)
    plain = decode.read_frames(CASES / "base.mp4", indices=[0]).frames[0]
    (path,) = tmp_path.iterdir()
    assert np.array_equal(np.asarray(Image.open(path)), plain[:, ::-1])
