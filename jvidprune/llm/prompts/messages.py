"""A conversation as data: who says what, and where pictures and videos stand in it."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Literal

from jvidprune.errors import JvidpruneError
from jvidprune.models.templates import PromptTemplate

Role = Literal["system", "user", "assistant"]


class Visual(enum.Enum):
    """Marks the place of the next video or picture in a message."""

    HERE = "visual"


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
      role: who speaks.
      parts: texts, and places of visuals.
    """

    role: Role
    parts: tuple[str | Visual, ...]

    @property
    def visuals(self) -> int:
        """How many videos and pictures it shows."""
        return sum(part is Visual.HERE for part in self.parts)

    @property
    def text(self) -> str:
        """Its text alone."""
        return "".join(part for part in self.parts if isinstance(part, str))


Asked = str | Sequence[Message]
"""A question behind its visuals, or a conversation that says where they stand."""


def asked(question: str, visuals: int = 1, system: str | None = None) -> tuple[Message, ...]:
    """One question behind its visuals, and what the model is told before if anything."""
    turns = () if system is None else (Message("system", (system,)),)
    return (*turns, Message("user", (*[Visual.HERE] * visuals, question)))


def asked_of(question: str, visuals: Sequence[object], system: str | None) -> Asked:
    """What a prompt is written from: the question alone where it stands behind visuals, nothing else told."""
    return question if visuals and system is None else asked(question, len(visuals), system)


def check_messages(messages: Sequence[Message]) -> None:
    """Refuses what is no conversation: a system message first if at all, then user and assistant in turn, a user last.

    Raises:
      JvidpruneError: another order, or a visual that is not the user's.
    """
    roles = [message.role for message in messages]
    rest = roles[1:] if roles[:1] == ["system"] else roles
    if not rest or len(rest) % 2 == 0 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(rest)):
        raise JvidpruneError(
            "a conversation has a system message first, if any, then user and assistant in turn, and ends with a user; "
            f"got {', '.join(roles) or 'nothing'}."
        )
    if any(message.visuals for message in messages if message.role != "user"):
        raise JvidpruneError("videos and pictures stand in the messages of the user.")


def written(template: PromptTemplate, messages: Sequence[Message]) -> list[str]:
    """The texts around and between the visuals of a conversation, the assistant's answer expected next.

    Visuals that stand first in a message are written as the template has them, others where they stand.

    Args:
      template: of one turn.
      messages: checked.
    """
    found = [""]
    if messages[0].role == "system":
        found[0] = template.told(messages[0].text)
        messages = messages[1:]
    else:
        found[0] = template.opening
    for message in messages:
        if message.role == "assistant":
            found[-1] += message.text + template.closing
            continue
        _add_user(found, template, message)
    return found


def _add_user(found: list[str], template: PromptTemplate, message: Message) -> None:
    leading = next((n for n, part in enumerate(message.parts) if part is not Visual.HERE), len(message.parts))
    if not template.visual_first:
        found[-1] += template.user
    for number in range(leading):
        found[-1] += template.between * (number > 0)
        found.append("")
    if template.visual_first:
        found[-1] += template.user
    found[-1] += template.lead * (leading > 0)
    for part in message.parts[leading:]:
        if part is Visual.HERE:
            found.append("")
        else:
            found[-1] += part
    found[-1] += template.closing + template.answering
