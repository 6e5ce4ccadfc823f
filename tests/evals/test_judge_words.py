"""Judges asked in the words of lmms-eval, read from files in the form that its task files have."""

import importlib.util
import json
import sys

import pytest
from helpers import reducer_checks as checks
from helpers.judges import serving

from jvidprune.evals.judge import cases_of
from jvidprune.evals.judge.published import in_published_words, published_words

CHAT = """
import nothing_that_is_there

def get_eval_generic(question, answer, pred, task, max_tokens: int, retries: int = 5):
    global headers
    if task == "correctness":
        messages = [{"role": "system", "content": "Right?"}, {"role": "user", "content": f"{question}|{answer}|{pred}"}]
    else:
        messages = [{"role": "user", "content": f"{task}: {question}|{answer}|{pred}"}]
    payload = {"messages": messages}
    return nothing_that_is_there.post(payload)

def get_eval_consistency(question1, question2, answer, pred1, pred2, max_tokens: int, retries: int = 5):
    messages = [{"role": "user", "content": f"{question1}|{question2}|{answer}|{pred1}|{pred2}"}]
    payload = {"messages": messages}
    return nothing_that_is_there.post(payload)
"""
PRO = 'VIDEOEVALPRO_JUDGE_PROMPT = """Grade {prediction} of {question} by {ground_truth}: A, B or C"""\n'
ANSWER = {"clip": "c", "method": "none", "ratio": 1.0, "category": "all", "correct": None, "kept": 1, "visual": 1}
ANSWER |= {"prompt": 1, "asked": "Who {x}?", "answer": "a cat", "prediction": "a dog"}
RUBRICS = {"g": "vcgbench_generic", "t": "vcgbench_temporal", "p-1": "vcgbench_consistency"}
RUBRICS |= {"p-2": "vcgbench_consistency", "o": "", "e": "eventhallusion"}
ANSWERS = [ANSWER | {"question": question, "rubric": rubric} for question, rubric in RUBRICS.items()]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package of this name, with task files that could not be imported."""
    tasks = tmp_path / "site" / "lmms_eval" / "tasks"
    (tasks.parent).mkdir(parents=True)
    (tasks.parent / "__init__.py").write_text("raise ImportError('it is never imported')\n")
    for name, text in (("videochatgpt", CHAT), ("videoevalpro", PRO)):
        (tasks / name).mkdir(parents=True)
        (tasks / name / "utils.py").write_text(text)
    monkeypatch.syspath_prepend(tasks.parents[1])
    monkeypatch.delitem(sys.modules, "lmms_eval", raising=False)
    return tasks


def test_messages_are_those_of_the_task_files(installed):
    found, bad = in_published_words(cases_of(ANSWERS)[0])
    said = {one.rubric.aspect: [message["content"] for message in one.messages] for one in found}
    text = "Who {x}?|a cat|a dog"
    assert said == {
        "correctness": ["Right?", text],
        "detail": [f"detailed_orientation: {text}"],
        "context": [f"context: {text}"],
        "temporal": [f"temporal: {text}"],
        "consistency": ["Who {x}?|Who {x}?|a cat|a dog|a dog"],
        "correct": ["Grade a dog of Who {x}? by a cat: A, B or C"],
    }
    assert [(one.question, one.aspect) for one in bad] == [("e", "events")]
    # The same answers have the same ids in any words: judges differ by their names.
    assert {one.request for one in found} < {one.request for one in cases_of(ANSWERS)[0]}
    assert published_words().startswith("lmms-eval")


def test_replies_are_read_as_lmms_eval_reads_them(installed):
    by_aspect = {one.rubric.aspect: one for one in in_published_words(cases_of(ANSWERS)[0])[0]}
    scored, graded = by_aspect["correctness"], by_aspect["correct"]
    replies = ("{'score': 4}", "{''score': 4.8}", '{"score": 4.2}')
    assert [scored.read(reply) for reply in replies] == [4.0, 4.0, 4.0]
    assert [graded.read(reply) for reply in ("A", "b", '"C"', "A: CORRECT", "<think>B</think>A")] == [1, 0, 0, 1, 1]
    for wrong in ("", "D", "All is right", "4"):
        with pytest.raises(ValueError, match="there is none of A, B, C"):
            graded.read(wrong)
    assert graded.reminder["content"].endswith("nothing but A, B or C.")
    assert "score" in scored.reminder["content"]


def test_a_server_is_asked_in_these_words_beside_ours(installed, run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "open_answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ANSWERS))
    with serving(lambda material, count: "A" if "Grade" in material[0] else "{'score': 4.8}") as (url, judge):
        words = ["judge", folder, "--endpoint", url, "--model", "m", "--parallel", "1"]
        code, out, err = run(*words, "--wording", "lmms_eval", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["judge"].startswith("m, in the words of lmms-eval")
    scores = {row["aspect"]: row["score"] for row in found["judged"] if row["aspect"] != "mean"}
    five = ("correctness", "detail", "context", "temporal", "consistency")
    assert scores == dict.fromkeys(five, 4.0) | {"correct": 1.0}
    assert [one["aspect"] for one in found["not_judged"]] == ["events"]
    assert [one["body"]["messages"][0]["content"] for one in judge.seen].count("Right?") == 1


def test_what_is_not_there_is_one_sentence(installed, tmp_path, monkeypatch):
    cases = cases_of(ANSWERS)[0]
    for name, text, why in (
        ("videochatgpt", CHAT.replace("payload =", "body ="), "get_eval_generic makes no payload"),
        ("videochatgpt", "def other():\n    pass\n", "there is no get_eval_generic"),
        ("videochatgpt", CHAT.replace("{question}", "{nobody}"), "name 'nobody' is not defined"),
        ("videochatgpt", "def (", "invalid syntax"),
        ("videoevalpro", "OTHER = 1\n", "there is no text VIDEOEVALPRO_JUDGE_PROMPT"),
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "lmms_eval"
        for part, whole in (("videochatgpt", CHAT), ("videoevalpro", PRO)):
            (folder / "tasks" / part).mkdir(parents=True)
            (folder / "tasks" / part / "utils.py").write_text(text if part == name else whole)
        (folder / "__init__.py").touch()
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder.parent)
            checks.refused(lambda: in_published_words(cases), f"utils.py holds no words of a judge .*{why}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    checks.refused(published_words, "pip install 'jvidprune.lmms-eval.'")
