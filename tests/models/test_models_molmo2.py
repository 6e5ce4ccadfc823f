"""Molmo2: golden parity of both decoders, both layouts of checkpoints, connector and mask against dense arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.families import all_agree, script, source
from helpers.folders import parameters, write
from helpers.places import MODELS
from safetensors.numpy import load_file

from jvidprune import JvidpruneError
from jvidprune.models import load_model
from jvidprune.models.attention import Keys, attend
from jvidprune.models.checkpoint.export import export_model
from jvidprune.models.checkpoint.published import PUBLISHED, published
from jvidprune.models.molmo2 import Config
from jvidprune.models.molmo2.config import ConnectorConfig
from jvidprune.models.molmo2.connector import Connector
from jvidprune.models.molmo2.params import SCORER, name_table
from jvidprune.models.molmo2.windows import window_patches
from jvidprune.models.rope import Yarn

FLAVOURS = ("molmo2", "molmo2_olmo3")
INPUTS = {"frames_uint8", "input_ids"}


@pytest.fixture(scope="module")
def models():
    return {flavour: load_model(MODELS / flavour, dtype=jnp.float32) for flavour in FLAVOURS}


# --- golden parity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_array_of_the_reference_run_agrees(flavour):
    all_agree(MODELS / flavour, INPUTS)


def test_frames_see_later_frames_and_answers_are_causal(models):
    """The last logits change with the mask; the reference's are those of the mutual one (the test above)."""
    model, golden = models["molmo2"].model, np.load(MODELS / "molmo2" / "io.npz")
    x, visual = jnp.asarray(golden["inputs_embeds"]), golden["visual"]
    slots = np.arange(x.shape[1])[None]
    read = jax.jit(lambda together: model.lm.forward(x, slots, slots >= 0, bidirectional=together).logits)
    mutual, causal = read(visual), read(np.zeros_like(visual))
    np.testing.assert_allclose(mutual, golden["logits"], atol=1e-4)
    first = int(visual.argmax())
    np.testing.assert_allclose(causal[:, :first], golden["logits"][:, :first], atol=1e-4)
    assert np.abs(np.asarray(causal) - golden["logits"])[:, first:].max() > 1e-2


# --- checkpoints -----------------------------------------------------------------------------------------------------


def same(loaded, other):
    expected, found = parameters(other.model), parameters(loaded.model)
    assert (loaded.family, loaded.config.text, found.keys()) == ("molmo2", other.config.text, expected.keys())
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_released_names_fill_the_same_parameters(tmp_path, models):
    """Joined projections and split embeddings, blocks that are declared and not run, and the scorer of STTS."""
    tensors, config = source(MODELS / "molmo2")
    made = script("molmo2")
    renamed = made.released_names(tensors, config["text_config"]["vocab_size"])
    assert "model.transformer.blocks.1.self_attn.att_proj.weight" in renamed
    assert not renamed.keys() & (tensors.keys() - {"lm_head.weight"})
    extra = "model.vision_backbone.image_vit.transformer.temporal_token_scorer.mlp.w1.weight"
    assert name_table(models["molmo2"].config).canonical(extra) == f"{SCORER}.mlp.w1.weight"
    block = "model.vision_backbone.image_vit.transformer.resblocks"
    unread = {f"{block}.5.{name.split('.', 6)[-1]}": v for name, v in renamed.items() if name.startswith(f"{block}.0.")}
    renamed |= unread | {extra: np.ones((2, 2), np.float32)}
    layout = made.released(config) | {"model_type": "molmo2"}
    same(load_model(write(tmp_path / "m", renamed, layout), dtype=jnp.float32), models["molmo2"])


def test_names_of_transformers_class_fill_the_same_parameters(tmp_path, models):
    """The other way round, from the stored released names: halves of ff_proj are up and gate, in this order."""
    tensors, config = source(MODELS / "molmo2_olmo3")
    text, table = config["text_config"], name_table(models["molmo2_olmo3"].config)
    plain, width = {}, text["num_attention_heads"] * text["head_dim"]
    base = "model.language_model"
    for stored, value in tensors.items():
        name = table.canonical(stored)
        if "att_proj" in name:
            for part, rows in zip("qkv", np.split(value, [width, 2 * width]), strict=True):
                plain[name.replace("att_proj", f"{part}_proj")] = rows
        elif "ff_proj" in name:
            up, gate = np.split(value, 2)
            plain |= {name.replace("ff_proj", "up_proj"): up, name.replace("ff_proj", "gate_proj"): gate}
        elif ".wte." not in name:
            plain[name] = value
    rows = [tensors[f"model.transformer.wte.{part}"] for part in ("embedding", "new_embedding")]
    plain[f"{base}.embed_tokens.weight"] = np.concatenate(rows)
    assert f"{base}.layers.3.post_attention_layernorm.weight" in plain
    same(load_model(write(tmp_path / "m", plain, config), dtype=jnp.float32), models["molmo2_olmo3"])


def test_an_export_writes_joined_tensors_with_what_changed(tmp_path):
    loaded = load_model(MODELS / "molmo2_olmo3", dtype=jnp.float32)
    gate, rows = loaded.model.lm.layers.mlp.gate.kernel, loaded.model.lm.embed.embedding
    gate.set_value(gate[...].at[1].add(1.0))
    rows.set_value(rows[...].at[70].add(1.0))
    export_model(loaded, tmp_path / "out")
    before, after = source(MODELS / "molmo2_olmo3")[0], load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name: after[name] - before[name] for name in before if not np.array_equal(before[name], after[name])}
    embedding, joined = "model.transformer.wte.new_embedding", "model.transformer.blocks.1.mlp.ff_proj.weight"
    assert changed.keys() == {embedding, joined}
    np.testing.assert_allclose(changed[joined], np.repeat([[0.0], [1.0]], 32, axis=0) * np.ones(32), atol=1e-6)
    assert np.flatnonzero(np.abs(changed[embedding]).sum(axis=1)).tolist() == [70 - 64]


def test_bf16_and_a_missing_head(tmp_path):
    tensors, config = source(MODELS / "molmo2_olmo3")
    del tensors["lm_head.weight"]
    loaded = load_model(write(tmp_path / "m", tensors, config), dtype=jnp.bfloat16)
    assert loaded.config.text.tied
    x = jnp.ones((1, 32), jnp.bfloat16)
    assert loaded.model.lm.logits(x).shape == (1, config["text_config"]["vocab_size"])
    assert loaded.model.embed_text(jnp.array([75])).dtype == jnp.bfloat16


def test_bad_checkpoints_are_one_sentence(tmp_path):
    tensors, config = source(MODELS / "molmo2_olmo3")
    name = "model.transformer.blocks.2.self_attn.att_proj.weight"
    with pytest.raises(JvidpruneError, match=r"blocks\.2\.self_attn\.att_proj\.weight has 95 rows instead of 32"):
        load_model(write(tmp_path / "a", tensors | {name: tensors[name][:95]}, config))
    twice = {"model.language_model.embed_tokens.weight": np.zeros((76, 32), np.float32)}
    with pytest.raises(JvidpruneError, match=r"both hold model\.language_model\.embed_tokens\.weight"):
        load_model(write(tmp_path / "b", tensors | twice, config))
    other = {"visual.patch_embed.proj.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(JvidpruneError, match=r"says it is molmo2 .* those of a Qwen-VL model"):
        load_model(write(tmp_path / "c", other, config))


@pytest.mark.parametrize(
    ("part", "changed", "says"),
    [
        ("adapter_config", {"vit_layers": [-7]}, "reads tower block -7, but the tower has 6 blocks"),
        ("adapter_config", {"text_hidden_size": 33}, "tokens of width 33, but the language model has 32"),
        ("vit_config", {"image_default_input_size": [32, 36]}, "no square of whole patches"),
        ("vit_config", {"num_key_value_heads": 1}, "1 key heads for 2 heads"),
        ("text_config", {"qk_norm_type": "x"}, "qk_norm_type 'x' is not supported"),
        ("text_config", {"rope_scaling_layers": [4]}, "names layer 4, but the model has 4 layers"),
        (
            "text_config",
            {"rope_scaling": {"rope_type": "linear"}},
            "'linear' is not supported; allowed: default, mrope",
        ),
        ("text_config", {"rope_scaling": {"rope_type": "yarn"}}, "yarn needs factor"),
    ],
)
def test_configs_that_the_port_does_not_have_are_refused(part, changed, says):
    _, config = source(MODELS / "molmo2_olmo3")
    with pytest.raises(JvidpruneError, match=says):
        Config.from_hf(config | {part: config[part] | changed})


def test_published_sizes():
    four, eight, olmo = (published(f"allenai/Molmo2-{name}") for name in ("4B", "8B", "O-7B"))
    assert {"molmo2-4b", "molmo2-8b", "molmo2-o-7b"} <= PUBLISHED.keys()
    for config in (four, eight, olmo):
        assert (config.vision.layers, config.vision.tokens, config.vision.width) == (25, 729, 1152)
        assert (config.connector.blocks, config.grid) == ((24, 18), (9, 9))
        assert config.connector.mlp == config.text.mlp
    assert (four.tokens.image_patch, four.tokens.frame_start, four.tokens.frame_end) == (151938, 151943, 151944)
    assert (olmo.tokens.image_patch, olmo.text.yarn_layers) == (100280, (3, 7, 11, 15, 19, 23, 27, 31))
    assert olmo.text.rope.yarn == Yarn(8.0, 8192, attention=pytest.approx(1.2079, abs=1e-4))
    assert (eight.text.norm_after, olmo.text.norm_after, eight.text.yarn_layers) == (False, True, None)


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "pool"), [(27, 3), (8, 3), (7, 3), (5, 2)])
def test_windows_hold_every_patch_once(side, pool):
    found = window_patches(side, pool)
    assert sorted(found[found >= 0].tolist()) == list(range(side * side))
    count = -(-side // pool)
    assert found.shape == (count * count, pool * pool)
    before = (count * pool - side) // 2
    for window, patches in enumerate(found):
        for place, patch in enumerate(patches):
            row = window // count * pool + place // pool - before
            column = window % count * pool + place % pool - before
            inside = 0 <= row < side and 0 <= column < side
            assert patch == (row * side + column if inside else -1)


@pytest.mark.parametrize("masked", [True, False])
def test_pooling_attention_equals_a_loop_over_windows(masked):
    config = ConnectorConfig((1, 0), 8, 2, 6, masked=masked)
    layer = Connector(config, 4, 5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for part in (layer.q, layer.k, layer.v, layer.o):
        part.bias[...] = jnp.asarray(rng.normal(size=8), jnp.float32)
    x, patches = rng.normal(size=(1, 16, 8)).astype(np.float32), window_patches(4, 3)
    found = np.asarray(layer.pool(jnp.asarray(x), patches))
    parts = {"q": layer.q, "k": layer.k, "v": layer.v, "o": layer.o}
    weights = {name: (np.asarray(part.kernel[...]), np.asarray(part.bias[...])) for name, part in parts.items()}
    for window, ids in enumerate(patches):
        rows = np.where(ids[:, None] >= 0, x[0, np.maximum(ids, 0)], 0)
        rows = rows[ids >= 0] if masked else rows
        q, k, v = (v @ weights[n][0] + weights[n][1] for n, v in (("q", rows.mean(0)), ("k", rows), ("v", rows)))
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            scores = np.exp(k[:, h] @ q[h] / 2)
            heads.append(scores / scores.sum() @ v[:, h])
        expected = np.concatenate(heads) @ weights["o"][0] + weights["o"][1]
        np.testing.assert_allclose(found[0, window], expected, atol=1e-5)


def test_mutual_sight_equals_a_dense_mask():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 9, 2, 4)), jnp.float32) for _ in range(3))
    together, valid = rng.random((2, 9)) < 0.5, np.arange(9) < np.array([[9], [7]])
    found = attend(q, Keys(k, v, jnp.asarray(valid), True, bidirectional=jnp.asarray(together)))
    seen = np.tril(np.ones((9, 9), bool)) | (together[:, :, None] & together[:, None, :])
    seen = seen & valid[:, None, :]
    scores = np.where(seen[:, None], np.einsum("bqhd,bkhd->bhqk", q, k) / 2, -np.inf)
    expected = np.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
    np.testing.assert_allclose(np.asarray(found)[valid], expected[valid], atol=1e-5)


def test_evidence_that_the_tower_cannot_give_is_named(models):
    needs = frozenset({"attention_pooling_head", "features_unpooled", "keys"})
    with pytest.raises(JvidpruneError, match="molmo2 cannot give evidence attention_pooling_head, features_unpooled"):
        models["molmo2"].model.encode(jnp.zeros((1, 3, 36, 36)), needs)


def test_evidence_is_the_towers_own(models):
    """Attention and keys against a tap of every block, pooled by plain reshapes; chunks change nothing."""
    model = models["molmo2"].model
    pixels = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 36, 36)), jnp.float32)

    def both(pixels):
        embedded = model.vision.patches(pixels) + model.vision.pos_embed[...]
        _, blocks = model.vision.run(embedded, 0, 4, tap=True)
        return model.encode(pixels, model.provides, chunk=2), blocks

    video, blocks = jax.jit(both)(pixels)

    def pooled(x):
        return np.asarray(x).reshape(3, 3, 3, 3, 3, -1).mean(axis=(2, 4)).reshape(3, 9, -1)

    received = np.asarray(blocks.received).mean(axis=2)
    evidence = {name: np.asarray(value) for name, value in video.evidence.items()}
    np.testing.assert_allclose(evidence["attention_last"], pooled(received[3])[..., 0], atol=1e-6)
    np.testing.assert_allclose(evidence["attention_last"].sum(axis=1), 1 / 9, atol=1e-6)
    np.testing.assert_allclose(evidence["attention_deep"], 81 * pooled(received[2])[..., 0], atol=1e-5)
    np.testing.assert_allclose(evidence["attention_shallow"], 81 * pooled(received[0])[..., 0], atol=1e-5)
    np.testing.assert_allclose(evidence["keys"], pooled(blocks.keys[3]), atol=1e-5)
    np.testing.assert_allclose(evidence["frame_embedding"], np.asarray(video.features).mean(axis=1), atol=1e-5)
