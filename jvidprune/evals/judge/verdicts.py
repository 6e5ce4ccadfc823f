"""Verdicts of judges, kept beside the samples of a run, and what a whole one holds."""

import math
from pathlib import Path

from jvidprune.errors import JvidpruneError, reason
from jvidprune.evals.judge.cases import Case
from jvidprune.evals.store import Record, RecordStore
from jvidprune.files import parse_json

VERDICTS = "verdicts.jsonl"
"""File of a run: one verdict a line, of every judge that was asked; nothing in it is ever replaced."""

KEY = ("request", "judge")

LONGEST = 2000
"""Characters of a reply that are kept."""


def is_verdict(record: Record) -> bool:
    """Whether a record is a whole verdict: request, judge, aspect, reply, and a score on its scale."""
    texts = all(isinstance(record.get(name), str) for name in ("request", "judge", "aspect", "reply"))
    score, top = record.get("score"), record.get("top")
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (score, top))
    return texts and numbers and 0 <= score <= top < math.inf  # type: ignore[operator]


def verdict(case: Case, judge: str, score: float, reply: str, askings: int) -> Record:
    """A record.

    Args:
      case: what was judged; the first of those with its request.
      judge: who.
      score: on the scale of the rubric.
      reply: where it was read.
      askings: how often the judge was asked until a score could be read; 0 for a verdict that came in a file.
    """
    said = reply.encode("utf-8", "replace").decode()[:LONGEST]
    about = {"clip": case.clip, "question": case.question, "aspect": case.rubric.aspect}
    return (
        {"request": case.request, "judge": judge}
        | about
        | {
            "score": score,
            "top": case.rubric.top,
            "reply": said,
            "askings": askings,
        }
    )


def open_verdicts(folder: Path) -> RecordStore:
    """The verdicts of a run, for the one process that adds to them.

    Raises:
      JvidpruneError: the file cannot be read or written.
    """
    return RecordStore(folder / VERDICTS, KEY, is_verdict)


def known_verdicts(folder: Path) -> dict[str, dict[str, float]]:
    """Scores by judge and request, read without changing the file.

    Raises:
      JvidpruneError: it cannot be read.
    """
    path, found = folder / VERDICTS, {}
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise JvidpruneError(f"{path} cannot be read: {reason(error)}.") from error
    for line in lines:
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and is_verdict(record):
            found.setdefault(record["judge"], {}).setdefault(record["request"], float(record["score"]))
    return found
