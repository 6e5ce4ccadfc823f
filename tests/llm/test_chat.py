"""Conversations: rounds that reuse the cache, several videos, a system turn, text alone, and their templates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_checkpoints
from test_prompting import PLAIN, put

from jvidprune import JvidpruneError, VideoLLM
from jvidprune.llm.prompts.messages import Message, Visual, asked, check_messages, written
from jvidprune.llm.prompts.templates import templates
from jvidprune.llm.rows import Prompt, lay_out_rows
from jvidprune.models import go_on
from jvidprune.video.decode import Clip

FAST = ("llava_onevision", "qwen2_5_vl")
FAMILIES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in tiny_checkpoints.CONFIGS]
ROUNDS = ("What is this thing in the video, and what does it do?", "Where to?", "So?")


def clip(seed):
    shown = np.random.default_rng(seed).integers(0, 255, (12, 32, 32, 3), np.uint8)
    return Clip.from_frames(shown, fps=2.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny")
    return {family: tiny_checkpoints.write(family, made / family) for family in tiny_checkpoints.CONFIGS}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_three_rounds_reuse_the_cache_and_equal_asking_from_scratch(folders, family):
    llm = VideoLLM.load(folders[family])
    video = llm.reduce(clip(0), reducer="uniform", ratio=0.4)
    kept, fresh = llm.chat(video, system="Be brief."), llm.chat(video, system="Be brief.", reuse=False)
    for number, question in enumerate(ROUNDS):
        one, other = (chat.ask(question, max_new_tokens=7) for chat in (kept, fresh))
        assert one.token_ids == other.token_ids
        assert one.prompt == other.prompt
        # What is read of a round behind the first is its own text.
        read = [answer.stages[0].tokens for answer in (one, other)]
        assert read == [one.prompt] * 2 if number == 0 else read[0] < read[1] - video.kept
    assert kept.reuses
    assert not fresh.reuses
    # The conversation is one prompt: all of its texts behind each other.
    tail = np.asarray(kept._tail)
    _, text = llm.lay_out([video], asked(ROUNDS[0], 1, "Be brief."), 1, tail)
    said = llm.tokenizer.decode(text)
    for question, answer in zip(ROUNDS, kept.answers, strict=True):
        assert question in said
        assert answer.text in said
    assert "Be brief." in said

    # Text alone: the same prompt read by the language model by hand.
    alone = llm.ask(None, "Who are you?", max_new_tokens=4)
    assert (alone.kept, alone.visual, alone.reducer) == (0, 0, "")
    ids = llm.tokenizer.encode("".join(llm.prompts.texts("Who are you?", 0)))
    assert alone.prompt == len(ids)
    assert list(alone.token_ids) == greedy(llm, ids, 4)[: len(alone.token_ids)]
    talk = llm.chat()
    assert talk.ask("Who are you?", max_new_tokens=4).token_ids == alone.token_ids
    talk.ask("And?", max_new_tokens=4)
    assert list(talk.answers[1].token_ids) == greedy(llm, [*ids, *talk._tail[: -len(talk.answers[1].token_ids)]], 4)


@jax.jit
def _logits(model, ids):
    where = jnp.arange(ids.shape[1])[None]
    return model.lm.forward(model.embed_text(ids), where, jnp.ones(ids.shape, bool)).logits[0]


def greedy(llm, ids, count):
    """The answer to ids without a cache; what stands behind them is seen by none of them."""
    found, ids = [], list(ids)
    for _ in range(count):
        row = np.zeros((1, 192), np.int32)
        row[0, : len(ids)] = ids
        found.append(int(_logits(llm.loaded.model, row)[len(ids) - 1].argmax()))
        ids.append(found[-1])
        if found[-1] in llm.eos_ids:
            found.pop()
            break
    return found


@pytest.mark.slow
def test_a_round_that_does_not_fit_the_cache_reads_anew(folders, monkeypatch):
    llm = VideoLLM.load(folders["llava_onevision"])
    video = llm.reduce(clip(0), reducer="uniform", ratio=0.4)
    monkeypatch.setattr("jvidprune.llm.chat.ROOM", 40)
    kept, fresh = llm.chat(video), llm.chat(video, reuse=False)
    for question in (*ROUNDS, "A question that has rather more than forty bytes in it, really."):
        one, other = (chat.ask(question, max_new_tokens=9, stop="zz") for chat in (kept, fresh))
        assert one.token_ids == other.token_ids
    assert kept.answers[-1].stages[0].tokens == kept.answers[-1].prompt
    # A stream that is left leaves everything as it was.
    next(kept.stream("Left?"))
    assert len(kept.answers) == 4
    assert kept.ask("On?", max_new_tokens=5).token_ids == fresh.ask("On?", max_new_tokens=5).token_ids


@pytest.mark.parametrize("family", ["llava_onevision", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_an_answer_cut_by_a_stop_text_goes_on_from_there(folders, family):
    """Ids behind the stop text stand in the cache, or in a state, until they are taken out of it."""
    llm = VideoLLM.load(folders[family])
    video = llm.reduce(clip(0), reducer="uniform", ratio=0.4)
    how = {"max_new_tokens": 20, "temperature": 3.0, "seed": 1}
    whole = llm.ask(video, ROUNDS[0], **how)
    stop = whole.text[2:4]
    kept, fresh = llm.chat(video), llm.chat(video, reuse=False)
    for question in ROUNDS:
        one, other = (chat.ask(question, stop=stop, **how) for chat in (kept, fresh))
        assert one.token_ids == other.token_ids
    assert len(kept.answers[0].token_ids) < len(whole.token_ids)


def test_methods_that_act_inside_the_model_read_every_round_anew(folders):
    llm = VideoLLM.load(folders["llava_onevision"])
    video = llm.reduce(clip(0), reducer="fastv(layer=1)", ratio=0.4)
    chat = llm.chat(video)
    assert not chat.reuses
    first = chat.ask(ROUNDS[0], max_new_tokens=4)
    assert first.token_ids == llm.ask(video, ROUNDS[0], max_new_tokens=4).token_ids
    second = chat.ask(ROUNDS[1], max_new_tokens=4)
    assert second.stages[0].tokens == second.prompt


def test_a_cache_read_in_part_takes_no_text(folders):
    llm = VideoLLM.load(folders["llava_onevision"])
    cache = dataclasses.replace(llm.loaded.model.lm.empty_cache(1, 8), policy=1)
    with pytest.raises(JvidpruneError, match="takes no further text"):
        go_on.read_on(llm.loaded.model, np.array([1]), cache, padded=4)
    with pytest.raises(JvidpruneError, match="do not fit the cache"):
        go_on.read_on(llm.loaded.model, np.array([1]), llm.loaded.model.lm.empty_cache(1, 8), padded=9)


# --- where videos stand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_stand_where_the_conversation_says(folders, family):
    """Two videos in two turns, an answer between: the embeddings against texts and tokens put together by hand."""
    llm = VideoLLM.load(folders[family])
    videos = [llm.reduce(clip(seed), reducer="uniform", ratio=0.4) for seed in (0, 1)]
    talk = (
        Message("user", (Visual.HERE, "First?")),
        Message("assistant", ("Red.",)),
        Message("user", ("Look: ", Visual.HERE, "Second?")),
    )
    slots, text = llm.lay_out(videos, talk, 1)
    said = llm.tokenizer.decode(text)
    first, red, look, second = (said.index(word) for word in ("First?", "Red.", "Look: ", "Second?"))
    assert first < red < look < second
    held = slots.source[: slots.length] - len(text) - 1
    order = [int(row) for row in held if row >= 0]
    wanted = [*range(videos[0].kept), *range(videos[0].capacity, videos[0].capacity + videos[1].kept)]
    assert order == wanted
    # The answer's text stands between the tokens of the two.
    between = slots.source[np.flatnonzero(held == videos[0].kept - 1)[0] : np.flatnonzero(held == wanted[-1])[0]]
    ids = text[between[between < len(text)]]
    assert "Red." in llm.tokenizer.decode(ids)


def test_a_conversation_has_an_order():
    user, answer, told = Message("user", ("?",)), Message("assistant", ("!",)), Message("system", ("s",))
    for fine in ([user], [told, user], [user, answer, user]):
        check_messages(fine)
    for odd in ([], [told], [user, answer], [user, user], [answer, user], [user, told, user]):
        with pytest.raises(JvidpruneError, match="a conversation has a system message first"):
            check_messages(odd)
    with pytest.raises(JvidpruneError, match="messages of the user"):
        check_messages([Message("system", (Visual.HERE,)), user])


@pytest.mark.parametrize("name", sorted(templates()))
def test_a_named_template_writes_turns_as_it_writes_one(name):
    known = templates()[name]
    for videos in (1, 2):
        assert written(known, asked("Why?", videos)) == known.texts("Why?", videos)
    talk = [*asked("Why?"), Message("assistant", ("Because.",)), *asked("Really?", 0)]
    *_, last = written(known, talk)
    (alone,) = written(known, asked("Really?", 0))
    alone = alone.removeprefix(known.opening)
    assert last == known.texts("Why?")[-1] + "Because." + known.closing + alone
    told = "".join(written(known, asked("Why?", 1, "Be brief.")))
    assert told.count("<|im_start|>system\nBe brief.<|im_end|>") == 1
    assert "helpful" not in told


def test_a_folders_chat_template_writes_the_conversation(folders, tmp_path):
    folder = put(tiny_checkpoints.write("llava_onevision", tmp_path / "m"), chat_template_jinja=PLAIN)
    llm = VideoLLM.load(folder, template="chat")
    talk = [*asked("Why?", 1), Message("assistant", ("Because.",)), *asked("Really?", 0)]
    turns = "<|im_start|>user\n", "\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n"
    rest = "<|im_start|>user\nReally?<|im_end|>\n<|im_start|>assistant\n"
    assert llm.prompts.texts(talk) == [turns[0], turns[1] + rest]
    assert llm.tokenizer.encode("<|im_end|>\n" + rest) == llm.prompts.following(talk)


def test_text_alone_shares_no_batch_with_videos(folders):
    from jvidprune.llm.batch import answer_many
    from jvidprune.llm.rows import batches

    llm = VideoLLM.load(folders["qwen3_vl"])
    video = llm.reduce(clip(0), reducer="uniform", ratio=0.4)
    prompts = [Prompt([], "Who?"), Prompt(video, "Who?"), Prompt([], "And you, who are you?")]
    rows = list(batches(llm, prompts, reserve=4, batch=8, min_fill=0.0))
    assert sorted(len(one.used) for one in rows) == [1, 2]
    assert all("deepstack" not in lay_out_rows(llm, one, 3)[2] for one in rows if not one.used[0].videos)
    together = answer_many(llm, prompts, max_new_tokens=4, min_fill=0.0)
    assert together == [answer_many(llm, [prompt], max_new_tokens=4)[0] for prompt in prompts]
    assert jax.tree.leaves(together[0].token_ids)
