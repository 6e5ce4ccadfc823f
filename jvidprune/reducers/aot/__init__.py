"""AOT, one file a step: `anchors`, `intra` (transport inside frames), `pooling`, `clips` and `inter` (transport along
clips), `output`; `reducer` puts them together, `sizes` counts on the host, `calibrate` fits V to videos."""

from jvidprune.reducers.aot.calibrate import Calibration, calibrate
from jvidprune.reducers.aot.reducer import AOT
from jvidprune.reducers.aot.types import AOTBudget, AOTPlan

__all__ = ["AOT", "AOTBudget", "AOTPlan", "Calibration", "calibrate"]
