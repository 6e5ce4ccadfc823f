"""LongVideoBench (longvideobench/LongVideoBench).

From memory of the dataset card: lvb_val.json, a list of {"video_id", "video_path", "question", "candidates",
"correct_choice" (index), "question_category", "topic_category", "duration_group" (15, 60, 600, 3600), "id"}; the
parquet split has option0 ... option4 with "N/A" for those that do not exist. Videos lie in videos/. The test split has
no answers.
"""

from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import DIRECTLY, choice, lettered
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "letters"}
ANSWER_TOKENS = 16


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by duration group; subtitles are not given."""
    for path in find_files(folder, "lvb_val.json", "validation*.parquet"):
        yield from each_row(path, _entry, "id", "video_path", "question", "correct_choice")


def _entry(number: int, row: Row) -> list[Entry]:
    listed = row.get("candidates") or [row.get(f"option{i}") for i in range(5)]
    options = [text for text in listed if text not in (None, "N/A")]
    asked = "\n".join([row["question"], *lettered(options), DIRECTLY])
    group = row.get("duration_group")
    category = "all lengths" if group is None else f"{group} s"
    question = choice(str(row["id"]), row["question"], category, options, int(row["correct_choice"]), asked=asked)
    return [Entry((f"videos/{row['video_path']}", row["video_path"]), question)]
