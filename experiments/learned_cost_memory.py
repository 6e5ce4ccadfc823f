"""Memory of a training step of a learned cost, as XLA compiles it for this CPU or for one chip of a TPU slice.

    python -m experiments.learned_cost_memory                   for this CPU
    python -m experiments.learned_cost_memory --slice v5e:2x2   for one such chip (pip install libtpu, without a TPU)

AOT with both transports learned from reconstruction, at 32 frames of 729 tokens before pooling (196 behind it), as
LLaVA-OneVision has them. Nothing runs: shapes are compiled, and what XLA says of the memory is printed.
"""

import argparse
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune import VideoTokens
from jvidprune.costs.compiled import compile_program, slice_named
from jvidprune.evals.markdown import grid
from jvidprune.ops.branch import using
from jvidprune.reducers import AOT
from jvidprune.tokens import stack_budgets
from jvidprune.training.transport_parts import trainable
from jvidprune.training.transports import (
    CostBatch,
    CostChoice,
    CostLoss,
    CostState,
    cost_optimiser,
    cost_step,
    stacked_budgets,
)

FRAMES, SIDE, POOLED = 32, 27, 14


def lowered(choice: CostChoice, width: int, frames: int, side: int, pooled: int, device: Any) -> jax.stages.Lowered:
    """The step of `training.transports` for shapes on a device; features are float32, as `train cost` has them."""
    place = jax.sharding.SingleDeviceSharding(device)
    method = trainable(AOT())

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=place), tree)

    whole, few = side**2, pooled**2
    given = {name: jax.ShapeDtypeStruct((frames, whole), jnp.float32) for name in method.needs}
    given["features_unpooled"] = jax.ShapeDtypeStruct((frames, whole, width), jnp.float32)
    features = jax.ShapeDtypeStruct((frames, few, width), jnp.float32)
    mask = jax.ShapeDtypeStruct((frames,), jnp.bool_)
    video = VideoTokens(features, given, mask, (pooled, pooled), (side, side))  # pyright: ignore[reportArgumentType]
    layout = video.layout()
    parts = choice.begin(width, method, frames)
    tx = cost_optimiser(choice.steps, choice.peak)
    ratios = np.linspace(*choice.ratios, choice.draws)
    budgets = stack_budgets([stacked_budgets(method, layout, list(ratios))] * choice.clips)
    videos = jax.tree.map(lambda x: jax.ShapeDtypeStruct((choice.clips, *x.shape), x.dtype, sharding=place), video)
    loss = CostLoss(method, choice.objective, method.capacity(layout, choice.ratios[1]))
    state = shapes(jax.eval_shape(lambda parts: CostState(parts, tx.init(parts)), parts))
    return cost_step(loss, tx).lower(state, None, CostBatch(videos, shapes(budgets)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", default=None, help="TPU slice of which one chip runs the step")
    parser.add_argument("--widths", type=int, nargs="+", default=(1152, 3584))
    parser.add_argument("--clips", type=int, default=1, help="clips of a step")
    parser.add_argument("--draws", type=int, nargs="+", default=(1, 2), help="ratios of each clip")
    parser.add_argument("--costs", nargs="+", default=("network", "mahalanobis"))
    args = parser.parse_args()
    where, kind, device = "CPU", "cpu", jax.local_devices(backend="cpu")[0]
    if args.slice is not None:
        where, kind, device = f"one chip of {args.slice}", "tpu", slice_named(args.slice).devices[0]
    rows = []
    for width, cost, draws in itertools.product(args.widths, args.costs, args.draws):
        choice = CostChoice(cost=cost, clips=args.clips, draws=draws)
        with using(kind):
            lower = functools.partial(lowered, choice, width, FRAMES, SIDE, POOLED, device)
            stage = compile_program("step", lower, 0)
        sizes = (stage.inputs, stage.temporaries, stage.working)
        rows.append([where, str(width), cost, f"{args.clips} x {draws}", *(f"{size:,}" for size in sizes)])
        rows[-1].append(f"over by {stage.over:,}" if stage.over else "")
        print(*rows[-1], flush=True)
    print(grid(["compiled for", "D", "cost", "clips x ratios", "arguments", "temporaries", "all", ""], rows))


if __name__ == "__main__":
    main()
