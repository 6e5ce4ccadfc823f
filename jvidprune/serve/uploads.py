"""Uploaded files: they stay as long as the page, up to so many bytes in all; those unused for longest go first."""

import os
import threading
from pathlib import Path


class Uploads:
    """The folder that uploads go to.

    A file's time of modification is that of its last use.
    """

    def __init__(self, folder: Path, most: int):
        """Keeps the folder.

        Args:
          folder: of the files, at any depth; it need not be there yet.
          most: bytes that all of them may take.
        """
        self.folder = folder
        self._most = most
        self._fixed: frozenset[Path] = frozenset()
        self._lock = threading.Lock()

    def fix(self) -> None:
        """Never removes what is there now (the page's own files)."""
        self._fixed = frozenset(self._files())

    def used(self, path: str | os.PathLike[str]) -> None:
        """Says that a file is used now; nothing happens for one that is not of the folder."""
        if self.folder in Path(path).parents and Path(path).exists():
            os.utime(path)

    def make_room(self, coming: int) -> None:
        """Removes files until so many bytes more can come."""
        with self._lock:
            found = []
            for path in self._files() - self._fixed:
                try:
                    state = path.stat()
                except FileNotFoundError:
                    continue
                found.append((state.st_mtime_ns, path, state.st_size))
            over = sum(size for _, _, size in found) + coming - self._most
            for _, path, size in sorted(found):
                if over <= 0:
                    return
                path.unlink(missing_ok=True)
                over -= size

    def _files(self) -> set[Path]:
        return {path for path in self.folder.rglob("*") if path.is_file()}
