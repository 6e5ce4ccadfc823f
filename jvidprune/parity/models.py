"""Parity of whole models: a tiny checkpoint folder with the stage arrays of its reference run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import LoadedModel, load_model
from jvidprune.parity.core import FileReport, Golden, Row, load_golden
from jvidprune.parity.model_stages import Stages
from jvidprune.parity.models_internvl import internvl_stages
from jvidprune.parity.models_llava_onevision import llava_onevision_stages
from jvidprune.parity.models_llava_video import llava_video_stages
from jvidprune.parity.models_molmo2 import molmo2_stages
from jvidprune.parity.models_qwen import qwen_vl_stages
from jvidprune.parity.models_video_llama_3 import video_llama_3_stages

_STAGES: dict[str, Callable[[LoadedModel, Golden], tuple[Stages, frozenset[str]]]] = {
    "llava_onevision": llava_onevision_stages,
    "llava_video": llava_video_stages,
    "qwen2_5_vl": qwen_vl_stages,
    "qwen3_vl": qwen_vl_stages,
    "molmo2": molmo2_stages,
    "video_llama_3": video_llama_3_stages,
    "internvl": internvl_stages,
    "qwen3_vl_moe": qwen_vl_stages,
    "qwen3_5": qwen_vl_stages,
}


def compare_model_folder(folder: str | Path) -> Iterator[FileReport]:
    """Loads a checkpoint folder in float32 and compares every stage array of its `io*.npz` files.

    Raises:
      JvidpruneError: no such folder, no `io*.npz` in it, a checkpoint that cannot be loaded, or a family without
        stage comparisons.
    """
    files = io_files(folder)
    with jax.default_matmul_precision("highest"):
        loaded = load_model(folder, dtype=jnp.float32)
        for path in files:
            golden = load_golden(path)
            stages, inputs = stages_of(loaded, golden)
            rows = [_row(key, stages, golden) for key in golden.arrays if key not in inputs]
            yield FileReport(path.name, loaded.family, tuple(rows))


def io_files(folder: str | Path) -> list[Path]:
    """The `io*.npz` files of a checkpoint folder, in order.

    Raises:
      JvidpruneError: no such folder, or none in it.
    """
    folder = Path(folder)
    files = sorted(folder.glob("io*.npz")) if folder.is_dir() else []
    if not files:
        raise JvidpruneError(f"{folder} is no model folder with io*.npz files.")
    return files


def stages_of(loaded: LoadedModel, golden: Golden) -> tuple[Stages, frozenset[str]]:
    """What the arrays of a file are compared with, by key, and the keys that are inputs.

    Raises:
      JvidpruneError: a family without stage comparisons.
    """
    if loaded.family not in _STAGES:
        raise JvidpruneError(f"{loaded.family} has no stage comparisons; there are: {', '.join(_STAGES)}.")
    return _STAGES[loaded.family](loaded, golden)


def _row(key: str, stages: Stages, golden: Golden) -> Row:
    if key not in stages:
        return Row(key, None, None, "not compared", "no stage of this name is known")
    try:
        return stages[key].row(key, golden)
    except JvidpruneError as error:
        return Row(key, None, None, "mismatch", str(error))
