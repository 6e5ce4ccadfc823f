"""InternVL: golden parity at two sizes, checkpoints, tower, evidence and prompts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_checkpoints as tiny
from helpers.families import all_agree, exported_again, prompt, same_parameters, script, seeded_folders, source
from helpers.folders import parameters, write

from jvidprune import JvidpruneError, reducers
from jvidprune.llm.conventions import settings_of
from jvidprune.llm.prompts.internvl import marks
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import load_model
from jvidprune.models.checkpoint.published import published
from jvidprune.models.internvl import Config
from jvidprune.stts import encoder_of
from jvidprune.video.decode import Clip

INPUTS = {"pixels_uint8", "input_ids"}


MADE = script("internvl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both golden sets as checkpoint folders with their io files."""
    sets = {"first": MADE.FIRST, "second": MADE.SECOND}
    return seeded_folders(tmp_path_factory.mktemp("internvl"), "internvl", sets, MADE.SEEDS)


@pytest.fixture(scope="module")
def model(folders):
    return load_model(folders["second"], dtype=jnp.float32).model


# --- golden parity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["first", "second"])
def test_every_array_of_the_reference_run_agrees(folders, name):
    """Qwen2 behind the 300M tower's blocks; Qwen3 behind the 6B tower's, with a norm behind them and a tied head."""
    shown = {"projector", "class_attention", "saliency", "logits_tail", "greedy_ids", "greedy_logits"}
    all_agree(folders[name], INPUTS, shown)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_other_prefixes_fill_the_same_parameters(folders, tmp_path):
    """The layout before transformers 4.52, without "model." and with the language model's own."""
    tensors, config = source(folders["first"])
    renamed = {name.removeprefix("model."): value for name, value in tensors.items() if name != "lm_head.weight"}
    renamed = {name.replace("language_model.", "language_model.model."): value for name, value in renamed.items()}
    renamed["language_model.lm_head.weight"] = tensors["lm_head.weight"]
    renamed["vision_tower.embeddings.mask_token"] = np.zeros((1, 1, 8), np.float16)
    found = parameters(load_model(write(tmp_path / "m", renamed, config), dtype=jnp.float32).model)
    expected = parameters(load_model(folders["first"], dtype=jnp.float32).model)
    same_parameters(found, expected)


def test_an_export_is_the_checkpoint_again(folders, tmp_path):
    loaded = load_model(folders["second"], dtype=jnp.float32)
    exported_again(loaded, folders["second"], tmp_path / "same")


def test_bad_checkpoints_are_one_sentence(folders, tmp_path):
    tensors, config = source(folders["first"])
    name = "model.vision_tower.encoder.layer.1.lambda_2"
    with pytest.raises(JvidpruneError, match=r"missing: model\.vision_tower\.encoder\.layer\.1\.lambda_2"):
        load_model(write(tmp_path / "a", {key: value for key, value in tensors.items() if key != name}, config))
    other = {"multi_modal_projector.linear_1.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(JvidpruneError, match=r"says it is internvl .* those of a LLaVA model"):
        load_model(write(tmp_path / "b", other, config))
    llava = tiny.CONFIGS["llava_onevision"]
    with pytest.raises(JvidpruneError, match=r"says it is llava_onevision .* those of an InternVL model"):
        load_model(write(tmp_path / "c", tensors, llava))
    remote = config | {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"]}
    with pytest.raises(JvidpruneError, match=r"unknown architecture \(InternVLChatModel.*internvl"):
        load_model(write(tmp_path / "d", tensors, remote))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"text_config": {"model_type": "llama"}}, "language model llama of InternVL is not supported; .*qwen3"),
        ({"downsample_ratio": 0.25}, "downsample_ratio 0.25"),
        ({"vision_feature_layer": -2}, "vision_feature_layer -2"),
        ({"vision_feature_select_strategy": "full"}, "strategy full of InternVL is not supported; allowed: default"),
        ({"projector_hidden_act": "swish2"}, "swish2"),
        ({"vision_config": {"image_size": [448, 336]}}, r"image_size \[448, 336\] of the tower .* squares"),
        ({"vision_config": {"image_size": 42}}, "a tower of 3 x 3 patches cannot be halved"),
        ({"vision_config": {"norm_type": "batch_norm"}}, "norm_type batch_norm"),
        ({"vision_config": {"use_absolute_position_embeddings": False}}, "only learned positions"),
        ({"text_config": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}}, "rope type 'linear'"),
    ],
)
def test_configs_that_the_port_does_not_have_are_refused(changed, says):
    with pytest.raises(JvidpruneError, match=says):
        Config.from_hf({"model_type": "internvl"} | changed)


def test_published_sizes():
    eight, large = published("internvl3_5-8b"), published("OpenGVLab/InternVL3-38B")
    for config in (eight, large):
        assert (config.grid, config.vision.tokens) == ((16, 16), 1024)
    assert (eight.vision.layers, eight.vision.width, eight.vision.qkv_bias, eight.vision.rms) == (24, 1024, True, False)
    assert (large.vision.layers, large.vision.width, large.vision.qk_norm, large.vision.rms) == (45, 3200, True, True)
    assert (eight.text.qk_norm, eight.text.qkv_bias) == (True, False)
    assert (large.text.qk_norm, large.text.qkv_bias) == (False, True)


# --- tower and evidence ----------------------------------------------------------------------------------------------


def test_evidence_is_the_towers_own(model):
    """Against attention written out in numpy from the parameters of each block; chunks change nothing."""
    pixels = jax.random.normal(jax.random.key(0), (3, 3, 12, 12))
    video = jax.jit(lambda x: model.encode(x, model.provides, chunk=2))(pixels)
    assert video.grid == (2, 2)
    evidence = {name: np.asarray(value) for name, value in video.evidence.items()}
    assert evidence.keys() == model.provides
    _, blocks = jax.jit(lambda x: model.vision(x, (0, 1, 2), hidden=(0, 1, 2)))(pixels)
    kernels = parameters(model)
    entering = [np.asarray(jax.jit(model.vision.embed)(pixels)), *(np.asarray(blocks[i].hidden) for i in (0, 1))]

    def normed(x, scale, eps=1e-6):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * scale

    def maps(block):
        """Weights (T, heads, 17, 17) and keys (T, 17, heads, d) of a block with RMSNorms."""
        part = {key: np.asarray(value[block]) for key, value in kernels.items() if key.startswith("vision.blocks")}
        x = normed(entering[block], part["vision.blocks.norm1.scale"])
        q, k = (
            normed(x @ part[f"vision.blocks.attn.{i}.kernel"], part[f"vision.blocks.attn.{i}_norm.scale"]).reshape(
                3, 17, 3, 8
            )
            for i in "qk"
        )
        scores = np.einsum("tqhd,tshd->thqs", q, k) / np.sqrt(8)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True), k

    def pooled(x):
        tail = x.shape[2:]
        return x.reshape(3, 2, 2, 2, 2, *tail).mean(axis=(2, 4)).reshape(3, 4, *tail)

    weights, keys = maps(2)
    np.testing.assert_allclose(evidence["attention_last"], pooled(weights.mean(axis=(1, 2))[:, 1:]), atol=1e-6)
    np.testing.assert_allclose(
        evidence["attention_pooling_head"], pooled(weights[:, :, 0].mean(axis=1)[:, 1:]), atol=1e-6
    )
    np.testing.assert_allclose(evidence["keys"], pooled(keys.mean(axis=2)[:, 1:]), atol=1e-5)
    # Of three blocks, the shallow one is the first and the last but one the second.
    for name, block in (("attention_shallow", 0), ("attention_deep", 1)):
        np.testing.assert_allclose(evidence[name], pooled(maps(block)[0].mean(axis=1).sum(axis=1)[:, 1:]), atol=2e-5)
    left = np.asarray(model.vision.leave(blocks[2].hidden))
    np.testing.assert_allclose(evidence["frame_embedding"], left[:, 0], atol=1e-5)


def test_a_token_is_its_four_patches_row_by_row(model):
    """Numbers of patches in place of vectors, against a picture of them."""
    numbers = jnp.arange(16.0).reshape(1, 16, 1)
    blocks = np.asarray(model._blocks(numbers))[0, :, :, 0]
    picture = np.arange(16).reshape(4, 4)
    for row in range(2):
        for column in range(2):
            expected = picture[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1)
            np.testing.assert_array_equal(blocks[2 * row + column], expected)


def test_evidence_that_the_tower_cannot_give_is_named(model):
    with pytest.raises(JvidpruneError, match="internvl cannot give evidence features_unpooled"):
        model.encode(jnp.zeros((1, 3, 12, 12)), frozenset({"features_unpooled", "keys"}))
    with pytest.raises(JvidpruneError, match=r"pixels must have shape \(frames, 3, 12, 12\)"):
        model.encode(jnp.zeros((1, 3, 8, 8)))


def test_stts_says_why_it_does_not_run(model):
    with pytest.raises(JvidpruneError, match="leaves the class token of internvl's tower no place"):
        encoder_of(model)


# --- frames and prompts ----------------------------------------------------------------------------------------------


def test_frames_are_the_middles_of_stretches():
    settings = settings_of("internvl")
    assert settings.wish(4).indices(40, 10.0).tolist() == [5, 15, 25, 35]
    assert settings.wish(4).indices(10, 10.0).tolist() == [1, 3, 6, 8]
    assert settings.wish(fps=1.0).indices(40, 10.0).tolist() == [5, 15, 25, 35]
    assert len(settings.wish().indices(400, 10.0)) == 32


def test_levels_are_those_of_imagenet_unless_the_folder_says():
    config, settings = published("internvl3_5-8b"), settings_of("internvl")
    white = np.full((1, 448, 448, 3), 255, np.uint8)
    found = settings.pixels(config, {})(white)[0, :, 0, 0]
    np.testing.assert_allclose(found, [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rtol=1e-6)
    half = settings.pixels(config, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})(white)
    np.testing.assert_allclose(half, 1.0)
    with pytest.raises(JvidpruneError, match=r"frames of .*384.* but the tower reads 448"):
        settings.pixels(config, {"size": {"height": 384, "width": 384}})


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(tiny.write("internvl", tmp_path_factory.mktemp("m") / "internvl"))


def test_every_frame_stands_behind_its_number(llm):
    clip = Clip.from_frames(np.zeros((3, 8, 8, 3), np.uint8), fps=2.0)
    one = "\n".join(f"Frame{number}: <img>****</img>" for number in (1, 2, 3))
    whole = prompt(llm, clip)
    assert whole == f"user\n{one}\nWhat?\nassistant\n"
    assert prompt(llm, clip, clip) == whole.replace(one, f"{one}\n{one}")
    dropped = prompt(llm, clip, reducer="frame_drop", ratio=0.34)
    assert (dropped.count("Frame"), dropped.count("<img></img>"), dropped.count("*")) == (3, 2, 4)


def test_markers_are_those_that_the_tokenizer_names(tmp_path):
    assert marks(tmp_path) == ("<img>", "</img>")
    for given in ({"start_image_token": "<a>"}, {"extra_special_tokens": {"start_image_token": "<a>"}}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(given))
        assert marks(tmp_path) == ("<a>", "</img>")


def test_the_unpruned_path_is_every_token(llm):
    """Fastvid ranks by what the class token pays; at a ratio of 1 nothing is lost."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    fastvid = reducers.get("fastvid", "internvl")
    assert fastvid.needs == {"attention_pooling_head", "frame_embedding"}
    video = llm.encode(frames, needs=fastvid.needs)
    assert video.tokens.features.shape == (2, 16, tiny.WIDTH)
