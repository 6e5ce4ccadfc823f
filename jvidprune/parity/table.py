"""Tables of comparisons: a golden key, where the port shows its value, and exact or a tolerance.

A comparer runs the port once on a golden file's input and hands what came out, its case, to `compare` with a table:

>>> from jvidprune.parity.core import Golden
>>> table = [Check("picks", lambda case: case["order"][:2]), Check("gain", "gain", atol=1e-6)]
>>> golden = Golden({"picks": np.array([3, 1]), "gain": np.array([0.5])}, {})
>>> [row.verdict for row in compare(table, {"order": [3, 1, 2], "gain": [0.5]}, golden)]
['ok', 'ok']
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from jvidprune.parity.core import Golden, Row, close, exact

Case = TypeVar("Case")


def _always(case: Any) -> bool:
    return True


def _as_it_is(golden: np.ndarray, case: Any) -> np.ndarray:
    return golden


def _at(case: Any, path: str) -> Any:
    for name in path.split("."):
        case = case[name] if isinstance(case, Mapping) else getattr(case, name)
    return case


@dataclasses.dataclass(frozen=True)
class Check(Generic[Case]):
    """One comparison of a table.

    Attributes:
      key: golden array, and the name of the row.
      ours: where the port shows it: a path of attributes and keys that begins at the case, or a function of the case.
      atol, rtol: absolute tolerance, and relative to the largest golden value; exact where both are None.
      optional: passed over in files without the key. Without it a missing key is an error, hence a row that fails.
      when: cases in which the row is compared.
      theirs: what of the golden array is compared, given the case; all of it by default.
      note: shown behind the row; of a case where it is a function.
      title: name of the row where it is not the key.
    """

    key: str
    ours: str | Callable[[Case], Any]
    atol: float | None = None
    rtol: float | None = None
    optional: bool = False
    when: Callable[[Case], bool] = _always
    theirs: Callable[[np.ndarray, Case], Any] = _as_it_is
    note: str | Callable[[Case], str] = ""
    title: str | None = None

    def row(self, case: Case, golden: Golden, prefix: str = "") -> Row:
        """The row of a case."""
        what = prefix + (self.key if self.title is None else self.title)
        note = self.note if isinstance(self.note, str) else self.note(case)
        ours = _at(case, self.ours) if isinstance(self.ours, str) else self.ours(case)
        theirs = self.theirs(golden[self.key], case)
        if self.atol is None and self.rtol is None:
            return exact(what, ours, theirs, note)
        return close(what, ours, theirs, self.atol or 0.0, self.rtol or 0.0, note)


def compare(table: Iterable[Check[Case]], case: Case, golden: Golden, prefix: str = "") -> Iterator[Row]:
    """The rows of a table, in its order.

    Args:
      table: checks.
      case: what the port made of the file's input.
      golden: the file, or the `part` of it that the case is about.
      prefix: stands before the name of every row.
    """
    for check in table:
        if (check.optional and check.key not in golden.arrays) or not check.when(case):
            continue
        yield check.row(case, golden, prefix)


def part(golden: Golden, prefix: str, config: Mapping[str, Any] | None = None) -> Golden:
    """The arrays whose keys begin with `prefix`, without it; with the config of this part or the file's own."""
    arrays = {key.removeprefix(prefix): value for key, value in golden.arrays.items() if key.startswith(prefix)}
    return Golden(arrays, golden.config if config is None else config)


def optional(checks: Iterable[Check[Case]]) -> tuple[Check[Case], ...]:
    """The same checks, each passed over in files without its key."""
    return tuple(dataclasses.replace(check, optional=True) for check in checks)
