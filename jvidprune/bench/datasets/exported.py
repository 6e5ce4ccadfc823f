"""What `jvidprune bench export` writes: annotations.json with the clips beside it, asked in the words of lmms-eval."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from jvidprune.bench.datasets.annotations import find_files, read_rows, require
from jvidprune.bench.datasets.task import AskedQuestion, Entry
from jvidprune.bench.items import Kind
from jvidprune.errors import JvidpruneError

EXTRACTION = "letters"

_COLUMNS = ("id", "video", "category", "kind", "question", "options", "answer", "prompt")


def entries(folder: Path) -> Iterator[Entry]:
    """Its questions of all kinds, clip by clip."""
    for path in find_files(folder, "annotations.json"):
        listed = [row["value"] for row in read_rows(path) if isinstance(row.get("value"), list)]
        for row in require(listed[0] if listed else [], path, *_COLUMNS):
            if row["kind"] not in get_args(Kind):
                raise JvidpruneError(f"{path} has a question of kind {row['kind']!r}, not {', '.join(get_args(Kind))}.")
            texts = {"id": row["id"], "text": row["question"], "asked": row["prompt"]}
            texts |= {key: row[key] for key in ("category", "kind", "answer")}
            yield Entry((row["video"],), AskedQuestion(options=tuple(map(str, row["options"])), **texts))
