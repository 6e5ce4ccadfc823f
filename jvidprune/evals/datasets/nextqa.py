"""NExT-QA, multiple choice (lmms-lab/NExTQA, and the authors' CSV files).

Columns as lmms-eval's task reads them: video (number, the name of the file), question, answer (index 0 to 4), qid, type
(CW, CH: causal; TN, TC, TP: temporal; DC, DL, DO: descriptive) and a0 ... a4. Videos lie in NExTVideo/, with a map from
numbers to folders in the authors' copy.

lmms-eval's wording has no instruction: the question and its options are all.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.datasets.wording import GIVE_OPTION, choice, pointed
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "lmms_nextqa", "stop": "letters"}
ANSWER_TOKENS = 16

_COLUMNS = ("video", "question", "answer", "qid", "type", "a0", "a1", "a2", "a3", "a4")
_KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions by causal, temporal and descriptive."""
    make = functools.partial(_entry, [GIVE_OPTION] if prompts == "stop" else [])
    for path in find_files(folder, "MC/test*.parquet", "*MC*.parquet", "*.parquet", "test.csv", "val.csv"):
        yield from each_row(path, make, *_COLUMNS)


def _entry(last: list[str], number: int, row: Row) -> list[Entry]:
    options = [str(row[f"a{i}"]).strip() for i in range(5)]
    text = str(row["question"]).strip()
    asked = "\n".join([text, *pointed(options), *last])
    name, kind = f"{row['video']}-{row['qid']}", _KINDS.get(str(row["type"])[:1], str(row["type"]))
    question = choice(name, text, kind, options, int(row["answer"]), asked=asked)
    return [Entry((f"NExTVideo/{row['video']}.mp4", str(row["video"])), question)]
