"""Rows of annotation files: parquet, JSON, JSON lines and CSV, whole or in shards."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.files import parse_json

Row = dict[str, Any]
_READABLE = (".parquet", ".json", ".jsonl", ".csv")


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """Annotation files of a data folder: those of the first pattern that matches any, at any depth, sorted.

    Args:
      folder: the local copy.
      *patterns: globs such as "*test*.parquet", tried in order.

    Raises:
      JvidpruneError: no folder, or nothing matches.
    """
    if not folder.is_dir():
        raise JvidpruneError(f"no folder {folder} with a benchmark's files.")
    for pattern in patterns:
        found = sorted(path for path in folder.rglob(pattern) if path.suffix in _READABLE)
        if found:
            return found
    raise JvidpruneError(f"no annotations in {folder}: expected {' or '.join(patterns)}.")


def read_rows(path: Path) -> list[Row]:
    """The rows of one file; a JSON file is a list of objects, or one object whose values are (by their keys) rows.

    Raises:
      JvidpruneError: an unreadable file, or parquet without pyarrow.
    """
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf8") as file:
                return list(csv.DictReader(file))
        text = path.read_text(encoding="utf8")
        if path.suffix == ".jsonl":
            value = [parse_json(line) for line in text.splitlines() if line.strip()]
        else:
            value = parse_json(text)
    except (OSError, ValueError, csv.Error) as error:
        raise JvidpruneError(f"cannot read the annotations {path}: {reason(error)}.") from error
    if isinstance(value, dict):
        value = [row if isinstance(row, dict) else {"value": row} for row in value.values()]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise JvidpruneError(f"cannot read the annotations {path}: they must be a list of objects.")
    return value


def require(rows: Iterable[Row], path: Path, *columns: str) -> Iterator[Row]:
    """The rows, each checked to have the columns.

    Raises:
      JvidpruneError: a row without one of them; the sentence names those it has.
    """
    for number, row in enumerate(rows):
        if missing := [name for name in columns if row.get(name) is None]:
            has = quoted(", ".join(map(str, row)), 500)
            raise JvidpruneError(f"row {number} of {path} has no {', '.join(missing)}; its columns are {has}.")
        yield row


def _read_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise JvidpruneError(f"reading {path} needs pyarrow: pip install 'jvidprune[eval]'.") from None
    try:
        return parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise JvidpruneError(f"cannot read the annotations {path}: {reason(error)}.") from error
