"""The README's table of methods, made from what each reducer says of itself.

python -m jvidprune.reducers.table README.md    rewrites the table in place.
"""

import re
import sys
from pathlib import Path

from jvidprune.reducers import registry

_MARK = "<!-- methods-table -->"


def markdown() -> str:
    """One row a method: paper, evidence, nesting, gradients, parity, quirks."""
    head = [
        "method",
        "paper",
        "needs",
        "merges",
        "nested",
        "exact count",
        "gradients",
        "parity",
        "quirks kept by default",
    ]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name in registry.names():
        info, reducer = registry.info(name), registry.get(name)
        needs = ", ".join(f"`{evidence}`" for evidence in sorted(reducer.needs)) or "–"
        published = re.fullmatch(r"\d{4}\.\d{5}", info.paper)
        paper = f"[{info.paper}](https://arxiv.org/abs/{info.paper})" if published else "–"
        yes = ["yes" if flag else "no" for flag in (info.merges, info.nested, info.exact)]
        gradients = "kept and merged tokens" if info.merges else "kept tokens"
        parity = "golden files" if published else "control"
        quirks = "; ".join(info.quirks) or "–"
        lines.append(" | ".join([f"`{name}` {info.title}", paper, needs, *yes, gradients, parity, quirks]))
    return "\n".join(f"| {line} |" for line in lines)


def rewrite(path: Path, mark: str, table: str) -> None:
    """Replaces the table below a mark."""
    before, after = path.read_text(encoding="utf8").split(mark)
    rest = re.sub(r"\A\n*(\|.*\n)*", "", after)
    path.write_text(f"{before}{mark}\n{table}\n\n{rest.lstrip()}", encoding="utf8")


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]), _MARK, markdown())
