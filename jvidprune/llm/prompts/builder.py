"""What a way of writing videos into a prompt is: texts, their ids, and the slots of everything."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.prompts.slots import SlotMap
from jvidprune.llm.prompts.templates import CHAT, chat_texts, template
from jvidprune.models.settings import FamilySettings
from jvidprune.models.tokenizer import Tokenizer, beginning
from jvidprune.reducers.prompt_rules import PositionRule
from jvidprune.reducers.protocol import Reducer
from jvidprune.tokens import Layout


@dataclasses.dataclass(frozen=True)
class PromptBuilder:
    """One way of writing videos into a prompt, for one loaded model; a subclass gives `lay_out`.

    Attributes:
      config: of the model.
      settings: of its family.
      folder: of the checkpoint.
      tokenizer: of its folder.
      placeholder: what a chat template writes for a video.
      between: text between two of them.
    """

    config: Any
    settings: FamilySettings
    folder: Path
    tokenizer: Tokenizer

    placeholder: ClassVar[str] = "<video>"
    between: ClassVar[str] = " "

    def check(self) -> None:
        """Refuses a folder whose prompts cannot be written, before the first video.

        Raises:
          JvidpruneError: an unknown template, a chat template that is not there or cannot be used, or settings that
            are not supported.
        """
        self.texts("?")

    def texts(self, question: str, videos: int = 1) -> list[str]:
        """The texts around and between so many videos, without what is written around each.

        Raises:
          JvidpruneError: an unknown template, or a chat template that is not there or cannot be used.
        """
        if self.settings.template != CHAT:
            texts = template(self.settings.template).texts(question, videos)
        else:
            words = {"placeholder": self.placeholder, "between": self.between}
            texts = chat_texts(self.folder, question, videos, **words)
        start = beginning(self.folder) if self.settings.begins else ""
        return texts if texts[0].startswith(start) else [start + texts[0], *texts[1:]]

    def ids(self, videos: Sequence[ReducedVideo], question: str) -> list[list[int]]:
        """Token ids of the texts between runs of visual tokens, with what is written around these."""
        return [self.tokenizer.encode(text) for text in self.texts(question, len(videos))]

    def lay_out(
        self, videos: Sequence[ReducedVideo], ids: Sequence[Any], *, reserve: int, positions: PositionRule
    ) -> SlotMap:
        """The slots of a prompt.

        Args:
          videos: in the order of the prompt.
          ids: from `ids`.
          reserve: tokens that will be generated.
          positions: rule of the kept tokens.

        Raises:
          JvidpruneError: prompt and answer do not fit into the model's positions, or times that are needed and not
            known.
        """
        raise NotImplementedError

    def bidirectional(self, slots: SlotMap, text: np.ndarray) -> np.ndarray | None:
        """(S,) bool, slots that see each other whatever their order; None where a prompt is read causally.

        Args:
          slots: of the prompt.
          text: ids of its text tokens in order.
        """
        return None

    @staticmethod
    def marker_tokens(config: Any, layout: Layout, reducer: Reducer) -> int:
        """Text tokens that are written around the tokens of a video, about.

        Args:
          config: of the model.
          layout: of the video.
          reducer: some leave markers out.
        """
        return 0
