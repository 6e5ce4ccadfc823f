"""plan_gradient: derivatives through the public calls, in features and in costs that hold arrays; no new programs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvidprune
from jvidprune.ops.branch import using
from jvidprune.ops.transport import (
    FixedSinkhorn,
    LeaveOneOut,
    Rows,
    Saliency,
    Sinkhorn,
    TokenCost,
    Transport,
    cosine,
    distance,
)
from jvidprune.reducers import AOT, OTTVid
from jvidprune.reducers.programs import run_budgets
from jvidprune.synthetic import synthetic_tokens

VIDEO = synthetic_tokens(seed=0, frames=4, grid=(4, 4), dim=8, scenes=2, unpooled_grid=(8, 8))
SETTINGS: dict[str, Any] = {"window": 4, "clips": 2}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projected:
    """A cost that holds an array: squared distance of projected features, and the place."""

    project: jax.Array
    position: jax.Array | float = 0.5

    def __call__(self, x: Rows, y: Rows) -> jax.Array:
        left, right = (side.features.astype(self.project.dtype) @ self.project for side in (x, y))
        apart = jnp.sum((left[:, None] - right[None]) ** 2, axis=-1)
        return 0.1 * apart + 1 - cosine(x, y) + self.position * distance(x, y)


def method(project, position, epsilon, power, **options):
    cost = Projected(project, position)
    inside = Transport(cost, Saliency(sources=power), Sinkhorn(epsilon))
    along = Transport(cost, solver=Sinkhorn(epsilon, stop="never", max_iterations=3))
    settings: Any = SETTINGS | {"plan_gradient": "through"} | options
    return AOT(intra_transport=inside, inter_transport=along, **settings)


def values(seed: int = 0, kind: Any = np.float32):
    rng = np.random.default_rng(seed)
    given = rng.normal(size=(8, 3)) * 0.3, 0.4, 0.2, 0.5
    return tuple(jnp.asarray(value, kind) for value in given)


def features(video, x):
    return dataclasses.replace(video, evidence=video.evidence | {"features_unpooled": x})


WEIGHT = np.random.default_rng(7).normal(size=(64, 8))


def loss(x, *given, video=VIDEO, **options):
    tokens = jvidprune.reduce(method(*given, **options), features(video, x), 0.4).tokens
    return jnp.sum(tokens * WEIGHT[: len(tokens)].astype(tokens.dtype))


@pytest.mark.slow
def test_derivatives_through_reduce_are_those_of_finite_differences_in_float64():
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, VIDEO)
        x = wide.evidence["features_unpooled"]
        given = (x, *values(kind=np.float64))
        run = jax.jit(lambda *given: loss(*given, video=wide))
        grads = jax.jit(jax.grad(run, argnums=tuple(range(5))))(*given)
        rng = np.random.default_rng(3)
        for at, (value, grad) in enumerate(zip(given, grads, strict=True)):
            way, step = rng.normal(size=value.shape), 1e-6
            ends = [run(*given[:at], value + sign * step * way, *given[at + 1 :]) for sign in (1, -1)]
            difference = float(ends[0] - ends[1]) / (2 * step)
            assert abs(difference) > 1e-4
            assert float((grad * way).sum()) == pytest.approx(difference, rel=1e-4), at


@pytest.mark.slow
def test_stop_has_no_derivative_in_the_transport_and_the_same_numbers():
    x, given = VIDEO.evidence["features_unpooled"], values()
    run = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
    both = [run(x, *given, plan_gradient=kind) for kind in ("stop", "through")]
    assert float(both[0][0]) == pytest.approx(float(both[1][0]), rel=1e-5)
    for stopped, through in zip(both[0][1][1:], both[1][1][1:], strict=True):
        np.testing.assert_array_equal(stopped, 0)
        assert np.abs(through).max() > 1e-4
    # Tokens are linear in the features under a plan that is fixed.
    assert float((both[0][1][0] * x).sum()) == pytest.approx(float(both[0][0]), rel=1e-3)


@pytest.mark.slow
def test_videos_side_by_side_with_padding_frames_have_the_derivatives_of_each():
    padded = dataclasses.replace(
        jax.tree.map(lambda leaf: jnp.concatenate([leaf[:3], jnp.zeros_like(leaf[3:])]), VIDEO),
        frame_mask=jnp.arange(4) < 3,
    )
    videos = jax.tree.map(lambda *leaves: jnp.stack(leaves), VIDEO, padded)

    def one(project, video, frames):
        made = method(project, *values()[1:])
        return jnp.sum(jvidprune.reduce(made, video, 0.4, frames=frames, capacity=64).tokens ** 2)

    def batch(project):
        made = method(project, *values()[1:])
        return jnp.sum(jvidprune.reduce_batch(made, videos, 0.4, capacity=64).tokens ** 2)

    project = values()[0]
    with using("accelerator"):  # There videos are vmapped over.
        grad = jax.grad(batch)(project)
    assert np.isfinite(grad).all()
    each = [jax.grad(one)(project, *given) for given in ((VIDEO, 4), (padded, 3))]
    np.testing.assert_allclose(grad, each[0] + each[1], atol=2e-4 * float(jnp.abs(grad).max()))


@pytest.mark.slow
def test_new_arrays_and_numbers_compile_nothing_anew():
    run_budgets.clear_cache()
    outs = []
    for seed, epsilon in ((0, 0.2), (1, 0.2), (1, 0.3)):
        project, position, _, power = values(seed)
        made = method(project, position, epsilon, power, plan_gradient="stop")
        outs.append(np.asarray(jvidprune.reduce(made, VIDEO, 0.4).tokens))
        ours = OTTVid(transport=Transport(Projected(project), LeaveOneOut(epsilon), FixedSinkhorn(epsilon, 20)))
        outs.append(np.asarray(jvidprune.reduce(ours, VIDEO, 0.4, diagnostics=True).diagnostics["transport_plan"]))
    assert run_budgets._cache_size() == 2
    for one, other in ((0, 2), (2, 4), (1, 3), (3, 5)):
        assert np.abs(outs[one] - outs[other]).max() > 1e-5
    again = jvidprune.reduce(AOT(**SETTINGS), VIDEO, 0.4).tokens
    plain = TokenCost()
    assert np.abs(np.asarray(again) - outs[0]).max() > 1e-4
    same = AOT(**SETTINGS, intra_transport=Transport(plain)).without_numbers()
    assert hash(same) == hash(AOT(**SETTINGS).without_numbers())
    assert same == AOT(**SETTINGS).without_numbers()
    assert same != method(*values(), plan_gradient="stop").without_numbers()


@pytest.mark.slow
def test_ottvids_plan_is_differentiable_and_its_tokens_are_means_of_choices():
    def run(position, temperature):
        parts = Transport(Projected(values()[0], position), LeaveOneOut(temperature), FixedSinkhorn(0.05, 30))
        made = OTTVid(transport=parts, plan_gradient="through")
        return jvidprune.reduce(made, VIDEO, 0.4, diagnostics=True)

    def shown(position, temperature):
        return jnp.sum(run(position, temperature).diagnostics["transport_plan"] ** 2)

    at = jnp.float32(0.5), jnp.float32(0.3)
    for argument in (0, 1):
        grad = float(jax.grad(shown, argnums=argument)(*at))
        steps = [shown(*(v + sign * 1e-2 * (i == argument) for i, v in enumerate(at))) for sign in (1, -1)]
        assert grad == pytest.approx(float(steps[0] - steps[1]) / 2e-2, rel=0.05)
        assert abs(grad) > 1e-4
    assert float(jax.grad(lambda p: run(p, at[1]).tokens.sum())(at[0])) == 0
