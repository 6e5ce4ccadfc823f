"""What is left of generated clips, told without a language model: tokens of objects, purity, read-outs.

`probe` runs methods, `ProbeTable` holds what was found, `MEASURES` says what each number is.
"""

from jvidprune.evals.probe.measures import MEASURES
from jvidprune.evals.probe.run import probe
from jvidprune.evals.probe.table import ProbeTable

__all__ = ["MEASURES", "ProbeTable", "probe"]
