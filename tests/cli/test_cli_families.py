"""`jvidprune ask` on a downloaded-layout folder of each family, and what it says of folders that are not one."""

import json
import shutil

import numpy as np
import pytest
from helpers.command import one_sentence
from helpers.places import MODELS
from helpers.tiny import tokenizer
from safetensors.numpy import load_file, save_file

FAMILIES = ("llava_onevision", "llava_video", "qwen2_5_vl", "qwen3_vl")


def checkpoint(folder, family, *, shards=1):
    """A golden checkpoint with a vocabulary of bytes and prompt markers, as files of a published folder."""
    folder.mkdir()
    tensors = load_file(MODELS / family / "model.safetensors")
    for name, value in tensors.items():
        if "embed_tokens" in name or "lm_head" in name:
            tensors[name] = np.concatenate([value, 0.9 * value, 1.1 * value])[:300]
    config = json.loads((MODELS / family / "config.json").read_text())
    config.get("text_config", config)["vocab_size"] = 300
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(folder / "tokenizer.json"))
    names = sorted(tensors)
    parts = [names[start::shards] for start in range(shards)]
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    if shards == 1:
        files = ["model.safetensors"]
    else:
        table = {name: file for part, file in zip(parts, files, strict=True) for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    for part, file in zip(parts, files, strict=True):
        save_file({name: tensors[name] for name in part}, folder / file)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_ask_runs_on_a_folder_of_each_family(run, clip, tmp_path, family):
    folder = checkpoint(tmp_path / "model", family, shards=2 if family == "llava_video" else 1)
    words = ("--reducer", "uniform", "--ratio", 0.25, "--frames", 4, "--max-new-tokens", 2, "--json")
    code, out, err = run("ask", clip, "What moves?", "--model", folder, *words)
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["kept"] == record["visual"] // 4 > 0
    # The prompt holds its text, the kept tokens and the family's newlines.
    assert record["prompt"] > record["kept"] + {"llava_video": 4 * 13}.get(family, 0)


def broken(kind, folder, clip):
    """A folder with one thing wrong, and the sentence about it."""
    family = "qwen2_5_vl" if kind == "family" else "llava_video"
    checkpoint(folder, family, shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    if kind == "family":
        shutil.copy(MODELS / "llava_onevision" / "config.json", folder / "config.json")
        return "says it is llava_onevision in config.json, but its tensors are those of a Qwen-VL model."
    if kind == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1000])
        return "model-00002-of-00002.safetensors is truncated or no safetensors file"
    if kind == "missing":
        shard.unlink()
        return "lacks 1 of 2 shards: model-00002-of-00002.safetensors."
    if kind == "architecture":
        (folder / "config.json").write_text('{"model_type": "qwen4_vl"}')
        families = "llava_onevision, llava_video, qwen2_5_vl, qwen3_vl, molmo2, video_llama_3, internvl, qwen3_vl_moe"
        return f"unknown architecture (qwen4_vl); supported: {families}, qwen3_5."
    if kind == "tokenizer":
        (folder / "tokenizer.json").unlink()
        return "has neither tokenizer_config.json nor tokenizer.json."
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 336, "width": 336}}')
    return "but the tower reads 384 pixels."


@pytest.mark.parametrize("kind", ["family", "truncated", "missing", "architecture", "tokenizer", "pixels"])
def test_a_folder_that_is_no_such_checkpoint_is_one_sentence(run, clip, tmp_path, kind):
    says = broken(kind, tmp_path / "model", clip)
    code, out, err = run("ask", clip, "?", "--model", tmp_path / "model", "--quiet")
    assert (code, out) == (2, "")
    assert one_sentence(err), err
    assert says in err


def test_a_chat_template_is_asked_for_and_missed(run, clip, tmp_path):
    folder = checkpoint(tmp_path / "model", "qwen3_vl")
    code, _, err = run("ask", clip, "?", "--model", folder, "--template", "chat", "--quiet")
    assert code == 2
    assert "carries no chat template" in err
    code, _, err = run("ask", clip, "?", "--model", folder, "--template", "chatml", "--quiet")
    assert code == 2
    assert "unknown prompt template 'chatml'" in err
