"""Reducers' settings beside a checkpoint, and checkpoints written back: nothing is lost, changed or executed."""

import json
import struct
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.folders import export_checkpoint
from helpers.places import MODELS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jvidprune import backbones, cli
from jvidprune.errors import JvidpruneError
from jvidprune.fields import settings_of
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.checkpoint.export import exact_dtype, export_model
from jvidprune.models.checkpoint.load import load_model
from jvidprune.ops.transport import Dustbin, FixedSinkhorn, TokenCost, Transport
from jvidprune.reducers import registry
from jvidprune.reducers.serialise import FILE, SavedPruning, load_pruning, read_record, save_pruning

FAMILIES = sorted(path.parent.name for path in MODELS.glob("*/model.safetensors"))
METHODS = (*registry.names(), *registry.combinators())


def stored(folder: Path) -> dict[str, tuple]:
    """Every tensor as its file has it, read without the library: type, shape and bytes."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                assert name not in found
                found[name] = entry["dtype"], tuple(entry["shape"]), data[8 + length + start : 8 + length + stop]
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_an_export_has_the_tensors_of_its_source_byte_by_byte(family, tmp_path):
    source = MODELS / family
    export_checkpoint(source, tmp_path / "whole")
    export_checkpoint(source, tmp_path / "cut", shard_bytes=(source / "model.safetensors").stat().st_size // 3)
    assert stored(tmp_path / "whole") == stored(tmp_path / "cut") == stored(source)
    assert (tmp_path / "cut" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    shards = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in stored(source).values())
    assert load_model(tmp_path / "cut").family == family.removesuffix("_olmo3")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_and_unused_tensors_survive(dtype, tmp_path):
    half = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    tensors = {name: value.astype(half) for name, value in load_file(MODELS / "qwen2_5_vl/model.safetensors").items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.arange(4, dtype=half)
    # The names of a folder that transformers saved again, and a type of its own for one tensor.
    tensors = {name.replace("visual.", "model.visual.", 1): value for name, value in tensors.items()}
    if dtype == "bfloat16":
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32) + 1e-5
    source = tmp_path / "source"
    source.mkdir()
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text((MODELS / "qwen2_5_vl/config.json").read_text())
    assert exact_dtype(source) == ("float16" if dtype == "float16" else "float32")
    export_checkpoint(source, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(source)


def test_changed_parameters_are_written_and_lost_digits_refused(tmp_path):
    loaded = load_model(MODELS / "llava_video", dtype=jnp.float32)
    norm = loaded.model.lm.norm.scale
    norm.set_value(norm[...] + 1)
    export_model(loaded, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (MODELS / "llava_video", tmp_path / "out"))
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["model.norm.weight"]
    np.testing.assert_array_equal(after[changed[0]], before[changed[0]] + 1)
    narrow = load_model(MODELS / "llava_video", dtype=jnp.bfloat16)
    with pytest.raises(JvidpruneError, match="loses digits of"):
        export_model(narrow, tmp_path / "narrow")
    with pytest.raises(JvidpruneError, match="exists and is not empty"):
        export_model(loaded, tmp_path / "out")
    assert not (tmp_path / "narrow").exists()
    export_model(narrow, tmp_path / "narrow", dtype="bfloat16")
    assert {kind for kind, _, _ in stored(tmp_path / "narrow").values()} == {"BF16"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_pooling_head_from_elsewhere_becomes_part_of_the_export(tmp_path):
    head = tiny_checkpoints.write("llava_onevision", tmp_path / "head", pooling_head=True)
    plain = tiny_checkpoints.write("llava_onevision", tmp_path / "plain")
    export_checkpoint(plain, tmp_path / "out", pooling_head=head)
    added = {name: value for name, value in stored(head).items() if name not in stored(plain)}
    assert len(added) == 13
    assert stored(tmp_path / "out") == stored(plain) | added
    assert "attention_pooling_head" in load_model(tmp_path / "out").model.provides


@pytest.mark.parametrize("backbone", [None, *backbones.NAMES])
def test_settings_of_every_method_survive_the_file(backbone, tmp_path):
    for name in METHODS:
        saved = SavedPruning(registry.get(name, backbone), 0.15, backbone)
        save_pruning(tmp_path, saved)
        assert load_pruning(tmp_path) == saved


def test_nested_methods_and_parts_of_a_transport_survive_the_file(tmp_path):
    parts = Transport(TokenCost(w_time=0.2), solver=Dustbin(solver=FixedSinkhorn()))
    for reducer in (
        registry.get("aot", inter_transport=parts, clips=(3, 5)),
        registry.get("ottvid", transport=parts),
        registry.from_text("stop:base=(flashvid:alpha=0.5),mu_s=0.03", "llava_video"),
        registry.from_text("visionzip+stop:base=flashvid", "llava_onevision"),
    ):
        save_pruning(tmp_path, SavedPruning(reducer, 0.1))
        found = load_pruning(tmp_path)
        assert found is not None
        assert (found.reducer, hash(found.reducer)) == (reducer, hash(reducer))


RECORD = SavedPruning(registry.get("flashvid"), 0.1).record()
WRONG_PART = {"part": "Transport", "settings": {"solver": "x"}}
WRONG = [
    ({"ratio": 2}, "must lie in"),
    ({"ratio": "0.1"}, "ratio must be a number"),
    ({"format": 2}, "later jvidprune"),
    ({"more": 1}, "unknown key in the file 'more'"),
    ({"backbone": "llava"}, "unknown backbone"),
    ({"reducer": []}, "must be a JSON object"),
    ({"reducer": {"method": "os.system", "settings": {}}}, "unknown reducer 'os.system'"),
    ({"reducer": {"method": "flashvid", "settings": {"alpa": 1}}}, "Did you mean 'alpha'"),
    ({"reducer": {"method": "flashvid", "settings": {"alpha": "x"}}}, "alpha must be a number in \\[0, 1\\], got"),
    ({"reducer": {"method": "flashvid", "settings": {"do_segment": 1}}}, "do_segment must be True or False, got 1"),
    ({"reducer": {"method": "aot", "settings": {"intra_transport": {"part": "Given"}}}}, "unknown transport part"),
    (
        {"reducer": {"method": "aot", "settings": {"intra_transport": WRONG_PART}}},
        "unknown solver 'x'; known: Sinkhorn",
    ),
    ({"reducer": {"method": "stop", "settings": {"base": {"method": "stop"}}}}, "cannot wrap SToP"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(change, message, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(RECORD | change))
    with pytest.raises(JvidpruneError, match=message) as caught:
        load_pruning(tmp_path)
    assert FILE in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", '{"ratio": NaN}', "[" * 100_000, "\x00"])
def test_what_is_no_json_is_refused(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(JvidpruneError, match="no readable JSON file"):
        load_pruning(tmp_path)


def test_what_is_not_of_this_package_cannot_be_saved():
    with pytest.raises(JvidpruneError, match="cannot be saved"):
        SavedPruning(registry.get("aot", intra_transport=Transport(cost=lambda x, y: 1 - x.cosines)), 0.1).record()


_LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False)
_KEYS = st.sampled_from(["method", "part", "settings", "base", "solver", "alpha"])
_VALUES = st.recursive(
    _LEAVES | st.sampled_from([*METHODS, "Sinkhorn"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(_VALUES, st.sampled_from(METHODS), st.data())
def test_any_json_is_read_or_refused(value, method, data):
    fields = settings_of(registry.reducer_class(method))
    reducer = value if not fields else {"method": method, "settings": {data.draw(st.sampled_from(fields)): value}}
    try:
        found = read_record(RECORD | {"reducer": reducer})
    except JvidpruneError:
        return
    assert read_record(found.record()) == found


@pytest.mark.slow
def test_the_command_writes_settings_that_loading_and_asking_use(tmp_path, run):
    source = tiny_checkpoints.write("llava_onevision", tmp_path / "source")

    words = ("export", source, tmp_path / "out", "--reducer", "random:seed=3", "--ratio", 0.25, "--json")
    code, out, _ = run(*words)
    assert code == 0
    assert json.loads(out)["files"] == ["config.json", FILE, "model.safetensors", "tokenizer.json"]
    code, _, err = run("export", source, tmp_path / "head", "--reducer", "fastvid")
    assert code == 2
    assert "attention_pooling_head" in err
    assert not (tmp_path / "head").exists()
    llm = VideoLLM.load(tmp_path / "out")
    assert llm.pruning == SavedPruning(registry.get("random", "llava_onevision", seed=3), 0.25, "llava_onevision")
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    answer = llm.ask(llm.encode(frames), "What?", max_new_tokens=2)
    assert (answer.reducer, answer.ratio, answer.kept) == ("Random", 0.25, 16)
    with pytest.raises(JvidpruneError, match="need a reducer and a ratio"):
        VideoLLM.load(source).ask(llm.encode(frames), "What?")
    record = json.loads((tmp_path / "out" / FILE).read_text())
    (tmp_path / "out" / FILE).write_text(json.dumps(record | {"backbone": "qwen3_vl"}))
    with pytest.raises(JvidpruneError, match="made for qwen3_vl"):
        VideoLLM.load(tmp_path / "out")


def test_a_scorer_beside_the_weights_travels_with_them(tmp_path, monkeypatch, capsys):
    from jvidprune.stts import Scorer, ScorerSizes, STTSConfig
    from jvidprune.stts.saved import WEIGHTS, TrainedSTTS, write_stts

    source = tiny_checkpoints.write("llava_onevision", tmp_path / "source")
    vision, config = load_model(source).config.vision, STTSConfig(prune_at=0, removed=0.75)
    words = ["jvidprune", "export", str(source), str(tmp_path / "out"), "--reducer", "stts", "--ratio", "0.25"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        cli.main()
    assert "cannot give evidence" in capsys.readouterr().err
    write_stts(source, TrainedSTTS(config, Scorer(ScorerSizes(vision.width, vision.heads, 12))))
    cli.main()
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    llm = VideoLLM.load(tmp_path / "out")
    assert llm.pruning is not None
    assert (llm.pruning.ratio, llm.pruning.reducer) == (0.25, registry.get("stts").bind(llm.loaded.model))
    assert llm.pruning.reducer.config == llm.loaded.model.stts == config
    # A model with a scorer attached is written as the model below it.
    export_model(llm.loaded, tmp_path / "twice")
    assert stored(tmp_path / "twice") == stored(source)
