"""MLVU, multiple-choice tasks (MLVU/MVLU, sy1998/MLVU_dev).

From memory of the dataset cards: json/<n>_<task>.json (1_plotQA, 2_needle, 3_ego, 4_count, 5_order, 6_anomaly_reco,
7_topic_reasoning), lists of {"video", "duration", "question", "candidates", "answer" (text of a candidate),
"question_type"}, videos in video/<n>_<task>/; the parquet copy has video_name, question, candidates, answer and
task_type in one table. 8_sub_scene and 9_summary ask for open answers and are not read.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import choice, listing
from jvidprune.evals.items import LETTERS, LeftOut

READING = {"lmms_eval": "letters"}
ANSWER_TOKENS = 16

_LEAD = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its multiple-choice questions by task."""
    for path in find_files(folder, "json/[1-7]_*.json", "*.parquet", "[1-7]_*.json"):
        yield from each_row(path, functools.partial(_entry, path), "question", "candidates", "answer")


def _entry(path: Path, number: int, row: Row) -> list[Entry]:
    video = str(row.get("video_name") or row.get("video"))
    task = str(row.get("task_type") or row.get("question_type") or path.stem.partition("_")[2])
    options = [str(text) for text in listing(row["candidates"])]
    listed = [f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False)]
    text = row["question"].strip()
    # The parquet copy writes the options into the question.
    whole = text if listed[0] in text else "\n".join([text, *listed])
    asked = f"{_LEAD}\n{whole}\nOnly give the best option.\nBest option: ("
    name = str(row.get("question_id") or f"{path.stem}-{number}")
    question = choice(name, text.split("\n(A)")[0], task, options, str(row["answer"]), asked=asked)
    return [Entry((f"video/{path.stem}/{video}", video, video.removesuffix(Path(video).suffix)), question)]
