"""What a way of writing videos into a prompt is: texts, their ids, and the slots of everything."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.prompts.messages import Asked, Message, asked, check_messages, written
from jvidprune.llm.prompts.slots import SlotMap
from jvidprune.llm.prompts.templates import CHAT, chat_texts, template
from jvidprune.models.settings import FamilySettings
from jvidprune.models.tokenizer import Tokenizer, beginning
from jvidprune.reducers.prompt_rules import PositionRule
from jvidprune.reducers.protocol import Reducer
from jvidprune.tokens import Layout

_ANSWER = "[[jvidprune: the last answer]]"
"""Marks an answer in a rendered conversation."""


@dataclasses.dataclass(frozen=True)
class PromptBuilder:
    """One way of writing videos into a prompt, for one loaded model; a subclass gives `lay_out`.

    Attributes:
      config: of the model.
      settings: of its family.
      folder: of the checkpoint.
      tokenizer: of its folder.
      placeholder: what a chat template writes for a video.
      picture_placeholder: what it writes for a still picture; None asks the template for a video in its place, around
        which it writes the same.
      between: text between two of them.
    """

    config: Any
    settings: FamilySettings
    folder: Path
    tokenizer: Tokenizer

    placeholder: ClassVar[str] = "<video>"
    picture_placeholder: ClassVar[str | None] = None
    between: ClassVar[str] = " "

    def check(self) -> None:
        """Refuses a folder whose prompts cannot be written, before the first video.

        Raises:
          JvidpruneError: an unknown template, a chat template that is not there or cannot be used, or settings that
            are not supported.
        """
        self.texts("?")

    def texts_around(self, question: Asked, videos: Sequence[ReducedVideo]) -> list[str]:
        """`texts` of a question or a conversation about these videos and pictures."""
        return self.texts(question, len(videos), [one.video.picture for one in videos])

    def texts(self, question: Asked, videos: int = 1, pictures: Sequence[bool] = ()) -> list[str]:
        """The texts around and between visuals, without what is written around each.

        Args:
          question: behind so many videos, or a conversation that says where its visuals stand.
          videos: before a question.
          pictures: which of the visuals are still pictures; by default none.

        Raises:
          JvidpruneError: no conversation, an unknown template, or a chat template that is not there or cannot be used.
        """
        messages = asked(question, videos) if isinstance(question, str) else question
        check_messages(messages)
        if self.settings.template != CHAT:
            known = template(self.settings.template)
            # A template of somebody's own says how one question is written, and need not say more.
            if isinstance(question, str) and videos > 0:
                texts = known.texts(question, videos)
            else:
                texts = written(known, messages)
        else:
            kinds = [] if self.picture_placeholder is None else list(pictures)
            texts = chat_texts(
                self.folder,
                messages,
                placeholder=self.stands_for,
                between=self.between,
                picture=self.picture_placeholder if any(kinds) else None,
                pictures=kinds,
            )
        start = beginning(self.folder) if self.settings.begins else ""
        return texts if texts[0].startswith(start) else [start + texts[0], *texts[1:]]

    @property
    def stands_for(self) -> str:
        """What the chat template of the folder writes for a video."""
        return self.placeholder

    def following(self, messages: Sequence[Message]) -> list[int]:
        """Token ids behind the last answer of a conversation: the end of its turn, and the turn that asks on.

        Args:
          messages: the conversation, its last answer and the new question included.
        """
        whole = [*messages]
        place = len(whole) - 2
        whole[place] = Message("assistant", (_ANSWER,))
        *_, last = self.texts(whole)[-1].rpartition(_ANSWER)
        return self.tokenizer.encode(last)

    def ids(self, videos: Sequence[ReducedVideo], question: Asked) -> list[list[int]]:
        """Token ids of the texts between runs of visual tokens, with what is written around these."""
        return [self.tokenizer.encode(text) for text in self.texts_around(question, videos)]

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
