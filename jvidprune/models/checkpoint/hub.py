"""Where a checkpoint lies: a local folder, or a hub id whose small files are read before its weights are fetched."""

import re
from collections.abc import Callable
from pathlib import Path

from jvidprune.errors import JvidpruneError, reason

_SMALL = ("*.json", "*.txt", "*.jinja", "*.model")
"""Configuration, tokenizer and index files."""
_WEIGHTS = ("*.safetensors",)


def resolve_folder(
    source: str | Path,
    revision: str | None = None,
    *,
    weights: bool = True,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """The folder of a checkpoint: a local one, or a hub id fetched through huggingface_hub (no pickles).

    Args:
      source: folder or hub id.
      revision: branch, tag or commit of a hub id.
      weights: whether the weights are wanted too; without them only small files of a hub id are fetched.
      check: called with the folder before any weights are fetched; what it raises ends the call.

    Raises:
      JvidpruneError: neither a folder nor a hub id, a revision of a local folder, a failed download, or a hub id
        without safetensors.
    """
    folder, text = Path(source).expanduser(), str(source)
    if folder.is_dir():
        if revision is not None:
            raise JvidpruneError(f"{text} is a local folder; a revision, here {revision!r}, is one of a hub id.")
        if check is not None:
            check(folder)
        return folder
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or text.endswith("/"):
        raise JvidpruneError(f"{text} is neither a folder nor a hub id of the form owner/name.")
    folder = _fetch(text, revision, _SMALL)
    if check is not None:
        check(folder)
    if not weights:
        return folder
    # A snapshot is named by its commit: what was checked is what is loaded, even if the branch moves in between.
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    folder = _fetch(text, commit, (*_WEIGHTS, *_SMALL))
    if not any(folder.glob("*.safetensors")):
        raise JvidpruneError(
            f"{text} has no safetensors files on the hub, or it cannot be reached to fetch them; pickles such as "
            "pytorch_model.bin are never fetched: convert them and load the local folder."
        )
    return folder


def _fetch(source: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        raise JvidpruneError(
            f"{source} is no local folder and could not be fetched from the hub: {reason(error)}."
        ) from error
