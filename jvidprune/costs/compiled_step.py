"""The training step of STTS compiled for a slice of TPUs: one chip's memory, traffic and messages, without a TPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jvidprune import parallel
from jvidprune.costs.compiled import CompiledPlan, Slice, compile_program
from jvidprune.costs.footprint import USABLE, Sizes
from jvidprune.errors import JvidpruneError
from jvidprune.models import family as families
from jvidprune.models.quantised import refuse_quantised
from jvidprune.ops.branch import using
from jvidprune.stts import Scorer, SiglipTower, STTSConfig
from jvidprune.training.data import PackedRows
from jvidprune.training.loss import Trainee, rows_loss
from jvidprune.training.step import RATES, Params, Placing, begin, optimiser, split_groups, stored, training_step
from jvidprune.training.stts import Pruned, prune_at
from jvidprune.training.tuning import with_remat

_ANSWERS = 64
"""Predicted tokens of a row."""
_TILE = 128
"""Rows of a step are multiples of so many slots."""


def compile_step(
    config: Any,
    where: Slice,
    sizes: Sizes,
    *,
    frames: int,
    ratio: float,
    text: int,
    batch: int = 1,
    dtype: Any = jnp.bfloat16,
) -> CompiledPlan:
    """Compiles loss, gradients and update of everything (tower, scorer, connector, language model).

    Parameters and moments are float32 (with bfloat16: the computation is bfloat16), layers are computed again in the
    backward pass. A row holds one clip.

    Args:
      config: of a family that STTS trains.
      where: from `compiled.slice_named`.
      sizes: of the mesh; their product is the number of chips.
      frames: of a clip.
      ratio: share of the windows that stays.
      text: text tokens of a row, its questions and answers together.
      batch: rows of each piece into which the mesh divides a step.
      dtype: of the computation, bfloat16 or float32.

    Raises:
      JvidpruneError: a family without such a tower, or a mesh that is not the slice or cuts heads.
    """
    refuse_quantised(config, "a training step")
    family = families.get(config.family)
    if family.connection != "projector":
        raise JvidpruneError(f"STTS trains families whose tower a projector follows, not {config.family}.")
    mesh = parallel.make_mesh(**sizes, devices=where.devices)
    parallel.check_mesh(config.family, config.units, mesh)
    settings = STTSConfig(prune_at=prune_at(config.vision.layers), removed=1 - ratio)
    trainees: list[Trainee] = []

    def begun() -> Params:
        model = with_remat(family.model(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), True)
        scorer = Scorer(SiglipTower(model.vision).sizes, rngs=nnx.Rngs(0))
        trainee, params = Trainee.split(model=model, scorer=scorer)
        trainees.append(trainee)
        return params

    params = jax.eval_shape(begun)
    (trainee,) = trainees
    placing = Placing(mesh, config.family, config.units)
    reader = Pruned(config, settings, frames)
    precision: Any = "float32" if dtype == jnp.float32 else "bfloat16"
    tx = optimiser(RATES, steps=1000)
    learned, frozen = split_groups(params, RATES)
    state = jax.eval_shape(lambda params: begin(stored(params, precision), tx, 0), learned)
    places = parallel.state_shardings(state, mesh, family.sharding, config.units)
    state = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)
    held = sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(state))
    rows = _rows(config, mesh, batch * parallel.rows_over(mesh), frames, reader.kept + text, jnp.dtype(dtype))
    step = training_step(
        functools.partial(rows_loss, trainee, reader), tx, precision=precision, placing=placing, donate=True
    )
    with using("tpu"):
        stage = compile_program("step", lambda: step.lower(state, frozen, rows), held)
    return CompiledPlan(where.name, dict(mesh.shape), held, (stage,), int(USABLE * where.chip.memory))


def _rows(config: Any, mesh: Any, rows: int, frames: int, tokens: int, dtype: Any) -> PackedRows:
    """The rows of a step as shapes, in one part."""
    side, slots = config.vision.image_size, -(-tokens // _TILE) * _TILE

    def shape(sides: tuple[int, ...], kind: Any = jnp.int32) -> Any:
        place = NamedSharding(mesh, PartitionSpec(None, parallel.RULES["batch"]))
        return jax.ShapeDtypeStruct((1, rows, *sides), kind, sharding=place)

    read, said = shape((slots,)), shape((_ANSWERS,))
    return PackedRows(
        pixels=shape((1, frames, config.vision.channels, side, side), dtype),
        share=shape((1,), jnp.float32),
        ids=read,
        visual=read,
        segment=read,
        branch=read,
        position=read,
        slot=said,
        target=said,
        weight=shape((_ANSWERS,), jnp.float32),
        question=said,
    )
