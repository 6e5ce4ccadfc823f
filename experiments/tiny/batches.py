"""Batches as pure functions of the step: generated clips, their dense targets, their questions as token ids."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.tiny.named import MOST, SPOTS, told_of
from experiments.tiny.places import CATEGORY as PLACE
from experiments.tiny.places import place_questions
from experiments.tiny.targets import clip_targets
from jvidprune.evals.items import LETTERS, Question
from jvidprune.llm.prompts.templates import template
from jvidprune.models.tokenizer import Tokenizer
from jvidprune.procedural import templates
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.categories import ALL_CATEGORIES
from jvidprune.procedural.paint import paint
from jvidprune.procedural.world import Scene

TEMPLATE = template("qwen_1_5")
KINDS = ("choice", "short", "yes_no")
CATEGORY_NAMES = (*ALL_CATEGORIES, PLACE)
"""Categories by their number in a batch."""


class FrameBatch(NamedTuple):
    """Frames with what each cell of them shows; F frames, M patches, N cells.

    Attributes:
      frames: (F, S, S, 3) uint8.
      patches: (F, M, 3) int8 targets of unpooled patches, see `targets.SEEN`.
      cells: (F, N, 3) int8 targets of pooled cells.
      offset: (F, N, 2) float32, see `targets.Targets`.
      mask: (F, M, p * p) bool, which pixels of a patch show an object.
      near: (F, M, 2) float32 offset of patches, in patches.
    """

    frames: Any
    patches: Any
    cells: Any
    offset: Any
    mask: Any
    near: Any


class ClipBatch(NamedTuple):
    """Clips with questions; B clips, T frames, K visual tokens that are kept, Q questions of at most S tokens.

    Attributes:
      frames: (B, T, side, side, 3) uint8.
      kept: (B, K) int32 visual tokens in order, frame * N + cell.
      positions: (B, K + 1) int32 rotary positions of the visual tokens and the newline, counted from the first of them.
      story: (B, K, 9) int8 dense targets of the kept tokens.
      ids: (B, Q, S) int32 question and answer, zeros behind.
      length: (B, Q) int32 tokens in use.
      ask: (B, Q) int32 slot of the last token of the prompt.
      mark: (B, Q) int32 slot of the question mark.
      content: (B, Q, 2) int32 first and last word of what the right answer says, -1 where there is no question.
      truth: (B, Q, S) int8 on the last token of each option 1 if it is right and 0 if not, -1 elsewhere.
      category: (B, Q) int32 number in `CATEGORY_NAMES`, -1 where there is no question.
    """

    frames: Any
    kept: Any
    positions: Any
    story: Any
    ids: Any
    length: Any
    ask: Any
    mark: Any
    content: Any
    truth: Any
    category: Any


class QuestionRows(NamedTuple):
    """The questions of a `ClipBatch` alone, of one clip without the leading axis.

    Beside them `named`, `spots` and `ways` (B, Q, 2, ...), see `named.told_of`.
    """

    ids: Any
    length: Any
    ask: Any
    mark: Any
    content: Any
    truth: Any
    category: Any
    named: Any
    spots: Any
    ways: Any


@dataclasses.dataclass(frozen=True)
class Thinning:
    """How the visual tokens of a batch are thinned out.

    Attributes:
      kept: visual tokens of a clip that are kept; None keeps all.
      objects_first: tokens with objects stay, others are drawn at random; else all are drawn at random.
      close_gaps: kept tokens get positions without gaps, as behind a reducer; else they keep their own.
    """

    kept: int | None = None
    objects_first: bool = True
    close_gaps: bool = False


class Prompts:
    """Questions as token ids, with the text of the template around them."""

    def __init__(self, tokenizer: Tokenizer, longest: int):
        self.tokenizer, self.longest = tokenizer, longest
        self._words: dict[int, str] = {}
        self.before = np.asarray(tokenizer.encode(TEMPLATE.before), np.int32)
        self.end, self.mark = tokenizer.encode("<|im_end|>")[0], tokenizer.encode("?")[0]

    def word(self, token: int) -> str:
        """The word of a token, without the space before it."""
        if token not in self._words:
            self._words[token] = self.tokenizer.decode([token]).strip()
        return self._words[token]

    def encode(self, question: Question) -> "Encoded":
        """One question.

        Raises:
          AssertionError: longer than `longest`, or an answer of several tokens.
        """
        after = TEMPLATE.parts(question.prompt())[1]
        ids, answer = self.tokenizer.encode(after), self.tokenizer.encode(question.answer)
        assert len(answer) == 1, question.answer
        assert len(ids) + 2 <= self.longest, len(ids)
        words, options = question.content.split(), {}
        content = self.tokenizer.encode(words[0])[0], self.tokenizer.encode(words[-1])[0]
        if question.kind == "choice":
            lines = TEMPLATE.parts(question.prompt({}))[1].splitlines()
            for number in range(len(question.options)):
                # The template begins with an end of line, so that the question is line 1 and options follow.
                end = len(self.tokenizer.encode("\n".join([*lines[: number + 2], _option(question, number)])))
                options[end - 1] = int(question.options[number] == question.content)
        return Encoded([*ids, *answer, self.end], len(ids) - 1, ids.index(self.mark), content, options)


def _option(question: Question, number: int) -> str:
    return f"{LETTERS[number]}. {question.options[number]}"


class Encoded(NamedTuple):
    """A question as tokens.

    Attributes:
      ids: question, answer and end.
      ask: slot of the last prompt token.
      mark: slot of the question mark.
      content: first and last word of what the right answer says.
      options: slot of the last token of each option, with 1 for the right one and 0 for the others.
    """

    ids: list[int]
    ask: int
    mark: int
    content: tuple[int, int]
    options: dict[int, int]


def frame_batch(
    task: Procedural, step: int, clips: int, frames: int, sides: tuple[int, int], seed: int = 0
) -> FrameBatch:
    """A few frames of each of the clips step * clips, ..., with targets.

    Args:
      task: clips.
      step: of the run.
      clips: in a batch.
      frames: of each clip, drawn at random.
      sides: of the grids of patches and of cells.
      seed: of the draw.
    """
    parts = []
    for index in range(step * clips, (step + 1) * clips):
        rng = np.random.default_rng([seed, index])
        scene, _ = task.scene(index)
        images, owner = paint(scene)
        parts.append(frame_rows(scene, images, owner, rng.permutation(len(images))[:frames], sides))
    return joined(parts)


def frame_rows(
    scene: Scene, images: np.ndarray, owner: np.ndarray, picked: np.ndarray, sides: tuple[int, int]
) -> FrameBatch:
    """The picked frames of one clip with their targets; images and owner as from `paint`, sides as of `frame_batch`."""
    patches, cells = (clip_targets(scene, owner, side) for side in sides)
    side, width = sides[0], owner.shape[1] // sides[0]
    mask = owner.reshape(-1, side, width, side, width).transpose(0, 1, 3, 2, 4).reshape(-1, side**2, width**2) > 0
    parts = (images, patches.seen, cells.seen, cells.offset, mask, patches.offset)
    return FrameBatch(*(part[picked] for part in parts))


def joined(parts: Sequence[FrameBatch]) -> FrameBatch:
    """The frames of several clips as one batch."""
    return FrameBatch(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def clip_batch(
    task: Procedural,
    step: int,
    clips: int,
    prompts: Prompts,
    *,
    asked: int,
    cells: int,
    plan: Thinning,
    seed: int = 0,
    kinds: tuple[str, ...] = KINDS,
) -> ClipBatch:
    """Clips step * clips, ... with at most `asked` questions each, of the given kinds and the task's categories."""
    rows = [_clip(task, step * clips + i, prompts, asked, cells, plan, seed, kinds) for i in range(clips)]
    return ClipBatch(*(np.stack(column) for column in zip(*rows, strict=True)))


def _clip(
    task: Procedural,
    index: int,
    prompts: Prompts,
    asked: int,
    cells: int,
    plan: Thinning,
    seed: int,
    kinds: tuple[str, ...],
) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([seed, index])
    scene, _ = task.scene(index)
    frames, owner = paint(scene)
    targets = clip_targets(scene, owner, cells)
    kept = _keep(rng, targets.seen[..., 0].reshape(-1) > 0, plan)
    last = targets.seen[..., 0].size
    positions = np.arange(len(kept) + 1) if plan.close_gaps else np.append(kept, last)
    story = targets.story.reshape(last, -1)[kept]
    questions = question_rows(rng, task, scene, prompts, asked, kinds)
    # The first recipe has no use for what is told of named objects.
    told = questions[: QuestionRows._fields.index("named")]
    return (frames, kept.astype(np.int32), positions.astype(np.int32), story, *told)


def question_rows(
    rng: np.random.Generator,
    task: Procedural,
    scene: Scene,
    prompts: Prompts,
    asked: int,
    kinds: tuple[str, ...],
    placed: int = 0,
) -> QuestionRows:
    """Questions about one clip as arrays.

    Args:
      rng: of the draw.
      task: for its categories.
      scene: what the clip shows.
      prompts: encode questions.
      asked: most questions.
      kinds: of questions.
      placed: most of them that are easier ones of `places`.
    """
    easier = place_questions(rng, scene, min(placed, asked)) if placed else []
    questions = [*easier, *_questions(rng, task, scene, asked - len(easier), kinds)]
    ids = np.zeros((asked, prompts.longest), np.int32)
    length, ask = np.ones(asked, np.int32), np.zeros(asked, np.int32)
    mark = np.zeros(asked, np.int32)
    content, category = np.full((asked, 2), -1, np.int32), np.full(asked, -1, np.int32)
    truth = np.full((asked, prompts.longest), -1, np.int8)
    told = [np.full((asked, MOST), -1, np.int32), np.zeros((asked, MOST, SPOTS), np.float32)]
    told.append(np.zeros((asked, MOST), np.int32))
    for row, question in enumerate(questions):
        encoded = prompts.encode(question)
        ids[row, : len(encoded.ids)], length[row] = encoded.ids, len(encoded.ids)
        ask[row], mark[row], content[row] = encoded.ask, encoded.mark, encoded.content
        truth[row, list(encoded.options)] = list(encoded.options.values())
        category[row] = CATEGORY_NAMES.index(question.category)
        for column, values in zip(told, told_of(scene, [prompts.word(one) for one in encoded.ids]), strict=True):
            column[row] = values
    return QuestionRows(ids, length, ask, mark, content, truth, category, *told)


def _keep(rng: np.random.Generator, shown: np.ndarray, plan: Thinning) -> np.ndarray:
    if plan.kept is None or plan.kept >= len(shown):
        return np.arange(len(shown))
    lots = rng.random(len(shown)) + (shown if plan.objects_first else 0)
    return np.sort(np.argsort(-lots)[: plan.kept])


def _questions(
    rng: np.random.Generator, task: Procedural, scene: Any, count: int, kinds: tuple[str, ...]
) -> Sequence[Question]:
    """Questions of several draws without repetition; those of the clip's own story first."""
    drawn: dict[str, Question] = {}
    for _ in range(3 if kinds == KINDS else 6):
        for question in templates.questions(rng, scene, 8, task.categories, ""):
            if question.kind in kinds and question.category in task.categories:
                drawn.setdefault(question.prompt(), question)
    # A draw begins with the story's questions; at most half of the batch is about them.
    own = [question for question in drawn.values() if question.category == scene.focus]
    other = [question for question in drawn.values() if question.category != scene.focus]
    chosen = [*own[: max(count // 2, count - len(other))], *other]
    return chosen[:count]
