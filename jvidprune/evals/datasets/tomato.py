"""TOMATO (lmms-lab/TOMATO).

Parquet as lmms-eval's task reads it: id, question, options (list), answer (index), reason_type, demonstration_type,
video_path. The wording is that of the authors' code, a Python dict of the options included; answers may have 1,024
tokens in lmms-eval.
"""

from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import choice, listing
from jvidprune.evals.items import LETTERS, LeftOut

READING = {"lmms_eval": "lmms_tomato"}
ANSWER_TOKENS = 1024

_ASKED = "\n".join(
    [
        "You will be provided with frames uniformly sampled from a video, the frames are provided in chronological "
        "order of the video. Analyze these frames and provide the answer to the question about the video content. "
        "Answer the multiple-choice question about the video content.",
        "",
        "You must use these frames to answer the multiple-choice question; do not rely on any externel knowledge or "
        "commonsense. ",
        "",
        "<question> ",
        "{question} ",
        "</question>",
        "",
        "<options> ",
        "{options} ",
        "</options>",
        "",
        "Even if the information in these separate frames is not enough to answer the question, PLEASE TRY YOUR BEST "
        "TO GUESS AN ANSWER WHICH YOU THINK WOULD BE THE MOST POSSIBLE ONE BASED ON THE QUESTION. ",
        "",
        "DO NOT GENERATE ANSWER SUCH AS 'NOT POSSIBLE TO DETERMINE.' ",
        "",
    ]
)


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by kind of reasoning."""
    for path in find_files(folder, "test*.parquet", "*.parquet", "*.jsonl", "*.json"):
        yield from each_row(path, _entry, "id", "question", "options", "answer", "video_path")


def _entry(number: int, row: Row) -> list[Entry]:
    text, options = row["question"], [str(option) for option in listing(row["options"])]
    shown = dict(zip(LETTERS, options, strict=False))
    asked = _ASKED.format(question=text, options=shown)
    category = str(row.get("reason_type") or "all kinds")
    question = choice(str(row["id"]), text, category, options, int(row["answer"]), asked=asked)
    path = str(row["video_path"])
    return [Entry((path, f"videos/{path}", path.rpartition("/")[2]), question)]
