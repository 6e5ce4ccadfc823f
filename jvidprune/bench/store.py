"""An append-only file of records, one JSON object a line, that survives being killed at any moment."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output, parse_json

Record = dict[str, Any]


class RecordStore:
    """Records by key in a JSONL file; what `append` returned from is on the disk.

    A process killed inside `append` can leave an unfinished last line. Opening the file again drops lines that are no
    whole record; whoever made them makes them again. A record whose key is known already is not written twice.
    """

    def __init__(self, path: Path, key: tuple[str, ...], whole: Callable[[Record], bool] | None = None):
        """Opens or creates a file of records.

        Args:
          path: the file.
          key: fields that identify a record.
          whole: whether a record has all that its readers need; others are dropped like unfinished lines.

        Raises:
          JvidpruneError: the file cannot be read or written.
        """
        self.path = path
        self._key = key
        self._whole = whole or (lambda record: True)
        self._records: dict[tuple[Any, ...], Record] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.dropped = self._repair()
            self._file = path.open("ab")
        except OSError as error:
            raise JvidpruneError(f"cannot keep records in {path}: {error.strerror}.") from error

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
        self._file.write(b"".join(_line(record) for record in fresh.values()))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._records |= fresh

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _repair(self) -> int:
        if not self.path.exists():
            return 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        good = []
        for line in lines:
            record = _parse(line, self._key)
            if record is not None and self._whole(record) and self.key(record) not in self._records:
                self._records[self.key(record)] = record
                good.append(line)
        if len(good) < len(lines):
            with atomic_output(self.path) as part, part.open("wb") as file:
                file.writelines(good)
                file.flush()
                os.fsync(file.fileno())
        return len(lines) - len(good)


def _line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes, key: tuple[str, ...]) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = parse_json(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and all(isinstance(record.get(name), str | int | float) for name in key)
    return record if whole else None


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds a folder for one process; the lock goes with the process, however it ends.

    Raises:
      JvidpruneError: another process holds it, or the folder cannot be written to.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JvidpruneError(f"another sweep is writing to {folder}; wait for it or choose --out.") from None
            yield
    except OSError as error:
        raise JvidpruneError(f"cannot write to {folder}: {error.strerror}.") from error
