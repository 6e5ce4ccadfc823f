"""Qwen3.5: golden parity at two sizes, checkpoints, configs, sizes and costs; its recurrence is in `test_delta`."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_checkpoints as tiny
from helpers.families import all_agree, exported_again, script, seeded_folders, source, stts_tokens
from helpers.folders import parameters, write

from jvidprune import JvidpruneError, reducers
from jvidprune.costs import flops_model, memory
from jvidprune.llm import coverage
from jvidprune.models import load_model
from jvidprune.models.checkpoint.load import described
from jvidprune.models.checkpoint.published import published
from jvidprune.models.qwen3_5 import Config
from jvidprune.parity.quantised import deviations

INPUTS = {"pixel_values_videos", "video_grid_thw", "input_ids"}


MADE = script("qwen3_5")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both golden sets as checkpoint folders with their io files."""
    sets = {name: MADE.SETS[name][0] for name in ("first", "second")}
    return seeded_folders(tmp_path_factory.mktemp("qwen3_5"), "qwen3_5", sets, MADE.SEEDS)


# --- golden parity ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "second"])
def test_every_array_of_the_reference_run_agrees(folders, name):
    all_agree(folders[name], INPUTS, {"projector", "lm_last_query_attention_tf5", "logits_tail_tf5", "greedy_ids_tf5"})


@pytest.mark.slow
def test_parity_tells_how_far_quantised_weights_lead(folders):
    """Of files that name how a prompt was made, too."""
    near, far = deviations(folders["first"], "int8")
    assert (near.held, far.held) == ("bfloat16", "bfloat16, int8")
    assert 1e-4 < near.logits < 0.2
    assert 1e-4 < far.logits < 0.2
    assert far.from_bfloat16 is not None
    assert 1e-4 < far.from_bfloat16 < 0.2
    assert near.tokens == far.tokens == np.load(folders["first"] / "io.npz")["greedy_ids_tf5"].size


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_an_export_is_the_checkpoint_again(folders, tmp_path):
    """What the name table takes apart is whole again, and layers that predict several tokens are copied."""
    tensors, config = source(folders["first"])
    tensors["mtp.fc.weight"] = np.ones((2, 3), np.float16)
    folder = write(tmp_path / "m", tensors, config)
    same = exported_again(load_model(folder, dtype=jnp.float32), folder, tmp_path / "same")
    mixer = "model.language_model.layers.0.linear_attn"
    assert same[f"{mixer}.in_proj_qkv.weight"].shape == (2 * 6 + 2 * 4, 10)
    assert same[f"{mixer}.conv1d.weight"].shape == (2 * 6 + 2 * 4, 1, 4)


def test_layers_fill_the_stack_of_their_kind(folders):
    tensors, _ = source(folders["second"])
    found, prefix = parameters(load_model(folders["second"], dtype=jnp.float32).model), "model.language_model.layers"
    for at, layer in enumerate((2, 5)):
        stored = tensors[f"{prefix}.{layer}.self_attn.k_proj.weight"]
        np.testing.assert_array_equal(found["lm.layers.attn.k.kernel"][at], stored.T.astype(np.float32))
    for at, layer in enumerate((0, 1, 3, 4)):
        stored = tensors[f"{prefix}.{layer}.linear_attn.in_proj_qkv.weight"].astype(np.float32)
        np.testing.assert_array_equal(found["lm.linear.delta.k.kernel"][at], stored[10:20].T)
        stored = tensors[f"{prefix}.{layer}.linear_attn.conv1d.weight"].astype(np.float32)
        np.testing.assert_array_equal(found["lm.linear.delta.taps_v"][at], stored[20:, 0].T)


def test_a_missing_tensor_is_named(folders, tmp_path):
    tensors, config = source(folders["first"])
    lacking = {key: value for key, value in tensors.items() if not key.endswith("3.self_attn.q_norm.weight")}
    with pytest.raises(JvidpruneError, match=r"1 missing: model\.layers\.3\.self_attn\.q_norm\.weight"):
        load_model(write(tmp_path / "m", lacking, config))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"layer_types": ["full_attention"] * 4}, "layers with full attention and layers with linear attention"),
        ({"layer_types": ["linear_attention"] * 3}, "must name 4 layers as one of full_attention, linear_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "must name 4 layers as one of"),
        ({"full_attention_interval": 1}, "full_attention_interval = 1, which must be 2 to"),
        ({"linear_num_value_heads": 3}, "gives 3 linear_num_value_heads, no multiple of 2"),
        ({"linear_key_head_dim": True}, "linear_key_head_dim = True"),
        ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim = 1, which must be 2 to"),
        ({"attention_bias": True}, "attention_bias is true"),
        (
            {"rope_parameters": {"partial_rotary_factor": "0.5"}},
            r"partial_rotary_factor = .*, which must be in \(0, 1\]",
        ),
        (
            {"rope_parameters": {"partial_rotary_factor": -0.25}},
            r"partial_rotary_factor = .*, which must be in \(0, 1\]",
        ),
        ({"rope_parameters": {"mrope_section": [3, 3, 2]}}, "must add up to half the channels of a head that turn, 2"),
    ],
)
def test_configs_that_the_port_does_not_have_are_refused(changed, says):
    raw = tiny.CONFIGS["qwen3_5"]
    with pytest.raises(JvidpruneError, match=says):
        Config.from_hf(raw | {"text_config": raw["text_config"] | changed})


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling", None])
def test_the_share_that_turns_stands_in_either_rope_layout(place):
    raw = tiny.CONFIGS["qwen3_5"]
    text = {key: value for key, value in raw["text_config"].items() if key != "rope_parameters"}
    rope = {"mrope_section": [2, 1, 1]}
    for factor in (0.5, None):
        given = {"partial_rotary_factor": factor}
        changed = {"rope_scaling": rope, **given} if place is None else {place: rope | given}
        # Without a share it is a quarter of 32 channels.
        wide = {"head_dim": 32 if factor is None else 16}
        assert Config.from_hf(raw | {"text_config": text | changed | wide}).text.rope.partial == (factor or 0.25)


def test_the_one_with_experts_is_refused_by_name():
    with pytest.raises(JvidpruneError, match=r"unknown architecture \(qwen3_5_moe\); supported: "):
        described(tiny.CONFIGS["qwen3_5"] | {"model_type": "qwen3_5_moe"})


# --- sizes, costs and methods ----------------------------------------------------------------------------------------


def test_published_sizes():
    """The parameters that the names say, and attention in every fourth layer."""
    for name, whole in (("0.8b", 0.85e9), ("2b", 2.2e9), ("4b", 4.5e9), ("9b", 9.4e9), ("27b", 27.4e9)):
        config = published(f"Qwen/Qwen3.5-{name}")
        assert memory.parameter_count(config) == pytest.approx(whole, rel=0.01)
        assert config.text.attending == tuple(range(3, config.text.layers, 4))
        assert config.text.rope.turning(config.text.head_dim) == 64


def test_matrices_and_states_are_those_of_the_parameters():
    text = published("qwen3.5-9b").text
    held = memory.parameter_arrays(published("qwen3.5-9b"))
    layers = ("lm.layers.", "lm.linear.")
    stacked = [one.shape for one in held if one.path.startswith(layers) and "taps" not in one.path]
    assert text.weights_in(0, text.layers) == sum(int(np.prod(shape)) for shape in stacked if len(shape) == 3)
    (part,) = flops_model.segments((), text.layers, tokens=100, visual=80)
    terms = flops_model.prefill(text, [part])[0]
    assert terms["matrices"] == 2.0 * 100 * text.weights_in(0, 32)
    assert terms["attention"] == 8 * 2.0 * 100 * 100 * 16 * 256
    # Slots cost keys and values in eight layers alone; what 24 layers carry is there however short a prompt is.
    one, two = (memory.cache_bytes(text, 1, slots, jnp.bfloat16) for slots in (1, 2))
    assert two - one == 2 * 8 * 4 * 256 * 2
    assert 2 * one - two == 24 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)


def test_published_settings_read_layers_with_attention():
    """On the depths of the published models; what cannot run is refused by name."""
    for size in ("2b", "9b", "27b"):
        config = published(f"qwen3.5-{size}")
        for name in ("fastv", "dart", "pyramiddrop", "sparsevlm", "swiftvlm", "flashvid", "mod", "inner_random"):
            reducers.for_model(name, config)
        for name, says in (
            ("fastv(layer=2)", "reads layer 1, which .* nearest layer with attention is 3, which a stage at layer 4"),
            ("pyramiddrop(cut_layers=(8,))", "reads layer 8, .* is 7, which a stage at layer 7 reads"),
            ("framefusion", "reads layer 0"),
            ("dstp", "renews its choice while decoding"),
            ("dycoke(decode_layer=3, decode_dropped=0.7)", "reads layer 2"),
        ):
            with pytest.raises(JvidpruneError, match=says):
                reducers.for_model(name, config)
    assert coverage.cell("qwen3_5", "dstp") == "no, its choice is renewed while decoding"
    assert coverage.cell("qwen3_5", "framefusion") == "no, it reads attention in layers without any"
    assert coverage.cell("qwen3_5", "fastv") == "yes (in the LLM)"


@pytest.mark.slow
def test_stts_runs_in_its_tower(folders):
    """Half of the windows, drawn: packed as masked; with all of them the tokens are those of the model."""
    packed, _, _ = stts_tokens(folders["second"])
    assert packed.deepstack is None
