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

from jvidprune.bench.store import Record, json_line
from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output

GRACE = 60.0
"""Seconds that the first process waits, when its own clips are done, for others that are not there."""


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
def only_writer(folder: Path, host: Host = ALONE) -> Iterator[None]:
    """Holds a folder for one process, or for one host beside the others; locks go with the process, however it ends.

    Raises:
      JvidpruneError: another process holds it, or the folder cannot be written to.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        kind = fcntl.LOCK_EX if host.of == 1 else fcntl.LOCK_SH
        with contextlib.ExitStack() as held:
            names = [(".lock", kind)] + ([] if host.of == 1 else [(f".lock{host.mark}", fcntl.LOCK_EX)])
            for name, wanted in names:
                handle = held.enter_context((folder / name).open("a+"))
                try:
                    fcntl.flock(handle, wanted | fcntl.LOCK_NB)
                except BlockingIOError:
                    what = "sweep" if host.of == 1 or name == ".lock" else f"host {host.number} of {host.of}"
                    raise JvidpruneError(
                        f"another {what} is writing to {folder}; wait for it or choose --out."
                    ) from None
            yield
    except OSError as error:
        raise JvidpruneError(f"cannot write to {folder}: {error.strerror}.") from error


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other process reads all records or joins them."""
    import fcntl

    with (folder / ".lock.join").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_running(folder: Path, host: Host) -> bool:
    """Whether a process holds the place of a host."""
    import fcntl

    path = folder / f".lock{host.mark}"
    if not path.exists():
        return False
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


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


def join(folder: Path, name: str, records: Sequence[Record], parts: Iterable[Path]) -> None:
    """Writes all records of a kind into the file of a single process and removes the parts.

    Killed at any moment it loses nothing: a record that is in a part and in the file counts once.
    """
    target = folder / f"{name}.jsonl"
    with atomic_output(target) as part, part.open("wb") as file:
        file.writelines(json_line(record) for record in records)
        file.flush()
        os.fsync(file.fileno())
    for path in parts:
        path.unlink(missing_ok=True)
