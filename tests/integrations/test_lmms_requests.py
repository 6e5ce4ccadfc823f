"""The adapter for lmms-eval without lmms-eval: arguments, requests, resuming and errors. The real tool runs in
`test_lmms_eval`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import tiny_checkpoints
from helpers.lmms_requests import (
    Request,
    ask,
    rate,
)
from PIL import Image

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets import open_dataset
from jvidprune.integrations import lmms_requests
from jvidprune.integrations.lmms_args import LmmsGeneration, ModelArgs
from jvidprune.integrations.lmms_requests import Adapter, Responses
from jvidprune.llm.batch import Prompt, score_many
from jvidprune.procedural import lmms_task
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.export import export
from jvidprune.reducers import registry
from jvidprune.reducers.serialise import SavedPruning, save_pruning
from jvidprune.video.decode import Clip
from jvidprune.video.encode import write_mp4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoints.write("llava_onevision", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("videos")
    docs = []
    for name in "ab":
        write_mp4(folder / f"{name}.mp4", rng.integers(0, 256, (6, 32, 32, 3), np.uint8), 2.0)
        docs.append({"visual": [str(folder / f"{name}.mp4")], "answer": name})
    pictures = [Image.fromarray(frame) for frame in rng.integers(0, 256, (6, 32, 32, 3), np.uint8)]
    docs += [{"visual": pictures}, {"visual": pictures[:1]}, {"visual": []}, {"visual": [str(folder / "no.mp4")]}]
    return {"task": {"test": docs}}


@pytest.fixture(scope="module")
def given(model):
    return {"pretrained": str(model), "reducer": "random", "ratio": 0.25, "max_frames_num": 4, "batch_size": 2}


@pytest.fixture(scope="module")
def adapter(given):
    return Adapter(ModelArgs.read(given))


def test_arguments_are_read_and_wrong_ones_refused():
    args = ModelArgs.read(
        {"reducer": "'stop:base=fastvid,mu_s=0.03'", "ratio": 0.1, "batch_size": "4", "device": "cuda:0"}
    )
    assert (args.reducer, args.ratio, args.batch_size) == ("stop:base=fastvid,mu_s=0.03", 0.1, 4)
    assert args.max_frames_num is None
    for wrong, message in (
        ({"reducr": "aot"}, "Did you mean 'reducer'"),
        ({"reducer": "flashvit"}, "Did you mean 'flashvid'"),
        ({"ratio": 2}, "must lie in"),
        ({"batch_size": "auto"}, "batch_size must be a whole number"),
        ({"max_frames_num": 0}, "at least 1"),
        ({"fps": -1}, "fps must be positive"),
        ({"dtype": "int8"}, "dtype must be float32 or bfloat16"),
        ({"likelihood": "x"}, "likelihood must be"),
    ):
        with pytest.raises(JvidpruneError, match=message):
            ModelArgs.read(wrong)


def test_generation_settings_follow_the_task():
    assert LmmsGeneration.read({"temperature": 0.7, "top_p": 0.9, "do_sample": False}, 9) == (9, 0.0, 1.0, ())
    assert LmmsGeneration.read({"temperature": 0.7, "top_p": 0.9}, 9) == (9, 0.7, 0.9, ())
    assert LmmsGeneration.read({"do_sample": True, "max_new_tokens": 3}, 9) == (3, 1.0, 1.0, ())
    assert LmmsGeneration.read({"until": ["\n\n", ""], "num_beams": 1, "image_aspect_ratio": "pad"}, 9)[3] == ("\n\n",)
    assert LmmsGeneration(9, 0.0, 1.0, ("\n\n", "END")).cut(" yes END\n\nno") == "yes"
    with pytest.raises(JvidpruneError, match="num_beams 4 of the task is not supported"):
        LmmsGeneration.read({"num_beams": 4}, 9)
    with pytest.raises(JvidpruneError, match="top_k"):
        LmmsGeneration.read({"temperature": 1.0, "top_k": 50}, 9)


@pytest.mark.slow
def test_answers_are_those_of_single_questions_whatever_the_batch(adapter, documents, monkeypatch):
    loaded = []
    sample = type(adapter.llm).sample
    monkeypatch.setattr(type(adapter.llm), "sample", lambda self, *a, **k: loaded.append(a) or sample(self, *a, **k))
    requests = [ask("What?", max_new_tokens=4), ask("How many?", max_new_tokens=4), ask("What?", 1, max_new_tokens=4)]
    requests.append(ask("Which colour has it?", 2, max_new_tokens=2))
    done = []
    found = list(adapter.generate(requests, documents, done.append))
    assert len(loaded) == 2
    assert done == [2, 2]
    llm = adapter.llm
    for request, answer in zip(requests, found, strict=True):
        text, settings, _, doc, _, _ = request.args
        visual = documents["task"]["test"][doc]["visual"]
        if doc < 2:
            clip = sample(llm, visual[0], frames=4)
        else:
            frames = [np.asarray(visual[i]) for i in (0, 1, 3, 5)]
            clip = dataclasses.replace(
                sample(llm, documents["task"]["test"][0]["visual"][0], frames=4), frames=np.stack(frames)
            )
        single = llm.ask(clip, text, reducer=registry.get("random"), ratio=0.25, **settings)
        assert (answer.text, answer.prompt) == (single.text, single.prompt)


def test_a_method_that_reads_the_question_reduces_for_each_and_encodes_once(given, documents, monkeypatch):
    adapter = Adapter(ModelArgs.read(given | {"reducer": "cdpruner"}))
    llm, encode, encoded = adapter.llm, type(adapter.llm).encode, []
    monkeypatch.setattr(type(llm), "encode", lambda self, *a, **k: encoded.append(a) or encode(self, *a, **k))
    texts = ["What?", "How many are there?", "What?"]
    found = list(adapter.generate([ask(text, max_new_tokens=4) for text in texts], documents))
    list(adapter.likelihoods([rate("Which?", "A"), rate("Who?", "A")], documents))
    assert len(encoded) == 1
    clip = llm.sample(documents["task"]["test"][0]["visual"][0], frames=4)
    for text, answer in zip(texts, found, strict=True):
        single = llm.ask(clip, text, reducer="cdpruner", ratio=0.25, max_new_tokens=4)
        assert (answer.text, answer.prompt) == (single.text, single.prompt)


def test_likelihoods_are_losses_with_the_sign_that_is_asked_for(adapter, given, documents):
    requests = [rate("What?", text) for text in ("A", "Bc", "Def")] + [rate("What?", lambda doc: doc["answer"], 1)]
    found = list(adapter.likelihoods(requests, documents))
    llm, docs = adapter.llm, documents["task"]["test"]

    def reduced(doc):
        clip = llm.sample(docs[doc]["visual"][0], frames=4)
        return llm.reduce(llm.encode(clip), reducer=adapter.reducer, ratio=0.25)

    prompts = [Prompt(reduced(0), "What?"), Prompt(reduced(1), "What?")]
    scores = [score for row in score_many(llm, prompts, [["A", "Bc", "Def"], ["b"]]) for score in row]
    np.testing.assert_allclose([value for value, _ in found], [-score.mean for score in scores], rtol=1e-5)
    assert [greedy for _, greedy in found] == [score.greedy for score in scores]
    assert adapter._value(scores[1])[0] == pytest.approx(-scores[1].log_likelihood / 2)
    for name, sign in (("sum", -1), ("logprob", 1)):
        other = Adapter.__new__(Adapter)
        other.args = ModelArgs.read(given | {"likelihood": name})
        assert other._value(scores[2])[0] == sign * scores[2].log_likelihood


def test_a_stopped_run_goes_on_with_what_is_on_disk(given, documents, tmp_path, monkeypatch):
    kept = Adapter(ModelArgs.read(given | {"resume": str(tmp_path / "kept"), "batch_size": 1}))
    requests = [ask(text, max_new_tokens=2) for text in ("What?", "Who?", "Why?")]
    first = kept.generate(requests, documents)
    begun = [next(first), next(first)]
    first.close()
    lines = (tmp_path / "kept" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"][0] for line in lines] == [answer.text for answer in begun]
    asked = []
    many = lmms_requests.answer_many
    monkeypatch.setattr(
        lmms_requests, "answer_many", lambda llm, prompts, **o: asked.extend(prompts) or many(llm, prompts, **o)
    )
    again = Responses(kept.generate(requests, documents), 3)
    assert list(again)[:2] == begun
    assert [prompt.question for prompt in asked] == ["Why?"]
    likely = [rate("What?", text) for text in ("A", "B")]
    pairs = [list(Responses(kept.likelihoods(likely, documents), 2)) for _ in range(2)]
    assert pairs[0] == pairs[1]
    other = Adapter(ModelArgs.read(given | {"resume": str(tmp_path / "kept"), "ratio": 0.5}))
    list(other.generate(requests[:1], documents))
    assert [prompt.question for prompt in asked] == ["Why?", "What?"]


def test_answers_are_filed_under_what_decides_them(adapter, given, tmp_path, monkeypatch):
    """Folders of answers are shared by runs of any settings, JAX versions and backends."""
    known = adapter._identity

    def other(**changes):
        return Adapter(ModelArgs.read(given | changes))._identity

    assert other(resume="elsewhere", batch_size=3) == known
    lent = tiny_checkpoints.write("llava_onevision", tmp_path / "head", pooling_head=True)
    changed = [other(pooling_head=str(lent)), other(template="qwen3_vl"), other(dtype="bfloat16"), other(fps=1)]
    monkeypatch.setattr("jax.default_backend", lambda: "abacus")
    changed.append(other())
    monkeypatch.undo()
    monkeypatch.setattr("jax.__version__", "99")
    changed.append(other())
    assert len({json.dumps(one, sort_keys=True) for one in [known, *changed]}) == 7


def test_samples_of_one_request_differ_and_are_the_same_again(adapter, documents):
    requests = [ask("What?", max_new_tokens=4, temperature=5.0)] * 3
    first, again = (list(adapter.generate(requests, documents)) for _ in range(2))
    assert first == again
    assert len({answer.text for answer in first}) > 1


def test_what_is_no_video_is_refused_by_the_document(adapter, documents):
    with pytest.raises(JvidpruneError, match="gives nothing") as caught:
        list(adapter.generate([ask("What?", 4)], documents))
    assert str(caught.value).startswith("document 4 of task: ")


@pytest.mark.slow
def test_one_picture_is_read_as_a_picture(adapter, documents):
    (found,) = adapter.generate([ask("What?", 3, max_new_tokens=3)], documents)
    clip = Clip.of_picture(np.asarray(documents["task"]["test"][3]["visual"][0]))
    single = adapter.llm.ask(clip, "What?", reducer=registry.get("random"), ratio=0.25, max_new_tokens=3)
    assert (found.text, found.prompt) == (single.text, single.prompt)


def test_an_unreadable_video_is_an_empty_answer_that_is_counted_and_tried_again(
    given, documents, tmp_path, caplog, monkeypatch
):
    folder, docs = tmp_path / "kept", list(documents["task"]["test"])
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    docs[5] = {"visual": [str(bad)]}
    mine = {"task": {"test": docs}}
    requests = [ask("What?", doc, max_new_tokens=2) for doc in (0, 5, 1)]
    kept = Adapter(ModelArgs.read(given | {"resume": str(folder)}))
    answers = list(kept.generate(requests, mine))
    assert [answer.prompt > 0 for answer in answers] == [True, False, True]
    assert answers[1] == ("", 0, 0)
    ((place, why),) = kept.failures.items()
    assert place == ("task", "test", 5)
    assert why.startswith(f"document 5 of task: {bad}")
    assert "1 of 3 documents could not be answered" in caplog.text
    assert why in caplog.text
    (line,) = (folder / "failures.jsonl").read_text().splitlines()
    assert {"task": "task", "split": "test", "document": "5", "reason": why}.items() <= json.loads(line).items()
    assert (folder / "answers.jsonl").read_text().count("\n") == 2
    pairs = list(kept.likelihoods([rate("What?", text, 5) for text in "AB"] + [rate("What?", "A", 0)], mine))
    assert pairs[0] == pairs[1] == (-lmms_requests.UNLIKELY, False)
    assert pairs[2][0] < 1e3

    # Mended, and with its documents in another order, it asks for that one alone.
    asked = []
    many = lmms_requests.answer_many
    monkeypatch.setattr(
        lmms_requests, "answer_many", lambda llm, prompts, **o: asked.extend(prompts) or many(llm, prompts, **o)
    )
    bad.write_bytes(Path(docs[0]["visual"][0]).read_bytes() + b"\0")
    turned = {"task": {"test": docs[::-1]}}
    requests = [ask("What?", 5 - doc, max_new_tokens=2) for doc in (0, 5, 1)]
    again = list(Adapter(ModelArgs.read(given | {"resume": str(folder)})).generate(requests, turned))
    assert [again[0], again[2]] == [answers[0], answers[2]]
    assert again[1].prompt > 0
    assert len(asked) == 1
    # Another film under the same name is another video.
    bad.write_bytes(Path(docs[1]["visual"][0]).read_bytes())
    list(Adapter(ModelArgs.read(given | {"resume": str(folder)})).generate(requests[1:2], turned))
    assert len(asked) == 1, "what doc 1 shows was asked before"

    bad.write_bytes(b"")
    with pytest.raises(JvidpruneError, match="none of the 1 documents could be answered; the first: document 0 of"):
        list(Adapter(ModelArgs.read(given)).generate(requests[1:2], turned))
    strict = Adapter(ModelArgs.read(given | {"strict": "True"}))
    with pytest.raises(JvidpruneError, match="document 0 of task: "):
        list(strict.generate(requests, turned))
    with pytest.raises(JvidpruneError, match="strict must be True or False, got 'perhaps'"):
        ModelArgs.read({"strict": "perhaps"})


def test_a_document_that_its_task_cannot_show_costs_no_other(adapter, documents):
    docs = [documents["task"]["test"][0], {}]
    answers = list(adapter.generate([ask("What?", doc, max_new_tokens=2) for doc in (0, 1)], {"task": {"test": docs}}))
    assert answers[0].prompt > 0
    assert answers[1] == ("", 0, 0)
    assert "doc_to_visual fails: KeyError" in adapter.failures["task", "test", 1]


def test_other_requests_and_missing_ratios_are_refused(adapter, model, documents, tmp_path):
    with pytest.raises(JvidpruneError, match="2 parts is not supported"):
        list(adapter.likelihoods([Request(("", "A"))], documents))
    with pytest.raises(JvidpruneError, match="needs a ratio"):
        Adapter(ModelArgs.read({"pretrained": str(model), "reducer": "random"}))
    assert Adapter(ModelArgs.read({"pretrained": str(model)})).ratio == 1.0
    own = tiny_checkpoints.write("llava_onevision", tmp_path / "own")
    save_pruning(own, SavedPruning(registry.get("uniform"), 0.5))
    found = Adapter(ModelArgs.read({"pretrained": str(own)}))
    assert (found.reducer, found.ratio) == (registry.get("uniform"), 0.5)


def test_responses_are_made_as_they_are_read():
    made = []
    responses = Responses((made.append(i) or i * i for i in range(3)), 3)
    assert (len(responses), made) == (3, [])
    assert (responses[1], made) == (1, [0, 1])
    assert (list(responses), responses[-1], responses[:2]) == ([0, 1, 4], 4, [0, 1])
    with pytest.raises(IndexError, match="3 responses"):
        responses[3]


def test_an_export_is_a_task_of_lmms_eval_and_of_our_own_runner(tmp_path):
    export(Procedural("test", clips=3), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "lmms_eval" / "questions.jsonl").read_text().splitlines()]
    task = open_dataset("exported", tmp_path, frames=8)
    questions = [question for i in range(len(task)) for question in task[i].questions]
    assert [(q.id, q.prompt(), q.answer) for q in questions] == [
        (row["id"], row["prompt"], row["answer"]) for row in rows
    ]
    assert {q.kind for q in questions} == {row["kind"] for row in rows} > {"choice"}
    # Word for word as in memory.
    inside = [question for i in range(3) for question in Procedural("test", clips=3)[i].questions]
    assert [(q.id, q.prompt(), q.answer, q.options) for q in questions] == [
        (q.id, q.prompt(), q.answer, q.options) for q in inside
    ]
    choices = (tmp_path / "lmms_eval" / "questions_choice.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in choices] == [row for row in rows if row["kind"] == "choice"]

    class Loader(yaml.SafeLoader):
        """Knows lmms-eval's functions."""

    def function(loader, node):
        module, name = loader.construct_scalar(node).rsplit(".", 1)
        assert module == "jvidprune.procedural.lmms_task"
        return getattr(lmms_task, name)

    Loader.add_constructor("!function", function)
    for path in sorted((tmp_path / "lmms_eval").glob("*.yaml")):
        config = yaml.load(path.read_text(), Loader)
        file = Path(config["dataset_kwargs"]["data_files"]["test"])
        data = [json.loads(line) for line in file.read_text().splitlines()]
        for row in data:
            assert all(map(str.endswith, config["doc_to_visual"](row), [".mp4"]))
            assert config["doc_to_text"](row) == row["prompt"]
            if "doc_to_choice" in config:
                assert row["answer"] in config["doc_to_choice"](row)
            else:
                assert config["process_results"](row, [f"The answer is {row['answer']}."]) == {"accuracy": 1.0}
                assert config["process_results"](row, [""]) == {"accuracy": 0.0}
    annotations = json.loads((tmp_path / "annotations.json").read_text())
    annotations["questions"][0]["kind"] = "essay"
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    assert "kind 'essay'" in open_dataset("exported", tmp_path, frames=8).left_out[0].reason
    with pytest.raises(JvidpruneError, match="kind 'essay'"):
        open_dataset("exported", tmp_path, frames=8, strict=True)
