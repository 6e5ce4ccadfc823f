"""A clip with its questions as one training example: the prompt's tokens, what may see what, which answers count."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.evals.items import Item, Question
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.tokenizer import END_TOKENS

TEXT, NEWLINE = -1, -2
"""What stands in a slot that holds no visual token, in `Example.visual`."""

Example = Mapping[str, np.ndarray]
"""Arrays of one example; S slots, A tokens that are predicted.

  pixels (1, T, 3, s, s): what the tower reads.
  ids (S,) int32: text tokens, 0 where a visual token stands.
  visual (S,) int32: number of the kept visual token, `TEXT` or `NEWLINE`.
  branch (S,) int32: 0 for what all questions share, q for the q-th question.
  position (S,) int32: rotary position.
  slot (A,) int32: whose output predicts the target.
  target (A,) int32: token id.
  judged (A,) bool: whether the token is part of the answer, not its end.
  question (A,) int32: q.
"""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Items to examples, with the prompt of the model's own family.

    Attributes:
      llm: model, tokenizer and settings.
      frames: of a clip; others are refused.
      kept: visual tokens that a clip has behind the scorer.
      longest: slots of an example; questions that do not fit are left out.
      answers: predicted tokens of an example, likewise.
      pixels: dtype of the pixels.

    Raises:
      JvidpruneError: a family whose prompts have a video in several pieces, a newline in every row, or no room for one
        question.
    """

    llm: VideoLLM
    frames: int
    kept: int
    longest: int
    answers: int
    pixels: Any = np.float32

    def __post_init__(self):
        if self.llm.settings.prompt != "newlines" or self.llm.newline not in ("one_token", "no_token"):
            family = self.llm.loaded.family
            raise JvidpruneError(f"training packs videos that are one run of tokens, which those of {family} are not.")
        if self.prefix >= self.longest:
            raise JvidpruneError(
                f"a clip alone takes {self.prefix} slots of {self.longest}: allow more slots or remove more tokens."
            )

    @property
    def before(self) -> list[int]:
        """Text in front of the video."""
        return self.llm.tokenizer.encode(self.llm.prompts.texts("")[0])

    @property
    def newline(self) -> bool:
        """Whether a newline embedding ends the video."""
        return self.llm.newline == "one_token"

    @property
    def prefix(self) -> int:
        """Slots that all questions about a clip share."""
        return len(self.before) + self.kept + self.newline

    @property
    def end(self) -> int:
        """Token that ends an answer: the end of a turn where the tokenizer has one."""
        found = (self.llm.tokenizer.token_id(token) for token in END_TOKENS)
        return next(id for id in (*found, self.llm.eos_ids[0]) if id is not None)

    def question(self, question: Question) -> tuple[list[int], list[int]]:
        """Token ids of what follows the video, and of the answer with its end."""
        encode = self.llm.tokenizer.encode
        return encode(self.llm.prompts.texts(question.prompt())[-1]), [*encode(question.answer), self.end]

    def __call__(self, item: Item) -> Example:
        """The example of an item.

        Raises:
          JvidpruneError: an unreadable clip, another number of frames, or no question that fits.
        """
        return {"pixels": self.read(item), **self.tokens(item)}

    def tokens(self, item: Item) -> dict[str, np.ndarray]:
        """The example of an item without its pixels; no clip is read."""
        before, shared = self.before, self.prefix
        ids: list[int] = [*before, *[0] * (shared - len(before))]
        visual = [TEXT] * len(before) + list(range(self.kept)) + [NEWLINE] * self.newline
        branch, position = [0] * shared, list(range(shared))
        answers: dict[str, list[int]] = {"slot": [], "target": [], "judged": [], "question": []}
        asked = 0
        for question in item.questions:
            prompt, answer = self.question(question)
            # The end is predicted, never read.
            read = prompt + answer[:-1]
            if len(ids) + len(read) > self.longest or len(answers["slot"]) + len(answer) > self.answers:
                continue
            asked += 1
            first = len(ids) + len(prompt) - 1
            answers["slot"] += range(first, first + len(answer))
            answers["target"] += answer
            answers["judged"] += [1] * (len(answer) - 1) + [0]
            answers["question"] += [asked] * len(answer)
            ids += read
            visual += [TEXT] * len(read)
            branch += [asked] * len(read)
            position += range(shared, shared + len(read))
        if not asked:
            raise JvidpruneError(
                f"no question about {item.id} fits into {self.longest} slots and {self.answers} predicted tokens."
            )
        slots = {"ids": ids, "visual": visual, "branch": branch, "position": position}
        return {name: np.asarray(x, np.int32) for name, x in (slots | answers).items()}

    def read(self, item: Item) -> np.ndarray:
        """(1, T, 3, s, s) pixels of an item's clip."""
        frames = item.load().frames
        if len(frames) != self.frames:
            raise JvidpruneError(f"the clip {item.id} has {len(frames)} frames, but training reads {self.frames}.")
        return np.asarray(self.llm.pixels(frames))[None].astype(self.pixels)
