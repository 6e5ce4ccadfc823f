"""Where the lines of a learning curve go besides: a CSV file and TensorBoard's event files."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.extras import need

METRICS = "metrics.csv"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], digits: int = 4) -> None:
    """A table with the union of the rows' columns, floats with so many significant digits; it appears whole."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{x:.{digits}g}" if isinstance(x, float) else x for name, x in row.items()})
    os.replace(part, path)


class TensorBoard:
    """Scalars for TensorBoard; a run that goes on replaces what a killed one wrote behind it.

    Args:
      folder: of the event files.
      step: first step that is written, again if need be.

    Raises:
      JvidpruneError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, step: int):
        need("writing TensorBoard files", "tensorboardX")
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step)

    def write(self, line: Mapping[str, float]) -> None:
        """One line of the curve."""
        step = int(line["step"])
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
