"""`jvidprune parity`: golden files of the reference implementations through the port."""

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from jvidprune.cli.options import OUTPUT, Common


def parity(folder: Annotated[Path, Positional], /, *, model: bool = False, out: Common = OUTPUT) -> None:
    """Run a folder of golden .npz files through the port and compare.

    Args:
      folder: golden files; with `--model` a tiny checkpoint folder with io*.npz.
      model: the folder is a checkpoint.
    """
    from jvidprune.cli.console import parity_tables
    from jvidprune.parity import run

    reports = run.reports(folder, model=model)
    passed = parity_tables(reports, as_json=out.json, quiet=out.quiet)
    if not passed:
        sys.exit(1)
