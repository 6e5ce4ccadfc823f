"""Arrays that a method reads beside the model's own weights: equal and hashed by their content, read from a file."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.fields import NO_SETTING
from jvidprune.files import atomic_output

_REFUSED: ContextVar[bool] = ContextVar("files_refused", default=False)


@contextlib.contextmanager
def files_refused() -> Iterator[None]:
    """Inside, weights are read from no file: for texts of others, beside `own_code.code_refused`."""
    token = _REFUSED.set(True)
    try:
        yield
    finally:
        _REFUSED.reset(token)


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Named arrays that can be a value of a setting.

    Attributes:
      path: of the file that they were read from, None for those that were made in memory.
      digest: hash of names, types and values.
      arrays: by name; not to be written into.
    """

    path: str | None
    digest: str
    arrays: Mapping[str, np.ndarray] = dataclasses.field(repr=False, metadata=NO_SETTING)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], path: str | None = None) -> "Weights":
        """Weights with these arrays."""
        held = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
        digest = hashlib.sha256()
        for name, value in held.items():
            digest.update(f"{name}:{value.dtype}:{value.shape}:".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return cls(path, digest.hexdigest()[:16], held)

    @classmethod
    def read(cls, path: str | Path) -> "Weights":
        """The arrays of a safetensors file.

        Raises:
          JvidpruneError: a file that is not there or is none, or any inside of `files_refused`.
        """
        if _REFUSED.get():
            raise JvidpruneError(f"it names {quoted(str(path))}: weights are not read from files that a request names.")
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return cls.of(load_file(path), str(path))
        except (SafetensorError, OSError, ValueError) as error:
            named = quoted(str(path))
            raise JvidpruneError(f"{named} cannot be read as a safetensors file: {reason(error)}.") from error

    def write(self, path: str | Path) -> "Weights":
        """The same weights, as the file that they are written to; it appears whole or not at all.

        Raises:
          JvidpruneError: the file cannot be written.
        """
        from safetensors.numpy import save_file

        with atomic_output(Path(path)) as part:
            save_file({name: np.array(value, order="C") for name, value in self.arrays.items()}, part)
        return dataclasses.replace(self, path=str(path))

    def part(self, prefix: str) -> "Weights | None":
        """Those whose names begin with a prefix, without it; None where there are none."""
        found = {name.removeprefix(prefix): x for name, x in self.arrays.items() if name.startswith(prefix)}
        return Weights.of(found, self.path) if found else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


class _WeightsRule:
    """The rule of `fields` for weights, which may also be the path of their file."""

    words = "weights, or the path of a safetensors file"

    def check(self, value: Any) -> Any:
        if isinstance(value, str) and value:
            return Weights.read(value)
        if not isinstance(value, Weights):
            raise ValueError
        return value


AnyWeights = Annotated[Any, _WeightsRule()]
"""Annotation of a field that holds weights."""
