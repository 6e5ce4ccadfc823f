"""Qwen2.5-VL and Qwen3-VL: golden parity, naming variants, towers against a dense masked computation, positions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.folders import parameters, write
from helpers.places import MODELS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from jvidprune import JvidpruneError
from jvidprune.models import attention, load_model
from jvidprune.models.positions import (
    MROPE_RULES,
    VideoBlock,
    frame_blocks,
    prompt_pieces,
    prompt_positions,
    step_seconds,
    video_ids,
)
from jvidprune.models.prefill import read_prompt
from jvidprune.models.qwen.model import spread_levels
from jvidprune.models.qwen.tower import AttentionWindows, patch_coordinates
from jvidprune.models.qwen2_5_vl import Config as Config25
from jvidprune.models.qwen3_vl import Config as Config3
from jvidprune.parity.models import compare_model_folder
from jvidprune.video.preprocess import Patches

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
FILES = [("qwen2_5_vl", "io2.npz"), ("qwen2_5_vl", "io3.npz"), ("qwen3_vl", "io3.npz")]
INPUTS = {"config", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "input_ids", "pruned_keep"}
GRID = (3, 12, 10)
"""6 x 5 tokens in windows of 4 x 4: two window rows and columns, the last ones cut off."""


@pytest.fixture(scope="session")
def models():
    return {family: load_model(MODELS / family, dtype=jnp.float32) for family in FAMILIES}


@pytest.fixture(scope="session")
def patches():
    return np.random.default_rng(0).normal(size=(3 * 120, 96)).astype(np.float32)


encode = jax.jit(
    lambda m, x, grid, needs, chunk: m.encode(Patches(x, grid), needs, chunk=chunk), static_argnums=(2, 3, 4)
)


@pytest.fixture(scope="session")
def videos(models, patches):
    """All evidence of three grid frames."""
    return {name: encode(m.model, patches, GRID, m.model.provides, None) for name, m in models.items()}


def source(family):
    return load_file(MODELS / family / "model.safetensors"), json.loads((MODELS / family / "config.json").read_text())


# --- golden parity ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def reports():
    return {(name, report.file): report for name in FAMILIES for report in compare_model_folder(MODELS / name)}


@pytest.mark.parametrize(("family", "file"), FILES)
def test_every_array_of_the_reference_run_agrees(reports, family, file):
    rows = {row.what: row for row in reports[family, file].rows}
    assert rows.keys() == set(np.load(MODELS / family / file).files) - INPUTS
    assert [row for row in rows.values() if row.verdict != "ok"] == []


def test_a_deviation_from_the_reference_is_seen(tmp_path):
    """Positions of the other rule, and logits off by twice the tolerance."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(MODELS / "qwen2_5_vl" / name)
    data = dict(np.load(MODELS / "qwen2_5_vl" / "io2.npz"))
    changed = {key: data[f"{key}_tf5"] for key in ("position_ids", "rope_delta")} | {"logits": data["logits"] + 2e-4}
    np.savez(folder / "io.npz", **{key: data[key] for key in INPUTS}, **changed)
    (report,) = compare_model_folder(folder)
    assert [row.verdict for row in report.rows] == ["mismatch"] * 3


# --- checkpoints -----------------------------------------------------------------------------------------------------


def nested25(tensors, config):
    """Re-saved: common prefix model., text_config, rope_parameters, in_channels."""
    text_keys = {"hidden_act", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    text_keys |= {"num_key_value_heads", "vocab_size", "rms_norm_eps", "max_position_embeddings"}
    text = {key: config.pop(key) for key in text_keys}
    sections = config.pop("rope_scaling")["mrope_section"]
    theta = config.pop("rope_theta")
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta, "mrope_section": sections}
    config["text_config"] = text
    config["vision_config"]["in_channels"] = config["vision_config"].pop("in_chans")

    def rename(name):
        if name.startswith("visual."):
            return "model." + name
        return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name

    return {rename(name): value for name, value in tensors.items()}, config


def flat3(tensors, config):
    """The flat names, and the re-saved rope layout."""
    scaling = config["text_config"].pop("rope_scaling")
    config["text_config"].pop("rope_theta")
    config["text_config"]["rope_parameters"] = scaling
    return {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for name, value in tensors.items()
    }, config


def inner25(tensors, config):
    """language_model.model. beside visual., as early releases of the library hold the model in memory."""
    moved = {(f"language_model.{n}" if n.startswith(("model.", "lm_head")) else n): v for n, v in tensors.items()}
    return moved, config


@pytest.mark.parametrize(
    ("family", "variant"), [("qwen2_5_vl", nested25), ("qwen2_5_vl", inner25), ("qwen3_vl", flat3)]
)
def test_every_naming_variant_fills_the_same_parameters(tmp_path, models, family, variant):
    tensors, config = source(family)
    renamed, config = variant(tensors, config)
    assert renamed.keys() != tensors.keys()
    renamed["visual.rotary_pos_emb.inv_freq"] = np.ones(2, np.float32)
    loaded = load_model(write(tmp_path / "m", renamed, config), dtype=jnp.float32)
    assert (loaded.family, loaded.config) == (family, models[family].config)
    expected = parameters(models[family].model)
    found = parameters(loaded.model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_published_config_is_read_as_the_paper_describes_it():
    vision = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584}
    vision |= {"patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
    raw = {"model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28}
    raw |= {"num_key_value_heads": 4, "num_hidden_layers": 28, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
    raw |= {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    config = Config25.from_hf(raw | {"vision_config": vision | {"tokens_per_second": 2}})
    assert (config.vision.window, sum(config.vision.sees_frames), config.tokens_per_second) == (4, 4, 2)
    assert (config.video_token, config.vision_start) == (151656, 151652)
    axis = config.text.rope.axis_of(128)
    assert axis.tolist() == [0] * 16 + [1] * 24 + [2] * 24
    # 16 heads x 1024^2 scores of a 448 x 448 frame pair: eight of them fit half a GiB.
    assert config.vision.chunk((16, 32, 32)) == 8

    text = {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 36}
    config = Config3.from_hf({"model_type": "qwen3_vl", "text_config": text, "vision_config": {}})
    axis = config.text.rope.axis_of(128)
    assert axis[:8].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [int((axis == k).sum()) for k in range(3)] == [24, 20, 20]
    assert (config.text.head_dim, config.text.rope.theta, config.text.qkv_bias) == (128, 5e6, False)
    assert (config.vision.table_side, config.vision.taps, config.vision.layers) == (48, (8, 16, 24), 27)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_head_ties_it(tmp_path, family):
    tensors, config = source(family)
    del tensors["lm_head.weight"]
    loaded = load_model(write(tmp_path / "m", tensors, config), dtype=jnp.float32)
    assert loaded.config.text.tied
    assert loaded.model.lm.head is None


def test_bad_checkpoints_are_one_sentence(tmp_path):
    tensors, config = source("qwen2_5_vl")
    with pytest.raises(JvidpruneError, match="must give mrope_section"):
        load_model(write(tmp_path / "a", tensors, config | {"rope_scaling": None}))
    llava = {"multi_modal_projector.linear_1.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(JvidpruneError, match=r"says it is qwen2_5_vl .* its tensors are those of a LLaVA model"):
        load_model(write(tmp_path / "b", llava, config))
    with pytest.raises(JvidpruneError, match="qwen2_5_vl has no SigLIP tower"):
        load_model(MODELS / "qwen2_5_vl", pooling_head=MODELS / "qwen2_5_vl")
    tensors, config = source("qwen3_vl")
    with pytest.raises(JvidpruneError, match="35 is no square number"):
        Config3.from_hf(config | {"vision_config": {"num_position_embeddings": 35}})
    with pytest.raises(JvidpruneError, match=r"deepstack_visual_indexes \[2, 0\]"):
        Config3.from_hf(config | {"vision_config": {"deepstack_visual_indexes": [2, 0]}})
    del tensors["model.visual.deepstack_merger_list.1.norm.bias"]
    with pytest.raises(JvidpruneError, match=r"1 missing: visual.deepstack_merger_list.1.norm.bias"):
        load_model(write(tmp_path / "c", tensors, config))


# --- towers ----------------------------------------------------------------------------------------------------------


def erf_gelu(x):
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Dense:
    """The tower in float64 numpy with one P x P mask of the whole video, straight from the stored tensors."""

    def __init__(self, family):
        tensors, config = source(family)
        self.w = {name.removeprefix("model."): x.astype(np.float64) for name, x in tensors.items()}
        self.vision, self.rms = config["vision_config"], family == "qwen2_5_vl"

    def norm(self, x, name):
        if self.rms:
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.w[f"{name}.weight"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def affine(self, x, name):
        return x @ self.w[f"{name}.weight"].reshape(len(self.w[f"{name}.weight"]), -1).T + self.w.get(f"{name}.bias", 0)

    def table(self, rows, columns):
        table = self.w["visual.pos_embed.weight"].reshape(6, 6, -1)
        out = np.zeros((rows, columns, table.shape[-1]))
        for r in range(rows):
            for c in range(columns):
                y, x = (i * 5 / (n - 1) if n > 1 else 0.0 for i, n in ((r, rows), (c, columns)))
                y0, x0 = int(y), int(x)
                for yy, wy in ((y0, 1 - y + y0), (min(y0 + 1, 5), y - y0)):
                    for xx, wx in ((x0, 1 - x + x0), (min(x0 + 1, 5), x - x0)):
                        out[r, c] += wy * wx * table[yy, xx]
        return out

    def run(self, patches, grid):
        t, rows, columns = grid
        where = [
            (f, 2 * i + a, 2 * j + b)
            for f in range(t)
            for i in range(rows // 2)
            for j in range(columns // 2)
            for a in range(2)
            for b in range(2)
        ]
        frame, r, c = np.array(where).T
        x = self.affine(patches.astype(np.float64), "visual.patch_embed.proj")
        if not self.rms:
            x = x + self.table(rows, columns)[r, c]
        inv = 10000.0 ** (-np.arange(0, 8, 2) / 8)
        angles = np.tile(np.concatenate([r[:, None] * inv, c[:, None] * inv], axis=1), 2)[:, None]
        hidden, received, taps = [], [], []
        for block in range(4):
            name = f"visual.blocks.{block}"
            q, k, v = np.split(self.affine(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv"), 3, axis=1)
            q, k, v = (y.reshape(-1, 2, 16) for y in (q, k, v))
            unrotated = k
            q, k = (y * np.cos(angles) + np.concatenate([-y[..., 8:], y[..., :8]], -1) * np.sin(angles) for y in (q, k))
            segment = frame if not self.rms or block in (1, 3) else frame * 10000 + r // 8 * 100 + c // 8
            same = segment[:, None] == segment
            scores = np.where(same, np.einsum("qhd,khd->hqk", q, k) / 4, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            received.append(weights.mean(0).sum(0) / same.sum(0))
            x = x + self.affine(np.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1), f"{name}.attn.proj")
            h = self.norm(x, f"{name}.norm2")
            if self.rms:
                gate = self.affine(h, f"{name}.mlp.gate_proj")
                h = gate / (1 + np.exp(-gate)) * self.affine(h, f"{name}.mlp.up_proj")
                x = x + self.affine(h, f"{name}.mlp.down_proj")
            else:
                x = x + self.affine(tanh_gelu(self.affine(h, f"{name}.mlp.linear_fc1")), f"{name}.mlp.linear_fc2")
            hidden.append(x)
        merger = "visual.merger"
        names = ("ln_q", "mlp.0", "mlp.2") if self.rms else ("norm", "linear_fc1", "linear_fc2")
        norm, fc1, fc2 = (f"{merger}.{name}" for name in names)
        joined = self.norm(x, norm).reshape(-1, 128)
        tokens = self.affine(erf_gelu(self.affine(joined, fc1)), fc2)
        if not self.rms:
            for i, block in enumerate((0, 2)):
                name = f"visual.deepstack_merger_list.{i}"
                h = self.norm(hidden[block].reshape(-1, 128), f"{name}.norm")
                taps.append(self.affine(erf_gelu(self.affine(h, f"{name}.linear_fc1")), f"{name}.linear_fc2"))
        # FastVID: mean query of a frame against the mean key of each token, last block.
        q, k = q.reshape(t, -1, 2, 16).mean(1), k.reshape(t, -1, 4, 2, 16).mean(2)
        scores = np.exp(np.einsum("thd,tnhd->thn", q, k) / 4)
        mean_query = (scores / scores.sum(-1, keepdims=True)).mean(1)
        keys = unrotated.mean(1).reshape(t, -1, 4, 16).mean(2)
        return np.stack(hidden), np.stack(received), tokens, np.array(taps), mean_query, keys


@pytest.fixture(scope="session")
def dense(patches):
    return {family: Dense(family).run(patches, GRID) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_equal_a_dense_masked_computation(models, patches, dense, family):
    """Windows by reshaping, border windows included, and their attention received, in every block."""

    @jax.jit
    def run(model, x):
        vision = model.vision
        x = vision.embed(x)
        x = x + vision.positions(GRID)
        return vision.run(x, vision.tables(GRID), 0, 4, tap=True, hidden=True)[1]

    found = run(models[family].model, patches.reshape(3, 120, 96))
    hidden, received, *_ = dense[family]
    np.testing.assert_allclose(np.reshape(found.hidden, hidden.shape), hidden, atol=5e-5)
    np.testing.assert_allclose(found.received.mean(2).reshape(4, -1), received, atol=1e-6)


AOT_BLOCKS = {"qwen2_5_vl": (1, 3), "qwen3_vl": (0, 2)}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_evidence_equal_a_dense_computation(videos, dense, family):
    video = videos[family]
    _, received, tokens, taps, mean_query, keys = dense[family]
    assert (video.grid, video.features.shape) == ((6, 5), (3, 30, 64))
    np.testing.assert_allclose(video.features.reshape(-1, 64), tokens, atol=5e-5)
    np.testing.assert_allclose(video.evidence["attention_last"], received[-1].reshape(3, 30, 4).mean(-1), atol=1e-6)
    np.testing.assert_allclose(video.evidence["attention_last"].sum(1), 0.25, atol=1e-6)
    np.testing.assert_allclose(video.evidence["attention_mean_query"], mean_query, atol=1e-6)
    np.testing.assert_allclose(video.evidence["keys"], keys, atol=5e-5)
    # Blocks that see whole frames, nearest to AOT's; sums over the 120 queries of a frame.
    for name, block in zip(("attention_shallow", "attention_deep"), AOT_BLOCKS[family], strict=True):
        np.testing.assert_allclose(video.evidence[name], received[block].reshape(3, 30, 4).mean(-1) * 120, atol=1e-4)
    np.testing.assert_allclose(video.evidence["frame_embedding"], tokens.reshape(3, 30, 64).mean(1), atol=5e-5)
    if family == "qwen3_vl":
        levels = taps.reshape(2, 3, 30, 64).transpose(1, 2, 0, 3)
        np.testing.assert_allclose(video.evidence["features_deepstack"], levels, atol=5e-5)


def test_chunks_of_frames_change_nothing(models, patches, videos):
    model = models["qwen3_vl"].model
    parts = encode(model, patches, GRID, model.provides, 2)
    assert videos["qwen3_vl"].evidence.keys() == model.provides
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), videos["qwen3_vl"], parts)


def test_only_the_evidence_asked_for_is_attached(models, patches):
    def evidence(family, *needs):
        model = models[family].model
        return set(jax.eval_shape(lambda x: model.encode(Patches(x, GRID), frozenset(needs)), patches).evidence)

    assert evidence("qwen2_5_vl") == set()
    assert evidence("qwen2_5_vl", "frame_embedding", "attention_last") == {"frame_embedding", "attention_last"}
    # Without its levels the language model of Qwen3-VL would read another video.
    assert evidence("qwen3_vl") == {"features_deepstack"}


def test_no_map_larger_than_a_frame_or_window_is_ever_made(models, patches):
    model = models["qwen2_5_vl"].model
    long = np.tile(patches, (8, 1))
    needs = frozenset({"attention_last"})
    text = str(jax.make_jaxpr(lambda x: model.encode(Patches(x, (24, 12, 10)), needs, chunk=4))(long))
    # 4 frames of 120 patches; 4 frames of 4 windows of 64 patches.
    assert "f32[4,2,120,120]" in text
    assert "f32[16,2,64,64]" in text
    assert ",2880,2880]" not in text
    assert "f32[24,2,120,120]" not in text


def test_large_frames_are_scored_in_chunks_of_queries(monkeypatch):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 11, 3, 4)), jnp.float32) for _ in range(3))
    valid = jnp.asarray(rng.random((2, 11)) < 0.7)
    for mask in (None, valid):
        whole = attention.attend_all(q, k, v, valid=mask, received=True)
        monkeypatch.setattr(attention, "FRAME_QUERIES", 4)
        monkeypatch.setattr(attention, "QUERY_CHUNK", 4)
        parts = attention.attend_all(q, k, v, valid=mask, received=True)
        monkeypatch.undo()
        scores = np.einsum("tqhd,tshd->thqs", q, k) / 2
        if mask is not None:
            scores = np.where(np.asarray(mask)[:, None, None], scores, -np.inf)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        counted = np.ones((2, 11)) if mask is None else np.asarray(mask)
        received = np.einsum("thqs,tq->ths", weights, counted) / counted.sum(1)[:, None, None]
        for out, columns in (whole, parts):
            np.testing.assert_allclose(out, np.einsum("thqs,tshd->tqhd", weights, v), atol=1e-5)
            np.testing.assert_allclose(columns, received, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "side", "frames"), [(8, 4, 4, 1), (7, 5, 4, 2), (1, 9, 4, 1), (3, 2, 4, 2), (5, 6, 1, 1)]
)
def test_windows_split_and_join_are_inverse_and_never_mix(height, width, side, frames):
    windows = AttentionWindows(height, width, side, 4)
    x = jnp.arange(frames * height * width * 4).reshape(frames, -1)
    cut = windows.split(x)
    valid = windows.valid(frames)
    real = np.asarray(cut)[np.ones(cut.shape, bool) if valid is None else np.asarray(valid)]
    np.testing.assert_array_equal(windows.join(cut), x)
    assert sorted(real.tolist()) == x.ravel().tolist()
    where = patch_coordinates(2 * height, 2 * width)
    for row, mask in zip(np.asarray(cut), [None] * len(cut) if valid is None else np.asarray(valid), strict=True):
        ids = row if mask is None else row[mask]
        corners = {(i // len(where), *(where[i % len(where)] // (2 * side)).tolist()) for i in ids.tolist()}
        assert len(corners) == 1


def test_impossible_grids_and_evidence_are_one_sentence(models, patches):
    model = models["qwen2_5_vl"].model
    with pytest.raises(JvidpruneError, match=r"patches of shape \(360, 96\), got \(359, 96\)"):
        model.encode(Patches(patches[1:], GRID))
    with pytest.raises(JvidpruneError, match=r"multiples of 2, got \(3, 8, 15\)"):
        model.encode(Patches(patches, (3, 8, 15)))
    with pytest.raises(JvidpruneError, match="qwen2_5_vl cannot give evidence features_deepstack"):
        model.encode(Patches(patches, GRID), frozenset({"features_deepstack"}))
    with pytest.raises(JvidpruneError, match="unknown evidence nonsense"):
        model.encode(Patches(patches, GRID), frozenset({"nonsense"}))


def test_bfloat16_follows_float32(patches, videos):
    needs = frozenset({"attention_last", "attention_mean_query", "frame_embedding"})
    for family in FAMILIES:
        model = load_model(MODELS / family, dtype=jnp.bfloat16).model
        video = encode(model, patches, GRID, needs, None)
        assert video.features.dtype == jnp.bfloat16
        assert {video.evidence[name].dtype for name in needs} == {jnp.dtype(jnp.float32)}
        expected = np.asarray(videos[family].features)
        error = np.abs(np.asarray(video.features, np.float32) - expected).mean()
        assert error < 0.05 * np.abs(expected).mean()


# --- positions -------------------------------------------------------------------------------------------------------


def slow_positions(pieces, rule, per_second):
    """Token by token."""
    ids, start = [], 0
    for piece in pieces:
        if isinstance(piece, int):
            ids += [(start + i,) * 3 for i in range(piece)]
            start += piece
            continue
        before = start
        for f in range(piece.frames):
            time = int(np.floor(np.float32(f) * np.float32(piece.seconds) * np.float32(per_second)))
            ids += [(before + time, before + y, before + x) for y in range(piece.height) for x in range(piece.width)]
        start = before + max(piece.height, piece.width) if rule == "transformers-5" else max(map(max, ids)) + 1
    return np.array(ids).T, max(map(max, ids)) + 1


BLOCKS = st.builds(VideoBlock, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 0.75, 2.0]))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4) | BLOCKS, min_size=1, max_size=6), st.sampled_from(MROPE_RULES))
def test_positions_equal_a_token_by_token_count(pieces, rule):
    found = prompt_positions(pieces, tokens_per_second=2, rule=rule)
    ids, after = slow_positions(pieces, rule, 2)
    np.testing.assert_array_equal(found.ids, ids)
    assert found.rope_delta == after - ids.shape[1]
    assert found.next == (max(ids[:, -1]) + 1 if rule == "transformers-5" else after)


def test_the_rules_differ_exactly_as_observed():
    """Grid (6, 4, 4), one second a step, starting at 3: text resumes at 14 or at 5; generated tokens follow it.

    transformers 5 returns a rope_delta that would put them at 14, but `generate()` counts on from the last position.
    """
    pieces = [3, VideoBlock(6, 2, 2, 1.0), 2]
    rules = {rule: prompt_positions(pieces, tokens_per_second=2, rule=rule) for rule in MROPE_RULES}
    new = rules.pop("transformers-5")
    assert (new.ids[:, -2:].tolist(), new.next, new.rope_delta) == ([[5, 6]] * 3, 7, 14 - 29)
    for old in rules.values():
        assert (old.ids[:, -2:].tolist(), old.next, old.rope_delta) == ([[14, 15]] * 3, 16, 16 - 29)
    still = prompt_positions([3, VideoBlock(6, 2, 2, 2 / 24), 2], tokens_per_second=2)
    assert set(still.ids[0, 3:27].tolist()) == {3}


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        (0.75, {"released": 0.75, "transformers-5": 0.75, "transformers-4.57": 0.0, "lmms-eval": 1.0}),
        (2.5, {"released": 2.5, "transformers-5": 2.5, "transformers-4.57": 2.0, "lmms-eval": 1.0}),
    ],
)
def test_seconds_of_a_grid_step_by_rule(seconds, found):
    assert {rule: step_seconds(seconds, rule) for rule in MROPE_RULES} == found


def test_transformers_5_multiplies_seconds_and_scale_first():
    """A scale that is no power of two: the two orders of float32 products floor to other ids."""
    block = VideoBlock(200, 1, 1, 0.7)
    old, new = (video_ids(block, 0, 25.0, rule)[0] for rule in ("released", "transformers-5"))
    steps = np.arange(200, dtype=np.float32)
    np.testing.assert_array_equal(old, np.floor(steps * np.float32(0.7) * np.float32(25)))
    np.testing.assert_array_equal(new, np.floor(steps * (np.float32(0.7) * np.float32(25))))
    assert (old != new).any()


def test_kept_tokens_keep_their_ids_or_are_counted_anew():
    whole = prompt_positions([2, *frame_blocks(2, 2, 3), 4])
    keep = np.array([0, 1, 4, 9, 16, 17])
    same, new = whole.keep(keep), whole.keep(keep, reindexed=True)
    np.testing.assert_array_equal(same.ids, whole.ids[:, keep])
    assert same.next == whole.next == 2 + 3 + 3 + 4
    assert (new.ids.tolist(), new.next, new.rope_delta) == ([list(range(6))] * 3, 6, 0)


def test_placeholders_must_match_the_blocks():
    ids = np.array([1, 9, 9, 9, 9, 2, 9, 9, 3])
    assert prompt_pieces(ids, 9, [VideoBlock(1, 1, 2)] * 3) == [1, (1, 1, 2, 0), (1, 1, 2, 0), 1, (1, 1, 2, 0), 1]
    with pytest.raises(JvidpruneError, match="holds 6 video placeholders for 5 video tokens"):
        prompt_pieces(ids, 9, [VideoBlock(1, 1, 5)])
    with pytest.raises(JvidpruneError, match="text stands inside the 6 placeholders that begin at token 1"):
        prompt_pieces(ids, 9, [VideoBlock(1, 2, 3)])
    with pytest.raises(JvidpruneError, match="unknown M-RoPE rule 'tf4'; known: released, transformers-5, transf"):
        prompt_positions([1], rule="tf4")
    with pytest.raises(JvidpruneError, match="without tokens"):
        prompt_positions([])


# --- DeepStack in the language model ---------------------------------------------------------------------------------


def test_levels_are_added_in_the_prefill_alone(models):
    """Cached decoding equals a forward pass that adds nothing on the answer's slots, whatever the cache's segments."""
    model = models["qwen3_vl"].model
    rng = np.random.default_rng(0)
    embeds = rng.normal(size=(1, 10, 64)).astype(np.float32)
    rows = np.array([[-1, -1, 2, 0, 1, -1, 3, -1, -1, -1]])
    levels = rng.normal(size=(4, 2, 64)).astype(np.float32)
    added = np.asarray(spread_levels(jnp.asarray(levels), jnp.asarray(rows)))
    expected = np.zeros((2, 1, 10, 64), np.float32)
    for slot, row in enumerate(rows[0]):
        if row >= 0:
            expected[:, 0, slot] = levels[row]
    np.testing.assert_array_equal(added, expected)

    positions = np.asarray(prompt_positions([2, VideoBlock(1, 1, 3), 5]).ids)[:, None]
    valid = jnp.ones((1, 10), bool)
    token = np.array([7])
    outs = []
    for boundaries in ((), (1,)):

        @jax.jit
        def two_steps(model, added, boundaries=boundaries):
            cache = model.lm.empty_cache(1, 11, boundaries=boundaries)
            first, cache = read_prompt(model.lm, embeds, positions, valid, cache, deepstack=added)[:2]
            return first, model.lm.decode(token, cache)[0]

        outs.append(two_steps(model, added))
    longer = np.concatenate([embeds, np.asarray(model.embed_text(token))[None]], axis=1)
    where = np.concatenate([positions, np.full((3, 1, 1), positions.max() + 1)], axis=-1)
    extra = np.pad(added, ((0, 0), (0, 0), (0, 1), (0, 0)))
    logits = jax.jit(lambda m: m.lm.forward(longer, where, jnp.ones((1, 11), bool), deepstack=extra).logits)(model)
    for first, second in outs:
        np.testing.assert_allclose(first, logits[:, -2], atol=1e-4)
        np.testing.assert_allclose(second, logits[:, -1], atol=1e-4)
