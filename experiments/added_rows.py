"""Rows of further methods in tables that an earlier run wrote, whose own rows stay as they are, to the last digit."""

import csv
import io
from collections.abc import Collection, Mapping

Lines = list[str]


def methods_in(table: str) -> list[str]:
    """The methods of a CSV, in its order."""
    return list(dict.fromkeys(row["method"] for row in csv.DictReader(io.StringIO(table))))


def joined_csv(old: str, new: str, order: Collection[str]) -> str:
    """The lines of one CSV and those of another whose methods the first lacks.

    Args:
      old, new: with the same head and a column "method".
      order: methods in the order of the result; others keep their places before the second one.

    Raises:
      ValueError: another head.
    """
    (head, *there), (other, *more) = old.splitlines(), new.splitlines()
    if head != other:
        raise ValueError(f"the table that is there has the columns {head}, the new one {other}.")
    column, known = head.split(",").index("method"), set(methods_in(old))
    ranks = {name: rank for rank, name in enumerate(order)}

    def method(line: str) -> str:
        return next(csv.reader([line]))[column]

    lines = [*there, *(line for line in more if method(line) not in known)]
    return "\n".join([head, *sorted(lines, key=lambda line: ranks.get(method(line), 0))]) + "\n"


def joined_markdown(old: str, new: str, order: Collection[str], kept: Mapping[str, str]) -> str:
    """The tables of a file with the rows of another whose titles they lack; the text around them is the new one's.

    Args:
      old, new: with the same headings of the second level, each with one table at most.
      order: titles of methods, in the order of the rows; rows of other titles stay where the old table has them.
      kept: headings whose sections stay, and what is said in front of them.

    Raises:
      ValueError: tables with other columns.
    """
    there, found = _sections(old), []
    for heading, lines in _sections(new).items():
        before = there.get(heading)
        if before is not None and heading in kept:
            lines = [*before[:2], kept[heading], "", *before[2:]]
        elif before is not None:
            lines = _joined(before, lines, list(order))
        found += lines
    return "\n".join(found) + "\n"


def _sections(text: str) -> dict[str, Lines]:
    found: dict[str, Lines] = {"": []}
    heading = ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        found.setdefault(heading, []).append(line)
    return found


def _joined(old: Lines, new: Lines, order: list[str]) -> Lines:
    tables = [[line for line in lines if line.startswith("|")] for lines in (old, new)]
    if not all(tables):
        return new
    if tables[0][0] != tables[1][0]:
        raise ValueError(f"the table that is there has the columns {tables[0][0]}, the new one {tables[1][0]}.")
    ranks = {title: rank for rank, title in enumerate(order)}
    rows = {_title(line): line for table in reversed(tables) for line in table if _title(line) in ranks}
    own = [number for number, line in enumerate(tables[0]) if _title(line) in ranks]
    first, last = (own[0], own[-1] + 1) if own else (len(tables[0]), len(tables[0]))
    methods = [rows[title] for title in sorted(rows, key=ranks.__getitem__)]
    begins = next(number for number, line in enumerate(new) if line.startswith("|"))
    rest = [line for line in new[begins:] if not line.startswith("|")]
    return [*new[:begins], *tables[0][:first], *methods, *tables[0][last:], *rest]


def _title(line: str) -> str:
    return line.removeprefix("|").partition("|")[0].strip()
