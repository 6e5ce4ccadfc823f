"""Every verb without the optional packages, and without a word of other libraries: in one fresh process each."""

import json
import os
import socket
import subprocess
import sys
import tomllib

import pytest
from helpers import tiny_checkpoints
from helpers.places import GOLDEN, REPOSITORY, TESTS

from jvidprune.extras import EXTRAS
from jvidprune.procedural.clips import ClipSpec, render, write_mp4

GATED = sorted(set(EXTRAS) - {"optax", "orbax", "httpx2"})
"""Optional packages that nothing else installs; flax brings optax and orbax, huggingface_hub 2 brings httpx2."""


def run(folder, lines, blocked=()):
    (folder / "lines.json").write_text(
        json.dumps({"blocked": list(blocked), "lines": [[str(word) for word in line] for line in lines]})
    )
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS_NO")}
    subprocess.run(
        [
            sys.executable,
            str(TESTS / "helpers" / "verb_runner.py"),
            str(folder / "lines.json"),
            str(folder / "found.json"),
        ],
        env=environment | {"PYTHONPATH": paths, "GRADIO_ANALYTICS_ENABLED": "False"},
        check=True,
        timeout=900,
    )
    return list(zip(lines, json.loads((folder / "found.json").read_text()), strict=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A clip, and a checkpoint whose tokenizer and chat template are read by transformers."""
    root = tmp_path_factory.mktemp("verbs")
    write_mp4(root / "clip.mp4", render(ClipSpec(seed=3, frames=8, size=(64, 64))).frames, 4.0)
    folder = tiny_checkpoints.write("llava_onevision", root / "model")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "extra_special_tokens": {}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    template = "{% for m in messages %}{{ m['role'] }}<video>{{ m['content'][-1]['text'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return root


def verbs(place, out):
    """A small run of every verb that ends by itself."""
    model = ["--model", place / "model", "--frames", "4"]
    ask = ["ask", place / "clip.mp4", "What?", "--max-new-tokens", "2", "--reducer", "random", *model]
    reduce = ["reduce", place / "clip.mp4", "--reducer", "random", "--out"]
    return [
        ["methods"],
        ["models"],
        ["flops", "--frames", "4"],
        ["plan", "--frames", "4"],
        ["clip", out / "made.mp4", "--frames", "4"],
        ["bench", "baselines", "--clips", "2"],
        ["bench", "export", out / "exported", "--clips", "1"],
        ["parity", GOLDEN / "evs"],
        ["export", place / "model", out / "copy"],
        ask,
        [*ask, "--template", "chat"],
        [*reduce, out / "drawn.html", *model],
        [*reduce, out / "drawn.png", *model],
        [
            *("costs", "--cost", "own", "--reducer", "aot(inter=False)", "--ratios", "0.2", "--clips", "1"),
            *("--questions", "none", "--out", out / "costs"),
        ],
        [
            "sweep",
            "--methods",
            "random",
            "--controls",
            "none",
            "--ratios",
            "0.5",
            "--clips",
            "1",
            "--out",
            out / "sweep",
        ],
    ]


@pytest.mark.slow
def test_every_verb_works_without_optional_packages_and_is_quiet(place, tmp_path):
    """--json: one object and nothing else; --quiet: nothing on stderr; neither: no word of other libraries."""
    (tmp_path / "json").mkdir()
    (tmp_path / "quiet").mkdir()
    lines = [[*line, "--json"] for line in verbs(place, tmp_path / "json")]
    lines += [[*line, "--quiet"] for line in verbs(place, tmp_path / "quiet")]
    lines += [["ask", place / "clip.mp4", "--model", place / "model", "--max-new-tokens", "1"]]
    for line, found in run(tmp_path, lines, GATED):
        assert found["code"] == 0, (line, found)
        if line[-1] == "--json":
            json.loads(found["out"])
        if line[-1] in ("--json", "--quiet"):
            assert found["err"] == "", line
            assert found["out"].strip()
        said = (found["out"] + found["err"]).lower()
        assert "pytorch" not in said, line
        assert "warning" not in said, line


def test_a_missing_extra_is_one_sentence_that_names_it(place, tmp_path):
    parquet = tmp_path / "data" / "videomme"
    parquet.mkdir(parents=True)
    (parquet / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    train = ["train", "stts", "--folder", tmp_path / "run"]
    wanted = {
        "train": [train, [*train, "--quiet"], [*train, "--tensorboard"]],
        "serve": [["serve"], ["serve", "--json"], ["serve", "--host", "127.0.0.1", "--port", "0"]],
        "eval": [["sweep", "--quiet", "--task", "videomme", "--data", tmp_path / "data", "--out", tmp_path / "sweep"]],
    }
    wanted["quantise"] = [["plan", "--quantise", "int8"], ["ask", "--quantise", "fp8", "--quiet"]]
    extras = [extra for extra, lines in wanted.items() for _ in lines]
    lines = [line for lines in wanted.values() for line in lines]
    helps = [[verb, "--help"] for verb in ("train", "serve", "sweep", "export", "bench", "ask")]
    found = run(tmp_path, [*lines, *helps], GATED)
    for extra, (line, one) in zip(extras, found, strict=False):
        assert one["code"] == 2, (line, one)
        assert one["err"].count("\n") == 1, one["err"]
        assert one["err"].startswith("error: ")
        assert f"pip install 'jvidprune[{extra}]'" in one["err"]
        assert one["out"] == ""
    assert all(one["code"] == 0 for _, one in found[len(lines) :])
    assert not (tmp_path / "run").exists()


def test_a_judge_without_its_client_is_told_before_it_is_asked(tmp_path):
    line = ["judge", tmp_path, "--model", "m"]
    asked, exported = run(tmp_path, [[*line, "--endpoint", "http://localhost:9/v1"], line], ["httpx2"])
    assert asked[1]["err"] == "error: asking a judge needs httpx2: pip install 'jvidprune[judge]'.\n"
    assert (asked[1]["code"], "has no open answers" in exported[1]["err"]) == (2, True)


@pytest.mark.parametrize("module", ["optax", "orbax", "grain", "tensorboardX"])
@pytest.mark.slow
def test_each_package_of_training_is_told_by_itself(tmp_path, module):
    lines = [["train", "stts", "--folder", tmp_path / "run", "--tensorboard"]]
    ((_, found),) = run(tmp_path, lines, [module])
    assert found["code"] == 2
    assert found["err"].startswith("error: training needs ")
    assert module in found["err"]
    assert "pip install 'jvidprune[train]'" in found["err"]


def test_the_table_of_extras_is_that_of_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    names = {"orbax": "orbax-checkpoint", "lmms_eval": "lmms-eval", "torch": None, "libtpu": "jax[tpu]"}
    for module, extra in EXTRAS.items():
        package = names.get(module, module)
        assert package is None or any(line.startswith(package) for line in declared[extra]), (module, extra)
    assert "filelock<4" in declared["lmms-eval"]


def test_folders_that_cannot_be_made_are_told_before_anything_is_loaded(place, tmp_path):
    (tmp_path / "file").write_text("x")
    lines = []
    for bad in ("/proc/jvidprune", tmp_path / "file", "/dev/null/x"):
        model = ["--model", place / "gone-if-it-were-loaded"]
        lines += [
            ["train", "stts", "--folder", bad],
            ["sweep", "--clips", "1", "--out", bad, *model],
            ["reduce", place / "clip.mp4", "--out", f"{bad}/x.html", *model],
            ["clip", f"{bad}/x.mp4"],
            ["bench", "export", bad, "--clips", "1"],
            ["export", place / "model", bad],
        ]
    for line, found in run(tmp_path, lines):
        assert found["code"] == 2, (line, found)
        assert found["err"].count("\n") == 1, found["err"]
        assert found["err"].startswith("error: cannot "), line
        assert "jvidprune" in found["err"] or "file" in found["err"] or "/dev/null" in found["err"]
        assert found["out"] == ""


@pytest.mark.slow
def test_numbers_and_addresses_that_make_no_sense(place, tmp_path):
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    wanted = [
        (["clip", tmp_path / "x.mp4", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["clip", tmp_path / "x.mp4", "--frames", "0"], "frames must lie in [3, 10000], got 0"),
        (["flops", "--kept", "-1"], "kept must lie in [0, 6272], the video's tokens, got -1"),
        (["ask", "--revision", "v1"], "a revision, here 'v1', is one of a hub id"),
        (["ask", "--model", place / "model", "--revision", "v1"], "is a local folder; a revision"),
    ]
    wanted += [
        (["serve", "--host", host], f"cannot serve on {host}, which is no IP address")
        for host in ("999.1.1.1", "1.2.3", "256.0.0.1", "1.2.3.4.5", "1::2::3")
    ]
    wanted += [
        (["serve", "--host", "192.0.2.1"], "cannot serve on 192.0.2.1, which is no address of this machine"),
        (["serve", "--port", "70000"], "a port lies in 0..65535, not 70000"),
        (["serve", "--port", str(port)], f"cannot serve on 127.0.0.1:{port}: "),
    ]
    for (line, found), (_, says) in zip(run(tmp_path, [line for line, _ in wanted]), wanted, strict=True):
        assert found["code"] == 2, (line, found)
        assert found["err"].count("\n") == 1, found["err"]
        assert says in found["err"], line
    taken.close()
