"""Judged open answers in the report of a sweep: a section of it, exchanged in place when a judge has said more."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.evals.judge.scores import JudgedRun, judged_lines, write_judged
from jvidprune.files import atomic_output
from jvidprune.viz.pages import render
from jvidprune.viz.sweep_style import css_variables

BEGIN, END = "<!-- open answers: begin -->", "<!-- open answers: end -->"
"""Around the section in a page."""


def judged_part(found: JudgedRun, titles: Mapping[str, str]) -> str:
    """The section between its marks; nothing stands there for a run without open answers.

    Args:
      found: the open answers of a run.
      titles: names of methods as they are shown.
    """
    aspects, lines = judged_lines(found.rows, titles)
    return render("jvidprune.viz", "judged.html", found=found, aspects=aspects, lines=lines, begin=BEGIN, end=END)


def write_judged_files(folder: Path, found: JudgedRun, titles: Mapping[str, str], settings: Mapping[str, Any]) -> Path:
    """Writes judged.csv and the section into report.html; a run of open answers alone has a page of this section.

    Args:
      folder: of the run.
      found: its open answers.
      titles: names of methods as they are shown.
      settings: what the run is.

    Returns:
      The report.

    Raises:
      JvidpruneError: a file cannot be read or written.
    """
    write_judged(found.rows, folder / "judged.csv")
    path, part = folder / "report.html", judged_part(found, titles)
    try:
        page = path.read_text(encoding="utf8") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise JvidpruneError(f"{path} cannot be read: {reason(error)}.") from error
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        page = before + part.strip() + after
    else:
        task = settings.get("task")
        name = task.get("name") if isinstance(task, dict) else None
        page = render(
            "jvidprune.viz",
            "judged_page.html",
            title=f"Open answers of {quoted(name or folder.name)}",
            subtitle=f"{found.answers:,} open answers, {found.awaiting:,} of them await a judge",
            judged=part,
            palette=css_variables(),
            halo="",
            settings=json.dumps(settings, indent=1, ensure_ascii=False),
        )
    with atomic_output(path) as target:
        target.write_text(page, encoding="utf8")
    return path
