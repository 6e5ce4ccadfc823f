"""What a checkpoint folder needs around its model: the settings of its family, and what the folder says itself."""

import dataclasses
from pathlib import Path
from typing import cast

from jvidprune.errors import JvidpruneError
from jvidprune.llm.conventions import settings_of
from jvidprune.models.checkpoint.folder import read_json
from jvidprune.models.checkpoint.load import read_config
from jvidprune.models.checkpoint.processor import sampling_keys, video_processor
from jvidprune.models.family import get, is_lmms_lab
from jvidprune.models.positions import MropeRule, check_rule
from jvidprune.models.settings import FamilySettings
from jvidprune.procedural.settings import BenchmarkSetting
from jvidprune.reducers.serialise import load_reading


def family_settings(
    family: str, folder: Path, convention: str | None = None, mrope_rule: str | None = None
) -> FamilySettings:
    """The settings of a checkpoint folder, with what it says itself of frames, positions and its benchmark.

    Args:
      family: of the checkpoint.
      folder: of the checkpoint; what its jvidprune_config.json names counts where the caller names nothing.
      convention: see `settings_of`.
      mrope_rule: in place of the convention's.

    Raises:
      JvidpruneError: what `settings_of` raises, an M-RoPE rule that is unknown or for another family, settings of the
        folder's video processor that are no JSON object, frames of it that make no sense, or a folder that declares no
        rule of positions where it should.
    """
    saved = load_reading(folder)
    # Positions belong to a convention: another one of the caller's leaves the saved rule behind.
    mrope_rule = saved.mrope_rule if convention is None and mrope_rule is None else mrope_rule
    convention = saved.convention if convention is None else convention
    lmms_lab = (folder / "config.json").exists() and is_lmms_lab(read_json(folder / "config.json"))
    settings = settings_of(family, convention, lmms_lab=lmms_lab)
    settings = dataclasses.replace(settings, declared_positions=saved.positions, categories=saved.categories)
    settings = dataclasses.replace(settings, benchmark=saved.benchmark or settings.benchmark)
    if mrope_rule is not None:
        check_rule(mrope_rule)
        if settings.mrope_rule is None:
            raise JvidpruneError(
                f"positions of {family} have one axis: M-RoPE rules are for the Qwen-VL families, leave {mrope_rule} "
                "out."
            )
        settings = dataclasses.replace(settings, mrope_rule=cast(MropeRule, mrope_rule))
    given = sampling_keys(video_processor(folder))
    if settings.convention == "lmms-eval":
        # Its model classes sample by themselves and leave that of the processor aside.
        return settings
    if given.pop("samples") and not {"frames", "fps"} & given.keys():
        own = get(family).own_sampling
        if own is None:
            raise JvidpruneError(
                "the folder's video processor samples frames (do_sample_frames), but says neither num_frames nor fps."
            )
        given |= own
    if "frames" in given:
        # In place of a rate that is the family's own.
        given["fps"] = None
    return dataclasses.replace(settings, **given)


def declared_benchmark(source: str | Path, revision: str | None = None) -> BenchmarkSetting:
    """The setting of the procedural benchmark that a checkpoint was trained for, told from its small files alone.

    Args:
      source: folder or hub id.
      revision: of a hub id.

    Raises:
      JvidpruneError: no such checkpoint, or anything unexpected in its jvidprune_config.json.
    """
    return load_reading(read_config(source, revision)[2]).benchmark or "default"
