"""What `VideoLLM.load` does besides reading the weights: early refusals, the text tower, settings and pruning."""

import dataclasses
from pathlib import Path

from jvidprune.errors import JvidpruneError
from jvidprune.llm.conventions import check_convention
from jvidprune.llm.folder import family_settings
from jvidprune.llm.prompts.templates import CHAT, chat_template
from jvidprune.models.checkpoint.load import LoadedModel, read_config
from jvidprune.models.positions import MropeRule, check_rule
from jvidprune.models.settings import Convention, FamilySettings
from jvidprune.models.text_tower import TEXT_TOWER, TextTower, check_shared, load_text_tower
from jvidprune.reducers.prompt_rules import PositionRule
from jvidprune.reducers.serialise import SavedPruning, load_pruning


def check_ways(
    source: str | Path, revision: str | None, convention: Convention | None, mrope_rule: MropeRule | None
) -> None:
    """Refuses a convention or M-RoPE rule before any weights are read.

    Raises:
      JvidpruneError: one that is unknown, or that the checkpoint's family does not have.
    """
    for name, check in ((convention, check_convention), (mrope_rule, check_rule)):
        if name is not None:
            check(name)
    if convention is not None or mrope_rule is not None:
        family, _, folder = read_config(source, revision)
        family_settings(family, folder, convention, mrope_rule)


def shared_text_tower(source: str | Path, revision: str | None, asked: str | Path | None) -> TextTower | None:
    """The text tower asked for, else that in the folder of a local checkpoint, if it has one.

    Raises:
      JvidpruneError: one that does not share its space with the checkpoint's vision tower, or that cannot be read.
    """
    if asked is None and (Path(source) / TEXT_TOWER).is_dir():
        asked = Path(source) / TEXT_TOWER
    if asked is None:
        return None
    check_shared(*read_config(source, revision)[:2], asked)
    return load_text_tower(asked)


def loaded_settings(
    loaded: LoadedModel,
    *,
    convention: Convention | None,
    mrope_rule: MropeRule | None,
    positions: PositionRule | None,
    template: str | None,
) -> FamilySettings:
    """The settings of a loaded checkpoint with what its caller asks for; see `VideoLLM.load`.

    Raises:
      JvidpruneError: see `family_settings`.
    """
    settings = family_settings(loaded.family, loaded.folder, convention, mrope_rule)
    settings = dataclasses.replace(settings, positions=positions)
    if template is None and settings.own_chat and chat_template(loaded.folder) is not None:
        template = CHAT
    return settings if template is None else dataclasses.replace(settings, template=template)


def folder_pruning(loaded: LoadedModel, *, allow_code: bool) -> SavedPruning | None:
    """What jvidprune_config.json of the folder names; its reducer is not bound to the model yet.

    Raises:
      JvidpruneError: a file that cannot be read, or one that was made for another family.
    """
    pruning = load_pruning(loaded.folder, allow_code=allow_code)
    if pruning is not None and pruning.backbone not in (None, loaded.family):
        raise JvidpruneError(
            f"{loaded.folder} is a {loaded.family} checkpoint with pruning settings made for {pruning.backbone}."
        )
    return pruning
