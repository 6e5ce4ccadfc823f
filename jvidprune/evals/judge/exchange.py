"""Open answers as a JSONL file for a judge elsewhere, and that judge's verdicts read back."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.evals.judge.asking import Outcome
from jvidprune.evals.judge.cases import Case, NotJudged
from jvidprune.evals.judge.replies import score_of
from jvidprune.evals.judge.verdicts import verdict
from jvidprune.evals.store import Record, RecordStore, json_line
from jvidprune.files import atomic_output, parse_json

TO_JUDGE = "to_judge.jsonl"
"""Where a run's answers are exported to unless another place is named."""


def write_answers(cases: Sequence[Case], path: Path, known: Collection[str] = ()) -> int:
    """Writes one line a request: id, what is judged, its scale, the material, and the messages for a chat model.

    Args:
      cases: of a run; equal ones stand in the file once.
      path: of the file.
      known: requests that are left out.

    Returns:
      How many lines there are.

    Raises:
      JvidpruneError: the file cannot be written.
    """
    first = {case.request: case for case in reversed(cases) if case.request not in known}
    with atomic_output(path) as part, part.open("wb") as file:
        for case in reversed(first.values()):
            about = {"id": case.request, "aspect": case.rubric.aspect, "scale": [0, case.rubric.top]}
            about |= {"clip": case.clip, "question_id": case.question}
            file.write(json_line(about | {"material": dict(case.material), "messages": case.messages}))
        file.flush()
        os.fsync(file.fileno())
    return len(first)


def read_verdicts(cases: Sequence[Case], path: Path, judge: str, verdicts: RecordStore) -> Outcome:
    """Adds the verdicts of a file to a run: one JSON object a line, with "id" and "score", "verdict" or "reply".

    Lines that are wrong are listed and cost the others nothing. What a judge has said already stays as it was.

    Args:
      cases: of the run.
      path: the file.
      judge: who gave them.
      verdicts: of the run.

    Raises:
      JvidpruneError: the file cannot be read, or holds no line that could be one of these.
    """
    if not judge.strip() or not judge.isprintable():
        raise JvidpruneError("verdicts need the name of their judge: say who with --model.")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise JvidpruneError(f"{path} cannot be read: {reason(error)}.") from error
    by_request = {case.request: case for case in reversed(cases)}
    bad: list[NotJudged] = []
    fresh: dict[str, Record] = {}
    used = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = _read(line, by_request, judge)
            used += 1
        except ValueError as error:
            bad.append(NotJudged("", "", "", 0.0, "", f"line {number} of {path.name}: {error}."))
            continue
        before = fresh.setdefault(record["request"], record)
        if before["score"] != record["score"]:
            why = f"line {number} of {path.name}: another score for {record['request']}; the first counts."
            bad.append(NotJudged("", "", "", 0.0, "", why))
    if not used:
        raise JvidpruneError(f"{path} holds no verdict on an answer of this run{f'; {bad[0]}' if bad else '.'}")
    before = len(verdicts)
    verdicts.append(fresh.values())
    lacking = [case for case in cases if (case.request, judge) not in verdicts]
    bad += [NotJudged.of(case, f"{path.name} has no verdict on it.") for case in lacking]
    return Outcome(judge, len(verdicts) - before, bad)


def _read(line: bytes, by_request: dict[str, Case], judge: str) -> Record:
    """The verdict of a line.

    Raises:
      ValueError: it holds none.
    """
    found = parse_json(line)
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    case = by_request.get(found["id"]) if isinstance(found.get("id"), str) else None
    if case is None:
        raise ValueError(f"there is no answer with the id {quoted(repr(found.get('id')))}")
    reply = found.get("reply", "")
    if not isinstance(reply, str):
        raise ValueError(f"its reply is {quoted(repr(reply))}, no text")
    value = next((found[name] for name in ("score", "verdict") if found.get(name) is not None), None)
    score = case.read(reply) if value is None else score_of(value, case.rubric.top)
    return verdict(case, judge, score, reply, 0)
