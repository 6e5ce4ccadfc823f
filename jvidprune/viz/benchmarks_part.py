"""The benchmarks of a joined run in its report: a section that is not there in the report of one benchmark."""

from collections.abc import Sequence

from jvidprune.evals.joined import PARTS_HEAD, Part, part_rows
from jvidprune.viz.pages import render


def benchmarks_part(parts: Sequence[Part]) -> str:
    """The section.

    Args:
      parts: of the joined run; none for that of one benchmark.
    """
    return render("jvidprune.viz", "benchmarks.html", head=PARTS_HEAD, rows=part_rows(parts) if parts else [])
