"""The command line as a user meets it: exit codes, one-sentence errors, machine output, nothing half-written."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.command import one_sentence
from helpers.places import GOLDEN

from jvidprune.models.checkpoint.load import read_config
from jvidprune.models.embedded import EMBEDDED


def test_ask_answers_and_prints_the_stage_table(run, model, clip):
    code, out, _ = run("ask", clip, "What moves?", "--model", model, "--frames", 4, "--max-new-tokens", 4)
    assert code == 0
    for word in ("What moves?", "decode", "encode", "reduce", "prefill", "generate", "FlashVID kept", "GFLOP"):
        assert word in out


def test_ask_json_is_one_object_and_quiet_prints_the_answer_alone(run, model, clip):
    words = ("ask", clip, "What?", "--model", model, "--frames", 4, "--max-new-tokens", 4, "--reducer", "none")
    code, out, err = run(*words, "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert [stage["name"] for stage in record["stages"]] == ["decode", "encode", "reduce", "prefill", "generate"]
    assert record["kept"] == record["visual"]
    assert [stage["flops"] is None for stage in record["stages"]] == [True, False, False, False, False]
    assert all(stage["flops"] > 0 for stage in record["stages"] if stage["name"] in ("encode", "prefill"))
    code, out, err = run(*words, "--quiet")
    assert (code, err) == (0, "")
    assert out.strip() == record["text"]
    code, out, err = run(*words, "--quiet", "--stream")
    assert (code, err) == (0, "")
    assert out.strip() == record["text"]


@pytest.mark.parametrize("suffix", ["html", "png", "mp4"])
def test_reduce_draws_several_methods(run, model, clip, tmp_path, suffix):
    out_file = tmp_path / f"drawn.{suffix}"
    words = ("--compare", "flashvid,visionzip", "--ratio", 0.3, "--model", model, "--frames", 4, "--out", out_file)
    code, out, err = run("reduce", clip, *words, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert [row["method"] for row in record["methods"]] == ["FlashVID", "VisionZip"]
    assert all(row["tokens"] == sum(row["per_frame"]) for row in record["methods"])
    assert out_file.stat().st_size > 500
    assert list(tmp_path.iterdir()) == [out_file]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ask", "missing.mp4", "?"], "no such video file: missing.mp4"),
        (["ask", "--ratio", "0"], "must lie in (0, 1], got 0"),
        (["ask", "--ratio", "1.5"], "must lie in (0, 1], got 1.5"),
        (["ask", "--reducer", "flashvit"], "Did you mean 'flashvid'"),
        (["reduce", "--out", "x.gif"], ".html, .png, .mp4"),
        (["reduce", "--compare", ","], "separated by commas, got ','"),
        (["ask", "--reducer", "stop:base=(flashvid"], "brackets of 'stop:base=(flashvid' do not match"),
        (["bench", "export", "folder", "--clips", "0"], "clips must lie in [1, 1000000], got 0"),
        (["clip", "x.avi"], "must be .mp4"),
        (["flops", "--model", "llava"], "nor one of llava-onevision-0.5b"),
        (["flops", "--kept", "9999"], "kept must lie in [0, 6272]"),
        (["parity", "nowhere"], "no folder nowhere"),
        (["ask", "CLIP", "?", "--model", "nothing/here/at/all"], "nothing/here/at/all"),
        (["ask", "BROKEN", "?", "--model", "MODEL"], "broken.mp4"),
        (["ask", "EMPTY", "?", "--model", "MODEL"], "empty.mp4"),
        (["ask", "CLIP", "?", "--model", "MODEL", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["ask", "CLIP", "?", "--model", "MODEL", "--max-new-tokens", "40000"], "positions"),
        (["ask", "CLIP", "?", "--model", "MODEL", "--top-k", "-1"], "top_k must be at least 0"),
        (["ask", "CLIP", "?", "--model", "MODEL", "--stream", "--samples", "2"], "leave --samples out"),
        (["ask", "CLIP", "?", "--model", "MODEL", "--frames", "0"], "0"),
        (["ask", "CLIP", "?", "--model", "OTHER"], "unknown architecture (bert)"),
        (["ask", "CLIP", "?", "--limits", "sceonds=1"], "there is no limit 'sceonds'"),
        (["sweep", "--limits", "pixels=many"], "the limit pixels must be a number above 0"),
        (["sweep", "--frames", "0"], "at least one frame must be sampled, not 0"),
        (["sweep", "--fps", "2"], "say how many with --frames"),
        (["train", "stts", "--limits", "frames=0"], "the limit frames must be a number above 0"),
        (["train", "stts", "--frames", "0"], "at least one frame must be sampled, not 0"),
        (["export", "MODEL", "out", "--ratio", "0.2"], "name it with --reducer"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(run, model, clip, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "empty.mp4").touch()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    names = {"CLIP": clip, "MODEL": model, "BROKEN": "broken.mp4", "EMPTY": "empty.mp4", "OTHER": other}
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*[names.get(word, word) for word in words], "--quiet")
    assert code == 2, (out, err)
    assert one_sentence(err), err
    assert says in err
    assert sorted(tmp_path.rglob("*")) == before


HOSTILE = [
    (["ask", "--frames", "abc"], "--frames takes a whole number, got 'abc'"),
    (["ask", "--fps", "1x"], "--fps takes a number, got '1x'"),
    (["ask", "--ratio", "half"], "--ratio takes a number, got 'half'"),
    (["ask", "--top-p", "nan"], "top_p"),
    (["swep", "--clips", "3"], "Did you mean 'sweep'?"),
    (["nothing"], "unknown verb 'nothing'; known: ask"),
    (["ask", "--nonsense", "3"], "unrecognized options: --nonsense, 3"),
    (["reduce", "--out", "sub/deep/x.png", "--reducer", "flashvit"], "Did you mean 'flashvid'"),
    (["reduce", "--out", "sub/deep/x.png", "--model", "nowhere/at/all"], "nowhere/at/all"),
    (["reduce", "BROKEN", "--out", "sub/deep/x.png", "--model", "MODEL"], "broken.mp4"),
    (["reduce", "--out", "BROKEN/x.png"], "cannot write"),
    (["sweep", "--ratios", "0.1,half"], "half"),
    (["sweep", "--ratios", "0"], "must lie in (0, 1], got 0"),
    (["sweep", "--methods", ","], "at least one method"),
    (["sweep", "--methods", "flashvit"], "Did you mean 'flashvid'"),
    (["sweep", "--controls", ","], "controls are names separated by commas"),
    (["sweep", "--controls", "pool_spice"], "Did you mean 'pool_space'"),
    (["sweep", "--clips", "0", "--out", "new/run"], "at least 1 clip"),
    (["sweep", "--clips", "many"], "--clips takes a whole number, got 'many'"),
    (["sweep", "--questions", "wrong"], "invalid choice 'wrong'"),
    (["sweep", "--task", "nothing", "--out", "new/run"], "nothing"),
    (["sweep", "--host", "4/4"], "4"),
    (["sweep", "--host", "one/two"], "a host is written as in 0/4, got 'one/two'"),
    (["sweep", "--out", "BROKEN/run"], "cannot make the folder"),
    (["serve", "--port", "70000"], "a port lies in 0..65535, not 70000"),
    (["serve", "--port", "x"], "--port takes a whole number, got 'x'"),
    (["serve", "--max-mb", "0"], "megabytes above 0"),
    (["serve", "--max-mb", "nan"], "megabytes above 0"),
    (["serve", "--host", "999.1.1.1"], "no IP address"),
    (["serve", "--port", "0", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
    (["serve", "--port", "0", "--frames", "0"], "at least one frame must be sampled, not 0"),
    (["train", "stts", "--topk", "much"], "--topk takes a number, got 'much'"),
    (["train", "stts", "--rates", "scorer=fast", "--folder", "new/run"], "scorer=1e-4"),
    (["train", "stts", "--steps", "-3", "--folder", "new/run"], "steps"),
    (["train", "stts", "--task", "nothing", "--folder", "new/run"], "nothing"),
    (["train", "other"], "available subcommands: stts, covipal, routers, cost"),
    (["train", "covipal", "--steps", "0", "3", "--folder", "new/run"], "steps"),
    (["train", "covipal", "--data", "x", "--folder", "new/run"], "leave out --data or name a --task"),
    (
        ["train", "covipal", "--place", "9", "--steps", "1", "1", "--folder", "new/run"],
        f"before {read_config(EMBEDDED)[1].text.layers}, the number of layers",
    ),
    (["train", "routers", "--reducer", "flashvid", "--folder", "new/run"], "flashvid has no routers"),
    (["train", "routers", "--ratio", "0.3", "--folder", "new/run"], "ask for more"),
    (["train", "cost", "--reducer", "ottvid", "--folder", "new/run"], "those of OTT-Vid do not"),
    (["train", "cost", "--ratios", "0.5", "0.1", "--folder", "new/run"], "from the lowest to the highest"),
    (["train", "cost", "--topk", "0.5"], "--topk"),
    (["costs", "--reducer", "divprune"], "DivPrune moves nothing by optimal transport: choose aot or ottvid"),
    (["costs", "--cost", "Token"], "unknown cost"),
    (["costs", "nowhere"], "there is no folder nowhere with clips"),
    (["video", "missing.mp4"], "no such video file: missing.mp4"),
    (["video", "BROKEN", "--save", "new/frames"], "broken.mp4"),
    (["video", "CLIP", "--fps", "-1", "--save", "new/frames"], "-1"),
    (["video", "CLIP", "--save", "BROKEN"], "no folder"),
    (["video", "CLIP", "--model", "OTHER"], "unknown architecture (bert)"),
    (["methods", "flashvid"], "unrecognized options: flashvid"),
    (["methods", "--jso"], "unrecognized options: --jso"),
    (["models", "llava"], "unrecognized options: llava"),
    (["bench", "export", "new", "--difficulty", "2"], "difficulty"),
    (["bench", "import"], "invalid choice 'import'"),
    (["clip", "sub/x.mp4", "--frames", "1"], "frames must lie in [3, 10000], got 1"),
    (["plan", "--ratios", "0.5,x"], "x"),
    (["export", "MODEL"], "missing from jvidprune export"),
]


@pytest.mark.parametrize(
    ("words", "says"), HOSTILE, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
@pytest.mark.slow
def test_hostile_values_are_one_sentence_and_nothing_is_written(run, model, clip, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    broken, other = tmp_path / "broken.mp4", tmp_path / "other"
    broken.write_bytes(bytes(range(256)) * 40)
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    names = {"CLIP": clip, "MODEL": model, "BROKEN": "broken.mp4", "OTHER": other}
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*[names.get(w, w.replace("BROKEN", "broken.mp4")) for w in words], "--quiet")
    assert (code, out) == (2, ""), err
    assert one_sentence(err), err
    assert says in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_picture_may_go_into_a_new_folder(run, model, clip, tmp_path):
    words = (
        "--reducer",
        "random",
        "--ratio",
        0.3,
        "--model",
        model,
        "--frames",
        2,
        "--out",
        tmp_path / "sub" / "x.png",
    )
    assert run("reduce", clip, *words, "--quiet")[0] == 0
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["missing.mp4", "?"], "no such video file: missing.mp4"),
        (["CLIP", "?", "--reducer", "flashvit"], "Did you mean 'flashvid'"),
        (["CLIP", "?", "--ratio", "7"], "must lie in (0, 1], got 7"),
        (["CLIP", "?", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
    ],
)
def test_a_mistake_is_told_before_a_checkpoint_is_fetched(run, clip, monkeypatch, words, says):
    import huggingface_hub

    fetched = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: fetched.append(args))
    code, _, err = run("ask", *[{"CLIP": clip}.get(word, word) for word in words], "--model", "owner/name")
    assert code == 2
    assert says in err
    assert not fetched


def test_methods_and_models_list_what_there_is(run):
    code, out, _ = run("methods", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {"flashvid", "visionzip", "sequential"} <= {row["name"] for row in rows}
    assert next(row for row in rows if row["name"] == "flashvid")["needs"] == ["attention_last"]
    code, out, _ = run("models", "--quiet")
    assert "llava_onevision" in out.split()


def test_flops_counts_a_config_without_weights(run):
    words = ("flops", "--model", "qwen3-vl-8b", "--reducer", "flashvid", "--frames", 8, "--size", "640x480")
    code, out, _ = run(*words, "--ratio", 0.2)
    assert code == 0
    for word in ("DeepStack", "layers 28-35", "at most", "as fastv"):
        assert word in out
    record = json.loads(run(*words, "--kept", 300, "--json")[1])
    # 640 x 480 in units of 32 pixels, two frames a grid frame
    assert (record["visual"], record["kept"], record["exact"]) == (4 * 20 * 15, 300, True)
    assert int(run(*words, "--kept", 300, "--quiet")[1]) == pytest.approx(record["total"], abs=1)


def test_parity_fails_on_what_it_does_not_recognise_and_on_a_changed_number(run, tmp_path):
    golden = tmp_path / "golden"
    golden.mkdir()
    source = GOLDEN / "evs"
    name = next(path for path in sorted(source.glob("*.npz")))
    (golden / "renamed.npz").write_bytes(name.read_bytes())
    code, out, _ = run("parity", golden, "--json")
    assert (code, json.loads(out)["passed"]) == (0, True)
    np.savez(golden / "unknown.npz", something=np.ones(3))
    code, out, _ = run("parity", golden)
    assert code == 1
    assert "not compared" in out
    (golden / "unknown.npz").unlink()
    with np.load(name) as data:
        arrays = dict(data)
    arrays["features"] = arrays["features"][..., ::-1] * np.linspace(0, 1, arrays["features"].shape[-1])
    np.savez(golden / "renamed.npz", **arrays)
    code, out, _ = run("parity", golden, "--quiet")
    assert code == 1
    assert "mismatch" in out


def test_help_needs_neither_jax_nor_a_model():
    probe = "import sys; sys.argv = ['jvidprune', 'ask', '--help']\nfrom jvidprune import cli\n"
    probe += "try: cli.main()\nexcept SystemExit: print('jax' in sys.modules, 'av' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stderr.strip() == "False False"
    assert "--ratio" in done.stdout


VERBS = (
    "ask",
    "reduce",
    "sweep",
    "probe",
    "serve",
    "clip",
    "methods",
    "models",
    "bench",
    "costs",
    "export",
    "flops",
    "plan",
    "train",
)


def test_training_offers_what_it_follows_alone(run):
    offered = run("train", "stts", "--help")[1]
    assert all(flag in offered for flag in ("--frames", "--limits", "--precision", "--template", "--pooling-head"))
    assert not any(flag in offered for flag in ("--fps", "--dtype"))
    offered = {what: run("train", what, "--help")[1] for what in ("covipal", "routers")}
    assert all(flag in text for text in offered.values() for flag in ("--task", "--model", "--quiet"))
    assert [("--guidance" in text, "--ratio" in text) for text in offered.values()] == [(True, False), (False, True)]
    assert not any(flag in text for text in offered.values() for flag in ("--topk", "--fps"))


@pytest.mark.parametrize("verb", [*VERBS, "parity"])
def test_every_verb_explains_itself(run, verb):
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert "usage" in out.lower()


def test_training_starts_from_the_command_line_and_refuses_in_one_sentence(run, tmp_path):
    code, _, err = run("train", "stts", "--topk", "1.5", "--folder", tmp_path)
    assert code == 2
    assert one_sentence(err)
