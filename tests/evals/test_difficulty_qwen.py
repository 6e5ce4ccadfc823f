"""The questions that smaller frames get wrong, of a run on a Qwen2.5-VL folder: found again from its answers."""

import csv
import json

import numpy as np
import pytest
from helpers import layouts, tiny_checkpoints
from helpers.sweeps import sweep
from safetensors.numpy import load_file, save_file

from jvidprune.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

LETTERS = "ABCD"
ASKED = [f"What is {what}?" for what in ("it", "there", "that thing", "in front", "behind it", "the first one")]


@pytest.fixture(scope="module")
def folder(home):
    """Random weights, and embeddings of four letters that are so long that nearly every answer is one of them."""
    found = tiny_checkpoints.write("qwen2_5_vl", home / "qwen")
    tensors = load_file(found / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    tokenizer = load_tokenizer(found)
    for letter in LETTERS:
        (row,) = tokenizer.encode(letter)
        tensors[name][row] *= 30
    save_file(tensors, found / "model.safetensors")
    return found


def write_benchmark(data, answers):
    """Two films of noise with the same questions, in the layout of `jvidprune bench export`."""
    rows = []
    for clip in range(2):
        rng = np.random.default_rng(clip)
        layouts.place(data, rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8), f"videos/{clip}.mp4")
        for number, text in enumerate(ASKED):
            key = f"{clip}-{number}"
            row = {"id": key, "video": f"videos/{clip}.mp4", "category": "noise", "kind": "choice", "question": text}
            row |= {"options": list("wxyz"), "answer": answers.get(key, "A"), "prompt": f"{text} A to D:"}
            rows.append(row)
    (data / "annotations.json").write_text(json.dumps({"questions": rows}))


def answers(folder):
    """What each method said to each question."""
    said = {}
    for row in map(json.loads, (folder / "samples.jsonl").read_text().splitlines()):
        said.setdefault(row["method"], {})[row["question"]] = row["prediction"]
    return said


def test_hard_questions_on_a_qwen_folder_are_those_that_smaller_frames_get_wrong(home, folder, tmp_path):
    data = tmp_path / "data"
    write_benchmark(data, {})
    words = ["--task", "exported", "--data", data, "--methods", "random", "--controls", "downscale,pool_space"]
    words += ["--ratios", "0.1", "--clips", "2", "--frames", "2", "--max-new-tokens", "1"]
    said = answers(sweep(home, folder, tmp_path / "first", *map(str, words)))
    # Right is what the unpruned model says, but for one question.
    whole = said["none"]
    right = {key: text if text in LETTERS else "A" for key, text in whole.items()}
    right |= {"0-0": next(letter for letter in LETTERS if letter != whole["0-0"])}
    write_benchmark(data, right)
    out = sweep(home, folder, tmp_path / "second", *map(str, words))
    assert answers(out) == said
    known = [key for key in right if whole[key] == right[key]]
    groups = [[key for key in known if (said["downscale"][key] == right[key]) == easy] for easy in (False, True)]
    assert all(groups), said
    found = {row["method"]: row for row in csv.DictReader((out / "hard.csv").open())}
    assert set(found) == {"no video", "random", "pool_space"}
    for method, row in found.items():
        hard, easy = (np.mean([said[method][key] == right[key] for key in group]) for group in groups)
        assert (row["control"], int(row["hard"]), int(row["easy"])) == ("downscale", *map(len, groups))
        assert (float(row["accuracy"]), float(row["on_easy"])) == pytest.approx((hard, easy), abs=1e-5)
    page = (out / "report.html").read_text()
    assert "the unpruned model gets right and downscale misses" in page
