"""VideoLLaMA3: golden parity at two sizes, checkpoints, tower, evidence, sizes of frames and prompts."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import tiny_checkpoints as tiny
from helpers.families import all_agree, exported_again, prompt, same_parameters, script, shown, source
from helpers.folders import parameters, write
from helpers.places import MODELS, TESTS
from safetensors.numpy import load_file

from jvidprune import JvidpruneError
from jvidprune.llm.conventions import settings_of
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import load_model
from jvidprune.models.checkpoint.export import export_model
from jvidprune.models.checkpoint.published import published
from jvidprune.models.video_llama_3 import Config
from jvidprune.reducers import registry
from jvidprune.tokens import VideoTokens
from jvidprune.video.decode import Clip
from jvidprune.video.preprocess import VIDEO_LLAMA_3, Patches

FOLDER = MODELS / "video_llama_3"
INPUTS = {"pixels_uint8", "video_grid_thw", "input_ids"}
SHOWN = {"projector", "saliency", "logits_tail", "greedy_ids", "greedy_logits"}
GRID = (3, 4, 6)


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER, dtype=jnp.float32).model


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(tiny.write("video_llama_3", tmp_path_factory.mktemp("m") / "video_llama_3"))


# --- golden parity ---------------------------------------------------------------------------------------------------


def test_every_array_of_the_reference_run_agrees():
    all_agree(FOLDER, INPUTS, SHOWN)


def test_the_second_set_agrees_at_other_sizes(tmp_path):
    """Three heads, three blocks, another patch and grid, grouped queries and a tied head."""
    made, io = script("video_llama_3"), TESTS / "data" / "video_llama_3_second.npz"
    folder = write(tmp_path / "second", made.tensors(made.SECOND, 7), made.KINDS | made.SECOND)
    (folder / "io.npz").write_bytes(io.read_bytes())
    assert load_model(folder, dtype=jnp.float32).config.text.tied
    all_agree(folder, INPUTS, SHOWN)


def test_the_script_makes_the_committed_weights():
    made, (tensors, config) = script("video_llama_3"), source(FOLDER)
    assert config == made.KINDS | made.FIRST
    again = made.tensors(made.FIRST, 22)
    assert again.keys() == tensors.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.model."])
def test_other_prefixes_fill_the_same_parameters(tmp_path, model, prefix):
    tensors, config = source(FOLDER)
    renamed = {
        prefix + name.removeprefix("model."): value for name, value in tensors.items() if name != "lm_head.weight"
    }
    renamed["language_model.lm_head.weight"] = tensors["lm_head.weight"]
    found = parameters(load_model(write(tmp_path / "m", renamed, config), dtype=jnp.float32).model)
    expected = parameters(model)
    same_parameters(found, expected)


def test_an_export_writes_queries_keys_and_values_apart(tmp_path):
    loaded = load_model(FOLDER, dtype=jnp.float32)
    same, changed = tmp_path / "same", tmp_path / "changed"
    before = exported_again(loaded, FOLDER, same)
    kernel = loaded.model.vision.blocks.attn.qkv.kernel
    # Of width 8, channel 9 is the second one of the keys.
    kernel.set_value(kernel[...].at[1, :, 9].add(1.0))
    export_model(loaded, changed)
    after = load_file(changed / "model.safetensors")
    odd = {name: after[name] - before[name] for name in before if not np.array_equal(before[name], after[name])}
    (name,) = odd
    assert name == "model.vision_model.encoder.layers.1.self_attn.k_proj.weight"
    assert np.flatnonzero(np.abs(odd[name]).sum(axis=1)).tolist() == [1]


def test_bad_checkpoints_are_one_sentence(tmp_path):
    tensors, config = source(FOLDER)
    name = "model.vision_model.encoder.layers.1.self_attn.v_proj.weight"
    with pytest.raises(JvidpruneError, match=r"tensors that belong together have different rows: .*v_proj\.weight"):
        load_model(write(tmp_path / "a", tensors | {name: np.zeros((8, 9), np.float16)}, config))
    with pytest.raises(JvidpruneError, match=r"missing: .*layers\.1\.self_attn\.qkv_proj\.weight"):
        load_model(write(tmp_path / "b", {key: value for key, value in tensors.items() if key != name}, config))
    other = {"visual.patch_embed.proj.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(JvidpruneError, match=r"says it is video_llama_3 .* those of a Qwen-VL model"):
        load_model(write(tmp_path / "c", other, config))
    remote = config | {"model_type": "videollama3_qwen2", "architectures": ["Videollama3Qwen2ForCausalLM"]}
    with pytest.raises(JvidpruneError, match=r"unknown architecture \(Videollama3Q.*supported: .*video_llama_3"):
        load_model(write(tmp_path / "d", tensors, remote))


@pytest.mark.parametrize(
    ("part", "changed", "says"),
    [
        (
            "text_config",
            {"model_type": "qwen3"},
            "language model 'qwen3' of VideoLLaMA3 is not supported; allowed: qwen2",
        ),
        ("text_config", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("vision_config", {"rope_parameters": {"rope_type": "axial", "rope_theta": 500}}, "'rope_theta': 500"),
        ("vision_config", {"num_attention_heads": 4}, "width 8 with 4 heads has no rotary on two axes"),
        ("vision_config", {"hidden_act": "swish2"}, "swish2"),
    ],
)
def test_configs_that_the_port_does_not_have_are_refused(part, changed, says):
    _, config = source(FOLDER)
    with pytest.raises(JvidpruneError, match=says):
        Config.from_hf(config | {part: config[part] | changed})


def test_published_sizes():
    small, large = published("videollama3-2b"), published("lkhl/VideoLLaMA3-7B".lower())
    for config in (small, large):
        assert (config.vision.layers, config.vision.width, config.vision.patch_size) == (27, 1152, 14)
        assert (config.vision.merge, config.vision.pair, config.vision.out) == (2, 1, config.text.width)
    assert (small.text.tied, large.text.tied, large.text.width) == (True, False, 3584)


# --- tower and evidence ----------------------------------------------------------------------------------------------


def test_means_over_blocks_are_the_bilinear_resize_of_the_frame(model):
    """To half the sides: the reference's `interpolate`, written as an integral over pixel centres."""
    rows, columns, width = 4, 6, 8
    x = np.random.default_rng(0).normal(size=(2, rows, columns, width)).astype(np.float32)

    def halved(values, axis):
        low = np.take(values, np.arange(0, values.shape[axis], 2), axis)
        return low + 0.5 * (np.take(values, np.arange(1, values.shape[axis], 2), axis) - low)

    resized = halved(halved(x, 1), 2).reshape(2, -1, width)
    order = x.reshape(2, rows // 2, 2, columns // 2, 2, width).transpose(0, 1, 3, 2, 4, 5).reshape(2, -1, width)
    vision = model.vision
    identity = nnx.clone(vision)
    identity.post_norm = lambda values: values
    np.testing.assert_allclose(identity.merge(jnp.asarray(order)), vision.projector(jnp.asarray(resized)), atol=1e-5)


def test_evidence_is_the_towers_own(model):
    """Attention and keys against a tap of every block; chunks change nothing."""
    patches = jax.random.normal(jax.random.key(0), (math.prod(GRID), model.config.vision.patch_values))

    def both(patches):
        vision = model.vision
        x = vision.embed(patches.reshape(GRID[0], -1, patches.shape[-1]))
        hidden, blocks = vision.run(x, vision.tables(GRID), 0, 2, tap=True)
        return model.encode(Patches(patches, GRID), model.provides, chunk=2), hidden, blocks

    video, hidden, blocks = jax.jit(both)(patches)
    assert video.grid == (2, 3)
    np.testing.assert_allclose(video.features, model.vision.merge(hidden), atol=1e-5)
    received = np.asarray(blocks.received).mean(axis=2).reshape(2, GRID[0], 6, 4)
    np.testing.assert_allclose(received.sum(axis=(2, 3)), 1, atol=1e-5)
    evidence = {name: np.asarray(value) for name, value in video.evidence.items()}
    assert evidence.keys() == model.provides
    np.testing.assert_allclose(evidence["attention_last"], received[1].mean(axis=-1), atol=1e-6)
    # Of two blocks, the shallow one and the last but one are the first.
    for name in ("attention_shallow", "attention_deep"):
        np.testing.assert_allclose(evidence[name], 24 * received[0].mean(axis=-1), atol=1e-5)
    np.testing.assert_allclose(evidence["keys"], blocks.keys[1], atol=1e-5)
    np.testing.assert_allclose(evidence["attention_mean_query"], blocks.mean_query[1], atol=1e-6)
    np.testing.assert_allclose(evidence["frame_embedding"], np.asarray(video.features).mean(axis=1), atol=1e-5)


def test_evidence_that_the_tower_cannot_give_is_named(model):
    patches = Patches(jnp.zeros((math.prod(GRID), model.config.vision.patch_values)), GRID)
    needs = frozenset({"attention_pooling_head", "features_unpooled", "keys"})
    with pytest.raises(JvidpruneError, match="video_llama_3 cannot give evidence attention_pooling_head, features_unp"):
        model.encode(patches, needs)


def test_frames_do_not_see_each_other(model):
    patches = jax.random.normal(jax.random.key(1), (math.prod(GRID), model.config.vision.patch_values))
    encode = jax.jit(lambda values: model.encode(Patches(values, GRID)).features)
    changed = patches.at[-1].add(1.0)
    first, second = encode(patches), encode(changed)
    np.testing.assert_array_equal(first[:2], second[:2])
    assert np.abs(np.asarray(first[2] - second[2])).max() > 1e-3


# --- frames and prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "size", "given", "grid"),
    [
        # 9 x 11 blocks of 28 pixels lie nearest, and are within all limits.
        (8, (240, 320), {}, (9, 11)),
        # 16,384 blocks are 256 a frame: 720 x 1280 shrinks by sqrt(720 * 1280 / (256 * 784)), rounded down.
        (64, (720, 1280), {}, (12, 21)),
        (180, (720, 1280), {}, (7, 12)),
        # 16 blocks at least.
        (4, (28, 28), {}, (4, 4)),
        # A share below the lower limit goes before it.
        (2000, (720, 1280), {}, (2, 3)),
        # The class's own limits: both sides grow by sqrt(100352 / 76800), rounded up.
        (4, (240, 320), {"size": {"shortest_edge": 100352, "longest_edge": 602112}}, (10, 14)),
        (4, (240, 320), {"max_pixels": 4 * 28 * 28 * 4}, (1, 2)),
    ],
)
def test_a_frame_gets_its_share_of_the_videos_pixels(frames, size, given, grid):
    config = published("videollama3-7b")
    for convention in ("released", "transformers"):
        assert settings_of("video_llama_3", convention).grid(config, frames, *size, given) == grid


def test_a_processor_of_another_model_is_refused():
    config, settings = published("videollama3-7b"), settings_of("video_llama_3")
    for given, says in (
        ({"merge_size": 1}, "merge_size 1, but the model was built for 2"),
        ({"temporal_patch_size": 2}, "temporal_patch_size 2, but the model was built for 1"),
        ({"resample": 2}, "resample 2, but frames of this family are resized with 3"),
    ):
        with pytest.raises(JvidpruneError, match=says):
            settings.pixels(config, given)


def test_pixels_are_patches_of_single_frames(llm):
    """Every patch against the frame it comes from; an odd number of frames stays odd."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    read = settings_of("video_llama_3").pixels(llm.loaded.config, {"do_resize": False})(frames)
    assert read.grid == (3, 8, 12)
    values = np.asarray(read.values).reshape(3, 4, 6, 2, 2, 3, 4, 4)
    levels = np.rint((values * 0.5 + 0.5) * 255)
    for t, row, column, i, j in ((0, 0, 0, 0, 0), (1, 3, 5, 1, 0), (2, 2, 1, 0, 1)):
        y, x = 4 * (2 * row + i), 4 * (2 * column + j)
        np.testing.assert_array_equal(levels[t, row, column, i, j], frames[t, y : y + 4, x : x + 4].transpose(2, 0, 1))
    assert VIDEO_LLAMA_3.pair == 1


def test_every_frame_stands_behind_its_time(llm):
    clip = Clip.from_frames(np.zeros((3, 8, 8, 3), np.uint8), fps=2.0)
    one = "Time 0.0s:****,Time 0.5s:****,Time 1.0s:****"
    whole = prompt(llm, clip)
    assert whole == f"system\nYou are a helpful assistant.\nuser\n{one}\nWhat?\nassistant\n"
    assert prompt(llm, clip, clip) == whole.replace(one, f"{one}\n{one}")


def test_times_of_frames_without_a_token_stay(llm):
    clip = Clip.from_frames(np.zeros((3, 8, 8, 3), np.uint8), fps=1.0)
    tokens = VideoTokens.create(np.zeros((3, 4, tiny.WIDTH), np.float32))
    one = llm.reduce(EncodedVideo(tokens, clip), reducer=registry.get("frame_drop"), ratio=0.34)
    assert isinstance(one, ReducedVideo)
    slots, text = llm.lay_out([one], "?", 1)
    found = shown(llm, slots, text)
    assert found.count("Time ") == 3
    assert found.count("*") == 4
    assert ":,Time" in found or ":\n" in found


@pytest.mark.parametrize("name", ["<|video_pad|>", "<video>"])
def test_the_folders_chat_template_goes_first(tmp_path, name):
    """Its placeholder is the tokenizer's own token for videos, where that names one."""
    folder = tiny.write("video_llama_3", tmp_path / "m")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'video' %}" + name + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n"
    )
    if name != "<|video_pad|>":
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": {"video_token": name}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    clip = Clip.from_frames(np.zeros((1, 8, 8, 3), np.uint8), fps=1.0)
    for convention in ("released", "transformers"):
        found = prompt(VideoLLM.load(folder, convention=convention), clip)
        # transformers' renderer leaves the last line break of a template out.
        assert found == "user\nTime 0.0s:****What?\nassistant"


def test_smaller_and_fewer_frames_keep_their_times(llm):
    """Controls that encode other frames, each of which is a grid frame here."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 112, 112, 3), np.uint8)
    video = llm.encode(frames, fps=1.0)
    steps, rows, columns = 6, *video.tokens.grid
    few = llm.reduce(video, reducer=registry.get("fewer_frames"), ratio=0.5)
    assert (few.kept, few.visual) == (3 * rows * columns, steps * rows * columns)
    slots, text = llm.lay_out([few], "What?", 1)
    assert shown(llm, slots, text).count("Time ") == 3
    small = llm.reduce(video, reducer=registry.get("downscale"), ratio=0.25)
    assert (small.kept, small.visual) == (6 * (rows // 2) * (columns // 2), steps * rows * columns)
