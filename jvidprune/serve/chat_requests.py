"""A chat completion as the OpenAI API writes it, read into a conversation, its media and the settings of its answer."""

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.fields import Count, Index, NotNegative, Positive, Ratio, Seed, Share, checked
from jvidprune.llm.generation import Generating
from jvidprune.llm.prompts.messages import Message, Role, Visual, check_messages

MOST_SAMPLES = 8
"""Answers to one request."""

MOST_MEDIA = 8
"""Videos and pictures in one request."""

LONGEST_TEXT = 200_000
"""Characters of all messages."""

_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "prediction": (),
    "audio": (),
    "store": (False,),
    "best_of": (1,),
}
"""Fields that would change an answer and are not supported, with the values besides null at which they change none."""

_HARMLESS = frozenset(
    {"user", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
)

_KNOWN = frozenset(
    {
        *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed"),
        *("stream", "stream_options", "top_k", "min_p", "repetition_penalty", "reducer", "ratio", "frames", "fps"),
    }
)


@dataclasses.dataclass(frozen=True)
class Media:
    """A video or a picture of a request.

    Attributes:
      data: bytes of the file; None where `path` names it.
      path: of a file on the server.
      digest: tells its content apart.
    """

    data: bytes | None
    path: Path | None
    digest: str


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """What is asked for.

    Attributes:
      model: name that was asked for.
      messages: the conversation.
      media: videos and pictures in the order of their places in it.
      generating: settings of the answer, for `llm.generation.generation_of`; the seed is always there.
      longest: tokens of an answer at most, also where `generating` leaves its length out.
      samples: answers.
      stream: as server-sent events.
      usage: whether a stream ends with the counts of tokens.
      reducer, ratio: retention, None for the server's own.
      frames, fps: sampled of each video, as for `VideoLLM.sample`.
    """

    model: str
    messages: tuple[Message, ...]
    media: tuple[Media, ...]
    generating: Generating
    longest: int
    samples: int = 1
    stream: bool = False
    usage: bool = False
    reducer: str | None = None
    ratio: float | None = None
    frames: int | None = None
    fps: float | None = None

    @property
    def question(self) -> str:
        """The last message's text, for methods that read it."""
        return self.messages[-1].text


def read_request(raw: Any, *, longest: int, defaults: str, files: Path | None) -> ChatRequest:
    """Reads the body of a request.

    Args:
      raw: JSON.
      longest: tokens of an answer at most.
      defaults: see `llm.generation.Defaults`, for settings that the request leaves out.
      files: folder whose files may be named by file:// addresses; None for none.

    Raises:
      JvidpruneError: no conversation, a field that is not supported or out of range, or media that cannot be taken.
    """
    if not isinstance(raw, dict):
        raise JvidpruneError("the body must be a JSON object.")
    given = {key: value for key, value in raw.items() if value is not None}
    for key, value in given.items():
        if key in _NEUTRAL and value not in _NEUTRAL[key]:
            raise JvidpruneError(f"{key} {quoted(value, 60)} is not supported.")
        if key not in _NEUTRAL and key not in _KNOWN and key not in _HARMLESS:
            raise JvidpruneError(f"unknown field {quoted(key, 60)}.")
    messages, media = read_messages(given.get("messages"), files)
    asked = given.get("max_completion_tokens", given.get("max_tokens"))
    most = None if asked is None else checked(asked, Count, "max_tokens")
    if most is not None and most > longest:
        raise JvidpruneError(f"max_tokens is {most}, and an answer has at most {longest} here.")
    numbers = {"temperature": NotNegative, "top_p": Ratio, "top_k": Index, "min_p": Share}
    numbers |= {"repetition_penalty": Positive, "seed": Seed}
    found = {key: checked(given[key], kind, key) for key, kind in numbers.items() if key in given}
    found.setdefault("seed", secrets.randbelow(1 << 31))
    stop = given.get("stop")
    listed = [stop] if isinstance(stop, str) else stop
    if listed is not None and (not isinstance(listed, list) or len(listed) > 16):
        raise JvidpruneError("stop must be a text or a list of at most 16.")
    generating: dict[str, Any] = {**found, "max_new_tokens": most, "stop": listed or None, "defaults": defaults}
    samples = checked(given.get("n", 1), Count, "n")
    if samples > MOST_SAMPLES:
        raise JvidpruneError(f"n is {samples}, and at most {MOST_SAMPLES} answers are given.")
    options = given.get("stream_options") or {}
    if not isinstance(options, dict):
        raise JvidpruneError("stream_options must be an object.")
    for key in ("reducer", "model"):
        if key in given and not isinstance(given[key], str):
            raise JvidpruneError(f"{key} must be a text.")
    return ChatRequest(
        model=given.get("model", ""),
        messages=messages,
        media=media,
        generating=cast(Generating, generating),
        longest=longest,
        samples=samples,
        stream=_truth(given.get("stream", False), "stream"),
        usage=_truth(options.get("include_usage") or False, "include_usage"),
        reducer=given.get("reducer"),
        ratio=None if "ratio" not in given else checked(given["ratio"], Ratio, "ratio"),
        frames=None if "frames" not in given else checked(given["frames"], Count, "frames"),
        fps=None if "fps" not in given else checked(given["fps"], Positive, "fps"),
    )


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise JvidpruneError(f"{name} must be true or false.")
    return value


def read_messages(raw: Any, files: Path | None = None) -> tuple[tuple[Message, ...], tuple[Media, ...]]:
    """The conversation and its media in order.

    Args:
      raw: `messages` of a request.
      files: see `read_request`.

    Raises:
      JvidpruneError: no conversation, or parts that cannot be taken.
    """
    if not isinstance(raw, list) or not raw:
        raise JvidpruneError("messages must be a list of messages.")
    messages, media = [], []
    for one in raw:
        role = one.get("role") if isinstance(one, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise JvidpruneError(f"a message has a role of {', '.join(_ROLES)}, got {quoted(one, 80)}.")
        if one.get("tool_calls") or one.get("function_call"):
            raise JvidpruneError("calls of tools are not supported.")
        parts = _parts(one.get("content"), media, files)
        messages.append(Message(_ROLES[role], parts))
    if len(media) > MOST_MEDIA:
        raise JvidpruneError(f"{len(media)} videos and pictures, and a request has at most {MOST_MEDIA}.")
    if sum(len(message.text) for message in messages) > LONGEST_TEXT:
        raise JvidpruneError(f"the messages have more than {LONGEST_TEXT} characters.")
    try:
        for message in messages:
            message.text.encode()
    except UnicodeEncodeError:
        raise JvidpruneError("the messages hold half of a character (a lone surrogate), which is no text.") from None
    check_messages(messages)
    return tuple(messages), tuple(media)


def _parts(content: Any, media: list[Media], files: Path | None) -> tuple[str | Visual, ...]:
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, list):
        raise JvidpruneError(f"the content of a message must be a text or a list of parts, got {quoted(content, 60)}.")
    found: list[str | Visual] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            found.append(part["text"])
        elif kind in ("video_url", "image_url"):
            address = part.get(kind)
            address = address.get("url") if isinstance(address, dict) else address
            media.append(_media(address, files))
            found.append(Visual.HERE)
        else:
            raise JvidpruneError(f"a part is text, image_url or video_url, got {quoted(kind, 60)}.")
    return tuple(found)


def _media(address: Any, files: Path | None) -> Media:
    """The file of an address; nothing is fetched from anywhere."""
    if not isinstance(address, str):
        raise JvidpruneError("image_url and video_url need a url.")
    if address.startswith("data:"):
        head, _, text = address.partition(",")
        if not head.endswith(";base64"):
            raise JvidpruneError("data: addresses must be base64.")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise JvidpruneError("a data: address holds no base64.") from None
        return Media(data, None, hashlib.sha256(data).hexdigest())
    try:
        parts = urlsplit(address)
    except ValueError:
        raise JvidpruneError(f"{quoted(address, 60)} is no address.") from None
    if parts.scheme == "file" and files is not None:
        # Names that no file can have (too long, or with a zero byte) are names of no file.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            root, path = files.resolve(), Path(unquote(parts.path)).resolve()
            if parts.netloc in ("", "localhost") and root in path.parents and path.is_file():
                state = path.stat()
                return Media(None, path, f"{path}:{state.st_mtime_ns}:{state.st_size}")
        raise JvidpruneError(f"there is no such file in the server's folder: {quoted(Path(parts.path).name, 80)}.")
    allowed = "data: addresses" if files is None else "data: addresses, and file:// in the server's folder"
    raise JvidpruneError(f"nothing is fetched: {allowed} are taken, got {quoted(address, 60)}.")


def chunk(head: Mapping[str, Any], choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """One event of a stream."""
    return {**head, "object": "chat.completion.chunk", "choices": list(choices), **more}
