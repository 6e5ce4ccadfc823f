"""Rows of annotation files: parquet, JSON, JSON lines and CSV, whole or in shards; bad ones are listed, not fatal."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.evals.datasets.entry import Entry
from jvidprune.evals.items import LeftOut
from jvidprune.extras import need
from jvidprune.files import Pairs, parse_json

Row = dict[str, Any]
_READABLE = (".parquet", ".json", ".jsonl", ".csv")
_WRONG = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What a field of another type than the benchmark's own files have ends in."""


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


def find_parts(folder: Path, parts: Mapping[str, Sequence[str]]) -> list[tuple[str, list[Path]]]:
    """Annotation files of the parts of a benchmark that are there, as `find_files` has them.

    Args:
      folder: the local copy.
      parts: name -> globs.

    Raises:
      JvidpruneError: no folder, or nothing of any part.
    """
    found, absent = [], []
    for name, patterns in parts.items():
        try:
            found.append((name, find_files(folder, *patterns)))
        except JvidpruneError as error:
            absent.append(error)
    if not found:
        raise absent[0]
    return found


def each_row(
    path: Path, make: Callable[[int, Row], Iterable[Entry | LeftOut]], *columns: str, key: str | None = None
) -> Iterator[Entry | LeftOut]:
    """What is made of every row of a file; rows that are none, and those that nothing can be made of, are left out.

    Args:
      path: annotation file.
      make: number and row to entries; a ValueError or its like says what is wrong with the row.
      *columns: that every row has.
      key: of the list of rows in a JSON object, where they are not the whole file.

    Raises:
      JvidpruneError: parquet without pyarrow.
    """
    try:
        rows = read_rows(path, key)
    except _Unreadable as error:
        yield LeftOut(path.name, str(path), str(error))
        return
    for number, row in enumerate(rows):
        if isinstance(row, LeftOut):
            yield row
        else:
            yield from attempt(path, f"row {number}", lambda row=row, number=number: _made(number, row, make, columns))


def attempt(path: Path, place: str, make: Callable[[], Iterable[Entry | LeftOut]]) -> Iterator[Entry | LeftOut]:
    """What is made of a place of a file, or why it is left out.

    Args:
      path: annotation file.
      place: where in it, e.g. "row 3".
      make: whose ValueErrors and the like say what is wrong.
    """
    try:
        made = list(make())
    except _WRONG as error:
        why = reason(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {reason(error)}"
        yield LeftOut(place, str(path), f"{place} of {path} {_verb(why)}.")
    else:
        yield from made


def _verb(why: str) -> str:
    return why if why.startswith("has no ") else f"cannot be asked: {why}"


def _made(
    number: int, row: Row, make: Callable[[int, Row], Iterable[Entry | LeftOut]], columns: Sequence[str]
) -> Iterable[Entry | LeftOut]:
    if lacking := [name for name in columns if row.get(name) is None]:
        raise ValueError(f"has no {', '.join(lacking)}; its columns are {quoted(', '.join(map(str, row)), 200)}")
    return make(number, row)


class _Unreadable(JvidpruneError):
    """A file that holds no rows."""


def read_rows(path: Path, key: str | None = None) -> list[Row | LeftOut]:
    """The rows of one file; a JSON file is a list of objects, or one object whose values are (by their keys) rows.

    Lines of JSON lines and members of lists that are no objects are there as what is wrong with them.

    Args:
      path: annotation file.
      key: of the list of rows in a JSON object, where they are not the whole file.

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
            return [_line(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        value = parse_json(text, pairs=True)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, JvidpruneError):
            raise
        raise _Unreadable(f"cannot read the annotations {path}: {reason(error)}.") from error
    if key is not None and isinstance(value, dict):
        value = value.get(key)
    elif isinstance(value, Pairs):
        value = [row if isinstance(row, dict) else {"value": row} for _, row in value.pairs]
    if not isinstance(value, list):
        where = "" if key is None else f" under {key!r}"
        raise _Unreadable(f"cannot read the annotations {path}: they must be a list of objects{where}.")
    return [
        row if isinstance(row, dict) else _no_object(path, f"row {number}", row) for number, row in enumerate(value)
    ]


def read_object(path: Path) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON file that is one object; a file that is none gives what is wrong with it instead.

    Args:
      path: annotation file.

    Returns:
      (key, value), also of keys that are there twice; or one pair of the file's name and a `LeftOut`.
    """
    try:
        value = parse_json(path.read_text(encoding="utf8"), pairs=True)
        if not isinstance(value, Pairs):
            raise ValueError("it must be one object")
    except (OSError, ValueError) as error:
        yield path.name, LeftOut(path.name, str(path), f"cannot read the annotations {path}: {reason(error)}.")
    else:
        yield from value.pairs


def _line(path: Path, number: int, line: str) -> Row | LeftOut:
    try:
        value = parse_json(line)
    except ValueError as error:
        return LeftOut(f"line {number}", str(path), f"line {number} of {path} is no JSON: {reason(error)}.")
    return value if isinstance(value, dict) else _no_object(path, f"line {number}", value)


def _no_object(path: Path, place: str, value: Any) -> LeftOut:
    return LeftOut(place, str(path), f"{place} of {path} is no object, but {quoted(value)}.")


def _read_parquet(path: Path) -> list[Any]:
    need(f"reading {path}", "pyarrow")
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise _Unreadable(f"cannot read the annotations {path}: {reason(error)}.") from error
