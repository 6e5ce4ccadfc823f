"""VideoEval-Pro (TIGER-Lab/VideoEval-Pro): its multiple choice, and the same questions with open answers for a judge.

Parquet as lmms-eval's tasks read it: video (file in videos_filtered/), question, options (list of "A. ..."), answer (a
letter), answer_text, qa_type (Local Perception, Local Reasoning, Holistic Perception, Holistic Reasoning). The authors
score the open answers.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import AskedQuestion, Entry
from jvidprune.evals.datasets.wording import choice, lettered, listing
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "lmms_ranked"}
ANSWER_TOKENS = 16

_CHOOSE = "Answer with the option letter only."
_OPEN = " Keep the answer short and concise."


def entries(folder: Path, prompts: str, part: Literal["", "open"] = "") -> Iterator[Entry | LeftOut]:
    """Its questions by type."""
    columns = ("answer_text",) if part else ("options", "answer")
    for path in find_files(folder, "test*.parquet", "*.parquet", "*.jsonl", "*.json"):
        yield from each_row(path, functools.partial(_entry, part, path), "video", "question", *columns)


def _entry(part: str, path: Path, number: int, row: Row) -> list[Entry]:
    text, kind, name = row["question"], str(row.get("qa_type") or "all types"), f"{path.stem}-{number}"
    if part == "open":
        question = AskedQuestion(name, text, kind, "open", (), str(row["answer_text"]), asked=text + _OPEN)
    else:
        options = [str(option).strip() for option in listing(row["options"])]
        asked = "\n".join([text, *lettered(options), _CHOOSE])
        question = choice(name, text, kind, options, row["answer"], asked=asked)
    return [Entry((f"videos_filtered/{row['video']}", row["video"]), question)]
