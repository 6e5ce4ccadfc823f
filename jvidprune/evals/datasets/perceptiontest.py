"""PerceptionTest, multiple choice of the validation split (lmms-lab/PerceptionTest_Val).

Parquet as lmms-eval's task reads it: video_name (of the file in videos/), question, question_id, options (three),
answer_id (index), area, reasoning, tag.
"""

from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import DIRECTLY, choice, pointed
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "lmms_perceptiontest"}
ANSWER_TOKENS = 16


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by area."""
    for path in find_files(folder, "mc_question_val/*.parquet", "*validation*.parquet", "*.parquet", "*.json"):
        yield from each_row(path, _entry, "video_name", "question", "question_id", "options", "answer_id")


def _entry(number: int, row: Row) -> list[Entry]:
    asked = "\n".join([row["question"], *pointed(row["options"]), DIRECTLY])
    name, area = f"{row['video_name']}-{row['question_id']}", str(row.get("area") or "all areas")
    question = choice(name, row["question"], area, row["options"], int(row["answer_id"]), asked=asked)
    return [Entry((f"videos/{row['video_name']}.mp4", row["video_name"]), question)]
