"""How an answer is generated: the caller's settings on those of the folder, and where the answer's text ends."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Seed, checked
from jvidprune.models.checkpoint.generation import read_generation
from jvidprune.models.sampling import GREEDY, Sampling, check_stops
from jvidprune.models.tokenizer import Tokenizer
from jvidprune.texts import unknown

if TYPE_CHECKING:
    from jvidprune.llm.video_llm import VideoLLM

MAX_NEW_TOKENS = 64
"""Longest answer, where nobody says otherwise."""

Defaults = Literal["greedy", "folder"]
"""Where settings come from that the caller does not give: the most probable tokens, as the papers answer, or the
folder's generation_config.json, as transformers does."""

Finish = Literal["stop", "length"]
"""Why an answer ended: at its end of sequence or a stop text, or because it was as long as allowed."""


class Generating(TypedDict, total=False):
    """What `ask`, `stream` and `Chat.ask` take of generation.

    Keys:
      max_new_tokens: longest answer, 64 by default.
      temperature, top_p, top_k, min_p, repetition_penalty: see `models.sampling.Sampling`.
      stop: a text or several that end an answer; they are left out of it.
      seed: of sampling; the same seed gives the same answer, whatever is asked beside it.
      defaults: see `Defaults`; "greedy" by default.
    """

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str] | None
    seed: int
    defaults: Defaults


@dataclasses.dataclass(frozen=True)
class Generation:
    """All settings of an answer.

    Attributes:
      max_new_tokens: longest answer.
      sampling: how tokens are taken.
      stop: texts that end it.
      seed: of sampling.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    seed: int = 0


def generation_of(llm: "VideoLLM", options: Generating) -> Generation:
    """The caller's settings, then those of `defaults`.

    Args:
      llm: whose folder is read for "folder".
      options: from `ask` and the like; None counts as not given.

    Raises:
      JvidpruneError: an unknown setting, one out of range, or a generation_config.json that cannot be followed.
    """
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if odd := given.keys() - Generating.__annotations__.keys():
        raise JvidpruneError(unknown("setting of generation", min(odd), tuple(Generating.__annotations__)))
    defaults = given.get("defaults", "greedy")
    if defaults not in ("greedy", "folder"):
        raise JvidpruneError(unknown("defaults of generation", defaults, ("greedy", "folder")))
    own = read_generation(llm.loaded.folder) if defaults == "folder" else None
    sampling = GREEDY if own is None else own.sampling
    names = [field.name for field in dataclasses.fields(Sampling)]
    sampling = dataclasses.replace(sampling, **{name: given[name] for name in names if name in given})
    most = given.get("max_new_tokens", (own and own.max_new_tokens) or MAX_NEW_TOKENS)
    stop = check_stops(given["stop"]) if "stop" in given else () if own is None else own.stop
    seed = checked(given.get("seed", 0), Seed, "seed")
    return Generation(checked(most, Count, "max_new_tokens"), sampling, stop, seed)


class Ended(NamedTuple):
    """An answer as it stands.

    Attributes:
      ids: generated, up to what ended it, end of sequence included.
      text: without white space around it, without what ended it.
      finish: why it ended, None while it may go on.
    """

    ids: tuple[int, ...]
    text: str
    finish: Finish | None


class AnswerText:
    """The text of an answer whose ids come in pieces: what can no longer change, and where it ends.

    A token may hold a part of a character, or the beginning of a stop text: its text waits until it is settled. All
    pieces together are the answer's whole text.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int], generation: Generation, *, ends: bool = True):
        """Starts an empty answer.

        Args:
          tokenizer: ids to text.
          eos_ids: of an end of sequence, whose text is left out.
          generation: stop texts and length.
          ends: whether an end of sequence ends it.
        """
        self._tokenizer, self._eos, self._ends = tokenizer, frozenset(eos_ids), ends
        self._stop, self._most = generation.stop, generation.max_new_tokens
        self._ids: list[int] = []
        self._sent = ""
        self._ended: Ended | None = None

    @property
    def answer(self) -> Ended:
        """The answer so far."""
        return self._ended or Ended(tuple(self._ids), self._text(self._ids).strip(), None)

    def push(self, ids: Sequence[int]) -> str:
        """Takes further ids, negative ones left out, and gives the text that has become certain, which may be none."""
        for id in ids:
            if id < 0 or self._ended is not None:
                break
            self._ids.append(int(id))
            if self._stop and (cut := self._stopped()) is not None:
                self._ended = Ended(tuple(self._ids), cut.strip(), "stop")
            elif self._ends and id in self._eos:
                self._ended = Ended(tuple(self._ids), self._text(self._ids).strip(), "stop")
            elif len(self._ids) >= self._most:
                self._ended = Ended(tuple(self._ids), self._text(self._ids).strip(), "length")
        settled = self._settled() if self._ended is None else self._ended.text
        if not settled.startswith(self._sent):
            return ""
        piece, self._sent = settled[len(self._sent) :], settled
        return piece

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([id for id in ids if id not in self._eos])

    def _stopped(self) -> str | None:
        """The text before the first stop text, None where there is none yet."""
        text = self._text(self._ids)
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return text[: min(found)] if found else None

    def _settled(self) -> str:
        """The text that no later token changes."""
        # What a character is missing bytes of decodes to a replacement character.
        text = self._text(self._ids).rstrip("\ufffd")
        held = 0
        for stop in self._stop:
            longest = next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
            held = max(held, longest)
        text = text[: len(text) - held]
        if self._tokenizer.cleans:
            # A blank may go once its next word is there ("do n't").
            text = text[: max(text.rfind(" "), 0)]
        return text.strip()
