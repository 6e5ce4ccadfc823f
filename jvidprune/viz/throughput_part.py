"""Speed and memory in the report of a sweep: a section of it, which is not there where nothing was measured."""

from collections.abc import Mapping, Sequence

from jvidprune.evals.throughput import Throughput
from jvidprune.evals.throughput_table import (
    EXPLAINED,
    HEAD,
    SPEED_HEAD,
    gain,
    throughput_notes,
    throughput_rows,
)
from jvidprune.viz.pages import render


def throughput_part(found: Sequence[Throughput], titles: Mapping[str, str]) -> str:
    """The section.

    Args:
      found: what was measured of a run.
      titles: names of methods as they are shown.
    """
    gains = [gain(one, found) for one in found]
    return render(
        "jvidprune.viz",
        "throughput.html",
        head=HEAD,
        speed_head=SPEED_HEAD,
        rows=throughput_rows(found, titles),
        gains=["–" if times != times else f"{times:.2f} ×" for times in gains],
        notes=throughput_notes(found),
        explained=EXPLAINED,
        cpu=any(one.platform == "cpu" for one in found),
    )
