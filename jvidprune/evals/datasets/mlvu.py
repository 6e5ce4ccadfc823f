"""MLVU, multiple-choice tasks (sy1998/MLVU_dev, and the authors' MLVU/MVLU).

Parquet as lmms-eval's task reads it: video_name, question with its options in lines "(A) ...", answer (a letter),
task_type. The authors' files, from memory: json/<n>_<task>.json (1_plotQA, 2_needle, 3_ego, 4_count, 5_order,
6_anomaly_reco, 7_topic_reasoning), lists of {"video", "duration", "question", "candidates", "answer" (text of a
candidate), "question_type"}, videos in video/<n>_<task>/. 8_sub_scene and 9_summary ask for open answers and are not
read.

The score that papers and lmms-eval report is the mean over the seven tasks (`SweepTable.category_mean`). The wording
"official" is from memory of the authors' code.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.errors import quoted
from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import bracketed, choice, listing, split_options
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "lmms_first_four", "official": "letters"}
ANSWER_TOKENS = 16

_LEAD = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)
_LAST = "Only give the best option.\nBest option: ("


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its multiple-choice questions by task."""
    for path in find_files(folder, "json/[1-7]_*.json", "*.parquet", "[1-7]_*.json"):
        yield from each_row(path, functools.partial(_entry, prompts, path), "question", "answer")


def _entry(prompts: str, path: Path, number: int, row: Row) -> list[Entry]:
    video = str(row.get("video_name") or row.get("video"))
    task = str(row.get("task_type") or path.stem.partition("_")[2] or row.get("question_type"))
    text = row["question"]
    alone, inside = split_options(text)
    options = [str(one) for one in listing(row.get("candidates") or inside)]
    if not options:
        raise ValueError(f"has no candidates; its columns are {quoted(', '.join(map(str, row)), 200)}")
    whole = text if inside else "\n".join([text, *bracketed(options)])
    asked = f"{_LEAD}\n{whole}\n{_LAST}" if prompts == "official" else f"{whole}\n{_LAST}"
    name = str(row.get("question_id") or f"{path.stem}-{number}")
    question = choice(name, alone, task, options, str(row["answer"]), asked=asked)
    return [Entry((f"video/{path.stem}/{video}", video, video.removesuffix(Path(video).suffix)), question)]
