"""What can be wrong with a copy of a benchmark, added to a whole one, all of whose questions can still be asked.

Added are, for the first annotation whose video is a file: a copy of itself; one that asks about a torn video, about an
empty one, and about a good one whose name is not ASCII; one without its question; and one that is no object, where the
format allows it.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from helpers.layouts import write

QUESTIONS = ("question", "query", "qa", "questions", "question_1")
IDS = ("id", "uid", "key", "question_id", "question_idx")
ODD = "_ümläut 视频"


class Spoiled(NamedTuple):
    """What was added: ends of the names of bad videos, and the name of a good one."""

    bad_videos: list[str]
    odd: str
    no_question: bool
    no_object: bool


def spoil(folder: Path) -> Spoiled:
    """Adds what is wrong to the copy of a benchmark."""
    videos = sorted(folder.rglob("*.mp4"))
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".jsonl", ".parquet")):
        rows = _read(path)
        for number, row in enumerate(rows if isinstance(rows, list) else []):
            for name, value in row.items():
                stem = Path(str(value)).stem
                found = [v for v in videos if v.stem in (stem, f"v_{stem}", stem.replace("mix", "interleave", 1))]
                if isinstance(value, str | int) and stem and found and name not in ("question_id", "qid"):
                    return _add(folder, path, rows, number, name, found[0])
        if isinstance(rows, dict):
            return _add_to_object(path, rows, videos)
    raise AssertionError(f"{folder} has no annotation of a video that is a file")


def _add(folder: Path, path: Path, rows: list[Any], number: int, field: str, video: Path) -> Spoiled:
    first = rows[number]
    rows = [row | {field: str(row[field])} if field in row else row for row in rows]
    added = [dict(rows[number])]
    for mark in ("_torn", "_empty", ODD):
        _video(video, mark)
        value = str(first[field])
        named = Path(value).with_stem(Path(value).stem + mark).as_posix()
        added.append(_renamed(first, mark) | {field: named})
    asked = next((name for name in QUESTIONS if name in first), None)
    if asked is not None:
        added.append(_renamed(first, "_unasked") | {field: str(first[field]), asked: None})
    listed = path.suffix != ".parquet"
    write(folder, path.relative_to(folder), [*rows, *added, *([7] if listed else [])])
    return Spoiled([f"{video.stem}_torn", f"{video.stem}_empty"], video.stem + ODD, asked is not None, listed)


def _add_to_object(path: Path, known: dict[str, Any], videos: list[Path]) -> Spoiled:
    """An object by video: the first is there twice, which a dict cannot hold."""
    name, value = next(iter(known.items()))
    video = next(v for v in videos if v.stem == name)
    for mark in ("_torn", "_empty", ODD):
        _video(video, mark)
        known[name + mark] = value
    known |= {"unasked": {"duration": 1.0}, "number": 7}
    text = json.dumps(known)
    path.write_text("{" + json.dumps(name) + ": " + json.dumps(value) + ", " + text[1:])
    return Spoiled([f"{name}_torn", f"{name}_empty"], name + ODD, True, True)


def _video(video: Path, mark: str) -> None:
    target = video.with_stem(video.stem + mark)
    shutil.copy(video, target)
    if mark != ODD:
        data = video.read_bytes()
        target.write_bytes(data[: len(data) // 3] if mark == "_torn" else b"")


def _renamed(row: dict[str, Any], mark: str) -> dict[str, Any]:
    """The row with other ids, where these are texts."""
    return row | {name: row[name] + mark for name in IDS if isinstance(row.get(name), str)}


def _read(path: Path) -> Any:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_table(path).to_pylist()
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
