"""A loaded model back to a checkpoint folder that other tools read: safetensors under the names it came with."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.dtypes import DTypeName
from jvidprune.models.checkpoint.folder import INDEX, SINGLE, UNTRAINED_MARK, Checkpoint, read_json, unwrapped
from jvidprune.models.checkpoint.hub import resolve_folder
from jvidprune.models.checkpoint.load import LoadedModel, check_supported, described, name_table
from jvidprune.models.checkpoint.names import Binding, NameTable, bind, group_layers
from jvidprune.models.quantised import refuse_quantised

SHARD_BYTES = 5_000_000_000
"""Largest file of an export, as transformers cuts them (5 GB); a single tensor may be larger."""

_COPIED = (".json", ".txt", ".jinja", ".model", ".md")
_COPIED_NAMES = ("LICENSE", UNTRAINED_MARK, "stts.safetensors")


class _Piece(NamedTuple):
    """Rows of a source tensor of a parameter, with the stored shape of the whole of them."""

    binding: Binding
    number: int
    shape: tuple[int, ...]
    rows: slice


class _Entry(NamedTuple):
    """A tensor to write: its name and where it comes from, parameters or the folder the model was loaded from.

    Pieces stand below each other: some checkpoints store for several parameters in one tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    pieces: tuple[_Piece, ...]
    canonical: str

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * jnp.dtype(self.dtype).itemsize


def exact_dtype(source: str | Path, revision: str | None = None) -> Any:
    """The type that holds every parameter of a checkpoint as it is stored: to load it with before an export.

    float16 or bfloat16 where all tensors are stored so, else float32.

    Raises:
      JvidpruneError: no checkpoint, or 64-bit tensors, which nothing here holds.
    """
    folder = resolve_folder(source, revision, check=lambda folder: check_supported(folder, source))
    family, config = described(read_json(folder / "config.json"))
    checkpoint = Checkpoint(folder, name_table(family, config).canonical)
    kinds = {checkpoint.dtype(name).name for name in checkpoint.names if checkpoint.is_float(name)}
    if "float64" in kinds:
        raise JvidpruneError(f"{folder} stores 64-bit tensors, which would lose digits.")
    return jnp.dtype(kinds.pop() if len(kinds) == 1 else "float32")


def export_model(
    loaded: LoadedModel,
    out: str | Path,
    *,
    dtype: DTypeName | None = None,
    extra: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a model's parameters as a checkpoint folder; a folder appears whole or not at all.

    A tensor gets the name and type it has in the folder that the model came from. What that folder holds besides the
    parameters (blocks that never run, buffers) is copied, so that an unchanged model gives the same tensors, byte by
    byte; parameters that it lacks (a pooling head taken from elsewhere, a scorer) are added under their published
    names. Configuration, tokenizer and preprocessor files are copied, and what lies beside the weights (STTS's scorer).

    Args:
      loaded: the model; its folder must still be there.
      out: folder to create.
      dtype: store all floating-point tensors so; None keeps the type each tensor has.
      extra: further text files by name, in place of those of the source.
      shard_bytes: above this, tensors are spread over several files with an index.

    Raises:
      JvidpruneError: `out` exists and is not empty, cannot be written to, or a parameter would lose digits: it was
        loaded with a narrower type than the one it is stored in, or quantised.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise JvidpruneError(f"cannot export to {target}: it exists and is not empty.")
    if shard_bytes < 1:
        raise JvidpruneError(f"a file holds at least 1 byte, got {shard_bytes}.")
    refuse_quantised(loaded.config, "an export")
    table = name_table(loaded.family, loaded.config)
    source = Checkpoint(loaded.folder, table.canonical)
    model = loaded.model.base
    values = {".".join(map(str, path)): x[...] for path, x in nnx.to_flat_state(nnx.state(model))}
    entries = list(_entries(loaded, table, source, values, dtype))
    texts = dict(extra or {})
    if dtype is not None:
        texts.setdefault("config.json", _retyped(loaded.folder, dtype))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise JvidpruneError(f"cannot write {target}: {error.strerror}.") from error
    try:
        _write_tensors(part, entries, values, source, shard_bytes)
        _copy_files(loaded.folder, part, texts)
        part.chmod(0o755)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except OSError as error:
        raise JvidpruneError(f"cannot write {target}: {error.strerror}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _entries(
    loaded: LoadedModel, table: NameTable, source: Checkpoint, values: Mapping[str, Any], dtype: DTypeName | None
) -> Iterator[_Entry]:
    """What is written, in the order of the source's tensors, added ones behind them."""
    bindings = bind({path: value.shape for path, value in values.items()}, table)
    made = {name: (binding, number) for binding in bindings for number, name in enumerate(binding.sources)}
    lossy, written = [], set()
    for name in source.listed:
        stored, shape = source.dtype(name), source.shape(name)
        parts = table.pieces(name, source)
        if not all(part in made for part, _ in parts):
            kept = jnp.dtype(dtype) if dtype and source.is_float(name) else stored
            yield _Entry(unwrapped(source.stored(name)), shape, kept, (), name)
            continue
        pieces = []
        for part, rows in parts:
            whole = shape if part == name else (rows.stop - rows.start, *shape[1:])
            pieces.append(_Piece(*made[part], whole, rows))
            written.add(part)
        held = jnp.dtype(values[pieces[0].binding.path].dtype)
        if dtype is None and jnp.promote_types(stored, held) != held:
            lossy.append(source.stored(name))
        yield _Entry(unwrapped(source.stored(name)), shape, jnp.dtype(dtype or stored), tuple(pieces), name)
    if lossy:
        raise JvidpruneError(
            f"the model was loaded with a narrower type than it is stored in, which loses digits of "
            f"{len(lossy)} tensors ({', '.join(group_layers(lossy)[:3])}); load it with exact_dtype, or name a dtype."
        )
    # The tower's patches are the one parameter whose stored shape its own does not tell; they are always there.
    for name, (binding, number) in made.items():
        if name in written:
            continue
        value = values[binding.path]
        shape = value.shape[1:] if binding.stacked else value.shape
        shape = shape[::-1] if binding.rule.transform == "transpose" else shape
        piece = _Piece(binding, number, tuple(shape), slice(None))
        yield _Entry(name, tuple(shape), jnp.dtype(dtype or value.dtype), (piece,), name)


def _write_tensors(
    folder: Path, entries: list[_Entry], values: Mapping[str, Any], source: Checkpoint, shard_bytes: int
) -> None:
    from safetensors.numpy import save_file

    shards: list[list[_Entry]] = [[]]
    room = shard_bytes
    for entry in entries:
        if entry.bytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(entry)
        room -= entry.bytes
    where = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({entry.name: _array(entry, values, source) for entry in shard}, folder / file, {"format": "pt"})
        (folder / file).chmod(0o644)
        where |= {entry.name: file for entry in shard}
    if len(shards) > 1:
        total = sum(entry.bytes for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _array(entry: _Entry, values: Mapping[str, Any], source: Checkpoint) -> np.ndarray:
    if not entry.pieces:
        value = source.read(entry.canonical, (slice(None),) * len(entry.shape))
    else:
        parts = [
            piece.binding.written(values[piece.binding.path], piece.number, piece.shape)[piece.rows]
            for piece in entry.pieces
        ]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return np.ascontiguousarray(value.astype(entry.dtype))


def _retyped(folder: Path, dtype: DTypeName) -> str:
    """config.json with another type of parameters, wherever it names one."""
    raw = read_json(folder / "config.json")
    for part in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        part.update({key: dtype for key in ("torch_dtype", "dtype") if key in part})
    return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


def _copy_files(source: Path, folder: Path, extra: Mapping[str, str]) -> None:
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _COPIED or path.name in _COPIED_NAMES
        if wanted and path.is_file() and path.name not in extra and not path.name.endswith(".safetensors.index.json"):
            shutil.copyfile(path, folder / path.name)
    for name, text in extra.items():
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise JvidpruneError(f"{name!r} is no plain file name.")
        (folder / name).write_text(text, encoding="utf-8")
