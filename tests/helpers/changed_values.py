"""Golden files with changed values, and which of their arrays a comparer of `jvidprune parity` really looks at."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jvidprune.parity
from jvidprune.parity import core

COPIED = {"fastv": {"features"}}
"""What is given and expected at once: FastV leaves the tokens before the language model as they are."""
Compared = list[tuple[frozenset[str], core.Row]]
"""Each comparison that is made: the golden arrays on its right side, and its row."""


class Known(np.ndarray):
    """An array that remembers from which golden arrays it was made."""

    keys: frozenset[str]

    def __array_finalize__(self, parent: Any) -> None:
        self.keys = getattr(parent, "keys", frozenset())


class KnownArrays(Mapping[str, np.ndarray]):
    """The arrays of a golden file, each as one that remembers its key."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays

    def __getitem__(self, key: str) -> np.ndarray:
        found = np.asarray(self._arrays[key]).view(Known)
        found.keys = frozenset({key})
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def smallest_files(paths: Sequence[Path], known: Sequence[core.Comparer]) -> dict[Path, core.Comparer]:
    """The smallest golden file of each comparer that has one; a file that is a table of settings has no arrays."""
    found: dict[int, tuple[int, Path]] = {}
    for path in paths:
        golden = core.load_golden(path)
        size = sum(array.nbytes for array in golden.arrays.values())
        taker = next((number for number, one in enumerate(known) if one.recognises(golden)), None)
        if size and taker is not None and (taker not in found or size < found[taker][0]):
            found[taker] = size, path
    return {path: known[number] for number, (_, path) in found.items()}


def watch_comparisons(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """A list that every comparison made from now on is added to."""
    seen: Compared = []

    def watch(function: Any) -> Any:
        def wrapped(what: str, ours: Any, golden: Any, *args: Any, **kwargs: Any) -> core.Row:
            row = function(what, ours, golden, *args, **kwargs)
            seen.append((getattr(golden, "keys", frozenset()), row))
            return row

        return wrapped

    for function in (core.exact, core.close):
        for module in pkgutil.iter_modules(jvidprune.parity.__path__):
            loaded = importlib.import_module(f"jvidprune.parity.{module.name}")
            if getattr(loaded, function.__name__, None) is function:
                monkeypatch.setattr(loaded, function.__name__, watch(function))
    return seen


def unnoticed(comparer: core.Comparer, golden: core.Golden, compared: Compared) -> set[str]:
    """Compared arrays whose changed values lead to no row that fails.

    All are changed at once; one at a time where what is compared is also what a later stage begins with.

    Args:
      comparer: its unchanged rows must pass.
      golden: file.
      compared: list of `watch_comparisons`.
    """
    compared.clear()
    assert all(row.passed for row in comparer.compare(core.Golden(KnownArrays(golden.arrays), golden.config)))
    expected = {key for keys, _ in compared for key in keys if golden[key].size} - COPIED.get(comparer.method, set())
    assert expected
    missed = expected - _noticed(comparer, golden, expected, compared)
    return {key for key in missed if not _noticed(comparer, golden, {key}, compared)}


def _changed(array: np.ndarray) -> np.ndarray:
    """Another value of the same type in every entry."""
    if array.dtype == bool:
        return ~array
    if np.issubdtype(array.dtype, np.floating):
        return (np.nan_to_num(array) * 1.5 + 1).astype(array.dtype)
    return array + 1


def _noticed(comparer: core.Comparer, golden: core.Golden, keys: set[str], compared: Compared) -> set[str]:
    """Those of the keys whose changed values lead to a row that is not ok; all of them where the comparer gives up."""
    compared.clear()
    arrays = {key: _changed(array) if key in keys else array for key, array in golden.arrays.items()}
    try:
        list(comparer.compare(core.Golden(KnownArrays(arrays), golden.config)))
    except Exception:
        return keys if len(keys) == 1 else set()
    return keys & {key for found, row in compared for key in found if not row.passed}
