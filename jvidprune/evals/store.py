"""An append-only file of records, one JSON object a line, that survives being killed at any moment."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output, parse_json

Record = dict[str, Any]


class RecordStore:
    """Records by key in a JSONL file; what `append` returned from is on the disk.

    A process killed inside `append` can leave an unfinished last line. Opening the file again removes lines that are no
    JSON object, or there twice; whoever made them makes them again. Objects that are no whole records (of another
    version, or with a field lost) are passed over and stay. A record whose key is known is not written twice.
    """

    def __init__(
        self,
        path: Path,
        key: tuple[str, ...],
        whole: Callable[[Record], bool] | None = None,
        beside: Iterable[Path] = (),
    ):
        """Reads a file of records, which the first new record creates.

        Args:
          path: the file.
          key: fields that identify a record.
          whole: whether a record has all that its readers need; others are passed over.
          beside: files of other writers, whose records are known here and which are never changed.

        Raises:
          JvidpruneError: a file cannot be read or written.
        """
        self.path = path
        self._key = key
        self._whole = whole or (lambda record: True)
        self._records: dict[tuple[Any, ...], Record] = {}
        self._file: BinaryIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.dropped = self._repair()
            for other in beside:
                self._records = self._read(other) | self._records
        except OSError as error:
            raise _unusable(path, error) from error

    def key(self, record: Record) -> tuple[Any, ...]:
        """What identifies a record."""
        return tuple(record[name] for name in self._key)

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._records

    def get(self, key: tuple[Any, ...]) -> Record | None:
        """The record of a key, or None."""
        return self._records.get(key)

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> list[Record]:
        """All records in the order they were first written."""
        return list(self._records.values())

    def append(self, records: Iterable[Record]) -> None:
        """Writes the records that are new, in one write, and waits until the disk has them."""
        fresh = {self.key(record): record for record in records if self.key(record) not in self._records}
        if not fresh:
            return
        if self._file is None:
            try:
                self._file = self.path.open("ab")
            except OSError as error:
                raise _unusable(self.path, error) from error
        self._file.write(b"".join(json_line(record) for record in fresh.values()))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._records |= fresh

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _repair(self) -> int:
        """Removes lines of the file that are no JSON objects, or there twice; says how many."""
        if not self.path.exists():
            return 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        good = []
        for line in lines:
            record = _parse(line)
            if record is None:
                continue
            if not self.usable(record):
                good.append(line)
            elif self.key(record) not in self._records:
                self._records[self.key(record)] = record
                good.append(line)
        if len(good) < len(lines):
            with atomic_output(self.path) as part, part.open("wb") as file:
                file.writelines(good)
                file.flush()
                os.fsync(file.fileno())
        return len(lines) - len(good)

    def _read(self, path: Path) -> dict[tuple[Any, ...], Record]:
        """Whole records of a file that another process may be writing to, by their keys."""
        found: dict[tuple[Any, ...], Record] = {}
        for line in path.read_bytes().splitlines(keepends=True):
            record = _parse(line)
            if record is not None and self.usable(record):
                found.setdefault(self.key(record), record)
        return found

    def usable(self, record: Record) -> bool:
        """Whether an object is a whole record with a key."""
        fields = all(isinstance(record.get(name), str | int | float) for name in self._key)
        return fields and self._whole(record)


def _unusable(path: Path, error: OSError) -> JvidpruneError:
    return JvidpruneError(f"cannot keep records in {path}: {error.strerror}.")


def json_line(record: Record) -> bytes:
    """A record as it stands in a file."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def unusable_lines(path: Path, usable: Callable[[Record], bool]) -> list[bytes]:
    """The lines of a file that hold JSON objects which are no records here, e.g. those of an earlier version."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        record = _parse(line)
        if record is not None and not usable(record):
            found.append(line)
    return found


def _parse(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
