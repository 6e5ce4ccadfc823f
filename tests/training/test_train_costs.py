"""Training of transport costs: the loss is what the model says of a reduction, runs go on to the same bits."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_checkpoints

import jvidprune
from jvidprune import JvidpruneError
from jvidprune.cli.console import Console
from jvidprune.cli.options import CheckpointChoice
from jvidprune.cli.train_cost import TrainCost, train_cost
from jvidprune.llm.batch import Prompt, score_many
from jvidprune.llm.encoded import reduce_video
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.tokenizer import END_TOKENS
from jvidprune.ops.rebuilt import dropped_tokens, reconstruction_error
from jvidprune.ops.transport import LogSinkhorn
from jvidprune.procedural.benchmark import Procedural
from jvidprune.reducers import AOT
from jvidprune.reducers.registry import from_text
from jvidprune.reducers.writing import expression
from jvidprune.training.inside import FirstQuestions
from jvidprune.training.loop import read_curve
from jvidprune.training.transport_parts import check_published, publish, with_parts
from jvidprune.training.transports import CostChoice, CostTrainer

FRAMES = 8
TASK = Procedural("train", clips=3, frames=FRAMES, side=56, questions=2, difficulty=0.2)
CHOICE = CostChoice(objective="kl", masses=True, ratios=(0.2, 0.5), draws=2, clips=2, steps=4, hidden=3, log=2, every=2)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tiny_checkpoints.write("llava_onevision", tmp_path_factory.mktemp("model") / "model")
    return VideoLLM.load(folder)


@pytest.fixture(scope="module")
def trainer(llm):
    return CostTrainer(llm, llm.reducer("aot(clips=4)"), CHOICE, TASK, frames=FRAMES)


def test_the_error_is_that_of_the_nearest_row_by_brute_force():
    rng = np.random.default_rng(0)
    tokens, kept = rng.normal(size=(30, 5)), rng.normal(size=(6, 5))
    valid, there = np.arange(6) < 4, np.arange(30) < 24
    wanted = np.asarray(dropped_tokens(jnp.asarray([3, 9, 4, 0, 30, 7]), jnp.asarray(valid), jnp.asarray(there)))
    np.testing.assert_array_equal(wanted, there & ~np.isin(np.arange(30), [0, 3, 4, 9]))
    apart = ((tokens[:, None] - kept[None, :4]) ** 2).sum(-1).min(1)[wanted].sum()
    spread = ((tokens[wanted] - tokens[wanted].mean(0)) ** 2).sum()
    found = reconstruction_error(jnp.asarray(tokens), jnp.asarray(kept), jnp.asarray(valid), jnp.asarray(wanted))
    assert float(found) == pytest.approx(apart / spread, rel=1e-5)
    nothing = reconstruction_error(*(jnp.asarray(x) for x in (tokens, kept, valid, there & ~there)))
    assert float(nothing) == 0.0
    broken = reconstruction_error(*(jnp.asarray(x) for x in (tokens, kept * np.nan, valid, wanted)))
    assert np.isnan(float(broken))


@pytest.mark.slow
def test_the_loss_is_what_the_model_says_of_the_reduced_and_of_the_unpruned_video(llm, trainer):
    batch = trainer.batch(0)
    numbers = np.random.default_rng([0, 0]).choice(len(TASK), 2, replace=False)
    ratios = np.random.default_rng([0, 0])
    ratios.choice(len(TASK), 2, replace=False)
    ratios = ratios.uniform(0.2, 0.5, (2, 2))
    parts = jax.tree.map(lambda leaf: leaf + 0.1, trainer._parts)
    _, metrics = jax.jit(trainer.loss)(parts, trainer._model, batch)
    method = dataclasses.replace(with_parts(trainer.method, parts), plan_gradient="stop")
    end = next(t for t in END_TOKENS if llm.tokenizer.token_id(t) is not None)
    prompts, answers, kept, errors = [], [], [], []
    for number, row in zip(numbers, ratios, strict=True):
        video = llm.encode(TASK.clip(int(number)), needs=method.needs)
        for ratio in row:
            made = reduce_video(video, method, float(ratio))
            kept.append(made.kept)
            index = np.asarray(made.reduced.index)[: made.kept]
            x = np.asarray(video.tokens.features, np.float64).reshape(-1, video.tokens.features.shape[-1])
            y = np.asarray(made.reduced.tokens, np.float64)[: made.kept]
            gone = x[~np.isin(np.arange(len(x)), index)]
            apart = ((gone[:, None] - y[None]) ** 2).sum(-1).min(1).sum()
            errors.append(apart / ((gone - gone.mean(0)) ** 2).sum())
            for question in TASK[int(number)].questions:
                prompts.append(Prompt(made, question.prompt()))
                answers.append([question.answer + end])
    scores = score_many(llm, prompts, answers, batch=8, min_fill=0.0)
    nats = -sum(one[0].log_likelihood for one in scores) / sum(one[0].tokens for one in scores)
    assert float(metrics["answer"]) == pytest.approx(nats, rel=1e-4)
    assert float(metrics["tokens"]) == pytest.approx(np.mean(kept))
    assert float(metrics["reconstruction"]) == pytest.approx(np.mean(errors), rel=1e-3)
    assert 0 < float(metrics["apart"]) < 1


def test_a_reduction_that_keeps_everything_is_not_apart_from_the_unpruned_video(llm):
    method = llm.reducer("aot(clips=1, inter=False)")
    choice = dataclasses.replace(CHOICE, ratios=(1.0, 1.0), clips=1, draws=1, stage="intra")
    whole = CostTrainer(llm, method, choice, TASK, frames=FRAMES)
    _, metrics = jax.jit(whole.loss)(whole._parts, whole._model, whole.batch(0))
    assert float(metrics["tokens"]) == whole._layout.total
    assert float(metrics["apart"]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bits_and_is_used_by_its_text(llm, tmp_path):
    trainer = CostTrainer(llm, llm.reducer("aot(inter=False)"), CHOICE, TASK, frames=FRAMES)
    whole = trainer.run(tmp_path / "whole")
    trainer.run(tmp_path / "parts", stop_at=lambda: True)
    parts = trainer.run(tmp_path / "parts")
    assert whole.intra_transport == parts.intra_transport
    curves = [(tmp_path / name / "curve.jsonl").read_text() for name in ("whole", "parts")]
    assert curves[0] == curves[1]
    assert {path.name for path in (tmp_path / "whole").glob("*.safetensors")} == {
        "intra_cost.safetensors",
        "intra_masses.safetensors",
    }
    started = trainer._parts["intra_cost"]["NetworkCost.out"]
    assert np.abs(np.asarray(whole.intra_transport.cost.weights.arrays["NetworkCost.out"]) - started).max() > 1e-4
    assert from_text(expression(whole)) == whole
    video = llm.encode(TASK.clip(0), needs=whole.needs).tokens
    assert int(jvidprune.reduce(expression(whole), video, 0.3).count) > 0
    # A folder beside the model, whose files stay where they are, reduces like this by itself.
    read = VideoLLM.load(publish(tmp_path / "model", llm, whole, 0.3))
    assert (tmp_path / "model" / "model.safetensors").is_symlink()
    assert read.pruning is not None
    assert (read.pruning.reducer, read.pruning.ratio) == (whole, 0.3)
    question = TASK[0].questions[0].prompt()
    clip = TASK.clip(0)
    by_folder = read.ask(clip, question, max_new_tokens=2)
    by_text = llm.ask(clip, question, reducer=expression(whole), ratio=0.3, max_new_tokens=2)
    assert (by_folder.text, by_folder.kept) == (by_text.text, by_text.kept)
    other = CostTrainer(llm, trainer.method, dataclasses.replace(CHOICE, rate=1e-3), TASK, frames=FRAMES)
    with pytest.raises(JvidpruneError, match="other settings"):
        other.run(tmp_path / "whole")
    # The run of another seed is that of a trainer of its own, by the program that is there.
    _, step = trainer._compiled
    programs = step._cache_size()
    seeded = trainer.with_seed(1)
    first = seeded.run(tmp_path / "seeded")
    assert step._cache_size() == programs == 1
    alone = CostTrainer(llm, trainer.method, dataclasses.replace(CHOICE, seed=1), TASK, frames=FRAMES)
    assert (seeded._settings, seeded.choice) == (alone._settings, alone.choice)
    jax.tree.map(np.testing.assert_array_equal, (seeded._parts, seeded.batch(3)), (alone._parts, alone.batch(3)))
    assert first.intra_transport != whole.intra_transport


@pytest.mark.slow
def test_a_derivative_that_is_no_number_ends_the_run_in_a_sentence(llm, tmp_path):
    """The solver's kernel exp(-cost / epsilon) is 0 everywhere; the loss itself is a number."""
    choice = CostChoice(clips=1, draws=1, steps=2, hidden=2, log=1, every=1)
    method, told = llm.reducer("aot(intra_transport=Transport(solver=Sinkhorn(0.001, stop='never')))"), []
    with pytest.raises(JvidpruneError, match="by step 1 the loss or its derivative is no number") as caught:
        CostTrainer(llm, method, choice, TASK, frames=FRAMES).run(tmp_path, report=told.append)
    (line,) = read_curve(tmp_path)
    assert np.isfinite(line["loss"])
    assert np.isnan(line["slope"])
    assert told == []
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]
    assert not list(tmp_path.glob("*.safetensors"))
    # The way out that it names is one.
    other = from_text(str(caught.value).rpartition(", ")[2].removesuffix("."))
    assert isinstance(other, AOT)
    assert other.intra_transport.solver == LogSinkhorn(0.1)


def test_what_cannot_be_learned_is_said_before_anything_is_compiled(llm):
    with pytest.raises(JvidpruneError, match="through AOT, whose tokens follow its plans; those of OTT-Vid do not"):
        CostTrainer(llm, llm.reducer("ottvid"), CHOICE, TASK, frames=FRAMES)
    with pytest.raises(JvidpruneError, match="nothing learns"):
        CostChoice(cost="own")
    with pytest.raises(JvidpruneError, match="from the lowest to the highest"):
        CostChoice(ratios=(0.5, 0.2))
    for method, why in (("aot(inter=False)", "inter=False"), ("aot", "clips of 8 frames have one frame each")):
        with pytest.raises(JvidpruneError, match=why):
            CostTrainer(llm, llm.reducer(method), dataclasses.replace(CHOICE, stage="inter"), TASK)
    assert CHOICE.stages(llm.reducer("aot"), FRAMES) == ("intra",)
    assert CHOICE.stages(llm.reducer("aot"), 16) == ("intra", "inter")
    with pytest.raises(JvidpruneError, match="takes 2 clips, but there are 1"):
        CostTrainer(llm, llm.reducer("aot"), CHOICE, FirstQuestions(Procedural("train", clips=1)))


def test_the_model_that_is_linked_to_stays(llm, tmp_path):
    copy = tmp_path / "run" / "model"
    shutil.copytree(llm.loaded.folder, copy)
    before = {path: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(JvidpruneError, match=r"files of the model .* lie there; name another one"):
        train_cost(TrainCost(tmp_path / "run", model=CheckpointChoice(model=str(copy))), Console(quiet=True))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]
    other = VideoLLM.load(copy)
    (tmp_path / "alias").symlink_to(copy)
    for folder in (copy, tmp_path / "alias", tmp_path / "run"):
        with pytest.raises(JvidpruneError, match="name another one"):
            publish(folder, other, AOT(), 0.3)
    # Nor may links that its files go through end in nothing.
    made = publish(tmp_path / "made", other, AOT(), 0.3)
    (tmp_path / "links").mkdir()
    for file in made.iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    linked = VideoLLM.load(tmp_path / "links")
    with pytest.raises(JvidpruneError, match="name another one"):
        check_published(made, linked)
    again = publish(tmp_path / "again", linked, AOT(), 0.3)
    assert (again / "model.safetensors").readlink() == (copy / "model.safetensors").resolve()
    # A folder that is there is replaced, with whatever it held.
    (again / "more").write_text("x")
    assert not (publish(again, other, AOT(), 0.4) / "more").exists()
    assert {path: path.read_bytes() for path in copy.iterdir()} == before


def test_a_folder_that_cannot_be_written_to_is_one_sentence_and_leaves_nothing(llm, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link"):
        with pytest.raises(JvidpruneError, match=f"cannot write {folder}: "):
            publish(folder, llm, AOT(), 0.3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "file", "link"]
