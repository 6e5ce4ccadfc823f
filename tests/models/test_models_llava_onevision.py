"""LLaVA-OneVision: golden parity stage by stage, every naming variant, evidence, cache, generation, meshes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import untrained
from helpers.folders import parameters
from helpers.places import GOLDEN
from safetensors.numpy import load_file, save_file

from jvidprune import JvidpruneError
from jvidprune.models import attention, end_ids, load_model, load_tokenizer
from jvidprune.models.generate import decode, generate
from jvidprune.models.prefill import prefill, read_prompt
from jvidprune.models.sampling import Sampling, kept_logits, sample
from jvidprune.parity.models import compare_model_folder

GOLDEN = GOLDEN / "models" / "llava_onevision"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return untrained.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    return load_model(tiny_folder, dtype=jnp.float32)


@pytest.fixture(scope="session")
def golden_model():
    return load_model(GOLDEN, dtype=jnp.float32)


encode = jax.jit(lambda model, x, needs, chunk: model.encode(x, needs, chunk=chunk), static_argnums=(2, 3))
"""Compiled once for every shape, set of evidence and chunk that the tests share."""


@pytest.fixture(scope="session")
def tiny_video(tiny):
    """All evidence of five frames."""
    return encode(tiny.model, pixels(5), tiny.model.provides, 8)


def pixels(frames, side=28, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (frames, 3, side, side)).astype(np.float32)


def embeddings(model, length, rows=1, seed=0):
    ids = np.random.default_rng(seed).integers(0, 200, (rows, length))
    return np.asarray(model.embed_text(jnp.asarray(ids)))


def rewrite(folder, tensors, config, shards=1):
    """A checkpoint folder, with an index when there are several shards."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def golden_tensors():
    return load_file(GOLDEN / "model.safetensors"), json.loads((GOLDEN / "config.json").read_text())


# --- golden parity ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def reports():
    return {report.file: report for report in compare_model_folder(GOLDEN)}


@pytest.mark.parametrize("file", ["io.npz", "io3.npz"])
def test_every_stage_agrees_with_the_reference(reports, file):
    keys = set(np.load(GOLDEN / file).files) - {"config", "pixel_values_videos", "input_ids", "pruned_keep"}
    rows = {row.what: row for row in reports[file].rows}
    assert rows.keys() == keys
    assert [row for row in rows.values() if row.verdict != "ok"] == []


def test_an_unknown_stage_array_fails_the_comparison(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(GOLDEN / name)
    data = dict(np.load(GOLDEN / "io.npz"))
    kept = {key: data[key] for key in ("config", "pixel_values_videos", "input_ids", "pooled")}
    np.savez(folder / "io.npz", **kept, novel=np.zeros(3), pooled_wrong=data["pooled"])
    (report,) = compare_model_folder(folder)
    assert {row.what: row.verdict for row in report.rows} == {
        "pooled": "ok",
        "novel": "not compared",
        "pooled_wrong": "not compared",
    }
    assert not report.passed


# --- naming variants and configs -------------------------------------------------------------------------------------


def nested(name, tower):
    if name.startswith("vision_tower.vision_model."):
        return "model.vision_tower." + tower + name.removeprefix("vision_tower.vision_model.")
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return name.removeprefix("language_model.") if "lm_head" in name else "model." + name


def lmms(name):
    if name.startswith("vision_tower."):
        return "model.vision_tower." + name
    name = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
    name = name.replace("multi_modal_projector.linear_2", "model.mm_projector.2")
    return "model.image_newline" if name == "image_newline" else name.removeprefix("language_model.")


VARIANTS = {
    "nested with vision_model": lambda name: nested(name, "vision_model."),
    "nested without vision_model": lambda name: nested(name, ""),
    "published without vision_model": lambda name: name.replace("vision_model.", ""),
    "lmms-lab": lmms,
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_naming_variant_fills_the_same_parameters(tmp_path, golden_model, variant, shards):
    tensors, config = golden_tensors()
    renamed = {VARIANTS[variant](name): value for name, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    if variant == "lmms-lab":
        text, vision = config["text_config"], config["vision_config"]
        config = {**text, "model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"]}
        config |= {"vision_config_override": vision, "mm_vision_tower": "x", "mm_vision_select_layer": -2}
    loaded = load_model(rewrite(tmp_path / "model", renamed, config, shards), dtype=jnp.float32)
    expected = parameters(golden_model.model)
    found = parameters(loaded.model)
    assert loaded.family == "llava_onevision"
    assert loaded.config.text == golden_model.config.text
    assert loaded.config.vision == golden_model.config.vision
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_both_rope_layouts_give_one_config(tmp_path, golden_model):
    tensors, config = golden_tensors()
    text = config["text_config"]
    text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
    assert load_model(rewrite(tmp_path / "m", tensors, config), dtype=jnp.float32).config == golden_model.config


def test_missing_config_keys_take_the_defaults_of_qwen2_and_siglip():
    from jvidprune.models.llava_onevision import Config

    config = Config.from_hf({"model_type": "llava_onevision", "text_config": {}, "vision_config": {}})
    assert (config.text.width, config.text.layers, config.text.rope.theta, config.text.eps) == (4096, 32, 1e4, 1e-6)
    assert (config.vision.width, config.vision.patch_size, config.vision.eps) == (768, 16, 1e-6)
    assert config.vision.activation == "gelu_pytorch_tanh"
    assert Config.from_hf({"text_config": {}}).vision.tokens == 729
    published = Config.from_hf({"text_config": {}}).vision
    assert (published.shallow_block, published.deep_block) == (5, 24)


@pytest.mark.parametrize("flag", [True, False])
def test_the_head_is_tied_exactly_when_the_file_has_none(tmp_path, flag):
    tensors, config = golden_tensors()
    del tensors["language_model.lm_head.weight"]
    config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = flag, not flag
    model = load_model(rewrite(tmp_path / "m", tensors, config), dtype=jnp.float32).model
    x = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    scale = tensors["language_model.model.norm.weight"]
    normed = x / np.sqrt((x**2).mean() + 1e-6) * scale
    expected = normed @ tensors["language_model.model.embed_tokens.weight"].T
    np.testing.assert_allclose(model.lm.logits(jnp.asarray(x)), expected, atol=1e-4)


def test_blocks_behind_the_feature_layer_are_not_loaded(tmp_path):
    tensors, config = golden_tensors()
    config["vision_feature_layer"] = -2
    loaded = load_model(rewrite(tmp_path / "m", tensors, config), dtype=jnp.float32)
    assert loaded.config.vision.layers == 2
    data = np.load(GOLDEN / "io.npz")
    hidden, _ = loaded.model.vision(data["pixel_values_videos"][0])
    np.testing.assert_allclose(hidden, data["vit_hidden"][2], atol=5e-5)


def test_a_pooling_head_comes_from_another_folder(tmp_path, tiny_folder):
    donor = load_file(tiny_folder / "model.safetensors")
    bare = {name: value for name, value in donor.items() if ".head." not in name}
    config = json.loads((tiny_folder / "config.json").read_text())
    folder = rewrite(tmp_path / "bare", bare, config)
    siglip = {name.removeprefix("vision_tower."): v for name, v in donor.items() if name.startswith("vision_tower.")}
    siglip["text_model.final_layer_norm.weight"] = np.ones(3, np.float32)
    original = rewrite(tmp_path / "siglip", siglip, {})
    assert "attention_pooling_head" not in load_model(folder).model.provides
    model = load_model(folder, dtype=jnp.float32, pooling_head=original).model
    np.testing.assert_array_equal(model.vision.head.probe[...], donor["vision_tower.vision_model.head.probe"])


def test_progress_counts_every_byte(tiny_folder):
    calls = []
    load_model(tiny_folder, dtype=jnp.bfloat16, progress=lambda *call: calls.append(call))
    weights = sum(value.size for value in load_file(tiny_folder / "model.safetensors").values())
    assert calls[-1][:2] == (2 * weights, 2 * weights)
    assert [c[0] for c in calls] == sorted(c[0] for c in calls)


def test_a_hub_id_is_fetched_without_pickles(monkeypatch, tiny_folder):
    import huggingface_hub

    asked = {}

    def download(repo, *, revision, allow_patterns):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_model("owner/name", revision="r1").folder == tiny_folder
    assert asked["repo"] == "owner/name"
    assert asked["revision"] == "r1"
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked["patterns"])

    def fail(*_, **__):
        raise OSError("no network\nlong explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(JvidpruneError, match=r"owner/name is no local folder .* hub: no network"):
        load_model("owner/name")


# --- errors ----------------------------------------------------------------------------------------------------------


def test_all_problems_of_the_tensors_are_in_one_message(tmp_path):
    tensors, config = golden_tensors()
    del tensors["image_newline"]
    for layer in range(3):
        del tensors[f"language_model.model.layers.{layer}.mlp.up_proj.weight"]
    tensors["language_model.model.layers.1.surprise"] = np.ones(2, np.float32)
    name = "multi_modal_projector.linear_1.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    tensors["multi_modal_projector.linear_1.bias"] = tensors["multi_modal_projector.linear_1.bias"].astype(np.int32)
    with pytest.raises(JvidpruneError) as error:
        load_model(rewrite(tmp_path / "m", tensors, config))
    text = str(error.value)
    assert "4 missing" in text
    assert "image_newline" in text
    assert "language_model.model.layers.{0-2}.mlp.up_proj.weight" in text
    assert "1 unused: language_model.model.layers.1.surprise" in text
    assert f"{name} has shape (48, 64) instead of (64, 48)" in text
    assert "1 not stored as floating point: multi_modal_projector.linear_1.bias" in text


def broken(tmp_path, what):
    tensors, config = golden_tensors()
    if what == "no config":
        folder = rewrite(tmp_path / "m", tensors, config)
        (folder / "config.json").unlink()
    elif what == "unknown architecture":
        config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        folder = rewrite(tmp_path / "m", tensors, config)
    elif what == "other family":
        other = {f"visual.blocks.{i}.norm1.weight": np.ones(2, np.float32) for i in range(3)}
        folder = rewrite(tmp_path / "m", other, config)
    elif what == "missing shard":
        folder = rewrite(tmp_path / "m", tensors, config, shards=3)
        (folder / "model-00002-of-00003.safetensors").unlink()
    elif what == "tensor not in shard":
        folder = rewrite(tmp_path / "m", tensors, config, shards=2)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"]["image_newline"] = "model-00002-of-00002.safetensors"
        index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "truncated":
        folder = rewrite(tmp_path / "m", tensors, config)
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif what == "pickle":
        folder = rewrite(tmp_path / "m", tensors, config)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif what == "nothing":
        folder = rewrite(tmp_path / "m", tensors, config)
        (folder / "model.safetensors").unlink()
    elif what in ("../out.safetensors", "/abs.safetensors", "a\\b.safetensors", "pytorch_model.bin", "weights.txt"):
        folder = rewrite(tmp_path / "m", tensors, config)
        (folder / "model.safetensors").rename(folder / "other.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"image_newline": what}}))
    elif what == "bad index":
        folder = rewrite(tmp_path / "m", tensors, config, shards=2)
        (folder / "model.safetensors.index.json").write_text("{")
    else:
        config["text_config"] |= {"rope": {"rope_scaling": {"rope_type": "yarn"}}, "act": {"hidden_act": "relu"}}[what]
        folder = rewrite(tmp_path / "m", tensors, config)
    return folder


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("no config", "has no config.json"),
        ("unknown architecture", "unknown architecture .*LlamaForCausalLM.* supported: llava_onevision"),
        ("other family", "says it is llava_onevision in config.json, but its tensors are those of a Qwen-VL model"),
        ("missing shard", "lacks 1 of 3 shards: model-00002-of-00003.safetensors"),
        ("tensor not in shard", "lists 2 tensors that its files lack: .*ghost"),
        ("truncated", "model.safetensors is truncated or no safetensors file"),
        ("pickle", r"pickle weights \(pytorch_model.bin\)"),
        ("nothing", "has neither model.safetensors nor model.safetensors.index.json"),
        ("../out.safetensors", "outside the folder"),
        ("/abs.safetensors", "outside the folder"),
        ("a\\b.safetensors", "outside the folder"),
        ("pytorch_model.bin", "pickle weights are refused"),
        ("weights.txt", "is no safetensors file"),
        ("bad index", "is no readable JSON file"),
        ("rope", "yarn needs factor"),
        ("act", "activation 'relu'"),
    ],
)
def test_a_bad_checkpoint_is_one_sentence(tmp_path, what, sentence):
    with pytest.raises(JvidpruneError, match=sentence) as error:
        load_model(broken(tmp_path, what))
    assert "\n" not in str(error.value)


def test_a_source_that_is_neither_folder_nor_hub_id():
    with pytest.raises(JvidpruneError, match="neither a folder nor a hub id"):
        load_model("/no/such/folder")


def test_more_tokens_than_positions_or_slots(tiny):
    model = tiny.model
    lm = dataclasses.replace(model.lm.config, max_positions=16)
    graph, state = nnx.split(model.lm)
    short = nnx.merge(graph, state)
    short.config = lm
    x, valid = jnp.zeros((1, 17, lm.width)), jnp.ones((1, 17), bool)
    with pytest.raises(JvidpruneError, match="17 tokens, but the model has 16 positions"):
        read_prompt(short, x, jnp.arange(17)[None], valid, short.empty_cache(1, 20))
    with pytest.raises(JvidpruneError, match="does not fit a cache of 10 slots"):
        read_prompt(model.lm, x, jnp.arange(17)[None], valid, model.lm.empty_cache(1, 10))


# --- the tower and its evidence --------------------------------------------------------------------------------------


def test_evidence_equals_the_reference_attention_of_each_block(golden_model):
    data = np.load(GOLDEN / "io.npz")
    needs = golden_model.model.provides
    video = encode(golden_model.model, data["pixel_values_videos"][0], needs, 8)
    received = data["vision_attention_received"]
    # 3 blocks: AOT's 5 of 26 scales to block 0, the last but one is block 1; sums over the 49 queries.
    np.testing.assert_allclose(video.evidence["attention_shallow"], received[0] * 49, atol=5e-5)
    np.testing.assert_allclose(video.evidence["attention_deep"], received[1] * 49, atol=5e-5)
    np.testing.assert_allclose(video.evidence["attention_last"], data["saliency_pooled"], atol=1e-6)
    np.testing.assert_allclose(video.evidence["features_unpooled"], data["projector"], atol=5e-5)
    assert (video.grid, video.unpooled_grid) == ((4, 4), (7, 7))

    tensors, _ = golden_tensors()
    block = "vision_tower.vision_model.encoder.layers.2."
    x = data["vit_hidden"][2]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * tensors[block + "layer_norm1.weight"] + tensors[block + "layer_norm1.bias"]
    keys = x @ tensors[block + "self_attn.k_proj.weight"].T + tensors[block + "self_attn.k_proj.bias"]
    keys = keys.reshape(2, 49, 4, 12).mean(axis=2)
    np.testing.assert_allclose(video.evidence["keys"], golden_model.model.pool(jnp.asarray(keys)), atol=5e-5)


def test_pooling_head_evidence_equals_a_numpy_computation(tiny, tiny_folder, tiny_video):
    data = load_file(tiny_folder / "model.safetensors")
    w = {k.removeprefix("vision_tower.vision_model."): v.astype(np.float32) for k, v in data.items()}
    hidden = np.asarray(jax.jit(lambda model, x: model.vision(x)[0])(tiny.model, pixels(5)))

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    x, d = norm(hidden, "post_layernorm"), 24
    kernel, bias = w["head.attention.in_proj_weight"], w["head.attention.in_proj_bias"]
    q = (w["head.probe"][0, 0] @ kernel[:d].T + bias[:d]).reshape(2, 12)
    k = (x @ kernel[d : 2 * d].T + bias[d : 2 * d]).reshape(5, 49, 2, 12)
    v = (x @ kernel[2 * d :].T + bias[2 * d :]).reshape(5, 49, 2, 12)
    scores = np.exp(np.einsum("hd,tmhd->thm", q, k) / np.sqrt(12))
    weights = scores / scores.sum(-1, keepdims=True)
    out = np.einsum("thm,tmhd->thd", weights, v).reshape(5, d)
    out = out @ w["head.attention.out_proj.weight"].T + w["head.attention.out_proj.bias"]
    inner = norm(out, "head.layernorm") @ w["head.mlp.fc1.weight"].T + w["head.mlp.fc1.bias"]
    inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    out = out + inner @ w["head.mlp.fc2.weight"].T + w["head.mlp.fc2.bias"]
    np.testing.assert_allclose(tiny_video.evidence["frame_embedding"], out, atol=1e-4)
    expected = tiny.model.pool(jnp.asarray(weights.mean(axis=1)))
    np.testing.assert_allclose(tiny_video.evidence["attention_pooling_head"], expected, atol=1e-6)


def test_chunks_of_frames_change_nothing(tiny, tiny_video):
    parts = encode(tiny.model, pixels(5), tiny.model.provides, 2)
    assert tiny_video.evidence.keys() == tiny.model.provides
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), tiny_video, parts)


def test_only_the_evidence_asked_for_is_attached(tiny):
    needs = frozenset({"keys", "text"})
    video = jax.eval_shape(lambda x, t: tiny.model.encode(x, needs, text=t), pixels(1), np.ones((3, 32)))
    assert video.evidence.keys() == {"keys", "text"}
    assert video.features.shape == (1, 16, 32)


def test_evidence_that_cannot_be_given_names_both(golden_model, tiny):
    frames = pixels(1, 45)
    with pytest.raises(JvidpruneError, match=r"llava_onevision cannot give evidence attention_pooling_head .*gives: "):
        golden_model.model.encode(frames, frozenset({"attention_pooling_head"}))
    with pytest.raises(JvidpruneError, match="the evidence text is the question, and none was passed"):
        tiny.model.encode(pixels(1), frozenset({"text"}))
    with pytest.raises(JvidpruneError, match="unknown evidence nonsense"):
        tiny.model.encode(pixels(1), frozenset({"nonsense"}))
    with pytest.raises(JvidpruneError, match=r"pixels must have shape \(frames, 3, 28, 28\), got \(1, 3, 27, 28\)"):
        tiny.model.encode(pixels(1)[:, :, 1:])
    with pytest.raises(JvidpruneError, match=r"blocks 0\.\.2, not 3"):
        tiny.model.vision(pixels(1), taps=(3,))


def test_no_attention_map_of_all_frames_is_ever_made(tiny):
    """24 frames in chunks of 8: the largest array of the whole program has the rows of one chunk of one block."""
    jaxpr = jax.make_jaxpr(lambda x: tiny.model.encode(x, frozenset({"attention_last", "keys"}), chunk=8))(pixels(24))
    maps = {shape for shape in all_shapes(jaxpr.jaxpr) if shape[-2:] == (49, 49)}
    assert maps == {(8, 2, 49, 49)}


def all_shapes(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (tuple(v.aval.shape) for v in eqn.outvars)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value if hasattr(value, "eqns") else None)
            if inner is not None:
                yield from all_shapes(inner)


# --- decoder, cache, generation --------------------------------------------------------------------------------------


def padded_pair(model):
    """A prompt of nine tokens padded to 13, once in front and once behind, with noise on the padding."""
    x = embeddings(model, 9)
    padded = np.random.default_rng(1).normal(size=(2, 13, 32)).astype(np.float32)
    padded[0, 4:], padded[1, :9] = x[0], x[0]
    valid = np.array([[False] * 4 + [True] * 9, [True] * 9 + [False] * 4])
    return x, padded, np.maximum(np.cumsum(valid, axis=1) - 1, 0), valid


def test_padding_on_either_side_changes_nothing(tiny):
    model = tiny.model
    x, padded, positions, valid = padded_pair(model)
    where, full = np.arange(9)[None], np.ones((1, 9), bool)
    alone, _ = prefill(model, x, where, full, capacity=14)
    both, cache = prefill(model, padded, positions, valid, capacity=18)
    np.testing.assert_allclose(both, np.repeat(alone, 2, axis=0), atol=1e-5)
    assert cache.position.tolist() == [9, 9]
    single = generate(model, x, where, full, max_new_tokens=6)
    pair = generate(model, padded, positions, valid, max_new_tokens=6)
    np.testing.assert_array_equal(pair, np.repeat(single, 2, axis=0))


def test_cached_decoding_in_two_segments_equals_the_full_forward(tiny):
    """With values added after the first two layers at the prompt's slots, across the boundary of the segments."""
    model, total, prompt = tiny.model, 11, 6
    ids = jnp.asarray(np.random.default_rng(2).integers(0, 200, (1, total)))
    added = np.zeros((2, 1, total, 32), np.float32)
    added[:, :, :prompt] = np.random.default_rng(3).normal(size=(2, 1, prompt, 32))

    @jax.jit
    def forward(model, ids, added):
        x, where, valid = model.embed_text(ids), jnp.arange(total)[None], jnp.ones((1, total), bool)
        by_layer, step = x, model.lm.step(where, valid)
        for layer in range(3):
            by_layer, _ = model.lm.run(by_layer, step, layer, layer + 1)
            by_layer = by_layer + added[layer] if layer < 2 else by_layer
        return model.lm.forward(x, where, valid, deepstack=added).logits, model.lm.logits(by_layer)

    @jax.jit
    def start(model, ids, added):
        cache = model.lm.empty_cache(1, total, boundaries=(1,))
        where, valid = jnp.arange(prompt)[None], jnp.ones((1, prompt), bool)
        return read_prompt(model.lm, model.embed_text(ids), where, valid, cache, deepstack=added)[:2]

    full, by_layer = forward(model, ids, added)
    np.testing.assert_allclose(by_layer, full, atol=2e-5)
    logits, cache = start(model, ids[:, :prompt], added[:, :, :prompt])
    assert [(segment.start, segment.stop) for segment in cache.segments] == [(0, 1), (1, 3)]
    np.testing.assert_allclose(logits[0], full[0, prompt - 1], atol=2e-5)
    step = jax.jit(lambda model, token, cache: model.lm.decode(token, cache))
    for i in range(prompt, total):
        logits, cache = step(model, ids[:, i], cache)
        np.testing.assert_allclose(logits[0], full[0, i], atol=2e-5)


def test_cache_boundaries_must_be_layers(tiny):
    with pytest.raises(JvidpruneError, match=r"boundaries \(2, 1\) must be increasing layers between 1 and 2"):
        tiny.model.lm.empty_cache(1, 8, boundaries=(2, 1))
    with pytest.raises(JvidpruneError, match="2 cache segments need as many capacities, got 3"):
        tiny.model.lm.empty_cache(1, (8, 4, 2), boundaries=(1,))


def test_attention_in_query_chunks_with_a_past_equals_a_brute_force_map(monkeypatch):
    rng = np.random.default_rng(3)
    b, s, m, heads, kv, d = 2, 11, 5, 4, 2, 6
    q, k, v = (rng.normal(size=(b, s, h, d)).astype(np.float32) for h in (heads, kv, kv))
    pk, pv = (rng.normal(size=(b, m, kv, d)).astype(np.float32) for _ in range(2))
    valid, old = rng.random((b, s)) < 0.8, rng.random((b, m)) < 0.6
    valid[:, 0] = True
    all_k, all_v = (np.repeat(np.concatenate(pair, axis=1), 2, axis=2) for pair in ((pk, k), (pv, v)))
    scores = np.einsum("bqhd,bkhd->bhqk", q, all_k) / np.sqrt(d)
    seen = np.concatenate([np.repeat(old[:, None], s, 1), np.tril(np.ones((s, s), bool)) & valid[:, None]], axis=2)
    weights = np.where(seen[:, None], np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, all_v)
    past = attention.Past(pk, pv, old)
    for chunk in (256, 4):
        monkeypatch.setattr(attention, "QUERY_CHUNK", chunk)
        # A function of its own each time, so that it is traced with this chunk.
        attend = jax.jit(lambda q, k, v, past: attention.attend(q, attention.Keys(k, v, valid), past))
        ours = attend(q, k, v, past)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    rows = jnp.asarray([[10, 3], [2, 7]])
    picked = np.stack([weights[i][:, np.asarray(rows[i])] for i in range(b)])
    probe = jax.jit(lambda q, k, v, past: attention.probe(q, rows, attention.Keys(k, v, valid), past))
    np.testing.assert_allclose(probe(q, k, v, past), picked, atol=1e-6)


def test_bfloat16_follows_float32(tiny, tiny_folder, tiny_video):
    half = load_model(tiny_folder).model
    assert {str(p.dtype) for p in parameters(half).values()} == {"bfloat16"}
    video = encode(half, pixels(5), tiny.model.provides, 8)
    assert video.features.dtype == jnp.bfloat16
    assert video.evidence["attention_last"].dtype == jnp.float32
    exact, rough = np.asarray(tiny_video.features), np.asarray(video.features, np.float32)
    assert np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()
    x, where, valid = embeddings(tiny.model, 9), np.arange(9)[None], np.ones((1, 9), bool)
    exact, _ = prefill(tiny.model, x, where, valid, capacity=14)
    rough, cache = prefill(half, x, where, valid, capacity=14)
    assert cache.segments[0].k.dtype == jnp.bfloat16
    assert rough.dtype == jnp.float32
    assert np.abs(np.asarray(exact) - np.asarray(rough)).max() < 0.1 * np.abs(np.asarray(exact)).max()


def top_p_numpy(logits, top_p):
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    p = np.exp(logits - logits.max())
    p /= p.sum()
    kept, total = set(), 0.0
    for i in order:
        if kept and total >= top_p:
            break
        kept.add(i)
        total += p[i]
    return kept


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1.0])
def test_top_p_keeps_the_smallest_sufficient_set(top_p):
    logits = np.random.default_rng(4).normal(size=(5, 40)).astype(np.float32) * 2
    logits[0, :4] = logits[0].max() + 1
    kept = np.isfinite(np.asarray(kept_logits(jnp.asarray(logits), top_p)))
    for row, values in zip(kept, logits, strict=True):
        assert set(np.flatnonzero(row)) == top_p_numpy(values.astype(np.float64), top_p)


def test_sampling_draws_by_temperature_and_is_reproducible():
    logits = jnp.asarray([[2.0, 1.0, 0.0, -50.0]] * 20000)
    draws = np.asarray(sample(logits, jax.random.key(0), 2.0, 1.0, greedy=False))
    expected = np.exp([1.0, 0.5, 0.0])
    np.testing.assert_allclose(np.bincount(draws, minlength=4)[:3] / 20000, expected / expected.sum(), atol=0.02)
    again = np.asarray(sample(logits, jax.random.key(0), 2.0, 1.0, greedy=False))
    np.testing.assert_array_equal(draws, again)
    assert sample(jnp.asarray([[1.0, 3.0, 3.0]]), jax.random.key(0), 0.0, 1.0, greedy=True).tolist() == [1]


def test_a_row_stops_at_its_end_of_sequence_and_settings_are_checked(tiny):
    model = tiny.model
    _, x, where, valid = padded_pair(model)
    x[1, :9] += 1.0  # two different prompts, so that the rows end at different times
    free = np.asarray(generate(model, x, where, valid, max_new_tokens=6))
    assert free.min() >= 0
    end = int(free[0, 2])
    stopped = np.asarray(generate(model, x, where, valid, max_new_tokens=6, eos_ids=(end,)))
    for row, original in zip(stopped, free, strict=True):
        hits = np.flatnonzero(original == end)
        last = hits[0] if len(hits) else 5
        np.testing.assert_array_equal(row[: last + 1], original[: last + 1])
        assert (row[last + 1 :] == -1).all()
    sampled = [
        generate(model, x, where, valid, max_new_tokens=6, sampling=Sampling(1.5, 0.9), key=jax.random.key(seed))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(sampled[0], sampled[1])
    assert (np.asarray(sampled[0]) != np.asarray(sampled[2])).any()
    logits, cache = prefill(model, x, where, valid, capacity=18)
    for settings, sentence in (
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 7}, "13 of 18 slots are taken"),
        ({"max_new_tokens": 1, "sampling": Sampling(1.0)}, "needs a random key"),
    ):
        with pytest.raises(JvidpruneError, match=sentence):
            decode(model, logits, cache, **settings)
    for settings, sentence in (
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive"),
    ):
        with pytest.raises(JvidpruneError, match=sentence):
            Sampling(**settings)


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_a_tokenizer_of_bytes_round_trips(tiny, tiny_folder):
    tokenizer = load_tokenizer(tiny_folder)
    text = "<|im_start|>user\n<video>\nWas ist das? žluťoučký 🦎<|im_end|>\n"
    ids = tokenizer.encode(text)
    assert max(ids) < tiny.config.text.vocab
    assert ids.count(tiny.config.video_token) == 1
    assert tokenizer.decode([*ids, -1]) == "user\n\nWas ist das? žluťoučký 🦎\n"
    assert end_ids(tiny_folder, tokenizer) == (tokenizer.token_id("<|endoftext|>"), tokenizer.token_id("<|im_end|>"))
    with pytest.raises(JvidpruneError, match=r"neither tokenizer_config.json nor tokenizer.json"):
        load_tokenizer(GOLDEN)


def test_a_configured_tokenizer_is_read_by_transformers(tmp_path, tiny_folder):
    (tmp_path / "tokenizer.json").write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    configured, plain = load_tokenizer(tmp_path), load_tokenizer(tiny_folder)
    text = "<|im_start|>user\nWas?<|im_end|>"
    assert configured.encode(text) == plain.encode(text)
    assert configured.decode(configured.encode(text)) == plain.decode(plain.encode(text))
    assert configured.token_id("<video>") == plain.token_id("<video>")
    assert configured.token_id("<nonsense>") is None
