"""Files that come from anywhere, and outputs that appear whole or not at all."""

import contextlib
import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, quoted, reason


@contextlib.contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` with the same suffix; renamed onto it if the body succeeds, removed if not.

    Raises:
      JvidpruneError: the folder cannot be created or written to, or `path` is a folder.
    """
    target = Path(path)
    part = _reserved(target)
    # mkstemp files are private; the result should carry the permissions a plain open() would give.
    umask = os.umask(0)
    os.umask(umask)
    part.chmod(0o666 & ~umask)
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuses what `atomic_output` would refuse, for callers that compute long before they write; nothing stays behind.

    Raises:
      JvidpruneError: as there.
    """
    target = Path(path)
    try:
        with _folders_gone_again(target.absolute().parent):
            _reserved(target).unlink()
    except JvidpruneError:
        raise
    except (OSError, ValueError) as error:
        raise JvidpruneError(f"cannot write {quoted(str(target), 300)}: {reason(error)}.") from error


@contextlib.contextmanager
def _folders_gone_again(folder: Path) -> Iterator[None]:
    """Removes those of a folder and the ones above it that the body makes."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    finally:
        for place in new:
            with contextlib.suppress(OSError):
                place.rmdir()


def _reserved(target: Path) -> Path:
    """An empty file beside the target."""
    if target.is_dir():
        raise JvidpruneError(f"cannot write {target}: it is a folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise JvidpruneError(f"cannot write {target}: {error.strerror}.") from error
    os.close(handle)
    return Path(name)


_WHOLE, _BLOCK, _BLOCKS = 1 << 20, 1 << 16, 16


def content_mark(path: Path) -> str:
    """What a file or a folder of files holds, in sixteen hexadecimal digits; where it lies does not matter.

    Files up to 1 MiB are hashed whole, of larger ones the size and sixteen blocks of 64 KiB from the first to the last.
    A file that is not there or cannot be read has a mark of its own, too.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(part for part in path.iterdir() if part.is_file()) if path.is_dir() else [path]
        for part in files:
            with part.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{part.name if part is not path else ''}:{size}:".encode())
                if size <= _WHOLE:
                    digest.update(file.read())
                for block in range(_BLOCKS if size > _WHOLE else 0):
                    file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
    except (OSError, ValueError) as error:
        return f"no file: {reason(error)}"
    return digest.hexdigest()[:16]


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made with those above it where it is not there.

    Raises:
      JvidpruneError: it cannot be made, is a file, or cannot be written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise JvidpruneError(f"cannot make the folder {quoted(str(folder), 300)}: a file is in its way.") from None
    except (OSError, ValueError) as error:
        raise JvidpruneError(f"cannot make the folder {quoted(str(folder), 300)}: {reason(error)}.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise JvidpruneError(f"cannot write to the folder {quoted(str(folder), 300)}: permission denied.")
    return folder


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuses a folder that cannot be made, before the work for what goes into it; nothing stays behind.

    Raises:
      JvidpruneError: as `make_folder`.
    """
    folder = Path(path).absolute()
    try:
        with _folders_gone_again(folder):
            make_folder(folder)
    except JvidpruneError:
        raise
    except (OSError, ValueError) as error:
        raise JvidpruneError(f"cannot make the folder {quoted(str(folder), 300)}: {reason(error)}.") from error


class Pairs(dict[str, Any]):
    """A JSON object that remembers all of its members: a name that is there twice has one value in a dict."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        """Of the members in the order of the text."""
        super().__init__(pairs)
        self.pairs = pairs


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")


def parse_json(text: str | bytes, *, pairs: bool = False, finite: bool = False) -> Any:
    """A JSON value.

    Args:
      text: of it.
      pairs: objects are `Pairs`.
      finite: NaN and infinities, which Python writes though JSON has none, are refused.

    Raises:
      ValueError: no JSON, no UTF-8, a number of thousands of digits, or brackets nested deeper than Python follows; the
        text of the error is one line.
    """
    try:
        constants = _no_constant if finite else None
        return json.loads(text, object_pairs_hook=Pairs if pairs else None, parse_constant=constants)
    except RecursionError:
        # From here the error must not carry the deep traceback along.
        raise ValueError("its brackets are nested too deep") from None


def load_json(path: Path, *, finite: bool = False) -> Any:
    """The JSON value of a UTF-8 file.

    Args:
      path: of it.
      finite: as for `parse_json`.

    Raises:
      JvidpruneError: the file cannot be read, or holds no JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"), finite=finite)
    except (OSError, ValueError) as error:
        raise JvidpruneError(f"{path} is no readable JSON file: {reason(error)}.") from error


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], digits: int = 4) -> None:
    """A CSV file with the union of the rows' columns, floats with so many significant digits; it appears whole."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{x:.{digits}g}" if isinstance(x, float) else x for name, x in row.items()})
    os.replace(part, path)
