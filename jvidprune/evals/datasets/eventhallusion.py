"""EventHallusion, the yes/no questions (github.com/Stevetich/EventHallusion).

From memory of the repository: questions/{entire,interleave,misleading}_questions.json, each a list of {"id" (also the
name of the video), "questions": [{"question", "answer" ("yes" or "no")}, ...]}; videos in videos/<part>/<id>.mp4. The
detailed-description part needs a judge model and is not read.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, attempt, each_row, find_files
from jvidprune.evals.datasets.entry import AskedQuestion, Entry
from jvidprune.evals.datasets.wording import listing
from jvidprune.evals.extract import yes_or_no
from jvidprune.evals.items import LeftOut

EXTRACTION = "letters"

_INSTRUCTION = "Please answer yes or no."


def entries(folder: Path) -> Iterator[Entry | LeftOut]:
    """Its questions by part: entire, interleave, misleading."""
    for path in find_files(folder, "*_questions.json"):
        yield from each_row(path, functools.partial(_entries, path), "id", "questions")


def _entries(path: Path, number: int, row: Row) -> Iterator[Entry | LeftOut]:
    for place, asked in enumerate(listing(row["questions"])):
        make = functools.partial(_entry, path.stem.removesuffix("_questions"), str(row["id"]), place, asked)
        yield from attempt(path, f"question {place} of row {number}", make)


def _entry(part: str, video: str, place: int, asked: Row) -> list[Entry]:
    text, answer = asked["question"].strip(), str(asked["answer"])
    whole = text if "yes or no" in text.lower() else f"{text} {_INSTRUCTION}"
    said = yes_or_no(answer)
    if not said:
        raise ValueError(f"the answer {answer!r} is neither yes nor no")
    question = AskedQuestion(f"{video}-{place}", text, part, "yes_no", ("yes", "no"), said, asked=whole)
    return [Entry((f"videos/{part}/{video}.mp4", f"{video}.mp4", video), question)]
