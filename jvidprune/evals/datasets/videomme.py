"""VideoMME (lmms-lab/Video-MME).

From memory of the dataset card: parquet with one row a question and the columns video_id ("001"), duration (short,
medium, long), domain, sub_category, url, videoID (the name of the file, data/<videoID>.mp4), question_id ("001-1"),
task_type, question, options (list of "A. ...") and answer (a letter).
"""

from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import choice, lettered
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "first_letter"}
ANSWER_TOKENS = 16

_LEAD = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option."
)


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions, by length of the video; subtitles are not given, as in lmms-eval's task without them."""
    for path in find_files(folder, "test*.parquet", "*.parquet", "*.json", "*.jsonl"):
        yield from each_row(path, _entry, "videoID", "question_id", "question", "options", "answer")


def _entry(number: int, row: Row) -> list[Entry]:
    options = lettered(row["options"])
    asked = "\n".join([_LEAD, row["question"], *options, "The best answer is:"])
    category = str(row.get("duration") or "all lengths")
    question = choice(str(row["question_id"]), row["question"], category, options, row["answer"], asked=asked)
    return [Entry((f"data/{row['videoID']}.mp4", row["videoID"]), question)]
