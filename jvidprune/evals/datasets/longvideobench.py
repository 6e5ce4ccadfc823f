"""LongVideoBench (longvideobench/LongVideoBench), without its subtitles.

Parquet as lmms-eval's task reads it: id, video_path (in videos/), question, option0 ... option4 with "N/A" for those
that do not exist, correct_choice (index), duration_group (15, 60, 600, 3600), question_category. lvb_val.json, from
memory, has the options as a list "candidates". The test split has no answers.

SToP's wording prints five options always, "N/A" among them.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import BEST_ANSWER, DIRECTLY, choice, pointed
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "lmms_longvideobench", "stop": "letters"}
ANSWER_TOKENS = 32

_NONE = "N/A"
_GROUPS = {"15": "8 to 15 s", "60": "15 to 60 s", "600": "3 to 10 min", "3600": "15 to 60 min"}
"""Lengths of clips in the duration groups."""


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by duration group."""
    for path in find_files(folder, "lvb_val.json", "validation*.parquet"):
        yield from each_row(path, functools.partial(_entry, prompts), "id", "video_path", "question", "correct_choice")


def _entry(prompts: str, number: int, row: Row) -> list[Entry]:
    listed = row.get("candidates") or [row.get(f"option{i}") for i in range(5)]
    options = [text for text in listed if text not in (None, _NONE)]
    if prompts == "stop":
        asked = "\n".join([row["question"], *pointed([*options, *[_NONE] * (5 - len(options))]), BEST_ANSWER])
    else:
        # The last line break is lmms-eval's.
        asked = "\n".join([row["question"], *pointed(options), DIRECTLY, ""])
    group = row.get("duration_group")
    category = "all lengths" if group is None else f"{group} s"
    texts = row["question"], category
    length = _GROUPS.get(str(group), "" if group is None else category)
    question = choice(str(row["id"]), *texts, options, int(row["correct_choice"]), asked=asked, length=length)
    return [Entry((f"videos/{row['video_path']}", row["video_path"]), question)]
