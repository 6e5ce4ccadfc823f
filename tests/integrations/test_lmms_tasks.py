"""lmms-eval's own task code beside our loaders: the same prompts, videos, letters, verdicts and scores.

Not in the default run, as `test_lmms_eval.py`. What was compared stands in docs/lmms-eval-tasks.md, which these tests
check; JVIDPRUNE_LMMS_TABLE=1 writes it anew.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
from helpers.lmms_tasks import CASES, HEAD, compare

from jvidprune.evals.judge import cases_of
from jvidprune.evals.judge.published import in_published_words
from jvidprune.evals.markdown import grid
from jvidprune.procedural.clips import ClipSpec, render
from jvidprune.video.encode import write_mp4

pytestmark = pytest.mark.lmms_eval

TABLE = Path(__file__).parents[2] / "docs" / "lmms-eval-tasks.md"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What was found, by task; filled by the tests."""
    assert importlib.util.find_spec("lmms_eval"), "lmms-eval is not installed: pip install -e '.[test,lmms-eval]'"
    return {}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_mp4(path, render(ClipSpec(seed=1, frames=120, size=(32, 32))).frames, 6.0)
    return path


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """No hub, no downloads, and stand-ins for what lmms-eval's task files import and the compared parts never call."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("MOTIONBENCH_AUTO_DOWNLOAD", "0")
    if importlib.util.find_spec("decord") is None:
        stand_in = types.ModuleType("decord")
        stand_in.VideoReader, stand_in.cpu = None, None
        monkeypatch.setitem(sys.modules, "decord", stand_in)
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *args, **settings: True)


@pytest.mark.parametrize("name", CASES)
def test_our_loader_gives_what_the_task_gives(name, found, film, tmp_path, monkeypatch):
    one = compare(name, tmp_path, film, monkeypatch)
    found[name] = one
    assert (one.prompts, one.videos) == (one.documents, one.documents)
    assert one.letters[0] == one.letters[1]
    assert one.verdicts == one.answers
    assert one.longest[0] in (None, one.longest[1])
    for theirs, ours in one.scores.values():
        # LongVideoBench's is rounded to five digits.
        assert ours == pytest.approx(theirs, abs=6e-6)


def test_judges_are_asked_in_the_words_that_lmms_eval_sends(found, monkeypatch):
    from lmms_eval.tasks.videochatgpt import utils as chat
    from lmms_eval.tasks.videoevalpro import utils as pro

    sent = []

    def post(address, *, headers, json, timeout):
        sent.append(json["messages"])
        raise chat.requests.exceptions.RequestException

    monkeypatch.setattr(chat.requests, "post", post)
    base = {"clip": "c", "method": "none", "ratio": 1.0, "answer": "{a} cat", "prediction": 'a "dog"'}
    rubrics = {"g": "vcgbench_generic", "t": "vcgbench_temporal", "p-1": "vcgbench_consistency"}
    rubrics |= {"p-2": "vcgbench_consistency", "o": ""}
    asked = [base | {"question": name, "rubric": rubric, "asked": f"Who, {name}?"} for name, rubric in rubrics.items()]
    cases, bad = in_published_words(cases_of(asked)[0])
    assert not bad
    ours = {case.rubric.aspect: case.messages for case in cases}
    texts = base["answer"], base["prediction"]
    for aspect, name in (("correctness",) * 2, ("detail", "detailed_orientation"), ("context",) * 2):
        chat.get_eval_generic("Who, g?", *texts, name, 64, retries=1)
        assert sent.pop() == ours[aspect]
    chat.get_eval_generic("Who, t?", *texts, "temporal", 64, retries=1)
    assert sent.pop() == ours["temporal"]
    chat.get_eval_consistency("Who, p-1?", "Who, p-2?", texts[0], texts[1], texts[1], 64, retries=1)
    assert sent.pop() == ours["consistency"]
    words = {"question": "Who, o?", "ground_truth": texts[0], "prediction": texts[1]}
    assert ours["correct"][0]["content"] == pro.VIDEOEVALPRO_JUDGE_PROMPT.format(**words)
    case = next(one for one in cases if one.rubric.aspect == "correct")
    for reply in ("A", "b.", "C"):
        assert case.read(reply) == pro._parse_abc_response(reply).score
    scored = next(one for one in cases if one.rubric.aspect == "context")
    for reply in ("{'score': 4}", "{'score': 4.8}", "{'score': 0}"):
        assert scored.read(reply) == chat.parse_score(reply)


def test_the_table_of_the_documentation_is_what_was_found(found):
    if set(found) != set(CASES):
        pytest.skip("needs the comparison of every task before it")
    rows = grid(HEAD, [one.row() for one in found.values()])
    if os.environ.get("JVIDPRUNE_LMMS_TABLE"):
        head = TABLE.read_text(encoding="utf8").partition("\n| ")[0]
        TABLE.write_text(f"{head}\n{rows}\n", encoding="utf8")
    assert rows in TABLE.read_text(encoding="utf8")
