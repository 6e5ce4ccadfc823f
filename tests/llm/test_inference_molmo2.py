"""From frames to an answer with Molmo2: times and markers of frames, who sees whom, templates, sampling."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_checkpoints as tiny
from helpers.tiny import tokenizer

from jvidprune import JvidpruneError, reducers
from jvidprune.costs.fits import check_question
from jvidprune.cuts.decoding import Renewal
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.rules import LastQueryTopK
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.prompts import molmo2
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.generate import generate
from jvidprune.models.prefill import prefill
from jvidprune.models.tokenizer import beginning
from jvidprune.reducers.run import reduce
from jvidprune.stts import Scorer, SiglipTower, STTSConfig, attach
from jvidprune.tokens import InnerStage, Kept
from jvidprune.video.decode import Clip
from jvidprune.video.sampling import reference_indices, sample_indices

TURN = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
TOPK = reducers.get("attention_topk")
PATCH = 16


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(tiny.write("molmo2", tmp_path_factory.mktemp("molmo2") / "model"))


@pytest.fixture(scope="module")
def clip():
    """Three frames of a file of 50 frames at 10 a second."""
    rng, indices = np.random.default_rng(0), np.array([0, 24, 49])
    return Clip(rng.integers(0, 256, (3, 40, 60, 3), dtype=np.uint8), indices, indices / 10, 10.0, 50)


@pytest.fixture(scope="module")
def video(llm, clip):
    return llm.encode(clip, needs=frozenset({"attention_last"}))


def whole_prompt(llm, frames):
    """(L,) ids of the unreduced prompt, as the processor writes it."""
    tokens, encode = llm.loaded.config.tokens, llm.tokenizer.encode
    ids = []
    for number, time in enumerate(["0.0 ", "2.4 ", "4.9 "][:frames]):
        ids += [*encode(" " * (number > 0) + time), tokens.frame_start, *[tokens.image_patch] * PATCH, tokens.frame_end]
    return np.array([*ids, *encode(TURN)])


def read_by_hand(llm, reduced):
    """(answer, slots of the unreduced prompt that stay, which of them see each other) from kept tokens alone."""
    model, config, ids = llm.loaded.model, llm.loaded.config, whole_prompt(llm, 3)
    there, order = np.asarray(reduced.valid), np.argsort(np.asarray(reduced.index)[np.asarray(reduced.valid)])
    placeholder = np.flatnonzero(ids == config.tokens.image_patch)
    places = placeholder[np.asarray(reduced.index)[there][order]]
    keep = np.sort(np.concatenate([np.setdiff1d(np.arange(len(ids)), placeholder), places]))
    embeds = np.array(model.embed_text(jnp.asarray(ids)))
    embeds[places] += np.asarray(reduced.tokens)[there][order]
    valid, together = np.ones((1, len(keep)), bool), np.isin(ids, config.tokens.ids)[None, keep]
    options = {"max_new_tokens": 4, "eos_ids": llm.eos_ids, "bidirectional": together}
    expected = np.asarray(generate(model, embeds[None, keep], np.arange(len(keep))[None], valid, **options))[0]
    return [int(i) for i in expected if i >= 0 and i not in llm.eos_ids], keep, together[0]


@pytest.mark.slow
def test_the_prompt_equals_the_processors_with_tokens_left_out(llm, video):
    """Placeholders of pruned tokens leave, positions close up, times and markers stay, features are added."""
    config, ratio, ids = llm.loaded.config, 0.2, whole_prompt(llm, 3)
    answer = llm.ask(video, "What?", reducer=TOPK, ratio=ratio, max_new_tokens=4)
    reduced = reduce(TOPK, video.tokens, ratio)
    expected, keep, together = read_by_hand(llm, reduced)
    assert list(answer.token_ids) == expected
    assert (answer.kept, answer.visual, answer.prompt) == (int(reduced.count), 48, len(keep))

    placeholder = ids == config.tokens.image_patch
    laid, text = llm.lay_out([llm.reduce(video, reducer=TOPK, ratio=ratio)], "What?", 4)
    np.testing.assert_array_equal(text, ids[~placeholder])
    np.testing.assert_array_equal(molmo2.seen_both_ways(laid, text, config)[: len(keep)], together)
    assert not molmo2.seen_both_ways(laid, text, config)[len(keep) :].any()


@pytest.mark.slow
def test_what_stts_prunes_in_the_tower_leaves_the_prompt_and_times_stay(clip, tmp_path, monkeypatch):
    """A model with a scorer wraps the model; a tower of three blocks, so that the connector reads what is behind."""
    given = tiny.CONFIGS["molmo2"]
    deeper = {"vision_config": given["vision_config"] | {"num_hidden_layers": 3}}
    deeper["adapter_config"] = given["adapter_config"] | {"vision_feature_layer": [2, 1]}
    monkeypatch.setitem(tiny.CONFIGS, "molmo2", given | deeper)
    plain = VideoLLM.load(tiny.write("molmo2", tmp_path / "model"))
    scorer = Scorer(SiglipTower(plain.loaded.model.vision).sizes)
    llm = attach(plain, STTSConfig(prune_at=0), scorer)
    stts = llm.reducer("stts")
    one = llm.reduce(llm.encode(clip, reducer=stts), reducer=stts, ratio=0.25)
    answer = llm.ask(one, "What?", max_new_tokens=4)
    expected, keep, _ = read_by_hand(plain, one.reduced)
    assert (answer.kept, answer.prompt) == (12, len(keep))
    assert list(answer.token_ids) == expected
    # The first frame outlives the others: these lost all their tokens and keep their times.
    assert set(np.asarray(one.reduced.index)[np.asarray(one.reduced.valid)] // PATCH) == {0}
    _, text = llm.lay_out([one], "What?", 4)
    assert llm.tokenizer.decode(text[text < 262]).startswith("0.0  2.4  4.9 ")


def test_positions_of_the_unpruned_prompt_where_a_reducer_says_so(llm, clip):
    """FastVID's tokens keep theirs on every backbone."""
    fastvid = reducers.get("fastvid", "molmo2")
    shown = llm.encode(clip, reducer=fastvid)
    one = llm.reduce(shown, reducer=fastvid, ratio=0.5)
    slots, text = llm.lay_out([one], "What?", 4)
    ids = whole_prompt(llm, 3)
    kept = np.asarray(one.reduced.index)[np.asarray(one.reduced.valid)]
    places = np.flatnonzero(ids == llm.loaded.config.tokens.image_patch)[np.sort(kept)]
    visual = slots.source[: slots.length] > len(text)
    np.testing.assert_array_equal(np.sort(slots.positions[: slots.length][visual]), places)
    assert slots.next_position == len(ids)


def test_a_frame_without_a_kept_token_keeps_its_time_and_two_videos_follow_each_other(llm, clip, video):
    first = reducers.get("frame_drop")
    one = llm.reduce(video, reducer=first, ratio=0.34)
    assert one.kept == PATCH
    slots, text = llm.lay_out([one, one], "What?", 4)
    assert llm.tokenizer.decode(text[text < 262]).count("2.4 ") == 2
    assert slots.length == len(text) + 2 * PATCH
    answer = llm.ask([one, one], "What?", max_new_tokens=1)
    assert (answer.kept, answer.prompt) == (2 * PATCH, slots.length)
    timed = llm.reduce(llm.encode(clip.frames, fps=2.0), reducer=first, ratio=0.34)
    assert "1.0 " in llm.tokenizer.decode(llm.lay_out([timed], "What?", 4)[1])


@pytest.mark.slow
def test_a_batch_gives_what_each_prompt_gives_alone(llm, video):
    ones = [llm.reduce(video, reducer=TOPK, ratio=ratio) for ratio in (0.1, 0.6)]
    prompts = [Prompt(one, question) for one, question in zip(ones, ("What?", "Where is it?"), strict=True)]
    together = answer_many(llm, prompts, max_new_tokens=3, min_fill=0.0)
    alone = [llm.ask(prompt.video, prompt.question, max_new_tokens=3) for prompt in prompts]
    assert [reply.token_ids for reply in together] == [answer.token_ids for answer in alone]


@pytest.mark.parametrize("reselect", [None, "recompute"])
@pytest.mark.slow
def test_mutual_sight_travels_through_cuts(llm, reselect):
    """Compacted or only masked, and chosen anew at every step: the same logits as a masked read of the kept tokens."""
    model, rng = llm.loaded.model, np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 20, tiny.WIDTH)), jnp.float32)
    slots, visual = np.arange(20)[None], (np.arange(20) > 2)[None] & (np.arange(20) < 15)[None]
    stages = [InnerStage(1, LastQueryTopK(renewal=None if reselect is None else Renewal(reselect)), Kept(0.5))]
    found = []
    for compact in (True, False):
        inner = Inner.create(stages, visual, slots >= 0, layers=tiny.LAYERS, compact=compact)
        logits, cache = prefill(model, x, slots, slots >= 0, capacity=24, inner=inner, bidirectional=visual)
        step, _ = model.lm.decode(jnp.argmax(logits, axis=-1).astype(jnp.int32), cache)
        found.append((np.asarray(logits), np.asarray(step)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    inner = Inner.create(stages, visual, slots >= 0, layers=tiny.LAYERS)
    blind, _ = prefill(model, x, slots, slots >= 0, capacity=24, inner=inner)
    assert np.abs(np.asarray(blind) - found[0][0]).max() > 1e-4


# --- what the folder says --------------------------------------------------------------------------------------------


def test_the_folders_template_and_first_token(tmp_path):
    """The template goes before the family's own; the end of a text begins it where there is no token for that."""
    folder = tiny.write("molmo2", tmp_path / "model")
    assert beginning(folder) == ""
    assert VideoLLM.load(folder).prompts.texts("What?") == ["", TURN]
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'video' %}<|video|>{% endif %}{% endfor %}"
        "[{{ m.role }}]{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    given = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    tokenizer().save(str(folder / "tokenizer.json"))
    llm = VideoLLM.load(folder)
    assert llm.prompts.texts("What?") == ["<|im_end|>", "[user]What?"]
    assert VideoLLM.load(folder, template="molmo2").prompts.texts("What?") == ["<|im_end|>", TURN]
    named = {"__type": "AddedToken", "content": "<|endoftext|>", "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(given | {"bos_token": named}))
    assert beginning(folder) == "<|endoftext|>"
    (folder / "video_preprocessor_config.json").write_text('{"size": {"height": 378, "width": 378}, "num_frames": 7}')
    with pytest.raises(JvidpruneError, match=r"makes frames of .* but the tower reads 48 pixels"):
        VideoLLM.load(folder)


def test_markers_of_images_around_frames_where_the_processor_says_so(llm, video, tmp_path):
    config = llm.loaded.config
    (tmp_path / "processor_config.json").write_text('{"use_frame_special_tokens": false}')
    around = molmo2.marks(config, tmp_path)
    assert around == molmo2.Marks(config.tokens.image_start, config.tokens.image_end)
    one = llm.reduce(video, reducer=TOPK, ratio=0.5)
    ids = molmo2.prompt_ids(["", "?"], [one], around, llm.tokenizer.encode)
    assert [part[-1] for part in ids[:-1]] == [around.start] * 3
    assert [part[0] for part in ids[1:]] == [around.end] * 3
    (tmp_path / "processor_config.json").write_text('{"video_use_col_tokens": true}')
    with pytest.raises(JvidpruneError, match="column tokens in videos"):
        molmo2.marks(config, tmp_path)


def test_what_cannot_fit_is_refused_before_loading(llm):
    need = check_question(llm.loaded.folder, None, "What?", reducer="uniform", ratio=0.5, dtype=jnp.float32)
    assert 0 < need.parameters < need.peak
    with pytest.raises(JvidpruneError, match=r"molmo2 reading 128 frames at ratio 0\.5"):
        check_question(
            llm.loaded.folder, None, "What?", reducer="uniform", ratio=0.5, dtype=jnp.float32, available=need.peak - 1
        )


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "rate", "most", "expected"),
    [
        (100, 10.0, 128, [*range(0, 99, 5), 99]),  # two a second and the last
        (96, 10.0, 128, list(range(0, 96, 5))),  # the last is one of them
        (100, 10.0, 4, [0, 33, 66, 99]),
        (5, 1.0, 128, [0, 1, 2, 3, 4]),
        (1, 30.0, 128, [0]),
        (100, 30.0, 1, [99]),
    ],
)
def test_two_frames_a_second_and_the_last(total, rate, most, expected):
    assert sample_indices(total, rate, rule="molmo2", num_frames=most).tolist() == expected


def test_the_rule_of_transformers_processor():
    """Values of `Molmo2VideoProcessor.sample_frames`; the second list ends with an index that no file has, a quirk."""
    assert reference_indices(300, 30.0, "hf_molmo2", 64, None).tolist() == list(range(0, 300, 15))
    assert reference_indices(300, 30.0, "hf_molmo2", 7, None).tolist() == [0, 42, 85, 128, 171, 214, 257, 300]
    assert sample_indices(300, 30.0, rule="hf_molmo2", num_frames=7).tolist()[-1] == 257
    assert reference_indices(10, 1.0, "hf_molmo2", 64, None).tolist() == list(range(10))
    assert reference_indices(300, 30.0, "hf_molmo2", None, 1.0).tolist() == list(range(0, 300, 30))
