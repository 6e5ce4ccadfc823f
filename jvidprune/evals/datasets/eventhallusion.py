"""EventHallusion (2409.16597; github.com/Stevetich/EventHallusion): yes/no questions, and descriptions of whole clips.

As SToP's evaluation reads it: questions/{entire,misleading,mix}_questions.json, each a list of {"id", "questions":
[{"question", "answer" ("Yes." or "No.")}, ...]}; videos in videos/{entire,interleave,misleading}/<id>.mp4, where an id
that begins with "mix" is a file that begins with "interleave" instead.

The descriptions ask one open question a clip, for a judge. Its wording was not read, and neither was what the judge
compares with: the question is ours, and the reference is whatever texts the annotation has beside its questions, or
else these questions with their answers.

The prompts "stop" end in the suffix of SToP's evaluation; "official" is from memory of the authors' repository.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from jvidprune.evals.datasets.annotations import Row, attempt, each_row, find_files
from jvidprune.evals.datasets.entry import AskedQuestion, Entry
from jvidprune.evals.datasets.wording import listing
from jvidprune.evals.extract import yes_or_no
from jvidprune.evals.items import LeftOut

READING = {"stop": "letters", "official": "letters"}
ANSWER_TOKENS = {"": 16, "descriptions": 512}

_SUFFIX = {"stop": "\nPlease answer yes or no:", "official": " Please answer yes or no."}
_DESCRIBE = "Please describe this video in detail."
_FILES = {"mix": "interleave"}
"""Name of a part in its file's name, where its videos lie elsewhere."""


def entries(folder: Path, prompts: str, part: Literal["", "descriptions"] = "") -> Iterator[Entry | LeftOut]:
    """Its questions by part: entire, interleave, misleading."""
    make = _described if part == "descriptions" else _entries
    for path in find_files(folder, "*_questions.json"):
        yield from each_row(path, functools.partial(make, path, _SUFFIX[prompts]), "id", "questions")


def _videos(part: str, name: str) -> tuple[str, ...]:
    names = [name.replace("mix", "interleave", 1), name] if name.startswith("mix") else [name]
    return tuple(place for one in names for place in (f"videos/{part}/{one}.mp4", f"{one}.mp4", one))


def _part(path: Path) -> str:
    found = path.stem.removesuffix("_questions")
    return _FILES.get(found, found)


def _entries(path: Path, suffix: str, number: int, row: Row) -> Iterator[Entry | LeftOut]:
    for place, asked in enumerate(listing(row["questions"])):
        make = functools.partial(_entry, _part(path), suffix, str(row["id"]), place, asked)
        yield from attempt(path, f"question {place} of row {number}", make)


def _entry(part: str, suffix: str, video: str, place: int, asked: Mapping[str, str]) -> list[Entry]:
    text, answer = asked["question"].strip(), str(asked["answer"])
    whole = text if text.endswith(suffix.strip()) else text + suffix
    said = yes_or_no(answer)
    if not said:
        raise ValueError(f"the answer {answer!r} is neither yes nor no")
    question = AskedQuestion(f"{video}-{place}", text, part, "yes_no", ("yes", "no"), said, asked=whole)
    return [Entry(_videos(part, video), question)]


def _described(path: Path, suffix: str, number: int, row: Row) -> list[Entry]:
    part, video = _part(path), str(row["id"])
    known = {name: value for name, value in row.items() if name not in ("id", "questions") and value}
    pairs = [f"{asked['question'].strip()} {asked['answer']}" for asked in listing(row["questions"])]
    reference = json.dumps(known, ensure_ascii=False) if known else "\n".join(pairs)
    question = AskedQuestion(video, _DESCRIBE, part, "open", (), reference, "eventhallusion", _DESCRIBE)
    return [Entry(_videos(part, video), question)]
