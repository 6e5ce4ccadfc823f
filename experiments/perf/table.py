"""The suite's JSON as markdown, and two of them side by side."""

from typing import Any

HEAD = [
    "",
    "median ms",
    "floor ms",
    "times floor",
    "CPU ms",
    "temporaries MiB",
    "outputs MiB",
    "compile s",
    "recompiled",
]


def _mebibytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:.0f}"


def _cells(key: str, row: dict[str, Any]) -> list[str]:
    if "refused" in row:
        return [key, row["refused"], *[""] * (len(HEAD) - 2)]
    times, floor = row["median_ms"], row["floor_ms"]
    return [
        key,
        f"{times:.1f}",
        f"{floor:.1f}",
        f"{times / floor:.1f}" if floor > 0 else "–",
        f"{row['cpu_ms']:.1f}",
        _mebibytes(row["temporaries"]),
        _mebibytes(row["outputs"]),
        f"{row['compile_s']:.1f}",
        str(row["compiles"]),
    ]


def tables(content: dict[str, Any]) -> str:
    """One table a section."""
    machine = content["machine"]
    lines = [
        f"{machine['device']}, jax {machine['jax']}, {machine['dtype']}: {machine['flops'] / 1e9:.0f} GFLOP/s in a "
        f"matrix product, {machine['bytes'] / 1e9:.1f} GB/s in a copy."
    ]
    for section, rows in content["rows"].items():
        lines += ["", f"## {section}", "", f"| {' | '.join(HEAD)} |", f"| --- |{' ---: |' * (len(HEAD) - 1)}"]
        lines += [f"| {' | '.join(_cells(key, row))} |" for key, row in rows.items()]
    return "\n".join(lines) + "\n"


def compare(old: dict[str, Any], new: dict[str, Any], tolerance: float = 0.1) -> str:
    """Rows of both whose median changed by more than `tolerance`, the worst first.

    Times are compared as multiples of their floors, so that a machine that is slower by itself changes nothing.
    """
    found = []
    for section, rows in new["rows"].items():
        for key, row in rows.items():
            before = old["rows"].get(section, {}).get(key)
            if before is None or "refused" in row or "refused" in before:
                continue
            ratio = (row["median_ms"] / row["floor_ms"]) / (before["median_ms"] / before["floor_ms"])
            if abs(ratio - 1) > tolerance:
                found.append((ratio, f"{section}: {key}: {before['median_ms']:.1f} -> {row['median_ms']:.1f} ms"))
    found.sort(reverse=True)
    worse = [f"{ratio:.2f}x  {text}" for ratio, text in found if ratio > 1]
    better = [f"{ratio:.2f}x  {text}" for ratio, text in found if ratio < 1]
    return "\n".join(["slower:", *(worse or ["nothing"]), "faster:", *(better or ["nothing"])])
