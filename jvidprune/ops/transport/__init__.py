"""Optimal transport between tokens in four separate parts: cost, marginals, solver, projection; `Transport` joins them.

Sources are the rows of every matrix (R), anchors its columns (A).
"""

from jvidprune.ops.transport.cost import (
    ClipCost,
    Cost,
    LocalityCost,
    OnRows,
    Rows,
    TokenCost,
    cosine,
    cost_matrix,
    distance,
    lag,
)
from jvidprune.ops.transport.fixed import FixedSinkhorn
from jvidprune.ops.transport.kinds import CompletedBy, CostPart, MarginalsPart, SolverPart
from jvidprune.ops.transport.learned import LearnedCost, LearnedMasses, weights_of
from jvidprune.ops.transport.marginals import LeaveOneOut, Marginals, Saliency, Uniform
from jvidprune.ops.transport.ott import LowRank, OttSinkhorn
from jvidprune.ops.transport.projection import Projection, blend, normalise_plan, strongest
from jvidprune.ops.transport.solvers import (
    HELD,
    Dustbin,
    Scaled,
    Sinkhorn,
    Solver,
    TransportResult,
    duality_gap,
    iterations_of,
    transport_result,
    underflow_warning,
)
from jvidprune.ops.transport.transport import Problem, Transport, numeric_leaves

__all__ = [
    "HELD",
    "ClipCost",
    "CompletedBy",
    "Cost",
    "CostPart",
    "Dustbin",
    "FixedSinkhorn",
    "LearnedCost",
    "LearnedMasses",
    "LeaveOneOut",
    "LocalityCost",
    "LowRank",
    "Marginals",
    "MarginalsPart",
    "OnRows",
    "OttSinkhorn",
    "Problem",
    "Projection",
    "Rows",
    "Saliency",
    "Scaled",
    "Sinkhorn",
    "Solver",
    "SolverPart",
    "TokenCost",
    "Transport",
    "TransportResult",
    "Uniform",
    "blend",
    "cosine",
    "cost_matrix",
    "distance",
    "duality_gap",
    "iterations_of",
    "lag",
    "normalise_plan",
    "numeric_leaves",
    "strongest",
    "transport_result",
    "underflow_warning",
    "weights_of",
]
