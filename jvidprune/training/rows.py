"""Examples packed into rows of fixed length by grain: a deterministic input pipeline that goes on where it stopped."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvidprune.errors import JvidpruneError, reading
from jvidprune.evals.items import LeftOut, Task
from jvidprune.training.examples import TEXT, Example


class Rows(NamedTuple):
    """Packed examples; R rows, C clips of T frames, S slots, A predicted tokens, Q questions a row.

    Attributes:
      pixels: (R, C, T, 3, s, s).
      share: (R, C) float32 share of each clip in losses of clips, 0 where there is none; those of a step sum to 1.
      ids: (R, S) int32 text tokens.
      visual: (R, S) int32 kept visual token clip * K + k of the row, or `examples.TEXT` or `NEWLINE`.
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


def pack(parts: dict[str, np.ndarray], kept: int, processes: int = 1) -> Rows:
    """Rows from what grain packed.

    Args:
      parts: arrays of `Example` with leading axes (R, length), and their `*_segment_ids`.
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
    return Rows(
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
      encode: items to examples, e.g. `examples.Encoder`.
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
        encode: Callable[[Any], Example],
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
        """The grain dataset of `Rows`."""
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

    def iterate(self, step: int, saved: dict[str, Any] | None) -> Iterator[tuple[Rows, dict[str, Any]]]:
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
