"""Solvers inside AOT and OTT-Vid: written as texts, swept over ratios in one program, finite on padding, refused where
derivatives are asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvidprune
from jvidprune import JvidpruneError
from jvidprune.ops.transport import GromovWasserstein, LogSinkhorn, LowRank, OttSinkhorn, Partial, Transport
from jvidprune.reducers import AOT, OTTVid, expression
from jvidprune.reducers.registry import from_text
from jvidprune.synthetic import synthetic_tokens

VIDEO = synthetic_tokens(seed=0, frames=4, grid=(4, 4), dim=8, scenes=2, unpooled_grid=(8, 8))
PADDED = dataclasses.replace(
    jax.tree.map(lambda leaf: jnp.concatenate([leaf[:3], jnp.zeros_like(leaf[3:])]), VIDEO),
    frame_mask=jnp.arange(4) < 3,
)
WRITTEN = {
    "aot(window=4, clips=2, intra_transport=Transport(solver=LogSinkhorn(rho_sources=0.5)), "
    "inter_transport=Transport(solver=GromovWasserstein(structure=0.6, epsilon=0.1, max_iterations=5)))": AOT(
        window=4,
        clips=2,
        intra_transport=Transport(solver=LogSinkhorn(rho_sources=0.5)),
        inter_transport=Transport(solver=GromovWasserstein(0.6, 0.1, max_iterations=5)),
    ),
    "ottvid(transport=Transport(solver=GromovWasserstein(epsilon=0.05)))": OTTVid(
        transport=Transport(solver=GromovWasserstein(epsilon=0.05))
    ),
    "ottvid(transport=Transport(solver=OttSinkhorn(epsilon=0.3, anneal=20.0, momentum=1.2)))": OTTVid(
        transport=Transport(solver=OttSinkhorn(0.3, anneal=20.0, momentum=1.2))
    ),
}
RATIOS = (0.25, 0.5)


@pytest.mark.parametrize(
    "text", [text if "anneal" in text else pytest.param(text, marks=pytest.mark.slow) for text in WRITTEN]
)
def test_a_solver_is_written_swept_over_ratios_and_finite_on_padding(text):
    method = from_text(text)
    assert method == WRITTEN[text]
    assert from_text(expression(method)) == method
    many = jvidprune.sweep(method, VIDEO, RATIOS, diagnostics=True)
    for place, ratio in enumerate(RATIOS):
        one = jvidprune.reduce(method, VIDEO, ratio)
        count = int(one.count)
        assert count == int(many.count[place])
        np.testing.assert_array_equal(many.index[place, :count], one.index[:count])
        np.testing.assert_allclose(many.tokens[place, :count], one.tokens[:count], atol=2e-4)
    plain = jvidprune.reduce(AOT(window=4, clips=2) if isinstance(method, AOT) else OTTVid(), VIDEO, 0.5).tokens
    assert plain.shape != one.tokens.shape or np.abs(plain - one.tokens).max() > 1e-4
    for stage in ("intra", "inter") if isinstance(method, AOT) else ("transport",):
        for name in ("iterations", "row_error", "column_error", "converged", "underflow"):
            assert np.isfinite(many.diagnostics[f"{stage}_{name}"]).all()
        assert many.diagnostics[f"{stage}_iterations"].max() > 1
    padded = jvidprune.reduce(method, PADDED, 0.5, frames=3)
    assert np.isfinite(padded.tokens).all()


@pytest.mark.parametrize("solver", [LowRank(2), GromovWasserstein(), Partial(0.2, LowRank(2))])
def test_a_solver_without_derivatives_is_refused_where_they_are_asked_for(solver):
    said = r"plan_gradient='through' needs a solver with derivatives, and \w+ has none: take Sinkhorn, LogSinkhorn"
    parts = Transport(solver=solver)
    for make in (
        lambda: AOT(inter_transport=parts, plan_gradient="through"),
        lambda: AOT(intra_transport=parts, plan_gradient="through"),
        lambda: OTTVid(transport=parts, plan_gradient="through"),
    ):
        with pytest.raises(JvidpruneError, match=said):
            make()


@pytest.mark.slow
def test_derivatives_go_through_a_partial_plan_and_in_its_share():
    def spread(share, rho):
        inside = Transport(solver=Partial(share, LogSinkhorn(0.2, max_iterations=60)))
        along = Transport(solver=LogSinkhorn(0.2, rho, max_iterations=60))
        settings = {"window": 4, "clips": 2, "plan_gradient": "through", "nearest": 0.0}
        method = AOT(intra_transport=inside, inter_transport=along, **settings)
        return jnp.sum(jvidprune.reduce(method, VIDEO, 0.4).tokens ** 2)

    at = jnp.float32(0.3), jnp.float32(0.5)
    slopes = jax.grad(spread, argnums=(0, 1))(*at)
    for number, slope in enumerate(slopes):
        step = [0.0, 0.0]
        step[number] = 0.02
        ends = [float(spread(*(v + sign * d for v, d in zip(at, step, strict=True)))) for sign in (1, -1)]
        assert float(slope) == pytest.approx((ends[0] - ends[1]) / 0.04, rel=0.1)
        assert abs(float(slope)) > 1e-3
