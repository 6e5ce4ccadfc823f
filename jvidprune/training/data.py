"""What a run learns from: clips with their questions as examples, packed by grain into rows of fixed length."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvidprune.errors import JvidpruneError, reading
from jvidprune.evals.items import Item, LeftOut, Question, Task
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.tokenizer import END_TOKENS

LOOKED_AT = 16
"""Clips whose questions decide how long rows are."""

TEXT, NEWLINE = -1, -2
"""What stands in a slot that holds no visual token, in `TrainingExample.visual`."""

TrainingExample = Mapping[str, np.ndarray]
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
class ExampleEncoder:
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

    def __call__(self, item: Item) -> TrainingExample:
        """The example of an item.

        Raises:
          JvidpruneError: an unreadable clip, another number of frames, or no question that fits.
        """
        return {"pixels": self.read(item), **self.tokens(item)}

    def tokens(self, item: Item) -> dict[str, np.ndarray]:
        """The example of an item without its pixels; no clip is read.

        Raises:
          JvidpruneError: no question of the item fits.
        """
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
        """(1, T, 3, s, s) pixels of an item's clip.

        Raises:
          JvidpruneError: a clip with another number of frames.
        """
        frames = item.load().frames
        if len(frames) != self.frames:
            raise JvidpruneError(f"the clip {item.id} has {len(frames)} frames, but training reads {self.frames}.")
        return np.asarray(self.llm.pixels(frames))[None].astype(self.pixels)


class PackedRows(NamedTuple):
    """Packed examples; R rows, C clips of T frames, S slots, A predicted tokens, Q questions a row.

    Attributes:
      pixels: (R, C, T, 3, s, s).
      share: (R, C) float32 share of each clip in losses of clips, 0 where there is none; those of a step sum to 1.
      ids: (R, S) int32 text tokens.
      visual: (R, S) int32 kept visual token clip * K + k of the row, or `TEXT` or `NEWLINE`.
      segment: (R, S) int32 number of the example in its row from 1, 0 where a slot is empty.
      branch: (R, S) int32 question that a slot belongs to, 0 for what they share.
      position: (R, S) int32 rotary position.
      slot: (R, A) int32 slot whose output predicts the target.
      target: (R, A) int32 token id.
      weight: (R, A) float32 share of each token in the language model's loss; those of a step sum to 1.
      question: (R, A) int32 number below A of the question in its row, -1 for ends of answers and where nothing is
        predicted.
    """

    pixels: Any
    share: Float[np.ndarray, "R C"]
    ids: Int[np.ndarray, "R S"]
    visual: Int[np.ndarray, "R S"]
    segment: Int[np.ndarray, "R S"]
    branch: Int[np.ndarray, "R S"]
    position: Int[np.ndarray, "R S"]
    slot: Int[np.ndarray, "R A"]
    target: Int[np.ndarray, "R A"]
    weight: Float[np.ndarray, "R A"]
    question: Int[np.ndarray, "R A"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Size of the rows of a step.

    Attributes:
      rows: R, of a step in all; split into equal parts where gradients are accumulated.
      clips: C, most clips of a row.
      slots: S.
      answers: A, predicted tokens of a row.
    """

    rows: int
    clips: int
    slots: int
    answers: int


def pack(parts: dict[str, np.ndarray], kept: int, processes: int = 1) -> PackedRows:
    """Rows from what grain packed.

    Args:
      parts: arrays of `TrainingExample` with leading axes (R, length), and their `*_segment_ids`.
      kept: K, visual tokens of a clip.
      processes: that have rows of a step; the shares of each sum to one over their number.
    """
    segment, owner = parts["ids_segment_ids"], parts["slot_segment_ids"]
    there = owner > 0
    # Where each example begins in its row, by its number: slots and visual tokens count from there.
    numbers = np.arange(segment.max() + 1)
    starts = np.argmax(segment[:, None, :] == numbers[None, :, None], axis=-1)
    visual = np.where(parts["visual"] >= 0, parts["visual"] + (segment - 1) * kept, parts["visual"])
    slot = np.where(there, parts["slot"] + np.take_along_axis(starts, owner, axis=1), 0)
    # A question is called by the place of its first token; ends of answers are learned, but not judged.
    name = owner * (int(parts["question"].max(initial=0)) + 1) + parts["question"]
    first = np.argmax(name[:, :, None] == name[:, None, :], axis=-1)
    question = np.where(there & (parts["judged"] > 0), first, -1)
    return PackedRows(
        pixels=parts["pixels"],
        share=_share(parts["pixels_segment_ids"] > 0, processes),
        ids=parts["ids"],
        visual=np.where(segment > 0, visual, TEXT).astype(np.int32),
        segment=segment,
        branch=parts["branch"],
        position=parts["position"],
        slot=slot.astype(np.int32),
        target=parts["target"],
        weight=_share(there, processes),
        question=question.astype(np.int32),
    )


def _share(there: np.ndarray, processes: int) -> np.ndarray:
    return (there / (max(int(there.sum()), 1) * processes)).astype(np.float32)


class Pipeline:
    """Rows of a task without end, shuffled anew in every epoch; equal settings and files give equal rows.

    Clips that cannot be read are passed over.

    Args:
      task: clips and questions.
      encode: items to examples, e.g. `ExampleEncoder`.
      kept: visual tokens of a clip.
      shape: of the rows.
      seed: of the order.
      shuffle: False keeps the task's order.
      process: (number of this process, of how many); each reads clips of its own.
      threads: that make examples ahead of time; 0 makes them when asked.
      strict: stop at the first clip that cannot be read, instead of passing over it.
      report: called with each clip that is passed over.
    """

    def __init__(
        self,
        task: Task,
        encode: Callable[[Any], TrainingExample],
        *,
        kept: int,
        shape: Shape,
        seed: int = 0,
        shuffle: bool = True,
        process: tuple[int, int] = (0, 1),
        threads: int = 1,
        strict: bool = False,
        report: Callable[[LeftOut], None] | None = None,
    ):
        self.task, self.encode, self.kept, self.shape = task, encode, kept, shape
        self._seed, self._shuffle, self._process, self._threads = seed, shuffle, process, threads
        self._strict, self.report = strict, report
        self.left_out: dict[int, LeftOut] = {}
        """Clips that were passed over because they cannot be read, by number."""

    def example(self, number: int) -> dict[str, Any] | None:
        """The example of a clip, None where there is none.

        Raises:
          JvidpruneError: with `strict`, or when no clip of the task is left.
        """
        item = self.task[number]
        try:
            with reading(item.file or item.id):
                return dict(self.encode(item))
        except JvidpruneError as error:
            bad = LeftOut(item.id, item.file, str(error))
            if self._strict:
                raise JvidpruneError(str(bad)) from error
            fresh = number not in self.left_out
            self.left_out[number] = bad
            if len(self.left_out) == len(self.task):
                first = next(iter(self.left_out.values()))
                raise JvidpruneError(f"none of the {len(self.task)} clips can be read; the first: {first}") from error
            if fresh and self.report is not None:
                self.report(bad)
            return None

    def dataset(self) -> Any:
        """The grain dataset of `PackedRows`."""
        import grain
        from grain.experimental import FirstFitPackIterDataset

        number, count = self._process
        numbers = grain.MapDataset.range(len(self.task))
        if self._shuffle:
            numbers = numbers.shuffle(self._seed)
        examples = numbers.repeat(None)[number::count].map(lambda index: self.example(int(index)))
        threads = max(1, self._threads)
        read = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=2 * threads * (self._threads > 0))
        shape = self.shape
        lengths = dict.fromkeys(("ids", "visual", "branch", "position"), shape.slots)
        lengths |= dict.fromkeys(("slot", "target", "judged", "question"), shape.answers)
        packed = FirstFitPackIterDataset(
            examples.to_iter_dataset(read),
            length_struct={**lengths, "pixels": shape.clips},
            num_packing_bins=shape.rows,
            shuffle_bins=False,
            max_sequences_per_bin=shape.clips,
        )
        return packed.batch(shape.rows).map(lambda parts: pack(parts, self.kept, count))

    def iterate(self, step: int, saved: dict[str, Any] | None) -> Iterator[tuple[PackedRows, dict[str, Any]]]:
        """Rows of the steps from `step` on, each with the state to go on from behind it.

        Args:
          step: of the run; decides nothing without `saved`, where it must be 0.
          saved: state behind the step before.
        """
        assert (saved is None) == (step == 0), "a run goes on from a saved state of its input"
        rows = iter(self.dataset())
        if saved is not None:
            rows.set_state(saved)
        for batch in rows:
            yield batch, rows.get_state()


def rows_for(llm: VideoLLM, task: Task, *, frames: int, kept: int, rows: int, clips: int) -> Shape:
    """Rows that hold so many clips with nearly all of their questions.

    Args:
      llm: whose prompts are read.
      task: clips and questions, of which the first few are looked at.
      frames: of a clip.
      kept: visual tokens of a clip.
      rows: of a step.
      clips: of a row.

    Raises:
      JvidpruneError: a row that is longer than the model's positions.
    """
    encode = ExampleEncoder(llm, frames, kept, 1 << 30, 1 << 30)
    found = [encode.tokens(task[number]) for number in range(min(LOOKED_AT, len(task)))]
    slots = clips * max(len(example["ids"]) for example in found)
    answers = clips * max(len(example["slot"]) for example in found)
    limit = llm.loaded.config.text.max_positions
    longest = max(len(example["ids"]) for example in found)
    if longest > limit:
        raise JvidpruneError(f"a clip with its questions takes {longest} slots, but the model has {limit} positions.")
    return Shape(rows=rows, clips=clips, slots=-(-slots // 32) * 32, answers=-(-answers // 8) * 8)
