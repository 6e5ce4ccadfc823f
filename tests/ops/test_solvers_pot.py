"""The same problems solved by POT, in float64 (pip install pot); run with -m pot."""

import jax
import numpy as np
import pytest

from jvidprune.ops import transport as tr

pytestmark = pytest.mark.pot

R, A = 8, 6
RNG = np.random.default_rng(2)
COST = RNG.uniform(0, 1, (R, A))
MU, NU = RNG.dirichlet(np.ones(R)), RNG.dirichlet(np.ones(A))
X, Y = RNG.random((R, 2)), RNG.random((A, 2))


@pytest.fixture
def ot():
    """POT, which not every machine has."""
    return pytest.importorskip("ot")


def run(solver, *places):
    given = (value.astype(np.float32) for value in (COST, MU, NU, *places))
    return jax.jit(solver)(*given).plan


def test_balanced_plans(ot):
    theirs = ot.sinkhorn(MU, NU, COST, 0.05, method="sinkhorn_log", stopThr=1e-12, numItermax=20_000)
    for solver in (tr.LogSinkhorn(0.05), tr.OttSinkhorn(0.05, threshold=1e-6), tr.OttSinkhorn(0.05, anneal=10.0)):
        np.testing.assert_allclose(run(solver), theirs, atol=3e-4)
    cold = run(tr.LogSinkhorn(0.002, max_iterations=20_000))
    np.testing.assert_allclose((np.asarray(cold) * COST).sum(), (ot.emd(MU, NU, COST) * COST).sum(), atol=5e-4)


def test_relaxed_plans(ot):
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        MU, NU, COST, 0.05, (0.4, 0.7), reg_type="kl", stopThr=1e-12, numItermax=20_000
    )
    np.testing.assert_allclose(run(tr.LogSinkhorn(0.05, 0.4, 0.7)), theirs, atol=3e-4)
    counted = ot.unbalanced.sinkhorn_unbalanced(
        MU, NU, COST, 0.1, (0.4, 0.9), reg_type="entropy", stopThr=1e-12, numItermax=20_000
    )
    solver = tr.Sinkhorn(0.1, 0.4 / 0.5, 0.9 / 1.0, threshold=1e-7, max_iterations=3000)
    np.testing.assert_allclose(run(solver), counted, atol=3e-4)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6])
def test_partial_plans(ot, share):
    plan = np.asarray(run(tr.Partial(share, tr.LogSinkhorn(0.002, max_iterations=20_000))))
    theirs = ot.partial.partial_wasserstein(MU, NU, COST, m=(1 - share) * (1 - 1e-9))
    np.testing.assert_allclose((plan * COST).sum(), (theirs * COST).sum(), atol=1e-3)
    np.testing.assert_allclose(plan.sum(), theirs.sum(), atol=2e-4)


def test_low_rank_plans(ot):
    *_, theirs = ot.lowrank.lowrank_sinkhorn(X, Y, MU, NU, rank=4, numItermax=2000, seed_init=0, log=True)
    squared = ((X[:, None] - Y[None]) ** 2).sum(-1)
    solver = tr.LowRank(4, threshold=1e-5, iterations=500)
    plan = jax.jit(solver)(*(value.astype(np.float32) for value in (squared, MU, NU))).plan
    ours = (np.asarray(plan) * squared).sum()
    # Neither finds the best of a problem that is not convex.
    least = (ot.emd(MU, NU, squared) * squared).sum()
    assert least - 1e-3 < ours < max(theirs["value_linear"], least) + 0.01


@pytest.mark.parametrize("structure", [0.3, 0.7, 1.0])
def test_gromov_plans(ot, structure):
    within = (np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (X, Y))
    theirs = ot.gromov.entropic_fused_gromov_wasserstein(
        COST, *within, MU, NU, "square_loss", epsilon=0.05, alpha=structure, max_iter=500, tol=1e-10
    )
    ours = run(tr.GromovWasserstein(structure, 0.05, threshold=1e-6, max_iterations=200), X, Y)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
