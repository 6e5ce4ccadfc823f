"""TimeLens: Charades and ActivityNet with corrected queries; the answer is a span of seconds.

One JSON a set, video -> {"duration", "spans", "queries"}; or the parquet that lmms-eval's tasks read, a split for each
set, with video_path, query and span (the text of a list of spans). Of several spans of a query the first counts.

The wording is that of lmms-eval's task; the authors' was not read.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jvidprune.evals.datasets.annotations import Row, attempt, each_row, find_files, read_object
from jvidprune.evals.datasets.entry import AskedQuestion, Entry
from jvidprune.evals.datasets.wording import listing
from jvidprune.evals.items import LeftOut
from jvidprune.evals.spans import write_span
from jvidprune.files import parse_json

READING = {"lmms_eval": "letters"}
ANSWER_TOKENS = 50

_ASKED = (
    "Please find the visual event described by the sentence '{}', determining its starting and ending times. The "
    "format should be: 'The event happens in <start time> - <end time> seconds'."
)


def entries(folder: Path, prompts: str, part: Literal["charades", "activitynet"]) -> Iterator[Entry | LeftOut]:
    """The queries of a set."""
    for path in find_files(folder, f"*{part}*.json", f"*{part}*.parquet"):
        if path.suffix == ".parquet":
            make = functools.partial(_row, part)
            yield from each_row(path, make, "video_path", "query", "span")
            continue
        for video, known in read_object(path):
            if isinstance(known, LeftOut):
                yield known
            else:
                yield from _queries(path, part, video, known)


def _queries(path: Path, part: str, video: str, known: Any) -> Iterator[Entry | LeftOut]:
    def pairs() -> list[tuple[Any, Any]]:
        return list(zip(listing(known["queries"]), listing(known["spans"]), strict=True))

    try:
        asked = pairs()
    except (TypeError, KeyError, ValueError):
        why = f"video {video} of {path} has no queries and spans, as many of these as of those."
        yield LeftOut(video, str(path), why)
        return
    for number, (query, span) in enumerate(asked):
        make = functools.partial(_entry, part, video, query, span)
        yield from attempt(path, f"query {number} of video {video}", make)


def _row(part: str, number: int, row: Row) -> list[Entry]:
    span = row["span"]
    return _entry(part, str(row["video_path"]), row["query"], parse_json(span) if isinstance(span, str) else span)


def _entry(part: str, video: str, query: Any, span: Sequence[Any]) -> list[Entry]:
    first = span[0] if isinstance(span[0], Sequence) and not isinstance(span[0], str) else span
    start, end = (float(value) for value in first)
    # As in lmms-eval, a query that a video has twice with the same span counts once.
    name = f"{query} @ {start:g}-{end:g}"
    asked = _ASKED.format(query)
    question = AskedQuestion(name, query, part, "span", (), write_span((start, end)), asked=asked)
    stem = video.rpartition(".")[0] if video.endswith((".mp4", ".mkv", ".webm")) else video
    return [Entry((video, f"{video}.mp4", stem.rpartition("/")[2]), question)]
