"""MotionBench (zai-org/MotionBench).

video_info.meta.jsonl as lmms-eval's task reads it: {"key", "question_type", "video_type", "video_path", "qa": [{"uid",
"question" with its options in lines "A. ...", "answer" (a letter, "NA" where it is not public)}, ...]}. White space in
questions and options is made single spaces, as there.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, attempt, each_row, find_files
from jvidprune.evals.datasets.entry import AskedQuestion, Entry
from jvidprune.evals.datasets.wording import listing
from jvidprune.evals.items import LETTERS, LeftOut

READING = {"lmms_eval": "lmms_motionbench"}
ANSWER_TOKENS = 64

_INSTRUCTION = "Answer with only the option letter (A, B, C, D, E, or F)."
_FIRST = re.compile(r"\s*([A-F])[.):]\s*")
_NEXT = re.compile(r"\s*([A-F])[.):](?:\s+|$)")


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by kind of motion; those without a public answer are left out."""
    for path in find_files(folder, "video_info.meta.jsonl", "*.jsonl", "*.json"):
        yield from each_row(path, functools.partial(_entries, path), "key", "video_path", "qa")


def _entries(path: Path, number: int, row: Row) -> Iterator[Entry | LeftOut]:
    for place, asked in enumerate(listing(row["qa"])):
        make = functools.partial(_entry, row, place, asked)
        yield from attempt(path, f"question {place} of row {number}", make)


def _entry(row: Row, place: int, asked: Mapping[str, str]) -> list[Entry]:
    answer = str(asked["answer"]).strip().upper()
    if answer == "NA":
        return []
    text, options = _split(asked["question"].strip())
    if answer not in options:
        raise ValueError(f"the answer {answer!r} is none of the options {', '.join(options) or 'it has not'}")
    lines = [f"{letter}. {option}" for letter, option in options.items()]
    texts = tuple(options.get(letter, "") for letter in LETTERS[: LETTERS.index(max(options)) + 1])
    whole = "\n".join([text, *lines, _INSTRUCTION])
    name, kind = str(asked.get("uid") or f"{row['key']}_{place}"), str(row.get("question_type") or "Unknown")
    return [Entry((row["video_path"],), AskedQuestion(name, text, kind, "choice", texts, answer, asked=whole))]


def _split(text: str) -> tuple[str, dict[str, str]]:
    """The question alone and its options by letter, empty ones left out."""
    question: list[str] = []
    parts: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        found = (_NEXT if parts else _FIRST).match(line)
        if found:
            parts.append((found.group(1), [line[found.end() :]]))
        elif parts:
            parts[-1][1].append(line)
        else:
            question.append(line)
    options = {letter: " ".join(" ".join(lines).split()) for letter, lines in parts}
    alone = " ".join(" ".join(question).split()) or " ".join(text.split())
    return alone, {letter: option for letter, option in options.items() if option}
