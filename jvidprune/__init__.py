"""jvidprune: visual-token reduction for video LLMs in JAX.

A video becomes tokens with evidence; a reducer turns them into fewer tokens under an integer budget; a model reads
those. `reduce` and `sweep` are the two calls most users make.
"""

from jvidprune import reducers
from jvidprune.errors import JvidpruneError
from jvidprune.reducers.base import reduce, reduce_batch, sweep
from jvidprune.tokens import EVIDENCE, Budget, Layout, Plan, Reduced, Reducer, VideoTokens

__version__ = "0.1.0"

__all__ = [
    "EVIDENCE",
    "Budget",
    "JvidpruneError",
    "Layout",
    "Plan",
    "Reduced",
    "Reducer",
    "VideoTokens",
    "reduce",
    "reduce_batch",
    "reducers",
    "sweep",
]
