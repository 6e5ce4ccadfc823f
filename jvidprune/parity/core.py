"""The frame of parity checks: golden files in, rows of a table out."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jvidprune.errors import JvidpruneError, reason
from jvidprune.files import load_json, parse_json

Verdict = Literal["ok", "mismatch", "not compared"]


@dataclasses.dataclass(frozen=True)
class Golden:
    """One golden file: a `.npz`, or a `.json` of tables, which has no arrays and is all config.

    Attributes:
      arrays: every array but the config, by key.
      config: the JSON of its `config` string, {} if absent.
    """

    arrays: Mapping[str, np.ndarray]
    config: Mapping[str, Any]

    def has(self, *keys: str) -> bool:
        """Whether all these arrays are in the file."""
        return all(key in self.arrays for key in keys)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      what: what was compared, e.g. "adts_indices".
      deviation: largest absolute deviation, the number of differing entries for discrete values, or None.
      limit: what is allowed (0 for discrete values).
      verdict: ok, mismatch or not compared.
      note: shown behind the row.
    """

    what: str
    deviation: float | None
    limit: float | None
    verdict: Verdict
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the row lets the run succeed."""
        return self.verdict == "ok"


def exact(what: str, ours: Any, golden: Any, note: str = "") -> Row:
    """Discrete values: the number of differing entries must be 0, shapes included."""
    ours, golden = np.asarray(ours), np.asarray(golden)
    if ours.shape != golden.shape:
        return Row(what, None, 0.0, "mismatch", f"shape {ours.shape} instead of {golden.shape}")
    different = int((ours != golden).sum())
    return Row(what, float(different), 0.0, "ok" if different == 0 else "mismatch", note)


def close(what: str, ours: Any, golden: Any, atol: float, rtol: float = 0.0, note: str = "") -> Row:
    """Real values: largest |ours - golden| against atol + rtol * max |golden|; NaN matches only NaN."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if ours.shape != golden.shape:
        return Row(what, None, atol, "mismatch", f"shape {ours.shape} instead of {golden.shape}")
    finite = np.isfinite(golden)
    limit = atol + rtol * (np.abs(golden[finite]).max() if finite.any() else 0.0)
    same_special = np.where(finite, np.isfinite(ours), (ours == golden) | (np.isnan(ours) & np.isnan(golden)))
    if not same_special.all():
        return Row(what, float("nan"), limit, "mismatch", "NaN or infinity where the other side has none")
    deviation = float(np.abs(ours[finite] - golden[finite]).max()) if finite.any() else 0.0
    return Row(what, deviation, limit, "ok" if deviation <= limit else "mismatch", note)


def prefixed(prefix: str, rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows with something before their names: the case of a file that has several."""
    for row in rows:
        yield dataclasses.replace(row, what=prefix + row.what)


@dataclasses.dataclass(frozen=True)
class Comparer:
    """How one kind of golden file is recognised, by keys and config alone, and compared.

    Attributes:
      method: registry name or topic shown in the table.
      recognises: whether this comparer can handle a file.
      compare: yields the rows of a file.
    """

    method: str
    recognises: Callable[[Golden], bool]
    compare: Callable[[Golden], Iterable[Row]]


@dataclasses.dataclass(frozen=True)
class FileReport:
    """All rows of one file."""

    file: str
    method: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return bool(self.rows) and all(row.passed for row in self.rows)


def load_golden(path: Path) -> Golden:
    """Reads one `.npz`, without pickles, or one `.json`.

    Raises:
      JvidpruneError: unreadable, neither of the two, or a config that is no JSON object.
    """
    if path.suffix == ".json":
        return Golden({}, _read_json(path))
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files}
    except Exception as error:
        raise JvidpruneError(f"{path} is no readable .npz file: {reason(error)}.") from error
    try:
        config = parse_json(str(arrays.pop("config"))) if "config" in arrays else {}
    except ValueError as error:
        raise JvidpruneError(f"the config of {path} is no JSON: {reason(error)}.") from error
    return Golden(arrays, config if isinstance(config, dict) else {})


def _read_json(path: Path) -> Mapping[str, Any]:
    value = load_json(path)
    return value if isinstance(value, dict) else {}


def report_file(name: str, golden: Golden, comparers: Iterable[Comparer]) -> FileReport:
    """Compares one golden file with the first comparer that recognises it."""
    for comparer in comparers:
        if comparer.recognises(golden):
            rows = tuple(comparer.compare(golden))
            return FileReport(name, comparer.method, rows or (_not_compared("the comparer found nothing"),))
    return FileReport(name, "-", (_not_compared("its keys and config match no known method"),))


def _not_compared(note: str) -> Row:
    return Row("-", None, None, "not compared", note)


def run_folder(folder: Path, comparers: Iterable[Comparer]) -> Iterator[FileReport]:
    """Reports of every `.npz` below a folder, in name order, and of every `.json` that a comparer recognises.

    Other `.json` files lie beside golden files without being any (the configs of checkpoints): they are passed over.

    Raises:
      JvidpruneError: no such folder, or nothing to compare in it.
    """
    if not folder.is_dir():
        raise JvidpruneError(f"no folder {folder}.")
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".npz", ".json"))
    comparers = list(comparers)
    found = False
    for path in files:
        name = str(path.relative_to(folder))
        try:
            golden = load_golden(path)
            if path.suffix == ".json" and not any(comparer.recognises(golden) for comparer in comparers):
                continue
            found = True
            yield report_file(name, golden, comparers)
        except Exception as error:
            # One file that holds other arrays than its method's must not end the run of all others.
            found = True
            note = str(error) if isinstance(error, JvidpruneError) else f"{type(error).__name__}: {reason(error)}"
            yield FileReport(name, "-", (Row("-", None, None, "mismatch", note),))
    if not found:
        raise JvidpruneError(f"no golden .npz files below {folder}.")
