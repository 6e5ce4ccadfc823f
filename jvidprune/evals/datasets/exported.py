"""What `jvidprune bench export` writes: annotations.json with the clips beside it, asked as the benchmark asks."""

from collections.abc import Iterator
from pathlib import Path

from jvidprune.evals.datasets.annotations import Row, each_row, find_files
from jvidprune.evals.datasets.entry import AskedQuestion, Entry
from jvidprune.evals.datasets.wording import listing
from jvidprune.evals.items import LeftOut

READING = {"lmms_eval": "letters"}
ANSWER_TOKENS = 8
UNIQUE = True

_COLUMNS = ("id", "video", "category", "kind", "question", "options", "answer", "prompt")


def entries(folder: Path, prompts: str) -> Iterator[Entry | LeftOut]:
    """Its questions of all kinds, clip by clip."""
    for path in find_files(folder, "annotations.json"):
        yield from each_row(path, _entry, *_COLUMNS, key="questions")


def _entry(number: int, row: Row) -> list[Entry]:
    texts = {"id": row["id"], "text": row["question"], "asked": row["prompt"]}
    texts |= {key: row[key] for key in ("category", "kind", "answer")}
    return [Entry((row["video"],), AskedQuestion(options=tuple(listing(row["options"])), **texts))]
