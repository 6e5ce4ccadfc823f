"""What a method does inside the language model: traced layer by layer, and drawn."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.reducer_checks import refused

from jvidprune.cli.layers import draw_layers
from jvidprune.cli.options import ModelChoice
from jvidprune.cuts.swiftvlm import groups_of
from jvidprune.llm.inside import InsideStage, trace
from jvidprune.llm.rows import Prompt, laid_out
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.viz.decision import stage_decision
from jvidprune.viz.overlay import RESTORED, contact_sheet, draw_frame, legend_of
from jvidprune.viz.report import inside_page

QUESTION = "What moves?"


@pytest.fixture(scope="module")
def llm():
    return VideoLLM.load()


@pytest.fixture(scope="module")
def video(llm):
    frames = np.random.default_rng(0).integers(0, 256, (8, 60, 60, 3), dtype=np.uint8)
    return llm.encode(frames)


def test_a_cut_is_shown_as_the_attention_in_front_of_it_decides(llm, video):
    one = llm.reduce(video, reducer="fastv(layer=2)", ratio=0.3)
    stages = trace(llm, one, QUESTION)
    names = ["layers 0 to 1", f"layers 2 to {llm.loaded.config.text.layers - 1}"]
    assert [(stage.name, stage.kind) for stage in stages] == [(name, "layers") for name in names]
    assert stages[0].kept.all()
    # By hand: the two layers in front of the cut, and the attention of the last position in the second.
    row, (embeds, positions, valid), _, _ = laid_out(llm, Prompt(one, QUESTION), 1)
    decoder, last = llm.loaded.model.lm, np.flatnonzero(valid[0])[-1:]
    step = decoder.step(jnp.asarray(positions), jnp.asarray(valid))
    _, seen = decoder.run(embeds, step, 0, 2, rows=jnp.asarray(last[None]))
    score = np.asarray(seen.attention[-1]).mean(axis=1)[0, 0]
    slots = np.flatnonzero(row >= 0)
    best = slots[np.argsort(-score[slots], kind="stable")[: int(stages[1].kept.sum())]]
    assert np.flatnonzero(stages[1].kept).tolist() == sorted(row[best].tolist())
    assert stages[1].kept.sum() == pytest.approx(0.3 * one.visual, abs=1)
    assert not any(stage.restored.any() for stage in stages)


def test_tokens_travel_as_means_and_come_back(llm, video):
    one = llm.reduce(video, reducer="swiftvlm", ratio=0.5)
    stages = trace(llm, one, QUESTION)
    groups, before = groups_of(one.visual, None), stages[0].kept
    for number, stage in enumerate(stages[1:], 1):
        np.testing.assert_array_equal(stage.restored, stage.kept & ~before)
        low, final = ~stage.kept & (stage.row >= 0), number == len(stages) - 1
        assert low.any() != final
        if not final:
            # Everything that is not there by itself is part of one of as many means as the specification has.
            assert (low | stage.kept).all()
            assert len(set(stage.row[low].tolist())) <= groups
            assert stage.kept[stage.row[low]].all()
        before = stage.kept
    assert stages[-1].restored.any(), "the last cut chooses again of all tokens"


def test_a_choice_that_is_renewed_is_followed_token_by_token(llm, video):
    one = llm.reduce(video, reducer="dstp", ratio=0.3)
    stages = trace(llm, one, QUESTION, steps=3)
    steps = [stage for stage in stages if stage.kind == "token"]
    assert 1 <= len(steps) <= 3
    chosen = stages[1].kept
    for number, step in enumerate(steps):
        assert step.name == f"token {number + 1} of the answer, layers 2 to {llm.loaded.config.text.layers - 1}"
        assert step.kept.sum() == chosen.sum()
        np.testing.assert_array_equal(step.restored, step.kept & ~chosen)
        chosen = step.kept
    assert steps[0].restored.any()


def test_routed_layers_show_what_they_run_on(llm, video):
    one = llm.reduce(video, reducer="videollm_mod", ratio=0.6)
    stages = trace(llm, one, QUESTION)
    assert stages[0].name == "layers that are not routed"
    routed = [stage for stage in stages if stage.kind == "routed"]
    assert [stage.name for stage in routed] == [f"layer {stage.layer}" for stage in one.inner]
    for stage in routed:
        # Every frame by itself keeps as many.
        assert len(set(stage.kept.reshape(8, -1).sum(axis=1).tolist())) == 1
    every = trace(llm, llm.reduce(video, reducer="mod", ratio=0.5), QUESTION)
    assert [stage.name for stage in every] == [f"layer {number}" for number in range(llm.loaded.config.text.layers)]


def test_tokens_that_are_gone_before_the_model_are_gone_inside(llm, video):
    method = llm.reducer("flashvid(pruning_layer=4, expansion=1.5)")
    one = llm.reduce(llm.with_evidence(video, method), reducer=method, ratio=0.3)
    stages = trace(llm, one, QUESTION)
    entered = np.zeros(one.visual, bool)
    entered[np.asarray(one.reduced.index)[: one.kept]] = True
    np.testing.assert_array_equal(stages[0].kept, entered)
    assert all(not (stage.kept & ~entered).any() for stage in stages)
    assert 0 < stages[-1].kept.sum() < entered.sum()
    plain, layers = llm.reduce(video, reducer="random", ratio=0.3), llm.loaded.config.text.layers
    refused(lambda: trace(llm, plain, QUESTION), f"does nothing inside the {layers}")


def stage(kind="layers", kept=(0, 3), restored=(3,), row=(0, -1, 0, 3)):
    """Two frames of 1 x 2 tokens."""
    flags = [np.isin(np.arange(4), some) for some in (kept, restored)]
    return stage_decision(InsideStage("layers 4 to 7", kind, *flags, np.array(row)), 0.5, 2, (1, 2))


def test_pictures_tell_what_is_back_what_travels_and_what_passes_by():
    frame = np.full((40, 80, 3), (96, 132, 170), np.uint8)
    cut, routed = stage(), stage("routed", restored=(), row=(0, -1, -1, 3))
    assert [kind for kind, _ in legend_of([cut])] == ["kept", "restored", "merged", "dropped"]
    assert [kind for kind, _ in legend_of([routed])] == ["kept", "passed"]
    assert cut.summary() == "2 of 4 tokens (50.0%) · 1 back again · 1 travel in them"
    assert routed.summary() == "2 of 4 tokens (50.0%) · 2 pass it by"
    first, second = (draw_frame(frame, cut, t) for t in (0, 1))
    assert (second == RESTORED).all(axis=2).any()
    assert not (first == RESTORED).all(axis=2).any()
    middle = 20, slice(45, 75)
    assert first[middle].max() < 130, "dropped: dark"
    assert draw_frame(frame, routed, 0)[middle].min() > 130, "passes by: pale"
    assert second[20, 5:35].mean() > frame.mean(), "travels: pale"
    np.testing.assert_array_equal(second[20, 60], frame[20, 60])
    assert contact_sheet(np.stack([frame, frame]), [cut, routed], ["a", "b"], width=80).shape[2] == 3
    page = inside_page(np.stack([frame, frame]), [cut, routed], ["a", "b"], title="<T>", subtitle="S")
    data = json.loads(re.search(r"const DATA = (.*);", page).group(1))
    assert data["stages"][0]["restored"] == [3]
    assert data["stages"][0]["slot"] == [0, -1, 0, 1]
    assert (data["total"], data["first"]) == (4, 1)
    assert "&lt;T&gt;" in page
    assert "http" not in page.replace("http-equiv", ""), "nothing beside it is loaded"


def test_the_verb_draws_layers(run, tmp_path):
    words = ("reduce", "--layers", "--reducer", "swiftvlm", "--ratio", 0.5, "--json", "--out")
    code, out, err = run(*words, tmp_path / "layers.html")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert [row["restored"] > 0 for row in record["methods"]] == [False, False, True, True]
    page = (tmp_path / "layers.html").read_text()
    assert "What SwiftVLM (reconstruction) does inside the language model" in page
    for wrong, words in (("a.mp4", "must be .html or .png"), ("b.png", "does nothing inside")):
        refused(lambda wrong=wrong: drawn(tmp_path / wrong), words)


def drawn(out):
    from jvidprune.cli.console import Console

    console = Console(quiet=True)
    return draw_layers(None, "random", 0.3, QUESTION, out, model=ModelChoice(), console=console)
