"""Weights in one byte each: their values, what a load holds at once, products, meshes, costs, and what is refused."""

import base64
import dataclasses
import importlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import tiny_checkpoints
from helpers.places import GOLDEN, MODELS

from jvidprune.costs import memory
from jvidprune.costs.footprint import weights
from jvidprune.errors import JvidpruneError
from jvidprune.integrations.lmms_args import ModelArgs
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import family as families
from jvidprune.models.checkpoint import placing
from jvidprune.models.checkpoint.export import export_model
from jvidprune.models.checkpoint.folder import Checkpoint
from jvidprune.models.checkpoint.load import load_model
from jvidprune.models.checkpoint.published import published
from jvidprune.models.embedded import EMBEDDED
from jvidprune.models.experts import Experts
from jvidprune.models.quantised import is_quantised, quantise_layers, quantise_matrices, with_quantise
from jvidprune.ops.branch import using
from jvidprune.reducers.aot import AOT
from jvidprune.serve.api import serving
from jvidprune.training.stts import open_run
from jvidprune.training.transports import CostChoice, CostTrainer
from jvidprune.training.tuning import Tuner, Tuning
from jvidprune.video.encode import write_mp4

LARGEST = {"int8": 127.5, "fp8": 448.0}


def arrays_of(model):
    """Values of the parameters by path, quantised ones as (values, scales)."""
    state = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): variable.get_value() for path, variable in state}


def wide(value):
    """What a quantised matrix stands for, by numpy alone."""
    return np.asarray(value.qvalue, np.float32) * np.asarray(value.scale, np.float32)


def plain(folder, kind):
    """A model in float32 whose matrices are what the quantised ones stand for, multiplied as ever."""
    held = arrays_of(load_model(folder, dtype=jnp.float32, quantise=kind).model)
    model = load_model(folder, dtype=jnp.float32).model
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if is_quantised(value := held[".".join(map(str, path))]):
            variable.set_value(jnp.asarray(wide(value)))
            nnx.update(model, nnx.from_flat_state([(path, variable)]))
    return model


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype"), [("int8", jnp.int8), ("fp8", jnp.float8_e4m3fn)])
def test_every_output_channel_has_a_scale_of_its_largest_weight(kind, dtype):
    matrix = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32) * [1e-3, 1.0, 50.0]
    made = quantise_matrices(jnp.asarray(matrix, jnp.float32), dtype, jnp.dtype("float32"))
    scale = np.abs(matrix).max(axis=1, keepdims=True) / LARGEST[kind]
    np.testing.assert_allclose(made.scale, scale, rtol=1e-6)
    assert made.qvalue.dtype == dtype
    off = np.abs(np.asarray(made.qvalue, np.float32) - matrix / scale)
    # Half a step: of whole numbers, or of three bits of mantissa and of the smallest numbers.
    assert (off <= (0.5001 if kind == "int8" else np.maximum(2**-4 * np.abs(matrix / scale), 2**-10) * 1.001)).all()


def test_a_load_holds_the_matrices_of_one_layer_alone_in_a_wider_type(monkeypatch):
    """At every read of a tensor there is, of the model, nothing but what it ends as and one layer of one matrix."""
    before, most, layers = sum(array.nbytes for array in jax.live_arrays()), [], []
    read, made = Checkpoint.read, placing.quantise_matrices

    def reading(self, name, index):
        most.append(sum(array.nbytes for array in jax.live_arrays()) - before)
        return read(self, name, index)

    def quantising(matrices, *args):
        layers.append(matrices.shape)
        return made(matrices, *args)

    monkeypatch.setattr(Checkpoint, "read", reading)
    monkeypatch.setattr(placing, "quantise_matrices", quantising)
    loaded = load_model(EMBEDDED, dtype=jnp.float32, quantise="int8")
    text, final = loaded.config.text, sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.model))
    assert layers.count((1, text.width, text.mlp)) == 2 * text.layers
    assert len(layers) == 7 * text.layers
    assert max(most) <= final + 4 * text.width * text.mlp * 2
    assert final == memory.parameter_bytes(loaded.config, jnp.float32)
    whole = dataclasses.replace(loaded.config, text=dataclasses.replace(text, quantise=None))
    assert final < 0.5 * memory.parameter_bytes(whole, jnp.float32)


def test_what_is_not_quantised_is_loaded_as_ever():
    quantised = arrays_of(load_model(EMBEDDED, dtype=jnp.bfloat16, quantise="fp8").model)
    whole = arrays_of(load_model(EMBEDDED, dtype=jnp.bfloat16).model)
    assert whole.keys() == quantised.keys()
    held = {path for path, value in quantised.items() if is_quantised(value)}
    assert {path.removeprefix("lm.layers.") for path in held} == {
        *(f"attn.{part}.kernel" for part in "qkvo"),
        *(f"mlp.{part}.kernel" for part in ("gate", "up", "down")),
    }
    for path, value in whole.items():
        if path in held:
            assert (quantised[path].scale.dtype, quantised[path].qvalue.dtype) == (jnp.bfloat16, jnp.float8_e4m3fn)
            error = np.abs(wide(quantised[path]) - np.asarray(value, np.float32))
            # Half a step of three bits of mantissa, half the smallest step near zero, and the scale's rounding.
            allowed = np.abs(np.asarray(value, np.float32)) * (2**-4 + 2**-8)
            assert (error <= allowed + 2**-10 * np.asarray(quantised[path].scale, np.float32)).all()
        else:
            np.testing.assert_array_equal(quantised[path], value)


# --- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["cpu", "tpu"])
def test_experts_multiply_by_what_their_matrices_stand_for(branch):
    whole, held = (Experts(8, 6, 5, 2, dtype=jnp.float32, rngs=nnx.Rngs(0)) for _ in range(2))
    quantise_layers(held, "int8")
    assert not is_quantised(held.router.kernel.get_value())
    for name in Experts.MATRICES:
        setattr(whole, name, nnx.Param(jnp.asarray(wide(getattr(held, name).get_value()))))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8)), jnp.float32)
    run = jax.jit(lambda module: module(x))
    with using(branch), jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(run(held), run(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", families.names())
def test_a_quantised_model_computes_what_its_matrices_stand_for(family, tmp_path):
    folder, kind = tiny_checkpoints.write(family, tmp_path / "model"), "fp8" if "qwen" in family else "int8"
    held, whole = load_model(folder, dtype=jnp.float32, quantise=kind), plain(folder, kind)
    rng, text = np.random.default_rng(0), held.config.text
    embeds = jnp.asarray(rng.normal(size=(2, 7, text.width)), jnp.float32)
    axes = (3,) if text.rope.sections else ()
    positions, valid = jnp.broadcast_to(jnp.arange(7), (*axes, 2, 7)), jnp.ones((2, 7), bool)
    run = jax.jit(lambda model: model.lm.forward(embeds, positions, valid).logits)
    with jax.default_matmul_precision("highest"):
        ours, theirs = np.asarray(run(held.model)), np.asarray(run(whole))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    exact = np.asarray(run(load_model(folder, dtype=jnp.float32).model))
    # It is another model, and no far one.
    assert 1e-4 < np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 0.3


@pytest.mark.slow
def test_questions_conversations_and_the_endpoint_answer_alike(tmp_path):
    """Each as the model answers whose matrices are what the quantised ones stand for."""
    import openai

    folder = tiny_checkpoints.write("qwen2_5_vl", tmp_path / "model")
    llm = VideoLLM.load(folder, dtype="float32", quantise="int8")
    whole = dataclasses.replace(llm, loaded=dataclasses.replace(llm.loaded, model=plain(folder, "int8")))
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    write_mp4(tmp_path / "clip.mp4", frames, fps=4)
    said = []
    for one in (llm, whole):
        video = one.reduce(one.encode(one.sample(tmp_path / "clip.mp4", frames=8)), reducer="uniform", ratio=0.5)
        talk = one.chat(video)
        rounds = [talk.ask(question, max_new_tokens=6).token_ids for question in ("What?", "And then?")]
        said.append((one.ask(video, "What?", max_new_tokens=6).text, rounds))
    assert said[0] == said[1]
    url = "data:video/mp4;base64," + base64.b64encode((tmp_path / "clip.mp4").read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What?"}]
    with serving(llm, name="tiny", port=0, reducer="uniform", ratio=0.5, context=1024) as at:
        client: Any = openai.OpenAI(base_url=at.url, api_key="none", max_retries=0, timeout=120)
        messages, more = [{"role": "user", "content": content}], {"frames": 8}
        found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=6, extra_body=more)
        client.close()
    assert found.choices[0].message.content == said[0][0]


# --- costs -----------------------------------------------------------------------------------------------------------


def test_a_plan_counts_a_byte_for_each_number_of_a_quantised_matrix():
    config = published("llava-onevision-7b")
    small = with_quantise(config, "int8")
    matrices = config.text.layers * config.text.layer_size
    scales = config.text.layers * (2 * 3584 + 2 * 512 + 2 * 18944 + 3584)
    whole = memory.parameter_bytes(config, jnp.bfloat16)
    assert memory.parameter_bytes(small, jnp.bfloat16) == whole - matrices + 2 * scales
    assert weights(small, {}).quantised == matrices
    assert weights(small, {}).bytes(2) == whole - matrices + 2 * scales
    # Scales of an input axis that is divided stay whole; those of outputs go with them.
    share = weights(small, {"fsdp": 2, "tensor": 4})
    assert share.quantised == matrices // 8
    assert share.layers - share.quantised < 1.01 * (weights(small, {}).layers - matrices)


# --- distances from the reference ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parity_tells_how_far_quantised_weights_lead(run):
    code, out, _ = run("parity", MODELS / "llava_onevision", "--model", "--quantise", "int8", "--json")
    rows = json.loads(out)
    files = sorted(path.name for path in (MODELS / "llava_onevision").glob("io*.npz"))
    assert code == 0
    assert [(row["file"], row["held"]) for row in rows] == [
        (file, held) for file in files for held in ("bfloat16", "bfloat16, int8")
    ]
    for near, far in zip(rows[::2], rows[1::2], strict=True):
        assert 1e-4 < near["logits"] < far["logits"] < 0.1
        assert 1e-4 < far["from_bfloat16"] < 0.1
        assert near["from_bfloat16"] is None
        assert near["tokens"] == far["tokens"] == np.load(MODELS / "llava_onevision" / near["file"])["greedy_ids"].size
        assert 0.5 < far["best"] <= 1.0


# --- refusals --------------------------------------------------------------------------------------------------------


def test_unknown_kinds_and_a_missing_package_are_one_sentence(monkeypatch, run):
    with pytest.raises(JvidpruneError, match=r"^weights are quantised to int8 or fp8, not to int4\.$"):
        VideoLLM.load(quantise="int4")  # type: ignore[arg-type]
    assert run("parity", GOLDEN / "evs", "--quantise", "int8")[2].startswith(
        "error: quantised weights are those of a mod"
    )
    with pytest.raises(JvidpruneError, match="quantised to int8 or fp8, not to 8"):
        ModelArgs.read({"quantise": 8})
    assert ModelArgs.read({"quantise": "fp8"}).quantise == "fp8"
    original = importlib.import_module

    def absent(name, *rest):
        if name == "qwix":
            raise ImportError("No module named 'qwix'", name="qwix")
        return original(name, *rest)

    monkeypatch.setattr("jvidprune.extras.importlib.import_module", absent)
    sentence = r"^a quantised model needs qwix: pip install 'jvidprune\[quantise\]'\.$"
    for call in (lambda: VideoLLM.load(quantise="int8"), lambda: with_quantise(published("qwen3-vl-8b"), "int8")):
        with pytest.raises(JvidpruneError, match=sentence):
            call()


def test_a_quantised_model_is_neither_trained_nor_exported(tmp_path):
    llm = VideoLLM.load(quantise="int8")
    with pytest.raises(JvidpruneError, match=r"^an export needs the weights themselves, but .* loaded in int8"):
        export_model(llm.loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    task: Any = ()
    for train in (
        lambda: Tuner(llm, Tuning(steps=1), reader=lambda frames: task, task=task),
        lambda: CostTrainer(llm, AOT(), CostChoice(), task),
        lambda: open_run(llm, None, {}),
    ):
        with pytest.raises(JvidpruneError, match=r"needs the weights themselves, .* load it without quantise"):
            train()
