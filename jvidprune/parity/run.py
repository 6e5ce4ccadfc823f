"""Reports of a folder: golden method files, or a tiny checkpoint with its io files."""

from collections.abc import Iterator
from pathlib import Path

from jvidprune.errors import JvidpruneError
from jvidprune.parity.core import FileReport, run_folder


def reports(folder: Path, *, model: bool = False) -> Iterator[FileReport]:
    """Yields one report a file, as each is done.

    Args:
      folder: golden files, or with `model` a checkpoint folder holding io*.npz.
      model: which of the two.

    Raises:
      JvidpruneError: no such folder, or nothing in it to compare.
    """
    if not folder.is_dir():
        raise JvidpruneError(f"no folder {folder}.")
    if model:
        from jvidprune.parity.models import compare_model_folder

        yield from compare_model_folder(folder)
        return
    from jvidprune.parity.registry import comparers

    yield from run_folder(folder, comparers())
