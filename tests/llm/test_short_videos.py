"""Videos of 1 to 9 frames on every family, from files to answers, through every door: nothing ends for being short."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.lmms_requests import ask
from PIL import Image

from jvidprune.cli.sweep import METHODS
from jvidprune.costs.fits import check_question
from jvidprune.errors import JvidpruneError
from jvidprune.integrations.lmms_args import ModelArgs
from jvidprune.integrations.lmms_requests import Adapter
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import family as families
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.export import export
from jvidprune.serve.compare import SideBySide
from jvidprune.training.clips import open_clips
from jvidprune.video.encode import write_mp4
from jvidprune.video.limits import Limits

RATE = 4.0


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A file of every length, each frame of noise of its own."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("films")
    lengths = (*range(1, 10), 24)
    return {t: write_mp4(folder / f"{t}.mp4", rng.integers(0, 256, (t, 48, 64, 3), np.uint8), RATE) for t in lengths}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_checkpoints.write(family, root / family) for family in families.names()}


@pytest.fixture(scope="module")
def loaded(folders):
    return {family: VideoLLM.load(folder) for family, folder in folders.items()}


def expected(family, total, frames=None, fps=None):
    """(frames, grid frames) at 4 frames a second, for the wishes asked here."""
    most = total if frames is None else min(frames, total)
    if fps is not None:
        # All of 4 a second and more; 2 a second give every other one, Molmo2 the last one as well.
        every = (total + 1) // 2
        count = {
            "llava_onevision": min(most, max(1, int(total / 4 * fps))),
            "internvl": min(most, max(1, int(total / 4 * fps))),
            "llava_video": min(most, every if fps == 2 else total),
            "molmo2": min(most, total // 2 + 1),
        }.get(family, min(most, max(4, int(total / 4 * fps))))
    else:
        count = min(most, total // 2 + 1) if family == "molmo2" else most
        if family == "video_llama_3" and frames is None:
            # A frame a second, four at least.
            count = min(max(4, total // 4), total)
        if family.startswith("qwen") and frames is not None:
            count = min(2 * round(frames / 2), total)
    if family.startswith("qwen"):
        count -= count % 2
    if family.startswith("qwen"):
        count = max(count, 2)
        return count, (count + 1) // 2
    return count, count


WISHES = ({}, {"frames": 1}, {"frames": 3}, {"frames": 8}, {"fps": 2}, {"fps": 30}, {"fps": 30, "frames": 4})


@pytest.mark.parametrize("family", families.names())
@pytest.mark.slow
def test_every_length_gives_its_frames(loaded, films, family):
    llm = loaded[family]
    for total in range(1, 10):
        for wish in WISHES:
            clip = llm.sample(films[total], **wish)
            count, steps = expected(family, total, **wish)
            assert len(clip.frames) == len(clip.indices) == len(clip.timestamps) == count, (total, wish)
            assert clip.total == total
            pixels = llm.pixels(clip.frames)
            assert (len(pixels) if llm.settings.grid is None else pixels.grid[0]) == steps
    # Any default and any ceiling above 24 is clamped to 24 frames, on Molmo2 to two a second; VideoLLaMA3 has a rate.
    for wish in ({}, {"frames": 25}, {"frames": 1000}, {"frames": 10**6}):
        count = 6 if (family, wish) == ("video_llama_3", {}) else 24
        assert len(llm.sample(films[24], **wish).indices) == (13 if family == "molmo2" else count)


def asked(run, film, folder, *words):
    options = ("--reducer", "uniform", "--ratio", 0.5, "--max-new-tokens", 2, "--json")
    code, out, err = run("ask", film, "What?", "--model", folder, *options, *words)
    assert (code, err) == (0, "")
    return json.loads(out)


SHORT = ((1, {}), (5, {"fps": 30, "frames": 4}))
LONG = [(total, wish) for total in range(1, 10) for wish in WISHES]


@pytest.mark.parametrize("cases", [SHORT, pytest.param(LONG, marks=pytest.mark.long)], ids=["few", "all"])
@pytest.mark.parametrize("family", families.names())
@pytest.mark.slow
def test_every_family_answers(run, loaded, folders, films, family, cases):
    tokens = loaded[family].encode(np.zeros((2, 48, 64, 3), np.uint8), fps=1.0).tokens.layout().tokens
    for total, wish in cases:
        words = [word for name, value in wish.items() for word in (f"--{name}", value)]
        record = asked(run, films[total], folders[family], *words)
        assert record["visual"] == expected(family, total, **wish)[1] * tokens
        assert record["kept"] == (record["visual"] + 1) // 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Three clips of the procedural benchmark, two of which are replaced by ones of 1 and 3 frames."""
    folder = tmp_path_factory.mktemp("exported")
    export(Procedural("test", clips=3, questions=1), folder, scale=1)
    rng = np.random.default_rng(1)
    for number, length in enumerate((1, 3)):
        path = folder / "videos" / f"test-{number}.mp4"
        assert path.exists()
        write_mp4(path, rng.integers(0, 256, (length, 84, 84, 3), np.uint8), 1.0)
    return folder


SWEPT = {"qwen3_vl", "molmo2"}
"""Families whose sweep is part of the default run; those of the others are longer runs."""


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in SWEPT else pytest.mark.long) for name in families.names()]
)
@pytest.mark.slow
def test_a_sweep_over_clips_of_any_length_ends_with_its_report(run, folders, exported, tmp_path, family):
    words = ("--task", "exported", "--data", exported, "--model", folders[family], "--out", tmp_path / "run")
    code, out, err = run(
        "sweep", *words, "--methods", "uniform", "--ratios", 0.5, "--controls", "none", "--max-new-tokens", 1, "--json"
    )
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["complete"]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    # The whole video, the text alone, and one method at one ratio.
    assert len(samples) == record["samples"] == 3 * 3
    visual = {row["clip"]: row["visual"] for row in samples if row["method"] == "uniform"}
    tokens = visual["videos/test-0.mp4"] // expected(family, 1)[1]
    for number, length in enumerate((1, 3, 8)):
        # A second between frames.
        frames = length if family in ("molmo2", "video_llama_3") else expected(family, length)[0]
        steps = -(-frames // 2) if family.startswith("qwen") else frames
        assert visual[f"videos/test-{number}.mp4"] == steps * tokens
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("family", families.names())
@pytest.mark.slow
def test_clips_of_any_length_share_a_batch_in_lmms_eval(folders, films, family):
    rng = np.random.default_rng(2)
    pictures = [Image.fromarray(frame) for frame in rng.integers(0, 256, (3, 48, 64, 3), np.uint8)]
    documents = {"task": {"test": [{"visual": [str(films[t])]} for t in (1, 6, 3, 2)] + [{"visual": pictures}]}}
    given = {"pretrained": str(folders[family]), "reducer": "uniform", "ratio": 0.5, "batch_size": 8}
    adapter = Adapter(ModelArgs.read(given | {"max_new_tokens": 2}))
    found = list(adapter.generate([ask("What?", doc) for doc in range(5)], documents))
    assert len(found) == 5
    # Padding changes nothing: each is answered as it is alone.
    alone = Adapter(ModelArgs.read(given | {"max_new_tokens": 2, "batch_size": 1}))
    assert [one.text for one in found] == [
        one.text for one in alone.generate([ask("What?", doc) for doc in range(5)], documents)
    ]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "molmo2"])
@pytest.mark.slow
def test_the_page_and_the_drawing_take_one_frame(run, loaded, folders, films, tmp_path, family):
    llm = loaded[family]
    comparer = SideBySide(llm, source=str(folders[family]), limits=Limits(), max_new_tokens=2)
    found = comparer.compare(films[1], "What?", ["uniform", "visionzip"], 0.5)
    assert [column.refused for column in found.columns] == ["", ""]
    assert len(found.frames) == 1
    out = tmp_path / "drawn.html"
    words = ("--reducer", "uniform", "--ratio", 0.5, "--out", out, "--json")
    code, printed, err = run("reduce", films[1], "--model", folders[family], *words)
    assert (code, err) == (0, "")
    assert json.loads(printed)["frames"] == 1
    assert out.stat().st_size > 1000


def test_memory_is_told_of_the_frames_there_are(folders, films):
    """A default of 128 frames costs a short video nothing."""
    for family, folder in folders.items():
        needs = [
            check_question(folder, film, "?", reducer="none", ratio=1.0, dtype="float32", **wish).features
            for film, wish in (
                *((films[1], {}), (films[8], {}), (films[8], {"frames": 4})),
                *((films[24], {"fps": 0.5}), (films[24], {})),
            )
        ]
        steps = [expected(family, 1)[1], expected(family, 8)[1], expected(family, 8, frames=4)[1]]
        assert [need * steps[0] for need in needs[:3]] == [needs[0] * step for step in steps]
        assert needs[3] < needs[4], family


def test_a_refusal_names_the_file_and_what_is_allowed(films):
    from jvidprune.video.decode import read_frames

    for wish, says in (
        ({"num_frames": 12, "rule": "qwen_utils"}, "12 frames of a video of 9; it takes 2 to 8"),
        ({"num_frames": 12, "rule": "hf_default"}, "12 frames of a video of 9; it takes 1 to 9"),
        ({"indices": [9]}, "frame 9 is outside the video, which has frames 0 to 8"),
    ):
        with pytest.raises(JvidpruneError, match=says) as error:
            read_frames(films[9], **wish)
        assert str(error.value).startswith(str(films[9]))


def test_what_a_folder_samples_reaches_the_answer(run, folders, films, tmp_path):
    folder = shutil.copytree(folders["qwen3_vl"], tmp_path / "model")
    (folder / "video_preprocessor_config.json").write_text('{"do_sample_frames": true, "fps": 2, "max_frames": 6}')
    # Six seconds at two a second are 12 frames, at most 6: three grid frames.
    tokens = asked(run, films[24], folder, "--frames", 2)["visual"]
    assert asked(run, films[24], folder)["visual"] == 3 * tokens
    (folder / "video_preprocessor_config.json").write_text('{"fps": 2, "num_frames": 6}')
    code, out, err = run("ask", films[24], "?", "--model", folder, "--quiet")
    assert (code, out) == (2, "")
    assert err == (
        "error: the folder's video processor has num_frames 6 and fps 2; it can sample by one of them alone.\n"
    )


def still(path):
    picture = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(picture).save(path)
    return path


@pytest.mark.parametrize("name", ["still.png", "still.jpg", "still.gif", "still.webp", "still.mp4.png", "named.mp4"])
@pytest.mark.parametrize("family", families.names())
def test_a_picture_is_one_frame_or_a_sentence(loaded, tmp_path, family, name):
    path = still(tmp_path / name) if name != "named.mp4" else still(tmp_path / "x.png").rename(tmp_path / name)
    llm = loaded[family]
    for wish in ({}, {"frames": 9}, {"fps": 30}):
        clip = llm.sample(path, **wish)
        assert clip.picture
        assert set(clip.indices.tolist()) == {0}
    # A family of one's own that says nothing of pictures.
    other = dataclasses.replace(llm, settings=dataclasses.replace(llm.settings, pictures=False))
    with pytest.raises(JvidpruneError, match=r"is a picture, not a video, .* give a video, which may have one frame"):
        other.sample(path)


def test_a_picture_is_said_to_be_one(run, folders, tmp_path):
    path, words = still(tmp_path / "still.png"), ("--reducer", "uniform", "--ratio", 0.5, "--max-new-tokens", 2)
    code, out, err = run("ask", path, "?", "--model", folders["qwen2_5_vl"], *words)
    assert code == 0
    assert "is a picture: it is read by the family's own path of pictures" in " ".join((out + err).split())


@pytest.mark.long
@pytest.mark.parametrize("family", families.names())
def test_the_readme_s_own_sweep_runs_with_every_method(run, folders, tmp_path, family):
    code, _, err = run("bench", "export", tmp_path / "clips", "--clips", 2)
    assert code == 0, err
    words = ("--task", "exported", "--data", tmp_path / "clips", "--model", folders[family], "--out", tmp_path / "run")
    code, out, err = run("sweep", *words, "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["complete"]
    methods = {row["method"] for row in record["rows"]}
    # Eight frames are four grid frames of the Qwen models, one fewer than DyCoke's reference can take.
    missing = {"dycoke"} if family.startswith("qwen") else set()
    assert set(METHODS.split(",")) - missing <= methods
    assert missing.isdisjoint(methods)
    assert set(record["refused"]) >= missing


@pytest.mark.parametrize("family", families.names())
def test_training_reads_as_many_frames_of_a_short_video(loaded, films, tmp_path, family):
    """Its rows have one size."""
    lines = ["video,question,answer,qid,type,a0,a1,a2,a3,a4"]
    for number, length in enumerate((1, 5, 9)):
        (tmp_path / "NExTVideo").mkdir(exist_ok=True)
        shutil.copy(films[length], tmp_path / "NExTVideo" / f"{number}.mp4")
        lines.append(f"{number},what is it,1,{number},DO,cat,dog,bird,fish,cow")
    (tmp_path / "val.csv").write_text("\n".join(lines))
    sizes = {"frames": 7, "held_frames": 6, "questions": 8, "held": 1}
    learned, held = open_clips(loaded[family], "nextqa", tmp_path, **sizes)
    assert [learned[i].load().indices.tolist() for i in range(2)] == [[0] * 7, [0, 0, 1, 2, 2, 3, 4]]
    assert len(held[0].load().indices) == 6
