"""The suite's JSON as markdown, and two of them side by side."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def _mebibytes(name: str) -> Column:
    def text(row: Row) -> str:
        return "–" if row[name] is None else f"{row[name] / 2**20:,.0f}"

    return f"{name} MiB", text


def _times(row: Row) -> str:
    return f"{row['median_ms'] / row['floor_ms']:.1f}" if row["floor_ms"] > 0 else "–"


COMPILE: Column = ("compile s", lambda row: f"{row['compile_s']:.1f}")
MEASURED: list[Column] = [
    ("call ms", lambda row: f"{row['call_ms']:.1f}" if "call_ms" in row else "–"),
    ("median ms", lambda row: f"{row['median_ms']:.1f}"),
    ("floor ms", lambda row: f"{row['floor_ms']:.1f}"),
    ("times floor", _times),
    ("CPU ms", lambda row: f"{row['cpu_ms']:.1f}"),
    _mebibytes("temporaries"),
    _mebibytes("outputs"),
    COMPILE,
    ("recompiled", lambda row: str(row["compiles"])),
]
HELD: list[Column] = [
    _mebibytes("arguments"),
    _mebibytes("temporaries"),
    _mebibytes("outputs"),
    _mebibytes("predicted"),
    COMPILE,
]
"""Columns of programs that were only compiled; `predicted` is what `jvidprune ask` expects beside the arguments."""


def _cpu(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]['cpu_ms']:.1f}"


def _quotient(every: str, one: str) -> Column:
    return "eight / one", lambda row: f"{row[every]['cpu_ms'] / row[one]['cpu_ms']:.2f}"


def _decided(row: Row) -> str:
    """Eight over one of what is left of the calls without the writing of tokens."""
    every, one = (row[name]["cpu_ms"] - row[f"written {name}"]["cpu_ms"] for name in ("sweep", "reduce"))
    return f"{every / one:.2f}" if one > 0 else "–"


CALLED: list[Column] = [
    ("decisions: one", _cpu("plan")),
    ("eight", _cpu("plans")),
    _quotient("plans", "plan"),
    ("call: one", _cpu("reduce")),
    ("eight", _cpu("sweep")),
    _quotient("sweep", "reduce"),
    ("writing: one", _cpu("written reduce")),
    ("eight", _cpu("written sweep")),
    ("call less writing: eight / one", _decided),
    ("call, wall: one", lambda row: f"{row['reduce']['wall_ms']:.1f}"),
    ("eight", lambda row: f"{row['sweep']['wall_ms']:.1f}"),
    ("original, CPU s", lambda row: "–" if row["original_s"] is None else f"{row['original_s']:g}"),
]
CALLS = (
    "Milliseconds of CPU time of the process unless a column says otherwise; the fastest of interleaved rounds. `one` "
    "is one call at the ratio 0.4, the largest of the eight ratios. `decisions` form no tokens. A `call` is "
    "`jvidprune.reduce` or `jvidprune.sweep` with its check for NaN. `writing` is the same call with `uniform`, which "
    "computes almost nothing and writes as many bytes. The originals are the reference implementations in PyTorch at "
    "one ratio, on two threads, measured on another day. Other work ran on the machine during both measurements."
)
"""What stands above the table of calls."""


def _line(key: str, row: Row, columns: list[Column]) -> str:
    cells = [row["refused"], *[""] * (len(columns) - 1)] if "refused" in row else [text(row) for _, text in columns]
    return f"| {' | '.join([key, *cells])} |"


def in_short(row: Row) -> str:
    """What a row says, for the screen."""
    if "refused" in row:
        return row["refused"]
    if "sweep" in row:
        return f"{row['reduce']['cpu_ms']:.1f} and {row['sweep']['cpu_ms']:.1f} ms"
    return f"{row['median_ms']:.1f} ms" if "median_ms" in row else f"{row['temporaries'] / 2**20:,.0f} MiB"


def tables(content: dict[str, Any]) -> str:
    """One table a section."""
    machine = content["machine"]
    lines = [
        f"{machine['device']}, jax {machine['jax']}, {machine['dtype']}: {machine['flops'] / 1e9:.0f} GFLOP/s in a "
        f"matrix product, {machine['bytes'] / 1e9:.1f} GB/s in a copy."
    ]
    for section, rows in content["rows"].items():
        columns = {"memory": HELD, "calls": CALLED}.get(section, MEASURED)
        names = ["", *(name for name, _ in columns)]
        lines += [
            "",
            f"## {section}",
            "",
            *([CALLS, ""] if section == "calls" else []),
            f"| {' | '.join(names)} |",
            f"| --- |{' ---: |' * len(columns)}",
        ]
        lines += [_line(key, row, columns) for key, row in rows.items()]
    return "\n".join(lines) + "\n"


def compare(old: dict[str, Any], new: dict[str, Any], tolerance: float = 0.1) -> str:
    """Rows of both whose time or memory changed by more than `tolerance`, the worst first.

    Times are compared as multiples of their floors, so that a machine that is slower by itself changes nothing; of
    programs that were only compiled the temporaries are compared.
    """
    found = []
    for section, rows in new["rows"].items():
        for key, row in rows.items():
            before = old["rows"].get(section, {}).get(key)
            if before is None or "refused" in row or "refused" in before:
                continue
            ratio = _cost(row) / _cost(before)
            if abs(ratio - 1) > tolerance:
                found.append((ratio, f"{section}: {key}: {in_short(before)} -> {in_short(row)}"))
    found.sort(reverse=True)
    worse = [f"{ratio:.2f}x  {text}" for ratio, text in found if ratio > 1]
    better = [f"{ratio:.2f}x  {text}" for ratio, text in found if ratio < 1]
    return "\n".join(["worse:", *(worse or ["nothing"]), "better:", *(better or ["nothing"])])


def _cost(row: Row) -> float:
    if "sweep" in row:
        return row["sweep"]["cpu_ms"] / row["written sweep"]["cpu_ms"]
    return row["median_ms"] / row["floor_ms"] if "median_ms" in row else max(row["temporaries"], 1)
