"""From file to answer on the small embedded model: prompts, slots, repeated questions, and the drawing of decisions."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import untrained
from helpers.prompts import one_run

from jvidprune import JvidpruneError, VideoTokens, reducers
from jvidprune.llm.prompts.slots import bucket_length
from jvidprune.llm.prompts.templates import template
from jvidprune.llm.stages import StageClock
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.viz.decision import Decision
from jvidprune.viz.overlay import (
    LEGEND,
    LINES,
    SINKS,
    contact_sheet,
    draw_frame,
    film,
    legend_strip,
    remarks,
    row_colours,
)
from jvidprune.viz.report import reduction_page


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(untrained.write(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)


def test_a_method_is_built_for_the_depth_of_the_model(llm):
    assert llm.loaded.config.text.layers < 20
    reducer = llm.reducer("flashvid")
    assert (reducer.inner(0.1), reducer.expansion) == ((), 1.0)
    assert llm.reducer("flashvid:pruning_layer=1").inner(0.1)[0].layer == 1


def test_every_part_of_a_prompt_has_its_place():
    slots = one_run(3, 2, np.array([0, 4, -1]), max_positions=512, reserve=8)
    # table: 0-2 text before, 3-4 text after, 5 newline, 6... reduced rows
    assert slots.source[: slots.length].tolist() == [0, 1, 2, 6, 10, 5, 3, 4]
    assert (slots.length, slots.visual, len(slots.source)) == (8, (3, 6), 64)
    assert slots.valid.sum() == 8


def test_a_prompt_longer_than_the_models_positions_is_refused():
    with pytest.raises(
        JvidpruneError, match=r"has 13 tokens \(10 visual\) and 8 may be generated, but .* has 20 positions"
    ):
        one_run(2, 1, np.arange(10), max_positions=20, reserve=8)


def test_bucket_lengths_are_few_and_never_too_short():
    sizes = {bucket_length(n) for n in range(1, 6400)}
    assert all(bucket_length(n) >= n for n in range(1, 6400))
    assert len(sizes) <= 16


def test_unknown_prompt_template_is_named():
    with pytest.raises(JvidpruneError, match="unknown prompt template 'chatml'"):
        template("chatml")


def test_the_unreduced_prompt_equals_the_models_own_embedding_of_it(llm, frames):
    """Slots, newline and positions against a prompt put together by hand and run without buckets or padding."""
    video = llm.encode(frames)
    answer = llm.ask(video, "What?", reducer=reducers.get("none"), ratio=1.0, max_new_tokens=6)
    before, after = (llm.tokenizer.encode(text) for text in template("qwen_1_5").parts("What?"))
    model = llm.loaded.model
    features = video.tokens.features
    parts = [model.embed_text(jnp.asarray(before)), features.reshape(-1, features.shape[-1])]
    parts += [model.newline[None], model.embed_text(jnp.asarray(after))]
    embeds = jnp.concatenate(parts)
    expected = []
    for _ in range(6):
        length = embeds.shape[0]
        out = model.lm.forward(embeds[None], jnp.arange(length)[None], jnp.ones((1, length), bool))
        token = int(out.logits[0, -1].argmax())
        expected.append(token)
        embeds = jnp.concatenate([embeds, model.embed_text(jnp.asarray([token]))])
    stop = next((i for i, token in enumerate(expected) if token in llm.eos_ids), 6)
    assert list(answer.token_ids) == expected[:stop]
    assert answer.kept == answer.visual == features.shape[0] * features.shape[1]
    assert answer.prompt == length - 5


@pytest.mark.slow
def test_two_questions_reuse_the_encoded_video_and_each_is_timed(llm, frames):
    video = llm.encode(frames, needs=frozenset({"attention_last"}))
    answers = [
        llm.ask(video, question, reducer=reducers.get("flashvid"), ratio=0.3, max_new_tokens=3, clock=StageClock())
        for question in ("What is it?", "Where does it go, and why so slowly?")
    ]
    for answer in answers:
        assert [stage.name for stage in answer.stages] == ["reduce", "prefill", "generate"]
        assert 0 < answer.kept < answer.visual
        json.dumps(answer.record())
    assert answers[0].kept == answers[1].kept
    one = llm.reduce(video, reducer=reducers.get("flashvid"), ratio=0.3)
    again = [llm.ask(one, answer.question, max_new_tokens=3) for answer in answers]
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in answers]
    assert [stage.name for stage in again[0].stages] == ["prefill", "generate"]
    both = llm.ask([one, one], answers[0].question, max_new_tokens=3)
    assert (both.kept, both.visual) == (2 * again[0].kept, 2 * again[0].visual)
    # The second video with its newline, and a space between the two.
    assert both.prompt == again[0].prompt + one.kept + 1 + len(llm.tokenizer.encode(" "))
    with pytest.raises(JvidpruneError, match="need a reducer and a ratio"):
        llm.ask(video, "What?")


def test_sampling_is_seeded(llm, frames):
    video = llm.encode(frames)
    ask = {"reducer": reducers.get("none"), "ratio": 1.0, "max_new_tokens": 12, "temperature": 1.5, "top_p": 0.9}
    one, same, other = (llm.ask(video, "What?", seed=seed, **ask).token_ids for seed in (1, 1, 2))
    assert one == same != other


def decision(sink=None):
    index, mass = np.array([0, 5]), np.array([1, 3])
    slot = np.array([0, 1, -1, -1, 1, 1, -1, -1])
    return Decision("Test", 0.25, 2, (2, 2), index, mass, slot, np.full((8, 1), -1), np.zeros((8, 1)), sink)


def test_kept_tokens_look_as_they_are_merged_ones_pale_and_dropped_ones_dark():
    stripes = np.where(np.arange(200)[None, :, None] // 5 % 2, (200, 60, 60), (140, 30, 30)).astype(np.uint8)
    frame = np.broadcast_to(stripes, (200, 200, 3)).copy()
    drawn = draw_frame(frame, decision(), 0).astype(int)
    kept, merged, dropped = drawn[8:92, 8:92], drawn[8:92, 108:192], drawn[108:192, 8:92]
    np.testing.assert_array_equal(kept, frame[8:92, 8:92])
    # The frame is seen through everything: stripes keep at least a fifth of their contrast.
    for part in (merged, dropped):
        assert np.ptp(part.mean(-1), axis=1).min() > 0.2 * np.ptp(frame[0].mean(-1))
    assert merged.mean() > 1.2 * frame.mean() > 2.2 * dropped.mean()
    # An outline: dark outside, then the colour of the row, here white as nothing was merged into it.
    assert drawn[0, 50].max() < 40
    np.testing.assert_array_equal(drawn[2, 50], [255, 255, 255])
    other = draw_frame(frame, decision(), 1).astype(int)
    np.testing.assert_array_equal(other[2, 150], row_colours(decision())[1])
    # A light tint of that colour tells into which row tokens were merged.
    white = dataclasses.replace(decision(), mass=np.array([1, 1]))
    tint = merged - draw_frame(frame, white, 0)[8:92, 108:192]
    colour = row_colours(decision())[1].astype(int)
    assert np.corrcoef(tint.reshape(-1, 3).mean(0), colour)[0, 1] > 0.99
    assert np.abs(tint).max() < 50


def test_decisions_count_per_frame_and_read_links_and_sinks_from_diagnostics():
    one = decision()
    assert one.per_frame().tolist() == [1, 1]
    assert one.count == 2
    assert one.achieved == 0.25
    assert one.summary() == "2 of 8 tokens (25.0%) · 2 merged · 4 dropped"
    video = VideoTokens.create(np.ones((2, 4, 3), np.float32))
    from jvidprune.reducers.run import reduce

    reduced = reduce(reducers.get("none"), video, 1.0, diagnostics=True)
    reduced = reduced._replace(diagnostics={"link": jnp.arange(8).reshape(2, 4), "sink_score": jnp.ones((2, 4))})
    read = Decision.from_reduced(reduced, method="none", ratio=1.0, frames=2, grid=(2, 2))
    assert read.flow[:, 0].tolist() == list(range(8))
    assert read.share.tolist() == [[1.0]] * 8
    assert read.sink is not None
    assert read.sink.tolist() == [1.0] * 8


def test_a_token_that_went_to_another_frame_has_a_line_and_a_page_lists_all_flows():
    one = decision()
    flow, share = np.full((8, 2), -1), np.zeros((8, 2), np.float32)
    flow[4], share[4] = (5, 6), (0.9, 0.1)
    flow[6], share[6] = (1, 5), (0.7, 0.3)
    one = dataclasses.replace(one, flow=flow, share=share)
    blank = np.full((100, 100, 3), 220, np.uint8)
    plain, drawn = draw_frame(blank, decision(), 1).astype(int), draw_frame(blank, one, 1).astype(int)
    # From the middle of token 2 to that of token 1; what stays in the frame is said by tints alone.
    assert (plain - drawn)[50, 50].min() > 30
    np.testing.assert_array_equal(drawn[20:30, 30:48], plain[20:30, 30:48])
    assert remarks([one]) == [LINES]
    assert remarks([decision(np.ones(8))]) == [SINKS]
    page = reduction_page(np.stack([blank] * 2), [one], ["0", "1"], title="t", subtitle="s")
    assert json.loads(page.split("const DATA = ")[1].split(";\n")[0])["methods"][0]["flow"] == {
        "4": [[5, 0.9], [6, 0.1]],
        "6": [[1, 0.7], [5, 0.3]],
    }
    assert 'data-mode="lines"' in page
    assert 'data-mode="lines"' not in reduction_page(np.stack([blank] * 2), [decision()], "01", title="t", subtitle="s")


def test_pictures_pages_and_films_have_the_same_legend():
    frames = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    page = reduction_page(frames, [decision()], "01", title="t", subtitle="s")
    assert all(words in page for _, words in LEGEND)
    alone = legend_strip(640)
    np.testing.assert_array_equal(
        contact_sheet(frames, [decision()], "01", width=312, columns=2)[: len(alone), :640], alone
    )
    (first, _) = film(frames, [decision()], width=640)
    np.testing.assert_array_equal(first[-len(alone) // 2 * 2 :][:10], alone[-len(alone) // 2 * 2 :][:10])
    assert legend_strip(200).shape[0] > alone.shape[0], "narrow pictures get more lines"
    # A patch is a token as it is drawn.
    assert alone[17, 17].tolist() == [96, 132, 170]


@pytest.mark.parametrize("method", ["aot", "ottvid", "flashvid", "visionzip"])
@pytest.mark.slow
def test_fates_add_up_and_a_transported_token_is_merged(llm, frames, method):
    reducer = llm.reducer(method)
    video = llm.encode(frames, reducer=reducer).tokens
    from jvidprune.reducers.run import reduce

    reduced = reduce(reducer, video, 0.15, diagnostics=True)
    shape = {"frames": video.features.shape[0], "grid": video.grid}
    one = Decision.from_reduced(reduced, method=method, ratio=0.15, **shape)
    fates = one.fates()
    assert sum(fates.values()) == video.layout().total
    assert one.summary().endswith(f"{fates['merged']:,} merged · {fates['dropped']:,} dropped")
    counted = np.bincount(one.slot[one.slot >= 0], minlength=one.count)
    assert (one.mass >= counted).all()
    assert (one.slot[(one.flow >= 0).any(1)] >= 0).all(), "what is dropped goes nowhere"
    if method == "aot":
        assert fates["dropped"] == 0, "all of its tokens are transported"
        assert fates["merged"] > 0


def test_pictures_and_pages_hold_every_method_and_frame():
    frames = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    sheet = contact_sheet(frames, [decision(), decision(np.ones(8, np.float32))], ["0 s", "1 s"], width=64, columns=2)
    assert sheet.shape[0] > 2 * 48
    page = reduction_page(frames, [decision()], ["0 s", "</script>"], title="A <b> title", subtitle="s")
    assert page.count("data:image/jpeg;base64,") == 2
    assert "A &lt;b&gt; title" in page
    assert page.count("</script>") == 1
    payload = page.split("const DATA = ")[1].split(";\n")[0]
    data = json.loads(payload)
    assert data["methods"][0]["slot"] == [0, 1, -1, -1, 1, 1, -1, -1]
    assert data["labels"] == ["0 s", "</script>"]


def test_stage_clock_tells_compilation_from_running():
    clock = StageClock()
    with clock("first"):
        jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((7, 5))))
    (stage,) = clock.stages
    assert stage.compile_seconds > 0
    assert stage.seconds >= 0


CACHED = """
import jax, jax.numpy as jnp
{before}
jnp.ones(3) + 1
from jvidprune.llm.video_llm import VideoLLM
try:
    VideoLLM.load({folder!r})
except Exception as error:
    print(type(error).__name__)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("who", ["library", "user", "off"])
@pytest.mark.slow
def test_compiled_programs_are_kept_unless_the_user_decided(tmp_path, who):
    """In a process of its own, where something was compiled before a model is opened."""
    before = {
        "library": "",
        "user": f"jax.config.update('jax_compilation_cache_dir', {str(tmp_path / 'mine')!r})",
        "off": "jax.config.update('jax_enable_compilation_cache', False)",
    }[who]
    code = CACHED.format(before=before, folder=str(tmp_path))
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JVIDPRUNE_CACHE": str(tmp_path / "ours"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    kept = {"library": tmp_path / "ours" / "xla", "user": tmp_path / "mine", "off": None}[who]
    assert out == ["JvidpruneError", str(kept)]
    files = set(tmp_path.rglob("*-cache"))
    assert files == (set() if kept is None else set(kept.glob("*-cache")))
    assert bool(files) == (who != "off")
