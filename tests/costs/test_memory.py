"""The memory model against XLA's own count, and the refusal of what cannot fit before anything is loaded."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.places import MODELS
from helpers.tiny import write_checkpoint
from helpers.untrained import LARGE, config_json

from jvidprune import JvidpruneError, reducers
from jvidprune.costs import memory
from jvidprune.costs.fits import check_encoding, check_question
from jvidprune.cuts.cache import empty_cache
from jvidprune.cuts.inner import Inner
from jvidprune.llm.folder import family_settings
from jvidprune.models import family as families
from jvidprune.models import qwen3_vl
from jvidprune.models.checkpoint.load import family_of, load_model
from jvidprune.models.checkpoint.published import published
from jvidprune.models.llava_onevision import Config
from jvidprune.models.prefill import read_prompt
from jvidprune.procedural.clips import ClipSpec, render, write_mp4
from jvidprune.reducers.protocol import inner_stages
from jvidprune.video.limits import Limits
from jvidprune.video.preprocess import Patches

WITHIN = 2.0
"""The model is trusted up to this factor, in both directions, parameters excluded."""


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def abstract(config, dtype):
    package = families.get(config.family)
    return nnx.eval_shape(lambda: package.model(config, dtype=dtype))


def used(compiled):
    """Bytes besides the arguments."""
    found = compiled.memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def assert_close(estimate, compiled):
    ratio = estimate / used(compiled)
    assert 1 / WITHIN < ratio < WITHIN, ratio


def test_frames_in_a_llava_tower_take_what_xla_counts():
    config = Config.from_hf(config_json(LARGE))
    shape = memory.tower_shape(config, 24)
    assert (shape.chunk, shape.patches, shape.tokens) == (8, 144, 36)
    pixels = spec(24, 3, 84, 84)
    compiled = jax.jit(lambda model, x: model.encode(x)).lower(abstract(config, jnp.float32), pixels).compile()
    estimate = memory.encode_bytes(config, shape, jnp.float32) + memory.feature_bytes(config, shape, jnp.float32)
    # The pixels are arguments.
    assert_close(estimate - 4 * 24 * 3 * 84 * 84, compiled)


def test_frames_in_a_qwen_tower_go_in_chunks_and_take_what_xla_counts(monkeypatch):
    config = qwen3_vl.Config.from_hf(json.loads((MODELS / "qwen3_vl" / "config.json").read_text()))
    grid = (6, 16, 24)
    monkeypatch.setattr("jvidprune.models.qwen.tower._SCORES", 2 * config.vision.heads * 384**2)
    shape = memory.tower_shape(config, 12, grid)
    assert (shape.frames, shape.patches, shape.tokens, shape.chunk, shape.levels) == (6, 384, 96, 2, 2)
    patches = spec(6 * 384, config.vision.patch_values)
    encode = jax.jit(lambda model, x: model.encode(Patches(x, grid)))
    compiled = encode.lower(abstract(config, jnp.float32), patches).compile()
    estimate = memory.encode_bytes(config, shape, jnp.float32) + memory.feature_bytes(config, shape, jnp.float32)
    assert_close(estimate - 4 * shape.frames * shape.values, compiled)


def test_frames_of_video_llama_3_take_what_xla_counts(monkeypatch):
    config = published("videollama3-7b")
    vision = dataclasses.replace(config.vision, layers=2, width=128, heads=4, mlp=256, out=64)
    config = dataclasses.replace(
        config, vision=vision, text=dataclasses.replace(config.text, layers=1, width=64, vocab=64)
    )
    grid = (6, 16, 24)
    monkeypatch.setattr("jvidprune.models.qwen.tower._SCORES", 2 * config.vision.heads * 384**2)
    shape = memory.tower_shape(config, 6, grid)
    assert (shape.frames, shape.patches, shape.tokens, shape.chunk, shape.levels) == (6, 384, 96, 2, 0)
    patches = spec(6 * 384, vision.patch_values)
    encode = jax.jit(lambda model, x: model.encode(Patches(x, grid)))
    compiled = encode.lower(abstract(config, jnp.float32), patches).compile()
    estimate = memory.encode_bytes(config, shape, jnp.float32) + memory.feature_bytes(config, shape, jnp.float32)
    assert_close(estimate - 4 * shape.frames * shape.values, compiled)


def test_frames_of_internvl_take_what_xla_counts():
    config = published("internvl3_5-8b")
    vision = dataclasses.replace(config.vision, layers=2, width=128, heads=4, mlp=256, image_size=168)
    text = dataclasses.replace(config.text, layers=1, width=64, vocab=64)
    config = dataclasses.replace(config, vision=vision, text=text)
    shape = memory.tower_shape(config, 12)
    assert (shape.chunk, shape.patches, shape.tokens) == (6, 145, 36)
    encode = jax.jit(lambda model, x: model.encode(x))
    compiled = encode.lower(abstract(config, jnp.float32), spec(12, 3, 168, 168)).compile()
    estimate = memory.encode_bytes(config, shape, jnp.float32) + memory.feature_bytes(config, shape, jnp.float32)
    assert_close(estimate - 4 * 12 * 3 * 168 * 168, compiled)


def test_frames_and_windows_of_molmo2_take_what_xla_counts():
    config = published("molmo2-8b")
    vision = dataclasses.replace(config.vision, layers=2, width=128, heads=4, mlp=256, image_size=126)
    connector = dataclasses.replace(config.connector, blocks=(1, 0), width=128, heads=4, mlp=256)
    text = dataclasses.replace(config.text, layers=1, width=64, vocab=64)
    config = dataclasses.replace(config, vision=vision, connector=connector, text=text)
    shape = memory.tower_shape(config, 12)
    assert (shape.chunk, shape.patches, shape.tokens) == (6, 81, 9)
    encode = jax.jit(lambda model, x: model.encode(x))
    compiled = encode.lower(abstract(config, jnp.float32), spec(12, 3, 126, 126)).compile()
    estimate = memory.encode_bytes(config, shape, jnp.float32) + memory.feature_bytes(config, shape, jnp.float32)
    assert_close(estimate - 4 * 12 * 3 * 126 * 126, compiled)


@pytest.mark.parametrize(("batch", "length", "dtype"), [(4, 1024, jnp.float32), (1, 512, jnp.bfloat16)])
def test_prompts_take_what_xla_counts(batch, length, dtype):
    config, room = Config.from_hf(config_json(LARGE)), 15
    text, model = config.text, abstract(config, dtype)
    sizes = {"layers": text.layers, "kv_heads": text.kv_heads, "head_dim": text.head_dim}
    cache = jax.eval_shape(functools.partial(empty_cache, batch=batch, capacity=length + room, dtype=dtype, **sizes))
    prefill = jax.jit(lambda model, *parts: read_prompt(model.lm, *parts, packed=True), donate_argnums=4)
    places = spec(batch, length, dtype=jnp.int32), spec(batch, length, dtype=bool)
    compiled = prefill.lower(model, spec(batch, length, text.width, dtype=dtype), *places, cache).compile()
    held = memory.cache_bytes(text, batch, length + room, dtype)
    there = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert there == pytest.approx(held, rel=0.02)
    # The cache is an argument, donated.
    assert_close(memory.prefill_bytes(text, batch, length, room, dtype) - held, compiled)


def sizes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "dtype"), [("swiftvlm", jnp.float32), ("swiftvlm", jnp.bfloat16), ("dstp", None)])
def test_what_stages_inside_the_model_hold_is_counted(name, dtype):
    config, batch, length, room = Config.from_hf(config_json(LARGE)), 2, 768, 7
    text, dtype = config.text, jnp.float32 if dtype is None else dtype
    cuts = {"swiftvlm": {"cut_layers": (1, 2, 3)}, "dstp": {"host": "fastv(layer=1)", "serve": "recompute"}}[name]
    stages = inner_stages(reducers.get(name, **cuts), 0.5)
    valid = np.ones((batch, length), bool)
    visual = valid & (np.arange(length) < length - 20)
    inner = Inner.create(stages, visual, valid, layers=text.layers)
    kinds = {"layers": text.layers, "kv_heads": text.kv_heads, "head_dim": text.head_dim}

    def read(model):
        slots = inner.capacities(length, room)
        cache = empty_cache(batch=batch, capacity=slots, boundaries=inner.boundaries, dtype=dtype, **kinds)
        places = jnp.broadcast_to(jnp.arange(length), (batch, length))
        embeds = jnp.zeros((batch, length, text.width), dtype)
        found = read_prompt(model.lm, embeds, places, jnp.asarray(valid), cache, inner=inner)
        states = [state for state in found.states if state.side is not None]
        return [state.side for state in states], [state.aside for state in states], found.cache.policy

    sides, asides, policy = jax.eval_shape(read, abstract(config, dtype))
    counted = memory.inside_bytes(text, stages, batch, length, room, dtype)
    if name == "swiftvlm":
        exact = max(map(sizes_of, sides))
        assert exact == batch * stages[0].rule.held(length, text.width, jnp.dtype(dtype).itemsize)
        there = exact + max(sizes_of((aside.slots, aside.index)) for aside in asides if aside is not None)
    else:
        there = sizes_of(policy)
        assert policy.hidden.shape == (batch, length + room, text.width)
    # Positions stand on one axis here, and on three at most.
    assert there <= counted <= 1.05 * there
    assert memory.inside_bytes(text, inner_stages(reducers.get("fastv", layer=1), 0.5), batch, length, room, dtype) == 0
    shape, asked = memory.tower_shape(config, 8), {"kept": 720, "text": 40, "max_new_tokens": room + 1}
    plain, held = (memory.ask_need(config, shape, **asked, dtype=dtype, batch=2, stages=some) for some in ((), stages))
    assert held.prompt - plain.prompt == memory.inside_bytes(text, stages, 2, 768, room, dtype)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_parameters_are_counted_as_loaded(tmp_path, family):
    model = load_model(MODELS / family, dtype=jnp.float32)
    loaded = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(nnx.state(model.model)))
    assert memory.parameter_count(model.config) == loaded


PUBLISHED = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava_qwen",
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_newline_position": "grid",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
}


@pytest.fixture
def folder(tmp_path):
    """A published 7B config without any weights."""
    assert family_of(PUBLISHED) == "llava_video"
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    return tmp_path


def question(folder, **changes):
    settings = {"reducer": "flashvid", "ratio": 0.1, "dtype": "bfloat16", "frames": 64, "available": 80 * 2**30}
    return check_question(folder, "never-opened.mp4", "What?", **settings | changes)


def test_a_published_model_needs_what_its_sizes_say(folder):
    need = question(folder)
    # 16.1 GB of weights; 64 frames of 169 tokens of 3584 bfloat16 numbers.
    assert need.parameters == pytest.approx(16.1e9, rel=0.01)
    assert need.features == 64 * 169 * 3584 * 2
    assert question(folder, ratio=1.0).prompt > 3 * need.prompt
    assert question(folder, frames=128).features == 2 * need.features
    assert question(folder, dtype="float32", available=2**40).parameters == 2 * need.parameters
    # Four devices hold a quarter each of what is not a norm, a bias or an embedding of positions.
    spread = question(folder, mesh="tensor=4")
    assert need.parameters / 4 < spread.parameters < need.parameters / 4 * 1.03
    assert spread.prompt == need.prompt
    assert need.peak == need.parameters + need.features + max(need.encode, need.prompt)


def test_what_cannot_fit_is_refused_in_one_sentence_before_anything_is_loaded(folder):
    sentence = (
        r"^llava_video reading 64 frames at ratio 0.1 in float32 needs about 3\d\.\d GiB \(parameters 29\.\d, encoding "
        r"\d\.\d, prompt \d\.\d\), but cpu:0 has 24\.0 GiB: use bfloat16\.$"
    )
    with pytest.raises(JvidpruneError, match=sentence):
        question(folder, dtype="float32", available=24 * 2**30)
    with pytest.raises(JvidpruneError, match=r"has 17\.0 GiB: lower the number of frames or lower the ratio\.$"):
        question(folder, ratio=1.0, frames=170, available=17 * 2**30)
    with pytest.raises(JvidpruneError, match=r"has 8\.0 GiB: take a smaller model or a larger device\.$"):
        question(folder, available=8 * 2**30)


def test_a_folder_that_names_a_number_of_frames_is_checked_with_as_many_as_it_reads(folder):
    (folder / "preprocessor_config.json").write_text('{"num_frames": 8}')
    assert question(folder, frames=None) == question(folder, frames=8)
    assert family_settings("llava_video", folder).frames == 8
    (folder / "preprocessor_config.json").write_text('{"num_frames": null}')
    assert question(folder, frames=None) == question(folder, frames=64)


def test_frames_of_a_qwen_model_are_sized_from_the_file(tmp_path):
    clip = tmp_path / "clip.mp4"
    write_mp4(clip, render(ClipSpec(seed=3, frames=12)).frames, 6.0)
    model = write_checkpoint(tmp_path, "qwen3_vl")
    settings = {"reducer": "uniform", "ratio": 0.5, "dtype": "float32"}
    four, eight = (check_question(model, clip, "What?", frames=count, **settings) for count in (4, 8))
    assert eight.features == 2 * four.features > 0
    assert check_question(model, clip, "What?", fps=2.0, **settings) == four
    with pytest.raises(JvidpruneError, match="qwen3_vl reading 8 frames"):
        check_question(model, clip, "What?", frames=8, available=1000, **settings)
    alone = check_encoding(model, clip, frames=8, dtype="float32")
    assert alone == dataclasses.replace(eight, prompt=0)
    with pytest.raises(JvidpruneError, match=r"qwen3_vl encoding 8 frames in float32 needs .* has 0\.0 GiB"):
        check_encoding(model, clip, frames=8, dtype="float32", available=1000)
    for refused in (
        functools.partial(check_question, model, clip, "What?", **settings),
        functools.partial(check_encoding, model, clip, dtype="float32"),
    ):
        with pytest.raises(JvidpruneError, match="more than the 100 allowed"):
            refused(fps=2.0, limits=Limits(pixels=100))
    # Without a file frames have the size that is named.
    named = check_question(model, None, "What?", frames=8, size=ClipSpec().size, **settings)
    assert named == eight
    assert check_question(model, None, "What?", frames=8, size=(144, 192), **settings).features < named.features


class Device:
    platform, id = "gpu", 3

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_a_devices_own_limit_goes_before_the_hosts():
    assert memory.device_bytes(Device({"bytes_limit": 123})) == 123
    host = memory.device_bytes(Device(None))
    assert 2**28 < host == memory.device_bytes()
