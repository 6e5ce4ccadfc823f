"""A scorer and its settings beside a model's weights: `stts.json` and `stts.safetensors` in the checkpoint folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output
from jvidprune.models.checkpoint.folder import read_json
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
