"""Several processes run one sweep: whose clips are whose, what keeps them apart, and how their records become one file.

Clips go round by number, so that every process knows its own without asking. Each writes records into files of its own;
what the others have written is read and never changed. Whoever sees that nothing is missing writes all records into
the files of a single process, in its order, and removes the parts.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from jvidprune.errors import JvidpruneError, TransientError, reason
from jvidprune.evals.store import Record, json_line
from jvidprune.files import atomic_output

GRACE = 60.0
"""Seconds that the first process waits, when its own clips are done, for others that are not there."""

PATIENCE = 2.0
"""Seconds that a writer waits for a lock: one that is only asked about (`is_running`) is free again at once."""


@dataclasses.dataclass(frozen=True)
class Host:
    """One of several processes of a sweep.

    Attributes:
      number: which one.
      of: how many there are.
    """

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise JvidpruneError(f"hosts of a sweep are numbered 0 to {self.of - 1}, got {self.number}.")

    def clips(self, count: int) -> range:
        """Numbers of the clips that this process runs."""
        return range(self.number, count, self.of)

    @property
    def mark(self) -> str:
        """What its files have in their names; nothing if it is alone."""
        return "" if self.of == 1 else f".{self.number}-of-{self.of}"

    def others(self) -> list["Host"]:
        """The other processes."""
        return [Host(number, self.of) for number in range(self.of) if number != self.number]


ALONE = Host()
"""A process that runs everything."""


def record_files(folder: Path, name: str) -> list[Path]:
    """Files that hold records of a kind ("samples"): that of a single process first, then parts."""
    return [path for path in [folder / f"{name}.jsonl", *part_files(folder, name)] if path.exists()]


def part_files(folder: Path, name: str) -> list[Path]:
    """Files of processes that are not alone, of any number of them."""
    return sorted(folder.glob(f"{name}.*-of-*.jsonl"))


@contextlib.contextmanager
def only_writer(folder: Path, host: Host = ALONE, *, patience: float = PATIENCE) -> Iterator[None]:
    """Holds a folder for one process, or for one host beside the others; locks go with the process, however it ends.

    Args:
      folder: made if it is not there.
      host: which of several processes this is.
      patience: seconds to wait for each lock.

    Raises:
      TransientError: another process holds it.
      JvidpruneError: the folder cannot be written to. Errors of the body go through as they are.
    """
    import fcntl

    wanted = [(".lock", fcntl.LOCK_EX if host.of == 1 else fcntl.LOCK_SH, "")]
    if host.of > 1:
        wanted.append((f".lock{host.mark}", fcntl.LOCK_EX, f" as host {host.number} of {host.of}"))
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, kind, place in wanted:
                handle = held.enter_context((folder / name).open("a+"))
                if not _locked(handle, kind, patience):
                    raise TransientError(
                        f"another process is writing to {folder}{place}; wait for it to end or choose another folder."
                    )
        except OSError as error:
            raise JvidpruneError(f"cannot write to {folder}: {reason(error)}.") from error
        yield


def _locked(handle: IO[str], kind: int, patience: float) -> bool:
    """Locks an open file; False if it is still held otherwise after so many seconds."""
    import fcntl

    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other process reads all records or joins them."""
    import fcntl

    with (folder / ".lock.join").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_running(folder: Path, host: Host) -> bool:
    """Whether a process holds the place of a host; the place is taken for a moment to find out."""
    import fcntl

    path = folder / f".lock{host.mark}"
    if not path.exists():
        return False
    with path.open("a+") as handle:
        return not _locked(handle, fcntl.LOCK_EX, 0.0)


def wait_for_others(folder: Path, host: Host, complete: Callable[[], bool], grace: float) -> bool:
    """Keeps the first process there while others run: JAX ends all when the process goes that they report to.

    Args:
      folder: of the run.
      host: this process; only the first of several waits.
      complete: whether nothing is missing any more.
      grace: seconds to wait for hosts that are not there, e.g. because they are being started again.

    Returns:
      Whether nothing is missing.
    """
    last = time.monotonic()
    while not complete():
        if host.number or host.of == 1:
            return False
        if any(is_running(folder, other) for other in host.others()):
            last = time.monotonic()
        if time.monotonic() - last > grace:
            return False
        time.sleep(1.0)
    return True


def join(folder: Path, name: str, records: Sequence[Record], parts: Sequence[Path], others: Iterable[bytes]) -> None:
    """Writes all records of a kind into the file of a single process and removes the parts.

    Killed at any moment it loses nothing: a record that is in a part and in the file counts once.

    Args:
      folder: of the run.
      name: of the kind, e.g. "samples".
      records: all that are known, in order.
      parts: files of processes that are not alone.
      others: lines that are no records here, which stay as they are.
    """
    target = folder / f"{name}.jsonl"
    with atomic_output(target) as part, part.open("wb") as file:
        file.writelines(others)
        file.writelines(json_line(record) for record in records)
        file.flush()
        os.fsync(file.fileno())
    for path in parts:
        path.unlink(missing_ok=True)
