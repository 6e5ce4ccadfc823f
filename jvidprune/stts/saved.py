"""Scorers in checkpoint folders: `stts.json` and `stts.safetensors` beside the weights, or tensors among them."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output
from jvidprune.models.checkpoint.folder import Checkpoint, read_json
from jvidprune.stts.config import STTSConfig
from jvidprune.stts.scorer import Scorer, scorer_from_tensors, scorer_tensors

SETTINGS, WEIGHTS = "stts.json", "stts.safetensors"


class TrainedSTTS(NamedTuple):
    """What `attach` makes a tower prune with: settings and scorer."""

    config: STTSConfig
    scorer: Scorer


def write_stts(folder: Path, trained: TrainedSTTS, dtype: Any = np.float32) -> None:
    """Writes the settings, and the scorer's tensors under their released names; each file appears whole or not at all.

    Raises:
      JvidpruneError: the folder cannot be written to.
    """
    from safetensors.numpy import save_file

    tensors = {
        name: np.ascontiguousarray(value.astype(dtype)) for name, value in scorer_tensors(trained.scorer).items()
    }
    with atomic_output(folder / WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    text = json.dumps(dataclasses.asdict(trained.config), indent=1) + "\n"
    # Last, as a folder with settings has a scorer.
    with atomic_output(folder / SETTINGS) as part:
        part.write_text(text, encoding="utf-8")


def read_stts(folder: Path, *, heads: int, dtype: Any = jnp.float32) -> TrainedSTTS | None:
    """What `write_stts` wrote; None for a folder without.

    Args:
      folder: of the checkpoint.
      heads: attention heads of the tower.
      dtype: of the scorer's parameters.

    Raises:
      JvidpruneError: settings that are unknown, of a wrong type or out of range, or a scorer that is missing or broken.
    """
    if not (folder / SETTINGS).exists():
        return None
    settings = read_json(folder / SETTINGS)
    names = {field.name for field in dataclasses.fields(STTSConfig)}
    if unknown := sorted(settings.keys() - names):
        raise JvidpruneError(f"{folder / SETTINGS} has the unknown setting {unknown[0]}.")
    try:
        config = STTSConfig(**settings)
    except JvidpruneError as error:
        raise JvidpruneError(f"{folder / SETTINGS}: {error}") from error
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise JvidpruneError(f"{folder / WEIGHTS} cannot be read: {error}.") from error
    return TrainedSTTS(config, scorer_from_tensors(tensors, heads, dtype=dtype))


_MARK = ".temporal_token_scorer."

RELEASED = STTSConfig(refill="official")
"""The settings that released weights were trained with."""


def released_scorer(folder: str | Path, heads: int, *, dtype: Any = jnp.float32) -> Scorer | None:
    """The scorer that a checkpoint holds under any prefix; None where it has none.

    Args:
      folder: of the checkpoint.
      heads: of the tower.
      dtype: of the parameters.

    Raises:
      JvidpruneError: no readable checkpoint, or tensors that are missing or do not fit each other.
    """
    found = Checkpoint(Path(folder), lambda name: name if _MARK in name else None)
    if not found.names:
        return None
    prefix = min(found.names).partition(_MARK)[0] + _MARK
    tensors = {name: found.read(name, (slice(None),) * len(found.shape(name))) for name in found.names}
    return scorer_from_tensors(tensors, heads, prefix=prefix, dtype=dtype)
