"""Qwen3-VL with experts: golden parity at two sizes, checkpoints, configs, costs, and what it shares with Qwen3-VL."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import tiny_checkpoints as tiny
from helpers.families import all_agree, exported_again, script, seeded_folders, source, stts_tokens
from helpers.folders import parameters, write

from jvidprune import JvidpruneError, reducers
from jvidprune.costs import flops_model
from jvidprune.costs.memory import parameter_count
from jvidprune.llm.conventions import settings_of
from jvidprune.models import family as families
from jvidprune.models import load_model
from jvidprune.models.checkpoint.published import published
from jvidprune.models.decoder_layer import DecoderLayer
from jvidprune.models.qwen3_vl_moe import Config

INPUTS = {"pixel_values_videos", "video_grid_thw", "input_ids"}


MADE = script("qwen3_vl_moe")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both golden sets as checkpoint folders with their io files."""
    root, sets = tmp_path_factory.mktemp("qwen3_vl_moe"), {name: MADE.SETS[name][0] for name in ("first", "second")}
    return seeded_folders(root, "qwen3_vl_moe", sets, MADE.SEEDS)


# --- golden parity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["first", "second"])
def test_every_array_of_the_reference_run_agrees(folders, name):
    shown = {"projector", "deepstack_features", "position_ids_tf5", "logits_tail_tf5", "greedy_ids_tf5"}
    all_agree(folders[name], INPUTS, shown)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_an_export_is_the_checkpoint_again(folders, tmp_path):
    loaded = load_model(folders["first"], dtype=jnp.float32)
    before = exported_again(loaded, folders["first"], tmp_path / "same")
    # As published: experts, in, out.
    assert before["model.language_model.layers.0.mlp.experts.gate_up_proj"].shape == (5, 10, 12)


def test_flat_names_fill_the_same_parameters(folders, tmp_path):
    tensors, config = source(folders["second"])
    flat = {name.replace("model.visual.", "visual.").replace("language_model.", ""): x for name, x in tensors.items()}
    text = dict(config["text_config"])
    text["num_local_experts"] = text.pop("num_experts")
    found = load_model(write(tmp_path / "m", flat, config | {"text_config": text}), dtype=jnp.float32)
    expected = parameters(load_model(folders["second"], dtype=jnp.float32).model)
    for name, value in parameters(found.model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_bad_checkpoints_are_one_sentence(folders, tmp_path):
    tensors, config = source(folders["first"])
    name = "model.language_model.layers.1.mlp.experts.down_proj"
    turned = tensors | {name: np.ascontiguousarray(tensors[name].transpose(0, 2, 1))}
    with pytest.raises(JvidpruneError, match=r"down_proj has shape \(5, 10, 6\) instead of \(5, 6, 10\)"):
        load_model(write(tmp_path / "a", turned, config))
    dense = {key: value for key, value in tensors.items() if ".mlp.gate." not in key}
    with pytest.raises(JvidpruneError, match=r"missing: model\.layers\.\{0-1\}\.mlp\.gate\.weight"):
        load_model(write(tmp_path / "b", dense, config))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"decoder_sparse_step": 2}, "leave layers without experts"),
        ({"mlp_only_layers": [0]}, "leave layers without experts"),
        ({"norm_topk_prob": False}, "norm_topk_prob is not true"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "a token passes 5 experts .*, but there are 4"),
        ({"num_experts": 0}, "num_experts = 0, which must be 1 to 65536"),
        ({"num_local_experts": "many"}, "num_experts = many"),
        ({"moe_intermediate_size": True}, "moe_intermediate_size = True"),
    ],
)
def test_configs_that_the_port_does_not_have_are_refused(changed, says):
    raw = tiny.CONFIGS["qwen3_vl_moe"]
    with pytest.raises(JvidpruneError, match=says):
        Config.from_hf(raw | {"text_config": raw["text_config"] | changed})


# --- sizes and costs -------------------------------------------------------------------------------------------------


def test_published_sizes():
    """About 30 and 235 billion parameters, of which a token passes 3 and 22 in the language model."""
    for name, whole, passed in (("qwen3-vl-30b-a3b", 31.1e9, 3e9), ("Qwen/Qwen3-VL-235B-A22B", 235.7e9, 22e9)):
        config = published(name)
        text = config.text
        assert (text.experts, text.active, config.vision.taps) == (128, 8, (8, 16, 24))
        assert parameter_count(config) == pytest.approx(whole, rel=0.02)
        active = text.layers * text.layer_weights + 2 * text.vocab * text.width
        assert active == pytest.approx(passed, rel=0.15)
    # Of eight chips each holds an eighth of the experts.
    config = published("qwen3-vl-30b-a3b")
    assert parameter_count(config, {"tensor": 8}) == pytest.approx(parameter_count(config) / 8, rel=0.1)


def test_flops_of_a_layer_are_those_of_the_experts_that_a_token_passes():
    """Against the plain products of one layer on as many rows as tokens and experts give."""
    text = published("qwen3-vl-30b-a3b").text
    text = dataclasses.replace(text, width=64, heads=4, kv_heads=2, head_dim=16, mlp=2 * 48, experts=8, active=2)
    layer = nnx.eval_shape(lambda: DecoderLayer(text, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(layer)) if len(leaf.shape) > 1]
    assert sum(map(np.prod, shapes)) == text.layer_size
    assert text.expert_mlp == 48
    attention = 64 * (2 * 64 + 2 * 32)
    assert text.layer_weights == attention + 64 * 8 + 2 * 3 * 64 * 48
    (part,) = flops_model.segments((), 1, tokens=10, visual=8)
    assert flops_model.prefill(text, [part])[0]["matrices"] == 2.0 * 10 * text.layer_weights


# --- what it shares with Qwen3-VL ------------------------------------------------------------------------------------


def test_settings_and_methods_are_those_of_qwen3_vl():
    dense, moe = families.get("qwen3_vl"), families.get("qwen3_vl_moe")
    assert moe.settings == dense.settings
    assert settings_of("qwen3_vl_moe", "transformers") == settings_of("qwen3_vl", "transformers")
    for name in reducers.names():
        found, expected = (reducers.get(name, family) for family in ("qwen3_vl_moe", "qwen3_vl"))
        if name not in ("dstp",):
            assert found == expected, name
    given, size = {"size": {"shortest_edge": 4096, "longest_edge": 25165824}}, (8, 720, 1280)
    grids = [
        settings_of(name).grid(published(key), *size, given)
        for name, key in (("qwen3_vl", "qwen3-vl-8b"), ("qwen3_vl_moe", "qwen3-vl-30b-a3b"))
    ]
    assert grids[0] == grids[1]


def test_stts_runs_in_its_tower(folders):
    """Half of the windows, drawn: packed as masked; with all of them the tokens and levels are those of the model."""
    _, whole, dense = stts_tokens(folders["second"])
    levels = dense.evidence["features_deepstack"]
    np.testing.assert_allclose(whole.deepstack, levels.reshape(18, *levels.shape[2:]), atol=1e-4)
