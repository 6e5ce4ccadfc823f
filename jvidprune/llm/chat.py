"""Several rounds about the same videos: the reduced videos stay in the cache, and each round reads its own text alone.

chat = llm.chat("clip.mp4", reducer="flashvid", ratio=0.1)
print(chat.ask("What happens?").text)
print(chat.ask("And then?").text)
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Unpack

import jax
import numpy as np

from jvidprune.cuts.cache import Cache
from jvidprune.llm.asking import Answer, answer_of
from jvidprune.llm.batch import decoding, reply_of
from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.generation import AnswerText, Generating, Generation, generation_of
from jvidprune.llm.prompts.messages import Message, asked_of
from jvidprune.llm.prompts.messages import asked as one_question
from jvidprune.llm.rows import Prompt, Rows, batches, read_rows
from jvidprune.llm.stages import StageClock
from jvidprune.models.generate import decode_pieces
from jvidprune.models.go_on import held_back, read_on, states_of

if TYPE_CHECKING:
    from jvidprune.llm.video_llm import VideoLLM

TEXT_SLOTS = 32
"""Texts that are read into a cache are padded to a multiple of it."""

ROOM = 512
"""Slots of a cache behind the first prompt, besides those of its answer."""


class Chat:
    """A conversation about videos, or about none.

    Every round is what a prompt with the whole conversation gives: the ids of all texts and answers, behind each
    other. With the cache they are read once; where methods act inside the language model, what they keep hangs on the
    question, so that every round reads the whole conversation anew (`reuses` is False).

    Attributes:
      videos: reduced, before the first question.
      answers: so far, in order.
      reuses: rounds behind the first read their own text alone.
    """

    def __init__(
        self, llm: "VideoLLM", videos: Sequence[ReducedVideo], *, system: str | None = None, reuse: bool = True
    ):
        """Starts a conversation; nothing is read before the first question.

        Args:
          llm: the model.
          videos: from `VideoLLM.reduce`.
          system: what the model is told before, in place of the template's own system turn.
          reuse: keep the cache between rounds; False reads everything anew in each, which gives the same answers.
        """
        self.videos, self.answers = list(videos), list[Answer]()
        layers = llm.loaded.config.text.layers
        self.reuses = reuse and not any(stage.boundary < layers for one in videos for stage in one.inner)
        self._llm, self._system = llm, system
        self._messages: list[Message] = []
        self._first = ""
        # Ids behind the first prompt, and how many of them the cache holds.
        self._tail: list[int] = []
        self._held = 0
        self._cache: Cache | None = None

    def ask(self, question: str, *, clock: StageClock | None = None, **generating: Unpack[Generating]) -> Answer:
        """The next question and its answer.

        Args:
          question: what to ask.
          clock: collects the stages' times.
          **generating: see `llm.generation.Generating`.

        Raises:
          JvidpruneError: a conversation longer than the model's positions, or settings that are out of range.
        """
        for _ in self.stream(question, clock=clock, **generating):
            pass
        return self.answers[-1]

    def stream(
        self, question: str, *, clock: StageClock | None = None, **generating: Unpack[Generating]
    ) -> Iterator[str]:
        """The next answer in pieces; the round has ended, and `answers` holds it, when the last one was taken.

        A stream that is left before its end leaves the conversation as it was.

        Args:
          question, clock, **generating: see `ask`.

        Raises:
          JvidpruneError: see `ask`; with the first piece.
        """
        generation, clock = generation_of(self._llm, generating), clock or StageClock()
        llm, messages, tail = self._llm, self._messages, self._tail
        first = self._first
        if not messages:
            messages, first = [*one_question(question, len(self.videos), self._system)], question
        else:
            messages = [*messages, Message("user", (question,))]
            tail = [*tail, *llm.prompts.following(messages)]
        prompt = Prompt(self.videos, asked_of(first, self.videos, self._system), tuple(tail))
        (rows,) = batches(llm, [prompt], reserve=generation.max_new_tokens, batch=1, min_fill=0.0)
        with clock("prefill") as stage:
            logits, cache, stage.tokens = self._read(rows, tail, generation)
        length, position = int(cache.segments[0].length), np.asarray(cache.position)
        states = states_of(cache) if self.reuses else None
        text = AnswerText(llm.tokenizer, llm.eos_ids, generation)
        how = decoding(llm, rows, logits, generation, [jax.random.key(generation.seed)])
        with clock("generate") as stage:
            for ids, held in decode_pieces(llm.loaded.model, logits, cache, **how):
                cache = held
                if piece := text.push(ids[0].tolist()):
                    yield piece
                if text.answer.finish is not None:
                    break
            stage.tokens = len(text.answer.ids)
        ended = text.answer
        said = [id for id in ended.ids if id not in llm.eos_ids]
        # The token taken last is not read yet: an end of sequence is written by what follows, others are read then.
        # A recurrent state goes back to where it was copied, so that the whole answer is read once more.
        read = len(ended.ids) - 1 if states is None else 0
        self._messages = [*messages, Message("assistant", (ended.text,))]
        self._first, self._tail = first, [*tail, *said]
        self._held = len(tail) + min(read, len(said))
        self._cache = held_back(cache, length + read, position + read, states) if self.reuses else None
        reply = reply_of(llm, rows.used[0], ended)
        self.answers.append(answer_of(llm, self.videos, question, [reply], clock))

    def _read(self, rows: Rows, tail: Sequence[int], generation: Generation) -> tuple[jax.Array, Cache, int]:
        """Logits behind the conversation, its cache, and the tokens that were read for them."""
        fresh, cache = tail[self._held :], self._cache
        # A donated cache is gone, also when what follows fails.
        self._cache = None
        padded = -(-len(fresh) // TEXT_SLOTS) * TEXT_SLOTS
        if cache is not None:
            free = cache.segments[0].capacity - int(cache.segments[0].length)
            if padded + generation.max_new_tokens - 1 <= free:
                ids = np.asarray(fresh, np.int32)
                return *jax.block_until_ready(read_on(self._llm.loaded.model, ids, cache, padded=padded)), len(fresh)
        room = generation.max_new_tokens - 1 + (ROOM if self.reuses else 0)
        return *jax.block_until_ready(read_rows(self._llm, rows, room)), rows.used[0].slots.length
