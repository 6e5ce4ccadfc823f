"""The ways of writing videos into prompts, by the names that `FamilySettings.prompt` has for them."""

from jvidprune.errors import JvidpruneError
from jvidprune.llm.prompts.builder import PromptBuilder
from jvidprune.llm.prompts.internvl import NumberedPrompts
from jvidprune.llm.prompts.llava import NewlinePrompts
from jvidprune.llm.prompts.molmo2 import FramePrompts
from jvidprune.llm.prompts.qwen import MropePrompts
from jvidprune.llm.prompts.video_llama_3 import TimePrompts
from jvidprune.models.settings import FamilySettings

BUILDERS: dict[str, type[PromptBuilder]] = {
    "newlines": NewlinePrompts,
    "mrope": MropePrompts,
    "frames": FramePrompts,
    "times": TimePrompts,
    "numbered": NumberedPrompts,
}
"""A family of one's own names one of these, or adds its own way here."""


def builder_of(settings: FamilySettings) -> type[PromptBuilder]:
    """The way that a family writes prompts in.

    Raises:
      JvidpruneError: an unknown name.
    """
    if settings.prompt not in BUILDERS:
        raise JvidpruneError(
            f"there is no way of writing prompts {settings.prompt!r}; there are {', '.join(BUILDERS)}."
        )
    return BUILDERS[settings.prompt]
