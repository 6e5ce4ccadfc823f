"""A judge of open answers behind a real local server: scores, faults, what is kept, and what a kill costs."""

import csv
import email.utils
import importlib
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.judges import drip, fault, hang_up, send, serving
from helpers.places import REPOSITORY
from helpers.sweeps import has_lines
from hypothesis import given
from hypothesis import strategies as st

from jvidprune.errors import JvidpruneError
from jvidprune.evals.judge import RUBRICS, ChatServer, ask_judge, cases_of, judged_run, open_answers
from jvidprune.evals.judge.asking import NO_REPLIES, NO_SCORES
from jvidprune.evals.judge.cases import write_open
from jvidprune.evals.judge.exchange import read_verdicts, write_answers
from jvidprune.evals.judge.replies import read_score
from jvidprune.evals.judge.server import _retry_after
from jvidprune.evals.judge.verdicts import open_verdicts

METHODS = [("none", 1.0), ("no video", 0.0), ("random", 0.25)]


def answer(clip, question, said, method="none", ratio=1.0, rubric="", **more):
    """The record of an open answer."""
    record = {"clip": clip, "question": question, "method": method, "ratio": ratio, "category": "c", "key": "k"}
    record |= {"prediction": said, "answer": f"truth of {clip}", "correct": None, "asked": "What?", "rubric": rubric}
    return record | {"kept": 4, "visual": 16, "prompt": 20} | more


def run_of(folder, clips=6, rubric=""):
    """A finished run with an answer a clip and method; that of a method is never that of another."""
    answers = [
        answer(f"clip{i}", f"q{i}", f"{method} says {i}", method, ratio, rubric)
        for i in range(clips)
        for method, ratio in METHODS
    ]
    write_open(folder, answers)
    (folder / "run.json").write_text(json.dumps({"task": {"name": "mine"}, "ratios": [0.25]}))
    return answers


def server(url, **more):
    return ChatServer(url, "tiny-judge", **{"pause": 0.01, "timeout": 5.0, "tries": 3} | more)


def ask(folder, url, answers, **more):
    parallel = more.pop("parallel", 4)
    store = open_verdicts(folder)
    outcome = ask_judge(cases_of(answers)[0], server(url, **more), store, parallel=parallel)
    store.close()
    return outcome


def verdicts(folder):
    return [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]


def yes(material, before):
    return '{"verdict": "yes"}'


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_every_answer_is_asked_once_and_equal_answers_share_a_verdict(tmp_path):
    answers = run_of(tmp_path)
    answers.append(answer("clip0", "q0", "none says 0", "random", 0.1))
    with serving(lambda material, before: time.sleep(0.05) or yes(material, before)) as (url, judge):
        first = ask(tmp_path, url, answers, key="secret-key")
        again = ask(tmp_path, url, answers)
    assert (first.new, first.not_judged, first.stopped, again.new) == (18, [], "", 0)
    assert judge.count() == len(verdicts(tmp_path)) == 18
    assert 1 < judge.most <= 4
    # Requests that are on their way together arrive in any order.
    one = next(one for one in judge.seen if '"none says 0"' in one["body"]["messages"][1]["content"])
    assert (one["path"], one["key"]) == ("/v1/chat/completions", "Bearer secret-key")
    body = one["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny-judge", 0, 512)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    material = json.loads(body["messages"][1]["content"])
    assert material == {"question": "What?", "reference": "truth of clip0", "answer": "none says 0"}
    rows = {(row.method, row.ratio): row for row in judged_run(tmp_path, answers).rows}
    assert (rows["random", 0.1].answers, rows["random", 0.25].answers) == (1, 6)


FAULTS = {
    "429": fault(429, [("Retry-After", "0.05")]),
    "503": fault(503),
    "500 of a proxy": fault(500, body=b"<html>oops</html>"),
    "408": fault(408),
    "hang up": hang_up,
    "no reply": lambda handler: time.sleep(0.8),
    "drip": drip,
    "no json": lambda handler: send(handler, body=b"<html>welcome</html>"),
    "no choices": lambda handler: send(handler, body=b'{"choices": []}'),
    "a list": lambda handler: send(handler, body=b"[1]"),
    "numbers": lambda handler: send(handler, body=b'{"choices": [{"message": {"content": 3}}]}'),
    "huge": lambda handler: send(handler, body=b"x" * (1 << 21)),
    "gzip": lambda handler: send(handler, body=b"no gzip", headers=[("Content-Encoding", "gzip")]),
    "chatter": "I would rather not say.",
    "empty": "",
    "off the scale": '{"verdict": "7"}',
    "two scores": '{"verdict": "yes"} or {"verdict": "no"}',
    "surrogate": lambda handler: send(handler, body=b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
}


@pytest.mark.parametrize("times", [1, 99])
def test_a_fault_costs_a_try_or_its_own_answer_and_no_other(tmp_path, times):
    """Each of the answers meets a fault of its own: once, and it is judged; always, and it alone is not."""
    names = list(FAULTS)
    answers = [answer(f"clip{i}", "q", f"{name}") for i, name in enumerate(names)]
    # Good answers in between: a server that replies to some requests is not given up.
    answers = [one for bad in answers for one in (bad, answer(f"good {bad['clip']}", "q", "good"))]

    def rule(material, before):
        broken = material["answer"] in FAULTS and before < times
        return FAULTS[material["answer"]] if broken else yes(material, before)

    with serving(rule) as (url, judge):
        outcome = ask(tmp_path, url, answers, timeout=0.4, parallel=2)
        healthy = verdicts(tmp_path)
        assert outcome.stopped == ""
        if times == 1:
            assert (outcome.new, outcome.not_judged) == (2 * len(names), [])
            return
        assert len(healthy) == outcome.new == len(names)
        assert [one.clip for one in outcome.not_judged] == [f"clip{i}" for i in range(len(names))]
        reasons = dict(zip(names, (one.reason for one in outcome.not_judged), strict=True))
        assert "status 429: no, 3 times." in reasons["429"]
        assert "did not reply within 0.4 seconds" in reasons["no reply"]
        assert "did not reply within 0.4 seconds" in reasons["drip"]
        assert "no chat completion" in reasons["huge"]
        assert "no score could be read, 3 times: there is no score in" in reasons["chatter"]
        assert "is not yes, no or a number from 0 to 1" in reasons["off the scale"]
        assert all(reason.endswith(".") and "\n" not in reason for reason in reasons.values())
        found = judged_run(tmp_path, answers)
        assert (found.awaiting, found.rows[0].answers, found.rows[0].missing) == (len(names), len(names), len(names))
        # Tries are bounded: three of each request, and three askings for a score of those that reply.
        assert judge.count() <= len(names) * 3 + len(names)
        # Mended, the missing ones are judged and nothing is asked twice.
        judge.rule, before = yes, judge.count()
        assert ask(tmp_path, url, answers).new == len(names)
        assert judge.count() - before == len(names)


def test_all_requests_wait_when_the_server_asks_for_it(tmp_path):
    answers = run_of(tmp_path, clips=3)
    limited = []

    def rule(material, before):
        if not limited:
            limited.append(time.monotonic())
            return fault(429, [("Retry-After", "0.5")])
        return yes(material, before)

    with serving(rule) as (url, judge):
        assert ask(tmp_path, url, answers, parallel=1).new == 9
    waited = judge.seen[1]["time"] - judge.seen[0]["time"]
    assert 0.5 <= waited < 3


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        *(("7", 7, 7), ("0", 0, 0), ("-3", 0, 0), ("soon", None, None), (None, None, None), ("nan", None, None)),
        *(("inf", math.inf, math.inf), ("in an hour", 3000, 3601)),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, low, high):
    if value == "in an hour":
        value = email.utils.formatdate(time.time() + 3600, usegmt=True)
    found = _retry_after(value)
    assert found is None if low is None else low <= found <= high


@pytest.mark.parametrize(
    ("said", "words", "passing"),
    [
        (fault(401, body=b'{"error": {"message": "Wrong key: secret-key."}}'), "status 401: Wrong key: ***", False),
        (fault(404, body=b'{"error": "no such model"}'), "status 404: no such model", False),
        (fault(307, [("Location", "http://elsewhere.invalid/")]), "status 307", False),
        (fault(429, [("Retry-After", "86400")]), "asks to be left alone for 86,400 seconds", True),
        (fault(503), f"no reply to {NO_REPLIES} requests in a row", True),
        (fault(400), f"no reply to {NO_REPLIES} requests in a row", True),
        ("perhaps", f"no score to {NO_SCORES} requests in a row", False),
    ],
)
def test_a_judge_that_cannot_go_on_is_left_and_what_it_said_is_kept(tmp_path, said, words, passing):
    answers = run_of(tmp_path, clips=10)
    with serving(lambda material, before: yes(0, 0) if material["answer"] == "none says 0" else said) as (url, judge):
        outcome = ask(tmp_path, url, answers, key="secret-key", tries=2, parallel=1)
    assert words in outcome.stopped
    assert (outcome.passing, outcome.new, len(verdicts(tmp_path))) == (passing, 1, 1)
    assert len(outcome.not_judged) == 29
    assert all(one.reason for one in outcome.not_judged)
    assert judge.count() <= 3 * NO_SCORES + 1
    assert "secret-key" not in outcome.stopped + "".join(map(str, outcome.not_judged))


def test_a_server_that_is_not_there_is_told_in_a_sentence(tmp_path):
    answers = run_of(tmp_path)
    with serving(yes) as (url, _):
        pass
    outcome = ask(tmp_path, url, answers, tries=2)
    assert "ConnectError" in outcome.stopped
    assert (outcome.passing, outcome.new, len(outcome.not_judged)) == (True, 0, 18)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"endpoint": "localhost:8000"}, "no address"),
        ({"endpoint": "ftp://host/v1"}, "no address"),
        ({"endpoint": "http://[::1"}, "no address"),
        ({"endpoint": "http://host:99999/v1"}, "no address"),
        ({"endpoint": "https://me:word@host/v1"}, "name or password"),
        ({"key": "two words"}, "key holds"),
        ({"key": "a\nb"}, "key holds"),
        ({"model": " "}, "no name"),
        ({"tries": 0}, "1 to 100 times"),
        ({"timeout": math.nan}, "timeout above 0"),
    ],
)
def test_what_cannot_be_a_judge_is_refused_before_anything_is_sent(more, words):
    with pytest.raises(JvidpruneError, match=words) as told:
        ChatServer(**{"endpoint": "http://host/v1", "model": "m"} | more)
    assert "word@" not in str(told.value)


def test_settings_of_a_request_are_changed_and_taken_out(tmp_path):
    answers = run_of(tmp_path, clips=1)
    with serving(yes) as (url, judge):
        changed = ask(tmp_path, f"{url}/chat/completions/", answers, settings={"max_tokens": None, "seed": 3})
        # Another request is another judge.
        assert ask(tmp_path, url, answers).new == changed.new == 3
    assert changed.judge == "tiny-judge (max_tokens=None, seed=3)"
    body = judge.seen[0]["body"]
    assert ("max_tokens" in body, body["seed"], judge.seen[0]["path"]) == (False, 3, "/v1/chat/completions")
    assert {row.judge for row in judged_run(tmp_path, answers).rows} == {"tiny-judge", changed.judge}


@pytest.mark.parametrize(
    ("reply", "top", "score"),
    [
        ('{"score": 4}', 5, 4),
        ("{'pred': 'yes', 'score': 4}", 5, 4),
        ('```json\n{"score": 3.5}\n```', 5, 3.5),
        ("<think>a score: 1 perhaps</think>Score: 4/5", 5, 4),
        ("The score is **2**.", 5, 2),
        ("5", 5, 5),
        ("4 out of 5.", 5, 4),
        ('{"verdict": "Yes"}', 1, 1),
        ("no.", 1, 0),
        ('{"verdict": "no", "why": "score: 9"}', 1, 0),
        ("**2**/5", 5, 2),
        ("8/10", 5, None),
        ("Score: 4/10", 5, None),
        ("score: 3-4", 5, None),
        ("score: 14-5", 5, None),
        ("<think>the score: 3, or", 5, None),
        ("<think>hm</think>", 5, None),
        ("6", 5, None),
        ("-1", 5, None),
        ('{"score": true}', 5, None),
        ('{"score": NaN}', 5, None),
        ('{"score": 1e999}', 5, None),
        ("yes", 5, None),
        ("score: 4, or score: 5", 5, None),
        ("maybe 4", 5, None),
        ("", 5, None),
    ],
)
def test_scores_are_read_where_there_is_no_doubt(reply, top, score):
    if score is None:
        with pytest.raises(ValueError, match=r"score|empty"):
            read_score(reply, top)
    else:
        assert read_score(reply, top) == score


@given(st.text(max_size=60), st.sampled_from([1, 5]))
def test_any_reply_has_a_score_on_the_scale_or_none(reply, top):
    try:
        score = read_score(reply, top)
    except ValueError as error:
        score, told = None, str(error)
    assert "\n" not in told if score is None else 0 <= score <= top


def test_vcgbench_has_five_aspects_and_judges_consistent_answers_in_pairs(tmp_path):
    found = []
    for clip in ("a", "b"):
        found.append(answer(clip, f"{clip}-generic", "g", rubric="vcgbench_generic"))
        found.append(answer(clip, f"{clip}-temporal", "t", rubric="vcgbench_temporal"))
        found.append(answer(clip, f"{clip}-0-1", "one", rubric="vcgbench_consistency"))
        # The two rows of a pair have numbers of their own.
        found.append(answer(clip, f"{clip}-1-2", "two", rubric="vcgbench_consistency"))
    lone = answer("c", "c-0-1", "one", rubric="vcgbench_consistency")
    cases, bad = cases_of([*found, lone, answer("d", "d", "x", rubric="unknown"), {**lone, "asked": None}])
    assert [(one.clip, one.aspect) for one in bad] == [("d", ""), ("c", ""), ("c", "consistency")]
    assert "there is no rubric 'unknown'" in str(bad[0])
    assert "other question of its pair" in str(bad[2])
    aspects = [case.rubric.aspect for case in cases if case.clip == "a"]
    assert sorted(aspects) == ["consistency", "context", "correctness", "detail", "temporal"]
    pair = next(case for case in cases if case.rubric.pair)
    assert (pair.question, dict(pair.material)["answer_2"]) == ("a-0-1 + a-1-2", "two")

    def rule(material, before):
        return json.dumps({"score": 2 if "answer_1" in material else 4})

    with serving(rule) as (url, _):
        assert ask(tmp_path, url, found).new == 10
    rows = {row.aspect: row for row in judged_run(tmp_path, found).rows}
    assert {name: row.score for name, row in rows.items()} == dict.fromkeys(aspects, 4) | {
        "consistency": 2,
        "mean": 3.6,
    }
    assert {row.top for row in rows.values()} == {5}


def test_several_pairs_of_a_clip_belong_together_by_their_reference():
    rows = [answer("a", f"{n}-{side}", f"{n}{side}", rubric="vcgbench_consistency") for side in (1, 2) for n in "xy"]
    for row in rows:
        row["answer"] = row["question"][0]
    cases, bad = cases_of(rows)
    assert ([case.question for case in cases], bad) == (["x-1 + x-2", "y-1 + y-2"], [])
    assert [case.question for case in cases_of(rows[:3])[0]] == ["x-1 + x-2"]
    assert [one.question for one in cases_of(rows[:3])[1]] == ["y-1"]


def test_scores_are_means_over_answers_with_intervals_over_clips(tmp_path):
    """Against a bootstrap of one's own, clip by clip."""
    rng = np.random.default_rng(0)
    answers, given_scores = [], {}
    for clip in range(12):
        for question in range(1 + clip % 3):
            for method, ratio in METHODS:
                said = f"{clip} {question} {method}"
                given_scores[said] = int(rng.integers(6))
                answers.append(answer(f"c{clip}", f"q{question}", said, method, ratio, "vcgbench_temporal"))
    lost = "3 0 random"
    cases, _ = cases_of(answers)
    store = open_verdicts(tmp_path)
    lines = [{"id": c.request, "score": given_scores[dict(c.material)["answer"]]} for c in cases]
    lines = [line for line, c in zip(lines, cases, strict=True) if dict(c.material)["answer"] != lost]
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, lines)))
    outcome = read_verdicts(cases, tmp_path / "said.jsonl", "people", store)
    store.close()
    assert [one.clip for one in outcome.not_judged] == ["c3"]
    found = judged_run(tmp_path, answers, draws=4000)
    assert found.awaiting == 1
    row = next(row for row in found.rows if row.method == "random")
    mine = {said: score for said, score in given_scores.items() if said.endswith("random") and said != lost}
    assert (row.answers, row.missing, row.top) == (len(mine), 1, 5)
    assert row.score == pytest.approx(np.mean(list(mine.values())))
    changes = {said: score - given_scores[said.replace("random", "none")] for said, score in mine.items()}
    assert row.change == pytest.approx(np.mean(list(changes.values())))
    clips = sorted({said.split()[0] for said in given_scores})
    draws = []
    for _ in range(2000):
        drawn = [s for c in rng.choice(clips, len(clips)) for said, s in mine.items() if said.split()[0] == c]
        draws.append(np.mean(drawn))
    assert (row.low, row.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.15)
    assert row.change_low < row.change < row.change_high
    unpruned = next(row for row in found.rows if row.method == "none")
    assert math.isnan(unpruned.change)


def test_answers_go_out_and_verdicts_come_back(tmp_path):
    answers = run_of(tmp_path, clips=2)
    cases, _ = cases_of(answers)
    assert write_answers(cases, tmp_path / "out.jsonl") == 6
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["material"]["answer"] for row in rows] == [one["prediction"] for one in answers]
    assert (rows[0]["scale"], rows[0]["messages"]) == ([0, 1], cases[0].messages)
    said = [
        {"id": rows[0]["id"], "score": 1},
        {"id": rows[1]["id"], "verdict": "no"},
        {"id": rows[2]["id"], "reply": '{"verdict": "yes"}'},
        {"id": rows[0]["id"], "score": 0},
        {"id": rows[3]["id"], "score": 3},
        {"id": rows[4]["id"], "reply": 4},
        {"id": "none"},
        [1],
    ]
    text = "\n".join(map(json.dumps, said)) + "\n\n{broken\n\xff"
    (tmp_path / "in.jsonl").write_bytes(text.encode("latin1"))
    store = open_verdicts(tmp_path)
    outcome = read_verdicts(cases, tmp_path / "in.jsonl", "people", store)
    assert (outcome.new, [one["score"] for one in verdicts(tmp_path)]) == (3, [1, 0, 1])
    lines = [one.reason for one in outcome.not_judged]
    assert [line.split(" of ")[0] for line in lines[:7]] == [f"line {n}" for n in (4, 5, 6, 7, 8, 10, 11)]
    assert sum("has no verdict on it" in line for line in lines) == 3
    # The first verdict of a judge stays, and answers that have one do not go out again.
    (tmp_path / "in.jsonl").write_text(json.dumps(said[3]))
    assert read_verdicts(cases, tmp_path / "in.jsonl", "people", store).new == 0
    known = {one["request"] for one in verdicts(tmp_path)}
    assert write_answers(cases, tmp_path / "out.jsonl", known) == 3
    (tmp_path / "in.jsonl").write_text('{"id": "x"}')
    with pytest.raises(JvidpruneError, match="no verdict on an answer of this run"):
        read_verdicts(cases, tmp_path / "in.jsonl", "people", store)
    store.close()


def test_damaged_lines_are_listed_and_cost_the_others_nothing(tmp_path):
    answers = run_of(tmp_path, clips=2)
    with serving(yes) as (url, _):
        ask(tmp_path, url, answers)
        lines = (tmp_path / "verdicts.jsonl").read_bytes().splitlines(keepends=True)
        changed = json.loads(lines[1]) | {"score": 9}
        (tmp_path / "verdicts.jsonl").write_bytes(
            b"".join([lines[0], json.dumps(changed).encode() + b"\n", *lines[2:5], lines[5][:20]])
        )
        assert sum(row.answers for row in judged_run(tmp_path, answers).rows) == 4
        assert ask(tmp_path, url, answers).new == 2
    assert sum(row.answers for row in judged_run(tmp_path, answers).rows) == 6
    path = tmp_path / "open_answers.jsonl"
    path.write_bytes(path.read_bytes() + b'{"clip": 1}\nbroken\n')
    found, bad = open_answers(tmp_path)
    assert (found, len(bad)) == (answers, 2)
    assert "line 7 of open_answers.jsonl is no open answer" in str(bad[0])


def test_every_loader_names_a_rubric_that_there_is():
    for name in ("vcgbench", "eventhallusion", "tempcompass", "videoevalpro"):
        text = inspect.getsource(importlib.import_module(f"jvidprune.evals.datasets.{name}"))
        assert '"open", ()' in text
        for found in re.findall(r'reference, "(\w+)"', text):
            assert found in RUBRICS
    assert {f"vcgbench_{part}" for part in ("generic", "temporal", "consistency")} <= set(RUBRICS)


def test_scales_are_the_published_ones_and_the_page_names_them():
    """VCGBench: five aspects from 0 to 5, consistency of two answers; everything else is no or yes."""
    tops = {one.aspect: (one.top, one.pair) for name in RUBRICS if name.startswith("vcgbench") for one in RUBRICS[name]}
    five = dict.fromkeys(("correctness", "detail", "context", "temporal"), (5, False))
    assert tops == five | {"consistency": (5, True)}
    others = {one for name, rubrics in RUBRICS.items() if not name.startswith("vcgbench") for one in rubrics}
    assert {(one.top, one.pair) for one in others} == {(1, False)}
    page = (REPOSITORY / "docs" / "judging.md").read_text(encoding="utf8")
    assert all(re.search(rf"\b{one.aspect}\b.*\| no, yes \|", page) for one in others)
    assert page.count("| 0 to 5 |") == 3


def judge_words(folder, url, *more):
    return ["judge", str(folder), "--endpoint", url, "--model", "tiny-judge", *more]


def test_the_verb_asks_reports_and_says_what_was_not_judged(run, tmp_path, monkeypatch):
    run_of(tmp_path, rubric="eventhallusion")
    monkeypatch.setenv("MY_KEY", "secret-key")

    def rule(material, before):
        if material["answer"] == "random says 3":
            return "[/who] knows"
        return json.dumps({"verdict": "yes" if "none" in material["answer"] else "no"})

    with serving(rule) as (url, judge):
        code, out, err = run(*judge_words(tmp_path, url, "--key-env", "MY_KEY", "--json"))
        record = json.loads(out)
        assert {one["key"] for one in judge.seen} == {"Bearer secret-key"}
        assert (code, err, record["new"], record["unjudged"], len(record["not_judged"])) == (0, "", 17, 1, 1)
        assert [(row["method"], row["score"]) for row in record["judged"]] == [
            ("none", 1),
            ("no video", 0),
            ("random", 0),
        ]
        code, out, _ = run(*judge_words(tmp_path, url))
        assert "not judged: 1" in out
        assert "clip3 · q3 · random at 25 % · events: no score could be read" in out
        assert "1 open answer awaits a judge" in out
    with (tmp_path / "judged.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["answers"], row["missing"], row["score"]) for row in rows] == [
        ("none", "6", "0", "1"),
        ("no video", "6", "0", "0"),
        ("random", "5", "1", "0"),
    ]
    page = (tmp_path / "report.html").read_text()
    assert "unpruned" in page
    assert "-100.0 [-100.0, -100.0]" in page
    assert not any("secret-key" in path.read_text() for path in tmp_path.iterdir() if path.is_file())


def test_without_a_server_the_verb_exports_and_reads_verdicts_back(run, tmp_path):
    run_of(tmp_path, clips=2)
    code, out, _ = run("judge", tmp_path, "--json")
    record = json.loads(out)
    assert (code, record["lines"], record["exported"]) == (0, 6, str(tmp_path / "to_judge.jsonl"))
    ids = [json.loads(line)["id"] for line in (tmp_path / "to_judge.jsonl").read_text().splitlines()]
    (tmp_path / "said.jsonl").write_text("\n".join(json.dumps({"id": one, "score": 1}) for one in ids))
    code, out, _ = run("judge", tmp_path, "--verdicts", tmp_path / "said.jsonl", "--model", "people", "--quiet")
    assert (code, out.strip()) == (0, str(tmp_path / "report.html"))
    code, out, _ = run("judge", tmp_path)
    assert "0 requests to a judge" in out
    assert "people" in out


def test_wrong_words_are_a_sentence(run, tmp_path):
    (tmp_path / "run").mkdir()
    run_of(tmp_path / "run", clips=1)
    url = "http://127.0.0.1:9/v1"
    lines = [
        (["judge", tmp_path / "none"], "has no open answers"),
        (["judge", tmp_path / "run", "--endpoint", url], "say who judges with --model"),
        (["judge", tmp_path / "run", "--endpoint", "here", "--model", "m"], "no address"),
        (judge_words(tmp_path / "run", url, "--verdicts", "x"), "give one of them"),
        (judge_words(tmp_path / "run", url, "--out", "x"), "--out is for answers that are exported"),
        (judge_words(tmp_path / "run", url, "--request", "[]"), "--request is a JSON object"),
        (judge_words(tmp_path / "run", url, "--request", "{"), "--request is no JSON"),
        (judge_words(tmp_path / "run", url, "--parallel", "0"), "1 to 256 requests"),
        (["judge", tmp_path / "run", "--verdicts", tmp_path / "x", "--model", "m"], "cannot be read"),
    ]
    for words, said in lines:
        code, out, err = run(*words)
        assert (code, out, err.count("\n"), said in err) == (2, "", 1, True), (words, err)
    code, out, err = run(*judge_words(tmp_path / "run", url, "--tries", "1", "--json"))
    assert (code, len(json.loads(out)["not_judged"])) == (0, 3)


def test_a_stopped_judge_ends_in_the_exit_code_of_its_reason(run, tmp_path):
    run_of(tmp_path)
    for said, wanted in ((fault(401), 2), (fault(429, [("Retry-After", "9999")]), 75)):
        with serving(lambda material, before, said=said: said) as (url, _):
            code, _, err = run(*judge_words(tmp_path, url, "--quiet"))
        assert (code, err.count("\n"), "0 new verdicts are kept, run again to go on." in err) == (wanted, 1, True)


def test_a_killed_judge_goes_on_where_it_was(tmp_path):
    """Killed while requests are on their way: what was said is there, and no answer is judged twice."""
    answers = run_of(tmp_path, clips=8)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JUDGE_API_KEY": ""}
    with serving(lambda material, before: time.sleep(0.15) or yes(material, before)) as (url, judge):
        words = [sys.executable, "-m", "jvidprune.cli", *judge_words(tmp_path, url, "--parallel", "2", "--quiet")]
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not has_lines(tmp_path / "verdicts.jsonl", 5) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kept = verdicts(tmp_path)
        assert 5 <= len(kept) < 24
        # What a write that is cut off leaves behind.
        with (tmp_path / "verdicts.jsonl").open("ab") as file:
            file.write(b'{"request": "unfinish')
        before = judge.count()
        outcome = ask(tmp_path, url, answers)
        assert (outcome.new, outcome.not_judged, judge.count() - before) == (24 - len(kept), [], 24 - len(kept))
    found = verdicts(tmp_path)
    assert (found[: len(kept)], len({one["request"] for one in found})) == (kept, 24)
