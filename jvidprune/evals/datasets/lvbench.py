"""LVBench (lmms-lab/LVBench, and the authors' video_info.meta.jsonl).

Parquet as lmms-eval's task reads it: video_path, question (with its options in lines "(A) ...", or these in a list
"options"), answer (a letter). The authors' file, from memory, has a line a video: {"key" (name of the file), "type",
"qa": [{"uid", "question", "answer", "question_type"}, ...]}.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.errors import quoted
from jvidprune.evals.datasets.annotations import Row, attempt, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import bracketed, choice, listing, split_options
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "lmms_first_four"}
ANSWER_TOKENS = 16

_LAST = "Answer the question with the option letter"


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by type of video, where the annotations tell it."""
    for path in find_files(folder, "*.parquet", "video_info.meta.jsonl", "*.jsonl", "*.json"):
        yield from each_row(path, functools.partial(_entries, path))


def _entries(path: Path, number: int, row: Row) -> Iterator[Entry | LeftOut]:
    if "qa" not in row:
        yield from _entry(row, f"{path.stem}-{number}", row)
        return
    for place, asked in enumerate(listing(row["qa"])):
        make = functools.partial(_entry, row, f"{row['key']}-{place}", asked)
        yield from attempt(path, f"question {place} of row {number}", make)


def _entry(row: Row, name: str, asked: Row) -> list[Entry]:
    if lacking := [key for key in ("question", "answer") if asked.get(key) is None]:
        raise ValueError(f"has no {', '.join(lacking)}; its columns are {quoted(', '.join(map(str, asked)), 200)}")
    listed = [str(option) for option in listing(asked.get("options") or ())]
    alone, inside = (asked["question"], listed) if listed else split_options(asked["question"])
    whole = "\n".join([asked["question"], *bracketed(listed), _LAST])
    kind = str(row.get("type") or "all videos")
    question = choice(str(asked.get("uid") or name), alone, kind, inside, asked["answer"], asked=whole)
    video = str(row.get("video_path") or row.get("key"))
    return [Entry((video, f"{video}.mp4", f"videos/{video}"), question)]
