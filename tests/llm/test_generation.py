"""Generation: streaming, settings of sampling, stop texts, seeds, and generation_config.json."""

import json
import math

import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.tiny import tokenizer

from jvidprune import JvidpruneError, VideoLLM
from jvidprune.llm.generation import AnswerText, Generation
from jvidprune.models.checkpoint.generation import read_generation
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.rope import RopeConfig
from jvidprune.models.sampling import Sampling, kept_logits, penalised
from jvidprune.models.tokenizer import load_tokenizer

FRAMES = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), np.uint8)
HOT = {"temperature": 3.0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(tiny_checkpoints.write("llava_onevision", tmp_path_factory.mktemp("tiny") / "m"))


@pytest.fixture(scope="module")
def video(llm):
    return llm.reduce(FRAMES, reducer="uniform", ratio=0.5)


# --- settings --------------------------------------------------------------------------------------------------------


def drawn_from(logits, top_k, top_p, min_p):
    """Ids that are drawn from, one step of transformers' processors after the other, in plain Python."""
    ids = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    ids = ids[:top_k] if top_k else ids
    weights = [math.exp(logits[i] - logits[ids[0]]) for i in ids]
    total, before, stay = sum(weights), 0.0, []
    for i, weight in zip(ids, weights, strict=True):
        if not stay or before < top_p:
            stay.append(i)
        before += weight / total
    return {i for i in stay if math.exp(logits[i] - logits[ids[0]]) >= min_p}


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(3, 1.0, 0.0), (0, 0.6, 0.0), (5, 0.6, 0.2), (0, 1.0, 0.3)])
def test_top_k_top_p_and_min_p_follow_each_other(top_k, top_p, min_p):
    logits = 2 * np.random.default_rng(top_k).normal(size=(6, 30)).astype(np.float32)
    logits[0, :4] = logits[0].max() + 1
    found = np.isfinite(np.asarray(kept_logits(logits, top_p, top_k, min_p)))
    for row, values in zip(found, logits.astype(np.float64), strict=True):
        assert set(np.flatnonzero(row)) == drawn_from(values, top_k, top_p, min_p)


def test_a_penalty_divides_what_is_likely_and_multiplies_what_is_not():
    logits, seen = np.float32([[2.0, -2.0, 2.0, -2.0]]), np.array([[True, True, False, False]])
    np.testing.assert_allclose(penalised(logits, seen, 1.25), [[1.6, -2.5, 2.0, -2.0]])


def test_a_penalty_acts_on_the_prompt_and_on_greedy_answers(llm, video):
    """So strong a one that no id of the prompt's text comes, and none twice."""
    answer = llm.ask(video, "What?", repetition_penalty=1e6, max_new_tokens=10)
    _, text = llm.lay_out([video], "What?", 10)
    logits_positive = set(answer.token_ids) & set(text.tolist())
    assert len(set(answer.token_ids)) == len(answer.token_ids) > 3
    assert not logits_positive
    plain = llm.ask(video, "What?", max_new_tokens=10)
    assert plain.token_ids != answer.token_ids


def test_a_seed_gives_the_same_answer_alone_and_among_samples(llm, video):
    one = llm.ask(video, "What?", seed=5, **HOT)
    assert llm.ask(video, "What?", seed=5, **HOT).token_ids == one.token_ids
    several = llm.ask(video, "What?", seed=5, samples=3, **HOT)
    assert several.texts[0] == several.text == one.text
    assert len(set(several.texts)) == 3
    assert llm.ask(video, "What?", seed=6, **HOT).token_ids != one.token_ids
    assert llm.ask(video, "What?", seed=5, top_k=1, **HOT).text == llm.ask(video, "What?", max_new_tokens=12).text


def test_settings_out_of_range_are_one_sentence(llm, video):
    for given, sentence in (
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"stop": [""]}, "stop texts must be non-empty"),
        ({"topk": 3}, "unknown setting of generation 'topk'.*Did you mean 'top_k'"),
        ({"defaults": "own"}, "unknown defaults of generation"),
        ({"samples": 0}, "samples must be at least 1"),
    ):
        with pytest.raises(JvidpruneError, match=sentence):
            llm.ask(video, "What?", **given)


# --- text as it comes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"temperature": 3.0, "seed": 2}, {"repetition_penalty": 1.3}])
def test_the_pieces_of_a_stream_are_the_answer(llm, video, how):
    """Random bytes: characters split over tokens, and bytes that are no character."""
    whole = llm.ask(video, "What?", max_new_tokens=30, **how)
    stream = llm.stream(video, "What?", max_new_tokens=30, **how)
    with pytest.raises(JvidpruneError, match="take all its pieces first"):
        _ = stream.answer
    pieces = list(stream)
    assert "".join(pieces) == whole.text
    assert stream.answer.token_ids == whole.token_ids
    assert (stream.answer.finish, stream.answer.prompt) == (whole.finish, whole.prompt)
    assert [stage.name for stage in stream.answer.stages] == ["prefill", "generate"]


def test_a_stop_text_ends_an_answer_in_both_ways(llm, video):
    whole = llm.ask(video, "What?", max_new_tokens=30, temperature=3.0, seed=1)
    stop = whole.text[8:10]
    assert len(stop) == 2
    cut = llm.ask(video, "What?", max_new_tokens=30, temperature=3.0, seed=1, stop=[stop, "never there"])
    stream = llm.stream(video, "What?", max_new_tokens=30, temperature=3.0, seed=1, stop=stop)
    assert cut.text == whole.text.split(stop)[0].strip() == "".join(stream)
    assert cut.finish == stream.answer.finish == "stop"
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)] == stream.answer.token_ids
    assert stop in llm.tokenizer.decode(cut.token_ids)
    assert stop not in llm.tokenizer.decode(cut.token_ids[:-1])
    assert whole.finish == "length"


def pushed(text, stop=(), most=1000, sizes=(1,), cleans=False):
    """The pieces of a text of bytes pushed so many at a time."""
    made = _Bytes(cleans)
    found, ids = AnswerText(made, (), Generation(most, stop=tuple(stop))), made.encode(text)
    pieces, at, turn = [], 0, 0
    while at < len(ids):
        pieces.append(found.push(ids[at : at + sizes[turn % len(sizes)]]))
        at, turn = at + sizes[turn % len(sizes)], turn + 1
    return pieces, found.answer


class _Bytes:
    """A tokenizer of bytes; one that cleans takes a blank before a full stop away, as some decoders do."""

    def __init__(self, cleans):
        self.cleans, self._inner = cleans, tokenizer()

    def encode(self, text):
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        text = self._inner.decode(list(ids))
        return text.replace(" .", ".") if self.cleans else text


@pytest.mark.parametrize("sizes", [(1,), (2, 3), (50,)])
def test_a_character_comes_when_all_of_its_bytes_are_there(sizes):
    text = "  žluťoučký 🦎 € end"
    length = len(_Bytes(False).encode(text))
    pieces, answer = pushed(text, most=length, sizes=sizes)
    assert "".join(pieces) == text.strip() == answer.text
    assert not any("\ufffd" in piece for piece in pieces)
    if sizes == (1,):
        assert "🦎" in [piece.strip() for piece in pieces]


def test_what_may_begin_a_stop_text_waits():
    pieces, answer = pushed("ab<s>ab<stop>cd", stop=["<stop>"])
    assert "".join(pieces) == "ab<s>ab" == answer.text
    assert not any("<st" in piece for piece in pieces)
    assert answer.finish == "stop"
    pieces, answer = pushed("one two . three", most=15, cleans=True)
    assert "".join(pieces) == answer.text == "one two. three"


# --- generation_config.json ------------------------------------------------------------------------------------------


def written(folder, **given):
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(given))
    return folder


def test_a_folders_settings_are_read_in_full(tmp_path):
    qwen = {"bos_token_id": 1, "pad_token_id": 1, "do_sample": True, "eos_token_id": [2, 1], "top_p": 0.001}
    qwen |= {"repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "transformers_version": "4.49.0"}
    assert read_generation(written(tmp_path, **qwen)).sampling == Sampling(0.1, 0.001, 1, 0.0, 1.05)
    plain = read_generation(written(tmp_path, do_sample=False, temperature=0.7, max_new_tokens=9, stop_strings=["a"]))
    assert (plain.sampling, plain.max_new_tokens, plain.stop) == (Sampling(), 9, ("a",))
    # What transformers draws from where it samples and nothing else is said.
    assert read_generation(written(tmp_path, do_sample=True)).sampling == Sampling(1.0, 1.0, 50)
    assert read_generation(written(tmp_path, num_return_sequences=1, num_beams=1)) == read_generation(tmp_path / "none")
    assert read_generation(tmp_path / "nothing") == read_generation(written(tmp_path))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"num_beams": 4, "no_repeat_ngram_size": 3}, "num_beams 4, no_repeat_ngram_size 3, which is not supported"),
        ({"max_length": 20}, "max_length 20"),
        ({"num_return_sequences": 3}, "num_return_sequences 3, which is not supported; give your own settings"),
        ({"a_new_one": 1}, "a_new_one 1"),
        ({"do_sample": "yes"}, "do_sample must be true or false"),
        ({"do_sample": True, "top_k": -2}, "top_k must be at least 0"),
        ({"max_new_tokens": 0}, "must be at least 1"),
    ],
)
def test_a_folders_settings_that_cannot_be_followed_are_named(tmp_path, given, sentence):
    with pytest.raises(JvidpruneError, match=sentence):
        read_generation(written(tmp_path, **given))


def test_a_folders_settings_hold_where_they_are_asked_for(llm, video):
    written(llm.loaded.folder, do_sample=True, temperature=3.0, max_new_tokens=5, repetition_penalty=1.2)
    try:
        own = llm.ask(video, "What?", defaults="folder", seed=3)
        given = {"temperature": 3.0, "top_k": 50, "repetition_penalty": 1.2, "max_new_tokens": 5}
        assert own.token_ids == llm.ask(video, "What?", seed=3, **given).token_ids
        longer = llm.ask(video, "What?", defaults="folder", seed=3, max_new_tokens=9, temperature=0.0)
        assert longer.token_ids == llm.ask(video, "What?", repetition_penalty=1.2, max_new_tokens=9).token_ids
    finally:
        (llm.loaded.folder / "generation_config.json").unlink()


# --- YaRN ------------------------------------------------------------------------------------------------------------


def yarn_numpy(dim, base, factor, original, fast=32, slow=1):
    """The formula of transformers' `_compute_yarn_parameters`, written again."""
    inverse = 1.0 / base ** (np.arange(0, dim, 2) / dim)

    def turning(turns):
        return dim * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base))

    low, high = max(np.floor(turning(fast)), 0), min(np.ceil(turning(slow)), dim - 1)
    slowed = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    return inverse / factor * slowed + inverse * (1 - slowed), 0.1 * np.log(factor) + 1


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("sections", [None, [16, 24, 24]])
def test_frequencies_are_stretched_as_the_checkpoint_says(key, sections):
    """As the Qwen folders tell their users to write it, and as transformers 5 writes it."""
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "mrope_section": sections}
    scaling |= {"type": "yarn"} if key == "rope_scaling" else {"rope_type": "yarn", "rope_theta": 1e6}
    text = {"rope_theta": 1e6, key: scaling, "max_position_embeddings": 32768, "head_dim": 128}
    config = DecoderConfig.from_hf(text)
    expected, attention = yarn_numpy(128, 1e6, 4.0, 32768)
    np.testing.assert_allclose(config.rope.frequencies(128), expected, rtol=1e-12)
    assert config.rope.yarn.attention == pytest.approx(attention)
    assert config.rope.sections == (None if sections is None else tuple(sections))
    assert config.max_positions == 131072
    without = {key: value for key, value in scaling.items() if not key.startswith("original")}
    assert RopeConfig.from_hf(text | {key: without}).yarn == config.rope.yarn


def test_settings_of_yarn_that_are_no_numbers_are_one_sentence():
    for given in ({"factor": "4"}, {"factor": 4.0, "beta_fast": -1}):
        with pytest.raises(JvidpruneError, match=r"yarn's .* must be a number"):
            RopeConfig.from_hf({"rope_scaling": {"type": "yarn", **given}, "max_position_embeddings": 8})


def test_the_tokenizer_of_a_folder_says_whether_its_texts_change(llm):
    assert not load_tokenizer(llm.loaded.folder).cleans
