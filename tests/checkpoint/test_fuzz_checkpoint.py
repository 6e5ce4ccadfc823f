"""Damaged and hostile checkpoint folders: every file of one may hold anything."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest
from helpers import tiny_checkpoints
from helpers.fuzzing import bounded, broken_text, damaged, fuzz, one_sentence
from hypothesis import strategies as st

import jvidprune
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import family as families
from jvidprune.models.checkpoint.folder import Checkpoint
from jvidprune.models.checkpoint.load import load_model, read_config
from jvidprune.models.tokenizer import load_tokenizer
from jvidprune.reducers.registry import get
from jvidprune.reducers.serialise import SavedPruning


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {family: tiny_checkpoints.write(family, root / family) for family in families.names()}


@bounded(200, more=50)
def test_a_hostile_config_ends_in_a_sentence(folders, tmp_path, examples):
    configs = st.sampled_from(sorted(folders)).flatmap(
        lambda family: broken_text(tiny_checkpoints.CONFIGS[family]).map(lambda text: (family, text))
    )

    def check(drawn):
        (tmp_path / "config.json").write_bytes(drawn[1])
        with one_sentence():
            read_config(tmp_path)

    fuzz(examples, configs, check)


@bounded(120, more=20)
def test_a_hostile_config_in_front_of_sound_weights(folders, tmp_path, examples):
    configs = st.sampled_from(sorted(folders)).flatmap(
        lambda family: broken_text(tiny_checkpoints.CONFIGS[family]).map(lambda text: (family, text))
    )
    shutil.copytree(folders["qwen3_vl"], tmp_path / "m")

    def check(drawn):
        family, text = drawn
        shutil.copy(folders[family] / "model.safetensors", tmp_path / "m")
        (tmp_path / "m" / "config.json").write_bytes(text)
        with one_sentence():
            load_model(tmp_path / "m", dtype=jnp.float32)

    fuzz(examples, configs, check)


@bounded(60, more=20)
def test_damaged_weights_end_in_a_sentence(folders, tmp_path, examples):
    folder = folders["llava_onevision"]
    whole = (folder / "model.safetensors").read_bytes()
    shutil.copy(folder / "config.json", tmp_path)

    def check(data):
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        (tmp_path / "model.safetensors").write_bytes(data)
        with one_sentence():
            load_model(tmp_path, dtype=jnp.float32)

    fuzz(examples, damaged(whole, head=8000), check)


INDEX = {"metadata": {"total_size": 3}, "weight_map": {"image_newline": "a.safetensors", "b": "sub/b.safetensors"}}


@bounded(150, more=20)
def test_a_hostile_index_never_leaves_its_folder(tmp_path, monkeypatch, examples):
    """Whatever names an index holds, only safetensors files below the folder are opened."""
    folder = tmp_path / "deep" / "m"
    folder.mkdir(parents=True)
    opened = []
    monkeypatch.setattr(Checkpoint, "_open", lambda self, file: opened.append(file) or {"image_newline": 1, "b": 2})
    pieces = st.sampled_from(
        ["..", ".", "/", "\\", "~", "a", "C:", "\0", "%2e%2e", "a.safetensors", "b.bin", ".safetensors"]
    )
    names = st.lists(pieces, min_size=1, max_size=4).map("/".join) | st.text(max_size=8).map(
        lambda t: t + ".safetensors"
    )
    indices = broken_text(INDEX) | names.map(lambda name: json.dumps({"weight_map": {"image_newline": name}}).encode())
    monkeypatch.setattr("pathlib.Path.exists", lambda self: self.name != "model.safetensors")

    def check(data):
        opened.clear()
        (folder / "model.safetensors.index.json").write_bytes(data)
        with one_sentence():
            Checkpoint(folder, lambda name: name)
        for file in opened:
            assert file.endswith(".safetensors")
            assert (folder / file).resolve().is_relative_to(folder.resolve())

    fuzz(examples, indices, check)


SIDE_FILES = {
    "jvidprune_config.json": SavedPruning(get("aot"), 0.2, "qwen2_5_vl").record(),
    "preprocessor_config.json": {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "video_preprocessor_config.json": {
        "num_frames": 8,
        "patch_size": 4,
        "size": {"shortest_edge": 256, "longest_edge": 4096},
    },
    "processor_config.json": {"video_processor": {"min_pixels": 256, "max_pixels": 4096, "image_mean": [0.5] * 3}},
    "generation_config.json": {"eos_token_id": [256, 258]},
    "chat_template.json": {"chat_template": [{"name": "default", "template": "<video>{{ messages[0].content }}"}]},
}


@bounded(100, more=20)
def test_hostile_files_beside_the_weights(folders, tmp_path, examples):
    """Settings of pixels, ends of answers and chat templates, as they are read when a model is opened."""
    loaded = {family: load_model(folder, dtype=jnp.float32) for family, folder in folders.items()}
    files = st.sampled_from(sorted(SIDE_FILES)).flatmap(lambda n: st.tuples(st.just(n), broken_text(SIDE_FILES[n])))
    turn = 0

    def check(drawn):
        nonlocal turn
        turn += 1
        family = sorted(folders)[turn % len(folders)]
        name, data = drawn
        folder = tmp_path / str(turn)
        shutil.copytree(folders[family], folder)
        (folder / name).write_bytes(data)
        with pytest.MonkeyPatch.context() as patch, one_sentence():
            model = dataclasses.replace(loaded[family], folder=folder)
            patch.setattr("jvidprune.llm.video_llm.load_model", lambda *args, **options: model)
            llm = VideoLLM.load(folder, template="chat" if name.startswith("chat") else None)
            assert all(isinstance(i, int) for i in llm.eos_ids)
        shutil.rmtree(folder)

    fuzz(examples, files, check)


@bounded(60, more=20)
def test_damaged_tokenizers(folders, tmp_path, examples):
    tokenizer = json.loads((folders["qwen3_vl"] / "tokenizer.json").read_text())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "auto_map": {"AutoTokenizer": "x.Y"},
    }
    files = broken_text(tokenizer).map(lambda data: ("tokenizer.json", data))
    files |= broken_text(settings).map(lambda data: ("tokenizer_config.json", data))

    def check(drawn):
        name, data = drawn
        folder = tmp_path / "t"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        shutil.copy(folders["qwen3_vl"] / "tokenizer.json", folder)
        (folder / name).write_bytes(data)
        with one_sentence():
            load_tokenizer(folder).encode("What happens?")

    fuzz(examples, files, check)


def test_code_and_pickles_of_a_folder_are_never_run(folders, tmp_path):
    """A tokenizer that names code of its own is refused, and nothing in the package can unpickle or trust a folder."""
    folder = tmp_path / "m"
    shutil.copytree(folders["qwen2_5_vl"], folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    with one_sentence():
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()
    sources = [path.read_text(encoding="utf8") for path in Path(jvidprune.__file__).parent.rglob("*.py")]
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} | {
                    (getattr(node, "module", "") or "").split(".")[0]
                }
                assert not names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
                assert isinstance(node.value, ast.Constant)
                assert node.value.value is False
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load", "jnp.load"):
                assert any(keyword.arg == "allow_pickle" for keyword in node.keywords)
