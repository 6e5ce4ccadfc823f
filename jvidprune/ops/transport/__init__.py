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
from jvidprune.ops.transport.gromov import GromovWasserstein
from jvidprune.ops.transport.kinds import CompletedBy, CostPart, MarginalsPart, SolverPart
from jvidprune.ops.transport.learned import LearnedCost, LearnedMasses, weights_of
from jvidprune.ops.transport.log_domain import LogSinkhorn
from jvidprune.ops.transport.low_rank import LowRank
from jvidprune.ops.transport.marginals import LeaveOneOut, Marginals, Saliency, Uniform
from jvidprune.ops.transport.ott import OttSinkhorn
from jvidprune.ops.transport.partial import Dustbin, Partial
from jvidprune.ops.transport.projection import Projection, blend, normalise_plan, strongest
from jvidprune.ops.transport.solvers import (
    HELD,
    Scaled,
    Sinkhorn,
    Solver,
    TransportResult,
    differentiable,
    duality_gap,
    iterations_of,
    transport_result,
    underflow_warning,
)
from jvidprune.ops.transport.transport import Problem, Transport, check_derivatives, numeric_leaves

__all__ = [
    "HELD",
    "ClipCost",
    "CompletedBy",
    "Cost",
    "CostPart",
    "Dustbin",
    "FixedSinkhorn",
    "GromovWasserstein",
    "LearnedCost",
    "LearnedMasses",
    "LeaveOneOut",
    "LocalityCost",
    "LogSinkhorn",
    "LowRank",
    "Marginals",
    "MarginalsPart",
    "OnRows",
    "OttSinkhorn",
    "Partial",
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
    "check_derivatives",
    "cosine",
    "cost_matrix",
    "differentiable",
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
