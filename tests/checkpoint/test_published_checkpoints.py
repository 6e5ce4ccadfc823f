"""Checkpoints as they are published: quantised, adapters, wrapped names, ends of text, types, and a hub id's cost."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.hub_server import COMMIT, serving
from safetensors.numpy import load_file, save_file

from jvidprune.errors import JvidpruneError
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.checkpoint.folder import unwrapped
from jvidprune.models.checkpoint.load import load_model, planned_dtype, read_config
from jvidprune.models.tokenizer import end_ids, load_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {family: tiny_checkpoints.write(family, root / family) for family in ("qwen3_vl", "llava_onevision")}


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders["qwen3_vl"], tmp_path / "model")


def change(folder, file="config.json", **values):
    path = folder / file
    raw = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(raw | values))
    return folder


def sentence(source, **options):
    """What loading a folder is refused with; reading its config alone must say the same."""
    with pytest.raises(JvidpruneError) as error:
        load_model(source, **options)
    with pytest.raises(JvidpruneError) as early:
        read_config(source)
    assert str(error.value) == str(early.value)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- quantised --------------------------------------------------------------------------------------------------------

QUANTISED = {
    "GPTQ, 4 bit": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "AWQ, 4 bit": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "FP8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "FBGEMM FP8": {"quant_method": "fbgemm_fp8"},
    "fine-grained FP8": {"quant_method": "finegrained_fp8"},
    "bitsandbytes, 4 bit": {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
    "bitsandbytes, 8 bit": {"_load_in_4bit": False, "_load_in_8bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}, "format": "pack-quantized"},
    "quanto": {"quant_method": "quanto", "weights": "int8"},
    "HQQ": {"quant_method": "hqq", "quant_config": {}},
    "AQLM": {"quant_method": "aqlm"},
    "EETQ": {"quant_method": "eetq", "weights": "int8"},
    "torchao": {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    "MXFP4": {"quant_method": "mxfp4"},
    "VPTQ": {"quant_method": "vptq"},
    "HIGGS": {"quant_method": "higgs"},
    "SpQR": {"quant_method": "spqr"},
    "BitNet": {"quant_method": "bitnet"},
    "AutoRound, 4 bit": {"quant_method": "auto-round", "bits": 4},
    "quark": {"quant_method": "quark"},
    "a_new_method": {"quant_method": "a_new_method"},
    "unnamed method, 3 bit": {"bits": 3},
}


@pytest.mark.parametrize("method", QUANTISED)
@pytest.mark.parametrize("where", ["top", "text_config", "nested"])
def test_a_quantised_checkpoint_is_named_from_its_config(folder, method, where):
    raw = json.loads((folder / "config.json").read_text())
    found = {"quantization_config": QUANTISED[method]}
    if where == "top":
        raw |= found
    elif where == "text_config":
        raw["text_config"] |= found
    else:
        raw["thinker_config"] = {"text_config": found}
    (folder / "config.json").write_text(json.dumps(raw))
    # From its configuration alone: the weights are not there.
    (folder / "model.safetensors").unlink()
    text = sentence(folder)
    assert f"is quantised ({method}, as config.json says)" in text
    assert "load the checkpoint that it was made from" in text


@pytest.mark.parametrize(
    ("file", "values", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, "GPTQ, 4 bit"),
        ("quantize_config.json", {"bits": 8, "quant_method": "awq"}, "AWQ, 8 bit"),
        ("quant_config.json", {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}, "AWQ, 4 bit"),
        ("hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": {}}, "ModelOpt"),
        ("quanto_qmap.json", {"lm_head": {"weights": "qint8"}}, "quanto"),
    ],
)
def test_a_file_of_its_own_that_describes_a_quantisation(folder, file, values, method):
    text = sentence(change(folder, file, **values))
    assert f"is quantised ({method}, as {file} says)" in text


@pytest.mark.parametrize(
    "values",
    [
        {"quantization_config": None},
        {"quantization_config": {}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}},
        {"quantization_config": {"_load_in_4bit": False, "_load_in_8bit": False}},
    ],
)
def test_settings_of_a_quantisation_that_is_off_are_none(folder, values):
    assert load_model(change(folder, **values)).family == "qwen3_vl"


@pytest.mark.parametrize("value", ["gptq", 4, ["gptq"], {"quant_method": 7}, {"quant_method": ["a"], "bits": "x"}])
def test_a_malformed_quantisation_is_one_sentence(folder, value):
    assert "is quantised (" in sentence(change(folder, quantization_config=value))


@pytest.mark.parametrize("names", [("qweight", "qzeros", "scales"), ("weight_packed", "weight_scale"), ("SCB",)])
def test_tensors_of_a_quantised_checkpoint_without_a_description(folder, names):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight"))
    value = tensors.pop(name)
    for part in names:
        tensors[name.removesuffix("weight") + part] = value.astype(np.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(JvidpruneError, match=r"these are tensors of a quantised checkpoint"):
        load_model(folder)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin", None])
def test_an_adapter_alone_is_refused_with_its_base(folder, config, weights):
    (folder / "model.safetensors").unlink()
    if not config:
        (folder / "config.json").unlink()
    if weights:
        (folder / weights).write_bytes(b"x")
    change(folder, "adapter_config.json", base_model_name_or_path="Qwen/Qwen3-VL-8B-Instruct", peft_type="LORA")
    text = sentence(folder)
    assert "is an adapter for Qwen/Qwen3-VL-8B-Instruct, no whole model (adapter_config.json)" in text
    assert "merge" in text


def test_an_adapter_beside_a_whole_model_is_not_left_out_in_silence(folder):
    change(folder, "adapter_config.json", base_model_name_or_path=None)
    assert load_model(folder).family == "qwen3_vl"
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    assert "holds a whole model and an adapter (adapter_config.json)" in sentence(folder)


def test_an_adapter_that_was_never_merged_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.0.self_attn.q_proj.weight"))
    tensors[name.replace("weight", "base_layer.weight")] = tensors.pop(name)
    tensors[name.replace("weight", "lora_A.default.weight")] = np.zeros((2, 16), np.float32)
    save_file({f"base_model.model.{name}": value for name, value in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(JvidpruneError, match=r"tensors of an adapter that is not merged: merge it"):
        load_model(folder)


# --- wrapped names ----------------------------------------------------------------------------------------------------

_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def test_wrappers_go_in_any_order_and_inside_names():
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    for count in (1, 2, 3):
        for prefix in itertools.permutations(_WRAPPERS, count):
            assert unwrapped("".join(prefix) + name) == name
    inside = "module.model.language_model._orig_mod.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight"
    assert unwrapped(inside) == name
    assert unwrapped("model.submodule.weight") == "model.submodule.weight"
    assert unwrapped("model.visual.merger.module_list.0.weight") == "model.visual.merger.module_list.0.weight"


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_names_load_the_same(folders, tmp_path, family, prefix):
    plain = load_model(folders[family], dtype="float32")
    folder = shutil.copytree(folders[family], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + name: value for name, value in tensors.items()}, folder / "model.safetensors")
    wrapped = load_model(folder, dtype="float32")
    for one, other in zip(jax.tree.leaves(plain.model), jax.tree.leaves(wrapped.model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_tensor_with_and_without_its_wrapper_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    save_file(tensors | {f"module.{name}": tensors[name]}, folder / "model.safetensors")
    with pytest.raises(JvidpruneError, match="both mean one"):
        load_model(folder)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.pth"])
def test_pickles_alone_are_refused(folder, file):
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(b"x")
    with pytest.raises(JvidpruneError, match=r"holds pickle weights .* convert to safetensors"):
        load_model(folder)


# --- a hub id ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_loaded_costs_no_weights(folders, tmp_path):
    """A hub on this machine is asked for small files alone."""
    made = {}

    def put(name, **config):
        made[f"owner/{name}"] = change(shutil.copytree(folders["qwen3_vl"], tmp_path / name), **config)
        return made[f"owner/{name}"]

    put("other", model_type="qwen2_vl", architectures=["Qwen2VLForConditionalGeneration"])
    put("awq", quantization_config={"quant_method": "awq", "bits": 4})
    change(put("gptq"), "quantize_config.json", bits=4)
    put("wide", hidden_size=-1, text_config={"hidden_size": -1})
    adapter = put("adapter")
    change(adapter, "adapter_config.json", base_model_name_or_path="owner/whole")
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (put("bare") / "config.json").unlink()
    says = {
        "owner/other": "owner/other cannot be loaded: unknown architecture (Qwen2VLForConditionalGeneration, qwen2_vl)",
        "owner/awq": "owner/awq is quantised (AWQ, 4 bit",
        "owner/gptq": "owner/gptq is quantised (GPTQ, 4 bit",
        "owner/wide": "-1",
        "owner/adapter": "owner/adapter is an adapter for owner/whole",
        "owner/bare": "owner/bare has no config.json",
    }
    with serving(made, tmp_path / "cache") as hub:
        for source, text in says.items():
            for load in (read_config, load_model, VideoLLM.load):
                with pytest.raises(JvidpruneError) as error:
                    load(source)
                assert text in str(error.value)
        assert "config.json" in hub.asked
        assert not hub.weights


def test_a_hub_id_is_checked_before_its_weights_come_and_pinned_to_what_was_checked(folders, tmp_path):
    pickled = shutil.copytree(folders["qwen3_vl"], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with serving({"a/whole": folders["qwen3_vl"], "a/pickled": pickled}, tmp_path / "cache") as hub:
        assert read_config("a/whole", "v2")[0] == "qwen3_vl"
        assert not hub.weights
        assert load_model("a/whole", revision="v2").folder.name == COMMIT
        assert hub.weights == ["model.safetensors"]
        assert set(hub.revisions) == {"v2", COMMIT}
        with pytest.raises(JvidpruneError, match=r"a/pickled has no safetensors files on the hub.* pickles"):
            load_model("a/pickled")
        assert hub.weights == ["model.safetensors"]
        with pytest.raises(JvidpruneError, match=r"a/none is no local folder and could not be fetched"):
            load_model("a/none")


@pytest.mark.parametrize(
    "kind",
    ["qwen2_vl", "qwen2_5_omni", "llava_next_video", "qwen3_omni_moe", "molmo", "llava"],
)
def test_another_architecture_is_never_suggested(folder, kind):
    text = sentence(change(folder, model_type=kind, architectures=None))
    assert f"unknown architecture ({kind})" in text
    assert "Did you mean" not in text


def test_a_revision_belongs_to_a_hub_id(folder):
    with pytest.raises(JvidpruneError, match="is a local folder; a revision, here 'v1', is one of a hub id"):
        load_model(folder, revision="v1")


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "stored", "loaded"),
    [
        ({"torch_dtype": "bfloat16"}, np.float32, "bfloat16"),
        ({"dtype": "bfloat16"}, np.float32, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, np.float32, "float16"),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, np.float16, "float32"),
        ({"torch_dtype": "half"}, np.float32, "float16"),
        ({"torch_dtype": "auto"}, ml_dtypes.bfloat16, "bfloat16"),
        ({"torch_dtype": None}, np.float16, "float16"),
        ({}, ml_dtypes.bfloat16, "bfloat16"),
        ({}, np.float32, "float32"),
    ],
)
@pytest.mark.slow
def test_the_type_is_that_of_the_checkpoint(folder, config, stored, loaded):
    tensors = load_file(folder / "model.safetensors")
    # A few numbers in another type do not decide.
    kept = {name: value for name, value in tensors.items() if value.ndim == 1}
    save_file({name: value.astype(stored) for name, value in tensors.items()} | kept, folder / "model.safetensors")
    change(folder, **config)
    assert planned_dtype(folder, "auto") == loaded
    assert load_model(folder, dtype="auto").dtype == loaded
    llm = VideoLLM.load(folder)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(llm.loaded.model)} == {loaded}
    assert load_model(folder, dtype="float32").dtype == "float32"


def test_a_nested_type_counts_and_a_strange_one_is_refused(folder):
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"] |= {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(raw))
    assert load_model(folder, dtype="auto").dtype == "bfloat16"
    for value in ("float64", "float8_e4m3fn", "int8", 7, ["bfloat16"], {"": "bfloat16"}):
        change(folder, torch_dtype=value)
        with pytest.raises(JvidpruneError, match=r"config.json gives torch_dtype .* which models do not run in"):
            load_model(folder, dtype="auto")
        # A type that was asked for needs nothing of the checkpoint.
        assert load_model(folder, dtype="float32").dtype == "float32"
    for value in ("float64", "int8", "", "bf16"):
        with pytest.raises(JvidpruneError, match="dtype must be one of auto, float32, bfloat16, float16"):
            load_model(folder, dtype=value)


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.slow
def test_every_type_answers(folders, family, dtype):
    llm = VideoLLM.load(folders[family], dtype=dtype)
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    video = llm.encode(frames, fps=2.0)
    assert video.tokens.features.dtype == jnp.dtype(dtype)
    assert jnp.isfinite(video.tokens.features.astype(jnp.float32)).all()
    assert llm.ask(video, "What?", reducer=llm.reducer("random"), ratio=0.5, max_new_tokens=2).prompt > 0


# --- tokenizers -------------------------------------------------------------------------------------------------------

FIVE = {
    "backend": "tokenizers",
    "eos_token": "<|im_end|>",
    "is_local": False,
    "extra_special_tokens": ["<|vision_start|>", "<|vision_end|>"],
    "tokenizer_class": "TokenizersBackend",
}
"""tokenizer_config.json as transformers 5 writes it: a class and a list of tokens that 4.57 does not know."""


@pytest.mark.parametrize(
    "values",
    [
        FIVE,
        FIVE | {"tokenizer_class": "PreTrainedTokenizerFast"},
        FIVE | {"extra_special_tokens": {}},
        {"tokenizer_class": "ATokenizerOfTomorrow"},
        {"tokenizer_class": "Qwen9Tokenizer", "added_tokens_decoder": []},
        {"tokenizer_class": 7},
    ],
)
def test_tokenizer_json_suffices(folder, values):
    plain = load_tokenizer(folder)
    change(folder, "tokenizer_config.json", **values)
    found = load_tokenizer(folder)
    for text in ("What happens?", "<|im_start|>user\n<|vision_start|><|video_pad|>é<|im_end|>"):
        assert found.encode(text) == plain.encode(text)
        assert found.decode(found.encode(text)) == plain.decode(plain.encode(text))
    assert found.token_id("<|im_end|>") == plain.token_id("<|im_end|>")
    # Without tokenizer.json nothing is guessed.
    (folder / "tokenizer.json").unlink()
    with pytest.raises(JvidpruneError):
        load_tokenizer(folder)


@pytest.mark.parametrize("place", ["top", "text_config", "llm_config"])
@pytest.mark.parametrize("value", [7, [7], [7, 9]])
def test_ends_of_text_come_from_config_json_too(folder, place, value):
    tokenizer = load_tokenizer(folder)
    own = set(end_ids(folder, tokenizer))
    raw = json.loads((folder / "config.json").read_text())
    part = raw if place == "top" else raw.setdefault(place, {})
    part["eos_token_id"] = value
    (folder / "config.json").write_text(json.dumps(raw))
    told = {value} if isinstance(value, int) else set(value)
    assert set(end_ids(folder, tokenizer)) == own | told
    change(folder, "generation_config.json", eos_token_id=[11])
    assert set(end_ids(folder, tokenizer)) == own | told | {11}


def test_ends_of_text_that_are_no_ids_are_refused(folder):
    tokenizer = load_tokenizer(folder)
    for value in ("<|im_end|>", [7, "x"], -1, True, 1.5, {}):
        with pytest.raises(JvidpruneError, match=r"config.json gives eos_token_id .*; it must be an id or a list"):
            end_ids(change(folder, eos_token_id=value), tokenizer)


# --- lmms-lab's flat configs ------------------------------------------------------------------------------------------

FLAT = tiny_checkpoints.CONFIGS["llava_video"] | {"mm_newline_position": "one_token"}
FLAT = {key: value for key, value in FLAT.items() if not key.startswith("mm_spatial")}


def read(tmp_path, **values):
    (tmp_path / "config.json").write_text(json.dumps(FLAT | values))
    family, config, _ = read_config(tmp_path)
    assert family == "llava_onevision"
    return config


def test_lmms_lab_onevision_configs_say_how_videos_are_pooled_and_closed(tmp_path):
    config = read(tmp_path)
    assert (config.pool, config.newline, config.grid) == ("bilinear", "one_token", (4, 4))
    for mode in ("bilinear", "average", "max"):
        assert read(tmp_path, mm_spatial_pool_mode=mode).pool == mode
    override = {"vision_config_override": FLAT["vision_config_override"] | {"image_size": 28}}
    assert read(tmp_path, **override, mm_spatial_pool_mode="bilinear").grid == (4, 4)
    assert read(tmp_path, **override, mm_spatial_pool_mode="average").grid == (3, 3)
    for merge, newline in (("spatial_unpad", "one_token"), ("spatial", "no_token"), ("flat", "no_token")):
        assert read(tmp_path, mm_patch_merge_type=merge).newline == newline
    # What published configs write out.
    same = {"mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": None, "mm_resampler_type": None}
    assert read(tmp_path, **same, mm_patch_merge_type="spatial_unpad") == config
    assert read(tmp_path, mm_spatial_pool_stride=2) == config


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("mm_spatial_pool_mode", ("conv", "none", "", 2, ["bilinear"])),
        ("mm_spatial_pool_stride", (1, 4, 0, "2", 2.5)),
        ("mm_patch_merge_type", ("unpad", "", None, 3, ["flat"])),
        ("mm_resampler_type", ("spatial_pool", "qformer", "perceiver", "masked_drop", "", 0)),
    ],
)
def test_lmms_lab_onevision_configs_are_refused_where_they_cannot_be_obeyed(tmp_path, key, values):
    for value in values:
        with pytest.raises(JvidpruneError, match=rf"{key} .* is not supported; allowed: "):
            read(tmp_path, **{key: value})


def test_a_pooling_mode_reaches_the_tokens(folders, tmp_path):
    """The same weights pooled by average and by maximum: the tokens of a frame differ, their number does not."""
    nested = load_file(folders["llava_onevision"] / "model.safetensors")
    folder = shutil.copytree(folders["llava_onevision"], tmp_path / "model")
    save_file(nested, folder / "model.safetensors")
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = {}
    for mode in ("bilinear", "average", "max"):
        (folder / "config.json").write_text(json.dumps(FLAT | {"mm_spatial_pool_mode": mode}))
        found[mode] = np.asarray(VideoLLM.load(folder, dtype="float32").encode(frames).tokens.features)
    assert found["max"].shape == found["bilinear"].shape == (2, 16, 16)
    # On an even side bilinear and average are the same.
    np.testing.assert_allclose(found["average"], found["bilinear"], atol=1e-5)
    assert np.abs(found["max"] - found["average"]).max() > 1e-3
