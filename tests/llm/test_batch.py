"""Batches of prompts give what each prompt gives alone, for every family and stage, with a bounded set of programs."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import untrained
from helpers.tiny import write_checkpoint

from jvidprune import JvidpruneError, VideoTokens, reducers
from jvidprune.cuts.rules import DynamicDecode, HalvingMerge, LastQueryTopK, RandomDraw, TextInBlocks
from jvidprune.llm.batch import Prompt, answer_many, score_many
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo
from jvidprune.llm.prompts.slots import bucket_length
from jvidprune.llm.prompts.templates import template
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.prefill import prefill
from jvidprune.models.score import _at_once, _one_by_one
from jvidprune.tokens import InnerStage, Kept, Reduced
from jvidprune.video.decode import Clip

CHOICES = ["No", "a ball", "to left."]
"""At most eight tokens, so that scoring and answers of eight tokens share the program of the prefill."""


def make_clip(seed, frames=4):
    indices = 12 * np.arange(frames)
    shown = np.random.default_rng(seed).integers(0, 256, (frames, 60, 90, 3), dtype=np.uint8)
    return Clip(shown, indices, indices / 10, 10.0, 50)


def reduced_by(rows, video, capacity=40):
    """The tokens of these places, in a capacity that leaves room."""
    flat = np.asarray(video.features).reshape(-1, video.features.shape[-1])
    capacity = max(capacity, len(rows) + 3)
    index = np.full(capacity, len(flat), np.int32)
    index[: len(rows)] = rows
    tokens = np.zeros((capacity, flat.shape[1]), np.float32)
    tokens[: len(rows)] = flat[rows]
    slot = np.full(len(flat), -1, np.int32)
    slot[rows] = np.arange(len(rows))
    valid = index < len(flat)
    return Reduced(*map(jnp.asarray, (tokens, index, valid, valid.astype(np.int32), slot)), {})


def about(video, rows, stages=(), **diagnostics):
    """A video reduced to these places."""
    reduced = reduced_by(rows, video.tokens)._replace(diagnostics=diagnostics)
    return ReducedVideo(video, reduced, reducers.get("none"), 0.5, stages)


def alone(call, llm, prompts, *parts, **options):
    found = [
        call(llm, [one], *([part] for part in more), **options) for one, *more in zip(prompts, *parts, strict=True)
    ]
    return [result for (result,) in found]


def assert_scores_agree(found, expected, atol=1e-4):
    for one, other in zip(found, expected, strict=True):
        assert [(score.tokens, score.greedy) for score in one] == [(score.tokens, score.greedy) for score in other]
        sums = [[score.log_likelihood for score in scores] for scores in (one, other)]
        np.testing.assert_allclose(*sums, atol=atol)


@pytest.mark.parametrize("family", ["llava_onevision", "llava_video", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.slow
def test_a_batch_answers_like_one_by_one(tmp_path, family):
    """Two questions about one reduced video, another ratio of it, and another clip."""
    llm = VideoLLM.load(write_checkpoint(tmp_path, family))
    clips = [make_clip(seed) for seed in (0, 1)]
    videos = [llm.encode(clip) for clip in clips]
    total = videos[0].tokens.layout().total
    prompts = [
        Prompt(about(videos[which], np.arange(0, total, step)), "What is it?")
        for which, step in ((0, 5), (0, 7), (1, 5))
    ]
    prompts.append(Prompt(prompts[0].video, "Where does it go?"))
    together = answer_many(llm, prompts, max_new_tokens=8, min_fill=0.0)
    assert together == alone(answer_many, llm, prompts, max_new_tokens=8)
    assert len({reply.token_ids for reply in together}) > 1
    assert [(reply.kept, reply.visual) for reply in together] == [(prompt.video.kept, total) for prompt in prompts]
    if family in ("llava_onevision", "qwen3_vl"):
        choices = [CHOICES, CHOICES[:1], CHOICES[1:], CHOICES]
        scores = score_many(llm, prompts, choices, min_fill=0.0)
        assert [len(found) for found in scores] == [3, 1, 2, 3]
        assert_scores_agree(scores, alone(score_many, llm, prompts, choices))


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(untrained.write(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def video(llm):
    features = np.random.default_rng(0).normal(size=(4, 9, 32)).astype(np.float32)
    return EncodedVideo(VideoTokens.create(features))


STAGES = {
    "cuts": lambda keep: (
        InnerStage(1, LastQueryTopK(), Kept(keep), "renumber"),
        InnerStage(2, HalvingMerge(), Kept(keep, of="prompt")),
    ),
    "blocks": lambda keep: (
        InnerStage(1, TextInBlocks(), Kept(keep)),
        InnerStage(2, RandomDraw(), Kept(keep), seed=int(10 * keep)),
    ),
    "decoding": lambda keep: (InnerStage(2, DynamicDecode(), Kept(keep, "floor")),),
}


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.slow
def test_each_prompt_keeps_its_own_share_at_the_cuts(llm, video, stages):
    prompts = []
    for count, keep in ((36, 0.5), (36, 0.2), (20, 0.7)):
        reduced = about(video, np.arange(count), STAGES[stages](keep), block=jnp.arange(40) // 10)
        prompts.append(Prompt(reduced, "What?"))
    choices = [CHOICES[2:]] * 3
    scores = score_many(llm, prompts, choices)
    assert_scores_agree(scores, alone(score_many, llm, prompts, choices))
    assert len({round(one.log_likelihood, 3) for (one,) in scores}) == 3
    changed = dataclasses.replace(prompts[0].video, inner=STAGES[stages](0.2))
    (other,) = score_many(llm, [Prompt(changed, "What?"), *prompts[1:]], choices)[0]
    assert abs(other.log_likelihood - scores[0][0].log_likelihood) > 1e-3


@pytest.mark.slow
def test_prompts_with_other_stages_wait_for_a_batch_of_their_own(llm, video):
    cut, behind = (about(video, np.arange(36), (InnerStage(layer, LastQueryTopK(), Kept(0.5)),)) for layer in (1, 9))
    cut, behind, plain = (Prompt(one, "What?") for one in (cut, behind, about(video, np.arange(36))))
    cut_first = answer_many(llm, [cut, plain, behind, cut], max_new_tokens=2)
    assert cut_first[0] == cut_first[3]
    assert cut_first[1] == cut_first[2] == answer_many(llm, [plain], max_new_tokens=2)[0]


@pytest.mark.slow
def test_scores_equal_a_forward_pass_over_prompt_and_continuation(llm, video):
    prompt = Prompt(about(video, np.arange(36)), "What?")
    (found,) = score_many(llm, [prompt], [CHOICES])
    before, after = (llm.tokenizer.encode(text) for text in template("qwen_1_5").parts("What?"))
    model = llm.loaded.model
    parts = [model.embed_text(jnp.asarray(before)), video.tokens.features.reshape(36, -1), model.newline[None]]
    ids = [llm.tokenizer.encode(text) for text in CHOICES]
    longest = max(ids, key=len)
    embeds = jnp.concatenate([*parts, model.embed_text(jnp.asarray(after + longest))])
    start, length = len(embeds) - len(longest) - 1, len(embeds)
    logits = model.lm.forward(embeds[None], jnp.arange(length)[None], jnp.ones((1, length), bool)).logits[0, start:-1]
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(longest)), longest]
    one = found[ids.index(longest)]
    np.testing.assert_allclose(one.log_likelihood, expected.sum(), atol=1e-4)
    assert one.tokens == len(longest)
    assert one.mean == one.log_likelihood / one.tokens
    (greedy,) = answer_many(llm, [prompt], max_new_tokens=8)
    chosen = jnp.asarray([greedy.token_ids[:8]])
    embeds, valid = (
        jnp.concatenate([*parts, model.embed_text(jnp.asarray(after))])[None],
        np.ones((1, length - len(longest)), bool),
    )
    logits, cache = prefill(model, embeds, np.arange(valid.size)[None], valid, capacity=valid.size + 8)
    for read in (_at_once, _one_by_one):
        sums, best = read(model, logits, cache, chosen)
        assert bool(best[0])
        worse = read(model, logits, cache, chosen.at[0, -1].add(1))
        assert not bool(worse[1][0])
        assert worse[0][0] < sums[0]
    np.testing.assert_allclose(_at_once(model, logits, cache, chosen)[0], sums, atol=1e-4)


def test_a_prompt_draws_by_its_own_seed(llm, video):
    prompt = Prompt(about(video, np.arange(36)), "What?")
    one, other, same = answer_many(llm, [prompt] * 3, max_new_tokens=8, temperature=2.0, seeds=[1, 2, 1])
    assert one == same != other


_compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **more: _compiled.append(more.get("fun_name")) if "backend_compile" in event else None
)


@pytest.mark.slow
def test_prompts_of_many_lengths_share_few_programs(llm, video):
    reduced = [about(video, np.arange(count)) for count in range(1, 37)]

    def ask(lengths, batch):
        prompts = [Prompt(reduced[i % 36], "w" * i) for i in lengths]
        _compiled.clear()
        replies = answer_many(llm, prompts, max_new_tokens=3, batch=batch, min_fill=1.0)
        programs = [_compiled.count(f"jit({name})") for name in ("run_prefill", "_decode")]
        return programs, len(_compiled), {reply.prompt for reply in replies}

    programs, every, lengths = ask(range(1, 70, 3), 1)
    sizes = len({bucket_length(length) for length in lengths})
    assert len(lengths) > 15
    assert programs == [sizes, sizes]
    assert sizes <= 3
    assert every < 40
    assert ask(range(2, 70, 3), 1)[:2] == ([0, 0], 0)
    # Rows are rounded up too: three prompts and four share a program.
    assert ask(range(20, 23), 4)[0] == [1, 1]
    assert ask(range(20, 24), 4)[:2] == ([0, 0], 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": 0}, "a batch has at least 1 prompt, got 0."),
        ({"min_fill": 1.5}, "min_fill must lie in [0, 1], got 1.5."),
        ({"seeds": [1, 2]}, "1 prompts need one seed or as many, got 2."),
        ({"max_new_tokens": 40_000}, "40,000 may be generated"),
    ],
)
def test_wrong_settings_are_one_sentence(llm, video, options, sentence):
    prompt = Prompt(about(video, np.arange(3)), "What?")
    with pytest.raises(JvidpruneError, match=re.escape(sentence)):
        answer_many(llm, [prompt], **options)


def test_what_cannot_be_scored_or_read_is_one_sentence(llm, video):
    prompt = Prompt(about(video, np.arange(3)), "What?")
    with pytest.raises(JvidpruneError, match="'' has no token to score"):
        score_many(llm, [prompt], [["a", ""]])
    with pytest.raises(JvidpruneError, match="1 prompts need as many lists of continuations, got 2"):
        score_many(llm, [prompt], [["a"], ["b"]])
