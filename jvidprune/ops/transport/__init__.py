"""Optimal transport between tokens in four separate parts: cost, marginals, solver, projection; `aggregate` joins them.

Sources are the rows of every matrix (R), anchors its columns (A).
"""

from jvidprune.ops.transport.aggregate import Aggregated, aggregate
from jvidprune.ops.transport.cost import ClipCost, Cost, OnRows, Rows, TokenCost, cosine, cost_matrix, distance, lag
from jvidprune.ops.transport.kinds import CostPart, MarginalsPart, SolverPart
from jvidprune.ops.transport.marginals import Given, Marginals, Saliency, Uniform
from jvidprune.ops.transport.ott_solvers import LowRank, OttSinkhorn
from jvidprune.ops.transport.projection import PROJECTIONS, Projection, blend, normalise_plan, strongest
from jvidprune.ops.transport.solvers import (
    HELD,
    Dustbin,
    FixedSinkhorn,
    Scaled,
    Sinkhorn,
    Solver,
    TransportResult,
    numeric_leaves,
    transport_result,
    underflow_sentence,
)

__all__ = [
    "HELD",
    "PROJECTIONS",
    "Aggregated",
    "ClipCost",
    "Cost",
    "CostPart",
    "Dustbin",
    "FixedSinkhorn",
    "Given",
    "LowRank",
    "Marginals",
    "MarginalsPart",
    "OnRows",
    "OttSinkhorn",
    "Projection",
    "Rows",
    "Saliency",
    "Scaled",
    "Sinkhorn",
    "Solver",
    "SolverPart",
    "TokenCost",
    "TransportResult",
    "Uniform",
    "aggregate",
    "blend",
    "cosine",
    "cost_matrix",
    "distance",
    "lag",
    "normalise_plan",
    "numeric_leaves",
    "strongest",
    "transport_result",
    "underflow_sentence",
]
