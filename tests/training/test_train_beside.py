"""`jvidprune train covipal` and `jvidprune train routers`: from the command line to a file that a method reads."""

import json

import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.command import one_sentence

from jvidprune.procedural.clips import ClipSpec, render, write_mp4
from jvidprune.weights import Weights

pytestmark = pytest.mark.slow

SMALL = ["--rows", "1", "--log", "1", "--every", "1", "--train-clips", "4"]
MODULE = ["--steps", "2", "0", "--width", "12", "--hidden", "16", "--blocks", "1", "--heads", "2", "--guidance", "1"]


@pytest.fixture(scope="module")
def place(home):
    """A checkpoint of two layers and a clip."""
    write_mp4(home / "clip.mp4", render(ClipSpec(seed=3, frames=8, size=(56, 56))).frames, 4.0)
    tiny_checkpoints.write("llava_onevision", home / "model")
    return home


def said(run, *words):
    """What a verb tells machines."""
    code, out, err = run(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def kept(run, place, method, ratio):
    """Visual tokens of an answer."""
    words = ["ask", place / "clip.mp4", "What?", "--model", place / "model", "--frames", "4", "--max-new-tokens", "1"]
    return said(run, *words, "--reducer", method, "--ratio", ratio)


def test_a_module_is_trained_goes_on_and_answers(run, place, tmp_path):
    words = ["train", "covipal", "--model", place / "model", "--folder", tmp_path / "run", *SMALL]
    first = said(run, *words, *MODULE)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("guided", "guided.safetensors", "pruner.safetensors")
    ]
    guided, pruner = (Weights.read(tmp_path / "run" / f"{name}.safetensors") for name in ("guided", "pruner"))
    # Without a second stage both are the same.
    assert guided == pruner
    assert {name: line["step"] for name, line in first["metrics"].items()} == {"guided": 2}
    assert (first["steps"], first["left_out"]) == (2, [])
    # The run is over: the same command finds what it made.
    again = said(run, *words, *MODULE)
    assert (again, Weights.read(first["file"])) == (first, pruner)
    # What it prints is a method as it is typed.
    assert first["method"] == f"covipal(module='{tmp_path}/run/pruner.safetensors')"
    assert kept(run, place, first["method"], 0.25)["kept"] == 4 * 16 // 4
    code, _, err = run(*words, *MODULE, "--seed", "1")
    assert (code, one_sentence(err), "holds a run with other settings" in err) == (2, True, True)
    code, out, _ = run(*words, *MODULE)
    assert code == 0
    assert f'--reducer "{first["method"]}"' in out


def test_routers_are_trained_and_answer(run, place, tmp_path):
    words = ["train", "routers", "--model", place / "model", "--folder", tmp_path / "run", *SMALL]
    words += ["--reducer", "mod(norm=tanh_1_1)", "--ratio", "0.6", "--steps", "2", "--rate", "0.1"]
    found = said(run, *words)
    router = Weights.read(tmp_path / "run" / "router.safetensors")
    assert sorted(router.arrays) == [f"layers.{layer}.{name}" for layer in (0, 1) for name in ("bias", "weight")]
    assert np.abs(router.arrays["layers.0.weight"]).max() > 0
    assert found["metrics"]["run"]["step"] == 2
    # Settings that the model's depth decides are not written.
    assert found["method"] == f"mod(router='{tmp_path}/run/router.safetensors', norm=tanh_1_1)"
    assert kept(run, place, found["method"], 0.6)["kept"] == 4 * 16
