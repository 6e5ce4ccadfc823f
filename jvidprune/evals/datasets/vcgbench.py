"""VCGBench of Video-ChatGPT (lmms-lab/VideoChatGPT): open answers, which a judge scores from 0 to 5.

Parquet as lmms-eval's tasks read it, in a folder for each part: Generic and Temporal with video_name (of the file in
Test_Videos/), question and answer; Consistency with two questions about a clip, a row each, whose question_1 or
question_2 is "None". The authors' files, from memory: {generic,temporal,consistency}_qa.json with Q (Q1 and Q2), A and
video_name. A judge scores Generic for correctness, detail and context, Temporal for temporal understanding, and the two
answers of Consistency against each other.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_parts
from jvidprune.evals.datasets.entry import AskedQuestion, Entry
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "letters"}
ANSWER_TOKENS = 1024

_PARTS = ("Generic", "Temporal", "Consistency")
_ABSENT = (None, "None")


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by part; of Consistency, the two of a clip follow each other as "-1" and "-2"."""
    parts = {part: (f"{part}/*.parquet", f"{part}*.parquet", f"{part.lower()}_qa.json") for part in _PARTS}
    for part, paths in find_parts(folder, parts):
        for shard, path in enumerate(paths):
            make = functools.partial(_entries, part, f"{shard}." if shard else "", path.suffix == ".json")
            yield from each_row(path, make, "video_name", "A" if path.suffix == ".json" else "answer")


def _entries(part: str, shard: str, authors: bool, number: int, row: Row) -> list[Entry]:
    one, two = ("Q1", "Q2") if authors else ("question_1", "question_2")
    alone = "Q" if authors else "question"
    asked = {"-1": row.get(one), "-2": row.get(two)} if part == "Consistency" else {"": row.get(alone)}
    answer, video = str(row["A" if authors else "answer"]), str(row["video_name"])
    found = [
        AskedQuestion(f"{part}-{shard}{number}{mark}", text, part, "open", (), answer, f"vcgbench_{part.lower()}", text)
        for mark, text in asked.items()
        if text not in _ABSENT
    ]
    if not found:
        raise ValueError(f"has no question; its columns are {', '.join(map(str, row))}")
    return [Entry((f"Test_Videos/{video}.mp4", f"{video}.mp4", video), question) for question in found]
