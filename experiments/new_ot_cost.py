"""A transport cost of one's own: three costs times eight retention ratios in one vmapped call.

python experiments/new_ot_cost.py [--out new_ot_cost.png]

The cost below is AOT's, plus a term that keeps salient tokens apart from anchors of another saliency. Its weights
travel in the budget, so costs and ratios are swept alike: 24 budgets, one compilation. What is measured: how well the
tokens a reducer hands over stand for those it dropped (mean cosine of each pooled token to its nearest output token).
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from matplotlib.figure import Figure

import jvidprune
from jvidprune.ops.transport import Rows, Transport, cosine, distance
from jvidprune.reducers.aot import AOT
from jvidprune.synthetic import synthetic_tokens
from jvidprune.tokens import stack_budgets

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SaliencyCost:
    w_pos: float = 0.5
    w_saliency: float = 0.0

    def __call__(self, x: Rows, y: Rows) -> jax.Array:
        apart = jnp.abs(jnp.log1p(x.saliency)[:, None] - jnp.log1p(y.saliency)[None])
        return 1 - cosine(x, y) + self.w_pos * distance(x, y) + self.w_saliency * apart


COSTS = {"AOT": SaliencyCost(0.5), "features only": SaliencyCost(0.0), "with saliency": SaliencyCost(0.5, 1.0)}


def main(out: Path = Path("new_ot_cost.png"), frames: int = 16, dim: int = 64, seed: int = 0) -> None:
    """Prints the table and draws the plot."""
    video = synthetic_tokens(seed, frames, (14, 14), dim, 3, unpooled_grid=(27, 27))
    layout = video.layout()
    # Pure transport (nearest=0) with mass 1 an anchor, so that the plan and not the nearest-anchor share decides.
    transports = {name: Transport(cost, projection="column") for name, cost in COSTS.items()}
    reducers = {name: AOT(nearest=0.0, intra_transport=one) for name, one in transports.items()}
    budgets = stack_budgets([reducer.budget(layout, ratio) for reducer in reducers.values() for ratio in RATIOS])
    one = reducers["AOT"]
    capacity = one.capacity(layout, max(RATIOS))

    @jax.jit
    def run(video: jvidprune.VideoTokens, budgets) -> tuple[jax.Array, jax.Array]:
        shared = one.prepare(video, capacity=capacity)

        def score(budget) -> tuple[jax.Array, jax.Array]:
            reduced = one.apply(one.decide(shared, budget, capacity=capacity), video)
            rows = reduced.tokens / jnp.maximum(jnp.linalg.norm(reduced.tokens, axis=1, keepdims=True), 1e-8)
            tokens = video.features.reshape(-1, dim)
            tokens = tokens / jnp.linalg.norm(tokens, axis=1, keepdims=True)
            nearest = jnp.where(reduced.valid, tokens @ rows.T, -1.0).max(1)
            return nearest.mean(), reduced.count / layout.total

        return jax.vmap(score)(budgets)

    kept, achieved = (values.reshape(len(COSTS), len(RATIOS)) for values in run(video, budgets))
    print("cost".ljust(16) + "".join(f"{ratio:8.2f}" for ratio in RATIOS))
    print("reached ratio".ljust(16) + "".join(f"{value:8.3f}" for value in achieved[0]))
    for name, values in zip(COSTS, kept, strict=True):
        print(name.ljust(16) + "".join(f"{value:8.4f}" for value in values))

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(achieved[0], kept[0], marker="o", label="AOT")
    left.set(xlabel="retained ratio", ylabel="mean cosine to the nearest output token")
    for number, name in enumerate(COSTS):
        right.plot(achieved[number], 1e3 * (kept[number] - kept[0]), marker="o", label=name)
    right.set(xlabel="retained ratio", ylabel="difference to AOT's cost, in thousandths")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(out, dpi=120)
    print(f"wrote {out}")


if __name__ == "__main__":
    tyro.cli(main)
