"""A run that trains STTS: the settings of the command line to modules, readers and data; and what is published."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jvidprune import parallel
from jvidprune.errors import JvidpruneError
from jvidprune.evals.identity import plain
from jvidprune.evals.items import LeftOut
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import family as families
from jvidprune.models.checkpoint.export import export_model
from jvidprune.models.family import Family
from jvidprune.models.quantised import refuse_quantised
from jvidprune.reducers.prompt_rules import position_rule
from jvidprune.reducers.serialise import FILE, with_reading
from jvidprune.stts import ScoredModel, Scorer, STTSConfig, encode, encoder_of, one_video, pooling_windows, windows_kept
from jvidprune.stts.saved import TrainedSTTS, write_stts
from jvidprune.training.clips import frames_of, open_clips
from jvidprune.training.data import rows_for
from jvidprune.training.loss import ClipTokens
from jvidprune.training.step import Params, Placing
from jvidprune.training.tuning import Trained, Tuner, Tuning
from jvidprune.video.limits import DEFAULT, Limits


class STTSRun(NamedTuple):
    """A run that has not begun.

    Attributes:
      llm: the model that training begins with, without a scorer attached.
      scorer: what it begins with.
      tuner: what runs.
      config: settings of STTS.
      kept: visual tokens of a clip that stay.
      whole: visual tokens of a clip.
    """

    llm: VideoLLM
    scorer: Scorer
    tuner: Tuner
    config: STTSConfig
    kept: int
    whole: int


def prune_at(layers: int) -> int:
    """The block that is scored where nobody says: 3 as in the released models, half way up a shallower tower."""
    return min(3, max(layers // 2 - 1, 0))


def open_run(
    llm: VideoLLM,
    choice: Any,
    rates: dict[str, float],
    *,
    frames: int | None = None,
    limits: Limits = DEFAULT,
    report: Callable[[LeftOut], None] | None = None,
) -> STTSRun:
    """The run of a `cli.train.TrainChoice`.

    Args:
      llm: loaded in float32.
      choice: settings.
      rates: learning rates by group.
      frames: of a clip; by default as many as the procedural benchmark has, else what the family was evaluated with.
      limits: what is accepted of a benchmark's videos.
      report: called with each clip that is passed over because it cannot be read.

    Raises:
      JvidpruneError: a family without such a tower, settings that make no run, or files that are not there.
    """
    refuse_quantised(llm.loaded.config, "training")
    llm, scorer = _parted(llm, choice.seed)
    family = llm.loaded.family
    if not _trains(families.get(family)):
        trained = " and ".join(one.name for one in families.families() if _trains(one))
        raise JvidpruneError(f"STTS trains {trained} checkpoints, not {family}.")
    config = stts_config(llm, choice)
    if config.method != "scorer" and rates.get("scorer"):
        raise JvidpruneError(f"the learning rate of scorer must be 0: {config.method} pruning learns nothing.")
    frames = frames_of(llm, choice.task, frames)
    held_frames = frames_of(llm, choice.task, frames if choice.eval_frames is None else choice.eval_frames)
    task, held = open_clips(
        llm,
        choice.task,
        choice.data,
        frames=frames,
        held_frames=held_frames,
        questions=choice.questions,
        held=choice.eval_clips,
        clips=choice.train_clips,
        limits=limits,
        strict=choice.strict,
    )
    reader = Pruned(llm.loaded.config, config, frames)
    shape = rows_for(llm, task, frames=frames, kept=reader.kept, rows=choice.rows, clips=choice.row_clips)
    if choice.slots is not None:
        shape = dataclasses.replace(shape, slots=choice.slots)
    warmup = min(200, choice.steps // 10) if choice.warmup is None else choice.warmup
    tuning = Tuning(
        steps=choice.steps,
        rates=rates,
        shape=shape,
        frames=frames,
        parts=choice.accumulate,
        warmup=warmup,
        clip=choice.clip,
        decay=choice.decay,
        z=choice.z,
        precision=choice.precision,
        remat=choice.remat,
        seed=choice.seed,
        log=choice.log,
        every=choice.every,
        keep=choice.keep,
        measure_every=choice.eval_every,
        measure_steps=max(1, choice.eval_clips // (choice.rows * choice.row_clips)),
        measure_frames=held_frames,
    )
    sizes: dict[str, Any] = parallel.read_mesh(choice.mesh)
    mesh = parallel.make_mesh(**sizes) if choice.mesh else None
    if mesh is not None:
        parallel.check_mesh(family, llm.loaded.config.units, mesh)
    tuner = Tuner(
        llm,
        tuning,
        reader=lambda count: Pruned(llm.loaded.config, config, count, reader.budget),
        task=task,
        held=held,
        modules={"scorer": scorer} if config.method == "scorer" else {},
        settings={"stts": plain(config), "clips": [choice.train_clips, choice.eval_clips]},
        strict=choice.strict,
        report=report,
        placing=Placing(mesh, family, llm.loaded.config.units),
    )
    return STTSRun(llm, scorer, tuner, config, reader.kept, reader.whole)


def _trains(family: Family) -> bool:
    """Whether a projector stands behind the tower: rows hold tokens that each patch window has for itself."""
    return family.connection == "projector"


def _parted(llm: VideoLLM, seed: int) -> tuple[VideoLLM, Any]:
    """The model without what is attached to it, and its scorer: that of a trained checkpoint, else a new one."""
    model = llm.loaded.model.base
    scorer = llm.loaded.model.scorer if isinstance(llm.loaded.model, ScoredModel) else None
    if scorer is None and _trains(families.get(llm.loaded.family)):
        scorer = Scorer(encoder_of(model).tower.sizes, dtype=jnp.float32, rngs=nnx.Rngs(seed))
    return dataclasses.replace(llm, loaded=dataclasses.replace(llm.loaded, model=model)), scorer


def stts_config(llm: VideoLLM, choice: Any) -> STTSConfig:
    """The settings of STTS.

    Raises:
      JvidpruneError: one out of range, or a block that the tower lacks.
    """
    layers = llm.loaded.config.vision.layers
    rules: dict[str, Any] = {"asked": llm.settings.positions, "declared": llm.settings.declared_positions}
    config = STTSConfig(
        prune_at=prune_at(layers) if choice.prune_at is None else choice.prune_at,
        removed=choice.topk,
        window=choice.window,
        method=choice.prune_method,
        coefficient=choice.coefficient,
        keep_positions=position_rule([], **rules) == "original",
    )
    config.check_layers(layers)
    return config


def publish(folder: Path, run: STTSRun, trained: Trained) -> None:
    """Writes the trained model with its scorer as a checkpoint folder, which appears whole and notes its convention.

    Args:
      folder: replaced if it is there.
      run: what was trained; other files of the folder that it began with are taken over.
      trained: from `Tuner.run`.
    """
    modules = dataclasses.replace(trained, params=_gathered(trained.params)).modules()
    if jax.process_index() != 0:
        return
    loaded = dataclasses.replace(run.llm.loaded, model=modules["model"])
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    narrow = any(x.dtype == jnp.bfloat16 for x in trained.params.values())
    # Whoever loads the folder reads videos as training did, unless they say otherwise.
    reading = with_reading(loaded.folder, run.llm.settings.convention, run.llm.settings.mrope_rule)
    export_model(loaded, part, dtype="bfloat16" if narrow else None, extra={FILE: reading})
    # What was measured of the old weights is not true of the new ones.
    (part / "record.json").unlink(missing_ok=True)
    # What is trained under a baseline has a scorer, too, that learned nothing: `attach` asks for one.
    write_stts(part, TrainedSTTS(run.config, modules.get("scorer", run.scorer)))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _gathered(params: Params) -> Params:
    """Parameters that every process holds whole."""
    from jax.experimental import multihost_utils

    return {
        path: x if x.is_fully_addressable else jnp.asarray(multihost_utils.process_allgather(x, tiled=True))
        for path, x in params.items()
    }


class Pruned:
    """A reader that prunes in a tower with a projector behind it; see `loss.Reader`.

    Clips are computed side by side, each with its own budget, so that a mesh divides them.

    Args:
      model: config of the model.
      config: settings of STTS.
      frames: of a clip.
      budget: windows that stay of a clip; None for those that `config.removed` leaves.

    Raises:
      JvidpruneError: settings that do not fit the tower, or a budget beyond the windows of a clip.
    """

    def __init__(self, model: Any, config: STTSConfig, frames: int, budget: int | None = None):
        config.check_layers(model.vision.layers)
        windows = pooling_windows(model, config.window)
        self.config, self.frames = config, frames
        if budget is None:
            budget = windows_kept(frames, windows.count, config.removed, config.prune_from_frame)
        if not 0 < budget <= frames * windows.count:
            raise JvidpruneError(f"{budget} windows cannot stay of {frames} frames with {windows.count} each.")
        self.budget = budget
        self._remove = frames * windows.count - budget
        self.kept = budget * windows.tokens_each
        self.whole = frames * windows.token_count

    def __call__(self, parts: Any, pixels: Float[Array, "B T 3 s s"], key: Array) -> ClipTokens:
        """Kept tokens and the auxiliary loss of each clip; the modules are "model" and, where one learns, "scorer"."""
        model, scorer = parts["model"], parts.get("scorer")
        examples = one_video(self.frames, self._remove)

        def one(clip: Array, key: Array) -> ClipTokens:
            options: dict[str, Any] = {"kept": self.budget, "scorer": scorer, "key": key}
            encoder = encoder_of(model, self.config.window)
            found = encode(encoder, clip.astype(model.lm.dtype), examples, self.config, **options)
            return ClipTokens(found.tokens, found.loss, found.index if self.config.keep_positions else None)

        return parallel.map_rows(one)(pixels, jax.random.split(key, len(pixels)))
