"""Rows of one clip and one question: what a module that acts inside the language model, or before it, learns from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.evals.items import Item, Question, Task
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.training.data import ExampleEncoder, PackedRows, Shape
from jvidprune.training.loss import ClipTokens


class FirstQuestions:
    """The first question about every clip of a task.

    Args:
      task: with any number of questions a clip.
    """

    def __init__(self, task: Task):
        self._task, self.name, self.categories = task, task.name, task.categories

    def chance(self, question: Question) -> float:
        """As the task has it."""
        return self._task.chance(question)

    def __len__(self) -> int:
        return len(self._task)

    def __getitem__(self, index: int) -> Item:
        item = self._task[index]
        return dataclasses.replace(item, questions=item.questions[:1])

    def fingerprint(self) -> dict[str, Any]:
        """That of the task, and that only first questions are asked."""
        return {**self._task.fingerprint(), "asked": "first questions"}


class WholeVideo:
    """A reader that keeps every token; see `loss.Reader`.

    Args:
      llm: whose tower reads.
      frames: of a clip.
    """

    def __init__(self, llm: VideoLLM, frames: int):
        pixels = llm.pixels(np.zeros((frames, 56, 56, 3), np.uint8))
        if not isinstance(pixels, np.ndarray | jax.Array):
            raise JvidpruneError(f"training reads square frames, which {llm.loaded.family} has not.")
        found = jax.eval_shape(lambda x: llm.loaded.model.encode(x), pixels)
        self.frames, self.grid = frames, found.grid
        self.whole = self.kept = frames * found.features.shape[1]

    def __call__(self, parts: Any, pixels: Float[Array, "B T 3 s s"], key: Array) -> ClipTokens:
        """All tokens of all clips, without any loss of their own."""
        clips, model = pixels.shape[0], parts["model"]
        found = model.encode(pixels.reshape(-1, *pixels.shape[2:]).astype(model.lm.dtype)).features
        return ClipTokens(found.reshape(clips, self.kept, -1), jnp.zeros(clips))


@dataclasses.dataclass(frozen=True)
class RowPrompt:
    """What stands where in every row.

    Attributes:
      slots: S.
      before: text tokens in front of the video.
      kept: visual tokens.
      prefix: slots up to the question, a newline behind the video included.
      head, tail: tokens of the template between the video and the question's own, and behind these.
      grid: (rows, columns) of a frame.
    """

    slots: int
    before: int
    kept: int
    prefix: int
    head: int
    tail: int
    grid: tuple[int, int]

    @classmethod
    def of(cls, llm: VideoLLM, reader: WholeVideo, shape: Shape) -> "RowPrompt":
        """Of rows of a shape.

        Raises:
          JvidpruneError: rows of several clips, or a family whose prompts have no such rows.
        """
        if shape.clips != 1:
            raise JvidpruneError(f"every row has a prompt of its own here, not {shape.clips} clips.")
        encode = ExampleEncoder(llm, reader.frames, reader.kept, shape.slots, shape.answers)
        empty, full = (llm.tokenizer.encode(llm.prompts.texts(text)[-1]) for text in ("", "Which one is it"))
        room = len(empty)
        head = next((i for i in range(room) if empty[i] != full[i]), room)
        tail = next((i for i in range(room - head) if empty[-1 - i] != full[-1 - i]), room - head)
        return cls(shape.slots, len(encode.before), reader.kept, encode.prefix, head, tail, reader.grid)

    @property
    def visual(self) -> Bool[np.ndarray, "S"]:
        """Slots of the video's tokens."""
        slot = np.arange(self.slots)
        return (slot >= self.before) & (slot < self.before + self.kept)

    def numbers(self, kind: str) -> Int[np.ndarray, "S"]:
        """For each visual slot its "frame", or its "place" in the frame, row * (columns + 1) + column; 0 elsewhere."""
        rows, columns = self.grid
        token = np.where(self.visual, np.arange(self.slots) - self.before, 0)
        row, column = np.divmod(token % (rows * columns), columns)
        found = token // (rows * columns) if kind == "frame" else row * (columns + 1) + column
        return np.where(self.visual, found, 0).astype(np.int32)

    def places(self) -> Int[np.ndarray, "S 3"]:
        """Frame, row and column of each visual slot."""
        place, wide = self.numbers("place"), self.grid[1] + 1
        return np.stack([self.numbers("frame"), place // wide, place % wide], axis=-1)

    def asked(self, rows: PackedRows, *, template: bool) -> Bool[Array, "R S"]:
        """Slots of the question, with the template around it or without; never of the answer.

        Args:
          rows: of one clip and one question each.
          template: whether everything between video and answer counts, as at a cut inside the language model, or the
            question's own tokens, as the evidence "text" has them.
        """
        head, tail = (0, 0) if template else (self.head, self.tail)
        slot, last = jnp.arange(self.slots), jnp.asarray(rows.slot)[:, :1]
        return (slot >= self.prefix + head) & (slot <= last - tail)


def answer_logits(model: Any, states: Float[Array, "R S D"], rows: PackedRows) -> Float[Array, "R A V"]:
    """Logits of every predicted token."""
    return model.lm.logits(jnp.take_along_axis(states, jnp.asarray(rows.slot)[..., None], axis=1))


def cross_entropy(logits: Float[Array, "R A V"], rows: PackedRows) -> Float[Array, ""]:
    """Nats a predicted token, weighted as the rows say."""
    picked = jnp.take_along_axis(logits, jnp.asarray(rows.target)[..., None], axis=-1)[..., 0]
    return (rows.weight * (jax.nn.logsumexp(logits, axis=-1) - picked)).sum()
