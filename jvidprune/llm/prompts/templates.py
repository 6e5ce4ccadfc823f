"""Prompt templates: those of the families by name, and the one that a checkpoint folder carries.

The latter are Jinja texts, which transformers renders.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, reason
from jvidprune.llm.prompts.messages import Message, Visual
from jvidprune.models import family as families
from jvidprune.models.checkpoint.folder import read_json
from jvidprune.models.templates import PromptTemplate
from jvidprune.models.tokenizer import silenced

CHAT = "chat"
"""The template name that stands for the checkpoint's own."""


def templates() -> dict[str, PromptTemplate]:
    """The templates of all families by name."""
    return {name: found for one in families.families() for name, found in one.templates.items()}


def template(name: str) -> PromptTemplate:
    """A template by name.

    Raises:
      JvidpruneError: unknown name.
    """
    known = templates()
    if name not in known:
        raise JvidpruneError(f"unknown prompt template {name!r}; known: {', '.join(known)}, {CHAT}.")
    return known[name]


def chat_template(folder: Path) -> str | None:
    """The Jinja text of a folder's chat template, None where it carries none.

    In the order of transformers: chat_template.jinja, chat_template.json, tokenizer_config.json (where a list of named
    templates gives the one called "default").
    """
    if (folder / "chat_template.jinja").exists():
        try:
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise JvidpruneError(f"{folder / 'chat_template.jinja'} is no readable text: {reason(error)}.") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(folder / name).get("chat_template") if (folder / name).exists() else None
        if isinstance(found, list):
            named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
            found = named[0].get("template") if named else None
        if isinstance(found, str):
            return found
    return None


def chat_texts(
    folder: Path,
    messages: Sequence[Message],
    *,
    placeholder: str,
    between: str,
    picture: str | None = None,
    pictures: Sequence[bool] = (),
) -> list[str]:
    """The texts around and between the visuals of a conversation, an answer expected next.

    Templates that know videos get them as parts of the message; those of plain language models (lmms-lab folders) get
    the placeholders as text where they stand.

    Args:
      folder: of the checkpoint.
      messages: the conversation.
      placeholder: what the template writes for a video, vision markers included.
      between: text between two placeholders, where they go in as text.
      picture: what the template writes for a still picture; None where all visuals are videos to it.
      pictures: which of the visuals are pictures.

    Raises:
      JvidpruneError: the folder has no chat template, or one that cannot be rendered, leaves videos or texts out, or
        puts pictures and videos into another order.
    """
    source = chat_template(folder)
    if source is None:
        raise JvidpruneError(f"{folder} carries no chat template; leave the template out, or name one.")
    marks = [placeholder] if picture is None else [placeholder, picture]
    for mark in marks:
        if any(mark in message.text for message in messages):
            raise JvidpruneError(f"the question must not contain {mark}, which stands for the video.")
    visuals = sum(message.visuals for message in messages)
    kinds = [*pictures, *[False] * (visuals - len(pictures))]
    problem = ""
    # Parts for all, parts for the user alone, plain texts: what a template reads is known by trying.
    for listed in (("system", "user", "assistant"), ("user",), ()):
        turns, left = [], iter(kinds)
        for message in messages:
            shown = [next(left) for _ in range(message.visuals)]
            if message.role in listed:
                content: Any = _as_parts(message, shown)
            else:
                content = _as_text(message, [marks[one] for one in shown], between)
            turns.append({"role": message.role, "content": content})
        try:
            rendered = _render(source, turns, folder)
        except Exception as error:
            problem = reason(error)
            continue
        texts, found = _around(rendered, marks)
        if len(texts) != visuals + 1:
            problem = "it leaves the videos out"
        elif found != kinds:
            problem = "it puts pictures and videos into another order than they are given in"
        elif any(message.text.strip() not in rendered for message in messages):
            problem = "it leaves what is asked out"
        else:
            return texts
    raise JvidpruneError(f"the chat template of {folder} cannot be used: {problem}.")


def _around(rendered: str, marks: Sequence[str]) -> tuple[list[str], list[bool]]:
    """The texts around placeholders, and which of these stand for pictures."""
    pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", rendered)
    return pieces[::2], [mark != marks[0] for mark in pieces[1::2]]


def _as_parts(message: Message, pictures: Sequence[bool]) -> list[dict[str, str]]:
    kinds = iter(pictures)
    return [
        {"type": "image" if next(kinds) else "video"} if part is Visual.HERE else {"type": "text", "text": str(part)}
        for part in message.parts
    ]


def _as_text(message: Message, marks: Sequence[str], between: str) -> str:
    """The message as text: placeholders in front are divided as the family does, and stand on a line of their own."""
    leading = next((n for n, part in enumerate(message.parts) if part is not Visual.HERE), len(message.parts))
    after = "\n" if leading and marks[0] == "<video>" else ""
    behind = iter(marks[leading:])
    rest = "".join(next(behind) if part is Visual.HERE else part for part in message.parts[leading:])
    return between.join(marks[:leading]) + after + rest


def _render(source: str, messages: list[dict[str, Any]], folder: Path) -> str:
    with silenced():
        from transformers.utils.chat_template_utils import render_jinja_template

    path = folder / "tokenizer_config.json"
    given = read_json(path) if path.exists() else {}
    special = {
        name: given[name] for name in ("bos_token", "eos_token", "pad_token") if isinstance(given.get(name), str)
    }
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=source, add_generation_prompt=True, **special
    )
    return rendered[0]
