"""Text towers of SigLIP and CLIP folders: layout, segments, numbers by hand, and CDPruner's relevance from them."""

import json

import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.reducer_checks import refused
from safetensors.numpy import save_file

from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.text_tower import load_text_tower
from jvidprune.ops.saliency import PoolingHead, pooling_head_attention, pooling_head_tokens
from jvidprune.reducers.cdpruner import CDPruner
from jvidprune.reducers.run import reduce

WIDTH, HEADS, PLACES = 16, 2, 12
JOINT = "cdpruner(variant=official, relevance=joint)"


def tokenizer(folder, kind):
    """A tokenizer as transformers saves one: words of bytes, an end, and for CLIP a beginning."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "</s>"] if kind == "siglip" else []
    vocabulary = {symbol: i for i, symbol in enumerate([*special, *alphabet])}
    if kind == "clip":
        # The end has the largest id, which is what CLIP's tower looks for.
        vocabulary |= {"<s>": len(vocabulary), "</s>": len(vocabulary) + 1}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    around = ("$A </s>", ["</s>"]) if kind == "siglip" else ("<s> $A </s>", ["<s>", "</s>"])
    made.post_processor = TemplateProcessing(
        single=around[0], special_tokens=[(token, vocabulary[token]) for token in around[1]]
    )
    names = {"eos_token": "</s>"} | ({"pad_token": "<pad>"} if kind == "siglip" else {"bos_token": "<s>"})
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return len(vocabulary)


def write(folder, kind="siglip", *, width=WIDTH, head=True, text=True):
    """A folder as of the hub, both towers of it, with random tensors under the published names; returns them too."""
    folder.mkdir()
    vocabulary, rng, tensors = tokenizer(folder, kind), np.random.default_rng(0), {}

    def normal(name, *shape):
        tensors[name] = rng.standard_normal(shape).astype(np.float32) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2)

    def affine(name, rows, columns, bias=True):
        normal(f"{name}.weight", rows, columns)
        if bias:
            normal(f"{name}.bias", rows)

    def norm(name, size):
        normal(f"{name}.weight", size)
        tensors[f"{name}.weight"] += 1
        normal(f"{name}.bias", size)

    normal("text_model.embeddings.token_embedding.weight", vocabulary, width)
    normal("text_model.embeddings.position_embedding.weight", PLACES, width)
    for layer in range(2):
        block = f"text_model.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            affine(f"{block}.self_attn.{part}", width, width)
        affine(f"{block}.mlp.fc1", 24, width)
        affine(f"{block}.mlp.fc2", width, 24)
        norm(f"{block}.layer_norm1", width)
        norm(f"{block}.layer_norm2", width)
    norm("text_model.final_layer_norm", width)
    if kind == "siglip":
        affine("text_model.head", width, width)
    else:
        affine("text_projection", WIDTH, width, bias=False)
        affine("visual_projection", WIDTH, width, bias=False)
        tensors["text_model.embeddings.position_ids"] = np.arange(PLACES)[None]
    if not text:
        tensors.clear()
    tensors["logit_scale"] = np.ones(1, np.float32)
    normal("vision_model.embeddings.position_embedding.weight", 64, 16)
    if head:
        norm("vision_model.post_layernorm", 16)
        normal("vision_model.head.probe", 1, 1, 16)
        normal("vision_model.head.attention.in_proj_weight", 48, 16)
        normal("vision_model.head.attention.in_proj_bias", 48)
        affine("vision_model.head.attention.out_proj", 16, 16)
        norm("vision_model.head.layernorm", 16)
        affine("vision_model.head.mlp.fc1", 16, 16)
        affine("vision_model.head.mlp.fc2", 16, 16)
    sizes = {"hidden_size": width, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    sizes |= {"vocab_size": vocabulary, "max_position_embeddings": PLACES}
    config = {"model_type": kind, "text_config": sizes} | ({"projection_dim": WIDTH} if kind == "clip" else {})
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder, tensors


def by_hand(tensors, kind, ids, valid):
    """The embedding of one segment, in numpy, float64."""
    t = {name: value.astype(np.float64) for name, value in tensors.items()}

    def affine(x, name):
        return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        eps = 1e-6 if kind == "siglip" else 1e-5
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * t[f"{name}.weight"] + t[f"{name}.bias"]

    def activation(x):
        if kind == "clip":
            return x / (1 + np.exp(-1.702 * x))
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = t["text_model.embeddings.token_embedding.weight"][ids] + t["text_model.embeddings.position_embedding.weight"]
    places = np.arange(PLACES)
    seen = np.ones((PLACES, PLACES), bool)
    if kind == "clip":
        seen = (places <= places[:, None]) & (valid | (places == places[:, None]))
    for layer in range(2):
        block = f"text_model.encoder.layers.{layer}"
        h = norm(x, f"{block}.layer_norm1")
        q, k, v = (affine(h, f"{block}.self_attn.{part}_proj").reshape(PLACES, HEADS, -1) for part in "qkv")
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + affine(np.einsum("hqk,khd->qhd", weights, v).reshape(PLACES, -1), f"{block}.self_attn.out_proj")
        x = x + affine(activation(affine(norm(x, f"{block}.layer_norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    x = norm(x, "text_model.final_layer_norm")
    return affine(x[-1], "text_model.head") if kind == "siglip" else affine(x[np.argmax(ids)], "text_projection")


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_folder_of_the_hub_gives_the_embeddings_of_its_segments(kind, tmp_path):
    folder, tensors = write(tmp_path / "tower", kind)
    tower = load_text_tower(folder)
    question = "What moves to the left?"
    ids, valid = tower.segments(question)
    around = (1, 0) if kind == "siglip" else (2, 1)
    assert valid.sum() == len(question) + around[0]
    assert ids.shape == (-(-(len(question) + around[0]) // PLACES), PLACES)
    end = tower.tokenizer.token_id("</s>")
    assert (ids == end).sum() == 1, "one end, behind the whole text"
    assert ids[~valid].tolist() == [0] * int((~valid).sum())
    expected = np.stack([by_hand(tensors, kind, row, mask) for row, mask in zip(ids, valid, strict=True)])
    np.testing.assert_allclose(tower.embed(question), expected, atol=2e-5)
    instructed = "What moves to the left? Answer the question using a single word or phrase."
    np.testing.assert_array_equal(tower.segments(instructed)[0], ids)


def test_a_token_in_the_shared_space_is_the_head_on_it_alone():
    rng = np.random.default_rng(0)
    shapes = [(16,), (16,), (16,), (48, 16), (48,), (16, 16), (16,), (16,), (16,), (24, 16), (24,), (16, 24), (16,)]
    head = PoolingHead(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))
    hidden = rng.standard_normal((3, 5, 16)).astype(np.float32)
    alone, _ = pooling_head_attention(hidden.reshape(15, 1, 16), head, heads=2)
    np.testing.assert_allclose(pooling_head_tokens(hidden, head).reshape(15, 16), alone, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("towers")
    tiny_checkpoints.write("llava_onevision", made / "llava")
    write(made / "siglip")
    return made


@pytest.fixture(scope="module")
def llm(home):
    return VideoLLM.load(home / "llava", text_tower=home / "siglip")


def test_cdpruner_keeps_by_the_question_in_the_shared_space(llm):
    frames = np.random.default_rng(1).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    video = llm.encode(frames, reducer=JOINT, question="Left?")
    image = np.asarray(video.tokens.evidence["joint_image"])
    assert image.shape == (6, 16, WIDTH)
    kept = {}
    for question in ("Left?", "How many red circles are there?"):
        text = np.asarray(llm.text_tower.embed(question))
        assert len(text) == -(-(len(question) + 1) // PLACES)
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]
        relevance = -np.einsum("tnc,mc->tnm", *unit).mean(-1)
        one = llm.reduce(video, reducer=JOINT, ratio=0.3, question=question)
        given = llm.with_evidence(video, "none").tokens
        given = given.create(given.features, {"relevance": relevance}, grid=given.grid)
        same = reduce(CDPruner(variant="official", relevance="given"), given, 0.3)
        np.testing.assert_array_equal(one.reduced.index, same.index)
        kept[question] = np.asarray(one.reduced.index).tolist()
        answer = llm.ask(frames, question, reducer=JOINT, ratio=0.3, max_new_tokens=1)
        assert answer.kept == one.kept == 6 * 5
    assert len(set(map(str, kept.values()))) == 2, "another question keeps other tokens"
    plus = llm.reduce(video, reducer=f"{JOINT[:-1]}, sign=plus)", ratio=0.3, question="Left?")
    assert np.asarray(plus.reduced.index).tolist() != kept["Left?"]
    # Both kinds of a question's evidence stay together, and go with it.
    both = llm.with_evidence(llm.with_evidence(video, "cdpruner", "Left?"), JOINT)
    assert {"text", "joint_text"} <= both.tokens.evidence.keys()
    other = llm.with_evidence(both, "cdpruner", "Right?")
    assert "joint_text" not in other.tokens.evidence


def test_what_is_missing_is_said_in_a_sentence(home, llm, tmp_path):
    frames = np.zeros((2, 40, 40, 3), np.uint8)
    plain = VideoLLM.load(home / "llava")
    refused(lambda: plain.ask(frames, "?", reducer=JOINT, ratio=0.5), "joint_image .* --text-tower")
    headed = VideoLLM.load(home / "llava", pooling_head=home / "siglip")
    refused(lambda: headed.ask(frames, "?", reducer=JOINT, ratio=0.5), "joint_text .* --text-tower")
    refused(lambda: llm.reduce(llm.encode(frames), reducer=JOINT, ratio=0.5), "the question, and none was passed")
    qwen = tiny_checkpoints.write("qwen3_vl", tmp_path / "qwen")
    refused(lambda: VideoLLM.load(qwen, text_tower=home / "siglip"), "qwen3_vl has no tower .* relevance='text'")
    clip, _ = write(tmp_path / "clip", "clip")
    refused(lambda: VideoLLM.load(home / "llava", text_tower=clip), "is a CLIP")
    wide, _ = write(tmp_path / "wide", width=24)
    refused(lambda: VideoLLM.load(home / "llava", text_tower=wide), "embeddings of 24 numbers .* of 16")
    refused(lambda: load_text_tower(home / "llava"), "model_type 'llava_onevision' has no text tower")
    bare, _ = write(tmp_path / "bare", text=False)
    refused(lambda: load_text_tower(bare), "holds no text tower")


def test_a_checkpoint_can_hold_its_own(home, tmp_path):
    folder = tiny_checkpoints.write("llava_onevision", tmp_path / "llava")
    write(folder / "text_tower")
    own = VideoLLM.load(folder)
    assert own.text_tower is not None
    assert "joint_image" in own.loaded.model.provides
