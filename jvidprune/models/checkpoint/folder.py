"""Checkpoint folders: which safetensors file holds which tensor, and slices of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.files import load_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
UNTRAINED_MARK = "untrained"
"""A file of this name in a checkpoint folder says that its weights are random."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FLOATS = ("F64", "F32", "F16", "BF16")
_TYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    **{f"{sign}{8 * size}": f"{sign.lower()}{size}" for sign in "IU" for size in (1, 2, 4, 8)},
}
"""numpy types by their names in safetensors files."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      JvidpruneError: no such file, no JSON, or no object.
    """
    if not path.exists():
        raise JvidpruneError(f"{path.parent} has no {path.name}.")
    value = load_json(path)
    if not isinstance(value, dict):
        raise JvidpruneError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    return value


_WRAPPERS = re.compile(
    r"^(?:(?:module|base_model\.model|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
    r"|(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def unwrapped(name: str) -> str:
    """The name of a tensor without what training wrappers put before it.

    DataParallel and DeepSpeed write `module.`, torch.compile `_orig_mod.`, PEFT `base_model.model.`, FSDP and
    activation checkpointing their own, in any order; compiled or checkpointed parts carry theirs inside the name.
    """
    return _WRAPPERS.sub("", name)


class Part(NamedTuple):
    """Rows [start, stop) of a stored tensor."""

    file: str
    stored: str
    start: int
    stop: int


class Checkpoint:
    """The tensors of a folder under their canonical names; files are memory-mapped and opened once.

    Args:
      folder: with `model.safetensors`, or shards and `model.safetensors.index.json`.
      canonical: stored name without wrappers (`unwrapped`) -> canonical name, or None for tensors to ignore.

    Raises:
      JvidpruneError: pickles only, no weights, a missing or truncated file, an index that leaves the folder, or two
        tensors that are the same under the canonical names.
    """

    def __init__(self, folder: Path, canonical: Callable[[str], str | None]):
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._where: dict[str, tuple[str, str]] = {}
        self._made: dict[str, tuple[Part, ...]] = {}
        for stored, file in self._weight_map().items():
            name = canonical(unwrapped(stored))
            if name is None:
                continue
            if name in self._where:
                raise JvidpruneError(
                    f"{folder}: tensors {quoted(self._where[name][1])} and {quoted(stored)} both mean one."
                )
            self._where[name] = (file, stored)

    @property
    def names(self) -> frozenset[str]:
        """Canonical names of all tensors."""
        return frozenset(self._where) | self._made.keys()

    def split(self, name: str, parts: Sequence[tuple[str, int]]) -> None:
        """Takes a tensor apart: its rows become tensors of their own, and it is no longer there itself.

        Args:
          name: canonical name.
          parts: (canonical name, rows) in the order of the rows.

        Raises:
          JvidpruneError: the rows do not add up, or a part is stored by itself too.
        """
        rows, (file, stored) = self.shape(name)[0], self._where[name]
        if sum(count for _, count in parts) != rows:
            counts = " + ".join(str(count) for _, count in parts)
            raise JvidpruneError(f"{self.folder}: {stored} has {rows} rows instead of {counts}.")
        start = 0
        for part, count in parts:
            self._make(part, (Part(file, stored, start, start + count),))
            start += count
        del self._where[name]

    def join(self, name: str, sources: Sequence[str]) -> None:
        """Puts tensors below each other as one, in place of themselves.

        Raises:
          JvidpruneError: their rows differ in shape, or the whole is stored by itself too.
        """
        shapes = [self.shape(source) for source in sources]
        if len({shape[1:] for shape in shapes}) > 1:
            listed = ", ".join(f"{self.stored(source)} {self.shape(source)}" for source in sources)
            raise JvidpruneError(f"{self.folder}: tensors that belong together have different rows: {listed}.")
        parts = [Part(*self._where[source], 0, shape[0]) for source, shape in zip(sources, shapes, strict=True)]
        self._make(name, tuple(parts))
        for source in sources:
            del self._where[source]

    def _make(self, name: str, parts: tuple[Part, ...]) -> None:
        if name in self.names:
            raise JvidpruneError(f"{self.folder}: {self.stored(name)} and {parts[0].stored} both hold {name}.")
        self._made[name] = parts

    @property
    def listed(self) -> tuple[str, ...]:
        """The same in the order of the files."""
        return tuple(self._where)

    def add(self, other: "Checkpoint", pattern: str) -> None:
        """Takes over the tensors of another folder whose canonical names match, in place of our own."""
        for name, (file, stored) in other._where.items():
            if re.fullmatch(pattern, name):
                self._where[name] = (str((other.folder / file).resolve()), stored)

    def stored(self, name: str) -> str:
        """The name in the file; of a joined tensor that of its first part."""
        return self._made[name][0].stored if name in self._made else self._where[name][1]

    def shape(self, name: str) -> tuple[int, ...]:
        """Stored shape; that of the whole, or of the part, where tensors were joined or split."""
        parts = self._parts(name)
        stored = tuple(self._slice(parts[0]).get_shape())
        return (sum(part.stop - part.start for part in parts), *stored[1:]) if name in self._made else stored

    def dtype(self, name: str) -> np.dtype:
        """Stored type; bfloat16 as that of ml_dtypes.

        Raises:
          JvidpruneError: a type that numpy has no name for.
        """
        kind = self._slice(self._parts(name)[0]).get_dtype()
        if kind not in _TYPES:
            raise JvidpruneError(f"{self.stored(name)} is stored as {kind}, which cannot be read.")
        return np.dtype(_TYPES[kind])

    def is_float(self, name: str) -> bool:
        """Whether the tensor is stored as ordinary floating-point numbers."""
        return all(self._slice(part).get_dtype() in _FLOATS for part in self._parts(name))

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """One slice of a tensor; bf16 comes as an ml_dtypes array."""
        if name not in self._made:
            return self._slice(self._parts(name)[0])[index]
        start, stop, _ = index[0].indices(self.shape(name)[0])
        pieces, at = [], 0
        for part in self._made[name]:
            size = part.stop - part.start
            low, high = max(start - at, 0), min(stop - at, size)
            if low < high:
                rows = slice(part.start + low, part.start + high)
                pieces.append(self._slice(part)[(rows, *index[1:])])
            at += size
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _parts(self, name: str) -> tuple[Part, ...]:
        return self._made[name] if name in self._made else (Part(*self._where[name], 0, 0),)

    def _slice(self, part: Part) -> Any:
        return self._open(part.file).get_slice(part.stored)

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._files:
            path = self.folder / file
            try:
                self._files[file] = safe_open(path, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise JvidpruneError(f"{path} is truncated or no safetensors file: {reason(error)}.") from error
        return self._files[file]

    def _weight_map(self) -> Mapping[str, str]:
        if (self.folder / SINGLE).exists():
            return dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        if not (self.folder / INDEX).exists():
            raise JvidpruneError(self._no_weights())
        table = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
            raise JvidpruneError(f"{self.folder / INDEX} has no weight_map from tensor names to file names.")
        files = sorted(set(table.values()))
        for file in files:
            check_inside(file, self.folder / INDEX)
        if missing := [file for file in files if not (self.folder / file).exists()]:
            raise JvidpruneError(
                f"{self.folder} lacks {len(missing)} of {len(files)} shards: {quoted(', '.join(missing), 500)}."
            )
        held = {file: set(self._open(file).keys()) for file in files}
        if absent := sorted(name for name, file in table.items() if name not in held[file]):
            names = quoted(", ".join(absent), 500)
            raise JvidpruneError(f"{self.folder / INDEX} lists {len(absent)} tensors that its files lack: {names}.")
        return table | {name: file for file, names in held.items() for name in names if name not in table}

    def _no_weights(self) -> str:
        pickles = sorted(path.name for path in self.folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            names = quoted(", ".join(pickles), 200)
            return f"{self.folder} holds pickle weights ({names}), which are refused; convert to safetensors."
        loose = sorted(path.name for path in self.folder.glob("*.safetensors"))
        hint = f" ({', '.join(loose)} without an index)" if loose else ""
        return f"{self.folder} has neither {SINGLE} nor {INDEX}{hint}."


def check_inside(file: str, index: Path) -> None:
    """JvidpruneError unless an index entry names a safetensors file inside the folder.

    The check is on the name alone: the hub's own cache is a folder of links to files elsewhere.
    """
    path = PurePosixPath(file)
    if not file or path.is_absolute() or ".." in path.parts or "\\" in file or ":" in file:
        raise JvidpruneError(f"{index} names {quoted(repr(file))}, which is outside the folder.")
    if path.suffix in _PICKLES:
        raise JvidpruneError(f"{index} names {quoted(repr(file))}; pickle weights are refused, convert to safetensors.")
    if path.suffix != ".safetensors":
        raise JvidpruneError(f"{index} names {quoted(repr(file))}, which is no safetensors file.")
